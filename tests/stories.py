"""Reads llama2.c's stories260K (a trained model) into Transformers, tokenizer and all."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from glulens.prune.models import ModelSource, OpenedModel


class StoriesTokenizer:
    """llama2.c's byte-pair encoding: merge the best-scored neighbours until none is left."""

    chat_template = None

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.scores: list[float] = []
        self.pieces: list[bytes] = []
        place = 4
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            place += 8
            self.scores.append(score)
            self.pieces.append(data[place : place + length])
            place += length
        self.index = {piece: k for k, piece in enumerate(self.pieces)}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids: list[int] = []
        for character in (" " + text) if text else "":
            piece = character.encode()
            # Tokens 3..258 stand for single bytes.
            ids += [self.index[piece]] if piece in self.index else [byte + 3 for byte in piece]
        while True:
            best = max(
                (
                    (self.scores[merged], -k, merged)
                    for k in range(len(ids) - 1)
                    if (merged := self.index.get(self.pieces[ids[k]] + self.pieces[ids[k + 1]]))
                    is not None
                ),
                default=None,
            )
            if best is None:
                break
            _, k, merged = best
            ids[-k : -k + 2] = [merged]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def decode(self, ids: list[int], **_: object) -> str:
        return b"".join(self.pieces[k] for k in ids if k > 2).decode(errors="replace")


def open_stories(folder: Path) -> OpenedModel:
    """The trained model, ready for every command that takes an opened one."""
    raw = (folder / "stories260K.bin").read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", raw)
    values = np.frombuffer(raw, np.float32, offset=28)
    place = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal place
        count = int(np.prod(shape))
        part = values[place : place + count].reshape(shape)
        place += count
        return torch.from_numpy(part.copy())

    kv = dim * kv_heads // heads
    embed = take(vocab, dim)
    attention_norm = take(layers, dim)
    q, k, v = take(layers, dim, dim), take(layers, kv, dim), take(layers, kv, dim)
    o = take(layers, dim, dim)
    mlp_norm = take(layers, dim)
    gate, down, up = take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    norm = take(dim)

    def halves(weight: torch.Tensor, count: int) -> torch.Tensor:
        """llama2.c rotates neighbours, Transformers rotates halves."""
        return weight.view(count, -1, 2, dim).transpose(1, 2).reshape(weight.shape)

    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            vocab_size=vocab,
            max_position_embeddings=length,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
        )
    )
    state: dict[str, Any] = {"model.embed_tokens.weight": embed, "model.norm.weight": norm}
    for n in range(layers):
        at = f"model.layers.{n}"
        state |= {
            f"{at}.input_layernorm.weight": attention_norm[n],
            f"{at}.post_attention_layernorm.weight": mlp_norm[n],
            f"{at}.self_attn.q_proj.weight": halves(q[n], heads),
            f"{at}.self_attn.k_proj.weight": halves(k[n], kv_heads),
            f"{at}.self_attn.v_proj.weight": v[n],
            f"{at}.self_attn.o_proj.weight": o[n],
            f"{at}.mlp.gate_proj.weight": gate[n],
            f"{at}.mlp.up_proj.weight": up[n],
            f"{at}.mlp.down_proj.weight": down[n],
        }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"], missing
    assert not unexpected
    model.tie_weights()
    tokenizer: Any = StoriesTokenizer(folder / "tok512.bin")
    # Its hash is taken of the folder's safetensors, of which there are none: a constant.
    source = ModelSource("stories260k", "folder", folder)
    return OpenedModel(model.eval().requires_grad_(False), tokenizer, source)
