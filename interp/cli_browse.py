"""The commands that look at the neurons of a run: `browse`, `top` and `show`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from ..errors import UsageError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=_PATH)
@click.argument("other", type=_PATH, required=False)
@click.option("--print", "printing", is_flag=True,
              help="Write the names of the marked neurons to stdout on leaving.")  # fmt: skip
@click.option("--keys", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Other keys for some bindings (TOML; see --list-keys).")  # fmt: skip
@click.option("--list-keys", is_flag=True, is_eager=True, expose_value=False,
              callback=lambda context, _, given: _print_keys(context) if given else None,
              help="List the bindings as a key file, and exit.")  # fmt: skip
@click.option("--model", metavar="NAME",
              help="The run's model, to try texts on, in a process of its own.")  # fmt: skip
def browse(
    run: Path, other: Path | None, printing: bool, keys: Path | None, model: str | None
) -> None:
    """Browse the neurons of RUN, a run directory, in the terminal, beside those of OTHER.

    Seven views on keys 1 to 7; `?` lists keys and the words of filters.
    """
    from ..tui.app import Browser, open_session
    from ..tui.keys import default_file, read_keys

    session = open_session(run, other, model)
    if keys is None and default_file().is_file():
        keys = default_file()
    chosen = read_keys(keys) if keys else None
    # Textual reads keys from stdin and draws on stderr; without them it would wait for ever.
    terminal = sys.stdin.isatty() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if not terminal:
        raise UsageError(
            "browse needs a terminal; `glulens top RUN` and `glulens show RUN NEURON` do without"
        )
    marked = Browser(session, chosen).run()
    for label in (marked or ()) if printing else ():
        click.echo(label)


@click.command()
@click.argument("run", type=_PATH)
@click.option("--by", default="", metavar="COLUMN", help="Rank by it.  [default: the run's first]")
@click.option("--desc", "descending", is_flag=True, help="The largest first.")
@click.option("--where", default="", metavar="FILTER",
              help="Only neurons that pass, as in 'layer < 4 and ppm > pct(ppm, 99)'.")  # fmt: skip
@click.option("-n", "limit", type=int, default=20, show_default=True, metavar="N",
              help="How many.")  # fmt: skip
@click.option("--columns", "shown", default="", metavar="LIST",
              help="Columns to show, by commas.  [default: scores, attributions, d_z]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write them to stdout as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Write them to stdout as CSV, unrounded.")
@click.option("--grammar", is_flag=True, is_eager=True, expose_value=False,
              callback=lambda context, _, given: _print_grammar(context) if given else None,
              help="Say what FILTER may hold, and exit.")  # fmt: skip
def top(
    run: Path,
    by: str,
    descending: bool,
    where: str,
    limit: int,
    shown: str,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List the first neurons of RUN in a ranking.

    Ties go by layer and neuron; neurons without a value come last in both directions.
    """
    from ..tui import plain
    from ..tui.columns import open_columns

    if as_json and as_csv:
        raise UsageError("--json and --csv are two forms of the same; give one")
    names = [name.strip() for name in shown.split(",") if name.strip()]
    found = plain.top(
        open_columns(run), by=by, descending=descending, where=where, limit=limit, shown=names
    )
    if as_json:
        about = {"run": str(run), **found.to_json()}
        click.echo(json.dumps(about, indent=1, allow_nan=False))
    elif as_csv:
        click.echo(found.csv(), nl=False)
    else:
        # Into a file or a pipe go all columns, on a screen those that fit.
        width = _screen_width()
        rows = found.cells(None if names else width)
        for place, line in enumerate(plain.aligned(rows)):
            click.echo(click.style(line, bold=True) if place == 0 and width else line)
        click.echo(found.sentence(), err=True)


@click.command()
@click.argument("run", type=_PATH)
@click.argument("neuron")
@click.option("-k", type=int, default=3, show_default=True, help="Examples of each kind.")
@click.option("--json", "as_json", is_flag=True, help="Write everything to stdout as JSON.")
def show(run: Path, neuron: str, k: int, as_json: bool) -> None:
    """Say everything that RUN knows of NEURON (L12.N345, L12.E3.N345)."""
    from ..tui import plain
    from ..tui.columns import open_columns
    from ..tui.facts import facts

    if k < 1:
        raise UsageError(f"-k {k}: at least 1 is needed")
    columns = open_columns(run)
    found = facts(columns, columns.find(neuron))
    if as_json:
        about = {"run": str(run), **found.to_json()}
        click.echo(json.dumps(about, indent=1, allow_nan=False))
    else:
        click.echo("\n".join(plain.sheet(found, examples=k)))


def _screen_width() -> int | None:
    """Cells of a line of the terminal; None without one."""
    import shutil

    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print_grammar(context: click.Context) -> None:
    from ..tui.filters import grammar
    from ..tui.plain import aligned

    click.echo("\n".join(aligned(grammar(), left=2)))
    context.exit()


def _print_keys(context: click.Context) -> None:
    from ..tui.keys import KEYS
    from ..tui.plain import aligned

    lines = [(f'{key.id} = "{key.keys}"', f"# {key.about}") for key in KEYS]
    click.echo("\n".join(["[keys]", *aligned(lines, left=2)]))
    context.exit()
