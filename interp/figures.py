"""Figures of a hypothesis run: PNG and SVG, with the CSV that each is drawn from.

Colours are Okabe and Ito's, told apart by colour-blind eyes; every series has its own marker too.
Heat maps go from blue over white to orange, or by viridis where there is no middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from ..datasets.pairs import MISCONCEPTION, PROPERTIES
from ..prune.expressions import column
from ..rundir import save_frame
from .localisation import corrected
from .resamples import FUNCTIONS
from .verdict import SESOI

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .result import HypothesisResult

COLOURS = {
    "misconception": "#D55E00",
    "fact": "#0072B2",
    "instruction": "#009E73",
    "control": "#7F7F7F",
}
MARKERS = {"misconception": "o", "fact": "s", "instruction": "^", "control": "D"}
TITLES = {"attribution": "|attribution|", "dz": "|d_z|", "auroc": "|AUROC - 1/2|"}
DIVERGING = ["#0072B2", "#FFFFFF", "#D55E00"]
Drawn = tuple[str, "Figure", polars.DataFrame]


def new(width: float, height: float) -> Figure:
    """An empty figure that needs no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plain(axis: Any) -> None:
    """Without the frame that carries nothing."""
    axis.spines[["top", "right"]].set_visible(False)


def diverging() -> Any:
    """Blue, white, orange."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("glulens", DIVERGING)


def localisation_figure(result: HypothesisResult) -> Figure:
    """Effects with intervals, by criterion and property, beside the smallest effect of interest."""
    rows = result.associations
    criteria = list(dict.fromkeys(row.criterion for row in rows))
    properties = [name for name in PROPERTIES if any(row.property == name for row in rows)]
    figure = new(11, 1.6 + 0.55 * len(criteria))
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
                [c.value for _, c in chosen],
                [y for y, _ in chosen],
                xerr=[[c.value - c.low for _, c in chosen], [c.high - c.value for _, c in chosen]],
                fmt=MARKERS[name],
                ms=4.5,
                lw=1.3,
                color=COLOURS[name],
                label=name,
            )
        faint = sorted({r.property for r in rows if r.function == function and r.faint})
        note = f"\n(too faint to locate: {', '.join(faint)})" if faint else ""
        axis.set_title(TITLES[function] + note, fontsize=10)
        axis.set_xlabel("corrected effect: rank correlation\nwith magnitude, beyond the null")
        plain(axis)
    axes[0].set_yticks(range(len(criteria)), criteria)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("criterion")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(properties), frameon=False)
    return figure


def null_figure(result: HypothesisResult) -> Figure:
    """The primary statistic under swapped labels, and as it was observed."""
    figure = new(6.5, 2.8)
    axis = figure.subplots()
    primary = result.verdict.criterion
    row = next(
        r
        for r in result.associations
        if (r.property, r.criterion, r.function) == (MISCONCEPTION, primary, "attribution")
    )
    axis.hist(result.null_draws, bins=50, color="#BBBBBB")
    axis.axvline(row.effect, color=COLOURS[MISCONCEPTION], lw=2)
    axis.annotate(
        f"observed\n(p = {row.p:.3f})",
        (row.effect, 0.96),
        xycoords=("data", "axes fraction"),
        # Beside the draws, not on them: away from the null's mean, which is 0.
        xytext=(5, 0) if row.effect > 0 else (-5, 0),
        textcoords="offset points",
        ha="left" if row.effect > 0 else "right",
        va="top",
        color=COLOURS[MISCONCEPTION],
    )
    # Room for the label where nothing else is.
    low, high = axis.get_xlim()
    axis.set_xlim(low - 0.2 * (high - low), high + 0.2 * (high - low))
    axis.set_xlabel(f"rank correlation of {primary} with |attribution|, beyond the null's mean")
    axis.set_ylabel("draws")
    axis.set_title(f"True and false swapped within questions, {len(result.null_draws):,} times",
                   fontsize=10)  # fmt: skip
    plain(axis)
    return figure


def magnitude_figure(result: HypothesisResult) -> tuple[Figure, polars.DataFrame]:
    """Each layer's neurons by rank of magnitude, and how strongly they are attributed to."""
    score, function = column(result.verdict.criterion), f"attr_{MISCONCEPTION}"
    layers = result.neurons.partition_by("layer", maintain_order=True)
    columns = min(6, len(layers))
    rows = -(-len(layers) // columns)
    figure = new(1.7 * columns + 0.6, 1.35 * rows + 0.7)
    axes = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).reshape(-1)
    everything = result.neurons[function].abs().to_numpy()
    floor = np.quantile(everything[everything > 0], 0.001) if (everything > 0).any() else 1e-9
    bounds = np.log10([floor, max(float(everything.max()), floor * 10)])
    binned = []
    for axis, layer in zip(axes, layers, strict=False):
        rank = layer[score].rank("ordinal").to_numpy() / layer.height
        size = np.log10(np.maximum(layer[function].abs().to_numpy(), floor))
        counts, _, edges = np.histogram2d(rank, size, bins=(20, 24), range=((0, 1), bounds))
        axis.pcolormesh(np.linspace(0, 1, 21), edges, counts.T, cmap="viridis", rasterized=True)
        tenth = np.minimum((rank * 10 - 1e-9).astype(int), 9)
        medians = [np.median(size[tenth == t]) if (tenth == t).any() else np.nan for t in range(10)]
        axis.plot(np.arange(10) / 10 + 0.05, medians, color="white", lw=1.2)
        number = int(layer["layer"][0])
        axis.set_title(f"layer {number}", fontsize=7, pad=2)
        axis.tick_params(labelsize=6)
        binned += [
            {"layer": number, "tenth": t, "median_log10_attribution": float(m)}
            for t, m in enumerate(medians)
        ]
    for axis in axes[len(layers) :]:
        axis.set_visible(False)
    figure.supxlabel(f"rank of {result.verdict.criterion} within the layer (0: smallest)",
                     fontsize=9)  # fmt: skip
    figure.supylabel("log10 |attribution|, nats", fontsize=9)
    figure.suptitle("Magnitude against attribution to false - true answers (white: median)",
                    fontsize=10)  # fmt: skip
    return figure, polars.DataFrame(binned)


