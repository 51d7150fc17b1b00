"""What silencing tenths is compared with: chance, and sets of equal damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from glulens.interp.causal import DAMAGE, EVERY, CausalSet, Trial, causal_sets, effects, silence
from glulens.probes.contrasts import record_contrasts
from glulens.probes.engine import make_engine, silencer
from glulens.probes.likelihood import loglikelihoods
from glulens.probes.tokens import Encoded, Encoder
from glulens.prune.selection import NeuronSet, lowest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_sets_are_tenths_and_random_ones_have_the_same_counts(rng):
    scores = [rng.random(172), rng.random(57)]
    sets = causal_sets(scores, [EVERY, 0, 1], random=20, seed=0)
    assert len(sets) == 3 * 30
    own = [each for each in sets if each.draw == -1]
    assert [each.cut for each in own if (each.layer, each.tenth) == (EVERY, 0)] == [
        lowest(scores, fraction=0.1)
    ]
    for layer in (EVERY, 0, 1):
        for draw in (-1, 0, 1):
            parts = [e.cut for e in sets if (e.layer, e.draw) == (layer, draw)]
            assert sum(map(len, parts)) == (229 if layer == EVERY else len(scores[layer]))
            assert len(parts[0] & parts[1]) == 0
        counts = {
            draw: [each.cut.counts for each in sets if (each.layer, each.draw) == (layer, draw)]
            for draw in (-1, 0, 1)
        }
        assert counts[-1] == counts[0] == counts[1]
    again = causal_sets(scores, [EVERY], random=20, seed=0)
    assert [e.cut for e in again] == [e.cut for e in sets if e.layer == EVERY]
    other = causal_sets(scores, [EVERY], random=20, seed=1)
    assert [e.cut for e in other if e.is_random] != [e.cut for e in again if e.is_random]


def trial(items: int) -> Trial:
    texts = tuple(Encoded((1, 2, 3), 1) for _ in range(3 * items))
    spans = {"misconception": slice(0, 2 * items), DAMAGE: slice(2 * items, 3 * items)}
    names = tuple(map(str, range(items)))
    return Trial(texts, spans, {"misconception": names, DAMAGE: names})


def made_up(rng, sets, items, change, damage):
    """Log-likelihoods under which each set changes the margin and the loss by this much."""
    intact = rng.normal(size=3 * items)
    changed = np.tile(intact, (len(sets), 1))
    changed[:, 0 : 2 * items : 2] -= change[:, None]  # the false answer's: the margin rises
    changed[:, 2 * items :] -= 2 * damage[:, None]  # two tokens each
    return intact, changed


def test_z_and_the_specific_effect_are_those_of_a_regression_with_an_intercept_a_layer(rng):
    empty = NeuronSet((10,), (np.zeros(0, int),))
    sets = [
        CausalSet(layer, tenth, draw, empty)
        for layer in (0, 1, 2)
        for draw in (-1, 0, 1)
        for tenth in range(10)
    ]
    layers = np.array([each.layer for each in sets])
    random = np.array([each.is_random for each in sets])
    damage = rng.gamma(2, 0.1, len(sets)) * (1 + layers)
    change = -3 * damage + layers + 0.05 * rng.normal(size=len(sets))
    rows = effects(trial(6), sets, "mean", *made_up(rng, sets, 6, change, damage))
    margins = [row for row in rows if row.quantity == "misconception"]
    assert [row.change for row in margins] == pytest.approx(change)
    losses = [row for row in rows if row.quantity == DAMAGE]
    assert [row.change for row in losses] == pytest.approx(damage)
    assert all(np.isnan(row.specific) for row in losses)

    design = np.stack([damage, *[(layers == k).astype(float) for k in range(3)]], 1)
    fit, *_ = np.linalg.lstsq(design[random], change[random], rcond=None)
    beyond = change - design @ fit
    for k, row in enumerate(margins):
        if row.draw >= 0:
            assert np.isnan(row.z)
            continue
        here = random & (layers == row.layer)
        mean, sd = change[here].mean(), change[here].std(ddof=1)
        assert row.random_mean == pytest.approx(mean)
        assert row.z == pytest.approx((change[k] - mean) / sd)
        assert row.p == pytest.approx(2 * stats.t.sf(abs(row.z) / np.sqrt(1 + 1 / 20), 19))
        assert row.specific == pytest.approx(beyond[k], abs=1e-9)
        outside = damage[k] < damage[here].min() or damage[k] > damage[here].max()
        assert row.extrapolated == outside
    # With a single layer the variance of a prediction is the textbook's.
    one = [k for k, each in enumerate(sets) if each.layer == 0]
    alone = effects(
        trial(6), [sets[k] for k in one], "mean",
        *made_up(rng, one, 6, change[one], damage[one]),
    )  # fmt: skip
    x, y = damage[one][10:], change[one][10:]
    line: Any = stats.linregress(x, y)
    residual = y - line.intercept - line.slope * x
    s = np.sqrt(np.square(residual).sum() / 18)
    x0, y0 = damage[one][0], change[one][0]
    wide = s * np.sqrt(1 + 1 / 20 + (x0 - x.mean()) ** 2 / np.square(x - x.mean()).sum())
    first = next(row for row in alone if row.quantity == "misconception")
    t = (y0 - line.intercept - line.slope * x0) / wide
    assert first.specific_z == pytest.approx(t, rel=1e-6)
    assert first.specific_p == pytest.approx(2 * stats.t.sf(abs(t), 18), rel=1e-6)


def test_p_of_a_set_without_effect_is_uniform(rng):
    empty = NeuronSet((10,), (np.zeros(0, int),))
    sets = [CausalSet(0, t, draw, empty) for draw in (-1, 0, 1) for t in range(10)]
    found, specific = [], []
    for _ in range(500):
        damage = rng.gamma(3, 0.1, 30)
        change = 2 * damage + 0.1 * rng.normal(size=30)
        rows = effects(trial(3), sets, "mean", *made_up(rng, sets, 3, change, damage))
        row = next(r for r in rows if r.quantity == "misconception" and r.draw == -1)
        found.append(row.p)
        specific.append(row.specific_p)
    assert stats.kstest(specific, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) < 0.05) < 0.08


def test_few_random_sets_say_nothing_rather_than_something_wrong(rng):
    empty = NeuronSet((10,), (np.zeros(0, int),))
    sets = [CausalSet(0, t, draw, empty) for draw, t in ((-1, 0), (0, 0), (0, 1))]
    rows = effects(trial(3), sets, "zero", *made_up(rng, sets, 3, np.ones(3), np.ones(3)))
    assert all(np.isnan(row.z) and np.isnan(row.specific_p) for row in rows)


def test_silencing_is_what_masking_does(stories):
    from glulens.datasets.pairs import load_material

    material = load_material("builtin", limit=3, seed=0)
    encoder = Encoder(stories.tokenizer)
    pairs = {"misconception": material.pairs["misconception"]}
    made = Trial.make(encoder, pairs, material.neutral[:2])
    engine = make_engine(stories)
    rng = np.random.default_rng(0)
    sets = causal_sets([rng.random(w) for w in engine.widths], [EVERY], random=1, seed=0)[:3]
    means = [np.zeros(w, np.float32) for w in engine.widths]
    intact, changed = silence(engine, made, sets, "zero", means)
    for k, each in enumerate(sets):
        masked = loglikelihoods(engine, made.texts, intervene=silencer(each.cut))
        np.testing.assert_allclose(changed[k], masked, atol=2e-3)
    spared, _ = silence(engine, made, sets, "mean", means)
    np.testing.assert_allclose(spared, intact, atol=2e-3)
    recorded = record_contrasts(engine, encoder, pairs)["misconception"].loglikelihood
    margin = recorded[:, 1] - recorded[:, 0]
    np.testing.assert_allclose(made.quantities(intact)["misconception"], margin, atol=2e-3)
