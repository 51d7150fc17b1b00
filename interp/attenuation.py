"""How much of a true order a number of items lets through.

With few items a functional score is mostly noise, and noise draws a rank correlation towards the
null: a small effect with a narrow interval may hide a large true one. So orders are *planted*: item
noise (residuals with random signs) plus systematic contrasts mu_n = d_n sd_n, with |d| half-normal,
its energy in each layer that of the data (an unbiased estimate of the mean of d^2), and its order
in a known relation to the weight score. The attenuation is the effect seen at this number of items
per effect that is truly there; an effect divided by it is *corrected* (Spearman's correction for
attenuation, by simulation).

The energy is itself an estimate: its standard error comes from a delete-a-group jackknife over
items, ten groups, and the attenuation's from planting at one standard error more and less. It
enters the corrected interval (see `localisation`).

Named assumption: half-normal d within a layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy import stats

from .resamples import Function

if TYPE_CHECKING:
    from .localisation import Localiser

PLANTED = 0.5
"""Correlation, in normal scores, of planted orders with the weight score; in both directions."""
PLANTINGS, ENOUGH = 8, 100_000
"""Plantings in each direction, or as many as give so many neurons, two at least."""
GROUPS = 10
"""Of items, left out in turn."""


class Attenuation(NamedTuple):
    """By criterion: effect seen per effect that is there, and its standard error."""

    value: np.ndarray
    se: np.ndarray


def systematic_energy(contrasts: np.ndarray) -> np.ndarray:
    """Unbiased estimate of the squared true mean of every column, [neurons]; may be below 0."""
    n = len(contrasts)
    mean = contrasts.mean(0, dtype=np.float64)
    return (n * mean**2 - np.square(contrasts, dtype=np.float64).mean(0)) / (n - 1)


def layer_energies(contrasts: np.ndarray, unit: np.ndarray, widths: tuple[int, ...]) -> np.ndarray:
    """Mean systematic energy of the standardised contrasts of each layer: of all items, then with
    one group of items left out after the other, [1 + groups, layers].

    Args:
        contrasts: [items, neurons].
        unit: standard deviation over items of every neuron.
    """
    n = len(contrasts)
    groups = np.arange(n) % min(GROUPS, n // 2 or 1)
    ends = np.cumsum(widths)[:-1]
    total = contrasts.sum(0, dtype=np.float64) / unit
    squares = np.einsum("in,in->n", contrasts, contrasts, dtype=np.float64) / unit**2

    def by_layer(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        mean = first / count
        energy = (count * mean**2 - second / count) / (count - 1)
        return np.array([part.mean() for part in np.split(energy, ends)])

    found = [by_layer(n, total, squares)]
    for group in range(groups.max() + 1 if n > 3 else 0):
        out = contrasts[groups == group]
        first = total - out.sum(0, dtype=np.float64) / unit
        second = squares - np.einsum("in,in->n", out, out, dtype=np.float64) / unit**2
        found.append(by_layer(n - len(out), first, second))
    return np.stack(found)


def attenuation(
    localiser: Localiser,
    contrasts: np.ndarray,
    function: Function,
    rng: np.random.Generator,
    *,
    plantings: int | None = None,
) -> Attenuation:
    """Effect seen at this number of items per effect that is truly there, by criterion.

    Args:
        contrasts: [items, neurons].

    Returns:
        [criteria] each; a value near 1 were there no noise, 0 where the data hold no systematic
        part.
    """
    n, widths = len(contrasts), localiser.widths
    if plantings is None:
        plantings = max(2, min(PLANTINGS, ENOUGH // sum(widths)))
    residual = contrasts - contrasts.mean(0)
    spread = np.sqrt(np.square(residual).sum(0) / (n - 1))
    unit = np.where(spread > 0, spread, 1)
    energies = layer_energies(contrasts, unit.astype(np.float64), widths)
    residual /= unit
    weigh = np.ones_like(spread) if function == "dz" else spread
    planted = _Planted(localiser, residual, weigh, rng, plantings)
    layers, totals = energies[0], energies.sum(1)
    found = planted.seen(layers, totals[0])
    if len(totals) == 1:
        return Attenuation(found, np.full_like(found, np.nan))
    without = totals[1:]
    se = np.sqrt((1 - 1 / len(without)) * np.square(without - without.mean()).sum())
    # The same plantings every time: what differs is the energy alone.
    above, below = (planted.seen(layers, totals[0] + sign * se) for sign in (1, -1))
    return Attenuation(found, np.abs(above - below) / 2)


class _Planted:
    """Orders planted into item noise, which can be made louder or fainter."""

    def __init__(
        self,
        localiser: Localiser,
        residual: np.ndarray,
        weigh: np.ndarray,
        rng: np.random.Generator,
        plantings: int,
    ) -> None:
        n, widths = len(residual), localiser.widths
        self._localiser, self._weigh = localiser, weigh
        signs = rng.integers(0, 2, (plantings, n)).astype(np.float32) * 2 - 1
        self._noise = signs @ residual * np.float32(1 / np.sqrt(n * (n - 1)))
        self._sizes: list[tuple[int, int, np.ndarray]] = []
        """Criterion, direction, signed sizes [plantings, neurons]."""
        quantiles = {
            width: stats.halfnorm.ppf((np.arange(width) + 0.5) / width).astype(np.float32)
            for width in set(widths)
        }
        ends = np.cumsum(widths)
        for k in range(len(localiser.criteria)):
            for direction in (-1, 1):
                size = np.empty_like(self._noise)
                for layer, (width, end) in enumerate(zip(widths, ends, strict=True)):
                    normal = direction * PLANTED * localiser.normal_scores(layer, k)
                    other = rng.standard_normal((plantings, width), np.float32)
                    order = np.argsort(normal + np.sqrt(1 - PLANTED**2) * other, axis=1)
                    part = size[:, end - width : end]
                    np.put_along_axis(part, order, quantiles[width][None], axis=1)
                size *= rng.integers(0, 2, size.shape).astype(np.float32) * 2 - 1
                self._sizes.append((k, direction, size))
        self._true = np.zeros(len(localiser.criteria))
        for k, direction, size in self._sizes:
            self._true[k] += direction * self._mean(np.abs(size), k)

    def _mean(self, values: np.ndarray, criterion: int) -> float:
        return float(self._localiser.rank_correlation(values * self._weigh, criterion).mean())

    def seen(self, layers: np.ndarray, total: float) -> np.ndarray:
        """The attenuation by criterion, were the systematic energy of all layers together this, and
        spread over them as `layers` says."""
        # Cutting layers off at 0 would keep only noise that points up: the total stays what it is.
        above = np.maximum(layers, 0)
        scale = np.sqrt(above * max(total, 0) / max(above.sum(), 1e-30))
        loudness = np.repeat(scale, self._localiser.widths).astype(np.float32)
        found = np.zeros(len(self._true))
        for k, direction, size in self._sizes:
            found[k] += direction * self._mean(np.abs(self._noise + size * loudness), k)
        # An order that has no relation to any other (a constant score) lets nothing through.
        np.divide(found, self._true, out=found, where=self._true != 0)
        return np.maximum(np.where(self._true != 0, found, 0), 0)
