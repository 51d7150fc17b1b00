"""Item contrasts under resamples: labels swapped, items drawn again, or as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

Function = Literal["attribution", "dz", "auroc"]
FUNCTIONS: tuple[Function, ...] = ("attribution", "dz", "auroc")


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
    contrasts: np.ndarray,
    resamples: Resamples,
    function: Function,
    rows: slice = slice(None),
    *,
    squares: np.ndarray | None = None,
) -> np.ndarray:
    """What a neuron does, as a size: |mean| of item contrasts under resamples, or |d_z|.

    Args:
        contrasts: [items, neurons]: attributions for `attribution`, differences of mean activation
            for `dz`, differences of ranks for `auroc` (whose mean is AUROC - 1/2, so that swapped
            labels give the AUROC of swapped labels).
        rows: which resamples.
        squares: `squared(contrasts, resamples)`, where it is at hand; only `dz` wants it.

    Returns:
        [resamples, neurons]. d_z is the mean over the unbiased standard deviation over items; a
        neuron that never varies has 0, as far as the dtype can tell (float32 and 800 items: a
        standard deviation below a hundredth of the mean).
    """
    total = resamples.total[rows, None]
    mean = resamples.first[rows] @ contrasts / total
    if function != "dz":
        return np.abs(mean)
    if squares is None:
        squares = squared(contrasts, resamples)
    shared = len(resamples.second) == 1
    square = (squares if shared else resamples.second[rows] @ squares) / total
    variance = np.maximum(square - mean**2, 0) * (total / np.maximum(total - 1, 1))
    # What is left of a constant column after rounding is not variation.
    variance[variance <= len(contrasts) * np.finfo(contrasts.dtype).eps * square] = 0
    return np.divide(np.abs(mean), np.sqrt(variance), out=np.zeros_like(mean), where=variance > 0)


def squared(contrasts: np.ndarray, resamples: Resamples) -> np.ndarray:
    """What `dz` needs of the squares of contrasts: their one weighted sum where all resamples
    weigh them alike, [1, neurons], and all of them otherwise, [items, neurons]."""
    if len(resamples.second) == 1:
        return np.einsum("i,in,in->n", resamples.second[0], contrasts, contrasts)[None]
    return np.square(contrasts)


def two_sided(observed: np.ndarray, null: np.ndarray) -> np.ndarray:
    """p-values of observed [...] against draws of the null [B, ...].

    min(1, 2 min((1 + #{T_b <= T}) / (1 + B), (1 + #{T_b >= T}) / (1 + B))): never 0, and valid
    whatever the null's shape.
    """
    b = len(null)
    below = (1 + (null <= observed).sum(0)) / (1 + b)
    above = (1 + (null >= observed).sum(0)) / (1 + b)
    return np.minimum(1, 2 * np.minimum(below, above))


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Adjusted p-values (Benjamini and Hochberg 1995) of one family of tests."""
    return stats.false_discovery_control(np.asarray(p), method="bh") if len(p) else np.array([])
