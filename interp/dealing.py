"""Rank correlations within MLPs, what they are when values are dealt out anew, and their interval.

One *deal* puts an MLP's values on its neurons in another order, every order being as likely as any
other. Over deals the values have nothing to do with the neurons they stand on, which is the null.

**Layers weigh alike.** An MLP is a layer's dense one or one of its experts. Statistics of MLPs are
averaged within a layer, then over layers. Pooled over layers, a trend across layers alone makes a
correlation.

**Interval.** mean +- max(t s, 1.96 d): s is the standard error of the mean over L layers, as if
they had been drawn from many, t the 97.5 % point of Student's t with L - 1 degrees of freedom, d
the standard deviation over deals. The first part is wide where layers disagree or their neurons
share factors, which no deal shows. The second keeps few layers that agree by luck from looking
sure. With fewer than three layers there is only the second.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from ..errors import UsageError

Z95 = float(stats.norm.ppf(0.975))
BLOCK = 2**20
"""Values dealt at a time, of one MLP."""
ROUNDING = 1e-6
"""Deals are correlated in single precision: those so close to what was observed count as equal."""
T = TypeVar("T")


class Mean(NamedTuple):
    """A mean over layers and its 95 % interval."""

    value: float
    low: float
    high: float


def unit_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, centred and of unit length, so that a product of two is
    Spearman's correlation.

    Ties share their mean rank. What orders nothing becomes 0: its correlation is 0, not undefined.
    """
    ranks = stats.rankdata(values, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    norm = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.divide(ranks, norm, out=np.zeros_like(ranks), where=norm > 1e-6)


def deal(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], deals: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Products of what stays on the neurons of one MLP with what is dealt out among them.

    Args:
        pairs: (dealt [rows, neurons], staying [columns, neurons]); all are dealt alike.
        deals: how many.

    Returns:
        Of each pair [deals, rows, columns], float32. A few numbers a neuron and deal are computed;
        memory is `BLOCK` values, times rows.
    """
    width = pairs[0][0].shape[1]
    pairs = [(a.astype(np.float32), b.T.astype(np.float32)) for a, b in pairs]
    found = [np.empty((deals, len(a), b.shape[1]), np.float32) for a, b in pairs]
    step = min(deals, max(1, BLOCK // max(width, 1)))
    orders = np.empty((step, width), np.int32)
    for begin in range(0, deals, step):
        some = orders[: min(step, deals - begin)]
        some[:] = np.arange(width, dtype=np.int32)
        rng.permuted(some, axis=1, out=some)
        for (dealt, staying), out in zip(pairs, found, strict=True):
            for row, values in enumerate(dealt):
                out[begin : begin + len(some), row] = values[some] @ staying
    return found


def two_sided(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p = (1 + #{|T_b| >= |T|}) / (1 + B) of observed [...] against deals [B, ...] about 0."""
    beyond = np.abs(null) >= np.abs(observed) - ROUNDING
    return (1 + beyond.sum(0)) / (1 + len(null))


class Layers:
    """Which layer each MLP is of, and what each weighs in a mean.

    Args:
        of: layer by MLP.
        used: which MLPs count; layers of which none does are left out of every mean.
    """

    def __init__(self, of: Sequence[int], used: Sequence[bool] | np.ndarray) -> None:
        self.names, self._at = np.unique(np.asarray(of, np.int64), return_inverse=True)
        self._used = np.asarray(used, bool)
        self._counts = np.bincount(self._at[self._used], minlength=len(self.names))
        self.count = int((self._counts > 0).sum())
        """Layers that count."""
        share = 1 / np.maximum(self._counts[self._at], 1) / max(self.count, 1)
        self.weights = np.where(self._used, share, 0.0)
        """By MLP, for a mean over layers; they sum to 1."""

    def by_layer(self, values: np.ndarray) -> np.ndarray:
        """Means of [MLPs] within each layer, [layers]; NaN for those left out."""
        total = np.bincount(
            self._at[self._used], np.asarray(values)[self._used], minlength=len(self.names)
        )
        found = np.full(len(self.names), np.nan)
        return np.divide(total, self._counts, out=found, where=self._counts > 0)

    def mean(self, values: np.ndarray, null_sd: float) -> Mean:
        """Over layers of [MLPs], with its interval (see the module); NaN where no layer counts."""
        layers = self.by_layer(values)
        layers = layers[~np.isnan(layers)]
        if not len(layers):
            return Mean(np.nan, np.nan, np.nan)
        half = Z95 * null_sd
        if len(layers) >= 3:
            se = float(layers.std(ddof=1)) / len(layers) ** 0.5
            half = max(half, float(stats.t.ppf(0.975, len(layers) - 1)) * se)
        mean = float(layers.mean())
        return Mean(mean, mean - half, mean + half)


def layer_numbers(layer_of: Sequence[int] | None, mlps: int) -> Sequence[int]:
    """Layer by MLP; without any given every MLP is a layer of its own.

    Raises:
        UsageError: not one number an MLP.
    """
    if layer_of is None:
        return range(mlps)
    if len(layer_of) != mlps:
        raise UsageError(f"{len(layer_of)} layer numbers for {mlps} MLPs; give one an MLP")
    return layer_of


def check_widths(named: dict[str, Sequence[np.ndarray]]) -> tuple[int, ...]:
    """The neurons of every MLP, by which all that is given must agree.

    Raises:
        UsageError: two of them differ.
    """
    (first, layers), *others = named.items()
    widths = tuple(map(len, layers))
    for name, each in others:
        if tuple(map(len, each)) != widths:
            raise UsageError(
                f"{name!r} and {first!r} are of other neurons: {sum(map(len, each))} in "
                f"{len(each)} MLPs and {sum(widths)} in {len(widths)}; take both from one model"
            )
    return widths


def each(one: Callable[[int], T], count: int) -> Iterator[T]:
    """`one(0)`, `one(1)`, ... in order, found side by side."""
    # Shuffling and sorting release the interpreter's lock; the products are small, and more threads
    # within each would only get into each other's way.
    workers = os.cpu_count() or 1
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(workers) as pool:
        for begin in range(0, count, 4 * workers):  # results wait for no one: a few at a time
            yield from pool.map(one, range(begin, min(begin + 4 * workers, count)))
