"""What tuning means for pruning: cuts by either model's scores, and what they take of the change.

**Kept alike.** Cuts of the same counts by the base's and by the tuned model's scores. Beside what
they share stands what two sets drawn at random would: a sum of independent hypergeometric numbers,
one an MLP, whose distribution is found by convolution (`selection.Overlap`). Scores of two models
that descend from each other are correlated, so more than that is expected: the null says what no
relation at all would give, `kept_same` how much pruning by one is pruning by the other.

**Carriers.** Neurons that a cut would take and that hold most of the tuning's change.

**Selective.** Whether neurons that changed more do more of something, by rank within MLPs
(`dealing`). Its p deals changes out among neurons. Neurons share factors and are not exchangeable,
so it is *descriptive*; the interval over layers is what to look at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..datasets.pairs import INSTRUCTION
from ..errors import UsageError
from ..prune.selection import NeuronSet, lowest, ties_at_the_cut
from .dealing import Layers, Mean, check_widths, deal, each, layer_numbers, two_sided, unit_ranks
from .resamples import benjamini_hochberg

if TYPE_CHECKING:
    from ..prune.layout import MlpLayout

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""What the paper cuts (arXiv 2512.22671)."""
NAN = float("nan")


@dataclass(frozen=True)
class KeptAlike:
    """Two cuts of the same size, by one criterion in the base and in the tuned model.

    Attributes:
        cut: neurons either cut takes.
        same: of these, neurons that both take.
        expected, sd: of `same`, were both drawn at random with these counts in every MLP.
        z: (same - expected) / sd; NaN where nothing could differ.
        p: two-sided, exact: twice the smaller tail, at most 1.
        jaccard: taken by both over taken by either; NaN where nothing is cut.
        kept_same: share of the neurons that the base's cut keeps and the tuned model's keeps too.
        ties: kept neurons that the base scores like one it cuts: left to their index alone.
    """

    criterion: str
    fraction: float
    cut: int
    same: int
    expected: float
    sd: float
    z: float
    p: float
    jaccard: float
    kept_same: float
    ties: int


def kept_alike(
    before: Mapping[str, Sequence[np.ndarray]],
    after: Mapping[str, Sequence[np.ndarray]],
    fractions: Sequence[float] = FRACTIONS,
) -> list[KeptAlike]:
    """Compare the cuts of the lowest-scored neurons of every MLP (`selection.lowest`).

    Args:
        before, after: scores of the base and of the tuned model, by criterion, per MLP [neurons].

    Raises:
        UsageError: criteria or widths differ, or a fraction is not within [0, 1).
    """
    if set(before) != set(after):
        odd = ", ".join(sorted(set(before) ^ set(after)))
        raise UsageError(f"only one side has scores by {odd}; give both sides the same criteria")
    rows = []
    for criterion, scores in before.items():
        check_widths({f"{criterion} before": scores, f"{criterion} after": after[criterion]})
        for fraction in fractions:
            one, other = lowest(scores, fraction), lowest(after[criterion], fraction)
            rows.append(_row(criterion, fraction, scores, one, other))
    return rows


def _row(
    criterion: str, fraction: float, scores: Sequence[np.ndarray], one: NeuronSet, other: NeuronSet
) -> KeptAlike:
    found = one.overlap(other)
    sd = _sd(one, other)
    kept = sum(one.widths) - len(one)
    return KeptAlike(
        criterion=criterion,
        fraction=float(fraction),
        cut=len(one),
        same=found.shared,
        expected=found.expected,
        sd=sd,
        z=(found.shared - found.expected) / sd if sd else NAN,
        p=min(1.0, 2 * min(found.p_more, found.p_fewer)),
        jaccard=found.jaccard,
        kept_same=(kept - len(other - one)) / kept if kept else NAN,
        ties=ties_at_the_cut(scores, one),
    )


def _sd(one: NeuronSet, other: NeuronSet) -> float:
    """Of the shared number under the null: hypergeometric in every MLP."""
    variance = 0.0
    for a, b, n in zip(one.counts, other.counts, one.widths, strict=True):
        if n > 1:
            variance += a * b * (n - a) * (n - b) / (n * n * (n - 1))
    return variance**0.5


