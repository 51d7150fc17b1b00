"""The MLPs of a live model: their weights as views, and their activations as they pass.

A gated linear unit computes ``down(act(gate(x)) * up(x))``. Neuron ``i`` is row ``i`` of ``gate``,
row ``i`` of ``up`` and column ``i`` of ``down``; its *activation* is entry ``i`` of what enters
``down``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .layout import MlpLayout, Slot, locate


@dataclass(frozen=True, eq=False)
class Mlp:
    """One MLP of a live model: the dense one of a layer, or one expert."""

    layout: MlpLayout
    model: nn.Module

    @property
    def index(self) -> int:
        """Place among all MLPs of the model."""
        return self.layout.index

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.layout.width

    def view(self, role: str) -> Tensor | None:
        """The weights of a role (`gate`, `up`, `down`, `gate_bias`, `up_bias`), without a copy.

        `gate` and `up` are [neurons, hidden], `down` is [hidden, neurons], biases [neurons],
        however the model stores them. None where there is no such matrix.
        """
        slot = self.layout.slots.get(role)
        if slot is None:
            return None
        return oriented(self.model.get_parameter(slot.tensor), slot, self.layout)

    @property
    def weights(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """`gate` [neurons, hidden] or None, `up` [neurons, hidden], `down` [hidden, neurons]."""
        up, down = self.view("up"), self.view("down")
        assert up is not None
        assert down is not None
        return self.view("gate"), up, down

    @property
    def down(self) -> nn.Module | None:
        """The module that the activations enter; None for an expert in a stacked tensor."""
        slot = self.layout.slots["down"]
        if slot.expert is not None:
            return None
        return self.model.get_submodule(slot.tensor.rpartition(".")[0])

    @property
    def experts(self) -> nn.Module:
        """The module that holds the stacked tensors this expert is part of."""
        return self.model.get_submodule(self.layout.slots["down"].tensor.rpartition(".")[0])


def oriented(tensor: Tensor, slot: Slot, layout: MlpLayout) -> Tensor:
    """The part of a stored tensor that a slot names, as `Mlp.view` gives it."""
    if slot.expert is not None:
        tensor = tensor[slot.expert]
    part = tensor.narrow(slot.axis, slot.start, layout.width)
    if part.ndim == 1:
        return part
    wanted = 1 if layout.slots.get("down") == slot else 0
    return part if slot.axis == wanted else part.T


def find_mlps(model: nn.Module) -> list[Mlp]:
    """The MLPs of `model`, in the order of its layers; within a layer experts, then shared ones.

    Raises:
        ModelError: the family is not supported, or the weights disagree or are quantised.
    """
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} has no config; give a Transformers model")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    text_config = config.get_text_config()
    # A model that was trimmed after loading no longer has the padded shapes of its checkpoint.
    layouts = locate({n: tuple(p.shape) for n, p in parameters.items()}, text_config)
    for layout in layouts:
        for slot in layout.slots.values():
            if not parameters[slot.tensor].is_floating_point():
                raise ModelError(
                    f"{slot.tensor} is {parameters[slot.tensor].dtype}: quantised weights cannot "
                    "be scored or cut; load the model in bfloat16, float16 or float32"
                )
    return [Mlp(layout, model) for layout in layouts]


See = Callable[[int, Tensor, Tensor], Tensor | None]
"""`see(mlp, rows, tokens)`: the activations [n, neurons] that pass an MLP and the flat index
[n] of each row's token in the batch; may return rows to put in their place."""


@contextmanager
def watching(mlps: Sequence[Mlp], see: See) -> Iterator[None]:
    """Within the block every activation of these MLPs goes through `see`; no weight changes.

    Stacked experts are computed one by one meanwhile: their fused kernels have no place to look.
    """
    undo: list[Callable[[], Any]] = []
    stacked: dict[int, tuple[Any, dict[int, int]]] = {}
    try:
        for mlp in mlps:
            down = mlp.down
            if down is None:
                _, places = stacked.setdefault(id(mlp.experts), (mlp.experts, {}))
                assert mlp.layout.expert is not None
                places[mlp.layout.expert] = mlp.index
                continue

            def hook(
                module: nn.Module, args: tuple[Any, ...], index: int = mlp.index
            ) -> tuple[Any, ...] | None:
                whole: Tensor = args[0]
                rows = whole.reshape(-1, whole.shape[-1])
                new = see(index, rows, torch.arange(len(rows), device=rows.device))
                return None if new is None else (new.reshape(whole.shape), *args[1:])

            undo.append(down.register_forward_pre_hook(hook).remove)
        for module, places in stacked.values():
            undo.append(_watch_experts(module, places, see))
        yield
    finally:
        for take_away in reversed(undo):
            take_away()


_WATCHERS = "_glulens_watchers"
"""Where a module of stacked experts keeps who watches it, the first first."""


def _watch_experts(module: Any, places: dict[int, int], see: See) -> Callable[[], None]:
    """Show the activations of some experts to `see`, after those who watch already."""
    watchers = module.__dict__.setdefault(_WATCHERS, [])
    if not watchers:
        module.__dict__["_glulens_forward"] = module.__dict__.get("forward")
        module.forward = _expert_by_expert(module, watchers)
    mine = (places, see)
    watchers.append(mine)

    def take_away() -> None:
        watchers[:] = [other for other in watchers if other is not mine]
        if not watchers:
            before = module.__dict__.pop("_glulens_forward")
            del module.forward, module.__dict__[_WATCHERS]
            if before is not None:
                module.forward = before

    return take_away


def _expert_by_expert(
    module: Any, watchers: list[tuple[dict[int, int], See]]
) -> Callable[..., Tensor]:
    """Transformers' experts, written out so that each one's activations can be seen."""

    def forward(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        out = torch.zeros_like(hidden_states)
        for expert in range(module.down_proj.shape[0]):
            token, choice = torch.where(top_k_index == expert)
            if not len(token):
                continue
            both = nn.functional.linear(hidden_states[token], module.gate_up_proj[expert])
            gate, up = both.chunk(2, dim=-1)
            rows = module.act_fn(gate) * up
            for places, see in watchers:
                if expert in places:
                    new = see(places[expert], rows, token)
                    rows = rows if new is None else new
            written = nn.functional.linear(rows, module.down_proj[expert])
            written = written * top_k_weights[token, choice, None]
            out = out.index_add(0, token, written.to(out.dtype))
        return out

    return forward
