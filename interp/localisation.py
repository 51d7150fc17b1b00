"""Where in the order of magnitude a function lives: the statistic, its null and its interval.

**Statistic.** For a weight score w and a functional score f (the absolute mean attribution, or
|d_z|) of every neuron, Spearman's rank correlation of w and f within each layer, averaged over
layers with equal weight; and the share of f that the lowest tenth by w holds, within a layer,
averaged likewise. Layers are strata: pooled over layers, a trend across layers alone makes a
correlation.

**Null: labels permuted within an item.** Were the two texts of every pair exchangeable, swapping
them would change nothing; a swap turns the item's contrast x_i into -x_i for all neurons at once.
So under the null the functional scores come from (1/n) sum s_i x_i with random signs s, which keeps
the covariance between neurons. The null's mean is not 0: neurons with larger weights vary more, so
noise alone correlates with magnitude. The *effect* is the statistic minus that mean. Two-sided p =
min(1, 2 min((1 + #{T_b <= T}) / (1 + B), (1 + #{T_b >= T}) / (1 + B))).

**Interval.** The standard error comes from resampling items with replacement; the interval is
effect +- 1.96 se. Percentiles of the resampled statistic are not used: |mean| of a resample carries
the noise twice, which draws them towards the null (benchmarks/interval_coverage.py shows it).

**Attenuation.** With few items f is mostly noise, and noise draws a rank correlation towards the
null: a small effect with a narrow interval may hide a large true one. So orders are *planted*: item
noise (residuals with random signs) plus systematic contrasts mu_n = d_n sd_n, with |d| half-normal,
its energy in each layer that of the data (an unbiased estimate of the mean of d^2), and its order
in a known relation to the weight score. `attenuation` is the effect seen at this number of items
per effect that is truly there; effect and interval divided by it are the *corrected* ones
(Spearman's correction for attenuation, by simulation). Where it is below `FAINT` the labels leave
too little to locate, and nothing is corrected. Named assumptions: half-normal d, and an attenuation
taken as known.

Cost: B x neurons sorts. Memory: chunks of `CHUNK` resamples x neurons.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ..progress import Progress, silent
from ..prune.selection import cut_count

Function = Literal["attribution", "dz"]
FUNCTIONS: tuple[Function, ...] = ("attribution", "dz")
TENTH = 0.1
CHUNK = 128
PLANTED = 0.5
"""Correlation, in normal scores, of planted orders with the weight score; in both directions."""
PLANTINGS = 8
FAINT = 0.1
Z95 = float(stats.norm.ppf(0.975))


@dataclass(frozen=True)
class Resamples:
    """Weights under which item contrasts are averaged, one row a resample.

    Attributes:
        first: [resamples, items] weights of x.
        second: [resamples or 1, items] weights of x squared.
        total: [resamples] what the sums are divided by.
    """

    first: np.ndarray
    second: np.ndarray
    total: np.ndarray

    @classmethod
    def observed(cls, n: int) -> Resamples:
        """The data as they are."""
        ones = np.ones((1, n), np.float32)
        return cls(ones, ones, np.array([n], np.float32))

    @classmethod
    def sign_flips(cls, n: int, count: int, rng: np.random.Generator) -> Resamples:
        """Labels swapped within items at random: the null."""
        signs = rng.integers(0, 2, (count, n)).astype(np.float32) * 2 - 1
        return cls(signs, np.ones((1, n), np.float32), np.full(count, n, np.float32))

    @classmethod
    def bootstrap(cls, n: int, count: int, rng: np.random.Generator) -> Resamples:
        """Items drawn with replacement."""
        counts = rng.multinomial(n, np.full(n, 1 / n), count).astype(np.float32)
        return cls(counts, counts, counts.sum(1))

    def subset(self, items: np.ndarray) -> Resamples:
        """The same resamples seen on some of the items (for paired comparisons)."""
        first = self.first[:, items]
        return Resamples(first, self.second[:, items], first.sum(1))

    def __len__(self) -> int:
        return len(self.first)


def functional(
    contrasts: np.ndarray, resamples: Resamples, function: Function, rows: slice = slice(None)
) -> np.ndarray:
    """|mean| (`attribution`) or |d_z| (`dz`) of item contrasts under resamples.

    Args:
        contrasts: [items, neurons].
        rows: which resamples.

    Returns:
        [resamples, neurons]. d_z is the mean over the unbiased standard deviation over items; a
        neuron that never varies has 0.
    """
    total = resamples.total[rows, None]
    mean = resamples.first[rows] @ contrasts / total
    if function == "attribution":
        return np.abs(mean)
    second = resamples.second[rows] if len(resamples.second) > 1 else resamples.second
    square = second @ np.square(contrasts) / total
    variance = np.maximum(square - mean**2, 0) * (total / np.maximum(total - 1, 1))
    # What is left of a constant column after rounding is not variation.
    variance[variance <= 1e-10 * square] = 0
    return np.divide(np.abs(mean), np.sqrt(variance), out=np.zeros_like(mean), where=variance > 0)


class Localiser:
    """Associates weight scores, fixed once, with functional scores, given many times."""

    def __init__(self, scores: Mapping[str, Sequence[np.ndarray]]) -> None:
        self.criteria = tuple(scores)
        layers = list(zip(*scores.values(), strict=True))
        self.widths = tuple(len(layer[0]) for layer in layers)
        self._ranks, self._lowest = [], []
        for layer in layers:
            ranks = np.stack([stats.rankdata(column) for column in layer], 1)
            ranks -= ranks.mean(0)
            norm = np.linalg.norm(ranks, axis=0)
            # A constant score orders nothing: its correlation is 0, not undefined.
            self._ranks.append((ranks / np.where(norm > 0, norm, 1)).astype(np.float32))
            tenth = max(1, cut_count(len(layer[0]), TENTH))
            lowest = np.zeros(ranks.shape, np.float32)
            for place, column in enumerate(layer):
                lowest[np.argsort(column, kind="stable")[:tenth], place] = 1
            self._lowest.append(lowest)

    def normal_scores(self, layer: int, criterion: int) -> np.ndarray:
        """Normal scores of a criterion's order within a layer; ties by index."""
        order = self._ranks[layer][:, criterion].argsort(kind="stable").argsort(kind="stable")
        return stats.norm.ppf((order + 0.5) / len(order))

    def by_layer(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rank correlations and lowest-tenth shares, each [layers, resamples, criteria].

        Args:
            values: functional scores [resamples, neurons], at least 0. Ties among them go by index.
        """
        rho = np.empty((len(self.widths), len(values), len(self.criteria)), np.float32)
        share = np.empty_like(rho)
        ends = np.cumsum(self.widths)

        def one(layer: int) -> None:
            width = self.widths[layer]
            part = values[:, ends[layer] - width : ends[layer]]
            ranks = np.empty(part.shape, np.float32)
            centred = np.arange(width, dtype=np.float32) - (width - 1) / 2
            np.put_along_axis(ranks, np.argsort(part, axis=1), centred[None], axis=1)
            rho[layer] = ranks @ self._ranks[layer] / np.linalg.norm(centred)
            total = part.sum(1, keepdims=True)
            share[layer] = part @ self._lowest[layer] / np.where(total > 0, total, 1)

        # Sorting releases the interpreter's lock; layers do not touch each other's results.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, range(len(self.widths))))
        return rho, share

    def over(
        self,
        contrasts: np.ndarray,
        resamples: Resamples,
        function: Function,
        *,
        progress: Progress = silent,
        what: str = "resamples",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank correlations and shares averaged over layers, each [resamples, criteria]."""
        rho = np.empty((len(resamples), len(self.criteria)))
        share = np.empty_like(rho)
        for begin in range(0, len(resamples), CHUNK):
            rows = slice(begin, begin + CHUNK)
            by_layer = self.by_layer(functional(contrasts, resamples, function, rows))
            rho[rows], share[rows] = (part.mean(0) for part in by_layer)
            progress(what, min(begin + CHUNK, len(resamples)), len(resamples))
        return rho, share


@dataclass(frozen=True)
class Association:
    """One criterion against one functional score of one property."""

    property: str
    criterion: str
    function: Function
    n_items: int
    rho: float
    rho_null: float
    """Mean of the statistic under the null."""
    effect: float
    """rho - rho_null."""
    se: float
    low: float
    high: float
    """95 % interval of the effect."""
    p: float
    attenuation: float
    """Effect seen per unit of true rank correlation at this number of items; see the module."""
    share: float
    """Share of the functional score that the lowest tenth holds."""
    share_null: float
    share_se: float
    share_p: float
    q: float = float("nan")
    """p after Benjamini-Hochberg over the family; NaN for what is in none (controls)."""
    share_q: float = float("nan")


def corrected(row: Association) -> tuple[float, float, float] | None:
    """Effect and interval corrected for attenuation; None where the labels' trace is too faint."""
    if row.attenuation < FAINT:
        return None
    return row.effect / row.attenuation, row.low / row.attenuation, row.high / row.attenuation


def systematic_energy(contrasts: np.ndarray) -> np.ndarray:
    """Unbiased estimate of the squared true mean of every column, [neurons]; may be below 0."""
    n = len(contrasts)
    mean = contrasts.mean(0, dtype=np.float64)
    return (n * mean**2 - np.square(contrasts, dtype=np.float64).mean(0)) / (n - 1)


def attenuation(
    localiser: Localiser, contrasts: np.ndarray, function: Function, rng: np.random.Generator
) -> np.ndarray:
    """Effect seen at this number of items per effect that is truly there, by criterion (see above).

    Args:
        contrasts: [items, neurons].

    Returns:
        [criteria]; near 1 were there no noise, 0 where the data hold no systematic part.
    """
    n = len(contrasts)
    residual = contrasts - contrasts.mean(0)
    spread = np.sqrt(np.square(residual).sum(0) / (n - 1))
    unit = np.where(spread > 0, spread, 1)
    weigh = spread if function == "attribution" else np.ones_like(spread)
    ends = np.cumsum(localiser.widths)
    spans = [slice(end - width, end) for width, end in zip(localiser.widths, ends, strict=True)]
    energy = systematic_energy(contrasts / unit)
    layer_energy = np.array([energy[span].mean() for span in spans])
    # Cutting layers off at 0 would keep only noise that points up: the total stays what it was.
    above = np.maximum(layer_energy, 0)
    scale = np.sqrt(above * max(layer_energy.sum(), 0) / max(above.sum(), 1e-30))
    signs = rng.integers(0, 2, (PLANTINGS, n)).astype(np.float32) * 2 - 1
    noise = signs @ (residual / unit) * np.float32(1 / np.sqrt(n * (n - 1)))
    quantiles = {
        width: stats.halfnorm.ppf((np.arange(width) + 0.5) / width).astype(np.float32)
        for width in set(localiser.widths)
    }
    loudness = np.repeat(scale, localiser.widths).astype(np.float32)
    found = np.zeros(len(localiser.criteria))
    for k in range(len(localiser.criteria)):
        seen = true = 0.0
        for direction in (-1, 1):
            size = np.empty_like(noise)
            for layer, span in enumerate(spans):
                normal = direction * PLANTED * localiser.normal_scores(layer, k)
                other = rng.standard_normal((PLANTINGS, len(normal)), np.float32)
                order = np.argsort(normal + np.sqrt(1 - PLANTED**2) * other, axis=1)
                np.put_along_axis(size[:, span], order, quantiles[len(normal)][None], axis=1)
            signed = size * (rng.integers(0, 2, size.shape).astype(np.float32) * 2 - 1)
            contrast = np.abs(noise + signed * loudness)
            seen += direction * localiser.by_layer(contrast * weigh)[0][..., k].mean()
            true += direction * localiser.by_layer(size * weigh)[0][..., k].mean()
        found[k] = seen / true if true else 0.0
    return np.maximum(found, 0)


def two_sided(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p-values of observed [k] against draws of the null [B, k] (see the module)."""
    b = len(null)
    below = (1 + (null <= observed).sum(0)) / (1 + b)
    above = (1 + (null >= observed).sum(0)) / (1 + b)
    return np.minimum(1, 2 * np.minimum(below, above))


def associate(
    localiser: Localiser,
    name: str,
    contrasts: np.ndarray,
    function: Function,
    flips: Resamples,
    boots: Resamples,
    rng: np.random.Generator,
    *,
    progress: Progress = silent,
) -> tuple[list[Association], np.ndarray]:
    """Test every criterion against one functional score of one property.

    Returns:
        One `Association` a criterion, and the resampled effects [bootstraps, criteria].
    """
    n = len(contrasts)
    rho, share = localiser.over(contrasts, Resamples.observed(n), function)
    what = f"{name} by {function} (resamples)"
    count = len(flips) + len(boots)
    null_rho, null_share = localiser.over(
        contrasts, flips, function, progress=lambda _, d, t: progress(what, d, count)
    )
    boot_rho, boot_share = localiser.over(
        contrasts, boots, function, progress=lambda _, d, t: progress(what, len(flips) + d, count)
    )
    faded = attenuation(localiser, contrasts, function, rng)
    p, share_p = two_sided(rho[0], null_rho), two_sided(share[0], null_share)
    se, share_se = boot_rho.std(0, ddof=1), boot_share.std(0, ddof=1)
    centre, share_centre = null_rho.mean(0), null_share.mean(0)
    found = []
    for k, criterion in enumerate(localiser.criteria):
        effect = float(rho[0, k] - centre[k])
        found.append(
            Association(
                property=name,
                criterion=criterion,
                function=function,
                n_items=n,
                rho=float(rho[0, k]),
                rho_null=float(centre[k]),
                effect=effect,
                se=float(se[k]),
                low=effect - Z95 * float(se[k]),
                high=effect + Z95 * float(se[k]),
                p=float(p[k]),
                attenuation=float(faded[k]),
                share=float(share[0, k]),
                share_null=float(share_centre[k]),
                share_se=float(share_se[k]),
                share_p=float(share_p[k]),
            )
        )
    return found, boot_rho - centre


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values (Benjamini and Hochberg 1995) of one family of tests."""
    return stats.false_discovery_control(np.asarray(p), method="bh") if len(p) else np.array([])