@dataclass(frozen=True)
class Carrier:
    """A neuron that a cut would take and that holds much of the tuning's change.

    Attributes:
        mlp: place of its MLP in the model, from 0.
        layer, part, expert: which MLP that is.
        neuron: its index there, as the base counts.
        share_of_mlp, share_of_model: of ||change||^2, over the MLP's and all MLPs' neurons.
        percentile: share of the MLP's neurons that the criterion scores lower (ties by index), %.
        rank: place by change within its MLP, 1 the most changed.
    """

    mlp: int
    layer: int
    part: str
    expert: int | None
    neuron: int
    share_of_mlp: float
    share_of_model: float
    percentile: float
    rank: int


def carriers(
    scores: Sequence[np.ndarray],
    squares: Sequence[np.ndarray],
    layouts: Sequence[MlpLayout] = (),
    rows: Sequence[np.ndarray] = (),
    *,
    fraction: float = 0.1,
    n: int = 20,
) -> list[Carrier]:
    """Of the neurons that cutting `fraction` of every MLP would take, those that changed most.

    Args:
        scores: of the base, by one criterion, per MLP [neurons].
        squares: squared norm of each neuron's change; what is not finite counts as no change.
        layouts: of the MLPs; without them each is a layer of its own.
        rows: index in the base of each neuron, where not all of the base's are given.
        n: how many at most; neurons that did not change are left out.

    Returns:
        The largest change first; ties by MLP and index.
    """
    widths = check_widths({"scores": scores, "squared changes": squares})
    clean = [np.where(np.isfinite(part), part, 0.0).astype(np.float64) for part in squares]
    sums = [float(part.sum()) for part in clean]
    total = sum(sums)
    taken = lowest(scores, fraction)
    found: list[Carrier] = []
    for mlp, (values, chosen) in enumerate(zip(clean, taken.indices, strict=True)):
        best = chosen[np.argsort(-values[chosen], kind="stable")][:n]
        best = best[values[best] > 0]
        if not len(best):
            continue
        places = _places(scores[mlp])
        ranks = _places(-values)
        for at in best.tolist():
            found.append(
                Carrier(
                    mlp=mlp,
                    layer=layouts[mlp].layer if layouts else mlp,
                    part=layouts[mlp].part if layouts else "dense",
                    expert=layouts[mlp].expert if layouts else None,
                    neuron=int(rows[mlp][at]) if rows else at,
                    share_of_mlp=float(values[at]) / sums[mlp],
                    share_of_model=float(values[at]) / total,
                    percentile=100 * int(places[at]) / widths[mlp],
                    rank=int(ranks[at]) + 1,
                )
            )
    found.sort(key=lambda row: -row.share_of_model)
    return found[:n]


def _places(values: np.ndarray) -> np.ndarray:
    """Place of each value from the lowest, 0; ties by index."""
    found = np.empty(len(values), np.int64)
    found[np.argsort(values, kind="stable")] = np.arange(len(values))
    return found


@dataclass(frozen=True)
class Selective:
    """Rank correlation of neurons' change with what they do; or one such minus another.

    Attributes:
        function: column of what they do, e.g. `attr_instruction`.
        minus: the column whose correlation was taken away; empty for none.
        rho, low, high: mean over layers and its 95 % interval (see `dealing`).
        null_sd, p: from dealing changes out among neurons; descriptive.
        q: p after Benjamini-Hochberg over all rows.
        partial, partial_low, partial_high, partial_p: the same given the covariate's ranks; equal
            to rho's without one.
        n_layers: layers with a change.
    """

    function: str
    minus: str
    rho: float
    low: float
    high: float
    null_sd: float
    p: float
    q: float
    partial: float
    partial_low: float
    partial_high: float
    partial_p: float
    n_layers: int


