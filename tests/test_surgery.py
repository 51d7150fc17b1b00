"""Cutting and silencing the same set compute the same function, and nothing else changes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from glulens.errors import ModelError, UsageError
from glulens.prune import surgery
from glulens.prune.criteria import score_layers
from glulens.prune.glu import glu_layers
from glulens.prune.selection import NeuronSet, lowest
from glulens.prune.surgery import masked, resize

IDS = torch.tensor([[5, 17, 80, 3, 42, 9]])


def some(model, seed: int, *, even: bool) -> NeuronSet:
    rng = np.random.default_rng(seed)
    widths = tuple(layer.width for layer in glu_layers(model))
    count = rng.integers(0, min(widths))
    return NeuronSet(
        widths,
        tuple(rng.choice(w, count if even else rng.integers(0, w), replace=False) for w in widths),
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), even=st.booleans(), bias=st.booleans())
def test_masked_equals_resized(tiny, seed, even, bias):
    model = tiny(seed, mlp_bias=bias)
    if bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
    cut = some(model, seed, even=even)
    with masked(model, cut):
        expected = model(IDS).logits
    before = {name: p.clone() for name, p in model.named_parameters()}
    with masked(model, cut):
        pass
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    resize(model, cut)
    assert tuple(layer.width for layer in glu_layers(model)) == cut.complement().counts
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_masked_equals_resized_on_smollm2(smollm):
    cut = lowest(score_layers(glu_layers(smollm.model), "ppm"), fraction=0.1)
    assert cut.counts == (153,) * 30
    ids = torch.tensor(
        [smollm.tokenizer("The capital of France is Paris, of course.")["input_ids"]]
    )
    with torch.inference_mode():
        intact = smollm.model(ids).logits
        with masked(smollm.model, cut):
            silent = smollm.model(ids).logits
        pruned = resize(copy.deepcopy(smollm.model), cut)
        torch.testing.assert_close(pruned(ids).logits, silent, atol=1e-4, rtol=0)
        assert (silent - intact).abs().max() > 1, "the mask must have done something"
        assert torch.equal(smollm.model(ids).logits, intact), "and must be gone"


def test_a_pruned_model_of_even_width_loads_with_stock_transformers(tiny, tmp_path):
    model = tiny(tie_word_embeddings=True)
    widths = (48,) * 3
    resize(model, NeuronSet(widths, tuple(np.arange(16) for _ in widths)))
    assert model.config.intermediate_size == 32
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_uneven_widths_leave_the_config_alone(tiny):
    model = tiny()
    resize(model, NeuronSet((48,) * 3, (np.arange(3), np.arange(0), np.arange(7))))
    assert model.config.intermediate_size == 48
    assert [layer.width for layer in glu_layers(model)] == [45, 48, 41]


def test_an_exception_in_the_block_takes_the_mask_away(tiny):
    model = tiny()
    intact = model(IDS).logits
    with pytest.raises(ZeroDivisionError), masked(model, some(model, 1, even=True)):
        raise ZeroDivisionError
    assert torch.equal(model(IDS).logits, intact)


def test_a_failure_midway_leaves_the_model_as_it_was(tiny, monkeypatch):
    model = tiny()
    intact = model(IDS).logits
    calls = 0
    real = surgery._slice

    def fails_late(*args):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(surgery, "_slice", fails_late)
    with pytest.raises(MemoryError):
        resize(model, some(model, 3, even=True))
    assert torch.equal(model(IDS).logits, intact)
    assert model.config.intermediate_size == 48


def test_sets_that_do_not_fit_are_refused(tiny):
    model = tiny()
    with pytest.raises(UsageError, match="3 x 40, this one has 3 x 48"):
        resize(model, NeuronSet((40,) * 3, (np.arange(2),) * 3))
    with pytest.raises(UsageError, match="layer 2: all neurons would go"):
        resize(model, NeuronSet((48,) * 3, (np.arange(2), np.arange(2), np.arange(48))))
    with (
        pytest.raises(UsageError, match="this one has"),
        masked(model, NeuronSet((48,) * 2, (np.arange(2),) * 2)),
    ):
        pass


def test_a_family_without_separate_projections_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50))
    with pytest.raises(ModelError, match=r"'gpt2'.*supported are llama, mistral"):
        glu_layers(model)
