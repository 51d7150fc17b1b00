"""A sweep's tables as rows of words, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Sequence

from .rows import Rows
from .sweep_findings import Beside, Matched, Paired, Score, SweepAnalysis
from .sweep_measures import IFEVAL, IFEVAL_METRICS, LOWER_IS_BETTER, PERPLEXITIES, Key
from .sweep_points import INTACT
from .verdict import ALPHA, format_p

NONE = "-"
SHORT: dict[Key, str] = {
    ("truthfulqa_mc1", "acc"): "MC1",
    ("truthfulqa_mc2", "acc"): "MC2",
    ("mmlu", "acc"): "MMLU",
    ("lambada_openai", "acc"): "LAMBADA",
    ("lambada_openai", "perplexity"): "LAMBADA ppl",
    ("wikitext", "word_perplexity"): "WikiText ppl",
    (IFEVAL, "prompt_level_strict_acc"): "IFEval",
    (IFEVAL, "inst_level_strict_acc"): "IFEval inst",
    (IFEVAL, "prompt_level_loose_acc"): "IFEval loose",
    (IFEVAL, "inst_level_loose_acc"): "IFEval inst l.",
}
"""What a terminal has room for."""


def label(row: Score | Paired | Matched | Beside, *, full: bool = True) -> str:
    """A task and its metric."""
    name = f"{row.task} {row.metric}"
    return name if full else SHORT.get((row.task, row.metric), name)


def small(p: float) -> str:
    """A p-value that is never said to be 0."""
    return "<0.0001" if p < 0.00005 else format_p(p)


def number(value: float, metric: str = "") -> str:
    """A score with as many digits as are read."""
    if value != value:
        return NONE
    if metric not in PERPLEXITIES:
        return f"{value:.3f}"
    if value >= 1e7:
        return f"{value:.1e}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def span(low: float, high: float, metric: str = "") -> str:
    """A range of scores."""
    if low != low:
        return NONE
    return f"{number(low, metric)} to {number(high, metric)}"


def percent(fraction: float) -> str:
    """A fraction cut."""
    return f"{100 * fraction:.4g} %"


def fractions(analysis: SweepAnalysis) -> list[float]:
    """All sizes of cuts, smallest first, without the intact model."""
    return sorted({row.fraction for row in analysis.scores if row.criterion != INTACT})


def criteria(analysis: SweepAnalysis) -> list[str]:
    """Criteria that cuts went by, without controls."""
    return list(
        dict.fromkeys(
            row.criterion
            for row in analysis.scores
            if row.control is None and row.criterion != INTACT
        )
    )


def stands_out(row: Paired) -> bool:
    """Whether a cut differs from random cuts, by items and, where it can be said, among draws."""
    return row.q < ALPHA and not row.q_draws >= ALPHA


def is_better(row: Paired) -> bool:
    """Whether a cut scores better than its rival."""
    return (row.difference < 0) == (row.metric in LOWER_IS_BETTER)


def curve_rows(analysis: SweepAnalysis, keys: Sequence[Key], *, full: bool = True) -> Rows:
    """Scores by fraction: criteria, random cuts as their range, reversed criteria.

    An asterisk marks what `stands_out` among random cuts of the same size.

    Args:
        full: with names in full; without, what fits a terminal.
    """
    sizes = fractions(analysis)
    header = (
        "task",
        "cut by",
        "intact",
        *map(percent, sizes),
        "knows nothing" if full else "floor",
    )
    marked = {
        (row.task, row.metric, row.point)
        for row in analysis.tests
        if row.against == "random" and stands_out(row)
    }
    rows = []
    for key in keys:
        some = [row for row in analysis.scores if (row.task, row.metric) == key]
        name_of = label(some[0], full=full)
        whole = next((number(r.value, r.metric) for r in some if r.criterion == INTACT), NONE)
        floor = next((number(r.floor) for r in some if r.floor == r.floor), NONE)
        by: dict[str, dict[float, str]] = {}
        for row in some:
            if row.control != "random" and row.criterion != INTACT:
                star = "*" if (row.task, row.metric, row.point) in marked else ""
                by.setdefault(row.criterion, {})[row.fraction] = (
                    number(row.value, row.metric) + star
                )
        tried = {c: of for c, of in by.items() if c in criteria(analysis)}
        lines = {**tried, **_random(some, full=full), **by}
        for name, cells in lines.items():
            values = (cells.get(fraction, NONE) for fraction in sizes)
            rows.append((name_of, name, whole, *values, floor))
    return header, rows


def _random(rows: Sequence[Score], *, full: bool) -> dict[str, dict[float, str]]:
    """Lowest and highest score of the random cuts by fraction, in one line or two."""
    values: dict[float, list[float]] = {}
    for row in rows:
        if row.control == "random":
            values.setdefault(row.fraction, []).append(row.value)
    if not values:
        return {}
    metric = rows[0].metric
    low = {fraction: number(min(of), metric) for fraction, of in values.items()}
    high = {fraction: number(max(of), metric) for fraction, of in values.items()}
    if not full:
        return {"random, low": low, "random, high": high}
    return {
        "random (range)": {
            f: low[f] if low[f] == high[f] else f"{low[f]}-{high[f]}" for f in values
        }
    }


def paired_rows(analysis: SweepAnalysis, against: str) -> Rows:
    """The family of tests: criteria against the intact model or random cuts, item by item."""
    among = ("z", "q among draws") if against == "random" else ()
    header = ("task", "cut by", "cut", "score", against, "difference [95 %]",
              "only it / only rival", "q", *among)  # fmt: skip
    rows = []
    for row in analysis.tests:
        if row.against != against or row.q != row.q:
            continue
        logs = " nats" if row.metric in PERPLEXITIES else ""
        counts = NONE if row.gained is None else f"{row.gained} / {row.lost}"
        rows.append(
            (
                label(row),
                row.criterion,
                percent(row.fraction),
                number(row.value, row.metric),
                number(row.rival, row.metric),
                f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]{logs}",
                counts,
                small(row.q),
                *(
                    (NONE if row.z != row.z else f"{row.z:+.1f}", small(row.q_draws))
                    if against == "random"
                    else ()
                ),
            )
        )
    return header, rows


def correlation_rows(analysis: SweepAnalysis, *, full: bool = True) -> Rows:
    """MMLU against MC2 along the cuts."""
    header = (
        "cut by",
        "points",
        "r [95 %]" if full else "r",
        "p",
        "rho",
        "one left out",
        "given fraction" if full else "given cut",
        "given log perplexity" if full else "given ppl",
        "by chance",
    )

    def signed(value: float) -> str:
        return NONE if value != value else f"{value:+.2f}"

    rows = []
    for row in analysis.correlations:
        one = row.found
        within = f" [{signed(one.low)}, {signed(one.high)}]" if full else ""
        rows.append(
            (
                row.criterion,
                str(one.n),
                signed(one.r) + (within if one.r == one.r else ""),
                small(one.p),
                signed(one.rho),
                NONE
                if one.without_low != one.without_low
                else f"{signed(one.without_low)} to {signed(one.without_high)}",
                signed(one.given_fraction),
                signed(one.given_perplexity),
                NONE if one.by_chance != one.by_chance else f"{one.by_chance:.0%}",
            )
        )
    return header, rows


def matched_rows(analysis: SweepAnalysis, *, full: bool = True) -> Rows:
    """Criteria's cuts beside random cuts of the same perplexity.

    Args:
        full: with names in full; without, what fits a terminal.
    """
    header = ("task", "cut by", "cut", "perplexity", "score",
              "random, same perplexity" if full else "random", "random cut",
              "difference [95 %]")  # fmt: skip
    rows = []
    for row in analysis.matched:
        if row.control is not None:
            continue
        logs = " nats" if row.metric in PERPLEXITIES else ""
        known = row.difference == row.difference
        rows.append(
            (
                label(row, full=full),
                row.criterion,
                percent(row.fraction),
                number(row.perplexity, PERPLEXITIES[0]),
                number(row.value, row.metric),
                number(row.random, row.metric) if known else "none so damaged",
                f"{100 * row.random_fraction:.0f} %" if known else NONE,
                f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]{logs}" if known else NONE,
            )
        )
    return header, rows


def ifeval_rows(analysis: SweepAnalysis, *, full: bool = True) -> Rows:
    """IFEval's four metrics, and what the answers are like; random cuts one by one.

    Args:
        full: with names in full; without, what fits a terminal.
    """
    there = {row.metric for row in analysis.scores if row.task == IFEVAL}
    metrics = [metric for metric in IFEVAL_METRICS if metric in there]
    names = [m if full else m.removesuffix("_acc").replace("_level_", " ") for m in metrics]
    header = ("cut by", "cut", *names, "tokens", "ended", "empty")
    scores = {(r.point, r.metric): r for r in analysis.scores if r.task == IFEVAL}
    answers = {row.point: row for row in analysis.answers if row.task == IFEVAL}
    rows = []
    for point in dict.fromkeys(point for point, _ in scores):
        first = scores[point, metrics[0]]
        said = answers.get(point)
        rows.append(
            (
                first.criterion,
                percent(first.fraction),
                *(number(scores[point, metric].value) for metric in metrics),
                *(
                    (NONE,) * 3
                    if said is None
                    else (f"{said.tokens:.0f}", f"{said.ended:.0%}", f"{said.empty:.0%}")
                ),
            )
        )
    floors = [number(scores[next(iter(scores))[0], metric].floor) for metric in metrics]
    if any(floor != NONE for floor in floors):
        rows.append(("without content", "", *floors, NONE, NONE, NONE))
    return header, rows


def instruction_rows(analysis: SweepAnalysis) -> Rows:
    """Kinds of instructions, strict, under the cuts of the first criterion."""
    name = criteria(analysis)[0]
    some = [row for row in analysis.instructions if row.metric == "inst_level_strict_acc"]
    sizes = sorted({row.fraction for row in some if row.criterion == name})
    by = {(row.kind, row.criterion, row.fraction): row for row in some}
    rows = []
    for kind in sorted({row.kind for row in some}):
        whole = by.get((kind, INTACT, 0.0))
        cuts = [by[kind, name, f] for f in sizes]
        one = whole or cuts[0]
        rows.append(
            (
                kind,
                str(one.instructions),
                NONE if whole is None else f"{whole.value:.2f}",
                *(f"{row.value:.2f}" for row in cuts),
                NONE if one.floor != one.floor else f"{one.floor:.2f}",
            )
        )
    return ("kind", "how many", "intact", *map(percent, sizes), "without content"), rows


def paper_rows(analysis: SweepAnalysis, *, full: bool = True) -> Rows:
    """The paper's numbers and ours.

    Args:
        full: with names in full; without, what fits a terminal.
    """
    header = ("task", "cut", "paper", "ours", "ours [95 %]", "ours, random cuts")
    return header, [
        (
            label(row, full=full),
            percent(row.fraction),
            number(row.paper, row.metric),
            number(row.ours, row.metric),
            f"[{number(row.low, row.metric)}, {number(row.high, row.metric)}]",
            span(row.random_low, row.random_high, row.metric),
        )
        for row in analysis.paper
    ]