def selective(
    change: Sequence[np.ndarray],
    functions: Mapping[str, Sequence[np.ndarray]],
    *,
    covariate: Sequence[np.ndarray] | None = None,
    layer_of: Sequence[int] | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> list[Selective]:
    """Whether neurons that changed more do more of something.

    Args:
        change: norms of the neurons' changes, per MLP [neurons]; NaN is left out.
        functions: sizes by column KIND_PROPERTY, as |attr_instruction|, per MLP [neurons].
        covariate: what `partial` is given, e.g. the base's magnitude.
        layer_of: the layer of every MLP; without it each is a layer of its own.
        permutations: deals.

    Returns:
        One row a column; then of each kind instruction minus every other property, over the same
        deals and layers.

    Raises:
        UsageError: no column, fewer than one permutation, or arrays that do not match.
    """
    if not functions or permutations < 1:
        raise UsageError("a test of changed neurons needs one column and one permutation at least")
    given = {} if covariate is None else {"covariate": covariate}
    widths = check_widths({"change": change, **functions, **given})
    of = layer_numbers(layer_of, len(widths))
    labels, weights = _contrasts(list(functions))

    def known(mlp: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        columns = np.stack([np.asarray(by_mlp[mlp], np.float64) for by_mlp in functions.values()])
        moved = np.asarray(change[mlp], np.float64)
        beside = np.zeros(len(moved)) if covariate is None else np.asarray(covariate[mlp], float)
        there = np.isfinite(moved) & ~np.isnan(columns).any(0) & ~np.isnan(beside)
        return columns[:, there], moved[there], beside[there]

    def one(mlp: int) -> list[np.ndarray]:
        """rho and partial, [1 + deals, rows]: as they are, then of every deal."""
        if not used[mlp]:
            return [np.full((1, len(labels)), NAN)] * 2
        ranks, order, beside = map(unit_ranks, known(mlp))
        left = _unit(ranks - np.outer(ranks @ beside, beside))
        rest = _unit(order - (order @ beside) * beside)
        both = [(order[None], ranks), (rest[None], left)]
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(mlp,)))
        return [
            np.vstack([a @ b.T, null[:, 0]]) @ weights.T
            for (a, b), null in zip(both, deal(both, permutations, rng), strict=True)
        ]

    used = [bool(known(mlp)[1].any()) for mlp in range(len(widths))]
    layers = Layers(of, used)
    seen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    nulls = np.zeros((2, permutations, len(labels)))
    for mlp, parts in enumerate(each(one, len(widths))):
        for which, part in enumerate(parts):
            seen[which].append(part[0])
            if used[mlp]:
                nulls[which] += layers.weights[mlp] * part[1:]
    rows = []
    for k, (name, minus) in enumerate(labels):
        plain, partial = (
            _summed(np.array([part[k] for part in seen[which]]), nulls[which][:, k], layers)
            for which in (0, 1)
        )
        (whole, sd, p), (given_whole, _, given_p) = plain, partial
        rows.append(
            Selective(
                name, minus, *whole, sd, p, NAN, *given_whole, partial_p=given_p,
                n_layers=layers.count,
            )
        )  # fmt: skip
    family = [k for k, row in enumerate(rows) if row.p == row.p]
    for k, q in zip(family, benjamini_hochberg([rows[k].p for k in family]), strict=True):
        rows[k] = replace(rows[k], q=float(q))
    return rows


def _contrasts(names: Sequence[str]) -> tuple[list[tuple[str, str]], np.ndarray]:
    """What rows are of: every column alone, and instruction minus each other property of its kind;
    and how each row weighs the columns, [rows, columns]."""
    alone = np.eye(len(names))
    labels, weights = [(name, "") for name in names], list(alone)
    for k, name in enumerate(names):
        kind, _, what = name.partition("_")
        if what != INSTRUCTION:
            continue
        for j, other in enumerate(names):
            if j != k and other.partition("_")[0] == kind:
                labels.append((name, other))
                weights.append(alone[k] - alone[j])
    return labels, np.stack(weights)


def _summed(seen: np.ndarray, null: np.ndarray, layers: Layers) -> tuple[Mean, float, float]:
    """Mean over layers and its interval, standard deviation over deals, p."""
    if not layers.count:
        return Mean(NAN, NAN, NAN), NAN, NAN
    sd = float(null.std(ddof=1)) if len(null) > 1 else NAN
    mean = layers.mean(seen, sd)
    return mean, sd, float(two_sided(np.array(mean.value), null))


def _unit(rows: np.ndarray) -> np.ndarray:
    """Of unit length; what the covariate leaves nothing of becomes 0."""
    norm = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 1e-6)
