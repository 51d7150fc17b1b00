"""How finely each neuron's weights are stored: their exponents counted, compiled.

A 16-bit weight moves in steps that grow with its exponent. How many weights of a neuron have which
exponent is all it takes to know what its dtype lets through of a small change.
"""

from __future__ import annotations

import warnings
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

CHUNK = 128
"""Neurons counted at a time: their counts fit the cache."""
FIELDS: dict[torch.dtype, tuple[int, int, int]] = {
    torch.bfloat16: (7, 0xFF, 127),
    torch.float16: (10, 0x1F, 15),
}
"""Bits of the fraction, mask of the exponent, and its bias, of the dtypes that are coarse."""
_OPTIONS: dict[str, Any] = {"parallel": True, "cache": True, "nogil": True}


@numba.njit(**_OPTIONS)
def _count(bits: np.ndarray, shift: int, mask: int, rows: bool, out: np.ndarray) -> None:
    neurons = out.shape[0]
    n = bits.shape[1] if rows else bits.shape[0]
    for chunk in numba.prange((neurons + CHUNK - 1) // CHUNK):
        first = chunk * CHUNK
        last = min(neurons, first + CHUNK)
        if rows:
            for i in range(first, last):
                for j in range(n):
                    out[i, (bits[i, j] >> shift) & mask] += 1
        else:
            # Neighbours mostly share their exponent: side by side they share lines of the cache.
            some = np.zeros((mask + 1, last - first), np.int32)
            for j in range(n):
                for i in range(last - first):
                    some[(bits[j, first + i] >> shift) & mask, i] += 1
            out[first:last] = some.T


def steps_held(before: Tensor, after: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Of two matrices of one shape, as they are stored: the distances as in `steps_of`, how many
    weights of the first have which, and how many of these are the same in the second.

    Returns:
        None where either is of a dtype that is not in `FIELDS`, or the two differ in it.
    """
    if before.dtype not in FIELDS or after.dtype != before.dtype:
        return None
    shift, mask, bias = FIELDS[before.dtype]
    one, other = (
        side.detach().contiguous().view(torch.uint16).cpu().numpy().ravel()
        for side in (before, after)
    )
    exponent = ((one >> shift) & mask).astype(np.int64)
    counts = np.bincount(exponent, minlength=mask + 1)
    held = np.bincount(exponent[one == other], minlength=mask + 1)
    there = np.flatnonzero(counts)
    return np.ldexp(1.0, np.maximum(there, 1) - bias - shift), counts[there], held[there]


def steps_of(matrix: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Between which neighbours the weights of every neuron stand.

    Args:
        matrix: two-dimensional, as it is stored.
        axis: the axis that counts neurons.

    Returns:
        The distances there are, between a stored number and the next [steps], and how many weights
        of each neuron have which, int32 [neurons, steps]. None of a dtype that is not in `FIELDS`.
    """
    if matrix.dtype not in FIELDS:
        return None
    shift, mask, bias = FIELDS[matrix.dtype]
    matrix = matrix.detach()
    if matrix.stride(1) != 1 and matrix.stride(0) == 1:
        matrix, axis = matrix.T, 1 - axis
    bits = matrix.contiguous().view(torch.uint16).cpu().numpy()
    counts = np.zeros((bits.shape[axis], mask + 1), np.int32)
    with warnings.catch_warnings():
        # numba speaks of the threading layer it finds; any will do.
        warnings.simplefilter("ignore")
        _count(bits, shift, mask, axis == 0, counts)
    there = np.flatnonzero(counts.any(0))
    # Numbers below the smallest normal one have its distances.
    return np.ldexp(1.0, np.maximum(there, 1) - bias - shift), counts[:, there]
