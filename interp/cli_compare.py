"""`glulens compare`: a base and a tuned model side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import GlulensError, visible
from .cli_runs import show, stem

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("base")
@click.argument("tuned")
@click.option("-o", "--output", type=_PATH,
              help="Run directory to write.  [default: runs/compare-TUNED-TIME]")  # fmt: skip
@click.option("--criteria", metavar="LIST",
              help="Comma-separated; the first carries the verdict.  "
              "[default: all weight criteria, random:0]")  # fmt: skip
@click.option("--probe", type=_PATH, metavar="RUN",
              help="A run of either model: did neurons move that do something?")  # fmt: skip
@click.option("--permutations", type=int, default=1000, show_default=True, metavar="N",
              help="Draws of the null.")  # fmt: skip
@click.option("--transplant/--no-transplant", default=False, show_default=True,
              help="Put weights of one model into the other; builds both.")  # fmt: skip
@click.option("--transplant-items", type=int, default=24, show_default=True, metavar="N",
              help="Items a property to measure it on.")  # fmt: skip
@click.option("--transplant-random", type=int, default=10, show_default=True, metavar="N",
              help="Random tenths to compare with.")  # fmt: skip
@click.option("--transplant-set", "transplant_sets", multiple=True, metavar="FILE",
              type=click.Path(dir_okay=False),
              help="A set of neurons (JSON) to transplant, too.")  # fmt: skip
@click.option("--data", default="builtin", show_default=True, metavar="WHERE",
              help="For transplants: `builtin`, `hub`, or a folder of official files.")  # fmt: skip
@click.option("--max-tokens", type=int, default=1024, show_default=True, metavar="N",
              help="Padded tokens in a batch; lower it when memory is short.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True, help="Of the models in memory.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="A torch device.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
@click.option("--allow-nonfinite", is_flag=True,
              help="Leave neurons with NaN or infinite weights out.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a run that is there.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost; compare nothing.")
def compare(
    base: str,
    tuned: str,
    output: Path | None,
    criteria: str | None,
    probe: Path | None,
    overwrite: bool,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Where did tuning move the weights of BASE to make TUNED, and does magnitude say so?

    Both are model names (see `glulens score -h`) of one architecture and the same widths, or a
    model and its pruned copy; they are read side by side, tensor by tensor, and never built
    (but with --transplant). Two run directories are compared by the columns that they share.
    """
    from ..progress import on_stderr
    from ..prune.expressions import parse_criteria
    from ..rundir import unused
    from .compare_options import make_compare_options

    if criteria is not None:
        options["criteria"] = parse_criteria(criteria)
    options["probe"] = None if probe is None else str(probe)
    settings = make_compare_options(**options)
    try:
        if dry_run:
            from dataclasses import asdict

            from .compare_plan import plan_compare

            plan = plan_compare(base, tuned, settings)
            about = {"schema_version": 1, **asdict(plan)}
            click.echo(json.dumps(about) if as_json else "\n".join(plan.lines()))
            return
        from .compare import compare as run

        path = output or unused(Path("runs") / f"compare-{stem(tuned)}")
        with on_stderr() as progress:
            result = run(
                base,
                tuned,
                output=path,
                overwrite=overwrite,
                progress=progress,
                argv=["glulens", *sys.argv[1:]],
                **options,
            )
    except GlulensError as error:
        _stop_with_table(error)
        raise
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        from .compare_report import terminal

        show(terminal(result))
    click.echo(f"run directory: {path}", err=as_json)


def _stop_with_table(error: GlulensError) -> None:
    """Print an error that brings a table of what differs, line by line, and exit.

    Other errors are one line, and the group's.
    """
    head, *table = str(error).split("\n")
    if table:
        click.echo(f"glulens: {visible(head)}", err=True)
        for line in table:
            click.echo(visible(line), err=True)
        sys.exit(error.exit_code)
