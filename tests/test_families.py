"""Every supported family is read, scored, masked, cut, saved and loaded again; others refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from families import ALL, EXPERTS, GATED, IDS, PLAIN, make, save_tokenizer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

import glulens
from glulens.errors import ModelError, UsageError
from glulens.probes.contrasts import grouped, read
from glulens.probes.hooks import HooksEngine
from glulens.probes.tokens import Encoded
from glulens.prune.budget import Budget, choose
from glulens.prune.families import FAMILIES
from glulens.prune.masks import masked
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import NeuronSet, lowest
from glulens.prune.stream import prune_checkpoint
from glulens.prune.surgery import pad, resize, trim

RATIOS = (0.1, 0.3, 0.6)


def layouts_of(model):
    return [mlp.layout for mlp in find_mlps(model)]


def lowest_of(model, ratio: float) -> NeuronSet:
    mlps = find_mlps(model)
    return choose(layouts_of(model), score_mlps(mlps, ["ppm"])["ppm"], Budget(fraction=ratio))


def uneven(model, seed: int) -> NeuronSet:
    """Another number from every layer; the experts of a layer alike."""
    rng = np.random.default_rng(seed)
    counts = {}
    layouts = layouts_of(model)
    chosen = []
    for layout in layouts:
        count = counts.setdefault(layout.group, int(rng.integers(0, layout.width)))
        chosen.append(rng.choice(layout.width, count, replace=False))
    return NeuronSet(tuple(layout.width for layout in layouts), tuple(chosen))


def silent(model, cut: NeuronSet) -> torch.Tensor:
    with torch.no_grad(), masked(model, cut):
        return model(IDS).logits


def same(model, expected: torch.Tensor, atol: float = 1e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=atol, rtol=1e-5)


def stock(folder):
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


def test_the_list_is_the_one_that_is_tested():
    assert sorted(ALL) == sorted(FAMILIES)
    assert {f for f in FAMILIES if FAMILIES[f].kind == "plain"} == set(PLAIN)
    assert {f for f in FAMILIES if FAMILIES[f].kind == "experts"} == set(EXPERTS)


@pytest.mark.parametrize("family", ALL)
def test_live_pruning_survives_saving_and_stock_loading(family, tmp_path):
    for ratio in RATIOS:
        model = make(family)
        cut = lowest_of(model, ratio)
        assert len(cut)
        expected = silent(model, cut)
        assert not torch.allclose(model(IDS).logits, expected, atol=1e-3)
        resize(model, cut)
        same(model, expected)
        assert tuple(mlp.width for mlp in find_mlps(model)) == cut.complement().counts
        pad(model).save_pretrained(tmp_path / str(ratio))
        same(stock(tmp_path / str(ratio)), expected)


@pytest.mark.parametrize("family", ALL)
def test_streaming_pruning_loads_with_stock_transformers(family, tmp_path):
    model = make(family)
    model.save_pretrained(tmp_path / "whole")
    for ratio in RATIOS:
        done = prune_checkpoint(
            tmp_path / "whole", tmp_path / str(ratio), budget=Budget(fraction=ratio)
        )
        assert done.cut == lowest_of(model, ratio), "streamed and live scores must agree"
        uniform = [k == s for k, s in zip(done.kept, done.stored, strict=True)]
        assert all(uniform) or family in EXPERTS
        same(stock(tmp_path / str(ratio)), silent(model, done.cut))


@pytest.mark.parametrize("family", ALL)
def test_uneven_widths_are_padded_for_stock_loading_and_trimmed_again(family, tmp_path):
    model = make(family)
    cut = uneven(model, 1)
    expected = silent(model, cut)
    model.save_pretrained(tmp_path / "whole")
    done = prune_checkpoint(tmp_path / "whole", tmp_path / "streamed", cut=cut)
    assert done.kept == cut.complement().counts
    assert done.stored != done.kept
    again = stock(tmp_path / "streamed")
    same(again, expected)
    assert tuple(mlp.width for mlp in find_mlps(again)) == done.stored
    same(trim(again), expected)
    assert tuple(mlp.width for mlp in find_mlps(again)) == done.kept
    # The live way to the same place.
    resize(model, cut)
    same(model, expected)
    pad(model).save_pretrained(tmp_path / "live")
    assert not hasattr(trim(stock(tmp_path / "live")).config, "glulens")
    same(trim(stock(tmp_path / "live")), expected)
    # Pruned again: true widths count, not the padded ones.
    widths = done.kept
    second = NeuronSet(widths, tuple(np.array([0] if w > 1 else [], int) for w in widths))
    twice = prune_checkpoint(tmp_path / "streamed", tmp_path / "twice", cut=second)
    assert twice.kept == tuple(w - 1 if w > 1 else w for w in widths)
    same(stock(tmp_path / "twice"), silent(trim(model), second))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    family=st.sampled_from(["llama", "phi3", "mixtral", "qwen2_moe", "gpt2", "opt"]),
    seed=st.integers(0, 10_000),
    width=st.integers(2, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    tied=st.booleans(),
    even=st.booleans(),
)
def test_any_width_set_dtype_bias_and_tying(
    family, seed, width, dtype, bias, tied, even, tmp_path_factory
):
    """Saved in `dtype`, compared in float32: what is stored must be the source's very bits."""
    folder = tmp_path_factory.mktemp("any")
    changes = {
        "llama": {"intermediate_size": width, "mlp_bias": bias},
        "phi3": {"intermediate_size": width},
        "mixtral": {"intermediate_size": width},
        "qwen2_moe": {"intermediate_size": width, "shared_expert_intermediate_size": width + 1},
        "gpt2": {"n_inner": width},
        "opt": {"ffn_dim": width, "enable_bias": bias},
    }[family]
    model = make(family, seed, **changes, tie_word_embeddings=tied).to(dtype)
    model.save_pretrained(folder / "whole", max_shard_size="20KB")
    model = stock(folder / "whole")  # .float() would leave the rotary frequencies rounded
    if family in EXPERTS:
        model.set_experts_implementation("eager")
    cut = lowest_of(model, 0.5) if even else uneven(model, seed)
    assume(len(cut))  # an empty set is refused
    expected = silent(model, cut)
    prune_checkpoint(folder / "whole", folder / "cut", cut=cut)
    again = stock(folder / "cut")
    same(again, expected)
    saved = AutoModelForCausalLM.from_pretrained(folder / "cut")
    assert saved.dtype == dtype
    same(resize(model, cut), expected)


