"""Where in the order of magnitude tuning changed a model's neurons.

**Measures.** *absolute*: the norm of a neuron's change (its row of gate, row of up and column of
down together): where does the change lie? *relative*: that over the norm of the neuron before: how
much of itself did it lose? They answer different questions and can disagree in sign.

**Statistic.** rho: Spearman's correlation of a weight score of the base with the measure, within
MLPs, averaged over layers with equal weight. Negative: neurons of low magnitude changed more.
Beside it the share of each tenth by the score in the sum of squares.

**Null: changes dealt out anew among the neurons of an MLP** (see `dealing`), all criteria and both
measures alike in one deal. It is exact where a neuron's change has nothing to do with which neuron
it is. It takes neurons for exchangeable; real gradients share factors, so a small p is no more than
"not by luck of the deal". The interval is over layers, and the verdict asks both.

**Arithmetic.** The measures are tied: relative = absolute / norm. Noise of one size on all weights
makes the relative change fall with magnitude, and a change by one factor everywhere makes the
absolute change rise with it, with nothing chosen by anyone. So each row has `if_alike`: the mean
rho of its measure where the *other* one is dealt out anew and the norms stay. Weights stored in 16
bits do another thing by themselves: see `rounding`, whose control gives `if_rounded`.

Neurons with NaN (weights that are not finite; no norm to relate a change to) are left out, as are
MLPs without any change, which have no order.

Cost: deals x neurons x (criteria + 10 per criterion) multiplications in single precision and one
shuffle; 1000 deals of 458,752 neurons by 8 criteria take about half a minute on one core. Memory:
some tens of MB a thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from ..errors import UsageError
from ..progress import Progress, silent
from ..prune.expressions import is_control
from .dealing import Layers, check_widths, deal, each, layer_numbers, two_sided, unit_ranks
from .localiser import TENTHS, tenth_of
from .resamples import benjamini_hochberg
from .rounding import Rounded

Measure = Literal["absolute", "relative"]
MEASURES: tuple[Measure, Measure] = ("absolute", "relative")
ALIKE = 64
"""Deals of the other measure; their mean is sure to an eighth of one deal's spread."""
ROUNDED = 8
"""Draws of rounded noise."""
NAN = float("nan")


@dataclass(frozen=True)
class Concentration:
    """One criterion's order against one measure of change.

    Attributes:
        rho: mean over layers; NaN where nothing changed.
        low, high: its 95 % interval over layers (see `dealing`).
        null_sd: standard deviation of rho over deals.
        p: two-sided, from the deals.
        q: p after Benjamini-Hochberg over all criteria but controls, both measures; NaN for
            controls.
        if_alike: what arithmetic alone gives: the mean rho of deals of the other measure.
        if_alike_sd: their standard deviation.
        if_rounded: what storage in 16 bits alone gives: rho of noise of one size, rounded; NaN
            where that was not asked.
        beyond, beyond_low, beyond_high: rho minus that, and its 95 % interval over layers.
        layers: rho of every MLP, in order; NaN for one without change.
        shares: ten; each tenth's share in the sum of squares of the measure, from the lowest by the
            base's score to the highest, within MLPs. 0.1 were it spread evenly.
        null_shares: their 2.5 % and 97.5 % points over deals.
        n_layers: layers with a change.
        n_neurons: neurons in them.
    """

    criterion: str
    measure: Measure
    rho: float
    low: float
    high: float
    null_sd: float
    p: float
    q: float
    if_alike: float
    if_alike_sd: float
    layers: tuple[float, ...]
    shares: tuple[float, ...]
    null_shares: tuple[tuple[float, float], ...]
    n_layers: int
    n_neurons: int
    if_rounded: float = NAN
    beyond: float = NAN
    beyond_low: float = NAN
    beyond_high: float = NAN


class _Mlp(NamedTuple):
    """One measure in one MLP; all over criteria, draws first."""

    neurons: int
    rho: np.ndarray
    shares: np.ndarray
    null_rho: np.ndarray
    null_shares: np.ndarray
    alike: np.ndarray
    rounded: np.ndarray


