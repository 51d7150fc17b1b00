"""The model families whose MLPs glulens reads, and what differs between them.

What a checkpoint calls its matrices is the business of `layout`; here is what the names do not say:
which norm feeds the MLP, how that norm stores its gain, and which config entries hold widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Part = Literal["dense", "expert", "shared"]
"""A layer's only MLP, a routed expert, or the experts that every token passes through."""


@dataclass(frozen=True)
class Family:
    """What differs between families, by Transformers' `model_type`."""

    kind: Literal["separate", "fused", "experts", "plain"] = "separate"
    """`plain` is a two-matrix MLP: up, activation, down, and no gate."""
    norm: str | None = "post_attention_layernorm"
    """The norm whose output the MLP reads; None where it reads the residual stream as it is."""
    norm_offset: float = 0.0
    """1 where the stored weight is the gain minus one."""
    width_key: str = "intermediate_size"
    """The config's entry for the width of a dense MLP."""


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(norm_offset=1.0),
    "gemma2": Family(norm="pre_feedforward_layernorm", norm_offset=1.0),
    "gemma3_text": Family(norm="pre_feedforward_layernorm", norm_offset=1.0),
    "olmo2": Family(norm=None),
    "granite": Family(),
    "smollm3": Family(),
    "cohere": Family(norm="input_layernorm"),
    "phi3": Family("fused"),
    "glm": Family("fused"),
    "glm4": Family("fused"),
    "mixtral": Family("experts"),
    "qwen2_moe": Family("experts"),
    "qwen3_moe": Family("experts"),
    "olmoe": Family("experts"),
    "deepseek_v2": Family("experts"),
    "deepseek_v3": Family("experts"),
    "gpt2": Family("plain", norm="ln_2", width_key="n_inner"),
    "gpt_neox": Family("plain"),
    "opt": Family("plain", norm="final_layer_norm", width_key="ffn_dim"),
}

SUPPORTED = ", ".join(FAMILIES)


def width_entry(config: Any, part: Part) -> tuple[str, int]:
    """The config's entry that holds the width of such an MLP, and what it is multiplied by.

    DeepSeek's shared experts are one MLP, `n_shared_experts` times as wide as a routed one.
    """
    if part == "expert":
        return (
            ("moe_intermediate_size", 1)
            if hasattr(config, "moe_intermediate_size")
            else (
                "intermediate_size",
                1,
            )
        )
    if part == "shared":
        if hasattr(config, "shared_expert_intermediate_size"):
            return "shared_expert_intermediate_size", 1
        return "moe_intermediate_size", int(config.n_shared_experts)
    family = FAMILIES.get(getattr(config, "model_type", ""), Family())
    return family.width_key, 1
