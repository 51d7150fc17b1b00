"""The commands that look at weights alone: `score` and `prune`. Neither builds a model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .cli_runs import stem
from .json_values import finite

if TYPE_CHECKING:
    from ..prune.stream import Pruned

MOST_LAYERS = 10_000
_DIGITS = 40
_FILE = click.Path(path_type=Path, dir_okay=False)
_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=_PATH,
              help="Run directory to write.  [default: runs/score-MODEL-TIME]")  # fmt: skip
@click.option("--criteria", metavar="LIST",
              help="Comma-separated.  [default: all weight criteria]")  # fmt: skip
@click.option("--recording", type=_FILE, help="For criteria that look at activations.")
@click.option("--allow-nonfinite", is_flag=True,
              help="Rank neurons with NaN or infinite weights lowest.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a run that is there.")
@click.option("--json", "as_json", is_flag=True, help="Write the summary to stdout as JSON.")
def score(
    model: str,
    output: Path | None,
    criteria: str | None,
    recording: Path | None,
    allow_nonfinite: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score every neuron of MODEL by its weights.

    Weights are read once, tensor by tensor, whatever the model's size. Criteria: ppm, maw, vow,
    pon, l2, vow_out, pon_io; with a recording hybrid, amp, wanda, flap, minitron; random:SEED,
    reversed:X, shuffled:X:SEED, balanced(X), folded(X), mean(X,Y).
    """
    from ..progress import on_stderr
    from ..prune.expressions import parse_criteria
    from ..prune.recording import Recording
    from ..rundir import unused
    from .score import DEFAULT_CRITERIA, score_run, summary

    names = DEFAULT_CRITERIA if criteria is None else parse_criteria(criteria)
    recorded = Recording.load(recording) if recording else None
    path = output or unused(Path("runs") / f"score-{stem(model)}")
    with on_stderr() as progress:
        run = score_run(
            model,
            path,
            names,
            recording=recorded,
            allow_nonfinite=allow_nonfinite,
            overwrite=overwrite,
            progress=progress,
            argv=["glulens", *sys.argv[1:]],
        )
    found = summary(run.neurons(), names)
    if as_json:
        about = {"schema_version": 1, "path": str(path), "criteria": finite(found.to_dicts())}
        click.echo(json.dumps(about, indent=1, allow_nan=False))
    else:
        print_table(found.columns, found.rows())
    click.echo(f"run directory: {path}", err=as_json)


@click.command()
@click.argument("model")
@click.argument("out", type=_PATH)
@click.option("--criterion", default="ppm", show_default=True, metavar="NAME",
              help="What neurons are ranked by (see `glulens score -h`).")  # fmt: skip
@click.option("--fraction", type=float, metavar="F", help="Cut this fraction of every MLP.")
@click.option("--expansion", type=float, metavar="E",
              help="Keep E x hidden size neurons in every MLP.")  # fmt: skip
@click.option("--width", type=int, metavar="N", help="Keep N neurons in every MLP.")
@click.option("--parameters", metavar="N", help="Keep at most N parameters (as in 120M or 1.2B).")
@click.option("--layer-fraction", multiple=True, metavar="LAYERS=F",
              help="Another fraction for some layers, as in 0=0 or 4-7=0.3.")  # fmt: skip
@click.option("--global", "pooled", is_flag=True,
              help="Rank all MLPs together, each standardised in itself.")  # fmt: skip
@click.option("--divisor", type=int, default=1, metavar="N",
              help="Round kept widths to multiples of N.")  # fmt: skip
@click.option("--protect", type=_FILE, help="A set of neurons that stay (JSON).")
@click.option("--cut-set", type=_FILE, help="Cut exactly this set of neurons (JSON).")
@click.option("--keep-set", type=_FILE, help="Keep exactly this set of neurons (JSON).")
@click.option("--recording", type=_FILE, help="For criteria that look at activations.")
@click.option("--allow-nonfinite", is_flag=True,
              help="Cut neurons with NaN or infinite weights first.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")
