"""Common beginnings are run once, and nothing changes but rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import ALL, make
from hypothesis import given
from hypothesis import strategies as st

from glulens.errors import ResourceError
from glulens.probes import likelihood
from glulens.probes.engine import run, silencer
from glulens.probes.hooks import HooksEngine
from glulens.probes.likelihood import in_parts, loglikelihoods
from glulens.probes.tokens import Encoded
from glulens.probes.trees import plan
from glulens.prune.selection import NeuronSet

PRIMER = tuple(range(3, 43))


def some_texts(n: int = 24, seed: int = 0, primer: tuple[int, ...] = PRIMER) -> list[Encoded]:
    """Questions after a primer, each with a few answers; two answers are the same."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(n):
        question = primer + tuple(int(k) for k in rng.integers(1, 60, rng.integers(1, 9)))
        for _ in range(rng.integers(1, 5)):
            answer = tuple(int(k) for k in rng.integers(1, 6, rng.integers(1, 5)))
            texts.append(Encoded(question + answer, len(question)))
    return [*texts, texts[0]]


ids = st.lists(st.integers(0, 3), min_size=2, max_size=9)


@given(
    st.lists(st.tuples(ids, st.floats(0, 1)), min_size=1, max_size=25),
    st.integers(1, 40),
    st.integers(1, 30),
    st.booleans(),
    st.booleans(),
)
def test_every_token_of_every_text_has_its_place_and_its_past(given_, budget, row, share, last):
    texts = [Encoded(tuple(t), 1 + int(where * (len(t) - 2))) for t, where in given_]
    made = plan(texts, budget, share=share, row=row, last=last)
    seen = []
    for step in made.passes:
        past, width = len(step.prefix), step.ids.shape[1]
        sees = step.sees()
        assert step.ids.size <= max(budget, width)
        for number, places in zip(step.texts, step.places, strict=True):
            text = texts[number]
            path = text.ids if last else text.ids[:-1]
            assert past <= text.start - 1
            assert step.prefix == path[:past]
            assert tuple(step.ids.flat[places]) == path[past:]
            assert list(step.positions.flat[places]) == list(range(past, len(path)))
            for place, column in zip(places, places % width, strict=True):
                # It sees the prefix, its own text up to itself, and nothing else.
                wanted = places[places <= place] % width if len(places) else []
                row_of = place // width
                mine = [p % width for p in places[: list(places).index(place) + 1]]
                assert sorted(np.flatnonzero(sees[row_of, column]) - past) == sorted(
                    [*range(-past, 0), *mine]
                )
                assert len(wanted) <= width
        seen += step.texts
    assert sorted(seen) == list(range(len(texts)))
    assert made.tokens_run <= made.tokens_given or not share


def test_a_common_beginning_is_run_once_and_told():
    texts = some_texts()
    made = plan(texts, 64, row=16)
    assert {step.prefix for step in made.passes} == {PRIMER}
    assert len(made.passes) > 2
    distinct = {text.ids[:k] for text in texts for k in range(1, len(text) + 1)}
    assert made.tokens_run <= 1.3 * len(distinct) < 0.3 * made.tokens_given


def test_without_sharing_each_text_has_a_row_of_its_own_and_no_mask_is_needed():
    made = plan(some_texts(), 200, share=False)
    assert all(step.is_plain for step in made.passes)
    assert made.tokens_run == made.tokens_given
    assert not any(step.is_plain for step in plan(some_texts(), 200, row=16).passes)


def reference(model, texts) -> list[float]:
    found = []
    for text in texts:
        log_p = model(torch.tensor([text.ids])).logits[0].log_softmax(-1)
        found.append(sum(float(log_p[t - 1, text.ids[t]]) for t in range(text.start, len(text))))
    return found


@pytest.mark.parametrize("family", ALL)
def test_shared_beginnings_leave_likelihoods_as_they_are_in_every_family(family):
    model = make(family)
    engine = HooksEngine(model)
    assert engine.shares_up_to > 0
    texts = some_texts()
    expected = reference(model, texts)
    for share, row, budget in ((True, 16, 64), (True, 1000, 1000), (False, 16, 100)):
        with_prefix = plan(texts, budget, share=share, row=row, last=False)
        assert bool(with_prefix.passes[0].prefix) == (share and row == 16)
        found = loglikelihoods(engine, texts, max_tokens=budget, share=share)
        np.testing.assert_allclose(found, expected, atol=2e-4)


