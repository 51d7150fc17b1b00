"""Compensation is the optimum it claims to be, and brings a cut model nearer to the intact one."""

from __future__ import annotations

import copy

import families
import numpy as np
import pytest
import torch
from torch import nn

from glulens.errors import DataError, ModelError, UsageError
from glulens.prune.compensation import (
    RIDGE,
    Calibration,
    compensate,
    compensated,
    install,
)
from glulens.prune.masks import masked
from glulens.prune.mlps import find_mlps, watching
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import NeuronSet, lowest
from glulens.prune.surgery import resize

IDS = torch.tensor([[5, 17, 80, 3, 42, 9]])


def sequences(seed: int = 0, count: int = 12, length: int = 40, vocabulary: int = 100):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, length).tolist() for _ in range(count)]


def seen(model, texts) -> list[np.ndarray]:
    """Activations of every token, float64 [tokens, neurons] an MLP."""
    mlps = find_mlps(model)
    found: list[list[np.ndarray]] = [[] for _ in mlps]

    def see(index, rows, tokens):
        found[index].append(rows.double().numpy())

    with torch.inference_mode(), watching(mlps, see):
        for ids in texts:
            model.base_model(input_ids=torch.tensor([ids]), use_cache=False)
    return [np.concatenate(rows) for rows in found]


def some(model, seed: int, count: int = 20) -> NeuronSet:
    rng = np.random.default_rng(seed)
    widths = tuple(mlp.width for mlp in find_mlps(model))
    return NeuronSet(widths, tuple(rng.choice(w, count, replace=False) for w in widths))


@pytest.mark.parametrize("ridge", [1e-6, 0.01, 1.0])
def test_least_squares_is_the_minimum_in_float64(tiny, ridge):
    model, texts = tiny(), sequences()
    cut = some(model, 1)
    corrections = Calibration(model, texts).corrections(cut, "lsq", ridge)
    for mlp, a, correction in zip(find_mlps(model), seen(model, texts), corrections, strict=True):
        down = mlp.weights[2].double().numpy()
        kept, gone = cut.complement().indices[mlp.index], cut.indices[mlp.index]
        later = np.ones(len(a), bool)
        later[::40] = False  # first tokens do not set the ridge's scale
        weight = ridge * np.square(a[later][:, kept]).mean()
        # The ridge as rows of data: what the change may not do.
        rows = np.concatenate([a[:, kept], np.sqrt(weight * len(a)) * np.eye(len(kept))])
        wanted = np.concatenate([a[:, gone] @ down[:, gone].T, np.zeros((len(kept), 32))])
        change = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
        assert correction.columns is not None
        found = correction.columns.numpy()
        np.testing.assert_allclose(found, down[:, kept] + change, atol=1e-8)
        whole = np.square(a @ down.T).sum()
        left = a @ down.T - a[:, kept] @ found.T
        assert correction.before == pytest.approx(
            np.square(a[:, gone] @ down[:, gone].T).sum() / whole
        )
        assert correction.after == pytest.approx(np.square(left).sum() / whole, abs=1e-9)
        assert correction.after < correction.before


@pytest.mark.parametrize("method", ["lsq", "flap"])
def test_the_error_on_the_calibration_text_never_grows(tiny, method):
    for seed in range(4):
        model, texts = tiny(seed), sequences(seed)
        cut = some(model, seed, 4 + 10 * seed)
        corrections = Calibration(model, texts).corrections(cut, method)
        for mlp, a, correction in zip(
            find_mlps(model), seen(model, texts), corrections, strict=True
        ):
            down = mlp.weights[2].double().numpy()
            kept = cut.complement().indices[mlp.index]
            columns = down[:, kept]
            later = np.arange(len(a)) % 40 > 0 if method == "flap" else np.ones(len(a), bool)
            if correction.columns is not None:
                columns = correction.columns.numpy()
            bias = 0 if correction.bias is None else correction.bias.numpy()
            lost = np.square((a @ down.T - a[:, kept] @ down[:, kept].T)[later]).sum()
            left = np.square((a @ down.T - a[:, kept] @ columns.T - bias)[later]).sum()
            assert left < lost


