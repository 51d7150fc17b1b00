"""What every engine can do: run token ids through a model while its neurons are watched.

An engine is one way of reaching the activations of a model's MLP neurons (what enters `down_proj`).
All do the same through one method, so that everything above is written once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import UsageError

if TYPE_CHECKING:
    from ..prune.models import OpenedModel
    from ..prune.selection import NeuronSet

Visit = Callable[[int, Tensor], Tensor | None]
"""`visit(layer, activation)`: sees the activations [batch, position, neuron] of a layer, in order
of layers, and may return a tensor to put in their place."""

ENGINES = ("hooks", "lens")


class Engine(Protocol):
    """A model whose neurons can be watched and replaced."""

    name: str
    widths: tuple[int, ...]
    """Neurons, by layer."""
    device: torch.device
    """Where token ids must be."""

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, visit: Visit | None = None
    ) -> Tensor | None:
        """Run a batch.

        Args:
            ids: token ids [batch, position], padded on the right. Attention is causal, so what
                stands right of a text cannot change it and no padding mask is needed.
            keep: positions (sorted, unique) whose logits are wanted; without it the head is not
            run. visit: called with every layer's activations.

        Returns:
            Logits [batch, len(keep), vocabulary], or None without `keep`.
        """
        ...


def make_engine(opened: OpenedModel, name: str = "hooks") -> Engine:
    """The engine called `name` on an opened model.

    Raises:
        UsageError: unknown engine, or its library is not installed.
        ModelError: the model has no neurons the engine can reach.
    """
    if name == "hooks":
        from .hooks import HooksEngine

        return HooksEngine(opened.model)
    if name == "lens":
        from .lens import LensEngine

        return LensEngine(opened.model)
    raise UsageError(f"unknown engine {name!r}; allowed are {', '.join(ENGINES)}")


def silencer(cut: NeuronSet, *, spare_first: bool = False) -> Visit:
    """A visit that zeroes the activations of a set: pruning by another name.

    Args:
        spare_first: leave position 0 as it is. Models park huge activations there that belong to no
            text; attributions leave it out, and so must the ablation that checks them.
    """
    index = [torch.from_numpy(chosen.copy()) for chosen in cut.indices]

    def visit(layer: int, activation: Tensor) -> Tensor | None:
        if not len(index[layer]):
            return None
        changed = activation.clone()
        changed[:, int(spare_first) :, index[layer].to(activation.device)] = 0
        return changed

    return visit
