"""Of two weight matrices of one shape: the sums of each, and how far apart they are, compiled.

The sums of each matrix alone are those of `kernels`; the two more take both. A thread makes all
twelve of a few rows while these are in its cache, so memory is read once. As there, arithmetic is
float32 in at least 64 separate partial sums, which are added up in float64, and bfloat16 arrives as
uint16.

Subtraction and multiplication round alike whichever operand comes first, so exchanging the matrices
changes no bit; equal matrices are exactly 0 apart.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from .kernels import COLUMNS, INNER, LANES, OPTIONS, ROWS, sum_columns, sum_row, widen


@numba.njit(**INNER)
def _compare_row(before: Any, after: Any, row: Any, squares: Any, dot: Any, out: Any) -> None:
    n = before.shape[1]
    for lane in range(LANES):
        squares[lane], dot[lane] = 0, 0
    at = 0
    # Two values a lane and step: half the loads and stores of the partial sums.
    while at + 2 * LANES <= n:
        for lane in range(LANES):
            a, b = widen(before[row, at + lane]), widen(after[row, at + lane])
            c = widen(before[row, at + LANES + lane])
            d = widen(after[row, at + LANES + lane])
            squares[lane] += (a - b) * (a - b) + (c - d) * (c - d)
            dot[lane] += a * b + c * d
        at += 2 * LANES
    while at < n:
        for lane in range(min(LANES, n - at)):
            a, b = widen(before[row, at + lane]), widen(after[row, at + lane])
            squares[lane] += (a - b) * (a - b)
            dot[lane] += a * b
        at += LANES
    sum_squares, sum_dot = 0.0, 0.0
    for lane in range(LANES):
        sum_squares += squares[lane]
        sum_dot += dot[lane]
    out[0, row], out[1, row] = sum_squares, sum_dot


@numba.njit(**OPTIONS)
def compare_rows(
    before: np.ndarray,
    after: np.ndarray,
    of_before: np.ndarray,
    of_after: np.ndarray,
    between: np.ndarray,
) -> None:
    """Of every row of two [neurons, n]: the five sums of each into float64 [5, neurons], and the
    sums of squared differences and of products into float64 `between` [2, neurons]."""
    neurons = before.shape[0]
    for group in numba.prange((neurons + ROWS - 1) // ROWS):
        low, high = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        total, absolute = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
        squares = np.empty(LANES, np.float32)
        for row in range(group * ROWS, min(neurons, group * ROWS + ROWS)):
            sum_row(before, row, low, high, total, absolute, squares, of_before)
            sum_row(after, row, low, high, total, absolute, squares, of_after)
            _compare_row(before, after, row, squares, total, between)


@numba.njit(**INNER)
def _compare_columns(
    before: Any, after: Any, begin: Any, first: Any, last: Any, squares: Any, dot: Any, out: Any
) -> None:
    size, end = last - first, min(before.shape[0], begin + LANES)
    if begin == 0:
        for j in range(size):
            out[0, first + j], out[1, first + j] = 0, 0
    for j in range(size):
        squares[j], dot[j] = 0, 0
    row = begin
    while row + 2 <= end:
        # Views of one row each: indexed by two numbers, the loop took four times as long.
        row_a, row_c = before[row, first:last], before[row + 1, first:last]
        row_b, row_d = after[row, first:last], after[row + 1, first:last]
        for j in range(size):
            a, b, c, d = widen(row_a[j]), widen(row_b[j]), widen(row_c[j]), widen(row_d[j])
            squares[j] += (a - b) * (a - b) + (c - d) * (c - d)
            dot[j] += a * b + c * d
        row += 2
    while row < end:
        row_a, row_b = before[row, first:last], after[row, first:last]
        for j in range(size):
            a, b = widen(row_a[j]), widen(row_b[j])
            squares[j] += (a - b) * (a - b)
            dot[j] += a * b
        row += 1
    for j in range(size):
        out[0, first + j] += squares[j]
        out[1, first + j] += dot[j]


@numba.njit(**OPTIONS)
def compare_columns(
    before: np.ndarray,
    after: np.ndarray,
    of_before: np.ndarray,
    of_after: np.ndarray,
    between: np.ndarray,
) -> None:
    """As `compare_rows`, of every column of two [n, neurons]."""
    n, neurons = before.shape
    for chunk in numba.prange((neurons + COLUMNS - 1) // COLUMNS):
        first = chunk * COLUMNS
        last = min(neurons, first + COLUMNS)
        low, high = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
        total, absolute = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.float32)
        squares = np.empty(COLUMNS, np.float32)
        for begin in range(0, n, LANES):
            sum_columns(before, begin, first, last, low, high, total, absolute, squares, of_before)
            sum_columns(after, begin, first, last, low, high, total, absolute, squares, of_after)
            _compare_columns(before, after, begin, first, last, squares, total, between)


@numba.njit(cache=True, nogil=True)
def largest_gap(one: np.ndarray, other: np.ndarray) -> float:
    """Largest distance of the two samples' distribution functions (the Kolmogorov-Smirnov
    statistic); both sorted, without NaN."""
    i, j, gap = 0, 0, 0.0
    while i < len(one) and j < len(other):
        least = min(one[i], other[j])
        while i < len(one) and one[i] == least:
            i += 1
        while j < len(other) and other[j] == least:
            j += 1
        gap = max(gap, abs(i / len(one) - j / len(other)))
    return gap
