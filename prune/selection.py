"""Sets of neurons: what is cut, kept, protected or compared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, UsageError

_KIND = "glulens neuron set"
_VERSION = 1
_MOST = 2**28
"""Neurons of a set that is read from a file: several times what the largest models have. Its
complement is made of as many numbers, whatever the file's own size."""


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """A set of neurons of one model: per MLP, sorted unique indices into its width.

    An MLP is the dense one of a layer, or one expert; they are counted as `mlps.find_mlps` lists
    them. The same value drives surgery (`surgery.resize`, `stream.prune_checkpoint`) and masks
    (`masks.masked`). `|`, `&`, `-` and `complement` make new sets of the same model.
    """

    widths: tuple[int, ...]
    indices: tuple[np.ndarray, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if len(self.widths) != len(self.indices):
            raise UsageError(
                f"{len(self.indices)} lists of indices for a model of {len(self.widths)} MLPs"
            )
        clean = []
        for mlp, (width, given) in enumerate(zip(self.widths, self.indices, strict=True)):
            given = np.asarray(given)
            if given.size and given.dtype.kind not in "iu":
                raise UsageError(
                    f"MLP {mlp}: indices are {given.dtype}, not whole numbers; of a mask take "
                    "np.flatnonzero(mask)"
                )
            chosen = np.unique(given.astype(np.int64))
            if chosen.size and not 0 <= chosen[0] <= chosen[-1] < width:
                raise UsageError(
                    f"MLP {mlp}: neuron {chosen[0] if chosen[0] < 0 else chosen[-1]} "
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
        return f"NeuronSet({len(self)} of {sum(self.widths)} neurons in {len(self.widths)} MLPs)"

    @property
    def counts(self) -> tuple[int, ...]:
        """Neurons in the set, by MLP."""
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

    def __or__(self, other: NeuronSet) -> NeuronSet:
        return self._with(other, np.union1d)

    def __and__(self, other: NeuronSet) -> NeuronSet:
        return self._with(other, np.intersect1d)

    def __sub__(self, other: NeuronSet) -> NeuronSet:
        return self._with(other, np.setdiff1d)

    def _with(
        self, other: NeuronSet, operation: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> NeuronSet:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        self.check(other.widths)
        return NeuronSet(self.widths, tuple(map(operation, self.indices, other.indices)))

    def check(self, widths: Sequence[int]) -> None:
        """Raise `UsageError` unless this is a set of a model with these widths."""
        if self.widths != tuple(widths):
            raise UsageError(
                f"the set is of a model with widths {_short(self.widths)}, this one has "
                f"{_short(widths)}; make the set from this model's own scores"
            )

    def overlap(self, other: NeuronSet) -> Overlap:
        """How many neurons two sets share, beside what chance would give (see `Overlap`)."""
        return _overlap(self, other)

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_text(json.dumps(self.to_json()) + "\n", encoding="utf-8")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "kind": _KIND,
            "schema_version": _VERSION,
            "widths": list(self.widths),
            "indices": [chosen.tolist() for chosen in self.indices],
        }

    @classmethod
    def load(cls, path: str | Path) -> NeuronSet:
        """Read what `save` wrote.

        Raises:
            DataError: missing, damaged, or something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("kind") != _KIND:
                raise ValueError("it is something else")
            if found["schema_version"] != _VERSION:
                raise ValueError(f"its schema version is {found['schema_version']!r}")
            for numbers in (found["widths"], *found["indices"]):
                if not all(type(number) is int for number in numbers):
                    raise ValueError("widths and indices must be whole numbers")
            if min(found["widths"], default=0) < 0 or sum(found["widths"]) > _MOST:
                raise ValueError(f"widths must be at least 0, and {_MOST:,} together at most")
            return cls(tuple(found["widths"]), tuple(np.array(i, int) for i in found["indices"]))
        except (
            OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, UsageError,
        ) as error:  # fmt: skip
            reason = str(error)[:200]
            raise DataError(
                f"{path} cannot be read as a set of neurons ({reason}); it should be JSON as "
                "NeuronSet.save writes it"
            ) from error


def _short(widths: Sequence[int]) -> str:
    even = len(set(widths)) == 1
    return f"{len(widths)} x {widths[0]}" if even else str(list(widths))


@dataclass(frozen=True)
class Overlap:
    """What two sets share.

    The null: both sets are drawn at random with the counts they have in each MLP, so that the
    shared number there is hypergeometric; MLPs are independent. It says nothing about sets that
    were both ranked by correlated criteria, which is what a large overlap is usually due to.
    """

    shared: int
    expected: float
    """Under the null."""
    p_more: float
    """Probability of sharing at least so many under the null."""
    p_fewer: float
    """Probability of sharing at most so many under the null."""
    jaccard: float
    """Shared over united; NaN for two empty sets."""


def _overlap(one: NeuronSet, other: NeuronSet) -> Overlap:
    from scipy.stats import hypergeom

    shared = one & other
    expected = sum(
        a * b / width
        for a, b, width in zip(one.counts, other.counts, one.widths, strict=True)
        if width
    )
    mass, floor = np.ones(1), 0  # of the total shared, from `floor` on
    for a, b, width in zip(one.counts, other.counts, one.widths, strict=True):
        if not width:  # of which there is no distribution
            continue
        least = max(0, a + b - width)
        mass = np.convolve(mass, hypergeom.pmf(np.arange(least, min(a, b) + 1), width, a, b))
        floor += least
        # Far tails would make a thousand experts slow, and tell nothing a double can hold.
        there = np.flatnonzero(mass > 1e-300)
        mass, floor = mass[there[0] : there[-1] + 1], floor + int(there[0])
    at = len(shared) - floor
    p_more = 1.0 if at <= 0 else float(mass[at:].sum())
    p_fewer = 0.0 if at < 0 else float(mass[: at + 1].sum())
    united = len(one) + len(other) - len(shared)
    return Overlap(
        shared=len(shared),
        expected=float(expected),
        p_more=min(1.0, p_more),
        p_fewer=min(1.0, p_fewer),
        jaccard=len(shared) / united if united else float("nan"),
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
        raise UsageError(f"expansion ratio {expansion} must be a number above 0")
    kept = math.ceil(Fraction(repr(float(expansion))) * hidden)
    if kept > width:
        raise UsageError(
            f"expansion ratio {expansion} asks for {kept} neurons where the layer has {width}; "
            f"give at most {width / hidden:g}"
        )
    return kept


def lowest(scores: Sequence[np.ndarray], fraction: float) -> NeuronSet:
    """The lowest-scored floor(fraction * width) neurons of every MLP; ties by index, ascending.

    `budget.choose` does the same for every other way to say how much goes.
    """
    return NeuronSet(
        tuple(len(mlp) for mlp in scores),
        tuple(np.argsort(mlp, kind="stable")[: cut_count(len(mlp), fraction)] for mlp in scores),
    )


def ties_at_the_cut(scores: Sequence[np.ndarray], cut: NeuronSet) -> int:
    """How many kept neurons have the score of a cut one of their MLP: chance by index only."""
    tied = 0
    for mlp, chosen in zip(scores, cut.indices, strict=True):
        if len(chosen):
            tied += int((mlp == mlp[chosen].max()).sum())
            tied -= int((mlp[chosen] == mlp[chosen].max()).sum())
    return tied
