"""The functions of the filter language, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .columns import Columns
from .ordering import tenths

Value = np.ndarray | float
"""One number a neuron, [n], or one for all."""


def quantile(values: np.ndarray, percent: float) -> float:
    """The percentile of values [n] that are not NaN, linear between neighbours; NaN of none."""
    missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(1, bool)
    there = values[~missing] if missing.any() else values
    if not len(there) or not 0 <= percent <= 100:
        return float("nan")
    place = percent / 100 * (len(there) - 1)
    low = int(place)
    parted = np.partition(there, low)
    # The next one is the least of those above: several times faster than to part at both.
    above = parted[low + 1 :]
    a, share = float(parted[low]), place - low
    b = float(above.min()) if len(above) else a
    return a if share == 0 or a == b else a * (1 - share) + b * share


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values [n] from 0 (lowest) to 1 (highest); ties share their mean, NaN has none, a
    lone value is in the middle."""
    found = np.full(len(values), np.nan, np.float32)
    order = np.argsort(values)  # NaN last
    ranked = values[order]
    count = len(values) - int(np.count_nonzero(np.isnan(values)))
    if not count:
        return found
    ranked, order = ranked[:count], order[:count]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    sizes = np.diff(np.append(starts, count))
    middle = starts + (sizes - 1) / 2
    found[order] = np.repeat(middle / (count - 1) if count > 1 else middle + 0.5, sizes)
    return found


def _whole(columns: Columns, value: Value) -> np.ndarray:
    if isinstance(value, np.ndarray) and value.ndim:
        return value
    return np.broadcast_to(np.float64(value), columns.n)


def _by_layer(columns: Columns, value: Value, number: Callable[[np.ndarray], float]) -> np.ndarray:
    """One number a layer, given to each of its neurons."""
    values = _whole(columns, value)
    found = np.empty(columns.n, values.dtype if values.dtype.kind == "f" else np.float64)
    for layer in columns.layers:
        rows = columns.rows_of(layer)
        found[rows] = number(values[rows])
    return found


def _pct(columns: Columns, value: Value, percent: float) -> Value:
    return quantile(_whole(columns, value), percent)


def _lpct(columns: Columns, value: Value, percent: float) -> Value:
    return _by_layer(columns, value, lambda some: quantile(some, percent))


def _rank(columns: Columns, value: Value) -> Value:
    values = _whole(columns, value)
    found = np.empty(columns.n, np.float32)
    for layer in columns.layers:
        rows = columns.rows_of(layer)
        found[rows] = mean_ranks(values[rows])
    return found


def _tenth(columns: Columns, value: Value) -> Value:
    values = _whole(columns, value)
    found = np.empty(columns.n, np.float32)
    for layer in columns.layers:
        rows = columns.rows_of(layer)
        some = np.ascontiguousarray(values[rows])
        found[rows] = np.where(np.isnan(some), np.nan, tenths(some) + 1)
    return found


def _z(columns: Columns, value: Value) -> Value:
    values = _whole(columns, value)
    found = np.empty(columns.n, np.float32)
    for layer in columns.layers:
        rows = columns.rows_of(layer)
        some = values[rows].astype(np.float64)
        there = some[np.isfinite(some)]
        spread = there.std() if len(there) else 0.0
        found[rows] = (some - there.mean()) / spread if spread > 0 else np.nan
    return found


@dataclass(frozen=True)
class Function:
    """A function of the language."""

    signature: str
    about: str
    apply: Callable[..., Value]
    """Takes the columns, then the arguments' values."""
    least: int = 1
    """Arguments, at least."""
    most: int | None = 1
    """And at most; None: any number."""
    constant: bool = False
    """Whether the last argument must be one number."""


FUNCTIONS: dict[str, Function] = {
    "abs": Function("abs(x)", "magnitude", lambda _, x: np.abs(x)),
    "log": Function("log(x)", "natural logarithm", lambda _, x: np.log(x)),
    "log10": Function("log10(x)", "decimal logarithm", lambda _, x: np.log10(x)),
    "sqrt": Function("sqrt(x)", "square root", lambda _, x: np.sqrt(x)),
    "min": Function("min(x, y, ...)", "the smallest; NaN if one is",
                    lambda _, *some: _fold(np.minimum, some), 2, None),
    "max": Function("max(x, y, ...)", "the largest; NaN if one is",
                    lambda _, *some: _fold(np.maximum, some), 2, None),
    "pct": Function("pct(x, p)", "p-th percentile over the model", _pct, 2, 2, True),
    "lpct": Function("lpct(x, p)", "p-th percentile within the neuron's layer", _lpct, 2, 2, True),
    "rank": Function("rank(x)", "rank within the layer, 0 lowest to 1 highest", _rank),
    "tenth": Function("tenth(x)", "tenth within the layer, 1 lowest to 10 highest", _tenth),
    "z": Function("z(x)", "standard deviations from the layer's mean", _z),
}  # fmt: skip
"""What may be called, by name. `isnan(x)`, which gives a condition, is part of the grammar."""


def _fold(operation: Callable[[Value, Value], Value], some: tuple[Value, ...]) -> Value:
    found = some[0]
    for value in some[1:]:
        found = operation(found, value)
    return found
