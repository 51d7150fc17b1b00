"""What a sweep says: in the terminal, as Markdown, as one HTML page, and on disk."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..rundir import FIGURES
from .content import Block, Picture, Report, Section, grid
from .figures import save_figures
from .run_files import kept_table, write_pages, write_tables
from .sweep_analysis import SweepAnalysis
from .sweep_findings import Paired, Score
from .sweep_measures import IFEVAL, Key, in_family, measures
from .sweep_points import INTACT
from .sweep_rows import (
    correlation_rows,
    criteria,
    curve_rows,
    ifeval_rows,
    instruction_rows,
    is_better,
    matched_rows,
    number,
    paired_rows,
    paper_rows,
    percent,
    stands_out,
)
from .sweep_series import CORRELATED, PAPERS_CRITERION
from .verdict import ALPHA

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .sweep_result import SweepResult

LEGEND = (
    "Score of the cut model; perplexities fall where others rise. random: lowest to highest of the "
    "random cuts of that size. *: not like random cuts (q over items below 0.05 and, with three or "
    "more random cuts, q among them too). floor: the score of an answerer that knows "
    "nothing.\n"
)


def shown(result: SweepResult) -> list[Key]:
    """Tasks and metrics that tables and tests are made of."""
    return [of.key for of in in_family(measures(result))]


def terminal(result: SweepResult, analysis: SweepAnalysis | None = None) -> RenderableType:
    """Tables and reading for a terminal.

    Args:
        analysis: of this sweep, where it is at hand.
    """
    from rich.console import Group
    from rich.text import Text

    found = analysis or result.analysis
    parts: list[RenderableType] = [
        grid("Scores", curve_rows(found, shown(result), full=False), 2, grouped=True),
        Text(LEGEND, style="dim"),
    ]
    if found.correlations:
        parts.append(grid("MMLU against MC2 over the cuts", correlation_rows(found, full=False), 1))
    if any(row.control is None for row in found.matched):
        title = "Beside random cuts of the same perplexity"
        parts.append(grid(title, matched_rows(found, full=False), 3, grouped=True))
    if any(row.task == IFEVAL for row in found.scores):
        parts.append(grid("IFEval", ifeval_rows(found, full=False), 1, grouped=True))
    if found.paper:
        parts.append(
            grid(
                f"Beside the paper's {found.paper_model}",
                paper_rows(found, full=False),
                1,
                grouped=True,
            )
        )
    parts += [Text(f"Warning: {said}") for said in result.manifest.get("warnings", ())]
    parts += [Text(said, style="bold") for said in sentences(found)]
    return Group(*parts)


def sentences(analysis: SweepAnalysis) -> list[str]:
    """What the sweep found, in words, by rules that stand in the report."""
    return [*_beyond_random(analysis), *_correlated(analysis), *_floors(analysis)]


def _beyond_random(analysis: SweepAnalysis) -> list[str]:
    said = []
    for name in criteria(analysis):
        rows = [
            row
            for row in analysis.tests
            if row.against == "random" and row.criterion == name and row.q == row.q
        ]
        if not rows:
            said.append(f"{name}: no random cuts to compare with; give --controls random:5")
            continue
        out = [row for row in rows if stands_out(row)]
        better = sum(is_better(row) for row in out)
        said.append(
            f"{name}: of {len(rows)} comparisons with random cuts of the same size "
            f"{better} better, {len(out) - better} worse, {len(rows) - len(out)} not told apart"
            + _by_items_alone(rows, len(out))
        )
    return said


def _by_items_alone(rows: Sequence[Paired], out: int) -> str:
    """What the test over items says and the few random draws do not bear out."""
    differ = sum(row.q < ALPHA for row in rows)
    if differ == out:
        return ""
    draws = max(row.draws for row in rows)
    return f"; over items alone {differ} differ from these {draws} random cuts"


def _correlated(analysis: SweepAnalysis) -> list[str]:
    random = [row.found.r for row in analysis.correlations if row.control == "random"]
    random = [r for r in random if r == r]
    said = []
    for row in analysis.correlations:
        one = row.found
        if row.control is None and one.r == one.r:
            beside = (
                f"; random cuts have r from {min(random):+.2f} to {max(random):+.2f}"
                if random
                else ""
            )
            said.append(
                f"MMLU against MC2 under {row.criterion}: r = {one.r:+.2f} over {one.n} points; "
                f"unrelated increasing series reach it in {one.by_chance:.0%} of draws{beside}"
            )
    return said


def _floors(analysis: SweepAnalysis) -> list[str]:
    """Scores that are no better than knowing nothing."""
    said = []
    for key in dict.fromkeys((r.task, r.metric) for r in analysis.scores if r.floor == r.floor):
        rows = [r for r in analysis.scores if (r.task, r.metric) == key and r.control is None]
        low = [row for row in rows if row.low <= row.floor]
        if low:
            whole = "all" if len(low) == len(rows) else f"{len(low)} of {len(rows)}"
            said.append(
                f"{key[0]} {key[1]}: {whole} scores are not above the {number(low[0].floor)} of "
                f"an answerer that knows nothing ({_which(low, rows)})"
            )
    return said


def _which(low: Sequence[Score], rows: Sequence[Score]) -> str:
    """Cuts in few words: `the intact model, ppm from 40 %`."""
    said = []
    for name in dict.fromkeys(row.criterion for row in low):
        sizes = [row.fraction for row in low if row.criterion == name]
        every = [row.fraction for row in rows if row.criterion == name]
        if name == INTACT:
            said.append("the intact model")
        elif len(sizes) > 1 and sizes == [size for size in every if size >= sizes[0]]:
            said.append(f"{name} from {percent(sizes[0])}")
        elif len(sizes) > 1 and sizes == every[: len(sizes)]:
            said.append(f"{name} to {percent(sizes[-1])}")
        else:
            said.append(f"{name} {', '.join(map(percent, sizes))}")
    return ", ".join(said)


def report(result: SweepResult, analysis: SweepAnalysis) -> Report:
    """The whole report as data."""
    manifest = result.manifest
    model, options = manifest["model"], manifest["options"]
    about = ", ".join(
        part
        for part in (
            f"Model `{model['name']}`",
            f"{model['layers']} layers" if "layers" in model else "",
            f"{model['neurons']:,} neurons" if "neurons" in model else "",
            str(model.get("dtype", "")),
            f"weights sha256 `{model['sha256'][:16]}…`" if "sha256" in model else "",
            f"{manifest['started']}",
            f"seed {options['seed']}.",
        )
        if part
    )
    keys = shown(result)
    sections = [_reading(result, analysis), _curves(analysis, keys)]
    if any(row.control is None for row in analysis.tests):
        sections.append(_paired(analysis))
    if analysis.correlations:
        sections.append(_correlation(analysis))
    if any(row.control is None for row in analysis.matched):
        sections.append(_matched(analysis))
    if any(row.task == IFEVAL for row in analysis.scores):
        sections.append(_ifeval(analysis))
    if analysis.paper:
        sections.append(_paper(analysis))
    sections += [_limits(result, analysis), _data(result)]
    lead, *_ = [*sentences(analysis), "Nothing was cut."]
    return Report("What do growing cuts do to scores?", lead, about, sections)


def _reading(result: SweepResult, analysis: SweepAnalysis) -> Section:
    blocks: list[Block] = []
    if said := sentences(analysis)[1:]:
        blocks.append("\n".join(f"- {line}" for line in said))
    if result.manifest.get("warnings"):
        blocks += ["Mind:", "\n".join(f"- {said}" for said in result.manifest["warnings"])]
    blocks.append(
        "The rule: a cut is *better* or *worse* than random cuts of its size where q of the test "
        f"over items is below {ALPHA:g} and, with three or more random cuts, q among these is too. "
        "Everything else is *not told apart*, which is no proof that there is no difference. A "
        "score is above its floor where its 95 % interval is."
    )
    return Section("The reading and its rule", blocks)


def _curves(analysis: SweepAnalysis, keys: Sequence[Key]) -> Section:
    return Section(
        "Scores by cut",
        [
            Picture("curves", "Scores by fraction of neurons cut; grey: random cuts"),
            kept_table(curve_rows(analysis, keys), "curves", 2),
            "95 % intervals over items are in `tables/curves.csv`. *: not like random cuts of that "
            "size. Random cuts take the same number of neurons from every MLP.",
        ],
    )


def _paired(analysis: SweepAnalysis) -> Section:
    blocks: list[Block] = []
    for against, words in (
        ("random", "Against random cuts of the same size"),
        ("intact", "Against the intact model"),
    ):
        header, rows = paired_rows(analysis, against)
        if rows:
            blocks += [f"{words}:", kept_table((header, rows), "tests", 3)]
    blocks.append(
        "The same items on both sides. Right or wrong against one rival: McNemar's exact test; all "
        "else: signs of the items' differences flipped at random. Differences of perplexities are "
        "those of their logarithms, in nats. Several random cuts are one rival, the item's mean "
        "over them: q then says whether the cut differs from *these* random cuts, and q among "
        "draws whether it would from one more (t distribution; three draws at least). q: "
        "Benjamini-Hochberg over all rows of both tables; among draws, over those that have one. "
        "Controls and further metrics are in the file, without q."
    )
    return Section("Item by item", blocks)


def _correlation(analysis: SweepAnalysis) -> Section:
    x, y = (" ".join(key) for key in CORRELATED)
    measured = "none" if analysis.perplexity is None else " ".join(analysis.perplexity)
    return Section(
        "MMLU against MC2",
        [
            kept_table(correlation_rows(analysis), "correlations"),
            f"{x} against {y} over the cuts of one criterion, the intact model among them. r and "
            "its p: Pearson's, as the paper computes it; the p takes points for independent, which "
            "steps of one series are not. [95 %]: items of both tasks resampled. One left out: "
            "smallest and largest r without a point. Given fraction, given log perplexity: what is "
            f"left of r once a line on it is taken off both (perplexity: {measured}). By chance: "
            "how often two unrelated increasing series of as many points correlate so strongly. "
            "Where random cuts show the same r, it is about cutting and not about what was cut.",
            Picture("correlation", "MMLU against MC2 along the cuts; dotted: knows nothing"),
        ],
    )


def _matched(analysis: SweepAnalysis) -> Section:
    assert analysis.perplexity is not None
    return Section(
        "At equal perplexity",
        [
            kept_table(matched_rows(analysis), "matched", 3),
            f"Random cuts whose {' '.join(analysis.perplexity)} is that of the criterion's cut: "
            "their scores are interpolated along log perplexity, order by order, and averaged; "
            "*random cut* is the size that they would have. Intervals resample the items of the "
            "task and of the perplexity and hold the random orders as they are. *None so damaged*: "
            "the perplexity lies beyond what every random order reached; nothing is extrapolated.",
            Picture("matched", "What a cut scores above random cuts of the same perplexity"),
        ],
    )


def _ifeval(analysis: SweepAnalysis) -> Section:
    blocks: list[Block] = [
        kept_table(ifeval_rows(analysis), "curves", 1),
        Picture("ifeval", "IFEval's four metrics, answer length, and answers the model ended"),
        "Without content: what a fixed answer gets that says nothing. An answer that never ends is "
        "cut off at the most tokens allowed; length and ending tell whether a score comes from "
        "answers that are shorter, longer or empty (`tables/answers.csv`).",
    ]
    if analysis.instructions and criteria(analysis):
        blocks += [
            Picture("instructions", "Share of instructions followed, less the intact model's"),
            kept_table(instruction_rows(analysis), "instructions", 1),
        ]
    return Section("IFEval", blocks)


def _paper(analysis: SweepAnalysis) -> Section:
    return Section(
        f"Beside the paper's {analysis.paper_model}",
        [
            Picture("paper", "The paper's scores and ours"),
            kept_table(paper_rows(analysis), "paper", 1),
            f"The paper's numbers are those that its author publishes (arXiv 2512.22671). Ours are "
            f"of {PAPERS_CRITERION}, which is what the paper's code computes. The paper has no "
            "random cuts.",
        ],
    )


def _limits(result: SweepResult, analysis: SweepAnalysis) -> Section:
    rows = [
        "- A criterion that beats random cuts may do so because it spares a layer or a few neurons "
        "that matter; this says what it is worth for cutting, not where knowledge lives.",
        "- Intervals and tests are about these items. Another draw of items, another prompt or "
        "another model is another question.",
        "- Seven points of one model are one series, whatever the p of its correlation says.",
    ]
    draws = max((row.draws for row in analysis.tests), default=0)
    if 0 < draws < 5:
        rows.append(
            f"- With {draws} random cuts of each size the test among draws has little power: "
            "*not told apart* is then what is expected."
        )
    if result.manifest["options"].get("limit") or result.manifest["options"].get("limits"):
        rows.append("- Not all items were asked: compare scores within this run only.")
    return Section("What this does not show", ["\n".join(rows)])


def _data(result: SweepResult) -> Section:
    command = " ".join(map(shlex.quote, result.manifest["argv"]))
    return Section(
        "To run this again",
        [
            f"```\n{command}\n```",
            "`items.parquet`: one row a point, item and metric. `answers.parquet`: what the model "
            "said. `neurons.parquet`: the scores that cuts went by; `glulens browse` opens it. "
            "`tables/`: every number above.",
        ],
    )


def write_report(
    result: SweepResult, folder: Path, analysis: SweepAnalysis | None = None
) -> SweepAnalysis:
    """Write the analysis into a run's folder: tables, figures, report.

    Args:
        folder: the run's, being written.

    Returns:
        The analysis.
    """
    from .figures_sweep import draw_sweep

    found = analysis or result.analysis
    write_tables(folder, found.tables())
    save_figures(draw_sweep(found, shown(result)), folder / FIGURES)
    write_pages(folder, report(result, found))
    return found