def mass_figure(result: HypothesisResult) -> tuple[Figure, polars.DataFrame]:
    """Share of |attribution| in each tenth of magnitude, layer by layer, for each property."""
    primary = result.verdict.criterion
    frame = result.layers.filter(criterion=primary, function="attribution")
    names = [name for name in PROPERTIES if name in frame["property"].unique()]
    figure = new(2.6 * len(names) + 1.2, 4.4)
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    grids = {
        name: frame.filter(property=name)
        .sort("layer")
        .select([f"mass_{t}" for t in range(10)])
        .to_numpy()
        for name in names
    }
    reach = max(float(np.abs(grid - 0.1).max()) for grid in grids.values())
    drawn: Any = None
    for axis, (name, grid) in zip(axes, grids.items(), strict=True):
        drawn = axis.imshow(grid - 0.1, aspect="auto", cmap=diverging(), vmin=-reach, vmax=reach,
                            interpolation="nearest")  # fmt: skip
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("tenth by magnitude")
        axis.set_xticks(range(0, 10, 3), [str(t + 1) for t in range(0, 10, 3)])
    axes[0].set_ylabel("layer")
    figure.colorbar(drawn, ax=axes, label="share of |attribution| less 0.1")
    figure.suptitle(f"What each tenth by {primary} holds (1: smallest)", fontsize=10)
    return figure, frame


def decoding_figure(result: HypothesisResult) -> Figure:
    """Accuracy of linear probes on lowest, highest and random tenths, by layer."""
    frame = result.decoding
    assert frame is not None
    figure = new(7, 3.2)
    axis = figure.subplots()
    looks = {
        "lowest": ("#D55E00", "o"),
        "highest": ("#0072B2", "s"),
        "all": ("#000000", "^"),
        "random": ("#7F7F7F", "D"),
    }
    for name, (colour, marker) in looks.items():
        chosen = frame.filter(polars.col("layer").is_not_null())
        chosen = chosen.filter(
            polars.col("what").str.starts_with(name) & ~polars.col("what").str.contains("model")
        )
        by_layer = chosen.group_by("layer").agg(polars.col("accuracy").mean()).sort("layer")
        if by_layer.height:
            label = {"all": "all neurons", "random": "random tenths (mean)"}.get(
                name, f"{name} tenth"
            )
            axis.plot(by_layer["layer"], by_layer["accuracy"], color=colour, marker=marker, ms=4,
                      lw=1.2, label=label)  # fmt: skip
    texts = frame.filter(polars.col("layer").is_null())
    for k, row in enumerate(texts.iter_rows(named=True)):
        axis.axhline(row["accuracy"], color="#999999", lw=0.8, ls=(0, (2 + k, 2)))
        where = (1, row["accuracy"])
        axis.annotate(row["what"], where, xycoords=("axes fraction", "data"), fontsize=7,
                      va="center", xytext=(3, 0), textcoords="offset points")  # fmt: skip
    axis.set_xlabel("layer")
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylabel("accuracy, questions left out")
    axis.legend(frameon=False, fontsize=8)
    plain(axis)
    return figure


