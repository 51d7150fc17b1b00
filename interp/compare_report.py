"""What a comparison says: in the terminal, as Markdown, as one HTML page, and on disk."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rundir import FIGURES, NEURONS, column_types, save_frame, write_manifest, writing
from .compare_rows import (
    CARRIERS,
    DIRECTIONS,
    carrier_rows,
    concentration_rows,
    distribution_rows,
    group_rows,
    kept_rows,
    score_rows,
    selective_rows,
    short_rows,
    tenth_rows,
    transplant_rows,
)
from .compare_tables import COLUMNS
from .content import Block, Picture, Report, Section, grid
from .figures import save_figures
from .rows import Rows
from .run_files import kept_table, write_pages, write_tables
from .verdict import ALPHA, SESOI

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .compare_result import CompareResult

LEGEND = (
    "rho: rank correlation of the base's score and a neuron's change, within layers. absolute: "
    "where does the change lie? relative: how much of itself did a neuron change? by arithmetic: "
    "rho where changes are dealt out at random and divided by norms that differ. q: "
    "Benjamini-Hochberg. lowest tenth: its share of the squared change. chance: rho of changes "
    "dealt out at random, 95 %.\n"
)
TRANSPLANTED = (
    "held: part of the MLPs' squared change. way: part of the way to the other model, where the "
    "two can be told apart. Random tenths as their range; margins in nats.\n"
)


def terminal(result: CompareResult) -> RenderableType:
    """Tables and verdict for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    if result.groups.height:
        parts.append(grid("Where the change lies", group_rows(result), 1))
    if result.verdict is not None:
        first = result.verdict.criterion
        parts += [
            grid("Magnitude in the base against change, within layers", short_rows(result), 1),
            grid(f"Change by tenth of {first} (1: smallest)", tenth_rows(result), 1),
        ]
    parts.append(grid("Scores in both", score_rows(result), 1))
    if result.kept_alike:
        title = "Do both sides' scores cut the same neurons?"
        parts.append(grid(title, kept_rows(result, full=False), 1))
    if result.carriers and result.verdict is not None:
        title = f"In the lowest tenth by {result.verdict.criterion}, changed most"
        parts.append(grid(title, carrier_rows(result, CARRIERS), 1))
    if result.selective:
        parts.append(grid("Change against what neurons do", selective_rows(result), 2))
    if result.transplants:
        parts += [
            grid(title, transplant_rows(result, direction, full=False), 1)
            for direction, title in DIRECTIONS.items()
        ]
        parts.append(Text(TRANSPLANTED, style="dim"))
    if result.verdict is not None:
        parts.append(Text(LEGEND, style="dim"))
    parts += [Text(f"Warning: {said}") for said in result.manifest["warnings"]]
    absolute, *rest = result.sentences
    parts.append(Text(f"Verdict: {absolute}", style="bold"))
    parts += [Text(f"By relative change, {said}") for said in rest]
    return Group(*parts)


def report(result: CompareResult) -> Report:
    """The whole report as data."""
    if result.kind == "runs":
        return _of_runs(result)
    base, tuned = result.manifest["model"], result.manifest["tuned"]
    about = (
        f"Base `{base['name']}` ({base['family']}, {base['layers']} layers, {base['neurons']:,} "
        f"neurons compared, {base['dtype']}, weights sha256 `{base['sha256'][:16]}…`), tuned "
        f"`{tuned['name']}` ({tuned['dtype']}, `{tuned['sha256'][:16]}…`), "
        f"{result.manifest['started']}, seed {result.manifest['options']['seed']}."
    )
    sections = [_verdict(result), _where(result), _magnitude(result), _scores(result)]
    if result.carriers:
        sections.append(_carriers(result))
    if result.selective:
        sections.append(_selective(result))
    if result.transplants:
        sections.append(_transplant(result))
    sections += [_limits(result), _data(result)]
    return Report(
        "Where did tuning move the weights?",
        f"Verdict: {result.sentences[0]}",
        about,
        sections,
    )