def test_windows_that_would_cut_a_text_keep_it_unshared():
    model = make("mistral", sliding_window=16)
    engine = HooksEngine(model)
    assert engine.shares_up_to == 16
    texts = some_texts()
    np.testing.assert_allclose(loglikelihoods(engine, texts), reference(model, texts), atol=1e-4)


@pytest.mark.parametrize(
    ("family", "rope"),
    [
        ("phi3", {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
                  "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}),
        ("llama", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}),
    ],
)  # fmt: skip
def test_rotations_that_look_at_the_longest_text_keep_it_unshared(family, rope):
    original = {"original_max_position_embeddings": 32} if family == "phi3" else {}
    model = make(family, rope_parameters=rope, max_position_embeddings=32, **original)
    engine = HooksEngine(model)
    assert engine.shares_up_to == 32
    texts = some_texts()
    assert max(map(len, texts)) > 32
    found = loglikelihoods(engine, texts, max_tokens=1)
    for text, ll in zip(texts, found, strict=True):
        # A text's last token is not run, and such rotations look at its length.
        log_p = model(torch.tensor([text.ids[:-1]])).logits[0].log_softmax(-1)
        expected = sum(float(log_p[t - 1, text.ids[t]]) for t in range(text.start, len(text)))
        assert ll == pytest.approx(expected, abs=1e-4)


def test_silencing_reaches_the_remembered_beginning_and_spares_position_0():
    model = make("llama")
    engine = HooksEngine(model)
    cut = NeuronSet(engine.widths, (np.arange(12), np.arange(5, 20)))
    texts = some_texts()
    for spare in (False, True):
        silence = silencer(cut, spare_first=spare)
        apart = loglikelihoods(engine, texts, intervene=silence, share=False)
        together = loglikelihoods(engine, texts, intervene=silence, max_tokens=128)
        np.testing.assert_allclose(together, apart, atol=1e-4)
    assert np.abs(apart - loglikelihoods(engine, texts)).max() > 0.01


def test_activations_are_the_same_however_texts_are_laid_out():
    model = make("qwen3_moe")
    engine = HooksEngine(model)
    texts = some_texts(5)

    def rows(share: bool):
        found = {}
        for step in plan(texts, 64, share=share, row=16).passes:
            prefix = torch.tensor([step.prefix])
            past = engine.remember(prefix) if step.prefix else None
            seen = {}

            def visit(mlp, a, places, seen=seen):
                seen |= {(mlp, int(p)): r for p, r in zip(places, a, strict=True)}

            run(engine, step, past=past, visit=visit)
            for text, places in zip(step.texts, step.places, strict=True):
                for at, place in enumerate(places, len(step.prefix)):
                    for mlp in range(len(engine.widths)):
                        if (row := seen.get((mlp, int(place)))) is not None:
                            found[text, at, mlp] = row
        return found

    together, apart = rows(True), rows(False)
    assert len(together) > 100
    for key, row in together.items():
        torch.testing.assert_close(row, apart[key], atol=1e-4, rtol=1e-4)


def test_where_memory_runs_out_a_pass_is_halved_and_a_single_row_is_refused(monkeypatch):
    model = make("llama")
    engine = HooksEngine(model)
    texts = some_texts()
    whole = loglikelihoods(engine, texts)
    forward, sizes = engine.forward, []

    def small(ids, **options):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't "
                               "allocate memory: you tried to allocate 9 bytes.")  # fmt: skip
        return forward(ids, **options)

    monkeypatch.setattr(engine, "forward", small)
    np.testing.assert_allclose(loglikelihoods(engine, texts, share=False), whole, atol=1e-4)
    assert max(sizes) > 2

    def none(step):
        raise MemoryError

    with pytest.raises(ResourceError, match="out of memory on a single row of"):
        in_parts(none, plan(texts).passes[0])
    assert likelihood.in_parts(lambda step: None, plan(texts).passes[0]) == 1


def test_interventions_are_made_anew_for_each_pass():
    engine = HooksEngine(make("llama"))
    seen = []

    def spy(positions):
        seen.append(positions)
        return lambda mlp, rows, places: None

    loglikelihoods(engine, some_texts(), intervene=spy, max_tokens=64, share=False)
    assert len(seen) > 1
    assert all(positions.ndim == 1 for positions in seen)
