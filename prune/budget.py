"""How many neurons go, and from where: from scores and a budget to a `NeuronSet`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from ..errors import UsageError
from .layout import MlpLayout
from .selection import NeuronSet, cut_count, kept_width


@dataclass(frozen=True)
class Budget:
    """How much is cut. Give exactly one of `fraction`, `expansion`, `width` and `parameters`."""

    fraction: float | None = None
    """Of the neurons of every MLP: floor(fraction * width) go. Above 0, below 1."""
    expansion: float | None = None
    """Kept width over hidden size: what exceeds ceil(expansion * hidden) goes."""
    width: int | None = None
    """Neurons kept in every MLP (in every expert of a mixture)."""
    parameters: int | None = None
    """Parameters that the whole model may keep at most; all MLPs give the same share."""
    pooled: bool = False
    """Rank all MLPs together, each standardised within itself (as FLAP, arXiv 2312.11983), instead
    of taking the same share of each. The total is what the uniform cut would take."""
    divisor: int = 1
    """Kept widths are rounded to the nearest multiple, never to 0; for `parameters` to the next
    lower one."""
    layers: Mapping[int, float] = field(default_factory=dict)
    """Fractions of their own for some layers; 0 leaves a layer whole."""

    def __post_init__(self) -> None:
        kinds = ("fraction", "expansion", "width", "parameters")
        given = [kind for kind in kinds if getattr(self, kind) is not None]
        if len(given) != 1 and not (not given and self.layers):
            raise UsageError(
                f"give exactly one of {', '.join(kinds)} (given: {', '.join(given) or 'none'})"
            )
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise UsageError(
                f"fraction {self.fraction} is outside 0 < fraction < 1, e.g. 0.1 for a tenth"
            )
        for name in ("width", "parameters", "divisor"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise UsageError(f"{name} {number}: at least 1 is needed")
        if self.pooled and self.layers:
            raise UsageError("pooled ranks decide what each layer loses; leave layers out")

    def describe(self) -> str:
        """The budget in words."""
        said = [
            f"{name} {getattr(self, name)}"
            for name in ("fraction", "expansion", "width", "parameters")
            if getattr(self, name) is not None
        ]
        said += [f"layer {layer}: fraction {share}" for layer, share in sorted(self.layers.items())]
        said += ["ranked over all MLPs together"] * self.pooled
        said += [f"kept widths in multiples of {self.divisor}"] * (self.divisor > 1)
        return ", ".join(said)


def choose(
    layouts: Sequence[MlpLayout],
    scores: Sequence[np.ndarray],
    budget: Budget,
    *,
    protected: NeuronSet | None = None,
    total_parameters: int | None = None,
) -> NeuronSet:
    """The neurons to cut: the lowest-scored ones that the budget asks for.

    Ties go by index, ascending. MLPs of one group (the experts of a layer) keep the same number.

    Args:
        scores: one array [neurons] an MLP; higher = keep.
        protected: neurons that stay whatever their score; others go in their place.
        total_parameters: of the whole model, for a budget of `parameters`.

    Raises:
        UsageError: the budget asks for more than there is, or for nothing.
    """
    widths = [layout.width for layout in layouts]
    if protected is not None:
        protected.check(widths)
    else:
        protected = NeuronSet(tuple(widths), (np.array([], int),) * len(widths))
    kept = _kept(layouts, budget, total_parameters)
    if budget.pooled:
        kept = _pooled(layouts, scores, kept, protected)
    kept = [
        _rounded(count, layout.width, budget) for count, layout in zip(kept, layouts, strict=True)
    ]
    if all(count == width for count, width in zip(kept, widths, strict=True)):
        raise UsageError(f"{budget.describe()}: no neuron would go; ask for a larger cut")
    chosen = []
    for layout, count, score, safe in zip(layouts, kept, scores, protected.indices, strict=True):
        if len(safe) > count:
            raise UsageError(
                f"{layout.name}: {len(safe)} neurons are protected where {count} may stay; "
                "protect fewer or cut less"
            )
        order = np.argsort(score, kind="stable")
        order = order[~np.isin(order, safe)]
        chosen.append(order[: layout.width - count])
    return NeuronSet(tuple(widths), tuple(chosen))


def _kept(layouts: Sequence[MlpLayout], budget: Budget, total: int | None) -> list[int]:
    """Neurons that stay in every MLP, before pooling and rounding."""
    unknown = set(budget.layers) - {layout.layer for layout in layouts}
    if unknown:
        raise UsageError(f"layer {min(unknown)}: the model's layers are 0..{layouts[-1].layer}")
    if budget.parameters is not None:
        kept = _within(layouts, budget.parameters, total)
    else:
        kept = [_kept_in_one(layout, budget) for layout in layouts]
    return [
        _share(layout, budget.layers[layout.layer]) if layout.layer in budget.layers else count
        for layout, count in zip(layouts, kept, strict=True)
    ]


def _share(layout: MlpLayout, fraction: float) -> int:
    # A shared expert several times as wide as a routed one must stay so: one entry of the config
    # holds both widths. So it loses that many times what a routed one loses.
    times = layout.multiple if layout.width % layout.multiple == 0 else 1
    return layout.width - times * cut_count(layout.width // times, fraction)


def _kept_in_one(layout: MlpLayout, budget: Budget) -> int:
    if budget.fraction is not None:
        return _share(layout, budget.fraction)
    if budget.expansion is not None:
        return layout.multiple * kept_width(
            layout.hidden, layout.width // layout.multiple, budget.expansion
        )
    if budget.width is not None:
        if budget.width * layout.multiple > layout.width:
            raise UsageError(
                f"width {budget.width}: {layout.name} has {layout.width // layout.multiple} "
                "neurons; give at most that"
            )
        return budget.width * layout.multiple
    return layout.width


def _within(layouts: Sequence[MlpLayout], parameters: int, total: int | None) -> list[int]:
    """The smallest uniform cut that leaves the model at most so many parameters."""
    if total is None:
        raise UsageError("a parameter budget needs the model's number of parameters")
    if parameters >= total:
        raise UsageError(f"parameters {parameters:,}: the model has {total:,}; give fewer")
    steps = max(layout.width for layout in layouts)

    def kept(step: int) -> list[int]:
        return [w.width - w.multiple * (w.width // w.multiple * step // steps) for w in layouts]

    def left(step: int) -> int:
        return total - sum(
            (w.width - count) * w.parameters_per_neuron
            for w, count in zip(layouts, kept(step), strict=True)
        )

    least = left(steps - 1)
    if least > parameters:
        raise UsageError(
            f"parameters {parameters:,}: {least:,} are left when every MLP keeps its last neurons; "
            "give at least that"
        )
    low, high = 0, steps - 1  # left(low) is too much, left(high) fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= parameters else (middle, high)
    return kept(high)


def _pooled(
    layouts: Sequence[MlpLayout],
    scores: Sequence[np.ndarray],
    kept: Sequence[int],
    protected: NeuronSet,
) -> list[int]:
    """Neurons that stay in every MLP when all are ranked together."""
    standard = []
    for score, safe in zip(scores, protected.indices, strict=True):
        wide = score.astype(np.float64)
        finite = np.isfinite(wide)
        spread = wide[finite].std() if finite.any() else 0.0
        wide = (wide - (wide[finite].mean() if finite.any() else 0.0)) / (spread or 1.0)
        wide[safe] = np.inf
        # One neuron of every MLP stays: an empty one would be another architecture.
        wide[np.argmax(wide)] = np.inf
        standard.append(wide)
    budget = sum(layout.width for layout in layouts) - sum(kept)
    order = np.argsort(np.concatenate(standard), kind="stable")[:budget]
    owner = np.repeat(np.arange(len(layouts)), [layout.width for layout in layouts])[order]
    cut = np.bincount(owner, minlength=len(layouts))
    groups: dict[object, list[int]] = {}
    for place, layout in enumerate(layouts):
        groups.setdefault(layout.group, []).append(place)
    for places in groups.values():
        cut[places] = int(cut[places].mean())
    return [layout.width - int(count) for layout, count in zip(layouts, cut, strict=True)]


def _rounded(kept: int, width: int, budget: Budget) -> int:
    if budget.divisor == 1 or kept == width:
        return kept
    exact = Fraction(kept, budget.divisor)
    times = math.floor(exact if budget.parameters is not None else exact + Fraction(1, 2))
    return min(max(times, 1) * budget.divisor, width)
