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
from .engine import Visit


class LensEngine:
    """A model inside TransformerLens' `TransformerBridge`.

    Attributes:
        bridge: the bridge, for TransformerLens' own tools.
    """

    name = "lens"

    def __init__(self, model: Any) -> None:
        try:
            from transformer_lens.model_bridge.sources import build_bridge_from_module
        except ImportError as error:
            raise UsageError(
                "the lens engine needs TransformerLens: pip install 'glulens[lens]'"
            ) from error
        self.widths = tuple(mlp.width for mlp in find_mlps(model))
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
        self, ids: Tensor, *, keep: Tensor | None = None, visit: Visit | None = None
    ) -> Tensor | None:
        """See `Engine.forward`."""
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
                return see(layer, activation)

            hooks.append((name, hook))
        # Ids are given as they are: TransformerLens would put a BOS before a string.
        wanted = torch.tensor([0], device=ids.device) if keep is None else keep
        logits = self.bridge.run_with_hooks(
            ids, fwd_hooks=hooks, return_type="logits", use_cache=False, logits_to_keep=wanted
        )
        return None if keep is None else logits
