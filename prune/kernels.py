"""Five sums of a weight matrix in one reading of it, and its histograms in another, compiled.

The sums, per neuron: minimum, maximum, sum, sum of absolute values, sum of squares. torch would
read the matrix once for each and write temporaries; here memory is read once, whatever is computed,
and the five accumulators stay in the first-level cache. Arithmetic is float32 in at least 64
separate partial sums, which are added up in float64.

bfloat16 arrives as uint16, since numpy has no such type, and is widened in a register: it is the
upper half of a float32. Comparisons pass over NaN; the sum of squares does not, and shows it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LANES = 64
"""Partial sums a row is spread over; also what fits the cache with room to spare."""
COLUMNS = 256
"""Columns that a thread takes at a time."""
ROWS = 16
"""Rows that a thread takes at a time."""


def _widened(typing_context: Any, value: Any) -> Any:
    """A float32 as it is; a uint16 as the bfloat16 whose bits it holds."""
    if isinstance(value, types.Integer):

        def bits(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            wide = builder.zext(arguments[0], ir.IntType(32))
            wide = builder.shl(wide, ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(wide, ir.FloatType())

        return types.float32(types.uint16), bits

    def same(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0]

    return value(value), same


widen: Any = intrinsic(_widened)

OPTIONS: dict[str, Any] = {
    "parallel": True,
    "cache": True,
    "nogil": True,
    # Fused multiply-add and no care for the sign of zero. Not `fast`: that would assume that no
    # NaN occurs, and finding those is part of the work.
    "fastmath": {"nsz", "contract"},
}


@numba.njit(nogil=True, fastmath={"nsz"})
def _least(new: Any, old: Any) -> Any:
    """The smaller; the old one where the new is NaN."""
    return new if new < old else old


@numba.njit(nogil=True, fastmath={"nsz"})
def _most(new: Any, old: Any) -> Any:
    """The larger; the old one where the new is NaN."""
    return new if new > old else old


INNER: dict[str, Any] = {"inline": "always", "nogil": True, "fastmath": OPTIONS["fastmath"]}
"""Of what one thread does within a kernel. Inlined, since only there does the compiler see that the
partial sums lie apart from each other, without which it computes them one by one."""


@numba.njit(**INNER)
def sum_row(
    matrix: Any, row: Any, low: Any, high: Any, total: Any, absolute: Any, squares: Any, out: Any
) -> None:
    """The five of one row; what is between `row` and `out` are float32 [LANES] to work in."""
    n = matrix.shape[1]
    for lane in range(LANES):
        low[lane], high[lane] = np.inf, -np.inf
        total[lane], absolute[lane], squares[lane] = 0, 0, 0
    at = 0
    # Four values a lane and step, so that the accumulators are loaded a quarter as often.
    while at + 4 * LANES <= n:
        for lane in range(LANES):
            a = widen(matrix[row, at + lane])
            b = widen(matrix[row, at + LANES + lane])
            c = widen(matrix[row, at + 2 * LANES + lane])
            d = widen(matrix[row, at + 3 * LANES + lane])
            low[lane] = _least(_least(_least(a, b), _least(c, d)), low[lane])
            high[lane] = _most(_most(_most(a, b), _most(c, d)), high[lane])
            total[lane] += (a + b) + (c + d)
            absolute[lane] += (abs(a) + abs(b)) + (abs(c) + abs(d))
            squares[lane] += (a * a + b * b) + (c * c + d * d)
        at += 4 * LANES
    while at < n:
        for lane in range(min(LANES, n - at)):
            a = widen(matrix[row, at + lane])
            low[lane] = _least(a, low[lane])
            high[lane] = _most(a, high[lane])
            total[lane] += a
            absolute[lane] += abs(a)
            squares[lane] += a * a
        at += LANES
    least, most = np.float32(np.inf), np.float32(-np.inf)
    sum_, sum_absolute, sum_squares = 0.0, 0.0, 0.0
    for lane in range(LANES):
        least, most = _least(low[lane], least), _most(high[lane], most)
        sum_ += total[lane]
        sum_absolute += absolute[lane]
        sum_squares += squares[lane]
    out[0, row], out[1, row] = least, most
    out[2, row], out[3, row], out[4, row] = sum_, sum_absolute, sum_squares


@numba.njit(**OPTIONS)
def row_sums(matrix: np.ndarray, out: np.ndarray) -> None:
    """The five, of every row of [neurons, n], into float64 `out` [5, neurons]."""
    neurons = matrix.shape[0]
    for group in numba.prange((neurons + ROWS - 1) // ROWS):
        low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        total, absolute = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        squares = np.empty(LANES, np.float32)
        for row in range(group * ROWS, min(neurons, group * ROWS + ROWS)):
            sum_row(matrix, row, low, high, total, absolute, squares, out)


@numba.njit(**INNER)
def sum_columns(
    matrix: Any,
    begin: Any,
    first: Any,
    last: Any,
    low: Any,
    high: Any,
    total: Any,
    absolute: Any,
    squares: Any,
    out: Any,
) -> None:
    """Add the five of columns `first` to `last` to `out`, of `LANES` rows from `begin` on (0: `out`
    starts anew); what is between `last` and `out` are float32 [COLUMNS] to work in."""
    size, end = last - first, min(matrix.shape[0], begin + LANES)
    if begin == 0:
        for j in range(size):
            out[0, first + j], out[1, first + j] = np.inf, -np.inf
            out[2, first + j], out[3, first + j], out[4, first + j] = 0, 0, 0
    for j in range(size):
        low[j], high[j] = np.inf, -np.inf
        total[j], absolute[j], squares[j] = 0, 0, 0
    row = begin
    while row + 4 <= end:
        # Views of one row each: indexed by two numbers, the loop took three times as long.
        row_a, row_b = matrix[row, first:last], matrix[row + 1, first:last]
        row_c, row_d = matrix[row + 2, first:last], matrix[row + 3, first:last]
        for j in range(size):
            a, b = widen(row_a[j]), widen(row_b[j])
            c, d = widen(row_c[j]), widen(row_d[j])
            low[j] = _least(_least(_least(a, b), _least(c, d)), low[j])
            high[j] = _most(_most(_most(a, b), _most(c, d)), high[j])
            total[j] += (a + b) + (c + d)
            absolute[j] += (abs(a) + abs(b)) + (abs(c) + abs(d))
            squares[j] += (a * a + b * b) + (c * c + d * d)
        row += 4
    while row < end:
        row_a = matrix[row, first:last]
        for j in range(size):
            a = widen(row_a[j])
            low[j] = _least(a, low[j])
            high[j] = _most(a, high[j])
            total[j] += a
            absolute[j] += abs(a)
            squares[j] += a * a
        row += 1
    for j in range(size):
        out[0, first + j] = min(out[0, first + j], low[j])
        out[1, first + j] = max(out[1, first + j], high[j])
        out[2, first + j] += total[j]
        out[3, first + j] += absolute[j]
        out[4, first + j] += squares[j]


@numba.njit(**OPTIONS)
def column_sums(matrix: np.ndarray, out: np.ndarray) -> None:
    """The five, of every column of [n, neurons], into float64 `out` [5, neurons]."""
    n, neurons = matrix.shape
    for chunk in numba.prange((neurons + COLUMNS - 1) // COLUMNS):
        first = chunk * COLUMNS
        last = min(neurons, first + COLUMNS)
        low, high = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
        total, absolute = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
        squares = np.empty(COLUMNS, np.float32)
        for begin in range(0, n, LANES):
            sum_columns(matrix, begin, first, last, low, high, total, absolute, squares, out)


_EXACT: dict[str, Any] = {"parallel": True, "cache": True, "nogil": True}
"""Without fused multiply-add, so that an edge lies where float32 arithmetic puts it anywhere."""


@numba.njit(nogil=True)
def _slot(x: Any, steps: Any, bins: Any) -> Any:
    """The bin of a weight: `steps` a unit, 0 in the middle, the outermost open. NaN: one beyond."""
    place = x * steps + np.float32(bins // 2)
    place = min(max(place, np.float32(0)), np.float32(bins - 1))
    return np.int32(place) if x == x else np.int32(bins)


@numba.njit(**_EXACT)
def row_bins(matrix: np.ndarray, steps: np.float32, out: np.ndarray) -> None:
    """Count the weights of every row of [neurons, n] in uint16 `out` [neurons, bins], which is 0;
    a bin is 1 / `steps` wide."""
    neurons, n = matrix.shape
    bins = out.shape[1]
    for group in numba.prange((neurons + ROWS - 1) // ROWS):
        slots = np.empty(4 * LANES, np.int32)
        # Four tallies in turn: a count need not wait for the one before it to be stored.
        tallies = np.empty((4, bins + 1), np.int32)
        for row in range(group * ROWS, min(neurons, group * ROWS + ROWS)):
            tallies[:] = 0
            for begin in range(0, n, 4 * LANES):
                size = min(4 * LANES, n - begin)
                for lane in range(size):
                    slots[lane] = _slot(widen(matrix[row, begin + lane]), steps, bins)
                for lane in range(size):
                    tallies[lane & 3, slots[lane]] += 1
            for b in range(bins):
                count = tallies[0, b] + tallies[1, b] + tallies[2, b] + tallies[3, b]
                out[row, b] = min(count, 65535)


@numba.njit(**_EXACT)
def column_bins(matrix: np.ndarray, steps: np.float32, out: np.ndarray) -> None:
    """As `row_bins`, of every column of [n, neurons]."""
    n, neurons = matrix.shape
    bins = out.shape[1]
    for chunk in numba.prange((neurons + LANES - 1) // LANES):
        first = chunk * LANES
        size = min(neurons - first, LANES)
        slots = np.empty(LANES, np.int32)
        tallies = np.zeros((LANES, bins + 1), np.int32)
        for row in range(n):
            for j in range(size):
                slots[j] = _slot(widen(matrix[row, first + j]), steps, bins)
            for j in range(size):
                tallies[j, slots[j]] += 1
        for j in range(size):
            for b in range(bins):
                out[first + j, b] = min(tallies[j, b], 65535)
