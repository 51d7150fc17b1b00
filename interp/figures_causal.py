"""Figures of what was tried on the model: tenths silenced, growing cuts, answerers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from .causal import DAMAGE, EVERY, Effect
from .figures import diverging, new, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import HypothesisResult

LOWEST, HIGHEST, RANDOM, MIDDLE = "#D55E00", "#0072B2", "#7F7F7F", "#56B4E9"


def _label(quantity: str) -> str:
    return "damage, nats per token" if quantity == DAMAGE else f"{quantity} margin, nats"


def causal_figure(result: HypothesisResult) -> Figure:
    """All ten tenths of all layers, silenced by mean and by zero, beside random tenths."""
    rows = [row for row in result.effects if row.layer == EVERY]
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    kinds = list(dict.fromkeys(row.replacing for row in rows))
    figure = new(2.6 * len(quantities), 2.5 * len(kinds))
    axes = figure.subplots(len(kinds), len(quantities), squeeze=False, sharex=True)
    for across, replacing in zip(axes, kinds, strict=True):
        for axis, quantity in zip(across, quantities, strict=True):
            some = [r for r in rows if (r.replacing, r.quantity) == (replacing, quantity)]
            _tenths(axis, some)
            if replacing == kinds[0]:
                axis.set_title(_label(quantity), fontsize=9)
        across[0].set_ylabel(f"change ({replacing})")
    for axis in axes[-1]:
        axis.set_xlabel("tenth by magnitude")
    criterion = result.verdict.criterion
    figure.suptitle(
        f"A tenth of every layer silenced, by {criterion} (1: smallest); grey: random tenths",
        fontsize=10,
    )
    return figure


def _tenths(axis: Any, rows: list[Effect]) -> None:
    own = sorted((r for r in rows if r.draw == -1), key=lambda r: r.tenth)
    random = [r.change for r in rows if r.draw >= 0]
    if random:
        axis.axhspan(min(random), max(random), color="#DDDDDD", zorder=0)
        axis.axhline(float(np.mean(random)), color=RANDOM, lw=0.8, zorder=1)
    axis.axhline(0, color="black", lw=0.6)
    axis.errorbar(
        [r.tenth + 1 for r in own],
        [r.change for r in own],
        yerr=[
            [max(r.change - r.low, 0) for r in own],
            [max(r.high - r.change, 0) for r in own],
        ],
        fmt="o",
        ms=4,
        lw=1.1,
        color=LOWEST,
    )
    axis.set_xticks([1, 4, 7, 10])
    plain(axis)


def map_figure(result: HypothesisResult) -> tuple[Figure, polars.DataFrame]:
    """Every layer's tenths silenced alone: change of margins and damage, and z against random."""
    rows = [row for row in result.effects if row.layer >= 0 and row.draw == -1]
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    layers = max(row.layer for row in rows) + 1
    figure = new(2.5 * len(quantities) + 0.8, 7.2)
    axes = figure.subplots(2, len(quantities), sharex=True, sharey=True, squeeze=False)
    for column, quantity in enumerate(quantities):
        grids = {
            "change": np.full((layers, 10), np.nan),
            "z": np.full((layers, 10), np.nan),
        }
        for row in rows:
            if row.quantity == quantity:
                grids["change"][row.layer, row.tenth] = row.change
                # Margins at equal damage; damage itself against random tenths.
                grids["z"][row.layer, row.tenth] = row.z if quantity == DAMAGE else row.specific_z
        for axis, (name, grid) in zip(axes[:, column], grids.items(), strict=True):
            reach = float(np.nanquantile(np.abs(grid), 0.98)) if name == "change" else 4.0
            drawn = axis.imshow(grid, aspect="auto", cmap=diverging(), interpolation="nearest",
                                vmin=-(reach or 1), vmax=reach or 1)  # fmt: skip
            unit = "z" if name == "z" else "nats"
            figure.colorbar(drawn, ax=axis, label=unit, extend="both", shrink=0.8)
        axes[0, column].set_title(_label(quantity), fontsize=9)
        axes[1, column].set_title("z" if quantity == DAMAGE else "z at equal damage", fontsize=9)
        axes[1, column].set_xlabel("tenth by magnitude")
        axes[1, column].set_xticks(range(0, 10, 3), [str(t + 1) for t in range(0, 10, 3)])
    for axis in axes[:, 0]:
        axis.set_ylabel("layer")
    criterion = result.verdict.criterion
    figure.suptitle(
        f"One layer's tenth by {criterion} silenced (by its mean); below: against random tenths",
        fontsize=10,
    )
    frame = result.tables()["causal"].filter(
        (polars.col("layer") >= 0) & (polars.col("draw") == -1)
    )
    return figure, frame


