"""What is recorded is what the definitions say, whatever the batches; attribution predicts
ablation."""

from __future__ import annotations

import io
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from glulens.datasets.pairs import Pair, Text, load_material, misconception_pair
from glulens.datasets.truthfulqa import load_misconceptions
from glulens.errors import DataError, ModelError, UsageError
from glulens.probes.ablation import ablate_each
from glulens.probes.contrasts import (
    Contrasts,
    encode_pairs,
    grouped,
    rank_contrasts,
    record_contrasts,
)
from glulens.probes.engine import make_engine
from glulens.probes.hooks import HooksEngine
from glulens.probes.tokens import Encoder, batches


def some_pairs(count: int) -> dict[str, list[Pair]]:
    records = load_misconceptions().records[:count]
    return {"misconception": [misconception_pair(record) for record in records]}


def reference(opened, text: Text):
    """LL, mean activation and gradient x activation of one text by itself, in float64."""
    model = opened.model
    prompt, answer = text.plain()
    before = len(opened.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([opened.tokenizer(prompt + answer)["input_ids"]])
    seen = []

    def hook(module, args):
        seen.append(args[0].detach().requires_grad_() if not seen else args[0])
        return (seen[-1],)

    handles = [layer.mlp.down_proj.register_forward_pre_hook(hook) for layer in model.model.layers]
    log_p = model(ids).logits.double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    positions = torch.arange(before, ids.shape[1])
    ll = log_p[0, positions - 1, ids[0, positions]].sum()
    gradients = torch.autograd.grad(ll, seen)
    mean = torch.cat([a[0, before:].double().mean(0) for a in seen])
    attribution = torch.cat(
        [
            (a[0, 1:].double() * g[0, 1:].double()).sum(0)
            for a, g in zip(seen, gradients, strict=True)
        ]
    )
    return float(ll.detach()), mean.detach().numpy(), attribution.detach().numpy()


@pytest.mark.parametrize("max_tokens", [1, 200, 4096])
def test_recording_equals_one_text_at_a_time(stories, max_tokens):
    pairs = some_pairs(6)
    found = record_contrasts(
        make_engine(stories), Encoder(stories.tokenizer), pairs, max_tokens=max_tokens
    )["misconception"]
    for place, pair in enumerate(pairs["misconception"]):
        a, b = reference(stories, pair.a), reference(stories, pair.b)
        np.testing.assert_allclose(found.loglikelihood[place], [a[0], b[0]], rtol=1e-5)
        for ours, theirs in (
            (found.difference[place], a[1] - b[1]),
            (found.attribution[place], a[2] - b[2]),
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_statistics_are_of_the_answers_tokens_and_no_others(stories):
    pairs = some_pairs(5)
    encoder, engine = Encoder(stories.tokenizer), make_engine(stories)
    found = record_contrasts(engine, encoder, pairs, max_tokens=300)["misconception"].activation
    rows = []
    for text in encode_pairs(encoder, pairs["misconception"]):
        seen = []
        with torch.inference_mode():
            engine.forward(torch.tensor([text.ids]), visit=lambda _, a, where, s=seen: s.append(a))
        rows.append(torch.cat([a[text.start :] for a in seen], 1).double().numpy())
    rows = np.concatenate(rows)
    assert found.n_tokens == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.rms, np.sqrt((rows**2).mean(0)), rtol=1e-4)
    np.testing.assert_allclose(found.maximum, rows.max(0), rtol=1e-4, atol=1e-6)


def test_batching_does_not_matter_on_smollm2(smollm):
    pairs = some_pairs(8)
    encoder, engine = Encoder(smollm.tokenizer), make_engine(smollm)
    one, many = (
        record_contrasts(engine, encoder, pairs, max_tokens=m)["misconception"] for m in (1, 1024)
    )
    for field in ("difference", "attribution"):
        a, b = getattr(one, field), getattr(many, field)
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    np.testing.assert_allclose(one.activation.rms, many.activation.rms, rtol=1e-5)


def test_what_a_pair_begins_with_is_run_once_and_pairs_share_nothing(stories, monkeypatch):
    pairs = load_material(limit=4).pairs
    encoder = Encoder(stories.tokenizer)
    tokens, forward = 0, HooksEngine.forward

    def counting(self, ids, **kwargs):
        nonlocal tokens
        tokens += int((ids != 0).sum())
        return forward(self, ids, **kwargs)

    monkeypatch.setattr(HooksEngine, "forward", counting)
    found = record_contrasts(make_engine(stories), encoder, pairs)
    expected = 0
    for pair in (pair for members in pairs.values() for pair in members):
        a, b = (text.ids for text in encode_pairs(encoder, [pair]))
        shared = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
        expected += len(a) + len(b) - min(shared, len(b))
    assert (
        tokens == expected < sum(len(t) for p in pairs.values() for t in encode_pairs(encoder, p))
    )
    # The control's texts are the misconceptions' too, and of the same questions.
    alone = record_contrasts(make_engine(stories), encoder, {"control": pairs["control"]})
    np.testing.assert_allclose(
        found["control"].attribution, alone["control"].attribution, atol=1e-4
    )


def test_an_engine_that_cannot_share_finds_the_same(stories, monkeypatch):
    pairs = load_material(limit=3).pairs
    encoder, engine = Encoder(stories.tokenizer), make_engine(stories)
    shared = record_contrasts(engine, encoder, pairs)
    engine.shares_up_to = 0
    for max_tokens in (1, 1024):  # with 1 a pair's texts lie in two passes
        apart = record_contrasts(engine, encoder, pairs, max_tokens=max_tokens)
        for name in pairs:
            for field in ("means", "attribution", "loglikelihood"):
                a, b = getattr(shared[name], field), getattr(apart[name], field)
                np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_beginnings_are_shared_up_to_the_length_that_the_engine_can(stories):
    texts = encode_pairs(Encoder(stories.tokenizer), some_pairs(4)["misconception"])
    engine, groups = make_engine(stories), np.arange(8) // 2
    every, longest = sum(map(len, texts)), max(map(len, texts))
    for reach, shared in ((longest + 1, True), (longest, True), (longest - 1, False), (0, False)):
        engine.shares_up_to = reach
        passes = grouped(engine, texts, groups, 1024)
        assert (sum(step.ids.size for step in passes) < every) == shared
        assert sorted(text for step in passes for text in step.texts) == list(range(8))


@pytest.fixture(scope="module")
def three(stories):
    """Three properties of unequal size, recorded together; what was told of the progress."""
    pairs = {
        name: some[: k + 1] for k, (name, some) in enumerate(load_material(limit=3).pairs.items())
    }
    told = []
    engine, encoder = make_engine(stories), Encoder(stories.tokenizer)
    found = record_contrasts(engine, encoder, pairs, progress=lambda *said: told.append(said))
    return pairs, found, told


def test_every_property_has_its_own_pairs(stories, three):
    pairs, found, _ = three
    engine, encoder = make_engine(stories), Encoder(stories.tokenizer)
    assert list(found) == list(pairs)
    for name, members in pairs.items():
        assert found[name].items == tuple(pair.item for pair in members)
        texts = encode_pairs(encoder, members)
        counts = [[a.n_answer, b.n_answer] for a, b in zip(texts[::2], texts[1::2], strict=True)]
        assert found[name].answer_tokens.tolist() == counts
        assert found[name].activation.n_tokens == np.sum(counts)
        alone = record_contrasts(engine, encoder, {name: members})[name]
        for field in ("means", "attribution", "loglikelihood"):
            ours, theirs = getattr(found[name], field), getattr(alone, field)
            assert ours.shape == theirs.shape
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
        np.testing.assert_allclose(found[name].activation.mean, alone.activation.mean, atol=1e-5)


def test_progress_ends_with_the_last_text(three):
    pairs, _, told = three
    texts = 2 * sum(map(len, pairs.values()))
    done = [number for _, number, _ in told]
    assert done == sorted(done)
    assert done[0] > 0
    assert done[-1] == texts
    assert {(what, total) for what, _, total in told} == {
        ("recording and attributing (texts)", texts)
    }


def test_contrasts_survive_a_file_of_arrays(three):
    _, found, _ = three
    for one in found.values():
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **one.arrays())
        file.seek(0)
        again = Contrasts.restored(list(one.items), np.load(file))
        assert again.items == one.items
        for field in ("means", "attribution", "loglikelihood", "answer_tokens", "ranks"):
            np.testing.assert_array_equal(getattr(again, field), getattr(one, field))
        for field in fields(one.activation):
            np.testing.assert_array_equal(
                getattr(again.activation, field.name), getattr(one.activation, field.name)
            )


