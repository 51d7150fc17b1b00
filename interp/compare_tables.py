"""The tables of a comparison: neurons, layers, tensors, distributions, scores of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars
from scipy import stats

from ..prune.differences import Difference, MlpDifference
from ..prune.expressions import column
from ..prune.shift import QUANTILES, WeightShift, norm_shift
from .localiser import TENTHS, tenth_of
from .neurons import score_table

if TYPE_CHECKING:
    from .concentration import Concentration

Scores = Mapping[str, Sequence[np.ndarray]]
"""By criterion, one array [neurons] an MLP."""
ROLES = ("gate", "up", "down")
GROUPS = ("gate", "up", "down", "attention", "embedding", "head", "norm", "bias", "other")
BINS = 40
BASE, TUNED, DELTA, SHIFT = "base_", "tuned_", "delta_", "rank_shift_"
COLUMNS = {
    "layer": "layer, from 0",
    "neuron": "index within the MLP, from 0, as the base counts",
    "base_X, tuned_X": "weight score X in either model",
    "delta_X": "tuned minus base",
    "rank_shift_X": "place within the MLP (0: smallest; ties by index), tuned minus base",
    "change": "||tuned - base|| over the neuron's row of gate, row of up and column of down",
    "change_relative": "change over the base's norm of the same",
    "change_share": "change squared, over the sum of it in the MLP",
    "change_M, relative_M, cosine_M": "of one matrix M: norm of the change; over the base's norm; "
    "cosine of the weights before and after",
}
"""What columns mean; X is a criterion, M is gate, up or down."""


def places(scores: np.ndarray) -> np.ndarray:
    """Place of each score among all, 0 the smallest, ties by index: int32 [neurons]."""
    found = np.empty(len(scores), np.int32)
    found[np.argsort(scores, kind="stable")] = np.arange(len(scores), dtype=np.int32)
    return found


def paired_columns(
    name: str, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """`base_X`, `tuned_X`, `delta_X` (float32) and `rank_shift_X` (int32) of all neurons."""
    base, tuned = (np.concatenate(list(side)) for side in (before, after))
    with np.errstate(invalid="ignore", over="ignore"):  # -inf, of weights that are not finite
        delta = (tuned.astype(np.float64) - base.astype(np.float64)).astype(np.float32)
    moved = [places(b) - places(a) for a, b in zip(before, after, strict=True)]
    return {
        BASE + name: base.astype(np.float32),
        TUNED + name: tuned.astype(np.float32),
        DELTA + name: delta,
        SHIFT + name: np.concatenate(moved),
    }


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 where both are 0, NaN where the whole alone is."""
    found = np.full(np.shape(part), np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    found[(part == 0) & (whole == 0)] = 0
    return found


def is_order_alone(name: str) -> bool:
    """Whether a criterion is a random order, which no weight enters."""
    return name.startswith("random:")


def neuron_frame(mlps: Sequence[MlpDifference], before: Scores, after: Scores) -> polars.DataFrame:
    """One row a neuron that both models have; columns as in `COLUMNS`."""
    widths = [len(mlp.rows) for mlp in mlps]
    columns: dict[str, np.ndarray] = {}
    for name in before:
        if is_order_alone(name):  # the same in both
            columns[column(name)] = np.concatenate(list(before[name]))
        else:
            columns |= paired_columns(column(name), before[name], after[name])

    def whole(parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(parts)).astype(np.float32)

    columns["change"] = whole([mlp.absolute for mlp in mlps])
    columns["change_relative"] = whole([mlp.relative for mlp in mlps])
    columns["change_share"] = whole([mlp.share for mlp in mlps])
    for role in (role for role in ROLES if all(role in mlp.matrices for mlp in mlps)):
        matrices = [mlp.matrices[role] for mlp in mlps]
        norms = [np.sqrt(matrix.squares) for matrix in matrices]
        columns[f"change_{role}"] = whole(norms)
        columns[f"relative_{role}"] = whole(
            [ratio(norm, m.before.norm) for norm, m in zip(norms, matrices, strict=True)]
        )
        columns[f"cosine_{role}"] = whole([matrix.cosine for matrix in matrices])
    frame = score_table(widths, {}, [mlp.layout for mlp in mlps])
    neurons = np.concatenate([mlp.rows for mlp in mlps]).astype(np.int32)
    return frame.with_columns(
        neuron=polars.Series(neurons), **{k: polars.Series(v) for k, v in columns.items()}
    )


def place_of(mlp: MlpDifference) -> dict[str, Any]:
    """Which MLP a row is about."""
    layout = mlp.layout
    return {"layer": layout.layer, "part": layout.part, "expert": layout.expert}


def total(values: np.ndarray) -> float:
    """The sum over what is finite."""
    return float(values[np.isfinite(values)].sum())


def relative(squares: float, before: float) -> float:
    """Root of the ratio of two sums of squares; 0 of nothing that did not change."""
    return float(ratio(np.sqrt([squares]), np.sqrt([before]))[0])


def layer_frame(
    difference: Difference, first: Sequence[np.ndarray], found: Sequence[Concentration]
) -> polars.DataFrame:
    """One row an MLP: how far it moved, which tenth of it by the first criterion moved, and rho.

    Args:
        first: the base's scores by the first criterion, one array an MLP.
        found: its concentrations, whose rho by layer become columns (of a layer's MLPs all the
            same).
    """
    everything = sum(total(mlp.squares) for mlp in difference.mlps)
    attention: dict[int, list[float]] = {}
    for tensor in difference.tensors:
        if tensor.group == "attention" and tensor.layer is not None:
            sums = attention.setdefault(tensor.layer, [0.0, 0.0])
            sums[0] += tensor.squares
            sums[1] += tensor.before
    numbers = {
        layer: k for k, layer in enumerate(sorted({m.layout.layer for m in difference.mlps}))
    }
    rows = []
    for mlp, scores in zip(difference.mlps, first, strict=True):
        squares = total(mlp.squares)
        before = {role: total(m.before.squares) for role, m in mlp.matrices.items()}
        row = {
            **place_of(mlp),
            "neurons": len(mlp.rows),
            "change": squares**0.5,
            "relative": relative(squares, sum(before.values())),
            "share_of_model": squares / everything if everything else 0.0,
        }
        for role, matrix in mlp.matrices.items():
            row[f"relative_{role}"] = relative(total(matrix.squares), before[role])
        if mlp.layout.layer in attention:
            row["relative_attention"] = relative(*attention[mlp.layout.layer])
        of, there = tenth_of(scores), np.nan_to_num(mlp.squares, posinf=0)
        for tenth in range(TENTHS):
            held = float(there[of == tenth].sum())
            row[f"tenth_{tenth + 1}"] = held / squares if squares else float("nan")
        for one in found:
            row[f"rho_{one.measure}"] = one.layers[numbers[mlp.layout.layer]]
        rows.append(row)
    return polars.DataFrame(rows, infer_schema_length=None)


def tensor_frame(difference: Difference) -> polars.DataFrame:
    """One row a tensor: group, weights, norm of the change, relative change, cosine."""
    rows = []
    for tensor in difference.tensors:
        norms = (tensor.before * tensor.after) ** 0.5
        rows.append(
            {
                "tensor": tensor.name,
                "group": tensor.group,
                "layer": tensor.layer,
                "weights": tensor.n,
                "base_norm": tensor.before**0.5,
                "change": tensor.squares**0.5,
                "relative": relative(tensor.squares, tensor.before),
                "cosine": 1.0
                if not tensor.squares
                else min(1.0, max(-1.0, tensor.dot / norms))
                if norms
                else float("nan"),
            }
        )
    return polars.DataFrame(rows, infer_schema_length=None)


def group_frame(tensors: polars.DataFrame) -> polars.DataFrame:
    """Where the change lies: one row a group of tensors, and the whole.

    Shares of the whole's squared change stand beside shares of its weights: a group that changed
    like the rest has the same of both.
    """
    rows = []
    # A tensor with weights that are not finite has no norm; the rest of its group has.
    finite = tensors.filter(polars.col("change").is_finite())
    everything = float((finite["change"] ** 2).sum())
    weights = int(tensors["weights"].sum())
    for group in (*GROUPS, "all"):
        some = finite if group == "all" else finite.filter(group=group)
        if not some.height:
            continue
        squares = float((some["change"] ** 2).sum())
        before = float((some["base_norm"] ** 2).sum())
        rows.append(
            {
                "group": group,
                "tensors": some.height,
                "weights": int(some["weights"].sum()),
                "share_of_weights": some["weights"].sum() / weights,
                "change": squares**0.5,
                "relative": relative(squares, before),
                "share_of_change": squares / everything if everything else 0.0,
            }
        )
    return polars.DataFrame(rows, infer_schema_length=None)


def shift_row(shift: WeightShift) -> dict[str, float]:
    """The distances and moments of two samples as columns."""
    row = {
        "n": shift.n,
        "wasserstein": shift.wasserstein,
        # In the base's standard deviations: comparable between matrices.
        "wasserstein_sd": float(ratio(np.array([shift.wasserstein]), np.array([shift.sd[0]]))[0]),
        "ks": shift.ks,
    }
    for side, kurtosis, sd, quantiles in zip(
        ("base", "tuned"), shift.kurtosis, shift.sd, shift.quantiles, strict=True
    ):
        row |= {f"{side}_sd": sd, f"{side}_kurtosis": kurtosis}
        row |= {f"{side}_q{q:g}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
    return row


def distribution_frame(difference: Difference) -> polars.DataFrame:
    """Distances between distributions before and after, of every matrix: of its weights, and of
    the norms of its rows (of `down` its columns, which are neurons). Attention and embeddings stand
    beside the MLPs as a reference."""
    rows: list[dict[str, Any]] = []
    for tensor in difference.tensors:
        about = {"tensor": tensor.name, "group": tensor.group, "layer": tensor.layer}
        for of, shift in (("norms", tensor.norms), ("weights", tensor.distribution)):
            if shift is not None:
                rows.append({"of": of, **about, **shift_row(shift)})
    return polars.DataFrame(rows, infer_schema_length=None)


def norm_bins(difference: Difference) -> polars.DataFrame:
    """Histograms of the neurons' norms by layer and matrix, both models in the same bins.

    The bins span 99 % of the norms; what lies beyond is in the outermost.
    """
    rows = []
    layers: dict[int, list[MlpDifference]] = {}
    for mlp in difference.mlps:
        layers.setdefault(mlp.layout.layer, []).append(mlp)
    for layer, members in layers.items():
        for role in members[0].matrices:
            sides = [
                np.concatenate([getattr(m.matrices[role], side).norm for m in members])
                for side in ("before", "after")
            ]
            sides = [side[np.isfinite(side)] for side in sides]
            both = np.concatenate(sides)
            if not both.size:
                continue
            low, high = np.quantile(both, [0.005, 0.995])
            edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
            counts = [np.histogram(np.clip(s, edges[0], edges[-1]), edges)[0] for s in sides]
            rows += [
                {
                    "layer": layer,
                    "matrix": role,
                    "low": float(edges[k]),
                    "high": float(edges[k + 1]),
                    "base": int(counts[0][k]),
                    "tuned": int(counts[1][k]),
                }
                for k in range(BINS)
            ]
    return polars.DataFrame(rows, infer_schema_length=None)


def score_frame(before: Scores, after: Scores) -> polars.DataFrame:
    """One row a score: how alike the two sides rank, and how far scores and places moved."""
    rows = []
    for name in before:
        if is_order_alone(name):
            continue
        rho, moved, distances = [], [], []
        for a, b in zip(before[name], after[name], strict=True):
            there = np.isfinite(a) & np.isfinite(b)
            a, b = np.asarray(a[there], np.float64), np.asarray(b[there], np.float64)
            if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0:
                rho.append(float(stats.spearmanr(a, b).statistic))  # pyright: ignore
            if len(a):
                moved.append(np.abs(places(b) - places(a)) / len(a))
                distances.append(norm_shift(a, b))
        every = np.concatenate(moved) if moved else np.zeros(1)
        sides = [np.concatenate(list(side[name])).astype(np.float64) for side in (before, after)]
        means = [float(s[np.isfinite(s)].mean()) if np.isfinite(s).any() else 0.0 for s in sides]
        rows.append(
            {
                "score": name,
                "rank_correlation": float(np.mean(rho)) if rho else float("nan"),
                "median_rank_shift": float(np.median(every)),
                "largest_rank_shift": float(every.max()),
                "base_mean": means[0],
                "tuned_mean": means[1],
                "wasserstein_sd": float(
                    np.mean([shift_row(d)["wasserstein_sd"] for d in distances])
                )
                if distances
                else float("nan"),
                "ks": float(np.mean([d.ks for d in distances])) if distances else float("nan"),
            }
        )
    return polars.DataFrame(rows, infer_schema_length=None)