def umap_figure(result: HypothesisResult) -> tuple[Figure, polars.DataFrame]:
    """Neurons near each other where their functional profiles are alike, coloured by magnitude.

    A profile: d_z and standardised attribution of every property, and the share of tokens with an
    activation above 0. UMAP (McInnes et al. 2018) shows neighbourhoods; its distances and the sizes
    of its clusters mean nothing.
    """
    import warnings

    from scipy.stats import rankdata

    frame = result.neurons
    chosen = frame.sample(min(UMAP_NEURONS, frame.height), seed=0, shuffle=False)
    names = [n for n in PROPERTIES if f"dz_{n}" in frame.columns]
    kinds = [f"{kind}_{name}" for name in names for kind in ("dz", "attr", "positive")]
    profile = chosen.select(kinds).fill_nan(0).to_numpy().astype(np.float64)
    # Ranks: a few neurons are a thousand times as loud as the rest.
    profile = np.stack([rankdata(part) / len(part) for part in profile.T], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import umap

        places = umap.UMAP(n_neighbors=15, min_dist=0.1, random_state=0, n_jobs=1).fit_transform(
            profile
        )
    places = np.asarray(places)
    score = column(result.verdict.criterion)
    rank = chosen.select(
        polars.col(score).rank("ordinal").over("layer") / polars.len().over("layer")
    ).to_series()
    figure = new(9, 4.2)
    axes = figure.subplots(1, 2)
    shown = ((rank.to_numpy(), f"rank of {result.verdict.criterion} in its layer"),
             (chosen["layer"].to_numpy(), "layer"))  # fmt: skip
    for axis, (colour, label) in zip(axes, shown, strict=True):
        dots = axis.scatter(*places.T, c=colour, s=1.5, cmap="viridis", rasterized=True, lw=0)
        figure.colorbar(dots, ax=axis, label=label)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle("Neurons by what they do on all properties (UMAP)", fontsize=10)
    data = chosen.select("layer", "neuron").with_columns(
        x=polars.Series(places[:, 0]), y=polars.Series(places[:, 1]), rank=rank
    )
    return figure, data


UMAP_NEURONS = 8000


def draw_all(result: HypothesisResult) -> Iterator[Drawn]:
    """Every figure that this run has something for."""
    from . import figures_causal as causal

    tables = result.tables()
    yield "localisation", localisation_figure(result), tables["associations"]
    yield "null", null_figure(result), polars.DataFrame({"effect": result.null_draws})
    yield "magnitude", *magnitude_figure(result)
    yield "mass", *mass_figure(result)
    if result.effects:
        yield "causal", causal.causal_figure(result), tables["causal"]
        if any(row.layer >= 0 for row in result.effects):
            yield "map", *causal.map_figure(result)
    if result.doses:
        yield "dose", causal.dose_figure(result), tables["dose"]
    if result.answerers:
        yield "entropy", causal.entropy_figure(result), tables["answerers"]
    if result.decoding is not None:
        yield "decoding", decoding_figure(result), result.decoding
    if result.manifest["options"]["umap"] and result.neurons.height >= 100:
        yield "umap", *umap_figure(result)


def write_figures(
    result: HypothesisResult, folder: Path, tell: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Draw the run's figures into a folder; returns their names."""
    return save_figures(draw_all(result), folder, tell)


def save_figures(
    drawn: Iterator[Drawn], folder: Path, tell: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Save figures, drawn one by one meanwhile, as PNG, SVG and CSV; returns their names."""
    import matplotlib

    folder.mkdir(exist_ok=True)
    names = []
    # A fixed salt and no date: the same run draws the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "glulens", "svg.fonttype": "none"}):
        for name, figure, frame in drawn:
            figure.savefig(folder / f"{name}.png", dpi=130)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            save_frame(folder / f"{name}.csv", frame)
            names.append(name)
            tell(name)
    return names