def _verdict(result: CompareResult) -> Section:
    blocks: list[Block] = [f"By relative change, {result.sentences[1]}"]
    if result.manifest["warnings"]:
        blocks += ["Mind:", "\n".join(f"- {said}" for said in result.manifest["warnings"])]
    blocks += [
        "The rule, stated before the run, is about the first criterion. The claim: *tuning changed "
        "low-magnitude neurons*, that is, Spearman's rank correlation of a neuron's magnitude in "
        "the base and its absolute change, within layers, is negative.",
        f"- *supported*: rho at most -{SESOI:g}, q below {ALPHA:g}, and the 95 % interval over "
        "layers below 0\n"
        f"- *contradicted*: rho at least +{SESOI:g}, q below {ALPHA:g}, and the interval above 0: "
        "the change lies in neurons of high magnitude\n"
        f"- *no evidence*: the interval excludes -{SESOI:g} and below\n"
        "- *cannot tell*: all else\n"
        "- *arithmetic* (of the relative change alone): what the rule would call supported or "
        "contradicted while the absolute change does not say so; dividing by norms that differ is "
        "then enough",
    ]
    return Section("The verdict and its rule", blocks)


def _where(result: CompareResult) -> Section:
    blocks: list[Block] = [
        kept_table(group_rows(result), "groups"),
        "Change: the norm of tuned minus base over all tensors of a kind. Of itself: over the "
        "base's norm. A kind that changed like the rest has as large a share of the squared change "
        "as of the weights.",
        Picture("layers", "Relative change of every layer's matrices, and which tenth holds it"),
        Picture("norms", "Norms of the neurons' weights, base (filled) and tuned (line), by layer"),
        kept_table(distribution_rows(result), "distributions", 2),
        "Distances between distributions before and after, mean over matrices and the largest: "
        "Wasserstein-1 in the base's standard deviations, and Kolmogorov-Smirnov. Attention and "
        "embeddings stand beside the MLPs as a reference. Weights are a sample of evenly spaced "
        "rows; norms are all, of `down` of its columns. Quantiles: `tables/distributions.csv`.",
    ]
    return Section("Where the change lies", blocks)


def _magnitude(result: CompareResult) -> Section:
    draws = result.manifest["options"]["permutations"]
    blocks: list[Block] = [
        kept_table(concentration_rows(result), "concentration", 2),
        "rho: Spearman's correlation of the base's score with the norm of a neuron's change "
        "(absolute) and with that over its own norm (relative), within each layer, averaged over "
        "layers; 95 % interval over layers. chance: the same with changes dealt out anew among the "
        f"neurons of a layer ({draws} deals, 95 %). by arithmetic: what rho would be if the other "
        "measure had been dealt out; noise of one size on all weights makes the relative change "
        "fall with magnitude, and a change by one factor makes the absolute change rise with it. "
        "by rounding (where both models are stored in 16 bits and that hides a tenth of the "
        "change or more): what noise of one size on all weights leaves once it is rounded; the "
        "verdict asks for rho beyond it. "
        "q: Benjamini-Hochberg over criteria (without controls) x both measures.",
        Picture("tenths", "Share of the squared change in each tenth of the base"),
        kept_table(tenth_rows(result), "concentration", 1),
    ]
    return Section("Magnitude against change", blocks)


def _scores(result: CompareResult) -> Section:
    blocks: list[Block] = [
        kept_table(score_rows(result), "scores"),
        "Rank correlation within MLPs. Rank shift: how far a neuron's place moved, in percent of "
        "its MLP. Wasserstein-1 (in the base's standard deviations) and Kolmogorov-Smirnov "
        "distance of the scores' distributions, mean over MLPs.",
        Picture("ranks", "Where neurons stood in the base's order, and how far they moved"),
    ]
    if result.kept_alike:
        blocks += [
            kept_table(kept_rows(result), "kept-alike"),
            "Of the neurons that a cut of this size takes by the base's scores, the share that it "
            "takes by the tuned model's, too. z: against two cuts drawn at random "
            "(hypergeometric). Two models of one descent have correlated scores, so a large z is "
            "no surprise; the share says how much pruning by one is pruning by the other.",
        ]
    return Section("Would the same neurons be cut?", blocks)


def _carriers(result: CompareResult) -> Section:
    first = result.manifest["options"]["criteria"][0]
    return Section(
        "Low neurons that changed much",
        [
            kept_table(carrier_rows(result), "carriers"),
            f"Neurons that cutting a tenth of every MLP by the base's {first} would take, those "
            "that hold most of the squared change first. Percentile: share of the MLP that scores "
            "lower. Place by change: 1 is the most changed of the MLP.",
        ],
    )


def _selective(result: CompareResult) -> Section:
    return Section(
        "Did neurons change that do something?",
        [
            kept_table(selective_rows(result), "selective", 2),
            f"From `{result.manifest['probe']}`: rank correlation within layers of the absolute "
            "change with |attribution| (`attr_`) and |d_z| (`dz_`) of each property, and of "
            "instruction minus every other. Neurons share factors and are not exchangeable, so p "
            "is descriptive; the interval over layers is what to look at. Given magnitude: with "
            "the first criterion's ranks partialled out.",
        ],
    )


