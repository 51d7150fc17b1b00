"""Cutting and silencing the same set compute the same function, and nothing else changes."""

from __future__ import annotations

import copy
from typing import Any

import families
import numpy as np
import pytest
import torch
from families import EXPERTS, make
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from glulens.errors import DataError, ModelError, UsageError
from glulens.probes.recording import record, samples
from glulens.prune import edits
from glulens.prune.gauge import rescale
from glulens.prune.masks import masked
from glulens.prune.mlps import find_mlps
from glulens.prune.recording import Recording
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import NeuronSet, lowest
from glulens.prune.surgery import resize

IDS = torch.tensor([[5, 17, 80, 3, 42, 9]])


def some(model, seed: int, *, even: bool) -> NeuronSet:
    rng = np.random.default_rng(seed)
    widths = tuple(mlp.width for mlp in find_mlps(model))
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
    assert tuple(mlp.width for mlp in find_mlps(model)) == cut.complement().counts
    torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def test_masked_equals_resized_on_smollm2(smollm):
    cut = lowest(score_mlps(find_mlps(smollm.model), ["ppm"])["ppm"], fraction=0.1)
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
    assert [mlp.width for mlp in find_mlps(model)] == [45, 48, 41]


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
    real = edits.take_rows

    def fails_late(*args):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise MemoryError
        return real(*args)

    monkeypatch.setattr(edits, "take_rows", fails_late)
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


def references(model, rng) -> list[np.ndarray]:
    return [rng.standard_normal((7, mlp.width)).astype(np.float32) for mlp in find_mlps(model)]


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", *EXPERTS])
def test_mean_and_resample_put_the_references_values_in(family):
    """What enters `down`, seen from outside the mask: the chosen neurons and no others."""
    from glulens.prune.mlps import watching

    rng = np.random.default_rng(0)
    model = make(family)
    mlps = find_mlps(model)
    given_rows = references(model, rng)
    widths = tuple(mlp.width for mlp in mlps)
    cut = NeuronSet(widths, tuple(np.array([0, 3]) for _ in widths))
    intact = model(families.IDS).logits
    changed = {}
    for how in ("mean", "resample"):
        seen: dict[int, torch.Tensor] = {}

        def see(index, rows, tokens, seen=seen):
            seen[index] = rows.clone()

        # Hooks run in the order they were made: the mask first, then the look.
        with torch.no_grad(), masked(model, cut, how, reference=given_rows, seed=3):
            if find_mlps(model)[0].down is not None and family not in EXPERTS:
                with watching(mlps, see):
                    changed[how] = model(families.IDS).logits
            else:
                changed[how] = model(families.IDS).logits
        for index, rows in seen.items():
            values, stored = rows[:, [0, 3]].numpy(), given_rows[index][:, [0, 3]]
            if how == "mean":
                np.testing.assert_allclose(values, np.tile(stored.mean(0), (len(rows), 1)), 1e-5)
            else:
                drawn = [np.flatnonzero((stored == row).all(1)) for row in values]
                assert all(len(d) == 1 for d in drawn), "every row is one whole sample"
                assert len({int(d[0]) for d in drawn}) > 1
        assert not torch.allclose(changed[how], intact, atol=1e-3)
    assert torch.equal(model(families.IDS).logits, intact)
    with torch.no_grad(), masked(model, cut, "resample", reference=given_rows, seed=3):
        assert torch.equal(model(families.IDS).logits, changed["resample"])


@pytest.mark.parametrize("family", ["llama", *EXPERTS])
def test_replacing_everything_by_zero_rows_is_zero_ablation(family):
    model = make(family)
    widths = tuple(mlp.width for mlp in find_mlps(model))
    cut = NeuronSet(widths, tuple(np.arange(0, w, 2) for w in widths))
    zeros = [np.zeros((2, w)) for w in widths]
    with torch.no_grad(), masked(model, cut):
        expected = model(families.IDS).logits
    for how in ("mean", "resample"):
        with torch.no_grad(), masked(model, cut, how, reference=zeros):
            torch.testing.assert_close(model(families.IDS).logits, expected)


