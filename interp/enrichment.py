"""How many of a layer's top functional neurons stand in each tenth of an order, by layer.

Were the top 1 % drawn from the layer's neurons at random, their number in a tenth would be
hypergeometric; over layers, the sum of independent ones, whose distribution is found by
convolution. That null permutes neurons, and neurons share factors: it is *descriptive*. The p to
rely on is that of swapped labels (`localisation.TenthRow.top_p`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from .localiser import TENTHS, tenth_of, top_count
from .resamples import Function

EVERY = -1
"""In place of a layer: all layers together."""


@dataclass(frozen=True)
class Enrichment:
    """Top functional neurons in one tenth of a criterion's order, in a layer or in all.

    Attributes:
        found: their number.
        expected: its mean were they drawn at random.
        more_p, fewer_p: probability of so many or more, and of so many or fewer, of such a draw.
    """

    property: str
    criterion: str
    function: Function
    layer: int
    tenth: int
    found: int
    expected: float
    more_p: float
    fewer_p: float


def enrichment(
    name: str,
    criterion: str,
    function: Function,
    scores: list[np.ndarray],
    values: list[np.ndarray],
) -> list[Enrichment]:
    """Count the top 1 % by functional score in each tenth by weight score, layer by layer.

    Args:
        scores, values: per layer [neurons]; ties by index.
    """
    rows: list[Enrichment] = []
    totals = np.zeros(TENTHS, int)
    spreads = [np.ones(1)] * TENTHS
    for layer, (score, value) in enumerate(zip(scores, values, strict=True)):
        tenths, count = tenth_of(score), top_count(len(value))
        top = np.argsort(value, kind="stable")[-count:]
        found = np.bincount(tenths[top], minlength=TENTHS)
        sizes = np.bincount(tenths, minlength=TENTHS)
        for tenth in range(TENTHS):
            chance = hypergeometric(len(value), int(sizes[tenth]), count)
            rows.append(_row(name, criterion, function, layer, tenth, int(found[tenth]), chance))
            spreads[tenth] = np.convolve(spreads[tenth], chance).real
        totals += found
    for tenth in range(TENTHS):
        rows.append(
            _row(name, criterion, function, EVERY, tenth, int(totals[tenth]), spreads[tenth])
        )
    return rows


def hypergeometric(whole: int, marked: int, drawn: int) -> np.ndarray:
    """Probability that 0, 1, ... `drawn` of the drawn are marked."""
    return np.asarray(stats.hypergeom.pmf(np.arange(drawn + 1), whole, marked, drawn), np.float64)


def _row(
    name: str,
    criterion: str,
    function: Function,
    layer: int,
    tenth: int,
    found: int,
    chance: np.ndarray,
) -> Enrichment:
    return Enrichment(
        name,
        criterion,
        function,
        layer,
        tenth,
        found,
        expected=float(chance @ np.arange(len(chance))),
        more_p=float(min(1, chance[found:].sum())),
        fewer_p=float(min(1, chance[: found + 1].sum())),
    )
