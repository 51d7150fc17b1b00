"""Any order of magnitude one likes, at no change of the function: up times c, down over c.

A score that sees `up` can be given any order within a layer by rescaling neurons. That is what
calibration plants, and why such a score by itself is a fact about a parametrisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UsageError
from ..prune.weights import MlpWeights

SCORES = ("ppm", "maw", "l2", "vow", "pon")
"""Criteria that see up and not down, whose order can be planted."""


def planting_factors(
    criterion: str, weights: Sequence[MlpWeights], orders: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Factors c (for `prune.gauge.rescale`) after which the criterion has the given orders.

    Args:
        criterion: one of `SCORES`.
        weights: of every MLP.
        orders: per MLP, values [neurons] whose order the scores are to have; ties go by index.

    Returns:
        Per MLP, float64 [neurons], all above 0. Scores are evenly spaced from a little above what
        gate alone gives to some three times the layer's usual score.

    Raises:
        UsageError: a criterion that up does not enter so, or an MLP without a gate.
    """
    if criterion not in SCORES:
        raise UsageError(
            f"criterion {criterion!r}: an order can be planted into {', '.join(SCORES)}, which see "
            "up and not down"
        )
    found = []
    for number, (of, order) in enumerate(zip(weights, orders, strict=True)):
        if not of.gated:
            raise UsageError(f"MLP {number} has no gate: rescaling would change its function")
        gate, up = of.inputs
        fixed, moved = {
            "ppm": (gate.spread, up.spread),
            "maw": (gate.peak, up.peak),
            "l2": (gate.norm, up.norm),
            "vow": (gate.variance, up.variance),
            "pon": (gate.absolute, up.absolute),
        }[criterion]
        if not (moved > 0).all() or (criterion == "pon" and not (fixed > 0).all()):
            raise UsageError(f"MLP {number}: a neuron without weights takes no place in an order")
        rank = np.empty(len(order))
        rank[np.argsort(order, kind="stable")] = np.arange(len(order))
        span = (rank + 1) / len(order)
        if criterion == "pon":
            wanted = np.median(fixed * moved) * (0.5 + 2 * span)
            found.append(wanted / (fixed * moved))
            continue
        wanted = fixed.max() + np.median(moved) * (0.25 + 2 * span)
        factor = (wanted - fixed) / moved
        found.append(np.sqrt(factor) if criterion == "vow" else factor)
    return found