def test_flap_puts_the_mean_into_the_bias(tiny):
    model, texts = tiny(), sequences()
    cut = some(model, 2)
    for mlp, a, correction in zip(
        find_mlps(model),
        seen(model, texts),
        Calibration(model, texts).corrections(cut, "flap"),
        strict=True,
    ):
        later = a[np.arange(len(a)) % 40 > 0]
        gone = cut.indices[mlp.index]
        wanted = mlp.weights[2].double().numpy()[:, gone] @ later[:, gone].mean(0)
        assert correction.columns is None
        assert correction.bias is not None
        np.testing.assert_allclose(correction.bias.numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("method", ["none", "lsq", "flap"])
def test_nothing_cut_changes_nothing(tiny, method):
    model = tiny()
    intact = model(IDS).logits
    nothing = NeuronSet((48,) * 3, (np.array([], int),) * 3)
    with compensated(model, nothing, Calibration(model, sequences()).corrections(nothing, method)):
        assert torch.equal(model(IDS).logits, intact)


@pytest.mark.parametrize("method", ["none", "lsq", "flap"])
@pytest.mark.parametrize("bias", [False, True])
def test_in_place_equals_resized(tiny, method, bias):
    model = tiny(mlp_bias=bias)
    if bias:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_()
    cut = some(model, 3)
    corrections = Calibration(model, sequences()).corrections(cut, method)
    intact, before = model(IDS).logits, dict(model.named_parameters())
    with compensated(model, cut, corrections) as changed:
        assert changed is model
        inside = model(IDS).logits
        with masked(model, cut):  # a mask of the same neurons changes nothing
            assert torch.equal(model(IDS).logits, inside)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())
    assert torch.equal(model(IDS).logits, intact)
    narrow = resize(copy.deepcopy(model), cut)
    if method == "none":
        with masked(model, cut):
            torch.testing.assert_close(model(IDS).logits, inside, atol=1e-5, rtol=1e-5)
    else:
        assert not torch.allclose(narrow(IDS).logits, inside, atol=1e-3)
    install(narrow, corrections)
    torch.testing.assert_close(narrow(IDS).logits, inside, atol=1e-5, rtol=1e-5)


def test_a_failure_in_the_block_gives_the_tensors_back(tiny):
    model = tiny()
    before, cut = dict(model.named_parameters()), some(model, 4)
    corrections = Calibration(model, sequences()).corrections(cut, "flap")
    with pytest.raises(ZeroDivisionError), compensated(model, cut, corrections):
        raise ZeroDivisionError
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_groups_of_mlps_give_the_same(tiny):
    model, cut = tiny(), some(tiny(), 5)
    whole = Calibration(model, sequences()).corrections(cut)
    parts = Calibration(model, sequences(), keep_bytes=8 * 48**2).corrections(cut)
    for one, other in zip(whole, parts, strict=True):
        assert one.columns is not None
        assert other.columns is not None
        assert torch.equal(one.columns, other.columns)
    with pytest.raises(UsageError, match="second moments of 48 neurons take"):
        Calibration(model, sequences(), keep_bytes=100)


@pytest.mark.parametrize("family", ["phi3", "gpt2", "mixtral", "deepseek_v2", "gemma2"])
def test_other_families(family):
    model = families.make(family)
    texts = sequences(vocabulary=60)
    widths = tuple(mlp.width for mlp in find_mlps(model))
    cut = NeuronSet(widths, tuple(np.arange(0, w, 3) for w in widths))
    calibration = Calibration(model, texts)
    corrections = calibration.corrections(cut)
    assert all(c.after < c.before for c in corrections if c.before == c.before)
    assert sum(c.before == c.before for c in corrections) > len(corrections) / 2
    with compensated(model, cut, corrections):
        inside = model(families.IDS).logits
    narrow = resize(copy.deepcopy(model), cut)
    install(narrow, corrections)
    torch.testing.assert_close(narrow(families.IDS).logits, inside, atol=1e-4, rtol=1e-4)
    if any(mlp.down is None for mlp in find_mlps(model)):
        with pytest.raises(ModelError, match="stacked experts have no bias"):
            calibration.corrections(cut, "flap")


