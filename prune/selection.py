"""Which neurons go and which stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..errors import UsageError


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """A set of neurons of one model: per layer, sorted unique indices into its width.

    The same value drives surgery (`prune.surgery.resize`) and masks (`prune.surgery.masked`).
    """

    widths: tuple[int, ...]
    indices: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.indices):
            raise UsageError(
                f"{len(self.indices)} layers of indices for a model of {len(self.widths)} layers"
            )
        clean = []
        for layer, (width, given) in enumerate(zip(self.widths, self.indices, strict=True)):
            chosen = np.unique(np.asarray(given, dtype=np.int64))
            if chosen.size and not 0 <= chosen[0] <= chosen[-1] < width:
                raise UsageError(
                    f"layer {layer}: neuron {chosen[0] if chosen[0] < 0 else chosen[-1]} "
                    f"is outside 0..{width - 1}"
                )
            chosen.setflags(write=False)
            clean.append(chosen)
        object.__setattr__(self, "indices", tuple(clean))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NeuronSet)
            and self.widths == other.widths
            and all(map(np.array_equal, self.indices, other.indices))
        )

    def __len__(self) -> int:
        return sum(self.counts)

    def __repr__(self) -> str:
        return f"NeuronSet({len(self)} of {sum(self.widths)} neurons in {len(self.widths)} layers)"

    @property
    def counts(self) -> tuple[int, ...]:
        """Neurons in the set, by layer."""
        return tuple(len(chosen) for chosen in self.indices)

    def complement(self) -> NeuronSet:
        """All other neurons of the model."""
        return NeuronSet(
            self.widths,
            tuple(
                np.setdiff1d(np.arange(width), chosen, assume_unique=True)
                for width, chosen in zip(self.widths, self.indices, strict=True)
            ),
        )


def cut_count(width: int, fraction: float) -> int:
    """floor(fraction * width), free of binary rounding: 0.29 of 100 is 29.

    Raises:
        UsageError: the fraction is not within [0, 1).
    """
    if not 0 <= fraction < 1:  # also refuses NaN
        raise UsageError(f"fraction {fraction} is outside 0 <= fraction < 1, e.g. 0.1 for a tenth")
    return math.floor(Fraction(repr(float(fraction))) * width)


def kept_width(hidden: int, width: int, expansion: float) -> int:
    """Neurons kept at an expansion ratio: ceil(expansion * hidden), as the paper counts.

    Llama-3.2-1B (hidden 2048, width 8192) at 3.6, 3.2, 2.8, 2.4, 2.0 and 1.6 keeps 7373, 6554,
    5735, 4916, 4096 and 3277 neurons, which is what cutting 10 to 60 % leaves.

    Raises:
        UsageError: the ratio is not above 0 or exceeds the layer's own.
    """
    if not (expansion > 0 and math.isfinite(expansion)):
        raise UsageError(f"expansion ratio {expansion} must be above 0")
    kept = math.ceil(Fraction(repr(float(expansion))) * hidden)
    if kept > width:
        raise UsageError(
            f"expansion ratio {expansion} asks for {kept} neurons where the layer has {width}; "
            f"give at most {width / hidden:g}"
        )
    return kept


def lowest(
    scores: Sequence[np.ndarray],
    *,
    fraction: float | None = None,
    expansion: float | None = None,
    hidden: int | None = None,
) -> NeuronSet:
    """The lowest-scored neurons of every layer: those that pruning cuts.

    Give either `fraction` (floor(fraction * width) go) or `expansion` with `hidden` (what exceeds
    ceil(expansion * hidden) goes). Ties go by index, ascending.
    """
    if (fraction is None) == (expansion is None):
        raise UsageError("give either a fraction or an expansion ratio")
    chosen = []
    for layer in scores:
        if fraction is not None:
            count = cut_count(len(layer), fraction)
        else:
            if hidden is None:
                raise UsageError("an expansion ratio needs the model's hidden size")
            count = len(layer) - kept_width(hidden, len(layer), expansion or 0.0)
        chosen.append(np.argsort(layer, kind="stable")[:count])
    return NeuronSet(tuple(len(layer) for layer in scores), tuple(chosen))


def ties_at_the_cut(scores: Sequence[np.ndarray], cut: NeuronSet) -> int:
    """How many kept neurons have the score of a cut one of their layer: chance by index only."""
    tied = 0
    for layer, chosen in zip(scores, cut.indices, strict=True):
        if len(chosen):
            tied += int((layer == layer[chosen].max()).sum())
            tied -= int((layer[chosen] == layer[chosen].max()).sum())
    return tied
