"""What a model for the harness is cut by: a criterion with a budget, or a set on file."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError
from ..prune.models import OpenedModel
from ..prune.selection import NeuronSet


def check_cut(criterion: str | None, budget: Mapping[str, float | None], cut: str | None) -> None:
    """Refuse what contradicts itself.

    Args:
        criterion: what neurons are ranked by.
        budget: ways to say how much goes, by name; None where it is not given.
        cut: the file of a set.

    Raises:
        UsageError: not exactly one budget with a criterion, or a budget without one.
    """
    given = [name for name, value in budget.items() if value is not None]
    if cut is not None and (criterion is not None or given):
        raise UsageError(f"cut names all that goes; leave {criterion or given[0]} out")
    if criterion is None and given:
        raise UsageError(f"{given[0]} says how much goes; say by what, e.g. criterion=ppm")
    if criterion is not None and len(given) != 1:
        raise UsageError(
            f"criterion {criterion}: give exactly one of {', '.join(budget)} (given: "
            f"{', '.join(given) or 'none'})"
        )


def chosen_cut(
    opened: OpenedModel,
    criterion: str | None,
    fraction: float | None,
    expansion: float | None,
    width: int | None,
    cut: str | None,
) -> NeuronSet | None:
    """What is cut of a model; None for nothing.

    Raises:
        UsageError: an unknown criterion, one that needs activations, or a budget out of range.
        DataError: the file of the set cannot be read.
    """
    if cut is not None:
        return NeuronSet.load(cut)
    if criterion is None or fraction == 0:
        return None
    from ..prune.budget import Budget, choose
    from ..prune.expressions import parse_criterion
    from ..prune.mlps import find_mlps
    from ..prune.scoring import score_mlps

    if parse_criterion(criterion).needs_recording:
        raise UsageError(
            f"criterion {criterion!r} looks at activations: save what it would cut with "
            "NeuronSet.save and give cut=FILE"
        )
    mlps = find_mlps(opened.model)
    scores = score_mlps(mlps, [criterion])[criterion]
    budget = Budget(fraction=fraction, expansion=expansion, width=width)
    return choose([mlp.layout for mlp in mlps], scores, budget)
