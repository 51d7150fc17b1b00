"""`glulens hypothesis`, its demo, and the calibration of its test."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .cli_runs import place_of, saying_how_to_go_on, show


def run_options(**defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that `hypothesis` and `demo` share, with defaults of their own."""
    options = [
        click.option("-o", "--output", type=click.Path(path_type=Path),
                     help="Run directory to write.  [default: runs/COMMAND-MODEL-TIME]"),
        click.option("--resume", is_flag=True, help="Go on with a run that was stopped."),
        click.option("--overwrite", is_flag=True, help="Replace a run that is there."),
        click.option("--limit", type=int, default=defaults["limit"], show_default=True, metavar="N",
                     help="Items per property, drawn at random if there are more."),
        click.option("--criteria", metavar="LIST",
                     help="Comma-separated; the first carries the verdict.  "
                     "[default: ppm,maw,vow,pon,l2,random:0]"),
        click.option("--seed", type=int, default=0, show_default=True, help="Of every draw."),
        click.option("--causal-items", type=int, default=defaults["causal_items"],
                     show_default=True, metavar="N",
                     help="Items a property on which tenths are silenced; 0 leaves it out."),
        click.option("--causal-random", type=int, default=defaults["causal_random"],
                     show_default=True, metavar="N",
                     help="Random tenths to compare with, in whole orders of ten."),
        click.option("--map-items", type=int, default=defaults["map_items"], show_default=True,
                     metavar="N", help="The same for every layer's tenths alone; 0 leaves it out."),
        click.option("--null-items", type=int, default=defaults["null_items"], show_default=True,
                     metavar="N", help="Questions for models that know nothing; 0 for none."),
        click.option("--decode-every", type=int, default=defaults["decode_every"],
                     show_default=True, metavar="N",
                     help="Linear probes on every Nth layer; 0 for none."),
        click.option("--permutations", type=int, default=defaults["permutations"],
                     show_default=True, metavar="N", help="Draws of the item-label null."),
        click.option("--umap/--no-umap", default=defaults["umap"], show_default=True,
                     help="Draw neurons by functional profile; takes half a minute."),
        click.option("--max-tokens", type=int, default=1024, show_default=True, metavar="N",
                     help="Padded tokens in a batch; lower it when memory is short."),
        click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON."),
        click.option("--dry-run", is_flag=True, help="Say what it would cost; run nothing."),
    ]  # fmt: skip

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("model")
@click.option("--data", default="builtin", show_default=True, metavar="WHERE",
              help="`builtin`, `hub`, or a folder with the official files.")  # fmt: skip
@run_options(
    limit=2000,
    causal_items=24,
    causal_random=20,
    map_items=4,
    null_items=100,
    decode_every=3,
    permutations=2000,
    umap=True,
)
@click.option("--dose-items", type=int, default=40, show_default=True, metavar="N",
              help="TruthfulQA questions under growing cuts; 0 for none.")  # fmt: skip
@click.option("--chat", is_flag=True, help="Put prompts through the model's chat template.")
@click.option("--engine", type=click.Choice(["hooks", "lens"]), default="hooks", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="A torch device.")
def hypothesis(model: str, **options: Any) -> None:
    """Test whether misconceptions live in low-magnitude neurons of MODEL.

    MODEL is an embedded model (see `glulens models`), a local folder, a GGUF file, or a hub id
    (`org/name` or `org/name@revision`). Killed or stopped, the same command with --resume goes on.
    """
    _hypothesis("hypothesis", model, **options)


@click.command()
@run_options(
    limit=2000,
    causal_items=6,
    causal_random=10,
    map_items=0,
    null_items=0,
    decode_every=0,
    permutations=1000,
    umap=False,
)
def demo(**options: Any) -> None:
    """The hypothesis on SmolLM2-135M-Instruct with the built-in sample."""
    # Fewer draws and items than in earnest: a first look takes minutes, not a quarter of an hour.
    _hypothesis("demo", "smollm2-135m-instruct", bootstraps=200, **options)


def _hypothesis(
    command: str,
    model: str,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    criteria: str | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    from ..progress import on_stderr
    from ..prune.expressions import parse_criteria
    from .hypothesis import hypothesis as run
    from .options import make_options

    where = {name: options.pop(name) for name in ("dtype", "device") if name in options}
    if criteria is not None:
        options["criteria"] = parse_criteria(criteria)
    settings = make_options(**options)
    if dry_run:
        from dataclasses import asdict

        from .plan import plan_hypothesis

        plan = plan_hypothesis(model, settings)
        lines = json.dumps({"schema_version": 1, **asdict(plan)}) if as_json else plan.lines()
        click.echo(lines if isinstance(lines, str) else "\n".join(lines))
        return
    path = place_of(command, model, output, resume)
    with saying_how_to_go_on(path), on_stderr() as progress:
        result = run(
            model,
            output=path,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
            argv=["glulens", *sys.argv[1:]],
            **where,
            **options,
        )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        from .report import terminal

        show(terminal(result))
    click.echo(f"run directory: {path}", err=as_json)


@click.command()
@click.argument("model")
@click.option(
    "--data",
    default="builtin",
    show_default=True,
    metavar="WHERE",
    help="`builtin`, `hub`, or a folder with the official files.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Run directory to write.  [default: runs/calibrate-MODEL-TIME]",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there.")
@click.option("--limit", type=int, metavar="N", help="Questions, drawn at random.")
@click.option(
    "--criterion", default="ppm", show_default=True, help="The score whose order is planted."
)
@click.option(
    "--plantings",
    type=int,
    default=40,
    show_default=True,
    metavar="N",
    help="Of each kind and strength.",
)
@click.option(
    "--orders", type=int, default=200, show_default=True, metavar="N", help="Random orders."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every draw.")
@click.option(
    "--max-tokens",
    type=int,
    default=1024,
    show_default=True,
    metavar="N",
    help="Padded tokens in a batch; lower it when memory is short.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option("--device", default="auto", show_default=True, help="A torch device.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")
def calibrate(model: str, output: Path | None, resume: bool, as_json: bool, **options: Any) -> None:
    """Plant magnitude orders in MODEL and see what the test of `hypothesis` says of them.

    An order of magnitude is planted by rescaling neurons, which leaves the function as it is:
    magnitude falls with attribution (to be called supported), rises with it (contradicted), or has
    nothing to do with it (neither). One half of the questions makes the order, the other is tested.
    """
    from ..progress import on_stderr
    from .calibration import calibrate as run
    from .calibration import rate_rows, summary

    path = place_of("calibrate", model, output, resume)
    with saying_how_to_go_on(path), on_stderr() as progress:
        result = run(
            model,
            output=path,
            resume=resume,
            progress=progress,
            argv=["glulens", *sys.argv[1:]],
            **options,
        )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        header, rows = rate_rows(result)
        grid = Table(box=SIMPLE_HEAD, padding=(0, 1))
        for place, name in enumerate(header):
            grid.add_column(name, justify="left" if place < 1 else "right")
        for row in rows:
            grid.add_row(*row)
        show(grid)
        click.echo(summary(result))
    click.echo(f"run directory: {path}", err=as_json)
