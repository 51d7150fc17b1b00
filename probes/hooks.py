"""The default engine: forward pre-hooks on `down_proj`. Exact, and about as fast as no hooks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from ..prune.mlps import find_mlps
from .engine import Visit


class HooksEngine:
    """Watches a Transformers causal language model, whole, masked or pruned, of even width or
    not."""

    name = "hooks"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._mlps = find_mlps(model)
        if any(mlp.down is None for mlp in self._mlps):
            raise ModelError(
                "the hooks engine watches dense MLPs; a mixture of experts can be scored, pruned, "
                "masked and recorded (glulens.probes.recording.record), not contrasted yet"
            )
        self.widths = tuple(mlp.width for mlp in self._mlps)
        self.device: torch.device = model.get_input_embeddings().weight.device

    def forward(
        self, ids: Tensor, *, keep: Tensor | None = None, visit: Visit | None = None
    ) -> Tensor | None:
        """See `Engine.forward`."""
        handles = []
        try:
            for mlp in self._mlps if visit is not None else ():

                def hook(
                    module: Any,
                    args: tuple[Any, ...],
                    index: int = mlp.index,
                    see: Any = visit,
                ) -> tuple[Any, ...] | None:
                    # OPT flattens batch and positions before its MLPs.
                    replaced = see(index, args[0].reshape(*ids.shape, -1))
                    return (
                        None if replaced is None else (replaced.reshape(args[0].shape), *args[1:])
                    )

                assert mlp.down is not None
                handles.append(mlp.down.register_forward_pre_hook(hook))
            if keep is None:
                self._model.base_model(input_ids=ids, use_cache=False)
                return None
            return self._model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits
        finally:
            for handle in handles:
                handle.remove()