def concentration(
    scores: Mapping[str, Sequence[np.ndarray]],
    absolute: Sequence[np.ndarray],
    *,
    norms: Sequence[np.ndarray],
    layer_of: Sequence[int] | None = None,
    rounded: Sequence[Rounded] | None = None,
    permutations: int = 1000,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Concentration]:
    """Test every criterion's order against both measures of change; see the module.

    Args:
        scores: of the base, by criterion, per MLP [neurons].
        absolute: norms of the neurons' changes, per MLP [neurons], at least 0.
        norms: norms of the neurons of the base, over the same weights.
        layer_of: the layer of every MLP; without it each is a layer of its own.
        rounded: `rounding.rounded_noise` of the same neurons, where both models are stored in 16
            bits.
        permutations: deals.

    Returns:
        By criterion, as given; of each the absolute measure, then the relative one.

    Raises:
        UsageError: no criterion, fewer than one permutation, or arrays that do not match.
    """
    if not scores or permutations < 1:
        raise UsageError("a test of concentration needs one criterion and one permutation at least")
    widths = check_widths({**scores, "absolute change": absolute, "norms": norms})
    if rounded is not None:
        check_widths({"norms": norms, "rounded noise": [part.mean for part in rounded]})
    of = layer_numbers(layer_of, len(widths))

    def columns(mlp: int) -> np.ndarray:
        return np.stack([np.asarray(by_mlp[mlp], np.float64) for by_mlp in scores.values()])

    def one(mlp: int) -> list[_Mlp | None]:
        sizes = _Sizes(columns(mlp), absolute[mlp], norms[mlp])
        rounding = None if rounded is None else rounded[mlp]
        return _of_mlp(
            sizes, rounding, permutations, np.random.SeedSequence(seed, spawn_key=(mlp,))
        )

    # What each MLP weighs must be known before: the deals of all are too many to keep.
    changed = [
        _Sizes(columns(mlp), absolute[mlp], norms[mlp]).changed for mlp in range(len(widths))
    ]
    layers = [Layers(of, [each[place] for each in changed]) for place in range(len(MEASURES))]
    sums = [_Sums(len(scores), permutations) for _ in MEASURES]
    for mlp, parts in enumerate(each(one, len(widths))):
        for place, part in enumerate(parts):
            sums[place].add(part, len(scores), float(layers[place].weights[mlp]))
        progress("dealing out changes (MLPs)", mlp + 1, len(widths))
    rows = [
        sums[place].row(name, number, measure, layers[place])
        for number, name in enumerate(scores)
        for place, measure in enumerate(MEASURES)
    ]
    return _adjusted(rows)


class _Sizes:
    """What is known of one MLP: base scores [criteria, neurons], both measures, who has them."""

    def __init__(self, columns: np.ndarray, absolute: np.ndarray, norms: np.ndarray) -> None:
        self.columns = columns
        absolute = np.asarray(absolute, np.float64)
        self.norms = np.asarray(norms, np.float64)
        known = np.isfinite(absolute) & np.isfinite(self.norms) & ~np.isnan(columns).any(0)
        self.positive = known & (self.norms > 0)
        relative = np.divide(absolute, self.norms, out=np.zeros_like(absolute), where=self.positive)
        self.values = (absolute, relative)
        # A neuron that was nothing has lost nothing of itself, unless it changed.
        self.masks = (known, self.positive | (known & (absolute == 0)))

    @property
    def changed(self) -> list[bool]:
        """Whether there is any change, by measure."""
        return [bool((v[m] > 0).any()) for v, m in zip(self.values, self.masks, strict=True)]


def _of_mlp(
    sizes: _Sizes, rounding: Rounded | None, deals: int, seed: np.random.SeedSequence
) -> list[_Mlp | None]:
    """Both measures in one MLP; None for one without change."""
    there = [place for place, changed in enumerate(sizes.changed) if changed]
    found: list[_Mlp | None] = [None] * len(MEASURES)
    # Both measures share their deals, unless one has fewer neurons.
    together = len(there) == 2 and np.array_equal(*sizes.masks)
    for group in [there] if together else [[place] for place in there]:
        mask = sizes.masks[group[0]]
        columns = sizes.columns[:, mask]
        ranks = unit_ranks(columns)
        within = np.stack([tenth_of(row) for row in columns])[:, None]
        tenths = (within == np.arange(TENTHS)[:, None]).reshape(-1, columns.shape[1])
        values = np.stack([sizes.values[place][mask] for place in group])
        orders = unit_ranks(values)
        squares = np.square(values / values.max(1, keepdims=True))
        squares /= squares.sum(1, keepdims=True)
        dealt = [(orders, ranks), (squares, tenths)]
        null_rho, null_shares = deal(dealt, deals, np.random.default_rng(seed))
        for row, place in enumerate(group):
            found[place] = _Mlp(
                int(mask.sum()),
                orders[row] @ ranks.T,
                (squares[row] @ tenths.T).reshape(-1, TENTHS),
                null_rho[:, row],
                null_shares[:, row].reshape(deals, -1, TENTHS),
                _alike(sizes, place, np.random.default_rng(seed)),
                _rounded(sizes, place, rounding, np.random.default_rng(seed)),
            )
    return found


