"""Sorting neurons by a column, fast for millions of them.

Values become unsigned integers of the same order, and each is packed with its row into 64 bits,
which numpy sorts several times faster than it argsorts: the sorted low halves are the rows. Wider
values are sorted by their lower half first, then by their upper.
"""

from __future__ import annotations

import numpy as np


def ascending(values: np.ndarray, *, descending: bool = False) -> np.ndarray:
    """Rows in the order of their values, int32 [n].

    Ties go by row, ascending, and NaN comes last, in both directions; infinities are numbers.

    Args:
        values: floats or integers [n].
        descending: the largest first.
    """
    keys = _keys(values, descending)
    if keys.itemsize == 4:
        return _by_word(keys)
    rows = _by_word((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    keys >>= np.uint64(32)
    return rows[_by_word(keys.astype(np.uint32)[rows])]


def tenths(values: np.ndarray) -> np.ndarray:
    """The tenth of each value in their order, 0 (lowest) to 9, int64 [n]; ties go by place, NaN to
    the highest."""
    place = np.empty(len(values), np.int64)
    place[ascending(values)] = np.arange(len(values))
    return place * 10 // max(len(values), 1)


def _by_word(keys: np.ndarray) -> np.ndarray:
    """Stable order of uint32 keys."""
    packed = keys.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(keys), dtype=np.uint32)
    packed.sort()
    return packed.astype(np.uint32).view(np.int32)  # the low halves


def _keys(values: np.ndarray, descending: bool) -> np.ndarray:
    """Unsigned integers of 32 or 64 bits in the wanted order."""
    wide = values.itemsize > 4
    word, sign = (np.uint64, np.uint64(1 << 63)) if wide else (np.uint32, np.uint32(1 << 31))
    if values.dtype.kind != "f":
        kind = "u" if values.dtype.kind == "u" else "i"
        keys = values.astype(f"{kind}{8 if wide else 4}").view(word)
        if kind == "i":
            keys ^= sign
        return np.invert(keys, out=keys) if descending else keys
    floats = values.astype(np.float64 if wide else np.float32)
    floats += 0  # -0 is 0
    missing = np.isnan(floats)
    keys = floats.view(word)
    # Of negative floats larger bits mean smaller values: all bits turn, of others the sign alone.
    keys ^= np.where(keys >> word(8 * keys.itemsize - 1), ~word(0), sign)
    if descending:
        np.invert(keys, out=keys)
    keys[missing] = ~word(0)
    return keys
