"""Transplants between a base and a tuned model: exact, undone, and judged against chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import families
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tuned_stories import copy_of, fine_tune, for_transformers, tuned_pair

import glulens
from glulens.datasets.pairs import load_material
from glulens.errors import ModelError, UsageError
from glulens.interp import transplant as module
from glulens.interp.causal import DAMAGE, Trial
from glulens.interp.transplant import (
    DIRECTIONS,
    Exchanged,
    exchange,
    exchanged,
    transplant,
    transplants,
)
from glulens.interp.transplant_sets import (
    ALL,
    CRITERION_TENTHS,
    HIGHEST,
    LOWEST,
    MOST_CHANGED,
    TransplantSet,
    transplant_cost,
    transplant_sets,
)
from glulens.probes.engine import make_engine
from glulens.probes.likelihood import loglikelihoods
from glulens.probes.tokens import Encoded
from glulens.prune import find_mlps, score_mlps
from glulens.prune.models import ModelSource, OpenedModel
from glulens.prune.selection import NeuronSet, lowest


def opened(model: Any) -> OpenedModel:
    tokenizer: Any = None
    return OpenedModel(model, tokenizer, ModelSource("made up", "folder", glulens.__path__[0]))  # pyright: ignore


def some_texts(vocabulary: int, count: int = 8, length: int = 12, seed: int = 0) -> Trial:
    """Random tokens: pairs of one property, then passages."""
    rng = np.random.default_rng(seed)
    texts = tuple(
        Encoded(tuple(rng.integers(3, vocabulary, length).tolist()), 4) for _ in range(3 * count)
    )
    names = tuple(map(str, range(count)))
    spans = {"fact": slice(0, 2 * count), DAMAGE: slice(2 * count, 3 * count)}
    return Trial(texts, spans, {"fact": names, DAMAGE: names})


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(model: Any, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def mlp_parts(model: Any) -> set[str]:
    return {slot.tensor for mlp in find_mlps(model) for slot in mlp.layout.slots.values()}


def squared_changes(base: OpenedModel, tuned: OpenedModel) -> list[np.ndarray]:
    """Of every neuron, by MLP: sum of squares over its row of gate, row of up, column of down."""
    found = []
    for mine, theirs in zip(find_mlps(base.model), find_mlps(tuned.model), strict=True):
        total = torch.zeros(mine.width, dtype=torch.float64)
        for one, other, axis in zip(mine.weights, theirs.weights, (1, 1, 0), strict=True):
            assert one is not None
            assert other is not None
            total += (other - one).double().square().sum(axis)
        found.append(total.numpy())
    return found


def everything(widths: Sequence[int]) -> NeuronSet:
    return NeuronSet(tuple(widths), tuple(map(np.arange, widths)))


# --- the exchange ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "opt", "mixtral", "deepseek_v2"])
def test_a_sets_weights_change_places_and_nothing_else_does(family):
    base, tuned = families.make(family, 0), families.make(family, 1)
    before = weights(base), weights(tuned)
    rng = np.random.default_rng(0)
    mine, theirs = find_mlps(base), find_mlps(tuned)
    widths = tuple(mlp.width for mlp in mine)
    cut = NeuronSet(widths, tuple(rng.choice(w, rng.integers(0, w), False) for w in widths))
    old = [
        [{role: m.view(role).clone() for role in m.layout.slots} for m in side]  # pyright: ignore
        for side in (mine, theirs)
    ]
    with exchanged(mine, theirs, cut):
        for number, chosen in enumerate(cut.indices):
            moved = torch.zeros(widths[number], dtype=torch.bool)
            moved[torch.from_numpy(chosen.copy())] = True
            for role in mine[number].layout.slots:
                a, b = old[0][number][role], old[1][number][role]
                where = moved if role == "down" or a.ndim == 1 else moved[:, None]
                assert torch.equal(mine[number].view(role), torch.where(where, b, a))  # pyright: ignore
                assert torch.equal(theirs[number].view(role), torch.where(where, a, b))  # pyright: ignore
        rest = base.state_dict().keys() - mlp_parts(base)
        for name, parameter in base.named_parameters():
            if name in rest:
                assert torch.equal(parameter, before[0][name]), name
        assert not same(base, before[0])
    assert same(base, before[0])
    assert same(tuned, before[1])


@settings(max_examples=25)
@given(st.data())
def test_whatever_the_set_and_dtype_all_is_as_before(data):
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    base, tuned = families.make("llama", 0).to(dtype), families.make("llama", 1).to(dtype)
    mine, theirs = find_mlps(base), find_mlps(tuned)
    chosen = [data.draw(st.sets(st.integers(0, mlp.width - 1))) for mlp in mine]
    cut = NeuronSet(tuple(m.width for m in mine), tuple(np.array(sorted(c), int) for c in chosen))
    before = weights(base), weights(tuned)

    def fail() -> None:
        with exchanged(mine, theirs, cut):
            assert same(base, before[0]) == (not len(cut))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(base, before[0])
    assert same(tuned, before[1])


@pytest.mark.parametrize("calls", [1, 2, 3, 4, 7])
def test_an_interruption_between_two_writes_is_undone(calls, monkeypatch):
    base, tuned = families.make("llama", 0), families.make("llama", 1)
    mine, theirs = find_mlps(base), find_mlps(tuned)
    before = weights(base), weights(tuned)
    put, count = module._put, 0

    def interrupted(*args: Any) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        put(*args)

    monkeypatch.setattr(module, "_put", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        exchanged(mine, theirs, everything([m.width for m in mine])),
    ):
        pass
    assert same(base, before[0])
    assert same(tuned, before[1])


def test_models_whose_neurons_cannot_change_places_are_refused():
    base = find_mlps(families.make("llama"))
    for other, words in (
        (
            families.make("llama", intermediate_size=20),
            "32 x 24 float32 in the base and 32 x 20 float32",
        ),
        (families.make("llama").bfloat16(), "float32 in the base .* bfloat16 .*--dtype"),
        (families.make("llama", num_hidden_layers=3), "2 MLPs and the tuned model 3"),
        (families.make("gpt2", n_inner=24), "gate is 24 x 32 float32 in the base and missing"),
    ):
        with pytest.raises(ModelError, match=words), exchanged(
            base, find_mlps(other), NeuronSet((24, 24), (np.array([0]), np.array([1])))
        ):  # fmt: skip
            pass
    alike = find_mlps(families.make("llama", 1))
    with pytest.raises(UsageError), exchanged(base, alike, everything([24, 20])):
        pass


# --- what it does to the models -------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "phi3", "opt", "qwen3_moe"])
def test_all_neurons_make_the_donor_where_only_neurons_differ_and_none_make_the_host(family):
    base, other = families.make(family, 0), families.make(family, 1)
    tuned = families.make(family, 0)
    moved = mlp_parts(tuned)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if name in moved and not name.endswith(("down_proj.bias", "fc2.bias")):
                parameter.copy_(other.get_parameter(name))
    widths = tuple(mlp.width for mlp in find_mlps(base))
    sets = [
        TransplantSet("all", everything(widths), ""),
        TransplantSet("none", everything(widths) - everything(widths), ""),
    ]
    found = exchange(opened(base), opened(tuned), some_texts(60), sets)
    assert np.abs(found.intact[0] - found.intact[1]).min() > 1e-3
    np.testing.assert_array_equal(found.changed[:, 0], found.intact[::-1])
    np.testing.assert_array_equal(found.changed[:, 1], found.intact)


def test_it_is_what_a_model_put_together_by_hand_does(stories):
    tuned = copy_of(stories)
    fine_tune(tuned, steps=5)
    rng = np.random.default_rng(3)
    widths = tuple(mlp.width for mlp in find_mlps(stories.model))
    chosen = tuple(np.sort(rng.choice(w, w // 3, replace=False)) for w in widths)
    trial = some_texts(512, count=4, length=40)
    [a, b] = [copy_of(stories), copy_of(tuned)]
    with torch.no_grad():
        for host, donor in ((a, tuned), (b, stories)):
            for layer, rows in enumerate(chosen):
                mlp = host.model.model.layers[layer].mlp
                of = donor.model.model.layers[layer].mlp
                mlp.gate_proj.weight[rows] = of.gate_proj.weight[rows]
                mlp.up_proj.weight[rows] = of.up_proj.weight[rows]
                mlp.down_proj.weight[:, rows] = of.down_proj.weight[:, rows]
    # The fine-tuning changed attention and embeddings too, which stay.
    sets = [TransplantSet("some", NeuronSet(widths, chosen), "")]
    found = exchange(stories, tuned, trial, sets)
    for side, model in enumerate((a, b)):
        by_hand = loglikelihoods(make_engine(model), trial.texts)
        np.testing.assert_array_equal(found.changed[side, 0], by_hand)
        assert np.abs(by_hand - found.intact[side]).min() > 1e-4


def test_small_changes_add_up(tiny):
    def beyond_addition(size: float) -> tuple[float, float, float]:
        """The largest effect of all neurons; how far the tenths' sum, and the reverse, is off."""
        base, tuned = tiny(0).double(), tiny(0).double()
        torch.manual_seed(5)
        with torch.no_grad():
            for name in sorted(mlp_parts(tuned)):
                parameter = tuned.get_parameter(name)
                parameter.add_(torch.randn_like(parameter), alpha=size)
        rng = np.random.default_rng(0)
        scores = [rng.random(mlp.width) for mlp in find_mlps(base)]
        sets = transplant_sets(scores, scores, random=0)
        found = exchange(opened(base), opened(tuned), some_texts(100), sets)
        moved = found.changed - found.intact[:, None]
        names = [each.name for each in sets]
        tenths = np.sum([moved[:, names.index(name)] for name in CRITERION_TENTHS], axis=0)
        whole = moved[:, names.index(ALL)]
        # What moves the base one way moves the tuned model the other.
        off, reverse = np.abs(tenths - whole).max(), np.abs(moved.sum(0)).max()
        return float(np.abs(whole).max()), float(off), float(reverse)

    large, small = beyond_addition(4e-3), beyond_addition(1e-3)
    assert small[0] > 0.02
    assert large[0] / small[0] == pytest.approx(4, rel=0.2)
    for one, other in zip(large[1:], small[1:], strict=True):
        assert other < 0.05 * small[0]
        assert one / other > 8  # of second order: 16, but for rounding