def _alike(sizes: _Sizes, place: int, rng: np.random.Generator) -> np.ndarray:
    """rho [ALIKE, criteria] of one measure where the other is dealt out and the norms stay."""
    mask = sizes.positive
    if mask.sum() < 2:
        return np.zeros((ALIKE, len(sizes.columns)))
    ranks, norms = unit_ranks(sizes.columns[:, mask]), sizes.norms[mask]
    factor = 1 / norms if place else norms
    other = np.tile(sizes.values[1 - place][mask], (ALIKE, 1))
    return unit_ranks(rng.permuted(other, axis=1) * factor) @ ranks.T


def _rounded(
    sizes: _Sizes, place: int, rounding: Rounded | None, rng: np.random.Generator
) -> np.ndarray:
    """Mean rho [criteria] of one measure under noise of one size that was rounded."""
    mask = sizes.positive
    if rounding is None or mask.sum() < 2:
        return np.full(len(sizes.columns), 0.0 if rounding is not None else NAN)
    drawn = rounding.draws(ROUNDED, rng)[:, mask]
    drawn = drawn / sizes.norms[mask] if place else drawn
    return (unit_ranks(drawn) @ unit_ranks(sizes.columns[:, mask]).T).mean(0)


class _Sums:
    """What the MLPs gave, and means over layers of what every deal gave."""

    def __init__(self, criteria: int, deals: int) -> None:
        self.neurons = 0
        self.rho: list[np.ndarray] = []
        self.shares: list[np.ndarray] = []
        self.null_rho = np.zeros((deals, criteria))
        self.null_shares = np.zeros((deals, criteria, TENTHS))
        self.alike = np.zeros((ALIKE, criteria))
        self.rounded: list[np.ndarray] = []

    def add(self, part: _Mlp | None, criteria: int, weight: float) -> None:
        """Take in the next MLP, which weighs so much."""
        if part is None:
            self.rho.append(np.full(criteria, NAN))
            self.shares.append(np.full((criteria, TENTHS), NAN))
            self.rounded.append(np.full(criteria, NAN))
            return
        self.neurons += part.neurons
        self.rho.append(part.rho)
        self.shares.append(part.shares)
        self.null_rho += weight * part.null_rho
        self.null_shares += weight * part.null_shares
        self.alike += weight * part.alike
        self.rounded.append(part.rounded)

    def row(self, criterion: str, number: int, measure: Measure, layers: Layers) -> Concentration:
        """All of it about one criterion."""
        rho = np.array([each[number] for each in self.rho])
        by_mlp = tuple(map(float, rho))
        if not layers.count:
            nothing, none = (NAN,) * TENTHS, ((NAN, NAN),) * TENTHS
            return Concentration(
                criterion, measure, NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN, by_mlp, nothing,
                none, 0, 0,
            )  # fmt: skip
        null = self.null_rho[:, number]
        null_sd = float(null.std(ddof=1)) if len(null) > 1 else NAN
        mean = layers.mean(rho, null_sd)
        shares = np.nansum(
            np.stack([each[number] for each in self.shares]) * layers.weights[:, None], axis=0
        )
        band = np.quantile(self.null_shares[:, number], [0.025, 0.975], axis=0)
        alike = self.alike[:, number]
        beyond = layers.mean(rho - np.array([each[number] for each in self.rounded]), null_sd)
        return Concentration(
            criterion=criterion,
            measure=measure,
            rho=mean.value,
            low=mean.low,
            high=mean.high,
            null_sd=null_sd,
            p=float(two_sided(np.array(mean.value), null)),
            q=NAN,
            if_alike=float(alike.mean()),
            if_alike_sd=float(alike.std(ddof=1)),
            layers=by_mlp,
            shares=tuple(map(float, shares)),
            null_shares=tuple((float(low), float(high)) for low, high in band.T),
            n_layers=layers.count,
            n_neurons=self.neurons,
            if_rounded=mean.value - beyond.value,
            beyond=beyond.value,
            beyond_low=beyond.low,
            beyond_high=beyond.high,
        )


def _adjusted(rows: list[Concentration]) -> list[Concentration]:
    """With q, of one family: all but controls, and what has no p."""
    family = [k for k, row in enumerate(rows) if row.p == row.p and not is_control(row.criterion)]
    for k, q in zip(family, benjamini_hochberg([rows[k].p for k in family]), strict=True):
        rows[k] = replace(rows[k], q=float(q))
    return rows
