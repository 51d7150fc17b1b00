"""Per neuron the tokens that drive it most either way, and some drawn across its range.

Activations of a gated unit have either sign, so both ends are kept. Every token-in-context counts
once, however many texts begin with it. `glulens.tables` says how the tables lie on disk, and reads
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np

from ..tables import ENTRY, SIDES

_OPTIONS: dict[str, Any] = {"parallel": True, "cache": True, "nogil": True}
_BLOCK = 64
_AT_ONCE = 2048
"""Neurons whose samples are ranked together: they stay in the cache."""


@numba.njit(**_OPTIONS)
def _merge(rows, sign, places, texts, positions, values, owners, where):
    """Insert rows into sorted tables [neurons, k]; equal values stand by text, then position."""
    neurons = rows.shape[1]
    k = values.shape[1]
    for block in numba.prange((neurons + _BLOCK - 1) // _BLOCK):
        first = block * _BLOCK
        last = min(first + _BLOCK, neurons)
        # Side by side, since nearly every value is turned away here.
        bar = values[first:last, k - 1].copy()
        for n in range(len(places)):
            row, text, position = places[n], texts[n], positions[n]
            line = rows[row, first:last]
            knocking = np.int32(0)
            for j in range(last - first):
                knocking += np.int32(1) if sign * line[j] >= bar[j] else np.int32(0)
            if knocking == 0:
                continue
            for j in range(first, last):
                x = sign * rows[row, j]
                worst = bar[j - first]
                if x < worst:
                    continue
                if x == worst and (owners[j, k - 1], where[j, k - 1]) <= (text, position):
                    continue
                at = k - 1
                while at > 0 and (
                    x > values[j, at - 1]
                    or (
                        x == values[j, at - 1]
                        and (text, position) < (owners[j, at - 1], where[j, at - 1])
                    )
                ):
                    values[j, at] = values[j, at - 1]
                    owners[j, at] = owners[j, at - 1]
                    where[j, at] = where[j, at - 1]
                    at -= 1
                values[j, at] = x
                owners[j, at] = text
                where[j, at] = position
                bar[j - first] = values[j, k - 1]


class Examples:
    """Gathers both ends; give each token once.

    Args:
        widths: neurons, by MLP.
        k: how many to keep at either end.
    """

    def __init__(self, widths: Sequence[int], k: int = 10) -> None:
        self._edges = np.concatenate([[0], np.cumsum(widths)])
        shape = int(self._edges[-1]), k
        self._tables = {
            side: (
                np.full(shape, -np.inf, np.float32),
                np.full(shape, -1, np.int32),
                np.full(shape, -1, np.int32),
            )
            for side in SIDES[:2]
        }

    def update(
        self,
        mlp: int,
        rows: np.ndarray,
        places: np.ndarray,
        texts: np.ndarray,
        positions: np.ndarray,
    ) -> None:
        """Take in float32 rows [n, neurons] at `places`, tokens `positions` of `texts`."""
        if not len(places):
            return
        part = slice(self._edges[mlp], self._edges[mlp + 1])
        at = places.astype(np.int64), texts.astype(np.int32), positions.astype(np.int32)
        for side, sign in (("high", np.float32(1)), ("low", np.float32(-1))):
            _merge(rows, sign, *at, *(table[part] for table in self._tables[side]))

    def result(self) -> dict[str, np.ndarray]:
        """`high` and `low`, each `ENTRY` [neurons, k], the strongest first."""
        found = {}
        for side, (values, texts, positions) in self._tables.items():
            table = np.zeros(values.shape, ENTRY)
            table["value"] = np.where(texts < 0, np.nan, values if side == "high" else -values)
            table["text"], table["position"] = texts, positions
            found[side] = table
        return found

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on later."""
        return {
            f"{side}.{part}": table
            for side, tables in self._tables.items()
            for part, table in zip(ENTRY.names or (), tables, strict=True)
        }

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self._tables = {
            side: tuple(state[f"{side}.{part}"].copy() for part in ENTRY.names or ())  # pyright: ignore
            for side in SIDES[:2]
        }


def spread(
    samples: np.ndarray, texts: np.ndarray, positions: np.ndarray, k: int, seed: int = 0
) -> np.ndarray:
    """One example from each of k equal stretches of every neuron's range.

    Args:
        samples: activations of tokens drawn at random, float32 [tokens, neurons]; NaN where a
            token did not pass the neuron.
        texts, positions: whose tokens, [tokens].
        k: stretches, by rank: the lowest k-th of the tokens, the next, and so on.
        seed: of the draw within a stretch.

    Returns:
        `ENTRY` [neurons, k], the highest first.
    """
    neurons = samples.shape[1]
    draw = np.random.default_rng(seed).random((k, neurons))
    table = np.zeros((neurons, k), ENTRY)
    for first in range(0, neurons, _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        values = np.ascontiguousarray(samples[:, part].T)
        seen = np.isfinite(values).sum(1, keepdims=True)
        rank = ((np.arange(k)[:, None] + draw[:, part]) * seen.T / k).astype(int).T[:, ::-1]
        chosen = np.take_along_axis(_ranked(values), np.minimum(rank, np.maximum(seen - 1, 0)), 1)
        table["value"][part] = np.take_along_axis(values, chosen, 1)
        table["text"][part] = np.where(seen > 0, texts[chosen], -1)
        table["position"][part] = np.where(seen > 0, positions[chosen], -1)
    return table


def _ranked(values: np.ndarray) -> np.ndarray:
    """What a stable argsort of float32 rows gives, NaN last, but faster: integers made of a value's
    bits and its place are sorted."""
    values = values + np.float32(0)  # -0 is 0
    values[np.isnan(values)] = np.nan  # of either sign
    bits = values.view(np.int32)
    # The order of negative floats is that of their magnitudes, turned round.
    keys = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64)
    keys <<= 32
    keys |= np.arange(values.shape[1])
    keys.sort(axis=1)
    keys &= 0xFFFFFFFF
    return keys
