"""The commands that watch neurons: `probe` and `examples`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from ..errors import (
    GlulensError,
    ResourceError,
    UnfinishedError,
    UsageError,
    is_out_of_memory,
    visible,
)
from .cli_runs import place_of
from .cli_weights import print_table
from .json_values import finite

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--on", required=True, metavar="SETS",
              help="truthfulqa, mmlu, ifeval, or CSV files; by commas.")  # fmt: skip
@click.option("-o", "--output", type=_PATH,
              help="Run directory to write.  [default: runs/probe-MODEL-TIME]")  # fmt: skip
@click.option("--data", default="builtin", show_default=True, metavar="WHERE",
              help="`builtin`, `hub`, or a folder with the official files.")  # fmt: skip
@click.option("--limit", type=int, metavar="N", help="Items of each set, drawn at random.")
@click.option("--tokens", type=click.Choice(["answer", "last", "all", "prompt"]), default="answer",
              show_default=True, help="Which tokens of a text enter.")  # fmt: skip
@click.option("--engine", type=click.Choice(["hooks", "lens", "nnsight"]), default="hooks",
              show_default=True)  # fmt: skip
@click.option("--remote", is_flag=True, help="Run on NDIF (with --engine nnsight).")
@click.option("--chat", is_flag=True, help="Put prompts through the model's chat template.")
@click.option("--criteria", metavar="LIST",
              help="Weight scores to stand beside.  [default: ppm,maw,vow,pon,l2]")  # fmt: skip
@click.option("--examples", type=int, default=10, show_default=True, metavar="K",
              help="Tokens kept of every neuron, at either end and between.")  # fmt: skip
@click.option("--vocabulary/--no-vocabulary", default=True, show_default=True,
              help="List the tokens that every neuron writes and reads.")  # fmt: skip
@click.option("--mask", type=click.Path(dir_okay=False), help="Silence this set (JSON) meanwhile.")
@click.option("--decode", is_flag=True, help="Also fit linear probes (minutes a layer).")
@click.option("--decode-layers", metavar="LIST", help="To these layers only, as in 0,8,15.")
@click.option("--random-model/--no-random-model", default=True, show_default=True,
              help="Give linear probes an untrained model beside this one.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
@click.option("--max-tokens", type=int, default=1024, show_default=True, metavar="N",
              help="Padded tokens in a batch; halved where memory runs out.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="A torch device.")
@click.option("--device-map", metavar="MAP", help="`auto` spreads the model over several GPUs.")
@click.option("--resume", is_flag=True, help="Go on with a run that was cut short.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there.")
@click.option("--json", "as_json", is_flag=True, help="Write the summary to stdout as JSON.")
def probe(
    model: str,
    output: Path | None,
    criteria: str | None,
    decode_layers: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Record what every neuron of MODEL does on probe sets.

    A CSV has a column `text` (or `statement`) and a column `label`; an `item` column says which
    rows belong together, a `prompt` column what stands before the text. Killed or stopped, the same
    command with --resume goes on.
    """
    from ..progress import on_stderr
    from ..prune.expressions import parse_criteria
    from .probe import probe as run
    from .probe import resumable
    from .probe_files import contrast_rows

    if criteria is not None:
        options["criteria"] = parse_criteria(criteria)
    if decode_layers is not None:
        options["decode_layers"] = _layers(decode_layers)
    output = place_of("probe", model, output, resume)
    click.echo(f"run directory: {output}", err=True)
    try:
        with on_stderr() as progress:
            found = run(
                model,
                output,
                resume=resume,
                progress=progress,
                argv=["glulens", *sys.argv[1:]],
                **options,
            )
    except KeyboardInterrupt:
        if not resumable(output):
            raise
        click.echo(
            f"glulens: interrupted; the same command with -o {output} --resume goes on", err=True
        )
        sys.exit(130)
    except (GlulensError, MemoryError, RuntimeError, OSError) as error:
        memory = is_out_of_memory(error) or (
            isinstance(error, ResourceError) and "memory" in str(error)
        )
        if not isinstance(error, GlulensError) and not memory:
            raise
        if resumable(output) and not isinstance(error, UnfinishedError) and (memory or not resume):
            click.echo(
                f"what is done stays: the same command with -o {output} --resume goes on"
                + (" once more memory is free, here or on another machine" if memory else "")
                + "; with other options a run begins anew (--overwrite)",
                err=True,
            )
        if isinstance(error, GlulensError):
            raise
        raise ResourceError("out of memory; free some") from error
    for kind, lines in (("refused", "refused"), ("note", "warnings")):
        for line in found.manifest[lines]:
            click.echo(f"{kind}: {visible(line)}", err=True)
    rows = finite(contrast_rows(found.neurons(), found.manifest))
    if as_json:
        about = {
            "schema_version": 1,
            "path": str(output),
            **{k: found.manifest[k] for k in ("tokens", "conditions", "refused", "warnings")},
            "contrasts": rows,
        }
        click.echo(json.dumps(about, indent=1, allow_nan=False))
        return
    conditions = found.manifest["conditions"]
    print_table(
        ["condition", "texts", "tokens"],
        [(_plain(name), f"{c['texts']:,}", f"{c['tokens']:,}") for name, c in conditions.items()],
    )
    if rows:
        click.echo()
        print_table(list(rows[0]), [tuple(map(_plain, row.values())) for row in rows])


def _plain(value: Any) -> Any:
    """For a cell of a table, where brackets would be read as markup and None be printed."""
    from rich.markup import escape

    return "" if value is None else escape(visible(value)) if isinstance(value, str) else value


def _layers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = (-1,)
    if min(found) < 0:
        raise UsageError(f"--decode-layers {text!r}: write layers from 0 by commas, as in 0,8,15")
    return found


@click.command()
@click.argument("run", type=_PATH)
@click.argument("neuron")
@click.option("-k", type=int, default=5, show_default=True, help="How many of each kind.")
@click.option("--width", type=int, default=60, show_default=True,
              help="Characters of context on either side.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write them to stdout as JSON.")
def examples(run: Path, neuron: str, k: int, width: int, as_json: bool) -> None:
    """Show the tokens that drive NEURON (L12.N345, L12.E3.N345) of RUN most, either way."""
    from ..neuron_keys import read_keys
    from ..rundir import open_run
    from ..tables import examples_of

    if k < 1 or width < 0:
        raise UsageError("-k must be at least 1, --width at least 0")
    found = examples_of(run, read_keys(open_run(run)).find(neuron))
    if as_json:
        from dataclasses import asdict

        sides = {side: finite([asdict(one) for one in some[:k]]) for side, some in found.items()}
        about = {"schema_version": 1, "run": str(run), "neuron": neuron, "examples": sides}
        click.echo(json.dumps(about, indent=1, allow_nan=False))
        return
    titles = {"high": "most positive", "low": "most negative", "spread": "across its range"}
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=40 + 3 * width)
    for side, some in found.items():
        step = max(1, len(some) // k) if side == "spread" else 1
        console.print(f"[bold]{titles[side]}[/bold]")
        for one in some[::step][:k]:
            line = Text(f"{one.value:+10.4g}  ")
            before = "".join(one.tokens[: one.position])
            after = "".join(one.tokens[one.position + 1 :])
            line.append(visible(before)[-width:] if width else "")
            line.append(f"[{visible(one.tokens[one.position])}]", style="bold reverse")
            line.append(visible(after)[:width])
            about = " ".join(one.about[key] for key in ("set", "condition", "item"))
            line.append(f"  ({visible(about)})", style="dim")
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
