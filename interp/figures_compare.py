"""Figures of a comparison; colours and markers as in `figures`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from .compare_tables import BASE, SHIFT, TUNED
from .figures import Drawn, new, plain
from .localiser import TENTHS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .compare_result import CompareResult

ROLES = {"gate": "#D55E00", "up": "#0072B2", "down": "#009E73"}
MOVED, CHANCE = "#D55E00", "#DDDDDD"
PANELS = 32
"""Layers that are drawn alone; of a deeper model evenly spaced ones."""
CRITERIA = 9
"""Scores whose rank shifts are drawn."""


def _thinned(values: list[Any], most: int) -> list[Any]:
    """At most `most` of them, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    places = np.linspace(0, len(values) - 1, most).round().astype(int)
    return [values[at] for at in places]


def norms_figure(result: CompareResult) -> tuple[Figure, polars.DataFrame]:
    """Norms of rows of gate and up and of columns of down, layer by layer, in both models."""
    frame = result.norms
    layers = _thinned(sorted(frame["layer"].unique().to_list()), PANELS)
    across = min(6, len(layers))
    down = -(-len(layers) // across)
    figure = new(1.75 * across + 0.6, 1.3 * down + 1.0)
    axes = np.atleast_1d(figure.subplots(down, across)).reshape(-1)
    handles: dict[str, Any] = {}
    for axis, layer in zip(axes, layers, strict=False):
        for ridge, (role, colour) in enumerate(reversed(ROLES.items())):
            some = frame.filter(layer=layer, matrix=role)
            if not some.height:
                continue
            edges = np.append(some["low"].to_numpy(), some["high"][-1])
            sides = [some[side].to_numpy() for side in ("base", "tuned")]
            shares = [side / max(side.sum(), 1) for side in sides]
            high = 0.9 / max(float(np.max(shares)), 1e-12)
            handles[f"{role}, base"] = axis.stairs(
                ridge + high * shares[0], edges, baseline=ridge, fill=True, color=colour,
                alpha=0.35, lw=0,
            )  # fmt: skip
            handles[f"{role}, tuned"] = axis.stairs(
                ridge + high * shares[1], edges, baseline=ridge, color=colour, lw=1.0
            )
        axis.set_title(f"layer {layer}", fontsize=7, pad=2)
        axis.set_yticks([])
        axis.tick_params(labelsize=6, length=2, pad=1)
        axis.spines[["top", "right", "left"]].set_visible(False)
    for axis in axes[len(layers) :]:
        axis.set_visible(False)
    order = [name for role in ROLES for name in (f"{role}, base", f"{role}, tuned")]
    order = [name for name in order if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside upper center",
        ncols=len(order),
        frameon=False,
        fontsize=8,
        handlelength=1.2,
    )
    figure.supxlabel("norm of a neuron's row of gate, row of up, column of down", fontsize=9)
    return figure, frame


def tenths_figure(result: CompareResult) -> tuple[Figure, polars.DataFrame]:
    """What each tenth of the base by the first criterion holds of the change, and by chance."""
    assert result.verdict is not None
    figure = new(8.6, 3.3)
    axes = figure.subplots(1, 2, sharey=True)
    titles = {
        "absolute": "absolute: where the change lies",
        "relative": "relative: how much of itself changed",
    }
    rows, reach = [], 1.0  # points from an even share
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        row = result.verdict.absolute if measure == "absolute" else result.verdict.relative
        reach = max(reach, *(abs(100 * share - 10) for share in row.shares))
        at, band = np.arange(1, TENTHS + 1), 100 * np.array(row.null_shares)
        low, high = band[:, 0], band[:, 1]
        axis.bar(at, high - low, bottom=low, width=0.86, color=CHANCE, zorder=1,
                 label="dealt out at random, 95 %")  # fmt: skip
        axis.plot(at, 100 * np.array(row.shares), color=MOVED, marker="o", ms=5, lw=1.2, zorder=3,
                  label="observed")  # fmt: skip
        axis.axhline(10, color="black", lw=0.6, ls=":", zorder=2)
        axis.set_xticks(at)
        axis.set_xlabel("tenth of the base (1: smallest)")
        axis.set_title(f"{title}\nrho {row.rho:+.3f} [{row.low:+.3f}, {row.high:+.3f}]", fontsize=9)
        plain(axis)
        rows += [
            {
                "measure": measure,
                "tenth": k + 1,
                "share": row.shares[k],
                "null_low": row.null_shares[k][0],
                "null_high": row.null_shares[k][1],
            }
            for k in range(TENTHS)
        ]
    axes[0].set_ylim(max(0, 10 - 1.2 * reach), 10 + 1.2 * reach)
    axes[0].set_ylabel("% of the squared change")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.suptitle(f"Change by tenth of {result.verdict.criterion}, within layers", fontsize=10)
    return figure, polars.DataFrame(rows)


def _ranks(result: CompareResult, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Place in the base, 0 to 1 within the MLP, and how many places it moved."""
    frame = result.neurons
    keys = [key for key in ("layer", "part", "expert") if key in frame.columns]
    places = (polars.col(BASE + name).rank("ordinal") - 0.5) / polars.len()
    return frame.select(places.over(keys)).to_series().to_numpy(), frame[SHIFT + name].to_numpy()


def _edges(shift: np.ndarray) -> np.ndarray:
    """Between bins of whole places, an odd number of them, so that no shift lies on an edge."""
    reach = max(int(np.quantile(np.abs(shift), 0.999)), 3)
    step = -(-(2 * reach + 1) // 31)
    step += 1 - step % 2
    half = -(-reach // step)
    return (np.arange(-half, half + 2) - 0.5) * step


def ranks_figure(result: CompareResult) -> tuple[Figure, polars.DataFrame]:
    """Where neurons stood in the base's order, and how far they moved in the tuned model's."""
    from matplotlib.colors import LogNorm

    names = [name.removeprefix(BASE) for name in result.neurons.columns if name.startswith(BASE)]
    names = [name for name in names if TUNED + name in result.neurons.columns][:CRITERIA]
    across = min(4, len(names))
    down = -(-len(names) // across)
    figure = new(2.5 * across + 1.2, 2.1 * down + 0.7)
    axes = np.atleast_1d(figure.subplots(down, across, sharex=True)).reshape(-1)
    grids = []
    for name in names:
        place, shift = _ranks(result, name)
        edges = _edges(shift)
        shift = np.clip(shift, edges[0] + 0.5, edges[-1] - 0.5)
        grids.append((name, edges, np.histogram2d(place, shift, (np.linspace(0, 1, 26), edges))[0]))
    most = max(float(counts.max()) for _, _, counts in grids)
    rows: list[dict[str, Any]] = []
    drawn: Any = None
    for k, (axis, (name, edges, counts)) in enumerate(zip(axes, grids, strict=False)):
        shown = np.ma.masked_equal(counts.T, 0)
        drawn = axis.pcolormesh(np.linspace(0, 1, 26), edges, shown, cmap="viridis",
                                rasterized=True, norm=LogNorm(1, max(most, 2)))  # fmt: skip
        axis.set_title(name, fontsize=8, pad=3)
        axis.set_xticks([0, 0.5, 1])
        axis.tick_params(labelsize=7, labelbottom=k + across >= len(names))
        plain(axis)
        rows += [
            {
                "score": name,
                "place_from": i / 25,
                "shift_from": int(edges[j] + 0.5),
                "shift_to": int(edges[j + 1] - 0.5),
                "neurons": int(counts[i, j]),
            }
            for i, j in zip(*np.nonzero(counts), strict=True)
        ]
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    figure.colorbar(drawn, ax=list(axes), label="neurons", shrink=0.7, pad=0.02)
    figure.supxlabel("place in the base's order within the MLP (0: smallest)", fontsize=9)
    figure.supylabel("places moved in the tuned model's order", fontsize=9)
    return figure, polars.DataFrame(rows)


def layers_figure(result: CompareResult) -> tuple[Figure, polars.DataFrame]:
    """Layers by kind of matrix: relative change; and by tenth: share of the layer's change."""
    frame = _by_layer(result.layers)
    kinds = ["gate", "up", "down", "attention"]
    kinds = [kind for kind in kinds if f"relative_{kind}" in frame.columns]
    moved = frame.select([f"relative_{kind}" for kind in kinds]).to_numpy().astype(np.float64)
    held = frame.select([f"tenth_{k}" for k in range(1, TENTHS + 1)]).to_numpy().astype(np.float64)
    figure = new(9, max(2.6, min(8.0, 0.16 * frame.height + 1.4)))
    axes = figure.subplots(1, 2, width_ratios=(len(kinds), 8))
    drawn = axes[0].imshow(100 * moved, aspect="auto", cmap="viridis", interpolation="nearest",
                           vmin=0)  # fmt: skip
    axes[0].set_xticks(range(len(kinds)), kinds, fontsize=8, rotation=30, ha="right",
                       rotation_mode="anchor")  # fmt: skip
    axes[0].set_title("relative change", fontsize=9)
    axes[0].set_ylabel("layer")
    figure.colorbar(drawn, ax=axes[0], label="||change|| / ||weights||, %")
    from .figures import diverging

    reach = max(float(np.nanmax(np.abs(held - 0.1), initial=0)), 0.01)
    drawn = axes[1].imshow(100 * (held - 0.1), aspect="auto", cmap=diverging(),
                           interpolation="nearest", vmin=-100 * reach,
                           vmax=100 * reach)  # fmt: skip
    axes[1].set_xticks(range(TENTHS), [str(k + 1) for k in range(TENTHS)], fontsize=8)
    axes[1].set_xlabel("tenth of the base (1: smallest)")
    criterion = "" if result.verdict is None else f" by {result.verdict.criterion}"
    axes[1].set_title(f"share of the layer's squared change in each tenth{criterion}", fontsize=9)
    figure.colorbar(drawn, ax=axes[1], label="points above an even share of 10 %")
    labels = frame["layer"].to_list()
    every = max(1, -(-len(labels) // 16))
    for axis in axes:
        axis.set_yticks(range(0, len(labels), every), [str(n) for n in labels[::every]], fontsize=7)
    return figure, frame


def _by_layer(layers: polars.DataFrame) -> polars.DataFrame:
    """Means over the MLPs of a layer, where it has several."""
    names = [name for name in layers.columns if name.startswith(("relative", "tenth_", "rho_"))]
    return layers.group_by("layer", maintain_order=True).agg(polars.col(names).mean())


def transplant_figure(result: CompareResult) -> tuple[Figure, polars.DataFrame]:
    """What the weights of a tenth did in the other model, beside random tenths."""
    rows = result.transplants
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    directions = list(dict.fromkeys(row.direction for row in rows))
    figure = new(2.7 * len(quantities) + 0.6, 2.5 * len(directions) + 0.6)
    axes = figure.subplots(len(directions), len(quantities), squeeze=False, sharex=True)
    for across, direction in zip(axes, directions, strict=True):
        for axis, quantity in zip(across, quantities, strict=True):
            some = [r for r in rows if (r.direction, r.quantity) == (direction, quantity)]
            # Those of a given set's counts are another measure's.
            random = [r.change for r in some if r.is_random and " like " not in r.name]
            if random:
                axis.axhspan(min(random), max(random), color=CHANCE, zorder=0)
            axis.axhline(0, color="black", lw=0.6)
            own = [(at, row) for row in some if (at := _tenth(row.name)) is not None]
            axis.errorbar(
                [at for at, _ in own],
                [row.change for _, row in own],
                yerr=[
                    [max(row.change - row.low, 0) for _, row in own],
                    [max(row.high - row.change, 0) for _, row in own],
                ],
                fmt="o",
                ms=4,
                lw=1.1,
                color=MOVED,
            )
            axis.set_xticks([1, 4, 7, 10])
            if direction == directions[0]:
                axis.set_title(
                    "damage, nats per token"
                    if quantity == "damage"
                    else f"{quantity} margin, nats",
                    fontsize=9,
                )
            plain(axis)
        across[0].set_ylabel(f"change ({direction})", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("tenth of the base (1: smallest)", fontsize=9)
    figure.suptitle(
        "A tenth's weights of the other model; grey: random tenths (range)", fontsize=10
    )
    return figure, result.tables()["transplant"]


def _tenth(name: str) -> int | None:
    """Which tenth, from 1, a set is called after."""
    if name in ("lowest tenth", "highest tenth"):
        return 1 if name.startswith("lowest") else TENTHS
    head, _, number = name.partition(" ")
    return int(number) if head == "tenth" and number.isdecimal() else None


def draw_comparison(result: CompareResult) -> Iterator[Drawn]:
    """Every figure that this comparison has something for."""
    changed = result.verdict is not None and result.verdict.outcome != "nothing changed"
    if changed:
        yield "tenths", *tenths_figure(result)
        yield "layers", *layers_figure(result)
    if result.norms.height:
        yield "norms", *norms_figure(result)
    moved = [name for name in result.neurons.columns if name.startswith(SHIFT)]
    if any((result.neurons[name] != 0).any() for name in moved):
        yield "ranks", *ranks_figure(result)
    if result.transplants:
        yield "transplant", *transplant_figure(result)
