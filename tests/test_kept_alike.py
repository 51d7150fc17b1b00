"""What tuning means for pruning: overlap of cuts, who carries the change, and what they do."""

from __future__ import annotations

from dataclasses import astuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from glulens.errors import UsageError
from glulens.interp.kept_alike import FRACTIONS, carriers, kept_alike, selective
from glulens.prune.selection import lowest


def spearman(one, other) -> float:
    return float(stats.spearmanr(one, other)[0])  # pyright: ignore[reportArgumentType]


def layers(seed: int, widths=(50, 40, 70)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=n) for n in widths]


def test_one_mlp_is_scipys_hypergeometric():
    before, after = layers(0, (200,)), layers(1, (200,))
    (row,) = kept_alike({"ppm": before}, {"ppm": after}, [0.3])
    lowest_of = [set(np.argsort(side[0])[:60].tolist()) for side in (before, after)]
    same = len(lowest_of[0] & lowest_of[1])
    chance = stats.hypergeom(200, 60, 60)
    assert (row.cut, row.same) == (60, same)
    assert row.expected == pytest.approx(chance.mean())
    assert row.sd == pytest.approx(chance.std())
    assert row.z == pytest.approx((same - chance.mean()) / chance.std())
    assert row.p == pytest.approx(min(1, 2 * min(chance.cdf(same), chance.sf(same - 1))))
    assert row.jaccard == pytest.approx(same / (120 - same))
    assert row.kept_same == pytest.approx((200 - 120 + same) / 140)


def test_several_mlps_are_a_sum_of_independent_ones():
    (row,) = kept_alike({"ppm": layers(0)}, {"ppm": layers(1)}, [0.2])
    rng, draws = np.random.default_rng(0), 4000
    seen = np.zeros(draws)
    for n in (50, 40, 70):
        seen += rng.hypergeometric(int(0.2 * n), n - int(0.2 * n), int(0.2 * n), draws)
    assert row.expected == pytest.approx(np.mean(seen), abs=0.15)
    assert row.sd == pytest.approx(np.std(seen), rel=0.05)
    p = 2 * min((seen >= row.same).mean(), (seen <= row.same).mean())
    assert row.p == pytest.approx(min(1, p), abs=0.04)


def test_chance_gives_small_p_as_often_as_it_says():
    p = [
        kept_alike({"ppm": layers(2 * k)}, {"ppm": layers(2 * k + 1)}, [0.5])[0].p
        for k in range(300)
    ]
    assert np.mean(np.array(p) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 300)
    assert min(p) < 0.1


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(FRACTIONS))
def test_bounds_and_invariance(seed, fraction):
    before, after = layers(seed), layers(seed + 1)
    (row,) = kept_alike({"ppm": before}, {"ppm": after}, [fraction])
    (other,) = kept_alike({"ppm": after}, {"ppm": before}, [fraction])
    assert astuple(row) == astuple(other)
    bent = [np.exp(layer) * 7 for layer in after]
    assert astuple(kept_alike({"ppm": before}, {"ppm": bent}, [fraction])[0]) == astuple(row)
    (self,) = kept_alike({"ppm": before}, {"ppm": before}, [fraction])
    assert (self.same, self.jaccard, self.kept_same) == (self.cut, 1, 1)
    assert self.p < 0.05
    assert 0 <= row.same <= row.cut == len(lowest(before, fraction))
    assert 0 < row.p <= 1
    opposite = [-layer for layer in before]
    (turned,) = kept_alike({"ppm": before}, {"ppm": opposite}, [fraction])
    assert turned.same == sum(max(0, 2 * int(fraction * n) - n) for n in (50, 40, 70))
    assert turned.z < 0


def test_ties_go_by_index_and_are_counted():
    same = [np.array([1.0, 2, 2, 2, 3, 3, 3, 3, 3, 3])]
    (row,) = kept_alike({"ppm": same}, {"ppm": same}, [0.2])
    assert (row.cut, row.same, row.ties) == (2, 2, 2)
    (none,) = kept_alike({"ppm": same}, {"ppm": same}, [0.0])
    assert (none.cut, none.kept_same) == (0, 1)
    assert np.isnan(none.jaccard)
    assert np.isnan(none.z)


def test_what_does_not_match_is_refused():
    with pytest.raises(UsageError, match="only one side has scores by l2"):
        kept_alike({"ppm": layers(0)}, {"l2": layers(0), "ppm": layers(0)})
    with pytest.raises(UsageError, match="of other neurons"):
        kept_alike({"ppm": layers(0)}, {"ppm": layers(0, (50, 41, 70))})
    with pytest.raises(UsageError, match="of other neurons"):
        carriers(layers(0), layers(1, (2, 3)))
    with pytest.raises(UsageError, match="one column"):
        selective(layers(0), {})


