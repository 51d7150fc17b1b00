"""How the numbers of a column are written: one number of decimals, so that they compare downwards.

The decimals come from a sample of the column, the width from its extremes: every cell fits, and
nothing is formatted to find that out but those two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MISSING = "-"
DIGITS = 4
"""Significant digits of a large, but not extreme, value of the column."""
DECIMALS = 6
"""At most."""
WIDEST = 13
"""Cells; a column that would need more is written with exponents."""
_SAMPLE = 4096
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Format:
    """How a column's values are written.

    Attributes:
        spec: of Python's `format`.
        width: cells that the widest finite value takes, also enough for `-inf` and a missing one.
    """

    spec: str
    width: int

    def __call__(self, value: float) -> str:
        """The value as text, at most `width` long for values of the column; NaN is `-`."""
        return MISSING if value != value else format(value, self.spec)

    def cell(self, value: float) -> str:
        """The value at the right of exactly `width` cells."""
        return self(value).rjust(self.width)


def format_of(values: np.ndarray) -> Format:
    """The format of a column.

    Args:
        values: numbers, [n]; any may be NaN or infinite.
    """
    low, high = extremes(values)
    if values.dtype.kind != "f":
        return _fitting(",d", int(low), int(high))
    typical = _typical(values)
    if not typical:
        return _fitting("z,.1f", low, high)
    decimals = DIGITS - 1 - math.floor(math.log10(typical))
    if decimals <= DECIMALS + DIGITS - 2:  # else nothing but noughts would be left of most values
        decimals = min(max(decimals, 0), DECIMALS)
        for fewer in range(decimals, max(decimals - 2, 0) - 1, -1):
            fixed = _fitting(f"z,.{fewer}f", low, high)
            if fixed.width <= WIDEST:
                return fixed
    # The width is not that of the extremes: 1e-300 is wider than 1.
    return _fitting(f"z.{DIGITS - 1}e", -1e-300 if low < 0 else 1e-300, high)


def _fitting(spec: str, low: float, high: float) -> Format:
    return Format(spec, max(len(format(low, spec)), len(format(high, spec)), len("-inf")))


def extremes(values: np.ndarray) -> tuple[float, float]:
    """The least and the largest finite value, both 0 where there is none."""
    if not values.size:
        return 0, 0
    low, high = np.fmin.reduce(values).item(), np.fmax.reduce(values).item()
    if math.isfinite(low) and math.isfinite(high):
        return low, high
    # Rare, and in blocks: a mask and a copy of two million values are not worth having at once.
    found = []
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        finite = block[np.isfinite(block)]
        if finite.size:
            found += [finite.min().item(), finite.max().item()]
    return (min(found), max(found)) if found else (0.0, 0.0)


def _typical(values: np.ndarray) -> float:
    """The ninth tenth of the absolute values other than 0, from a sample; 0 if there is none."""
    sample = np.abs(values[:: max(1, len(values) // _SAMPLE)].astype(np.float64))
    sample = sample[np.isfinite(sample) & (sample > 0)]
    return float(np.quantile(sample, 0.9)) if sample.size else 0.0
