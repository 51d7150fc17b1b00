"""Figures of a sweep; colours and markers as in `figures`.

Random cuts are grey, a band from the lowest draw to the highest around their mean. A dotted line is
what an answerer that knows nothing scores. Perplexities have a logarithmic scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from .figures import Drawn, diverging, new, plain
from .sweep_findings import Score, SweepAnalysis
from .sweep_measures import IFEVAL, IFEVAL_METRICS, LOWER_IS_BETTER, PERPLEXITIES, Key
from .sweep_points import INTACT
from .sweep_series import CORRELATED, PAPERS_CRITERION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKS = ("o", "s", "^", "D", "v", "P")
RANDOM, BAND, FLOOR = "#7F7F7F", "#D9D9D9", "#000000"
ACROSS = 3


def _looks(analysis: SweepAnalysis) -> dict[str, dict[str, Any]]:
    """How the line of each criterion, and of its reversal, is drawn."""
    names = list(dict.fromkeys(row.criterion for row in analysis.scores
                               if row.control is None and row.criterion != INTACT))  # fmt: skip
    found = {}
    for k, name in enumerate(names):
        colour, mark = PALETTE[k % len(PALETTE)], MARKS[k % len(MARKS)]
        found[name] = {"color": colour, "marker": mark, "ms": 4, "lw": 1.3, "label": name}
        found[f"reversed:{name}"] = {"color": colour, "marker": "x", "ms": 4, "lw": 0.9,
                                     "ls": "--", "label": f"reversed:{name}"}  # fmt: skip
    return found


def _panels(count: int, wide: float = 2.9, high: float = 2.5) -> tuple[Figure, list[Any]]:
    """A figure of so many panels, and its axes."""
    across = min(ACROSS, count)
    down = -(-count // across)
    figure = new(wide * across + 0.4, high * down + 0.7)
    axes = np.atleast_1d(figure.subplots(down, across)).reshape(-1)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count])


def _legend(figure: Figure, axes: Sequence[Any], columns: int = 5) -> None:
    """One legend for all panels, above them."""
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        figure.legend(list(named.values()), list(named), loc="outside upper center",
                      ncols=min(columns, len(named)), frameon=False, fontsize=8)  # fmt: skip


def title(key: Key) -> str:
    """A task and its metric, and which way is better where that is not up."""
    task, metric = key
    better = " (lower is better)" if metric in LOWER_IS_BETTER else ""
    between = ", " if len(task + metric + better) < 34 else "\n"
    return f"{task}{between}{metric}{better}"


def _log(axis: Any, values: Sequence[float], which: str) -> None:
    """A logarithmic scale with numbers that can be read, however short it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axis, f"set_{which}scale")("log")
    if max(values) > 200 * min(values):
        return
    side = getattr(axis, f"{which}axis")
    # Over more than a decade numbers at 1, 2 and 5 would run into each other.
    steps = (1, 2, 5) if max(values) < 20 * min(values) else (1, 3)
    side.set_major_locator(LogLocator(subs=steps))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_formatter(NullFormatter())


