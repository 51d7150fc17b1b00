"""One view of the gated MLPs of a model, whatever its family.

A gated linear unit computes ``down(act(gate(x)) * up(x))``. Neuron ``i`` of a layer is row ``i`` of
``gate``, row ``i`` of ``up`` and column ``i`` of ``down``; its *activation* is entry ``i`` of what
enters ``down``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import ModelError

SEPARATE_FAMILIES = (
    "llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3, olmo2, granite, smollm3, cohere"
)


@dataclass(frozen=True)
class GluLayer:
    """The gated MLP of one layer, as the modules that the live model runs.

    Weights are `nn.Linear`'s: `gate` and `up` [neurons, hidden], `down` [hidden, neurons].
    """

    index: int
    mlp: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.down.in_features

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """`gate` [neurons, hidden], `up` [neurons, hidden], `down` [hidden, neurons]."""
        return self.gate.weight, self.up.weight, self.down.weight


def glu_layers(model: nn.Module) -> list[GluLayer]:
    """The gated MLPs of `model`, in the order of its layers.

    Raises:
        ModelError: no layer has separate `gate_proj`, `up_proj` and `down_proj`, or only some have
            (mixture-of-experts and fused projections are not read yet).
    """
    layers = []
    for name, module in model.named_modules():
        parts = [getattr(module, part, None) for part in ("gate_proj", "up_proj", "down_proj")]
        if ".experts." in name or ".shared_expert" in name:
            continue
        gate, up, down = parts
        if (
            isinstance(gate, nn.Linear)
            and isinstance(up, nn.Linear)
            and isinstance(down, nn.Linear)
        ):
            if not gate.out_features == up.out_features == down.in_features:
                raise ModelError(
                    f"{name}: gate, up and down disagree on the number of neurons "
                    f"({gate.out_features}, {up.out_features}, {down.in_features}); "
                    "the checkpoint is damaged, load it again"
                )
            layers.append(GluLayer(len(layers), module, gate, up, down))
    config = getattr(model, "config", None)
    text_config = config.get_text_config() if config is not None else None
    expected = getattr(text_config, "num_hidden_layers", len(layers))
    if not layers or len(layers) != expected:
        family = getattr(config, "model_type", type(model).__name__)
        raise ModelError(
            f"model family {family!r}: {len(layers)} of {expected} layers have separate gate_proj, "
            f"up_proj and down_proj; supported are {SEPARATE_FAMILIES} and others built like them"
        )
    return layers
