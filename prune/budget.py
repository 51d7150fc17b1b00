"""How many neurons go, and from where: from scores and a budget to a `NeuronSet`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    of taking the same share of each. The total is what the uniform cut would take, or as near to it
    as the experts of a layer, which lose the same number, allow."""
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
    unknown = set(budget.layers) - {layout.layer for layout in layouts}
    if unknown:
        raise UsageError(f"layer {min(unknown)}: the model's layers are 0..{layouts[-1].layer}")
    pool = _Pool(layouts, scores, protected) if budget.pooled else None

    def final(kept: Sequence[int]) -> list[int]:
        """With layers' own fractions, pooling and rounding."""
        kept = [
            _share(layout, budget.layers[layout.layer]) if layout.layer in budget.layers else count
            for layout, count in zip(layouts, kept, strict=True)
        ]
        kept = pool.kept(sum(widths) - sum(kept)) if pool else kept
        return [_rounded(count, w, budget) for count, w in zip(kept, layouts, strict=True)]

    if budget.parameters is not None:
        kept = _within(layouts, budget.parameters, total_parameters, final)
    else:
        kept = final([_kept_in_one(layout, budget) for layout in layouts])
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


def _times(layout: MlpLayout) -> int:
    """A shared expert several times as wide as a routed one must stay so, since one entry of the
    config holds both widths: its neurons are counted in so many at a time."""
    return layout.multiple if layout.width % layout.multiple == 0 else 1


def _share(layout: MlpLayout, fraction: float) -> int:
    times = _times(layout)
    return layout.width - times * cut_count(layout.width // times, fraction)


def _kept_in_one(layout: MlpLayout, budget: Budget) -> int:
    times = _times(layout)
    if budget.fraction is not None:
        return _share(layout, budget.fraction)
    if budget.expansion is not None:
        return times * kept_width(layout.hidden, layout.width // times, budget.expansion)
    if budget.width is not None:
        if budget.width * times > layout.width:
            raise UsageError(
                f"width {budget.width}: {layout.name} has {layout.width // times} "
                "neurons; give at most that"
            )
        return budget.width * times
    return layout.width


def _within(
    layouts: Sequence[MlpLayout],
    parameters: int,
    total: int | None,
    final: Callable[[Sequence[int]], list[int]],
) -> list[int]:
    """The smallest uniform cut that leaves the model at most so many parameters in the end."""
    if total is None:
        raise UsageError("a parameter budget needs the model's number of parameters")
    if parameters >= total:
        raise UsageError(f"parameters {parameters:,}: the model has {total:,}; give fewer")
    steps = max(layout.width for layout in layouts)

    def kept(step: int) -> list[int]:
        uniform = []
        for w in layouts:
            times = _times(w)
            uniform.append(w.width - times * (w.width // times * step // steps))
        return final(uniform)

    def left(step: int) -> int:
        return total - sum(
            (w.width - count) * w.parameters_per_neuron
            for w, count in zip(layouts, kept(step), strict=True)
        )

    least = left(steps - 1)
    if least > parameters:
        raise UsageError(
            f"parameters {parameters:,}: {least:,} are left when as much as may be is cut; give at "
            "least that"
        )
    low, high = 0, steps - 1  # left(low) is too much, left(high) fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle) <= parameters else (middle, high)
    return kept(high)


class _Pool:
    """All MLPs' neurons ranked together, each MLP standardised within itself."""

    def __init__(
        self,
        layouts: Sequence[MlpLayout],
        scores: Sequence[np.ndarray],
        protected: NeuronSet,
    ) -> None:
        self._layouts = layouts
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
        widths = [layout.width for layout in layouts]
        order = np.argsort(np.concatenate(standard), kind="stable")
        self._owner = np.repeat(np.arange(len(layouts)), widths)[order]
        self._groups: dict[object, list[int]] = {}
        for place, layout in enumerate(layouts):
            self._groups.setdefault(layout.group, []).append(place)

    def kept(self, cut: int) -> list[int]:
        """Neurons that stay in every MLP when about `cut` go.

        The experts of a layer lose the same number: their mean, rounded so that the total comes as
        near to `cut` as their number allows.
        """
        counts = np.bincount(self._owner[:cut], minlength=len(self._layouts))
        kept = [layout.width for layout in self._layouts]
        over = 0.0  # cut beyond the ranks' own numbers so far, handed to the next group
        for places in self._groups.values():
            first = self._layouts[places[0]]
            unit = len(places) * _times(first)
            wanted = float(counts[places].sum()) - over
            most = (first.width - 1) // _times(first)
            times = min(max(round(wanted / unit), 0), most)
            over = times * unit - wanted
            for place in places:
                kept[place] -= times * _times(first)
        return kept


def _rounded(kept: int, layout: MlpLayout, budget: Budget) -> int:
    if budget.divisor == 1 or kept == layout.width:
        return kept
    times = _times(layout)
    exact = Fraction(kept // times, budget.divisor)
    whole = math.floor(exact if budget.parameters is not None else exact + Fraction(1, 2))
    if whole * budget.divisor > layout.width // times:
        whole -= 1
    return min(max(whole, 1) * budget.divisor * times, layout.width)