@pytest.mark.parametrize("family", ALL)
def test_one_set_drives_mask_and_surgery_and_leaves_no_trace(family):
    model = make(family)
    intact = model(IDS).logits
    before = {name: p.clone() for name, p in model.named_parameters()}
    silent(model, lowest_of(model, 0.3))
    assert torch.equal(model(IDS).logits, intact)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(UsageError, match="all neurons would go"):
        resize(model, NeuronSet.complement(lowest_of(model, 0.3)) | lowest_of(model, 0.3))
    assert torch.equal(model(IDS).logits, intact)


# Cohere's norm also feeds attention, a mixture's also the router: there the gain cannot be moved.
FOLDABLE = [f for f in ALL if FAMILIES[f].norm and f not in ("cohere", *EXPERTS)]


@pytest.mark.parametrize("family", FOLDABLE)
def test_the_gain_that_folded_scores_use_is_the_models_own(family):
    """With the gain in the weights and 1 in the norm, the function is the same."""
    model = make(family)
    intact = model(IDS).logits
    offset = FAMILIES[family].norm_offset
    for mlp in find_mlps(model):
        assert mlp.layout.norm is not None
        stored = model.get_parameter(mlp.layout.norm)
        with torch.no_grad():
            gain = stored + offset
            bias = dict(model.named_parameters()).get(mlp.layout.norm.replace("weight", "bias"))
            if bias is not None:
                bias /= gain
            for role in ("gate", "up"):
                view = mlp.view(role)
                if view is not None:
                    view *= gain
            stored.fill_(1 - offset)
    torch.testing.assert_close(model(IDS).logits, intact, atol=1e-4, rtol=1e-4)


def test_where_no_norm_stands_before_the_mlp_folding_is_refused():
    with pytest.raises(ModelError, match="no norm stands right before"):
        score_mlps(find_mlps(make("olmo2")), ["folded(ppm)"])
    with pytest.raises(ModelError, match="has no gate"):
        score_mlps(find_mlps(make("gpt2")), ["balanced(ppm)"])


