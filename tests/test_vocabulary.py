"""The logit lens on weights, against the same in plain float64."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars
import pytest
import torch
from families import make

from glulens.interp.probe import probe
from glulens.probes import vocabulary as lens
from glulens.probes.vocabulary import TokenLens, save_vocabulary
from glulens.prune.mlps import find_mlps
from glulens.tables import LISTS, vocabulary

FINAL = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm",
         "opt": "model.decoder.final_layer_norm"}  # fmt: skip
LAYER_NORMS = ("gpt2", "gpt_neox", "opt", "cohere")


def norm(model: Any, name: str | None, family: str, values: torch.Tensor) -> torch.Tensor:
    """The model's own norm at unit size, without its bias; what no norm precedes stays."""
    if name is None:
        return values
    module = model.get_submodule(name)
    gain = module.weight.double() + (1 if family.startswith("gemma") else 0)
    centred = values - values.mean(-1, keepdim=True) if family in LAYER_NORMS else values
    return centred * gain


def reference(model: Any, family: str) -> dict[str, torch.Tensor]:
    """Scores of all tokens by list [neurons, tokens], float64."""
    embeddings = model.get_input_embeddings().weight.double()
    head = model.get_output_embeddings().weight.double()
    rows: dict[str, list[torch.Tensor]] = {"out": [], "in_gate": [], "in_up": []}
    for mlp in find_mlps(model):
        gate, up, down = mlp.weights
        final = FINAL.get(family, "model.norm")
        rows["out"].append(norm(model, final, family, down.T.double()) @ head.T)
        before = mlp.layout.norm and mlp.layout.norm.removesuffix(".weight")
        for name, matrix in (("in_gate", gate), ("in_up", up)):
            if matrix is None:
                continue
            # What the row says to a normed embedding, over the lengths of what stands in it.
            tokens = norm(model, before, family, embeddings)
            bare = embeddings
            if before and family in LAYER_NORMS:
                bare = embeddings - embeddings.mean(-1, keepdim=True)
            gained = matrix.double()
            if before:
                unit = norm(model, before, family, torch.eye(len(embeddings[0])).double())
                gained = gained @ unit.T  # the row as it reads before the norm
            scores = matrix.double() @ tokens.T
            rows[name].append(scores / bare.norm(dim=1) / gained.norm(dim=1)[:, None])
    return {name: torch.cat(some) for name, some in rows.items() if some}