def test_carriers_are_the_most_changed_of_those_cut():
    scores, squares = layers(0), [layer**2 for layer in layers(5)]
    squares[1][4] = np.nan
    found = carriers(scores, squares, fraction=0.2, n=7)
    total = sum(np.nansum(layer) for layer in squares)
    every = [
        (squares[mlp][at] / total, mlp, at)
        for mlp, chosen in enumerate(lowest(scores, 0.2).indices)
        for at in chosen.tolist()
        if not np.isnan(squares[mlp][at])
    ]
    wanted = sorted(every, reverse=True)[:7]
    assert [(row.mlp, row.neuron) for row in found] == [(mlp, at) for _, mlp, at in wanted]
    assert [row.share_of_model for row in found] == pytest.approx([share for share, *_ in wanted])
    for row in found:
        layer = squares[row.mlp]
        assert row.share_of_mlp == pytest.approx(layer[row.neuron] / np.nansum(layer))
        assert row.percentile == pytest.approx(
            100 * (scores[row.mlp] < scores[row.mlp][row.neuron]).mean()
        )
        assert row.percentile < 20
        assert row.rank == 1 + (layer > layer[row.neuron]).sum()
        assert (row.layer, row.part, row.expert) == (row.mlp, "dense", None)


def test_carriers_are_called_as_the_base_calls_them():
    layouts: Any = [SimpleNamespace(layer=3, part="expert", expert=k) for k in range(2)]
    squares = [np.zeros(10), np.eye(10)[2]]
    scores = [np.arange(10.0)] * 2
    rows = [np.arange(10), np.arange(10) * 3]
    (row,) = carriers(scores, squares, layouts, rows, fraction=0.4)
    assert (row.layer, row.part, row.expert, row.neuron) == (3, "expert", 1, 6)
    assert (row.share_of_mlp, row.share_of_model, row.rank) == (1, 1, 1)
    assert carriers(scores, [np.zeros(10)] * 2) == []


def functions(seed: int, change: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """What follows the change, and what does not."""
    rng = np.random.default_rng(seed)
    return {
        "attr_instruction": [c + rng.normal(size=len(c)) for c in change],
        "attr_fact": [rng.normal(size=len(c)) for c in change],
        "dz_fact": [rng.normal(size=len(c)) for c in change],
    }


def test_changed_neurons_that_do_more_are_found_and_compared():
    change = layers(0, (300, 200, 250))
    given_ = functions(1, change)
    rows = selective(change, given_, permutations=400)
    assert [(r.function, r.minus) for r in rows] == [
        ("attr_instruction", ""),
        ("attr_fact", ""),
        ("dz_fact", ""),
        ("attr_instruction", "attr_fact"),
    ]
    for row in rows[:3]:
        by_layer = [spearman(a, b) for a, b in zip(change, given_[row.function], strict=True)]
        assert row.rho == pytest.approx(np.mean(by_layer))
        assert row.partial == pytest.approx(row.rho)  # nothing was given
        assert row.n_layers == 3
    assert rows[3].rho == pytest.approx(rows[0].rho - rows[1].rho)
    assert rows[0].q < 0.05
    assert rows[0].low > 0.5
    assert rows[3].q < 0.05
    assert min(rows[1].p, rows[2].p) > 0.05
    # The difference of two that are dealt alike varies by sqrt(2) as much.
    assert rows[3].null_sd == pytest.approx(rows[0].null_sd * 2**0.5, rel=0.15)


def test_what_the_covariate_explains_is_taken_away():
    rng = np.random.default_rng(0)
    size = layers(3, (400, 400, 400, 400))
    change = [layer + 0.5 * rng.normal(size=400) for layer in size]
    does = {"attr_fact": [layer + 0.5 * rng.normal(size=400) for layer in size]}
    (row,) = selective(change, does, covariate=size, permutations=300)
    assert row.rho > 0.6
    assert row.partial_low < 0 < row.partial_high
    assert row.partial_p > 0.05
    (alone,) = selective(change, {"attr_fact": size}, covariate=size, permutations=50)
    assert alone.partial == 0


def test_layers_and_neurons_without_a_number_are_left_out():
    change, does = layers(0), layers(1)
    does[0][3] = np.nan
    change[2][:] = 0
    (row,) = selective(change, {"dz_fact": does}, permutations=20)
    keep = np.arange(50) != 3
    first = spearman(change[0][keep], does[0][keep])
    second = spearman(change[1], does[1])
    assert row.rho == pytest.approx((first + second) / 2)
    assert row.n_layers == 2
    (nothing,) = selective([layer * 0 for layer in change], {"dz_fact": does}, permutations=20)
    assert np.isnan([nothing.rho, nothing.p, nothing.q, nothing.partial]).all()
