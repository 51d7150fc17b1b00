"""How the distribution of weights, or of norms, differs between two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

QUANTILES = (0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)


@dataclass(frozen=True)
class WeightShift:
    """Of two samples; what is in pairs is of the first and of the second.

    Values that are not finite are left out. All is NaN where a sample is empty.
    """

    wasserstein: float
    """Wasserstein-1 distance: the mean distance of values of equal rank."""
    ks: float
    """Kolmogorov-Smirnov statistic: the largest distance of the distribution functions."""
    kurtosis: tuple[float, float]
    """Excess over a normal distribution's; NaN where all values are equal."""
    sd: tuple[float, float]
    """Standard deviation, of the sample as it is (over n)."""
    quantiles: tuple[tuple[float, ...], tuple[float, ...]]
    """At `QUANTILES`, between neighbours linear."""
    n: int
    """Values looked at, of the first."""


def weight_shift(before: np.ndarray, after: np.ndarray) -> WeightShift:
    """Compare two samples of floats [n], [m]; they may be sorted in place."""
    from .pair_kernels import largest_gap

    samples = [np.asarray(sample) for sample in (before, after)]
    samples = [s if np.isfinite(s).all() else s[np.isfinite(s)] for s in samples]
    if not min(map(len, samples)):
        nan = float("nan")
        none = (nan,) * len(QUANTILES)
        return WeightShift(nan, nan, (nan, nan), (nan, nan), (none, none), len(samples[0]))
    for sample in samples:
        sample.sort()
    one, other = samples
    moments = [_moments(sample) for sample in samples]
    return WeightShift(
        wasserstein=_wasserstein(one, other),
        ks=float(largest_gap(one, other)),
        kurtosis=(moments[0][1], moments[1][1]),
        sd=(moments[0][0], moments[1][0]),
        quantiles=(_quantiles(one), _quantiles(other)),
        n=len(one),
    )


def norm_shift(before: np.ndarray, after: np.ndarray) -> WeightShift:
    """Compare the norms of all rows, [n], [m]; nothing is sorted in place."""
    return weight_shift(np.array(before, np.float64), np.array(after, np.float64))


def _moments(sample: np.ndarray) -> tuple[float, float]:
    """Standard deviation and excess kurtosis."""
    if sample[0] == sample[-1]:
        return 0.0, float("nan")
    values = sample - np.mean(sample, dtype=np.float64).astype(sample.dtype)
    scale = float(np.abs(values[[0, -1]]).max())
    values /= scale  # so that no fourth power leaves the range of float32
    values *= values
    second = float(np.mean(values, dtype=np.float64))
    values *= values
    fourth = float(np.mean(values, dtype=np.float64))
    return scale * second**0.5, fourth / second**2 - 3


def _quantiles(ordered: np.ndarray) -> tuple[float, ...]:
    places = np.array(QUANTILES) * (len(ordered) - 1)
    low = places.astype(int)
    part = places - low
    high = np.minimum(low + 1, len(ordered) - 1)
    found = ordered[low].astype(np.float64) * (1 - part) + ordered[high] * part
    return tuple(found.tolist())


def _wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """Of sorted samples."""
    if len(one) == len(other):
        return float(np.mean(np.abs(other - one), dtype=np.float64))
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(one, other))