def check(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor], length: int) -> None:
    signs = {"out_high": 1, "out_low": -1, "in_gate": 1, "in_up": 1}
    wanted = {"out_high", "out_low"} | (expected.keys() & {"in_gate", "in_up"})
    assert found.keys() == wanted
    for name, table in found.items():
        scores = expected["out" if name.startswith("out") else name]
        best = (signs[name] * scores).topk(length, dim=1).values * signs[name]
        tokens = torch.from_numpy(table["token"].astype(np.int64))
        assert tokens.shape == best.shape
        # By value: tokens whose scores differ by rounding may change places.
        np.testing.assert_allclose(scores.gather(1, tokens), best, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(table["value"].astype(float), best, rtol=2e-3, atol=1e-5)
        assert all(len(set(row)) == length for row in tokens.tolist())


def test_lists_are_those_of_plain_arithmetic(stories):
    found = TokenLens(stories.model).read()
    assert list(found) == list(LISTS)
    check(found, reference(stories.model, "llama"), 8)


@pytest.mark.parametrize(
    "family", ["gemma2", "cohere", "olmo2", "phi3", "qwen3_moe", "gpt2", "gpt_neox", "opt"]
)
def test_every_kind_of_norm_head_and_mlp(family, monkeypatch):
    model = make(family, tie_word_embeddings=False)
    monkeypatch.setattr(lens, "_NEURONS", 7)
    monkeypatch.setattr(lens, "_TOKENS", 16)
    found = TokenLens(model)
    assert found.notes == []
    check(found.read(5), reference(model, family), 5)


def test_what_it_says_of_reading_is_the_order_of_what_the_row_sees(tiny):
    """Through the model's own modules: an embedding alone, its norm, its row."""
    model = tiny()
    mlp = model.model.layers[1].mlp
    seen = mlp.gate_proj(
        model.model.layers[1].post_attention_layernorm(model.model.embed_tokens.weight)
    )
    found = TokenLens(model).read(4)["in_gate"]["token"][48:96]
    best = seen.T.topk(4, dim=1)
    np.testing.assert_allclose(
        seen.T.gather(1, torch.from_numpy(found.astype(np.int64))), best.values, rtol=1e-4
    )


def test_what_it_says_of_writing_is_what_the_logits_do(tiny):
    """A neuron's column alone in the stream, where it is far the largest thing."""
    model = tiny()
    column = model.model.layers[2].mlp.down_proj.weight[:, 11]
    logits = model.lm_head(model.model.norm(column[None] * 1e4))[0]
    found = TokenLens(model).read(4)
    assert found["out_high"]["token"][2 * 48 + 11].tolist() == logits.topk(4).indices.tolist()
    low = logits.topk(4, largest=False).indices.tolist()
    assert found["out_low"]["token"][2 * 48 + 11].tolist() == low


def test_padding_of_the_vocabulary_is_no_token(tiny):
    model = tiny(vocab_size=100)
    found = TokenLens(model, ["token"] * 6).read(8)
    for table in found.values():
        assert set(np.unique(table["token"])) == {-1, *range(6)}
        assert (table["token"][:, 6:] == -1).all()
        assert np.isnan(table["value"][:, 6:]).all()


def test_a_dead_neuron_has_no_tokens(tiny):
    model = tiny()
    model.model.layers[0].mlp.down_proj.weight[:, 3] = 0
    model.model.layers[0].mlp.gate_proj.weight[5] = 0
    found = TokenLens(model).read(2)
    assert (found["out_high"]["token"][3] == -1).all()
    assert (found["out_low"]["token"][3] == -1).all()
    assert (found["in_gate"]["token"][5] == -1).all()
    assert (found["in_up"]["token"][5] >= 0).all()


def test_values_beyond_two_bytes_stop_there(tiny):
    model = tiny()
    model.lm_head.weight.mul_(1e6)
    found = TokenLens(model).read(1)["out_high"]["value"]
    assert np.isfinite(found).all()
    assert found.max() == np.finfo(np.float16).max


def test_a_head_of_another_shape_is_left_out_and_said(tmp_path, stories):
    model = make("opt", word_embed_proj_dim=16)
    found = TokenLens(model)
    assert [re.findall(r"neurons (\w+):", note) for note in found.notes] == [["write"], ["read"]]
    assert found.read() == {}


def test_a_probe_run_lists_tokens_with_their_texts(stories, tmp_path):
    run = probe(stories, tmp_path / "run", on="truthfulqa", limit=2)
    expected = TokenLens(stories.model, stories.tokenizer).read()
    assert "logit lens" in run.manifest["vocabulary"]["source"]
    for row in (0, 172 * 5 - 1):
        found = vocabulary(run.path, row)
        assert list(found) == list(LISTS)
        for name, listed in found.items():
            assert [one.token for one in listed] == expected[name]["token"][row].tolist()
            assert [one.text for one in listed] == [
                stories.tokenizer.decode([one.token]) for one in listed
            ]
    without = probe(stories, tmp_path / "without", on="truthfulqa", limit=2, vocabulary=False)
    assert not (without.path / "vocabulary").exists()
    assert "vocabulary" not in without.manifest


def test_no_text_of_a_token_spoils_the_file(tmp_path):
    class Hostile:
        def decode(self, ids: list[int]) -> str:
            return ["\ud800", "\x1b]0;x\x07", "a\0b", "x" * 10_000][ids[0]]

    table = np.zeros((1, 4), lens.LISTED)
    table["token"] = [0, 1, 2, 3]
    save_vocabulary(tmp_path, {"out_high": table}, Hostile())
    texts = [one.text for one in vocabulary(tmp_path, 0)["out_high"]]
    assert texts == ["?", "\x1b]0;x\x07", "a\0b", "x" * 10_000]
    assert polars.read_parquet(tmp_path / "vocabulary" / "tokens.parquet").height == 4
