"""Many sets evaluated from where they begin give what one masked run after the other gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import ALL, EXPERTS, make
from hypothesis import given
from hypothesis import strategies as st

from glulens.errors import ResourceError, UsageError
from glulens.probes import suffix
from glulens.probes.ablation import ablate, ablate_each, single
from glulens.probes.engine import silencer
from glulens.probes.hooks import HooksEngine
from glulens.probes.likelihood import loglikelihoods
from glulens.probes.tokens import Encoded
from glulens.probes.trees import plan
from glulens.prune.masks import REPLACEMENTS, Replacement, masked
from glulens.prune.selection import NeuronSet


def some_texts(n: int = 5, primer: int = 3, seed: int = 0) -> list[Encoded]:
    """Questions after a primer, two answers each; the second begins as the first does."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(n):
        question = (*range(3, 3 + primer), *map(int, rng.integers(1, 60, rng.integers(1, 7))))
        answer = tuple(map(int, rng.integers(1, 60, 3)))
        texts.append(Encoded(question + answer, len(question)))
        texts.append(Encoded((*question, *answer[:1], 7, 8, 9), len(question)))
    return texts


def some_sets(engine) -> list[NeuronSet]:
    """Of the first MLP, the last, all of them; none; everything; and four that begin together."""
    widths = engine.widths
    first, last, everywhere = (
        NeuronSet(
            widths,
            tuple(np.arange(0, w if at(k) else 0, 3) for k, w in enumerate(widths)),
        )
        for at in (lambda k: k == 0, lambda k: k == len(widths) - 1, lambda k: True)
    )
    nothing = first - first
    more = [single(widths, len(widths) - 1, k) | single(widths, k % 2, 2) for k in range(4)]
    return [last, nothing, first, everywhere, nothing.complement(), *more]


def one_by_one(model, texts, sets, replacement: Replacement, reference):
    engine = HooksEngine(model)
    found = []
    for cut in sets:
        with masked(model, cut, replacement, reference=reference):
            found.append(loglikelihoods(engine, texts, share=False))
    return np.array(found)


def samples(engine, n: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(n, width)).astype(np.float32) for width in engine.widths]


@pytest.mark.parametrize("family", ALL)
def test_ablating_is_masking_in_every_family(family):
    model = make(family, num_hidden_layers=3) if family != "gpt2" else make(family, n_layer=3)
    engine, texts = HooksEngine(model), some_texts()
    sets, reference = some_sets(engine), samples(engine)
    intact = loglikelihoods(engine, texts, share=False)
    for how in REPLACEMENTS[:2]:
        expected = one_by_one(model, texts, sets, how, reference)
        # Two texts a batch and sets one by one; all texts, and all sets of a start, side by side.
        for max_tokens, share in ((20, False), (20, True), (5000, True)):
            found = ablate(
                engine, texts, sets, replacement=how, reference=reference,
                max_tokens=max_tokens, share=share,
            )  # fmt: skip
            np.testing.assert_allclose(found.intact, intact, atol=1e-4)
            np.testing.assert_allclose(found.loglikelihood, expected, atol=1e-4)
            np.testing.assert_array_equal(found.loglikelihood[1], found.intact)
            np.testing.assert_array_equal(found.lost, found.intact - found.loglikelihood)
        for row in expected[[0, 2, 3, 4]]:
            assert np.abs(row - intact).max() > 0.01
    assert not any("forward" in module.__dict__ for module in model.modules())
    np.testing.assert_array_equal(loglikelihoods(engine, texts, share=False), intact)


def test_layers_below_a_set_are_run_for_the_intact_model_only(tiny, monkeypatch):
    model = tiny(num_hidden_layers=4)
    engine, texts = HooksEngine(model), some_texts()
    ran = [0] * 4
    for number, layer in enumerate(model.model.layers):

        def count(module, args, number=number):
            ran[number] += 1

        layer.mlp.register_forward_pre_hook(count)
    sets = [single(engine.widths, mlp, n) for mlp in (2, 3, 2, 3) for n in range(5)]
    ablate(engine, texts, sets, max_tokens=10**6)
    assert ran == [1, 1, 2, 3]  # sets that begin at one layer are one batch
    ran[:] = [0] * 4
    size = plan(texts, 10**6, last=False, remember=False).passes[0].ids.size
    ablate(engine, texts, sets, max_tokens=4 * size)
    assert ran == [1, 1, 1 + 3, 1 + 3 + 3]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_position_0_can_be_spared(family):
    model = make(family)
    engine, texts = HooksEngine(model), some_texts()
    sets = some_sets(engine)
    found = ablate(engine, texts, sets, spare_first=True).loglikelihood
    for row, cut in zip(found, sets, strict=True):
        silence = silencer(cut, spare_first=True)
        expected = loglikelihoods(engine, texts, intervene=silence, share=False)
        np.testing.assert_allclose(row, expected, atol=1e-4)
    assert np.abs(found - ablate(engine, texts, sets).loglikelihood).max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", *EXPERTS])
