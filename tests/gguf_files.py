"""A real model's first layers as safetensors and as GGUF files, quantised and not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from families import save_tokenizer

LAYERS, TOKENS = 2, 2000


def write_gguf(path: Path, model: Any, tokenizer: Any, kind: str) -> Path:
    """A Llama, its matrices in a type of GGUF."""
    import gguf

    config, to = model.config, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(100000.0)
    writer.add_vocab_size(TOKENS)
    words = tokenizer.convert_ids_to_tokens(range(TOKENS))
    known = set(words)
    merges = [
        f"{a} {b}"
        for i in range(TOKENS)
        for a, b in [(words[i][:-1], words[i][-1:])]
        if a in known and b in known
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    roles = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    names = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    for layer in range(LAYERS):
        for role, called in roles.items():
            names[f"model.layers.{layer}.{role}.weight"] = f"blk.{layer}.{called}"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, called in names.items():
        values = model.get_parameter(name).detach().float()
        if called.rpartition(".")[2] in heads:  # GGUF rotates neighbours, Transformers halves
            count = heads[called.rpartition(".")[2]]
            halves = values.view(count, 2, -1, values.shape[1])
            values = halves.transpose(1, 2).reshape(values.shape)
        chosen = to[kind] if values.ndim == 2 else to.F32
        data = gguf.quants.quantize(values.contiguous().numpy(), chosen)
        writer.add_tensor(f"{called}.weight", data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_files(smollm: Any, folder: Path) -> tuple[Path, Path, Path]:
    """Two layers of a real model as safetensors, as GGUF in F32, and as GGUF in Q8_0."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shaking = torch.Generator().manual_seed(0)
    settings = smollm.model.config.to_dict() | {"num_hidden_layers": LAYERS, "vocab_size": TOKENS}
    settings.pop("layer_types", None)
    small = LlamaForCausalLM(LlamaConfig(**settings)).eval()
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            parameter.copy_(smollm.model.get_parameter(name)[: len(parameter)])
            if parameter.ndim == 2:  # the model at hand lies on the grid that it was unpacked from
                noise = torch.randn(parameter.shape, generator=shaking)
                parameter.add_(0.05 * parameter.std() * noise)
    small.save_pretrained(folder / "base")
    save_tokenizer(folder / "base")
    exact, coarse = (
        write_gguf(folder / f"{kind}.gguf", small, smollm.tokenizer, kind)
        for kind in ("F32", "Q8_0")
    )
    return folder / "base", exact, coarse