def dose_figure(result: HypothesisResult) -> Figure:
    """MC1, MC2 and damage against the share of neurons that is cut."""
    figure = new(9.5, 3)
    axes = figure.subplots(1, 3, sharex=True)
    chance = next(row for row in result.answerers if row.name == "chance")
    intact = next(dose for dose in result.doses if dose.order == "intact")
    for axis, name in zip(axes, ("mc1", "mc2", "damage"), strict=True):

        def value(dose: Any, name: str = name) -> float:
            return dose.damage if name == "damage" else getattr(dose.answerer, name)

        fractions = sorted({d.fraction for d in result.doses if d.order == "random"})
        random = [
            [value(d) for d in result.doses if (d.order, d.fraction) == ("random", f)]
            for f in fractions
        ]
        start = [0.0], [value(intact)]
        axis.fill_between(
            start[0] + fractions,
            start[1] + [min(part) for part in random],
            start[1] + [max(part) for part in random],
            color="#DDDDDD",
            label="random (range)",
        )
        low = sorted((d.fraction, value(d)) for d in result.doses if d.order == "lowest")
        axis.plot(start[0] + [f for f, _ in low], start[1] + [v for _, v in low], color=LOWEST,
                  marker="o", ms=4, label=f"lowest by {result.verdict.criterion}")  # fmt: skip
        if name != "damage":
            axis.axhline(getattr(chance, name), color="black", lw=0.9, ls="--")
            axis.annotate("knows nothing", (1, getattr(chance, name)), ha="right", va="bottom",
                          xycoords=("axes fraction", "data"), fontsize=8)  # fmt: skip
        axis.set_title("damage, nats per token" if name == "damage" else name.upper(), fontsize=10)
        axis.set_xlabel("share of every layer cut")
        plain(axis)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def entropy_figure(result: HypothesisResult) -> Figure:
    """MC2 against how undecided an answerer is: tempered models, cuts, and those that know
    nothing."""
    figure = new(6.5, 3.6)
    axis = figure.subplots()
    tempered = sorted(
        (row for row in result.answerers if not np.isnan(row.temperature)),
        key=lambda row: row.temperature,
    )
    axis.plot([r.entropy for r in tempered], [r.mc2 for r in tempered], color="#009E73",
              marker="^", ms=4, lw=1.2, label="intact model, tempered")  # fmt: skip
    for order, colour, marker in (("lowest", LOWEST, "o"), ("random", RANDOM, "D")):
        some = [d.answerer for d in result.doses if d.order == order]
        if some:
            label = f"{order} cut, 10 to 60 % ({some[0].n} questions)"
            axis.scatter([a.entropy for a in some], [a.mc2 for a in some], color=colour,
                         marker=marker, s=18, label=label, zorder=3)  # fmt: skip
    for row in result.answerers:
        if row.name == "chance" or row.name.startswith("length only"):
            axis.scatter([row.entropy], [row.mc2], color="black", marker="x", zorder=4)
            axis.annotate(row.name.split(" (")[0], (row.entropy, row.mc2), fontsize=8,
                          xytext=(-4, 6), textcoords="offset points", ha="right")  # fmt: skip
    axis.set_xlabel("entropy of the choices' probabilities, over its maximum")
    axis.set_ylabel("MC2")
    axis.legend(frameon=False, fontsize=8)
    plain(axis)
    return figure
