"""The default engine: forward pre-hooks on `down_proj`. Exact, and about as fast as no hooks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from ..prune.mlps import find_mlps, watching
from .engine import Context, Visit

_NO_LIMIT = 1 << 40
_TAKE_MASKS = ("sdpa", "eager")
"""Attention kernels that follow a mask of any shape."""


class HooksEngine:
    """Watches a Transformers causal language model: whole, masked or pruned, of even width or not,
    experts included."""

    name = "hooks"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.mlps = find_mlps(model)
        self.dense = all(mlp.down is not None for mlp in self.mlps)
        self.widths = tuple(mlp.width for mlp in self.mlps)
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.shares_up_to = shares_up_to(model)

    def forward(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        visit: Visit | None = None,
        context: Context | None = None,
    ) -> Tensor | None:
        """See `Engine.forward`."""
        given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if context is not None:
            given |= context_arguments(self.model, ids, context)
        with ExitStack() as undo:
            if visit is not None:
                undo.enter_context(watching(self.mlps, visit))
            if keep is None:
                self.model.base_model(**given)
                return None
            undo.callback(_only(self.model.get_output_embeddings(), keep))
            return self.model(**given).logits[0]

    def remember(self, ids: Tensor, visit: Visit | None = None) -> Any:
        """See `Engine.remember`; keys and values [1, heads, column, size] of every layer."""
        cache: Any = DynamicCache()  # without a config it forgets nothing, windows or not
        with ExitStack() as undo:
            if visit is not None:
                undo.enter_context(watching(self.mlps, visit))
            self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]


def shares_up_to(model: Any) -> int:
    """The longest text that may be run with a mask and positions of its own making."""
    config = model.config.get_text_config()
    if config._attn_implementation not in _TAKE_MASKS:
        return 0
    # A mask given as it is stands for every layer; within the window all layers see everything.
    return min(getattr(config, "sliding_window", None) or _NO_LIMIT, _same_rotation(config))


def _same_rotation(config: Any) -> int:
    """The longest text whose beginning is rotated as it would be by itself: some kinds turn by
    the longest position in the batch, so that keys remembered from a shorter one do not fit."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if not any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds):
        return _NO_LIMIT
    limits = [kind.get("original_max_position_embeddings") for kind in kinds]
    limits.append(getattr(config, "original_max_position_embeddings", None))
    found = [int(limit) for limit in limits if limit]
    return min(found or [config.max_position_embeddings])


def context_arguments(model: Any, ids: Tensor, context: Context) -> dict[str, Any]:
    """What a Transformers model must be given besides the ids."""
    mask = context.sees[:, None]
    if model.config.get_text_config()._attn_implementation == "eager":
        low = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(
            ~mask, low
        )
    given = {"position_ids": context.positions, "attention_mask": mask}
    if context.past is None:
        return given
    cache: Any = DynamicCache()
    cache.layers = [_Remembered(keys, values, len(ids)) for keys, values in context.past]
    return {**given, "past_key_values": cache, "use_cache": True}


class _Remembered(DynamicLayer):
    """The keys and values of a beginning, shown to every row and never added to."""

    def __init__(self, keys: Tensor, values: Tensor, rows: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys = keys.expand(rows, -1, -1, -1)
        self.values = values.expand(rows, -1, -1, -1)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return (
            torch.cat([self.keys, key_states], dim=-2),
            torch.cat([self.values, value_states], dim=-2),
        )


def _only(head: Any, keep: Tensor) -> Any:
    """Let the head see only some tokens: [1, len(keep), hidden]. Returns what takes it back.

    Whatever a family does to its logits afterwards (caps, scales) it does to each by itself.
    """

    def gather(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0].reshape(-1, args[0].shape[-1])
        return (states[keep.to(states.device)][None], *args[1:])

    return head.register_forward_pre_hook(gather).remove
