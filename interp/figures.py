"""Figures of a hypothesis run: PNG and SVG, with the CSV that each is drawn from.

Colours are Okabe and Ito's, told apart by colour-blind eyes; every series has its own marker too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars

from ..datasets.pairs import PROPERTIES
from .causal import DAMAGE
from .localisation import FUNCTIONS, corrected
from .verdict import SESOI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .hypothesis import HypothesisResult

COLOURS = {
    "misconception": "#D55E00",
    "fact": "#0072B2",
    "instruction": "#009E73",
    "control": "#7F7F7F",
}
MARKERS = {"misconception": "o", "fact": "s", "instruction": "^", "control": "D"}
TITLES = {"attribution": "|attribution|", "dz": "|d_z|"}
KINDS = {"lowest": "#D55E00", "highest": "#0072B2", "random": "#7F7F7F"}


def association_frame(result: HypothesisResult) -> polars.DataFrame:
    """The associations as a table."""
    from dataclasses import asdict

    return polars.DataFrame([asdict(row) for row in result.associations])


def change_frame(result: HypothesisResult) -> polars.DataFrame:
    """The causal look as a table."""
    from dataclasses import asdict

    return polars.DataFrame([asdict(row) for row in result.changes])


def localisation_figure(result: HypothesisResult) -> Figure:
    """Effects with intervals, by criterion and property, beside the smallest effect of interest."""
    from matplotlib.figure import Figure

    rows = result.associations
    criteria = list(dict.fromkeys(row.criterion for row in rows))
    properties = [name for name in PROPERTIES if any(row.property == name for row in rows)]
    figure = Figure(figsize=(9, 1.6 + 0.62 * len(criteria)), layout="constrained")
    axes = figure.subplots(1, len(FUNCTIONS), sharey=True, sharex=True)
    for axis, function in zip(axes, FUNCTIONS, strict=True):
        axis.axvspan(-SESOI, SESOI, color="#EEEEEE", zorder=0)
        axis.axvline(0, color="black", lw=0.8, zorder=1)
        for k, name in enumerate(properties):
            offset = (k - (len(properties) - 1) / 2) * 0.18
            chosen = [
                (criteria.index(r.criterion) + offset, found)
                for r in rows
                if r.function == function
                and r.property == name
                and (found := corrected(r)) is not None
            ]
            axis.errorbar(
                [c[0] for _, c in chosen],
                [y for y, _ in chosen],
                xerr=[[c[0] - c[1] for _, c in chosen], [c[2] - c[0] for _, c in chosen]],
                fmt=MARKERS[name],
                ms=4.5,
                lw=1.3,
                color=COLOURS[name],
                label=name,
            )
        faint = [
            name
            for name in properties
            if all(
                corrected(r) is None for r in rows if (r.function, r.property) == (function, name)
            )
        ]
        note = f"\n(too faint to locate: {', '.join(faint)})" if faint else ""
        axis.set_title(TITLES[function] + note, fontsize=10)
        axis.set_xlabel(
            "corrected effect: within-layer rank\ncorrelation with magnitude, beyond the null"
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(criteria)), criteria)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("criterion")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(properties), frameon=False)
    return figure


def causal_figure(result: HypothesisResult) -> Figure:
    """What silencing tenths did: lowest and highest with intervals, random ones as their range."""
    from matplotlib.figure import Figure

    quantities = list(dict.fromkeys(row.quantity for row in result.changes))
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots(1, len(quantities), sharey=True)
    places = {"lowest": 0, "highest": 1, "random": 2}
    for axis, quantity in zip(axes, quantities, strict=True):
        axis.axvline(0, color="black", lw=0.8)
        for kind, y in places.items():
            chosen = [r for r in result.changes if r.quantity == quantity and r.kind == kind]
            count = len(chosen)
            ys = [y + (0 if count == 1 else 0.5 * (k / (count - 1) - 0.5)) for k in range(count)]
            change = [r.change for r in chosen]
            axis.errorbar(
                change,
                ys,
                xerr=[
                    [max(r.change - r.low, 0) for r in chosen],
                    [max(r.high - r.change, 0) for r in chosen],
                ],
                fmt="o" if kind != "random" else "D",
                ms=5 if kind != "random" else 3,
                lw=1.2,
                color=KINDS[kind],
            )
        damage = quantity == DAMAGE
        axis.set_title("damage" if damage else f"{quantity} margin", fontsize=10)
        axis.set_xlabel("nats per token" if damage else "nats per item")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(list(places.values()), ["lowest tenth", "highest tenth", "random tenths"])
    axes[0].set_ylim(2.6, -0.6)
    criterion = result.verdict.criterion
    figure.suptitle(f"Change when a tenth of every layer, by {criterion}, is silenced", fontsize=10)
    return figure


def write_figures(result: HypothesisResult, folder: Path) -> list[str]:
    """Draw the run's figures into a folder; returns their names."""
    jobs: list[tuple[str, Callable[[Any], Figure], polars.DataFrame]] = [
        ("localisation", localisation_figure, association_frame(result))
    ]
    if result.changes:
        jobs.append(("causal", causal_figure, change_frame(result)))
    import matplotlib

    folder.mkdir(exist_ok=True)
    # A fixed salt and no date: the same run draws the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "glulens", "svg.fonttype": "none"}):
        for name, draw, frame in jobs:
            figure = draw(result)
            figure.savefig(folder / f"{name}.png", dpi=160)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            (folder / f"{name}.csv").write_text(frame.write_csv())
    return [name for name, _, _ in jobs]