def _reach(rows: Sequence[Score]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Fractions, and mean, lowest and highest score of the random cuts."""
    by: dict[float, list[float]] = {}
    for row in rows:
        by.setdefault(100 * row.fraction, []).append(row.value)
    at = sorted(by)
    return at, [float(np.mean(by[f])) for f in at], [min(by[f]) for f in at], [
        max(by[f]) for f in at
    ]  # fmt: skip


def _curve(axis: Any, rows: Sequence[Score], looks: dict[str, dict[str, Any]], key: Key) -> None:
    """Score against fraction: random cuts, criteria, floor."""
    intact = [row for row in rows if row.criterion == INTACT]
    random = [row for row in rows if row.control == "random"]
    if random:
        at, mean, low, high = _reach([*intact, *random])
        axis.fill_between(at, low, high, color=BAND, lw=0, label="random cuts (range)", zorder=1)
        axis.plot(at, mean, color=RANDOM, lw=1, label="random cuts (mean)", zorder=2)
    for name, look in looks.items():
        own = [*intact, *(row for row in rows if row.criterion == name)]
        if len(own) > len(intact):
            error = [[max(row.value - row.low, 0) for row in own],
                     [max(row.high - row.value, 0) for row in own]]  # fmt: skip
            axis.errorbar([100 * row.fraction for row in own], [row.value for row in own],
                          yerr=None if "ls" in look else error, elinewidth=0.8, zorder=3,
                          **look)  # fmt: skip
    for row in intact:
        axis.errorbar([0], [row.value], yerr=[[max(row.value - row.low, 0)],
                      [max(row.high - row.value, 0)]], fmt="*", ms=9, color="black",
                      elinewidth=0.8, label="intact", zorder=4)  # fmt: skip
    floor = next((row.floor for row in rows if row.floor == row.floor), None)
    if floor is not None:
        axis.axhline(floor, color=FLOOR, lw=0.9, ls=":", label="knows nothing", zorder=2)
    if key[1] in PERPLEXITIES:
        _log(axis, [row.value for row in rows], "y")
    axis.set_title(title(key), fontsize=9)
    axis.tick_params(labelsize=8)
    plain(axis)


def curves_figure(analysis: SweepAnalysis, keys: Sequence[Key]) -> tuple[Figure, polars.DataFrame]:
    """Scores by fraction cut, with random cuts and floors."""
    figure, axes = _panels(len(keys))
    looks = _looks(analysis)
    for axis, key in zip(axes, keys, strict=True):
        rows = [row for row in analysis.scores if (row.task, row.metric) == key]
        _curve(axis, rows, looks, key)
    figure.supxlabel("% of every MLP's neurons cut", fontsize=9)
    _legend(figure, axes)
    chosen = polars.DataFrame({"task": [k[0] for k in keys], "metric": [k[1] for k in keys]})
    return figure, analysis.tables()["curves"].join(chosen, on=["task", "metric"], how="semi")


def correlation_figure(analysis: SweepAnalysis) -> tuple[Figure, polars.DataFrame]:
    """MMLU against MC2 along the cuts of every criterion and random order."""
    by: dict[int, dict[str, Any]] = {}
    for row in analysis.scores:
        for name, key in zip(("x", "y"), CORRELATED, strict=True):
            if (row.task, row.metric) == key:
                here = by.setdefault(row.point, {"criterion": row.criterion,
                                                 "control": row.control,
                                                 "fraction": row.fraction})  # fmt: skip
                here |= {name: row.value, f"{name}_floor": row.floor}
    frame = polars.DataFrame([{"point": k, **row} for k, row in by.items()],
                             infer_schema_length=None)  # fmt: skip
    looks = _looks(analysis)
    intact = frame.filter(polars.col("criterion") == INTACT)
    figure = new(6.4, 4.2)
    axis = figure.subplots()
    for k, series in enumerate(analysis.correlations):
        own = polars.concat([intact, frame.filter(polars.col("criterion") == series.criterion)])
        if series.control == "random":
            label = None
            if not any(s.control == "random" for s in analysis.correlations[:k]):
                r = [s.found.r for s in analysis.correlations if s.control == "random"]
                label = f"random cuts, r from {min(r):+.2f} to {max(r):+.2f}"
            axis.plot(own["x"], own["y"], color="#AAAAAA", marker=".", ms=4, lw=0.9, zorder=1,
                      label=label)  # fmt: skip
        elif series.criterion in looks:
            look: dict[str, Any] = {**looks[series.criterion],
                                    "label": f"{series.criterion}, r = {series.found.r:+.2f}"
                                    }  # fmt: skip
            axis.plot(own["x"], own["y"], zorder=3, **look)
    for row in intact.iter_rows(named=True):
        axis.plot([row["x"]], [row["y"]], marker="*", ms=13, color="black", ls="", zorder=4,
                  label="intact")  # fmt: skip
        if row["y_floor"] == row["y_floor"]:
            axis.axhline(row["y_floor"], color=FLOOR, lw=0.9, ls=":", label="knows nothing")
        if row["x_floor"] == row["x_floor"]:
            axis.axvline(row["x_floor"], color=FLOOR, lw=0.9, ls=":")
    axis.set_xlabel("MMLU accuracy")
    axis.set_ylabel("TruthfulQA MC2")
    plain(axis)
    _legend(figure, [axis], 3)
    return figure, frame


def matched_figure(analysis: SweepAnalysis) -> tuple[Figure, polars.DataFrame]:
    """What criteria's cuts score above random cuts of the same perplexity."""
    keys = list(dict.fromkeys((row.task, row.metric) for row in analysis.matched))
    figure, axes = _panels(len(keys))
    looks = _looks(analysis)
    for axis, key in zip(axes, keys, strict=True):
        axis.axhline(0, color=RANDOM, lw=1.2, label="random cuts")
        for name, look in looks.items():
            own = [
                row
                for row in analysis.matched
                if (row.task, row.metric, row.criterion) == (*key, name)
                and row.difference == row.difference
            ]
            if own and "ls" not in look:
                error = [[max(r.difference - r.low, 0) for r in own],
                         [max(r.high - r.difference, 0) for r in own]]  # fmt: skip
                axis.errorbar([r.perplexity for r in own], [r.difference for r in own],
                              yerr=error, elinewidth=0.8, **look)  # fmt: skip
        there = [r.perplexity for r in analysis.matched if r.difference == r.difference]
        _log(axis, there, "x")
        name = title(key)
        axis.set_title(name.replace("better", "better; nats") if key[1] in PERPLEXITIES else name,
                       fontsize=9)  # fmt: skip
        axis.tick_params(labelsize=8)
        plain(axis)
    assert analysis.perplexity is not None
    figure.supxlabel(f"{analysis.perplexity[0]} {analysis.perplexity[1]} of the cut", fontsize=9)
    figure.supylabel("score less random cuts'", fontsize=9)
    _legend(figure, axes)
    return figure, analysis.tables()["matched"]


def ifeval_figure(analysis: SweepAnalysis) -> tuple[Figure, polars.DataFrame]:
    """IFEval's four metrics, and how long answers are and how many ended."""
    there = {row.metric for row in analysis.scores if row.task == IFEVAL}
    metrics = [name for name in IFEVAL_METRICS if name in there]
    answers = [row for row in analysis.answers if row.task == IFEVAL]
    extra = ("tokens", "ended") if answers else ()
    figure, axes = _panels(len(metrics) + len(extra))
    looks = _looks(analysis)
    for axis, metric in zip(axes, metrics, strict=False):
        key = IFEVAL, metric
        _curve(axis, [r for r in analysis.scores if (r.task, r.metric) == key], looks, key)
        axis.set_title(metric, fontsize=9)
    titles = {"tokens": "answer length, tokens", "ended": "share ended by the model"}
    for axis, name in zip(axes[len(metrics) :], extra, strict=True):
        rows = [
            Score(r.point, r.task, name, r.criterion, r.control, r.fraction, getattr(r, name),
                  r.low if name == "tokens" else r.ended, r.high if name == "tokens" else r.ended,
                  r.n, float("nan"))
            for r in answers
        ]  # fmt: skip
        _curve(axis, rows, looks, (IFEVAL, name))
        axis.set_title(titles[name], fontsize=9)
        axis.set_ylim(bottom=0)
    figure.supxlabel("% of every MLP's neurons cut", fontsize=9)
    _legend(figure, axes)
    frame = analysis.tables()["curves"].filter(polars.col("task") == IFEVAL)
    return figure, frame


def instructions_figure(analysis: SweepAnalysis) -> tuple[Figure, polars.DataFrame]:
    """Which kinds of instructions the cuts of the first criterion follow more, or less."""
    name = next(iter(_looks(analysis)))
    rows = [
        row
        for row in analysis.instructions
        if row.metric == "inst_level_strict_acc" and row.criterion in (name, INTACT)
    ]
    kinds = sorted({row.kind for row in rows})
    fractions = sorted({row.fraction for row in rows if row.criterion == name})
    by = {(row.kind, row.criterion, row.fraction): row for row in rows}
    intact = [by[kind, INTACT, 0.0] for kind in kinds]
    cells = np.array(
        [[by[kind, name, f].value - whole.value for f in fractions]
         for kind, whole in zip(kinds, intact, strict=True)]
    )  # fmt: skip
    order = np.argsort(-cells.mean(1), kind="stable")
    figure = new(7.4, 1.5 + 0.27 * len(kinds))
    axis = figure.subplots()
    reach = max(float(np.abs(cells).max()), 0.01)
    drawn = axis.imshow(cells[order], aspect="auto", cmap=diverging(), vmin=-reach, vmax=reach,
                        interpolation="nearest")  # fmt: skip
    labels = [f"{kinds[k]} ({intact[k].value:.0%} of {intact[k].instructions})" for k in order]
    axis.set_yticks(range(len(kinds)), labels, fontsize=8)
    axis.set_xticks(range(len(fractions)), [f"{100 * f:.0f} %" for f in fractions], fontsize=8)
    axis.set_xlabel("neurons cut", fontsize=9)
    axis.set_title(f"IFEval, strict: {name} less intact (share of how many)",
                   fontsize=9)  # fmt: skip
    bar = figure.colorbar(drawn, ax=axis)
    bar.set_label("change of the share", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure, analysis.tables()["instructions"]


def paper_figure(analysis: SweepAnalysis) -> tuple[Figure, polars.DataFrame]:
    """Our scores beside the paper's, of its criterion."""
    keys = list(dict.fromkeys((row.task, row.metric) for row in analysis.paper))
    figure, axes = _panels(len(keys))
    for axis, key in zip(axes, keys, strict=True):
        rows = [row for row in analysis.paper if (row.task, row.metric) == key]
        at = [100 * row.fraction for row in rows]
        axis.plot(at, [row.paper for row in rows], color="black", marker="s", ms=4, lw=1,
                  mfc="white", label="paper")  # fmt: skip
        error = [[max(r.ours - r.low, 0) for r in rows], [max(r.high - r.ours, 0) for r in rows]]
        axis.errorbar(at, [row.ours for row in rows], yerr=error, color=PALETTE[0], marker="o",
                      ms=4, lw=1.3, elinewidth=0.8, label=f"ours, {PAPERS_CRITERION}")  # fmt: skip
        random = [row for row in rows if row.random_low == row.random_low]
        if random:
            axis.fill_between([100 * r.fraction for r in random], [r.random_low for r in random],
                              [r.random_high for r in random], color=BAND, lw=0, zorder=1,
                              label="ours, random cuts (range)")  # fmt: skip
        if key[1] in PERPLEXITIES:
            _log(axis, [value for row in rows for value in (row.paper, row.ours)], "y")
        axis.set_title(title(key), fontsize=9)
        axis.tick_params(labelsize=8)
        plain(axis)
    figure.supxlabel("% of every MLP's neurons cut", fontsize=9)
    _legend(figure, axes)
    return figure, analysis.tables()["paper"]


def draw_sweep(analysis: SweepAnalysis, keys: Sequence[Key]) -> Iterator[Drawn]:
    """Every figure that this sweep has something for.

    Args:
        keys: tasks and metrics of the main figure.
    """
    if any(row.criterion != INTACT for row in analysis.scores):
        yield "curves", *curves_figure(analysis, keys)
    if analysis.correlations:
        yield "correlation", *correlation_figure(analysis)
    if any(row.difference == row.difference for row in analysis.matched):
        yield "matched", *matched_figure(analysis)
    if any(row.task == IFEVAL for row in analysis.scores):
        yield "ifeval", *ifeval_figure(analysis)
    kinds = {row.criterion for row in analysis.instructions}
    if INTACT in kinds and next(iter(_looks(analysis)), None) in kinds:
        yield "instructions", *instructions_figure(analysis)
    if analysis.paper:
        yield "paper", *paper_figure(analysis)
