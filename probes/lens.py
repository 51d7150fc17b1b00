"""The TransformerLens engine: the same activations under TransformerLens' hook names.

Wrapping rewrites the model in place and cannot be undone (`save_pretrained` fails afterwards): give
it a model of its own. Weights stay as they are; compatibility mode, which folds norms into gate and
up, is not used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, UsageError
from ..prune.mlps import find_mlps
from .engine import Context, Visit


class LensEngine:
    """A model inside TransformerLens' `TransformerBridge`.

    Attributes:
        bridge: the bridge, for TransformerLens' own tools.
    """

    name = "lens"
    dense = True
    shares_up_to = 0

    def __init__(self, model: Any) -> None:
        try:
            from transformer_lens.model_bridge.sources import build_bridge_from_module
        except ImportError as error:
            raise UsageError(
                "the lens engine needs TransformerLens: pip install 'glulens[lens]'"
            ) from error
        mlps = find_mlps(model)
        if any(mlp.down is None for mlp in mlps):
            raise ModelError(
                "TransformerLens shows a mixture of experts' output under a neuron's name; "
                "use --engine hooks"
            )
        self.widths = tuple(mlp.width for mlp in mlps)
        self.device: torch.device = model.get_input_embeddings().weight.device
        family = type(model).__name__
        try:
            self.bridge = build_bridge_from_module(model, family, hf_config=model.config)
        except (ValueError, KeyError) as error:
            raise ModelError(
                f"TransformerLens does not know {family} ({error}); use --engine hooks"
            ) from error
        self._names = [f"blocks.{i}.mlp.hook_post" for i in range(len(self.widths))]
        missing = [name for name in self._names if name not in self.bridge.hook_dict]
        if missing:
            raise ModelError(f"TransformerLens has no {missing[0]} on {family}; use --engine hooks")

    def forward(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        visit: Visit | None = None,
        context: Context | None = None,
    ) -> Tensor | None:
        """See `Engine.forward`; takes no context."""
        if context is not None:
            raise ValueError("the lens engine runs plain texts only")
        places = torch.arange(ids.numel(), device=ids.device)
        hooks = []
        for layer, name in enumerate(self._names if visit is not None else ()):

            def hook(
                activation: Tensor,
                hook: Any,
                layer: int = layer,
                see: Visit = visit,  # pyright: ignore
            ) -> Tensor | None:
                # On some families `hook_post` is the block's output under a neuron's name.
                if activation.shape[-1] != self.widths[layer]:
                    raise ModelError(
                        f"layer {layer}: TransformerLens shows {activation.shape[-1]} values for "
                        f"{self.widths[layer]} neurons; use --engine hooks"
                    )
                new = see(layer, activation.reshape(-1, activation.shape[-1]), places)
                return None if new is None else new.reshape(activation.shape)

            hooks.append((name, hook))
        # Only columns that are wanted in some row; ids are given as they are, since TransformerLens
        # would put a BOS before a string.
        columns = torch.tensor([0], device=ids.device)
        if keep is not None:
            columns = (keep % ids.shape[1]).unique()
        logits = self.bridge.run_with_hooks(
            ids, fwd_hooks=hooks, return_type="logits", use_cache=False, logits_to_keep=columns
        )
        if keep is None:
            return None
        column = torch.searchsorted(columns, keep % ids.shape[1])
        return logits[keep // ids.shape[1], column]

    def remember(self, ids: Tensor, visit: Visit | None = None) -> Any:
        """See `Engine.remember`; not possible here."""
        raise ValueError("the lens engine runs plain texts only")
