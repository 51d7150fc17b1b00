"""Taking neurons out of a live model.

Zeroing the activation of a neuron and cutting its row of gate, row of up and column of down compute
the same function; the tests hold both to 1e-5 in float32, with biases and without. (A bias of
`down` is no neuron's and stays.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from .edits import even_entries, kept_indices, padded, plan_edits
from .layout import MlpLayout, locate
from .mlps import find_mlps
from .selection import NeuronSet

RECORD = "glulens"
"""The config's entry that says how wide padded MLPs really are."""


def resize(model: nn.Module, cut: NeuronSet) -> Any:
    """Cut neurons from the live model, in gate/up pairs, and resize `down` to match.

    The model is changed in place and returned. All new tensors are made before the first is
    exchanged, so a failure (memory, a wrong set) leaves the model as it was. Where one config can
    describe all widths it follows, and the saved model loads with stock Transformers. Otherwise,
    and for experts, `pad` before saving.

    Raises:
        UsageError: the set belongs to another shape, would empty an MLP, or would leave the experts
            of a layer with different widths.
    """
    layouts = [mlp.layout for mlp in find_mlps(model)]
    kept = kept_indices(layouts, cut)
    _rebuild(model, layouts, kept, even_entries(layouts, [len(index) for index in kept]))
    _forget(model)
    return model


def pad(model: nn.Module) -> Any:
    """Widen MLPs with zero neurons until one config describes all, so that the model can be saved.

    Experts are also widened to multiples of 8 (see `edits.EXPERT_ALIGNMENT`). The function stays.
    True widths are noted in the config (`glulens`), and `open_model` trims by them.
    """
    layouts = [mlp.layout for mlp in find_mlps(model)]
    lists, entries, lengthened = padded(layouts, [np.arange(w.width) for w in layouts])
    _forget(model)
    if lengthened:
        _rebuild(model, layouts, lists, entries)
        model.config.glulens = {"widths": [w.width for w in layouts]}  # pyright: ignore
    return model


def trim(model: nn.Module) -> Any:
    """Take away the zero neurons that the config says `pad` or `glulens prune` added.

    Raises:
        ModelError: what the config says does not fit the model.
    """
    config: Any = model.config
    record = getattr(config, RECORD, None)
    if record is None:
        return model
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters(remove_duplicate=False)}
    layouts = locate(shapes, config.get_text_config(), true_widths(record))
    if any(layout.width != layout.stored for layout in layouts):
        _rebuild(model, layouts, [np.arange(layout.width) for layout in layouts], None)
    _forget(model)
    return model


def _forget(model: nn.Module) -> None:
    """Take the record of true widths out of the config: it no longer says what is there."""
    if hasattr(model.config, RECORD):
        delattr(model.config, RECORD)


def true_widths(record: Any) -> tuple[int, ...]:
    """The widths in the config's record; empty (which fits no model) where it is damaged."""
    widths = record.get("widths") if isinstance(record, Mapping) else None
    whole = isinstance(widths, list) and all(type(width) is int for width in widths)
    return tuple(widths) if whole and widths else ()


def _rebuild(
    model: nn.Module,
    layouts: Sequence[MlpLayout],
    kept: Sequence[np.ndarray],
    entries: Mapping[str, int] | None,
) -> None:
    """Exchange every tensor of the MLPs, all or none, and what records their widths."""
    old = {
        slot.tensor: model.get_parameter(slot.tensor)
        for layout in layouts
        for slot in layout.slots.values()
    }
    edits = plan_edits(layouts, kept, {name: tuple(p.shape) for name, p in old.items()})
    new = {name: edit.apply(old[name].detach()) for name, edit in edits.items()}
    for name, tensor in new.items():
        _exchange(model, name, tensor)
    for layout, index in zip(layouts, kept, strict=True):
        _note_width(model, layout, len(index))
    config: Any = model.config
    for entry, width in (entries or {}).items():
        setattr(config.get_text_config(), entry, width)
    narrow = [new[name] for name, edit in edits.items() if edit.stacked]
    if any(t.shape[-1] * t.element_size() % 16 for t in narrow):
        # Grouped matrix products refuse such rows; one expert after another takes any.
        model.set_experts_implementation("eager")  # pyright: ignore


def _exchange(model: nn.Module, name: str, tensor: Tensor) -> None:
    stem, _, leaf = name.rpartition(".")
    module: Any = model.get_submodule(stem)
    old = module._parameters[leaf]
    setattr(module, leaf, nn.Parameter(tensor, requires_grad=old.requires_grad))
    if leaf == "weight" and isinstance(module, nn.Linear):
        module.out_features, module.in_features = tensor.shape
    elif leaf == "weight" and hasattr(module, "nf"):  # GPT-2's Conv1D
        module.nx, module.nf = tensor.shape


def _note_width(model: nn.Module, layout: MlpLayout, width: int) -> None:
    """Modules of Transformers remember their width in an attribute; it must not go stale."""
    stem = layout.slots["down"].tensor.rpartition(".")[0]
    if layout.slots["down"].expert is None:
        stem = stem.rpartition(".")[0]
    module: Any = model.get_submodule(stem)
    for attribute in ("intermediate_size", "intermediate_dim"):
        if isinstance(getattr(module, attribute, None), int):
            setattr(module, attribute, width)
