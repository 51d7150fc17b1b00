"""Streaming statistics of every neuron's activation: memory does not grow with the text.

`Moments` is fed rows of activations and holds, per neuron, the count, mean, sum of squared
deviations (about a value near the mean, merged as Chan, Golub and LeVeque do), mean |a|, share > 0,
minimum, maximum and a histogram, in one reading of the rows. Sums are float64. The result does not
depend on how the rows were batched beyond rounding.

The histogram has 64 bins: 32 half-octaves of magnitude on either side of zero, from 2^-10 to 2^6,
the outermost open. A quantile read from it is within a factor of the square root of two (inside
that range), and needs no second look at the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ..tables import ACTIVATION_EDGES as EDGES

BINS = 64
_HALF = BINS // 2
_FIRST = (127 - 10) * 2
"""Eight bits of exponent and one of mantissa count half-octaves; this is the count at 2^-10."""
_BLOCK = 128
"""Neurons that a thread takes at a time: their sums stay in the first-level cache."""

_OPTIONS: dict[str, Any] = {"parallel": True, "cache": True, "nogil": True}


@numba.njit(**_OPTIONS)
def _absorb(rows, bits, places, weights, before, mean, squares, size, positive, low, high, bins):
    """Take rows [n, neurons] at `places`, each `weights` times, into all sums."""
    neurons = rows.shape[1]
    flat = bins.reshape(-1)
    for block in numba.prange((neurons + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        width = min(_BLOCK, neurons - first)
        # Sums of what is left beyond a value near the mean, so that nothing cancels.
        about = mean[first : first + width].copy()
        if before == 0:
            for j in range(width):
                about[j] = rows[places[0], first + j]
        total, total2 = np.zeros(width), np.zeros(width)
        sizes, above = np.zeros(width), np.zeros(width)
        least, most = low[first : first + width], high[first : first + width]
        slot = np.empty(width, np.int32)
        new = 0
        # Written so that the compiler can put lanes side by side: no branches, one type a loop.
        for k in range(len(places)):
            row = rows[places[k], first : first + width]
            pattern = bits[places[k], first : first + width]
            weight = np.float64(weights[k])
            new += weights[k]
            for j in range(width):
                x = np.float64(row[j])
                rest = x - about[j]
                total[j] += weight * rest
                total2[j] += weight * (rest * rest)
                sizes[j] += weight * abs(x)
                above[j] += weight if x > 0 else 0.0
                least[j] = x if x < least[j] else least[j]
                most[j] = x if x > most[j] else most[j]
            for j in range(width):
                step = ((pattern[j] >> np.int32(22)) & np.int32(0x1FF)) - np.int32(_FIRST)
                step = min(max(step, np.int32(0)), np.int32(_HALF - 1))
                # All ones below zero (and for -0), where bins are counted downwards.
                side = pattern[j] >> np.int32(31)
                slot[j] = np.int32(j * BINS + _HALF) + (step ^ side)
            for j in range(width):
                flat[first * BINS + slot[j]] += np.uint32(weights[k])
        count = before + new
        for j in range(width):
            here = total[j] / new
            shift = about[j] + here - mean[first + j]
            mean[first + j] += shift * (new / count)
            squares[first + j] += (total2[j] - total[j] * here) + shift * shift * (
                before * new / count
            )
            size[first + j] += sizes[j]
            positive[first + j] += np.int64(above[j])


@numba.njit(**_OPTIONS)
def _sums(rows, places, starts, out, sign):
    """Add up the rows of each text, those at places[starts[t]:starts[t + 1]]; with sign 0 their
    magnitudes."""
    neurons = rows.shape[1]
    for block in numba.prange((neurons + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        width = min(_BLOCK, neurons - first)
        for text in range(len(starts) - 1):
            total = out[text, first : first + width]
            for k in range(starts[text], starts[text + 1]):
                row = rows[places[k], first : first + width]
                if sign:
                    for j in range(width):
                        total[j] += np.float64(row[j])
                else:
                    for j in range(width):
                        total[j] += abs(np.float64(row[j]))


def as_rows(rows: Tensor) -> np.ndarray:
    """Activations [n, neurons] as float32 that the kernels can read, without a copy if they are."""
    # numba would set the number of threads that it shares with torch to its own.
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # pyright: ignore
    if numba.get_num_threads() != threads:
        numba.set_num_threads(threads)
    return rows.detach().to("cpu", torch.float32).contiguous().numpy()


def text_sums(
    rows: np.ndarray, places: Sequence[np.ndarray], *, magnitude: bool = False
) -> np.ndarray:
    """Sum of the rows of each text, or of their magnitudes, float64 [texts, neurons]."""
    starts = np.concatenate([[0], np.cumsum([len(p) for p in places])])
    joined = np.concatenate([*places, np.zeros(0, np.int64)]).astype(np.int64)
    out = np.zeros((len(places), rows.shape[1]))
    _sums(rows, joined, starts, out, np.int64(not magnitude))
    return out


@dataclass(frozen=True)
class ActivationStatistics:
    """What a set of tokens made every neuron do; arrays [neurons of all MLPs], float64 but for
    counts. Where a neuron saw no token all but the counts are NaN."""

    count: np.ndarray
    """Tokens seen, int64. Differs between neurons only among experts."""
    mean: np.ndarray
    variance: np.ndarray
    """Unbiased; NaN for a single token."""
    rms: np.ndarray
    mean_abs: np.ndarray
    positive: np.ndarray
    """Share of tokens with an activation above 0."""
    minimum: np.ndarray
    maximum: np.ndarray
    histogram: np.ndarray
    """Tokens by bin, uint32 [neurons, 64]; `EDGES` between the bins."""

    @property
    def n_tokens(self) -> int:
        """Tokens that passed the MLP that saw the most."""
        return int(self.count.max())

    def quantile(self, q: float) -> np.ndarray:
        """Quantile q of each neuron, read from the histogram: the geometric middle of its bin."""
        return histogram_quantile(self.histogram, q)


_SUMS = ("mean", "squares", "size", "positive", "low", "high", "bins")


class Moments:
    """Gathers the statistics.

    Args:
        widths: neurons, by MLP.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self._widths = tuple(widths)
        neurons = sum(self._widths)
        self._edges = np.concatenate([[0], np.cumsum(self._widths)])
        self._counts = np.zeros(len(self._widths), np.int64)
        self._sums = {
            "mean": np.zeros(neurons),
            "squares": np.zeros(neurons),
            "size": np.zeros(neurons),
            "positive": np.zeros(neurons, np.int64),
            "low": np.full(neurons, np.inf),
            "high": np.full(neurons, -np.inf),
            "bins": np.zeros((neurons, BINS), np.uint32),
        }

    def update(
        self,
        mlp: int,
        rows: Tensor | np.ndarray,
        places: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Moments:
        """Take in activations of one MLP.

        Args:
            mlp: its number.
            rows: [n, neurons].
            places: which rows; all by default.
            weights: how often each of these counts, int64; once by default.
        """
        values = as_rows(rows) if isinstance(rows, Tensor) else rows
        places = np.arange(len(values)) if places is None else places
        if not len(places):
            return self
        weights = np.ones(len(places), np.int64) if weights is None else weights
        part = slice(self._edges[mlp], self._edges[mlp + 1])
        _absorb(
            values,
            values.view(np.int32),
            places.astype(np.int64),
            weights.astype(np.int64),
            self._counts[mlp],
            *(self._sums[name][part] for name in _SUMS),
        )
        self._counts[mlp] += weights.sum()
        return self

    @property
    def any(self) -> bool:
        """Whether anything was seen."""
        return bool(self._counts.any())

    def result(self) -> ActivationStatistics:
        """The statistics so far.

        Raises:
            ValueError: nothing was seen at all.
        """
        if not self._counts.any():
            raise ValueError("no token was seen; give at least one")
        count = np.repeat(self._counts, self._widths)
        with np.errstate(divide="ignore", invalid="ignore"):
            seen = np.where(count > 0, 1.0, np.nan)
            mean = self._sums["mean"] * seen
            squares = self._sums["squares"]
            return ActivationStatistics(
                count=count,
                mean=mean,
                variance=np.where(count > 1, squares / (count - 1.0), np.nan),
                rms=np.sqrt(squares / count + mean**2),
                mean_abs=self._sums["size"] / count,
                positive=self._sums["positive"] / count,
                minimum=self._sums["low"] * seen,
                maximum=self._sums["high"] * seen,
                histogram=self._sums["bins"].copy(),
            )

    def merged(self, other: Moments) -> Moments:
        """The statistics of both together."""
        found = Moments(self._widths)
        found._counts = self._counts + other._counts
        n = [np.repeat(m._counts, self._widths).astype(np.float64) for m in (self, other)]
        a, b, out = self._sums, other._sums, found._sums
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.nan_to_num(n[1] / (n[0] + n[1]))
        shift = b["mean"] - a["mean"]
        out["mean"][:] = a["mean"] + shift * share
        out["squares"][:] = a["squares"] + b["squares"] + shift**2 * n[0] * share
        for name in ("size", "positive", "bins"):
            out[name][:] = a[name] + b[name]
        out["low"][:] = np.minimum(a["low"], b["low"])
        out["high"][:] = np.maximum(a["high"], b["high"])
        return found

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on later."""
        return {"counts": self._counts, **self._sums}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self._counts = state["counts"].copy()
        self._sums = {name: state[name].copy() for name in _SUMS}


def histogram_quantile(histogram: np.ndarray, q: float) -> np.ndarray:
    """Quantile q of histograms [neurons, 64]: the geometric middle of the bin; NaN for an empty
    one."""
    cumulated = histogram.cumsum(1)
    total = cumulated[:, -1:]
    place = (cumulated < np.maximum(q * total, 1)).sum(1)
    middles = np.empty(BINS)
    upper = np.append(EDGES[_HALF:], 64.0)
    lower = np.append(2.0**-10, EDGES[_HALF:])
    middles[_HALF:] = np.sqrt(upper * lower)
    middles[:_HALF] = -middles[_HALF:][::-1]
    middles[[_HALF - 1, _HALF]] = 0  # nearer to zero than 2^-9.5 or so
    return np.where(total[:, 0] > 0, middles[np.minimum(place, BINS - 1)], np.nan)


def histogram_auroc(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability that a value of `a` exceeds one of `b`, from histograms [neurons, 64] of both.

    Values of one bin count as equal, so the truth lies within the margin given.

    Returns:
        AUROC and the largest error it can have, [neurons]; NaN where either is empty.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        p = a / a.sum(1, keepdims=True, dtype=np.float64)
        q = b / b.sum(1, keepdims=True, dtype=np.float64)
    below = np.cumsum(q, 1) - q
    tied = (p * q).sum(1)
    return (p * below).sum(1) + tied / 2, tied / 2
