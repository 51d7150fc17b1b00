"""Orders of magnitude, fixed once, against functional scores, given many times.

All statistics are taken within layers and averaged over layers with equal weight: pooled over
layers, a trend across layers alone makes a correlation.

- **rho**: Spearman's correlation of the weight score and the functional score.
- **partial**: the same given covariates (ranks regressed on ranks of the covariates; what is left
  of either is correlated). A neuron that is louder, or writes more, has more of everything.
- **mass**: share of the layer's functional score that each tenth by weight score holds.
- **top**: share of the layer's top 1 % by functional score that stands in each tenth.

Ties of a weight score share their mean rank in rho and go by index in tenths, as a cut would take
them; ties of a functional score go by index.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy import stats
from threadpoolctl import threadpool_limits

from ..progress import Progress, silent
from ..prune.selection import cut_count
from .resamples import Function, Resamples, functional, squared

TENTHS = 10
TENTH = 1 / TENTHS
TOP = 0.01
CHUNK = 128
"""Resamples whose functional scores are held at a time."""


@dataclass(frozen=True)
class Profile:
    """Statistics of every resample, averaged over layers (or of each layer, where so said).

    Attributes:
        rho, partial: [..., resamples, criteria]; partial equals rho without covariates.
        mass, top: [..., resamples, criteria, 10], from the lowest tenth to the highest.
    """

    rho: np.ndarray
    partial: np.ndarray
    mass: np.ndarray
    top: np.ndarray

    def averaged(self) -> Profile:
        """Over the first axis, of layers."""
        return Profile(*(part.mean(0) for part in (self.rho, self.partial, self.mass, self.top)))

    @classmethod
    def joined(cls, parts: Sequence[Profile]) -> Profile:
        """Of resamples in several chunks."""
        names = ("rho", "partial", "mass", "top")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def tenth_bounds(width: int) -> np.ndarray:
    """Where each tenth of a layer begins and ends in its order, [11]; a cut of k tenths takes
    exactly the first k."""
    bounds = [cut_count(width, k / TENTHS) for k in range(TENTHS)] + [width]
    # Of fewer than ten neurons the lowest is the lowest tenth.
    return np.maximum(bounds, [0] + [min(1, width)] * TENTHS)


def tenth_of(score: np.ndarray) -> np.ndarray:
    """The tenth, 0 to 9, of every neuron of a layer; ties by index."""
    found = np.empty(len(score), np.int64)
    counts = np.diff(tenth_bounds(len(score)))
    found[np.argsort(score, kind="stable")] = np.repeat(np.arange(TENTHS), counts)
    return found


class Localiser:
    """The orders that some weight scores make of a model's neurons.

    Args:
        scores: by criterion, per layer [neurons].
        covariates: what `partial` is given, each per layer [neurons].
        tenths: also find mass and top; without it both are empty.
    """

    def __init__(
        self,
        scores: Mapping[str, Sequence[np.ndarray]],
        covariates: Sequence[Sequence[np.ndarray]] = (),
        *,
        tenths: bool = True,
    ) -> None:
        self.criteria = tuple(scores)
        layers = list(zip(*scores.values(), strict=True))
        self.widths = tuple(len(layer[0]) for layer in layers)
        self._ends = np.cumsum(self.widths)
        self._ranks, self._left, self._basis, self._within = [], [], [], []
        self.tenths = tenths
        for number, layer in enumerate(layers):
            ranks = np.stack([_centred(column) for column in layer], 1)
            self._ranks.append(_unit(ranks).astype(np.float32))
            given = [_centred(covariate[number]) for covariate in covariates]
            basis = _basis(np.stack(given, 1)) if given else np.zeros((len(ranks), 0))
            self._basis.append(basis.astype(np.float32))
            left = _unit(_unit(ranks) - basis @ (basis.T @ _unit(ranks)))
            self._left.append(left.astype(np.float32))
            if tenths:
                of = np.stack([tenth_of(column) for column in layer], 1)
                within = (of[:, :, None] == np.arange(TENTHS)).astype(np.float32)
                self._within.append(within.reshape(len(of), -1))

    def normal_scores(self, layer: int, criterion: int) -> np.ndarray:
        """Normal scores of a criterion's order within a layer; ties by index."""
        order = self._ranks[layer][:, criterion].argsort(kind="stable").argsort(kind="stable")
        return stats.norm.ppf((order + 0.5) / len(order))

    def span(self, layer: int) -> slice:
        """Where a layer's neurons stand among all."""
        return slice(self._ends[layer] - self.widths[layer], self._ends[layer])

    def rank_correlation(self, values: np.ndarray, criterion: int) -> np.ndarray:
        """Rank correlation with one criterion, [layers, resamples]; see `by_layer`."""

        def one(layer: int) -> np.ndarray:
            _, ranks = _order(values[:, self.span(layer)])
            return ranks @ self._ranks[layer][:, criterion]

        return np.stack(self._each(one))

    def by_layer(self, values: np.ndarray) -> Profile:
        """All statistics of each layer.

        Args:
            values: functional scores [resamples, neurons], at least 0.
        """

        def one(layer: int) -> tuple[np.ndarray, ...]:
            part = values[:, self.span(layer)]
            order, ranks = _order(part)
            rho = ranks @ self._ranks[layer]
            shared = ranks @ self._basis[layer]
            rest = np.sqrt(np.maximum(1 - np.square(shared).sum(1, keepdims=True), 1e-12))
            partial = ranks @ self._left[layer] / rest
            if not self.tenths:
                empty = np.zeros((*rho.shape, 0), np.float32)
                return rho, partial, empty, empty
            within, total = self._within[layer], part.sum(1, keepdims=True)
            mass = part @ within / np.where(total > 0, total, 1)
            count = top_count(self.widths[layer])
            chosen = np.zeros(part.shape, np.float32)
            np.put_along_axis(chosen, order[:, -count:], np.float32(1 / count), axis=1)
            shape = *rho.shape, TENTHS
            return rho, partial, mass.reshape(shape), (chosen @ within).reshape(shape)

        return Profile(*(np.stack(part) for part in zip(*self._each(one), strict=True)))

    def over(
        self,
        contrasts: np.ndarray,
        resamples: Resamples,
        function: Function,
        *,
        progress: Progress = silent,
        what: str = "resamples",
    ) -> Profile:
        """Statistics of functional scores under resamples, averaged over layers."""
        parts = []
        squares = squared(contrasts, resamples) if function == "dz" else None
        for begin in range(0, len(resamples), CHUNK):
            rows = slice(begin, begin + CHUNK)
            values = functional(contrasts, resamples, function, rows, squares=squares)
            parts.append(self.by_layer(values).averaged())
            progress(what, min(begin + CHUNK, len(resamples)), len(resamples))
        return Profile.joined(parts)

    @property
    def chance(self) -> float:
        """Standard deviation of rho over orders without meaning: sqrt(sum 1 / (n_l - 1)) / L."""
        return float(np.sqrt(sum(1 / max(n - 1, 1) for n in self.widths)) / len(self.widths))

    def _each(self, one) -> list:  # pyright: ignore[reportMissingParameterType]
        # Sorting releases the interpreter's lock; layers do not touch each other's results. The
        # products are small: more threads within each would only get into each other's way.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(one, range(len(self.widths))))


def top_count(width: int) -> int:
    """How many neurons the top 1 % of a layer are; at least one."""
    return max(1, round(TOP * width))


def _order(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each row the order, and its ranks centred and of unit length."""
    width = part.shape[1]
    order = np.argsort(part, axis=1)
    centred = np.arange(width, dtype=np.float32) - (width - 1) / 2
    ranks = np.empty(part.shape, np.float32)
    np.put_along_axis(ranks, order, (centred / max(np.linalg.norm(centred), 1e-30))[None], axis=1)
    return order, ranks


def _centred(column: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(column)
    return ranks - ranks.mean()


def _unit(ranks: np.ndarray) -> np.ndarray:
    """Columns of unit length. What orders nothing, or nothing beyond the covariates, stays 0: its
    correlation is 0, not undefined."""
    norm = np.linalg.norm(ranks, axis=0)
    return np.where(norm > 1e-6, ranks / np.where(norm > 0, norm, 1), 0)


def _basis(columns: np.ndarray) -> np.ndarray:
    """Orthonormal vectors that span the columns."""
    u, size, _ = np.linalg.svd(_unit(columns), full_matrices=False)
    return u[:, size > 1e-6]