def test_ranks_are_those_of_each_neuron_by_itself():
    """More neurons than are ranked at a time, with ties."""
    a, b = np.random.default_rng(0).normal(size=(2, 4, 1100)).round(1)
    both = np.apply_along_axis(rankdata, 0, np.concatenate([a, b]))
    np.testing.assert_allclose(rank_contrasts(a, b), (both[:4] - both[4:]) / 8, atol=1e-6)


def test_what_cannot_be_contrasted_is_refused(stories, tiny):
    encoder = Encoder(stories.tokenizer)
    mixture: Any = SimpleNamespace(dense=False)
    with pytest.raises(ModelError, match="attributions are of dense MLPs; a mixture of experts"):
        record_contrasts(mixture, encoder, some_pairs(1))
    with pytest.raises(DataError, match="fact: no pairs to record"):
        record_contrasts(make_engine(stories), encoder, {**some_pairs(1), "fact": []})
    model = tiny(vocab_size=stories.model.config.vocab_size)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] = 1e38  # times the gate: beyond float32
    with pytest.raises(ModelError, match="misconception: .* not finite; try --dtype float32"):
        record_contrasts(HooksEngine(model), encoder, some_pairs(1))


def agreement(opened, count: int, neurons: int):
    """Mean attribution of random neurons, its exact value by ablation, and their layers."""
    pairs = some_pairs(count)
    engine, encoder = make_engine(opened), Encoder(opened.tokenizer)
    recorded = record_contrasts(engine, encoder, pairs)["misconception"]
    chosen = np.random.default_rng(0).choice(sum(engine.widths), neurons, replace=False)
    width = engine.widths[0]
    places = [(int(n // width), int(n % width)) for n in chosen]
    exact = ablate_each(engine, encode_pairs(encoder, pairs["misconception"]), places)
    exact = (exact[:, 0::2] - exact[:, 1::2]).mean(1)
    return recorded.attribution.mean(0)[chosen], exact, chosen // width


def correlations(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    return float(np.corrcoef(a, b)[0, 1]), float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def test_attribution_predicts_exact_ablation_on_stories(stories):
    approximate, exact, _ = agreement(stories, count=20, neurons=64)
    pearson, spearman = correlations(approximate, exact)
    assert pearson > 0.85
    assert spearman > 0.85


def test_attribution_predicts_exact_ablation_on_smollm2(smollm):
    approximate, exact, layers = agreement(smollm, count=4, neurons=64)
    _, spearman = correlations(approximate, exact)
    # Layer 0 has neurons whose removal breaks the model; no first order foresees that, and one of
    # them decides Pearson's r. Ranks bear it; elsewhere the values agree too.
    pearson, _ = correlations(approximate[layers > 0], exact[layers > 0])
    assert spearman > 0.85
    assert pearson > 0.95


def test_batches_hold_every_text_once_within_the_budget(stories):
    texts = encode_pairs(Encoder(stories.tokenizer), some_pairs(20)["misconception"])
    found = list(batches(texts, 256, torch.device("cpu")))
    assert sorted(row for batch in found for row in batch.rows) == list(range(len(texts)))
    for batch in found:
        assert batch.ids.numel() <= 256 or len(batch.rows) == 1
        assert not batch.real[:, 0].any()
        for place, row in enumerate(batch.rows):
            assert int(batch.answer[place].sum()) == texts[row].n_answer
            assert tuple(batch.ids[place, : len(texts[row])].tolist()) == texts[row].ids


def test_texts_that_cannot_be_encoded_are_refused(stories):
    encoder = Encoder(stories.tokenizer, max_length=16)
    with pytest.raises(DataError, match="exceeds the model's context of 16"):
        encoder.text(Text("Why?", "Because of a very long chain of reasons.", "question"))
    with pytest.raises(DataError, match="no token of its own"):
        encoder.text(Text("Say nothing", "", "request"))
    with pytest.raises(UsageError, match="no chat template"):
        Encoder(stories.tokenizer, chat=True)


def test_chat_puts_the_users_words_through_the_template(smollm):
    text = Text("Who was first?", "She was.", "request")
    encoded = Encoder(smollm.tokenizer, chat=True).text(text)
    said = smollm.tokenizer.decode(encoded.ids)
    assert said.endswith(
        "<|im_start|>user\nWho was first?<|im_end|>\n<|im_start|>assistant\nShe was."
    )
    assert smollm.tokenizer.decode(encoded.ids[encoded.start :]) == "She was."
