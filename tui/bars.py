"""Small drawings made of text: histograms, bars, and intervals on a common scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .glyphs import EIGHTHS, LENGTHS


def histogram(counts: Sequence[float] | np.ndarray, height: int = 1) -> list[str]:
    """Columns side by side, a cell wide each, the highest of them `height` lines tall.

    A count above zero is always to be seen, if only as an eighth of a line. What is negative or
    not finite counts as zero.

    Args:
        counts: by bin.
        height: lines.

    Returns:
        Lines from the top down, each as long as there are bins.
    """
    given = np.asarray(counts, np.float64)
    there = np.where(np.isfinite(given) & (given > 0), given, 0.0)
    most = there.max(initial=0.0)
    # Divided first: counts near the largest float would overflow in the product.
    eighths = np.ceil(there / most * 8 * height - 1e-9) if most else there
    eighths = np.maximum(eighths, there > 0)
    glyphs = np.array([*EIGHTHS])
    return [
        "".join(glyphs[np.clip(eighths - 8 * line, 0, 8).astype(np.int64)])
        for line in reversed(range(height))
    ]


def rebinned(counts: Sequence[float] | np.ndarray, bins: int) -> np.ndarray:
    """A histogram in fewer bins; counts that straddle an edge are shared out.

    Returns:
        float64 [at most bins], with the same sum.
    """
    given = np.asarray(counts, np.float64)
    bins = min(bins, len(given))
    if bins < 1:
        return np.zeros(0)
    summed = np.concatenate([[0.0], np.cumsum(given)])
    edges = np.linspace(0, len(given), bins + 1)
    return np.diff(np.interp(edges, np.arange(len(given) + 1), summed))


def bar(share: float, width: int) -> str:
    """A bar from the left, `width` cells at share 1, in steps of an eighth of a cell."""
    if math.isnan(share):
        return "?".ljust(width)[:width]
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    return (LENGTHS[8] * full + (LENGTHS[rest] if rest else "")).ljust(width)


def interval(low: float, value: float, high: float, scale: tuple[float, float], width: int) -> str:
    """An estimate with its interval on a scale, zero marked: `  ┊ ├──●───┤ `.

    What lies off the scale is drawn as an arrow at its end; without a finite value the scale is
    empty but for zero. A bound that is not finite reaches to the end of the scale.

    Args:
        low, value, high: the interval and the estimate in it.
        scale: values at the first and the last cell.
        width: cells.
    """
    first, last = scale
    line = [" "] * width
    if width < 1 or not (math.isfinite(last - first) and last > first):
        return "".join(line)

    def place(x: float) -> int:
        share = min(max((x - first) / (last - first), -1.0), 2.0)
        return math.floor(share * (width - 1) + 0.5)

    if first <= 0 <= last:
        line[place(0.0)] = "┊"
    if not math.isfinite(value):
        return "".join(line)
    left = place(low) if math.isfinite(low) else -1
    right = place(high) if math.isfinite(high) else width
    for at in range(max(left, 0), min(right, width - 1) + 1):
        line[at] = "─"
    for at, end in ((left, "├"), (right, "┤")):
        if 0 <= at < width:
            line[at] = end
    if left < 0:
        line[0] = "◂"
    if right >= width:
        line[-1] = "▸"
    at = place(value)
    if 0 <= at < width:
        line[at] = "●"
    return "".join(line)


def shared_scale(*series: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """A scale that holds every finite value and zero, with some air; (-1, 1) if there is none."""
    finite = [v for values in series for v in np.asarray(values, np.float64).ravel().tolist()
              if math.isfinite(v)]  # fmt: skip
    low, high = min([0.0, *finite]), max([0.0, *finite])
    if low == high:
        return -1.0, 1.0
    air = (high - low) * 0.05
    return (low - air if low else low), (high + air if high else high)
