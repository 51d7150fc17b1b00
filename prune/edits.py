"""What cutting neurons does to each stored tensor: one plan for live models and for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from .layout import MlpLayout
from .selection import NeuronSet

ZERO = -1
"""In a list of kept neurons: a neuron of zero weights, which computes nothing."""
EXPERT_ALIGNMENT = 8
"""Grouped matrix products, which Transformers runs experts with, take rows of multiples of 16
bytes: 8 neurons in two-byte dtypes. Stored experts are padded to that."""


@dataclass(frozen=True, eq=False)
class Edit:
    """How one tensor is rebuilt: rows or columns taken along an axis."""

    axis: int
    """Of the matrix; the stack's axis, if there is one, does not count."""
    indices: tuple[np.ndarray, ...]
    """Places on the axis, `ZERO` for zeros; one array, or one for every matrix of a stack."""
    stacked: bool

    def shape(self, old: Sequence[int]) -> tuple[int, ...]:
        """The tensor's new shape."""
        new = list(old)
        new[self.axis + self.stacked] = len(self.indices[0])
        return tuple(new)

    def apply(self, tensor: Tensor) -> Tensor:
        """The rebuilt tensor, of the same dtype on the same device; the old one is not touched."""
        if not self.stacked:
            return take_rows(tensor, self.axis, self.indices[0])
        new = tensor.new_empty(self.shape(tensor.shape))
        for place, index in enumerate(self.indices):
            new[place] = take_rows(tensor[place], self.axis, index)
        return new


_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def take_rows(tensor: Tensor, axis: int, index: np.ndarray) -> Tensor:
    place = np.maximum(index, 0)
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        # numpy moves columns of two-byte words twice as fast as index_select, rows four times.
        words: Any = tensor.view(_WORDS[tensor.element_size()]).numpy()
        new = torch.from_numpy(np.take(words, place, axis=axis)).view(tensor.dtype)
    else:
        new = tensor.index_select(axis, torch.from_numpy(place).to(tensor.device))
    empty = np.flatnonzero(index == ZERO)
    if len(empty):
        new.index_fill_(axis, torch.from_numpy(empty).to(tensor.device), 0)
    return new


def plan_edits(
    layouts: Sequence[MlpLayout], kept: Sequence[np.ndarray], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Edit]:
    """Every tensor that changes, and how.

    Args:
        kept: per MLP, the neurons that stay, in their new order; `ZERO` for padding.
        shapes: of all tensors.
    """
    single: dict[str, dict[int, np.ndarray]] = {}
    stacked: dict[str, dict[int, np.ndarray]] = {}
    axes: dict[str, int] = {}
    for layout, index in zip(layouts, kept, strict=True):
        for slot in layout.slots.values():
            axes[slot.tensor] = slot.axis
            there = np.where(index == ZERO, ZERO, index + slot.start)
            if slot.expert is None:
                single.setdefault(slot.tensor, {})[slot.start] = there
            else:
                halves = stacked.setdefault(slot.tensor, {})
                before = halves.get(slot.expert, np.array([], int))
                # `gate` comes before `up` in the sorted slots, as it does in a fused tensor.
                halves[slot.expert] = np.concatenate([before, there])
    edits = {
        name: Edit(axes[name], (np.concatenate([parts[start] for start in sorted(parts)]),), False)
        for name, parts in single.items()
    }
    for name, parts in stacked.items():
        if len({len(index) for index in parts.values()}) > 1:
            raise UsageError(
                f"{name}: the experts of a layer must keep the same number of neurons, not "
                f"{min(map(len, parts.values()))} to {max(map(len, parts.values()))}"
            )
        edits[name] = Edit(axes[name], tuple(parts[e] for e in range(shapes[name][0])), True)
    return edits


def kept_indices(layouts: Sequence[MlpLayout], cut: NeuronSet) -> list[np.ndarray]:
    """Per MLP, the neurons that stay when a set goes.

    Raises:
        UsageError: the set belongs to another shape, or would empty an MLP.
    """
    cut.check([layout.width for layout in layouts])
    kept = [np.array(index) for index in cut.complement().indices]
    for layout, index in zip(layouts, kept, strict=True):
        if not len(index):
            raise UsageError(f"{layout.name}: all neurons would go; leave at least one")
    return kept


def padded(
    layouts: Sequence[MlpLayout], kept: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], dict[str, int], bool]:
    """Lengthen lists of kept neurons with `ZERO` until one config describes every MLP.

    Experts are lengthened to multiples of `EXPERT_ALIGNMENT` too.

    Returns:
        The lists; the new value of every width entry in the config; whether any was lengthened.
    """
    entries: dict[str, int] = {}
    for layout, index in zip(layouts, kept, strict=True):
        wanted = -(-len(index) // layout.multiple)
        if layout.part == "expert":
            wanted = -(-wanted // EXPERT_ALIGNMENT) * EXPERT_ALIGNMENT
        entries[layout.width_key] = max(entries.get(layout.width_key, 0), wanted)
    lists = [
        np.concatenate(
            [index, np.full(entries[layout.width_key] * layout.multiple - len(index), ZERO)]
        )
        for layout, index in zip(layouts, kept, strict=True)
    ]
    lengthened = any(len(new) != len(old) for new, old in zip(lists, kept, strict=True))
    return lists, entries, lengthened


def even_entries(layouts: Sequence[MlpLayout], widths: Sequence[int]) -> dict[str, int] | None:
    """The width entries of the config if one value describes all MLPs, else None."""
    entries: dict[str, set[Any]] = {}
    for layout, width in zip(layouts, widths, strict=True):
        whole = width // layout.multiple if width % layout.multiple == 0 else None
        entries.setdefault(layout.width_key, set()).add(whole)
    if any(len(values) > 1 or None in values for values in entries.values()):
        return None
    return {name: int(next(iter(values))) for name, values in entries.items()}