@pytest.fixture(scope="module")
def planted(stories) -> OpenedModel:
    """Stories260k with other weights in the lowest tenth of every layer, and nowhere else."""
    tuned = copy_of(stories)
    mlps = find_mlps(tuned.model)
    cut = lowest(score_mlps(mlps, ["ppm"])["ppm"], 0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for mlp, chosen in zip(mlps, cut.indices, strict=True):
            for role in ("gate", "up", "down"):
                view = mlp.view(role)
                assert view is not None
                rows = (view.T if role == "down" else view)[chosen.copy()]
                new = torch.randn(rows.shape, generator=generator) * 0.5 * rows.std()
                (view.T if role == "down" else view)[chosen.copy()] = rows + new
    return tuned


@pytest.fixture(scope="module")
def material():
    """Little of it, and short: a test of algebra on real text."""
    whole = load_material("builtin", seed=0)
    neutral = sorted(whole.neutral, key=lambda passage: len(passage.text))[:8]
    return replace(whole, pairs={"fact": whole.pairs["fact"][:4]}, neutral=tuple(neutral))


def test_a_change_planted_in_the_lowest_tenth_is_found_there(stories, planted, material):
    scores = score_mlps(find_mlps(stories.model), ["ppm"])["ppm"]
    told = []
    rows = transplant(
        stories,
        planted,
        scores,
        material,
        changes=squared_changes(stories, planted),
        items=16,
        random=6,
        progress=lambda *args: told.append(args),
    )
    by_name = {(row.direction, row.name, row.quantity): row for row in rows}
    for direction in DIRECTIONS:
        low = by_name[direction, LOWEST, DAMAGE]
        assert low.restored == 1
        assert low.change == pytest.approx(low.donor - low.host)
        assert low.change_share == pytest.approx(1)
        assert low.p < 0.01
        assert low.q < 0.05
        assert abs(low.z) > 5
        assert low.low <= low.change <= low.high
        assert low.low * low.high > 0
        for name in (MOST_CHANGED, ALL):
            assert by_name[direction, name, DAMAGE].change == low.change
        assert np.isnan(by_name[direction, ALL, DAMAGE].p)
        for name in CRITERION_TENTHS[1:]:
            row = by_name[direction, name, DAMAGE]
            assert row.change == row.restored == row.change_share == 0
        random = [by_name[direction, f"random {k}", DAMAGE] for k in range(1, 7)]
        assert np.mean([row.change_share for row in random]) == pytest.approx(0.1, abs=0.05)
        assert np.mean([row.restored for row in random]) == pytest.approx(0.1, abs=0.15)
        assert all(np.isnan(row.p) and row.n_neurons == low.n_neurons for row in random)
    assert by_name["into base", LOWEST, DAMAGE].change > 0.05  # damage, in nats a token
    cost = transplant_cost(material, items=16, random=6)
    assert told[-1][1:] == (cost.forwards, cost.forwards)
    assert len({row.name for row in rows}) == cost.n_sets
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_a_model_against_itself_changes_nothing_and_claims_nothing(stories, material):
    scores = score_mlps(find_mlps(stories.model), ["ppm"])["ppm"]
    rows = transplant(
        stories, copy_of(stories), scores, material,
        changes=[np.zeros(len(layer)) for layer in scores], items=2, random=3,
    )  # fmt: skip
    assert all(row.change == row.low == row.high == 0 for row in rows)
    assert all(np.isnan([row.restored, row.p, row.q, row.change_share]).all() for row in rows)


def test_two_tokenizers_must_agree_on_the_texts(stories, material):
    scores = score_mlps(find_mlps(stories.model), ["ppm"])["ppm"]
    given: dict[str, Any] = {"changes": scores, "items": 2, "random": 0}
    alike = replace(copy_of(stories), tokenizer=for_transformers(stories.tokenizer))  # pyright: ignore
    assert transplant(stories, alike, scores, material, **given)
    changed = copy_of(stories)
    tokens = for_transformers(stories.tokenizer)  # pyright: ignore
    tokens.backend_tokenizer.normalizer = None
    changed = replace(changed, tokenizer=tokens)
    with pytest.raises(ModelError, match=r"tokenizers .* disagree on \d+ of \d+ texts"):
        transplant(stories, changed, scores, material, **given)


def test_numbers_out_of_range_are_refused(stories, material):
    scores = score_mlps(find_mlps(stories.model), ["ppm"])["ppm"]
    with pytest.raises(UsageError, match="at least 2"):
        transplant(stories, stories, scores, material, changes=scores, items=1)
    with pytest.raises(UsageError, match="0 or more"):
        transplant(stories, stories, scores, material, changes=scores, random=-1)
    with pytest.raises(UsageError, match="widths"):
        transplant(stories, stories, scores[1:], material, changes=scores[1:], items=2, random=0)


def test_a_saved_pair_opens_and_was_tuned(tmp_path):
    base, tuned = map(glulens.open_model, map(str, tuned_pair(tmp_path, steps=30)))
    changes = squared_changes(base, tuned)
    assert all((layer > 0).all() for layer in changes)
    text = "Once upon a time, é\nthe end"
    assert base.tokenizer(text) == tuned.tokenizer(text)
    losses = fine_tune(copy_of(base), steps=30)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


# --- which sets -----------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 64), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 9))
def test_sets_are_tenths_and_random_ones_have_the_lowest_tenths_counts(widths, random, seed):
    rng = np.random.default_rng(seed)
    scores = [rng.random(w) for w in widths]
    changes = [rng.random(w) for w in widths]
    sets = {e.name: e for e in transplant_sets(scores, changes, random=random, seed=seed)}
    tenths = [sets[name].cut for name in CRITERION_TENTHS if name in sets]
    assert sum(map(len, tenths)) == sum(widths)
    union = tenths[0]
    for tenth in tenths[1:]:
        union = union | tenth
    assert union == everything(widths) == sets[ALL].cut
    if min(widths) >= 10:
        assert sets[LOWEST].cut == lowest(scores, 0.1)
    drawn = [each for each in sets.values() if each.is_random]
    assert len(drawn) == random
    for each in [*drawn, sets[MOST_CHANGED]]:
        assert each.cut.counts == sets[LOWEST].cut.counts
        assert each.like == LOWEST
    for layer, chosen in zip(changes, sets[MOST_CHANGED].cut.indices, strict=True):
        assert layer[chosen].min() >= np.delete(layer, chosen).max(initial=0)
    again = {e.name: e for e in transplant_sets(scores, changes, random=random, seed=seed)}
    assert all(again[name].cut == each.cut for name, each in sets.items())


def test_a_given_set_is_compared_with_random_ones_of_its_own_counts():
    rng = np.random.default_rng(0)
    scores = [rng.random(40), rng.random(40)]
    half = NeuronSet((40, 40), (np.arange(20), np.arange(0)))
    tenth = NeuronSet((40, 40), (np.arange(4), np.arange(4)))
    whole = everything([40, 40])
    named = {"half": half, "a tenth": tenth, "whole": whole}
    sets = transplant_sets(scores, scores, random=3, given=named)
    likes = {each.name: each.like for each in sets}
    assert likes["half"] == "half"
    assert likes["a tenth"] == LOWEST
    assert likes["whole"] == likes[ALL] == ""
    mine = [each.cut for each in sets if each.is_random and each.like == "half"]
    assert [cut.counts for cut in mine] == [(20, 0)] * 3
    assert len({tuple(cut.indices[0]) for cut in mine}) == 3
    names = [each.name for each in sets]
    assert len(set(names)) == len(names)
    with pytest.raises(UsageError, match="made anyway"):
        transplant_sets(scores, scores, given={LOWEST: half})
    with pytest.raises(UsageError, match="made anyway"):
        transplant_sets(scores, scores, given={"random 1": half})
    with pytest.raises(UsageError, match="widths"):
        transplant_sets(scores, scores, given={"other": everything([40, 41])})
    with pytest.raises(UsageError, match="shapes"):
        transplant_sets(scores, scores[:1])


# --- statistics -----------------------------------------------------------------------------------


def made_up(items: int, gap: float, moved: np.ndarray, rng: Any) -> tuple[Trial, Exchanged]:
    """A trial in which sets move every item of the base's margin by `moved`, the models being
    `gap` apart on average."""
    trial = some_texts(100, items)
    intact = np.stack([rng.normal(size=3 * items)] * 2)
    intact[1, 1 : 2 * items : 2] += gap + 0.1 * rng.normal(size=items)  # the right answers
    changed = np.repeat(intact[:, None], len(moved), axis=1)
    changed[0, :, 1 : 2 * items : 2] += moved[:, None]
    return trial, Exchanged(intact, changed)


def drawn_sets(random: int) -> list[TransplantSet]:
    empty = NeuronSet((10,), (np.arange(1),))
    some = [TransplantSet(f"random {k}", empty, LOWEST, True) for k in range(random)]
    return [TransplantSet(LOWEST, empty, LOWEST), TransplantSet(HIGHEST, empty, LOWEST), *some]


def test_z_and_p_are_those_of_one_more_draw():
    rng = np.random.default_rng(1)
    moved = rng.normal(1, 0.5, 10)
    sets = drawn_sets(8)
    trial, found = made_up(6, 2.0, moved, rng)
    rows = transplants(trial, sets, found, [np.arange(10.0)])
    mine = [row for row in rows if (row.quantity, row.direction) == ("fact", "into base")]
    assert [row.change for row in mine] == pytest.approx(moved)
    ttest: Any = stats.ttest_ind(moved[:1], moved[2:])
    assert mine[0].p == pytest.approx(ttest.pvalue, rel=1e-9)
    assert mine[0].z == pytest.approx((moved[0] - moved[2:].mean()) / moved[2:].std(ddof=1))
    assert mine[0].random_mean == pytest.approx(moved[2:].mean())
    gap = mine[0].donor - mine[0].host
    assert mine[0].restored == pytest.approx(moved[0] / gap)
    # Nothing moved the tuned model, nor the passages: no spread, no test.
    rest = [row for row in rows if row not in mine]
    assert all(row.change == 0 and np.isnan(row.p) and np.isnan(row.q) for row in rest)
    adjusted = stats.false_discovery_control([mine[0].p, mine[1].p])
    assert [mine[0].q, mine[1].q] == pytest.approx(adjusted)
    assert mine[0].change_share == 0  # neuron 0 of 0..9


def test_a_gap_within_chance_restores_nothing():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        trial, found = made_up(10, 0.01, np.full(2, 0.5), rng)
        gaps = np.diff(found.intact, axis=0)[0, 1:20:2]
        rows = transplants(trial, drawn_sets(0), found, [np.ones(10)])
        row = next(r for r in rows if (r.quantity, r.direction) == ("fact", "into base"))
        se = gaps.std() / np.sqrt(10)
        if abs(gaps.mean()) < 1.8 * se:
            assert np.isnan(row.restored)
        elif abs(gaps.mean()) > 2.2 * se:
            assert row.restored == pytest.approx(0.5 / gaps.mean())
        assert np.isnan(row.p)


def test_p_of_a_set_like_the_random_ones_is_uniform():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        trial, made = made_up(2, 1.0, rng.normal(size=7), rng)
        rows = transplants(trial, drawn_sets(5), made, [np.ones(10)])
        found += [r.p for r in rows if r.name == LOWEST and not np.isnan(r.p)]
    assert len(found) == 400
    assert stats.kstest(found, "uniform").pvalue > 0.01
