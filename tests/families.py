"""Small random models of every family: for algebra, never for a claim."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DEEPSEEK = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 8,
    "num_key_value_heads": 4,  # as many as heads, as in every real one
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}
# What a family's config calls differently, or needs besides.
CHANGES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "mlp_only_layers": [0],
    },
    "qwen2_moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 28, "mlp_only_layers": [1],
    },
    "deepseek_v2": {**_DEEPSEEK, "q_lora_rank": None},
    "deepseek_v3": {**_DEEPSEEK, "q_lora_rank": 8, "head_dim": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": None, "vocab_size": 60},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
}  # fmt: skip
_OWN_NAMES = ("gpt2",)

GATED = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "granite",
    "smollm3", "cohere", "phi3", "glm", "glm4",
]  # fmt: skip
EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"]
PLAIN = ["gpt2", "gpt_neox", "opt"]
ALL = [*GATED, *EXPERTS, *PLAIN]
IDS = torch.tensor([[5, 17, 40, 3, 42, 9, 1, 33, 20, 8, 11, 59]])


def make(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model, with weights large enough that every neuron and bias matters."""
    torch.manual_seed(seed)
    base = {} if family in _OWN_NAMES else SMALL
    special = {"bos_token_id": 1, "eos_token_id": 2} if family in _OWN_NAMES else {}
    config = CONFIG_MAPPING[family](**{**base, **special, **CHANGES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 or name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif "norm" in name or ".ln_" in name:
                parameter.add_(torch.empty_like(parameter).uniform_(-0.3, 0.3))
    if "num_experts_per_tok" in model.config.to_dict():
        # Widths here need not suit grouped matrix products; stock loading runs those all the same.
        model.set_experts_implementation("eager")
    return model.eval().requires_grad_(False)


def save_tokenizer(folder: Any) -> None:
    """A stand-in, since opening a folder wants one: words are single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = Tokenizer(models.WordLevel({chr(97 + i): i for i in range(26)}, unk_token="a"))
    letters.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    PreTrainedTokenizerFast(tokenizer_object=letters).save_pretrained(folder)
