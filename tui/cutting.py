"""What a cut would take away: who leaves, how many parameters, and what the properties lose.

The neurons are those that `prune.budget.choose` takes for the same criterion, fraction and divisor:
the lowest-scored floor(fraction * width) of every MLP, or, over the whole model, as many in all,
each MLP standardised within itself, where the experts of a layer lose the same number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import UsageError
from ..prune.selection import NeuronSet, cut_count
from .columns import Columns
from .ordering import ascending
from .sets import chosen

Scope = Literal["layer", "model"]
TOP = 0.01
"""Of a layer's neurons, those whose loss is counted."""


@dataclass(frozen=True)
class Parameters:
    """How many numbers go with the neurons.

    Attributes:
        removed: by the cut.
        per_neuron: of one neuron.
        total: of the model before; None where the run does not say.
        assumed: whether `per_neuron` is three times the hidden size (gate, up, down; no biases)
            because the run does not say more; None where it does not even say that, and 0 is given.
    """

    removed: int
    per_neuron: int
    total: int | None
    assumed: bool | None


@dataclass(frozen=True, eq=False)
class Cut:
    """The neurons that leave.

    Attributes:
        leaving: bool [n].
        counts: how many leave, by MLP.
        ties: kept neurons that score like a cut one of their MLP: chance by index only.
    """

    criterion: str
    scope: Scope
    fraction: float
    divisor: int
    leaving: np.ndarray
    counts: tuple[int, ...]
    ties: int
    parameters: Parameters

    @property
    def total(self) -> int:
        """How many leave."""
        return sum(self.counts)

    def neurons(self, columns: Columns) -> NeuronSet:
        """As a set, for `glulens prune --cut-set`, algebra, or `NeuronSet.overlap`."""
        return chosen(columns, self.leaving)

    def by_layer(self, columns: Columns) -> Iterator[tuple[int, int, int]]:
        """Layer, its neurons, and how many leave."""
        for layer in columns.layers:
            rows = columns.rows_of(layer)
            yield layer, rows.stop - rows.start, int(np.count_nonzero(self.leaving[rows]))