@pytest.mark.parametrize("family", ["llama", *EXPERTS])
def test_masks_within_masks_add_up_and_come_off_in_any_order(family):
    model = make(family)
    widths = tuple(mlp.width for mlp in find_mlps(model))
    one = NeuronSet(widths, tuple(np.arange(0, w, 3) for w in widths))
    other = NeuronSet(widths, tuple(np.arange(1, w, 2) for w in widths))

    def logits():
        with torch.no_grad():
            return model(families.IDS).logits

    intact = logits()
    with masked(model, one | other):
        expected = logits()
    with masked(model, one):
        alone = logits()
        with masked(model, other):
            torch.testing.assert_close(logits(), expected)
        assert torch.equal(logits(), alone)
    first, second = masked(model, one), masked(model, other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with masked(model, NeuronSet(widths, ([],) * len(widths))):  # pyright: ignore
        pass
    second.__exit__(None, None, None)
    assert torch.equal(logits(), intact)


def test_masks_say_what_they_need(tiny):
    model = tiny()
    cut = some(model, 1, even=True)
    flat = [np.zeros(48)] * 3
    cases: list[Any] = [
        ("median", None, "allowed are zero, mean, resample"),
        ("mean", None, "mean needs a reference"),
        ("mean", flat[:2], "the reference has 2 MLPs, the model 3"),
        ("mean", [np.zeros(40)] * 3, r"layer 0: the reference has shape \(40,\)"),
        ("resample", flat, "resample needs samples, not one mean"),
    ]
    for how, reference, message in cases:
        with pytest.raises(UsageError, match=message), masked(model, cut, how, reference=reference):
            pass


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2_moe", "deepseek_v3"])
def test_rescaling_the_gauge_leaves_the_function(family):
    model = make(family)
    intact = model(families.IDS).logits
    before = score_mlps(find_mlps(model), ["ppm"])["ppm"]
    rng = np.random.default_rng(0)
    factors = [
        np.exp2(rng.integers(-3, 4, mlp.width)) * rng.choice([-1, 1], mlp.width)
        for mlp in find_mlps(model)
    ]
    rescale(model, factors)
    torch.testing.assert_close(model(families.IDS).logits, intact, atol=1e-5, rtol=1e-5)
    after = score_mlps(find_mlps(model), ["ppm"])["ppm"]
    assert not np.allclose(before[0], after[0], rtol=0.1)


def test_rescaling_moves_the_bias_of_up_along():
    model = make("llama", mlp_bias=True)
    intact = model(families.IDS).logits
    rescale(model, [np.full(24, 4.0)] * 2)
    torch.testing.assert_close(model(families.IDS).logits, intact, atol=1e-5, rtol=1e-5)


def test_rescaling_refuses_what_would_change_the_function():
    model = make("llama")
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    for bad, message in (
        ([np.ones(24)], "1 lists of factors for a model of 2 MLPs"),
        ([np.ones(24), np.ones(23)], "layer 1: factors of shape"),
        ([np.ones(24) * 2, np.zeros(24)], "layer 1: factors must be finite and not 0"),
        ([np.ones(24) * 2, np.full(24, np.nan)], "layer 1: factors must be finite and not 0"),
    ):
        with pytest.raises(UsageError, match=message):
            rescale(model, bad)
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
    with pytest.raises(ModelError, match="has no gate"):
        rescale(make("gpt2"), [np.ones(128)] * 2)
    half = make("llama").half()
    before = half.model.layers[0].mlp.up_proj.weight.clone()
    with pytest.raises(UsageError, match="up would exceed what torch.float16 holds"):
        rescale(half, [np.ones(24) * 2, np.full(24, 1e7)])
    assert torch.equal(half.model.layers[0].mlp.up_proj.weight, before)


TEXTS = ["Once upon a time there was a little dog.", "He ran.", "", "The sun was hot and the"]


def test_a_recording_holds_the_statistics_of_all_tokens_but_the_first(stories):
    recording = record(stories, TEXTS)
    rows: list[list[torch.Tensor]] = [[] for _ in range(5)]
    for text in TEXTS:
        ids = stories.tokenizer(text)["input_ids"]
        if len(ids) < 2:
            continue
        for layer, one in enumerate(rows):
            down = stories.model.model.layers[layer].mlp.down_proj
            handle = down.register_forward_pre_hook(lambda m, a, o=one: o.append(a[0][0, 1:]))
            stories.model(torch.tensor([ids]))
            handle.remove()
    assert recording.texts == len(rows[0]) >= 3
    for activity, one in zip(recording.mlps, rows, strict=True):
        whole = torch.cat(one).double().numpy()
        np.testing.assert_allclose(activity.mean, whole.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(activity.mean_abs, np.abs(whole).mean(0), rtol=1e-5)
        np.testing.assert_allclose(activity.rms, np.sqrt((whole**2).mean(0)), rtol=1e-5)
        np.testing.assert_allclose(activity.variance, whole.var(0, ddof=1), rtol=1e-5)
        per_text = np.array([np.abs(t.double().numpy()).mean(0) for t in one])
        np.testing.assert_allclose(activity.text_rms, np.sqrt((per_text**2).mean(0)), rtol=1e-5)


def test_a_recording_survives_its_file_and_others_are_refused(stories, tmp_path):
    recording = record(stories, TEXTS)
    recording.save(tmp_path / "r.safetensors")
    again = Recording.load(tmp_path / "r.safetensors")
    assert (again.widths, again.tokens, again.texts) == (
        recording.widths, recording.tokens, recording.texts,
    )  # fmt: skip
    np.testing.assert_array_equal(again.mlps[3].variance, recording.mlps[3].variance)
    (tmp_path / "bad").write_bytes(b"nonsense")
    for bad in ("bad", "missing"):
        with pytest.raises(DataError, match="cannot be read as a recording"):
            Recording.load(tmp_path / bad)
    with pytest.raises(DataError, match="no text has two tokens"):
        record(stories, [""])
    assert record(stories, TEXTS[0]).texts == 1, "a text, not its letters"


def test_samples_are_activations_of_tokens_and_serve_as_a_reference(stories):
    found = samples(stories, TEXTS, 5, seed=1)
    assert [f.shape for f in found] == [(5, 172)] * 5
    everything = samples(stories, TEXTS, 10_000)
    for some_rows, rows in zip(found, everything, strict=True):
        assert all((rows == row).all(1).any() for row in some_rows)
    np.testing.assert_array_equal(found[0], samples(stories, TEXTS, 5, seed=1)[0])
    widths = (172,) * 5
    cut = NeuronSet(widths, tuple(np.arange(0, 172, 2) for _ in widths))
    with masked(stories.model, cut, "resample", reference=found):
        stories.model(torch.tensor([[1, 2, 3]]))


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_recorded_on_the_tokens_routed_to_them(family):
    from types import SimpleNamespace

    model = make(family)
    opened = SimpleNamespace(
        model=model,
        tokenizer=lambda text: {"input_ids": [ord(c) % 60 for c in text]},
        device=torch.device("cpu"),
    )
    recording = record(opened, ["abcdefghij", "klmnopq"])  # pyright: ignore
    tokens = 9 + 6
    for layer in range(2):
        routed = [
            recording.tokens[mlp.index]
            for mlp in find_mlps(model)
            if mlp.layout.layer == layer and mlp.layout.part == "expert"
        ]
        assert not routed or sum(routed) == 2 * tokens  # two experts a token
    scores = score_mlps(find_mlps(model), ["wanda", "mean(amp,ppm)"], recording=recording)
    assert len(scores["wanda"]) == len(recording.mlps)
