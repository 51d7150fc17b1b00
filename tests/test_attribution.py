"""Attributions are what their definitions say, and what happens bears them out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import GATED, PLAIN, make
from test_contrasts import reference, some_pairs

from glulens.errors import ModelError, UsageError
from glulens.probes.ablation import ablate, ablate_each
from glulens.probes.attribution import (
    Agreement,
    check,
    gradient_x_activation,
    incompleteness,
    integrated_gradients,
    pair_weights,
)
from glulens.probes.contrasts import encode_pairs, record_contrasts
from glulens.probes.engine import make_engine
from glulens.probes.hooks import HooksEngine
from glulens.probes.likelihood import loglikelihoods
from glulens.probes.patching import attribution_patching, patch_each
from glulens.probes.tokens import Encoded, Encoder
from glulens.prune.selection import NeuronSet

# There LL does not depend on how large an MLP's activations are together.
FOLLOWED_BY_A_NORM = ("gemma2", "gemma3_text", "olmo2", "glm4")


def some_texts(n: int = 6, seed: int = 0, vocabulary: int = 60) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    lengths = [(int(rng.integers(2, 6)), int(rng.integers(1, 5))) for _ in range(n)]
    return [
        Encoded(tuple(map(int, rng.integers(1, vocabulary, q + a))), q) for q, a in lengths
    ]  # fmt: skip


def faint(model) -> HooksEngine:
    """A model whose MLPs write so little that the first order is all there is."""
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.mul_(1e-3)
    return HooksEngine(model)


def all_neurons(engine) -> list[tuple[int, int]]:
    return [(mlp, n) for mlp, width in enumerate(engine.widths) for n in range(width)]


def assert_near(found, expected, part: float) -> None:
    np.testing.assert_allclose(found, expected, atol=part * np.abs(expected).max())


@pytest.mark.parametrize("family", [*GATED, *PLAIN])
def test_integrated_gradients_are_complete_in_every_dense_family(family):
    engine, texts = HooksEngine(make(family)), some_texts()
    width = engine.widths[0]
    layers = [
        NeuronSet(engine.widths, tuple(np.arange(width if k == at else 0) for k in range(2)))
        for at in range(2)
    ]
    lost = ablate(engine, texts, layers, spare_first=True).lost.T
    many = integrated_gradients(engine, texts, steps=200)
    off = incompleteness(engine, texts, many)
    sums = many.reshape(len(texts), 2, -1).sum(2)
    np.testing.assert_allclose(off, sums - lost, atol=1e-4)
    largest = np.abs(lost).max()
    assert largest > 0.05
    if family in FOLLOWED_BY_A_NORM:
        assert np.abs(off).max() > 0.1 * largest
        return
    assert np.abs(off).max() < 5e-3 * largest
    few = incompleteness(engine, texts, integrated_gradients(engine, texts, steps=1))
    assert np.abs(few).max() > 2e-2 * largest


def test_integrated_gradients_do_not_depend_on_batches_and_start_where_the_layer_is(tiny):
    model = tiny(vocab_size=60)
    engine, texts = HooksEngine(model), some_texts()
    ran = [0] * 3
    for number, layer in enumerate(model.model.layers):

        def count(module, args, number=number):
            ran[number] += 1

        layer.mlp.register_forward_pre_hook(count)
    together = integrated_gradients(engine, texts, steps=5, max_tokens=10**6)
    assert ran == [2, 3, 4]
    alone = integrated_gradients(engine, texts, steps=5, max_tokens=1)
    assert_near(alone, together, 1e-5)
    assert np.isfinite(together).all()
    assert all(not parameter.requires_grad for parameter in model.parameters())


def test_integrated_gradients_without_shortcut_are_the_same(tiny):
    pytest.importorskip("transformer_lens")
    from glulens.probes.lens import LensEngine

    texts = some_texts()
    ours = integrated_gradients(HooksEngine(tiny()), texts, steps=3)
    assert_near(integrated_gradients(LensEngine(tiny()), texts, steps=3), ours, 1e-4)


def test_one_step_is_the_gradient_halfway(tiny):
    """Against autograd on the model written down by hand, position 0 as it is."""
    model = tiny(num_hidden_layers=2)
    engine, text = HooksEngine(model), Encoded((5, 17, 80, 3, 42), 2)
    found = integrated_gradients(engine, [text], steps=1)[0]
    for mlp in range(2):
        kept = []

        def halve(module, args, kept=kept):
            half = args[0].detach() * 0.5
            half[:, 0] *= 2
            kept.extend((args[0], half.requires_grad_()))
            return (half,)

        handle = model.model.layers[mlp].mlp.down_proj.register_forward_pre_hook(halve)
        log_p = model(torch.tensor([text.ids])).logits.log_softmax(-1)
        handle.remove()
        ll = torch.stack([log_p[0, t - 1, text.ids[t]] for t in range(2, 5)]).sum()
        (gradient,) = torch.autograd.grad(ll, kept[1])
        expected = (kept[0] * gradient)[0, 1:].sum(0)
        assert_near(found[48 * mlp : 48 * (mlp + 1)], expected.numpy(), 1e-4)


def test_gradient_x_activation_is_the_definition_and_what_contrasts_record(stories):
    pairs = some_pairs(4)
    encoder, engine = Encoder(stories.tokenizer), make_engine(stories)
    texts = encode_pairs(encoder, pairs["misconception"])
    found = gradient_x_activation(engine, texts, max_tokens=200)
    expected = np.stack([
        reference(stories, text)[2]
        for pair in pairs["misconception"]
        for text in (pair.a, pair.b)
    ])  # fmt: skip
    assert_near(found, expected, 1e-4)
    recorded = record_contrasts(engine, encoder, pairs)["misconception"].attribution
    assert_near(found[0::2] - found[1::2], recorded, 1e-4)


def test_where_effects_are_linear_all_attributions_are_exact(tiny):
    engine, texts = faint(tiny(vocab_size=60)), some_texts()
    exact = ablate_each(engine, texts, all_neurons(engine)).T
    assert_near(gradient_x_activation(engine, texts), exact, 0.03)
    assert_near(integrated_gradients(engine, texts, steps=2), exact, 0.03)
    # With its own effect restored, the same comparison fails: it can.
    engine = HooksEngine(tiny(vocab_size=60))
    exact = ablate_each(engine, texts, all_neurons(engine)).T
    error = np.abs(gradient_x_activation(engine, texts) - exact).max()
    assert error > 0.1 * np.abs(exact).max()


def paired(tokens_a: int, tokens_b: int, n: int = 4) -> list[tuple[Encoded, Encoded]]:
    rng = np.random.default_rng(tokens_a * 10 + tokens_b)
    pairs = []
    for _ in range(n):
        question = tuple(map(int, rng.integers(1, 60, rng.integers(1, 5))))
        a, b = (tuple(map(int, rng.integers(1, 60, k))) for k in (tokens_a, tokens_b))
        pairs.append((Encoded(question + a, len(question)), Encoded(question + b, len(question))))
    return pairs


@pytest.mark.parametrize(("tokens_a", "tokens_b"), [(3, 3), (4, 2), (2, 5)])
def test_patching_moves_a_towards_b(tiny, tokens_a, tokens_b):
    engine, pairs = faint(tiny(vocab_size=60)), paired(tokens_a, tokens_b)
    everything = list(range(sum(engine.widths)))
    exact = patch_each(engine, pairs, everything)
    assert_near(attribution_patching(engine, pairs), exact, 0.03)
    assert_near(attribution_patching(engine, pairs, max_tokens=1), exact, 0.03)
    other = attribution_patching(engine, [(b, a) for a, b in pairs])
    assert np.abs(other - exact).max() > 0.3 * np.abs(exact).max()


@pytest.mark.parametrize("tokens_b", [3, 2])
def test_patching_puts_bs_activation_on_as_answer_and_nowhere_else(tiny, tokens_b):
    model = tiny(vocab_size=60)
    engine, pairs = HooksEngine(model), paired(3, tokens_b)
    neurons = [3, 50, 143]
    found = patch_each(engine, pairs, neurons, max_tokens=7)
    assert_near(patch_each(engine, pairs, neurons, max_tokens=10**5), found, 1e-4)
    for row, (a, b) in enumerate(pairs):
        for column, neuron in enumerate(neurons):
            module = model.model.layers[neuron // 48].mlp.down_proj
            seen = []
            handle = module.register_forward_pre_hook(lambda m, args, s=seen: s.append(args[0]))
            model(torch.tensor([b.ids]))
            handle.remove()
            there = seen[0][0, b.start :, neuron % 48]

            def put(module, args, at=a.start, there=there, neuron=neuron):
                rows = args[0].clone()
                rows[0, at:, neuron % 48] = there if len(there) == 3 else there.mean()
                return (rows,)

            intact = loglikelihoods(engine, [a])[0]
            handle = module.register_forward_pre_hook(put)
            log_p = model(torch.tensor([a.ids])).logits[0].log_softmax(-1)
            handle.remove()
            ll = sum(float(log_p[t - 1, a.ids[t]]) for t in range(a.start, len(a)))
            assert found[row, column] == pytest.approx(ll - intact, abs=1e-4)


def test_patching_a_text_by_itself_does_nothing_and_predicts_on_a_real_model(stories):
    encoder, engine = Encoder(stories.tokenizer), make_engine(stories)
    texts = encode_pairs(encoder, some_pairs(8)["misconception"])
    same = [(text, text) for text in texts[:3]]
    assert not attribution_patching(engine, same).any()
    np.testing.assert_allclose(patch_each(engine, same, [1, 500]), 0, atol=1e-4)
    pairs = list(zip(texts[0::2], texts[1::2], strict=True))
    neurons = np.random.default_rng(0).choice(sum(engine.widths), 50, replace=False).tolist()
    exact = patch_each(engine, pairs, neurons).mean(0)
    estimate = attribution_patching(engine, pairs).mean(0)[neurons]
    agreement = Agreement.between(estimate, exact)
    assert agreement.pearson > 0.75
    assert agreement.spearman > 0.75


def test_a_check_says_how_far_to_trust_an_attribution(stories):
    encoder, engine = Encoder(stories.tokenizer), make_engine(stories)
    texts = encode_pairs(encoder, some_pairs(5)["misconception"])
    weights = pair_weights(5)
    assert weights @ np.arange(10) == pytest.approx(-1)
    integrated = integrated_gradients(engine, texts)
    found = check(engine, texts, integrated, weights=weights, top=25, random=25)
    assert found.top.n == 25
    assert found.random.n == 25
    assert min(found.top.pearson, found.random.spearman) > 0.7
    assert f"top: Spearman {found.top.spearman:.3f}, Pearson {found.top.pearson:.3f}" in str(found)
    estimate = weights @ integrated
    assert np.abs(found.estimate[:25]).min() >= np.sort(np.abs(estimate))[-25] * 0.999
    np.testing.assert_allclose(found.estimate, estimate[found.neurons], rtol=1e-4, atol=1e-7)
    some = found.neurons[20:30]
    exact = ablate_each(engine, texts, [(int(n) // 172, int(n) % 172) for n in some])
    np.testing.assert_allclose(found.exact[20:30], exact @ weights, atol=1e-4)
    # Attributions dealt out to the wrong neurons are found out.
    wrong = np.random.default_rng(0).permutation(integrated.T).T
    bad = check(engine, texts, wrong, weights=weights, top=25, random=25)
    assert max(abs(bad.top.spearman), abs(bad.random.spearman)) < 0.5


def test_agreement_over_constants_is_not_a_number():
    assert np.isnan(Agreement.between(np.zeros(3), np.arange(3)).pearson)
    assert Agreement.between(np.arange(4), np.arange(4) ** 3).spearman == pytest.approx(1)


def test_what_cannot_be_attributed_is_refused(tiny):
    experts, texts = HooksEngine(make("mixtral")), some_texts()
    for attribute in (gradient_x_activation, integrated_gradients):
        with pytest.raises(ModelError, match="a mixture of experts can be ablated"):
            attribute(experts, texts)
    with pytest.raises(ModelError, match="a mixture of experts can be ablated"):
        attribution_patching(experts, [(texts[0], texts[1])])
    engine = HooksEngine(tiny())
    with pytest.raises(UsageError, match="steps 0: at least 1"):
        integrated_gradients(engine, texts, steps=0)
    with pytest.raises(UsageError, match="the attribution has shape"):
        check(engine, texts, np.zeros((2, 144)))
    with pytest.raises(UsageError, match="need as many weights"):
        check(engine, texts, np.zeros((6, 144)), weights=[1.0])