class Queue:
    """The order in which neurons leave; made once a criterion, it gives a cut of any size at once.

    Takes 4 bytes a neuron, and 2 more for the scope `model`.
    """

    def __init__(
        self,
        columns: Columns,
        criterion: str,
        scope: Scope = "layer",
        *,
        stay: np.ndarray | None = None,
        go: np.ndarray | None = None,
    ) -> None:
        """Rank the neurons.

        Args:
            columns: the run's.
            criterion: a column; the lowest leave first, ties by index, NaN last.
            scope: whether every MLP loses the same share, or all are ranked together.
            stay: pinned, bool [n]: they stay whatever their score, others go in their place.
            go: pinned, bool [n]: they leave first.

        Raises:
            UsageError: no such column, or a neuron is to stay and to go.
        """
        if stay is not None and go is not None and (both := np.flatnonzero(stay & go)).size:
            raise UsageError(
                f"{len(both):,} neurons are pinned to stay and to go (the first is "
                f"{columns.label(int(both[0]))}); take them out of one"
            )
        self.columns, self.criterion = columns, criterion
        self.scope: Scope = scope
        self._sizes = np.array([mlp.stop - mlp.start for mlp in columns.mlps])
        self._starts = np.array([mlp.start for mlp in columns.mlps])
        self._stay, self._go = (_counted(mask, self._starts) for mask in (stay, go))
        self._place = self._places(stay, go)
        self._owners = self._pooled(stay, go) if scope == "model" else None

    def cut(self, fraction: float, divisor: int = 1) -> Cut:
        """The neurons that leave at a fraction, in [0, 1); kept widths are rounded to the nearest
        multiple of the divisor, never to 0.

        Raises:
            UsageError: the fraction or divisor is out of range, or pins do not fit.
        """
        if divisor < 1:
            raise UsageError(f"divisor {divisor}: at least 1 is needed")
        sizes = self._sizes.tolist()
        kept = [size - cut_count(size, fraction) for size in sizes]
        if self._owners is not None:
            kept = self._kept_of(sum(sizes) - sum(kept))
        kept = [_rounded(count, size, divisor) for count, size in zip(kept, sizes, strict=True)]
        counts = self._sizes - kept
        self._check_pins(counts, np.array(kept))
        leaving = self._place < np.repeat(counts.astype(np.int32), self._sizes)
        return Cut(
            criterion=self.criterion,
            scope=self.scope,
            fraction=fraction,
            divisor=divisor,
            leaving=leaving,
            counts=tuple(counts.tolist()),
            ties=self._ties(leaving),
            parameters=_parameters(self.columns.manifest, int(counts.sum())),
        )

    def step(self, fraction: float, steps: int, divisor: int = 1) -> float:
        """The fraction so many steps further, each of `divisor` neurons of the widest MLP."""
        width = int(self._sizes.max())
        count = cut_count(width, fraction) // divisor * divisor + steps * divisor
        count = min(max(count, 0), (width - 1) // divisor * divisor)
        found = count / width
        while cut_count(width, found) < count:  # 1/3 of 3 is 0.99 of one, in binary
            found = math.nextafter(found, 1)
        return found

    def _places(self, stay: np.ndarray | None, go: np.ndarray | None) -> np.ndarray:
        """Place of each row in the queue of its MLP, int32 [n]."""
        mlps = len(self._sizes)
        # Three queues an MLP, one behind the other: those that must go, the rest, those that stay.
        kind = np.repeat(3 * np.arange(mlps, dtype=np.min_scalar_type(3 * mlps)), self._sizes) + 1
        if go is not None:
            kind[go] -= 1
        if stay is not None:
            kind[stay] += 1
        order = self.columns.order(self.criterion)
        rows = order[np.argsort(kind[order], kind="stable")]
        place = np.empty(self.columns.n, np.int32)
        place[rows] = np.arange(self.columns.n, dtype=np.int32)
        place -= np.repeat(self._starts.astype(np.int32), self._sizes)
        return place

    def _pooled(self, stay: np.ndarray | None, go: np.ndarray | None) -> np.ndarray:
        """The MLPs of all neurons, in the order in which they leave when ranked together, [n]."""
        standard = self.columns[self.criterion].astype(np.float64)
        for mlp in self.columns.mlps:
            scores = standard[mlp.start : mlp.stop]
            finite = np.isfinite(scores)
            spread = scores[finite].std() if finite.any() else 0.0
            scores -= scores[finite].mean() if finite.any() else 0.0
            scores /= spread or 1.0
            rows = slice(mlp.start, mlp.stop)
            if go is not None:
                scores[go[rows]] = -np.inf
            if stay is not None:
                scores[stay[rows]] = np.inf
            # One neuron of every MLP stays: an empty one would be another architecture.
            scores[np.argmax(scores)] = np.inf
        mlps = len(self._sizes)
        owner = np.repeat(np.arange(mlps, dtype=np.min_scalar_type(mlps)), self._sizes)
        return owner[ascending(standard)]

    def _kept_of(self, cut: int) -> list[int]:
        """Neurons that stay in every MLP when about `cut` go from all."""
        assert self._owners is not None
        counts = np.bincount(self._owners[:cut], minlength=len(self._sizes))
        groups: dict[tuple[int, str], list[int]] = {}
        for place, mlp in enumerate(self.columns.mlps):
            groups.setdefault((mlp.layer, mlp.part), []).append(place)
        kept = self._sizes.tolist()
        over = 0.0  # cut beyond the ranks' own numbers so far, handed to the next group
        for places in groups.values():
            wanted = float(counts[places].sum()) - over
            each = min(max(round(wanted / len(places)), 0), kept[places[0]] - 1)
            over = each * len(places) - wanted
            for place in places:
                kept[place] -= each
        return kept

    def _check_pins(self, cut: np.ndarray, kept: np.ndarray) -> None:
        for pinned, room, what in ((self._stay, kept, "stay"), (self._go, cut, "go")):
            if (short := np.flatnonzero(pinned > room)).size:
                at = int(short[0])
                less = {"stay": "less", "go": "more"}[what]
                raise UsageError(
                    f"{self.columns.mlps[at].name}: {pinned[at]:,} neurons are pinned to {what} "
                    f"where {room[at]:,} may; pin fewer or cut {less}"
                )

    def _ties(self, leaving: np.ndarray) -> int:
        scores, tied = self.columns[self.criterion], 0
        for mlp in self.columns.mlps:
            some, gone = scores[mlp.start : mlp.stop], leaving[mlp.start : mlp.stop]
            if gone.any() and not gone.all():
                last = np.fmax.reduce(some[gone])
                tied += int(np.count_nonzero((some == last) & ~gone))
        return tied


@dataclass(frozen=True, eq=False)
class Top:
    """The 1 % of each layer's neurons with the largest magnitudes, by one column; rows [k]."""

    property: str
    column: str
    rows: np.ndarray


def tops(columns: Columns) -> tuple[Top, ...]:
    """The top neurons of every property, by |attribution|, else by |d_z|; no NaN among them."""
    found = []
    for name in dict.fromkeys([*columns.attributions, *columns.contrasts]):
        column = f"attr_{name}" if name in columns.attributions else f"dz_{name}"
        sizes = np.abs(columns[column])
        rows = []
        for layer in columns.layers:
            part = columns.rows_of(layer)
            some = sizes[part]
            best = ascending(some, descending=True)[: max(1, round(TOP * len(some)))]
            rows.append(part.start + best[~np.isnan(some[best])])
        found.append(Top(name, column, np.concatenate(rows)))
    return tuple(found)


@dataclass(frozen=True)
class Loss:
    """Top neurons that leave.

    Attributes:
        top: how many there are.
        lost: how many of them leave.
        expected, sd: mean and standard deviation of that were as many neurons cut at random from
            each MLP. Criteria and functions share causes; a difference does not name one.
    """

    property: str
    column: str
    top: int
    lost: int
    expected: float
    sd: float


def losses(columns: Columns, cut: Cut, some: Sequence[Top]) -> tuple[Loss, ...]:
    """What each property loses of its top neurons (see `tops`)."""
    sizes = np.array([mlp.stop - mlp.start for mlp in columns.mlps], float)
    starts = np.array([mlp.start for mlp in columns.mlps])
    share = np.array(cut.counts) / sizes
    found = []
    for top in some:
        at = np.searchsorted(starts, top.rows, side="right") - 1
        held = np.bincount(at, minlength=len(sizes))
        # Hypergeometric in each MLP, and MLPs are independent.
        spread = held * share * (1 - share) * (sizes - held) / np.maximum(sizes - 1, 1)
        found.append(
            Loss(
                property=top.property,
                column=top.column,
                top=len(top.rows),
                lost=int(np.count_nonzero(cut.leaving[top.rows])),
                expected=float((held * share).sum()),
                sd=float(np.sqrt(spread.sum())),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class Agreement:
    """What two cuts share; `expected` is the mean were both drawn at random with their counts in
    each MLP. `NeuronSet.overlap` gives the probabilities."""

    criterion: str
    shared: int
    expected: float
    jaccard: float
    """Shared over united; NaN for two empty cuts."""


def agreement(cut: Cut, other: Cut, sizes: Sequence[int]) -> Agreement:
    """How far another cut takes the same neurons.

    Args:
        sizes: neurons, by MLP (`Columns.widths`).
    """
    shared = int(np.count_nonzero(cut.leaving & other.leaving))
    united = cut.total + other.total - shared
    expected = sum(a * b / size for a, b, size in zip(cut.counts, other.counts, sizes, strict=True))
    return Agreement(
        other.criterion, shared, float(expected), shared / united if united else math.nan
    )


def _counted(mask: np.ndarray | None, starts: np.ndarray) -> np.ndarray:
    """How many rows of a mask are true, by MLP."""
    if mask is None:
        return np.zeros(len(starts), np.int64)
    return np.add.reduceat(mask, starts, dtype=np.int64)


def _rounded(kept: int, size: int, divisor: int) -> int:
    if divisor == 1 or kept == size:
        return kept
    whole = (2 * kept + divisor) // (2 * divisor)  # to the nearest, half up
    if whole * divisor > size:
        whole -= 1
    return min(max(whole, 1) * divisor, size)


def _parameters(manifest: Mapping[str, Any], cut: int) -> Parameters:
    model = manifest.get("model")
    model = model if isinstance(model, dict) else {}
    each, hidden = model.get("parameters_per_neuron"), model.get("hidden")
    total = model.get("parameters")
    total = total if isinstance(total, int) else None
    if isinstance(each, int) and each > 0:
        return Parameters(cut * each, each, total, False)
    if isinstance(hidden, int) and hidden > 0:
        return Parameters(cut * 3 * hidden, 3 * hidden, total, True)
    return Parameters(0, 0, total, None)