def test_mistakes_are_said(tiny):
    model = tiny()
    calibration, cut = Calibration(model, sequences()), some(model, 6)
    with pytest.raises(UsageError, match="'ridges'; allowed are none, lsq, flap"):
        calibration.corrections(cut, "ridges")  # pyright: ignore
    with pytest.raises(UsageError, match="ridge -1"):
        calibration.corrections(cut, "lsq", -1)
    with pytest.raises(UsageError, match="the set is of a model with widths"):
        calibration.corrections(NeuronSet((3,), (np.arange(1),)))
    with pytest.raises(UsageError, match="all neurons would go"):
        calibration.corrections(some(model, 6, 48))
    with pytest.raises(DataError, match="two tokens or more"):
        Calibration(model, [[3], []])
    with pytest.raises(UsageError, match="is too small for 10 tokens"):
        Calibration(model, sequences(count=1, length=10)).corrections(cut, "lsq", 0.0)
    corrections = calibration.corrections(cut)
    with pytest.raises(UsageError, match="has 48 neurons, its correction 28; cut the model"):
        install(copy.deepcopy(model), corrections)
    with pytest.raises(UsageError, match="2 corrections for a model of 3 MLPs"):
        install(copy.deepcopy(model), corrections[:2])


def test_a_neuron_that_copies_another_is_made_up_for_whole(tiny):
    """Where the lost can be said by what stays, nothing is lost."""
    model = tiny()
    with torch.no_grad():
        for mlp in find_mlps(model):
            gate, up, _ = mlp.weights
            assert gate is not None
            gate[1], up[1] = gate[0], 2 * up[0]
    cut = NeuronSet((48,) * 3, (np.array([1]),) * 3)
    intact = model(IDS).logits
    corrections = Calibration(model, sequences()).corrections(cut, "lsq", 1e-10)
    with masked(model, cut):
        assert (model(IDS).logits - intact).abs().max() > 0.1
    with compensated(model, cut, corrections):
        torch.testing.assert_close(model(IDS).logits, intact, atol=1e-4, rtol=1e-4)


def test_a_trained_model_loses_less_on_other_text(stories):
    """A real model on text of its own kind: calibrated on some stories, tried on others."""
    cut = lowest(score_mlps(find_mlps(stories.model), ["ppm"])["ppm"], 0.3)
    torch.manual_seed(0)
    with torch.inference_mode():
        told = stories.model.generate(
            torch.ones(48, 1, dtype=torch.long),
            attention_mask=torch.ones(48, 1, dtype=torch.long),
            max_new_tokens=120,
            min_new_tokens=120,
            do_sample=True,
            pad_token_id=0,
        )
    calibration, other = Calibration(stories.model, told[:32].tolist()), told[32:]

    def losses() -> torch.Tensor:
        """Of each story."""
        with torch.inference_mode():
            logits = stories.model(input_ids=other).logits[:, :-1]
            found = nn.functional.cross_entropy(
                logits.flatten(0, 1), other[:, 1:].flatten(), reduction="none"
            )
            return found.view(len(other), -1).mean(1)

    with masked(stories.model, cut):
        silent = losses()
    for ridge in (0.01, RIDGE):
        with compensate(stories, cut, [], ridge=ridge, calibration=calibration):
            lsq = losses()
        assert (lsq < silent).all(), "sixteen of sixteen"
        assert losses().mean() < lsq.mean() < silent.mean()


def test_texts_are_read_as_the_tokenizer_reads_them(stories):
    calibration = Calibration.of(stories, ["Once upon a time.", "Tom", ""], longest=5)
    assert calibration.tokens == 4 + len(stories.tokenizer("Tom")["input_ids"]) - 1