@pytest.mark.parametrize("family", [*GATED, *PLAIN])
def test_likelihood_and_attribution_are_the_models_own(family):
    """Softcapped or scaled heads and padded batches included."""
    model = make(family)
    engine = HooksEngine(model)
    texts = [Encoded((5, 17, 40, 3, 42, 9), 3), Encoded((7, 8, 50), 1)]
    alone = np.arange(2)
    (step,) = grouped(engine, texts, alone, 100)
    seen = read(engine, step, texts, alone, np.ones(2))
    assert len(seen.activations) == 2
    assert seen.means.shape == seen.attribution.shape == (2, sum(engine.widths))
    for place, row in enumerate(step.texts):
        text = texts[row]
        log_p = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        expected = sum(float(log_p[t - 1, text.ids[t]]) for t in range(text.start, len(text)))
        assert seen.loglikelihood[place] == pytest.approx(expected, abs=1e-4)


def test_experts_of_different_width_cannot_be_cut_live_and_the_model_stays():
    model = make("mixtral")
    intact = model(IDS).logits
    widths = (24,) * 8
    cut = NeuronSet(widths, (np.arange(3), *[np.arange(2)] * 7))
    with pytest.raises(UsageError, match="experts of a layer must keep the same number"):
        resize(model, cut)
    assert torch.equal(model(IDS).logits, intact)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_deepseeks_dense_layers_alone(family, tmp_path):
    model = make(family, first_k_dense_replace=2)
    assert [mlp.layout.part for mlp in find_mlps(model)] == ["dense", "dense"]
    model.save_pretrained(tmp_path / "whole")
    done = prune_checkpoint(tmp_path / "whole", tmp_path / "cut", budget=Budget(fraction=0.3))
    assert done.kept == done.stored == (17, 17)
    same(stock(tmp_path / "cut"), silent(model, done.cut))


def test_a_stock_loaded_padded_model_can_be_cut_saved_and_read_again(tmp_path):
    make("llama").save_pretrained(tmp_path / "whole")
    prune_checkpoint(
        tmp_path / "whole", tmp_path / "cut", budget=Budget(fraction=0.5, layers={0: 0.0})
    )
    model = stock(tmp_path / "cut")
    resize(model, lowest_of(model, 0.25))
    model.save_pretrained(tmp_path / "again")
    assert "glulens" not in json.loads((tmp_path / "again" / "config.json").read_text())
    assert glulens.score(tmp_path / "again").height == 36


def test_an_mlp_with_a_norm_over_its_neurons_is_refused():
    with pytest.raises(ModelError, match="'bitnet': .*ffn_sub_norm.weight also counts neurons"):
        find_mlps(make("bitnet"))


@pytest.mark.parametrize("family", ["gpt_oss", "bloom", "mamba", "llama4_text"])
def test_other_families_are_refused_with_the_list_of_those_that_are_not(family):
    model = make(family, num_local_experts=2, rope_parameters=None)
    with pytest.raises(ModelError, match=rf"'{family}'.*supported are llama, mistral, qwen2"):
        find_mlps(model)


def test_an_opened_checkpoint_is_trimmed(tiny, tmp_path, stories):
    stories.model.save_pretrained(tmp_path / "whole")
    save_tokenizer(tmp_path / "whole")
    scores = score_mlps(find_mlps(stories.model), ["ppm"])["ppm"]
    cut = NeuronSet((172,) * 5, tuple(lowest([s], f / 10).indices[0] for f, s in enumerate(scores)))
    prune_checkpoint(tmp_path / "whole", tmp_path / "cut", cut=cut)
    recorded = json.loads((tmp_path / "cut" / "config.json").read_text())["glulens"]
    assert recorded == {"widths": list(cut.complement().counts)}
    opened = glulens.open_model(tmp_path / "cut")
    assert tuple(mlp.width for mlp in find_mlps(opened.model)) == cut.complement().counts
    ids = torch.tensor([[1, 40, 60, 80, 100]])
    with masked(stories.model, cut):
        expected = stories.model(ids).logits
    torch.testing.assert_close(opened.model(ids).logits, expected, atol=1e-5, rtol=1e-5)