def _transplant(result: CompareResult) -> Section:
    return Section(
        "Transplants",
        [
            *(
                block
                for direction, title in DIRECTIONS.items()
                for block in _titled(title, transplant_rows(result, direction))
            ),
            "The weights of a set of neurons (rows of gate and up, columns of down) of one model, "
            "put into the other: change of each property's margin (nats per item; n in the table's "
            "file) and of damage (nats per token of neutral text) against the host as it is, 95 % "
            "bootstrap over items; z against random sets of the same counts. *Way*: the part "
            "of the way to the donor, where the two can be told apart. A set that holds more of "
            "the change moves more of the way, whichever neurons it is of: *held* says how much "
            "(of random sets on average).",
            Picture("transplant", "A tenth's weights of the other model, beside random tenths"),
        ],
    )


def _titled(title: str, rows: Rows) -> tuple[Block, Block]:
    return f"{title}:", kept_table(rows, "transplant")


def _limits(result: CompareResult) -> Section:
    base, tuned = result.manifest["model"], result.manifest["tuned"]
    rows = [
        "- Where weights changed is not where behaviour changed: a large change can do nothing, "
        "a small one much. Only a transplant asks for what weights do.",
        "- The permutation takes the neurons of a layer for exchangeable. Gradients share factors, "
        "so its p is too small; the verdict asks the interval over layers, too.",
        "- A score is not a property of the function: rescaling a row of up against its column of "
        "down leaves the function as it is and changes both score and change.",
        "- rho is about ranks within layers. A few neurons that hold most of the change need not "
        "show in it; the tenths' shares and the list of low neurons do.",
        "- The first criterion carries the verdict; others are there to be compared with.",
    ]
    if "BF16" in base["dtype"] + tuned["dtype"]:
        rows.append(
            "- bfloat16 keeps eight bits of a weight: a change below 1/512 of it is rounded away, "
            "a larger one comes in steps that grow with the weight. Small changes of large weights "
            "vanish first, which by itself looks as if low-magnitude neurons had changed."
        )
    return Section("What this does not show", ["\n".join(rows)])


def _data(result: CompareResult) -> Section:
    command = " ".join(map(shlex.quote, result.manifest["argv"]))
    columns = "; ".join(f"`{k}`: {v}" for k, v in COLUMNS.items())
    blocks: list[Block] = []
    if "data" in result.manifest:
        blocks.append(
            "\n".join(
                f"- {d['name']}: {d['records']} records, {d['origin']}, sha256 "
                f"`{str(d['sha256'])[:16]}…`"
                for d in result.manifest["data"]
            )
        )
    blocks += [
        f"```\n{command}\n```",
        f"`neurons.parquet`: one row a neuron. {columns}. `glulens browse` shows both models' "
        "columns side by side. `tables/`: every number above.",
    ]
    return Section("To run this again", blocks)


def _of_runs(result: CompareResult) -> Report:
    manifest = result.manifest
    names = " and ".join(f"`{run['path']}` ({run['command']})" for run in manifest["runs"])
    sections = [_scores(result)]
    if manifest["warnings"]:
        sections.append(Section("Mind", ["\n".join(f"- {w}" for w in manifest["warnings"])]))
    distances = Section(
        "Distances by layer",
        ["Of every shared column and MLP: `tables/layers.csv`."],
    )
    return Report(
        "Two runs side by side",
        f"Verdict: {result.sentences[0]}",
        f"Runs {names}, {manifest['started']}.",
        [*sections, distances, _data(result)],
    )


def write_run(result: CompareResult, path: Path, *, overwrite: bool = False) -> None:
    """Write the run directory, whole or not at all.

    Raises:
        RunError, ResourceError: see `rundir.writing`.
    """
    from .figures_compare import draw_comparison

    whole = report(result)
    with writing(path, overwrite=overwrite) as scratch:
        save_frame(scratch / NEURONS, result.neurons)
        write_tables(scratch, result.tables())
        save_figures(draw_comparison(result), scratch / FIGURES)
        write_pages(scratch, whole)
        columns = {NEURONS: column_types(result.neurons)}
        manifest: dict[str, Any] = {**result.manifest, "columns": columns}
        if result.verdict is not None:
            manifest["verdict"] = result.to_json()["verdict"]
        write_manifest(scratch, manifest)