def test_resampling_depends_on_the_text_and_the_seed_and_on_nothing_else(family):
    engine = HooksEngine(make(family))
    texts, sets, reference = some_texts(), some_sets(engine), samples(engine)

    def run(texts=texts, sets=sets, **options):
        return ablate(
            engine, texts, sets, replacement="resample", reference=reference, **options
        ).loglikelihood

    found = run()
    for options in ({"share": False}, {"max_tokens": 20}, {"max_tokens": 20, "share": False}):
        np.testing.assert_allclose(run(**options), found, atol=1e-4)
    np.testing.assert_allclose(run(texts=texts[::-1])[:, ::-1], found, atol=1e-4)
    np.testing.assert_allclose(run(texts=texts[3:4], sets=sets[3:4])[0, 0], found[3, 3], atol=1e-4)
    assert np.abs(run(seed=1) - found)[3].max() > 0.01


def test_every_token_gets_one_whole_row_and_all_rows_are_drawn_alike(tiny, monkeypatch):
    engine = HooksEngine(tiny())
    texts = [Encoded(tuple(map(int, ids)), 1) for ids in np.random.default_rng(0).integers(
        0, 100, (40, 50))]  # fmt: skip
    reference = [np.arange(4.0)[:, None] * 1000 + np.arange(width) for width in engine.widths]
    cut = NeuronSet(engine.widths, tuple(np.array([1, 5, 9]) for _ in engine.widths))
    seen: dict[int, list] = {}
    make_visit = suffix._side_by_side

    def spied(changes, step):
        visit = make_visit(changes, step)

        def spy(mlp, rows, places):
            new = visit(mlp, rows, places)
            assert new is not None
            seen.setdefault(mlp, []).append(new)
            kept = [n for n in range(rows.shape[1]) if n not in (1, 5, 9)]
            assert torch.equal(new[:, kept], rows[:, kept])
            return new

        return spy

    monkeypatch.setattr(suffix, "_side_by_side", spied)
    ablate(engine, texts, [cut], replacement="resample", reference=reference, max_tokens=500)
    assert len(seen) == len(engine.widths)
    drawn = {mlp: torch.cat(rows)[:, [1, 5, 9]] for mlp, rows in seen.items()}
    rows = {mlp: (values[:, 0] // 1000).long() for mlp, values in drawn.items()}
    for mlp, values in drawn.items():
        expected = rows[mlp][:, None] * 1000.0 + torch.tensor([1.0, 5.0, 9.0])
        assert torch.equal(values, expected)
        counts = np.bincount(rows[mlp].numpy(), minlength=4)
        assert np.abs(counts / counts.sum() - 0.25).max() < 0.05
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_model_is_as_it_was_after_a_failure(family, monkeypatch):
    model = make(family)
    engine, texts = HooksEngine(model), some_texts()
    sets = some_sets(engine)
    intact = loglikelihoods(engine, texts)
    layers = suffix.layers_of(engine)
    assert layers is not None
    mine = layers._layers[0]
    dispatched = mine.forward
    mine.forward = dispatched  # as a library that moves layers between devices leaves it
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]

    def fail(*args, **kwargs):
        raise RuntimeError("in the midst of it")

    head = model.get_output_embeddings()
    with monkeypatch.context() as patch:
        # The first run is the intact one, the second begins at the last layer.
        calls = []
        forward = head.forward
        patch.setattr(
            head, "forward", lambda *a: fail() if calls else calls.append(1) or forward(*a)
        )
        with pytest.raises(RuntimeError, match="in the midst"):
            ablate(engine, texts, sets[:1])
    assert calls
    assert mine.__dict__["forward"] is dispatched
    del mine.forward
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    np.testing.assert_array_equal(loglikelihoods(engine, texts), intact)


def test_where_memory_runs_out_fewer_sets_then_fewer_rows_are_run(tiny, monkeypatch):
    engine, texts = HooksEngine(tiny()), some_texts(12)
    sets = some_sets(engine)
    expected = ablate(engine, texts, sets, share=False)
    forward, refused, most = engine.forward, [], [20]

    def small(ids, **options):
        if len(ids) > most[0]:
            refused.append(len(ids))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return forward(ids, **options)

    monkeypatch.setattr(engine, "forward", small)
    for rows in (40, 5):
        most[0] = rows
        told = []
        found = ablate(
            engine, texts, sets, share=False, max_tokens=10**5,
            progress=lambda what, done, total, told=told: told.append((done, total)),
        )  # fmt: skip
        assert refused
        np.testing.assert_allclose(found.loglikelihood, expected.loglikelihood, atol=1e-4)
        assert told[-1] == (len(sets) * len(texts),) * 2
        assert max(done for done, _ in told) == told[-1][0]
    most[0] = 0
    with pytest.raises(ResourceError, match="out of memory on a single row"):
        ablate(engine, texts, sets)


def test_another_engine_gives_the_same_numbers(tiny):
    pytest.importorskip("transformer_lens")
    from glulens.probes.lens import LensEngine

    hooks, lens = HooksEngine(tiny()), LensEngine(tiny())
    texts, sets, reference = some_texts(), some_sets(hooks), samples(hooks)
    for how in REPLACEMENTS:
        ours, theirs = (
            ablate(engine, texts, sets, replacement=how, reference=reference)
            for engine in (hooks, lens)
        )
        np.testing.assert_allclose(ours.loglikelihood, theirs.loglikelihood, atol=1e-4)


def test_single_neurons_are_silenced_but_at_position_0(stories):
    engine, texts = HooksEngine(stories.model), some_texts()
    neurons = [(0, 3), (4, 100), (2, 7)]
    found = ablate_each(engine, texts, neurons)
    for row, (mlp, index) in zip(found, neurons, strict=True):
        silence = silencer(single(engine.widths, mlp, index), spare_first=True)
        silenced = loglikelihoods(engine, texts, intervene=silence, share=False)
        intact = loglikelihoods(engine, texts, share=False)
        np.testing.assert_allclose(row, intact - silenced, atol=1e-4)
    assert np.abs(found).max() > 1e-3


def test_an_opened_model_will_do_and_so_will_no_sets_or_texts(stories):
    texts, engine = some_texts(), HooksEngine(stories.model)
    found = ablate(stories, texts, [])
    assert found.loglikelihood.shape == (0, len(texts))
    np.testing.assert_allclose(found.intact, loglikelihoods(engine, texts), atol=1e-4)
    assert ablate(stories, [], some_sets(engine)).lost.shape == (9, 0)


def test_what_does_not_fit_the_model_is_refused(tiny):
    engine, texts = HooksEngine(tiny()), some_texts()
    cut = single(engine.widths, 0, 1)
    with pytest.raises(UsageError, match="the set is of a model with widths"):
        ablate(engine, texts, [single((48, 48), 0, 1)])
    with pytest.raises(UsageError, match="allowed are zero, mean, resample"):
        ablate(engine, texts, [cut], replacement="noise")  # pyright: ignore
    with pytest.raises(UsageError, match="mean needs a reference"):
        ablate(engine, texts, [cut], replacement="mean")
    with pytest.raises(UsageError, match="MLP 0: the reference has shape"):
        ablate(engine, texts, [cut], replacement="mean", reference=[np.zeros((2, 7))] * 3)
    means = [row.mean(0) for row in samples(engine)]
    with pytest.raises(UsageError, match="resample needs samples, not one mean"):
        ablate(engine, texts, [cut], replacement="resample", reference=means)


tokens = st.lists(st.integers(0, 3), min_size=2, max_size=9)


@given(st.lists(tokens, min_size=1, max_size=25), st.integers(1, 40), st.integers(1, 30))
def test_a_plan_that_remembers_nothing_holds_every_token_and_its_past(given_, budget, row):
    texts = [Encoded(tuple(ids), 1) for ids in given_]
    made = plan(texts, budget, row=row, remember=False)
    seen = []
    for step in made.passes:
        assert step.prefix == ()
        assert step.ids.size <= max(budget, step.ids.shape[1])
        sees = step.sees()
        for number, places in zip(step.texts, step.places, strict=True):
            assert tuple(step.ids.flat[places]) == texts[number].ids
            assert list(step.positions.flat[places]) == list(range(len(places)))
            width = step.ids.shape[1]
            assert set(np.flatnonzero(sees[places[-1] // width, places[-1] % width])) == set(
                places % width
            )
        seen += step.texts
    assert sorted(seen) == list(range(len(texts)))
    assert made.tokens_run <= made.tokens_given


def test_a_long_primer_at_most_doubles_the_work():
    primer = 300
    texts = some_texts(400, primer=primer)
    made = plan(texts, remember=False)
    own = plan([Encoded(text.ids[primer:], 1) for text in texts], remember=False).tokens_run
    rows = sum(len(step.ids) for step in made.passes)
    assert made.tokens_run <= own + rows * primer + len(texts)
    assert made.tokens_run <= 2.2 * own
    assert made.tokens_run < 0.1 * made.tokens_given
    assert max(step.ids.shape[1] for step in made.passes) <= 2 * (primer + 9)