@click.option("--dry-run", is_flag=True, help="Say what would go and what would be written.")
def prune(
    model: str,
    out: Path,
    criterion: str,
    layer_fraction: tuple[str, ...],
    parameters: str | None,
    protect: Path | None,
    cut_set: Path | None,
    keep_set: Path | None,
    recording: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Cut neurons from MODEL and write the pruned checkpoint to OUT.

    Tensors are read and written one by one: the model is never built. OUT loads with stock
    Transformers and is there whole or not at all. Give one of --fraction, --expansion, --width,
    --parameters, --cut-set and --keep-set.
    """
    from ..progress import on_stderr
    from ..prune.budget import Budget
    from ..prune.recording import Recording
    from ..prune.selection import NeuronSet
    from ..prune.stream import keep_only, prune_checkpoint

    layers: dict[int, float] = {}
    for given in layer_fraction:
        layers.update(_layer_fraction(given))
    sizes = {name: options.pop(name) for name in ("fraction", "expansion", "width")}
    sizes["parameters"] = None if parameters is None else _count(parameters)
    pooled, divisor = options.pop("pooled"), options.pop("divisor")
    cut = None
    if cut_set or keep_set:
        chosen = [name for name, value in sizes.items() if value is not None]
        if (cut_set and keep_set) or chosen or layers or pooled or divisor != 1:
            raise UsageError("--cut-set and --keep-set say what goes: give one, and no budget")
        cut = NeuronSet.load(cut_set) if cut_set else keep_only(NeuronSet.load(str(keep_set)))
        if protect and len(cut & NeuronSet.load(protect)):
            raise UsageError("--cut-set and --protect share neurons; take them out of one")
    budget = (
        None if cut is not None else Budget(**sizes, pooled=pooled, divisor=divisor, layers=layers)
    )
    with on_stderr() as progress:
        done = prune_checkpoint(
            model,
            out,
            criterion=criterion,
            budget=budget,
            cut=cut,
            protected=NeuronSet.load(protect) if protect and cut is None else None,
            recording=Recording.load(recording) if recording else None,
            progress=progress,
            argv=["glulens", *sys.argv[1:]],
            **options,
        )
    if as_json:
        click.echo(json.dumps(done.to_json(), indent=1))
    else:
        _print_pruned(done)


def _print_pruned(done: Pruned) -> None:
    neurons = sum(done.cut.widths), sum(done.kept)
    lines = [
        f"neurons: {neurons[0]:,} -> {neurons[1]:,} ({1 - neurons[1] / neurons[0]:.1%} cut)",
        f"parameters: {done.parameters[0]:,} -> {done.parameters[1]:,}",
        f"widths: {_range(done.cut.widths)} -> {_range(done.kept)}"
        + (f", stored as {_range(done.stored)}" if done.stored != done.kept else ""),
    ]
    if done.ties is not None:
        lines.append(f"ties: {done.ties:,} kept neurons score like a cut one of their MLP")
    lines.append(f"weights: {done.bytes / 1e6:,.1f} MB")
    lines.append(f"checkpoint: {done.path}" if done.path else "dry run: nothing was written")
    click.echo("\n".join(lines))


def _range(widths: tuple[int, ...]) -> str:
    low, high = min(widths), max(widths)
    return f"{low:,}" if low == high else f"{low:,}..{high:,}"


def print_table(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(f"{c:,.4g}" if isinstance(c, float) else str(c) for c in row))
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def _layer_fraction(text: str) -> dict[int, float]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?=([0-9.eE+-]+)", text)
    try:
        if match is None:
            raise ValueError
        first, last, fraction = int(match[1]), int(match[2] or match[1]), float(match[3])
    except ValueError:
        raise UsageError(
            f"--layer-fraction {text!r}: write LAYER=FRACTION or FIRST-LAST=FRACTION, as in 0=0"
        ) from None
    if not 0 <= fraction < 1 or not first <= last < MOST_LAYERS:
        raise UsageError(
            f"--layer-fraction {text!r}: 0 <= fraction < 1, and layers ascending, below "
            f"{MOST_LAYERS}"
        )
    return dict.fromkeys(range(first, last + 1), fraction)


def _count(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMbB]?)", text.replace("_", ""))
    if match is None:
        raise UsageError(f"--parameters {text!r}: write a number, as in 120000000, 120M or 1.2B")
    if len(text) > _DIGITS:
        raise UsageError(f"--parameters {text[:20]!r}...: no model has so many")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()])
