"""Taking neurons out of a live model: for good, or for the time of a `with` block.

Zeroing the activation of a neuron and cutting its row of gate, row of up and column of down compute
the same function where the projections have no bias; the tests hold both to 1e-4 in float32. With a
gate or up bias too the two agree, since a neuron that is gone has no activation either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .glu import GluLayer, glu_layers
from .selection import NeuronSet


def _check(layers: Sequence[GluLayer], neurons: NeuronSet) -> None:
    widths = tuple(layer.width for layer in layers)
    if widths != neurons.widths:
        raise UsageError(
            f"the set is of a model with widths {_short(neurons.widths)}, this one has "
            f"{_short(widths)}; make the set from this model's own scores"
        )


def _short(widths: tuple[int, ...]) -> str:
    return f"{len(widths)} x {widths[0]}" if len(set(widths)) == 1 else str(list(widths))


def _slice(linear: nn.Linear, keep: Tensor, dim: int) -> nn.Linear:
    """`linear` with the kept rows (dim 0) or columns (dim 1); the original is not touched."""
    weight = linear.weight.detach().index_select(dim, keep.to(linear.weight.device)).clone()
    # Made on `meta`: nothing is initialised only to be overwritten.
    new = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    new.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        bias = linear.bias.detach()
        bias = bias.index_select(0, keep.to(bias.device)) if dim == 0 else bias
        new.bias = nn.Parameter(bias.clone(), requires_grad=linear.bias.requires_grad)
    return new.train(linear.training)


def resize(model: nn.Module, cut: NeuronSet) -> nn.Module:
    """Cut neurons from the live model, in gate/up pairs, and resize `down` to match.

    The model is changed in place and returned. All new matrices are made before the first is
    exchanged, so a failure (memory, a wrong set) leaves the model as it was. Where all layers keep
    the same width `config.intermediate_size` follows, and the saved model loads with stock
    Transformers.

    Raises:
        UsageError: the set belongs to another shape, or would empty a layer.
    """
    layers = glu_layers(model)
    _check(layers, cut)
    kept = cut.complement()
    for layer, count in enumerate(kept.counts):
        if count == 0:
            raise UsageError(f"layer {layer}: all neurons would go; leave at least one")
    made = []
    for layer, indices in zip(layers, kept.indices, strict=True):
        keep = torch.from_numpy(indices.copy())
        made.append(
            (_slice(layer.gate, keep, 0), _slice(layer.up, keep, 0), _slice(layer.down, keep, 1))
        )
    for layer, (gate, up, down) in zip(layers, made, strict=True):
        layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj = gate, up, down
        if hasattr(layer.mlp, "intermediate_size"):
            layer.mlp.intermediate_size = down.in_features  # pyright: ignore
    config: Any = getattr(model, "config", None)
    if config is not None and len(set(kept.counts)) == 1:
        config.get_text_config().intermediate_size = kept.counts[0]
    return model


@contextmanager
def masked(model: nn.Module, cut: NeuronSet) -> Iterator[nn.Module]:
    """Within the block the neurons of `cut` are silent at every position; no weight is changed.

    Raises:
        UsageError: the set belongs to another shape.
    """
    layers = glu_layers(model)
    _check(layers, cut)
    handles = []
    try:
        for layer, indices in zip(layers, cut.indices, strict=True):
            if not len(indices):
                continue
            weight = layer.down.weight
            alive = torch.ones(layer.width, dtype=weight.dtype, device=weight.device)
            alive[torch.from_numpy(indices.copy()).to(weight.device)] = 0

            def silence(
                module: nn.Module, args: tuple[Tensor, ...], alive: Tensor = alive
            ) -> tuple[Tensor, ...]:
                activation, *rest = args
                return (activation * alive, *rest)

            handles.append(layer.down.register_forward_pre_hook(silence))
        yield model
    finally:
        for handle in handles:
            handle.remove()
