"""Sets of neurons: their algebra, their overlap, their file."""

from __future__ import annotations

import itertools
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.errors import DataError, UsageError
from glulens.prune.selection import NeuronSet, cut_count, kept_width, lowest, ties_at_the_cut


def test_the_papers_widths():
    kept = [8192 - cut_count(8192, f / 10) for f in range(1, 7)]
    assert kept == [7373, 6554, 5735, 4916, 4096, 3277]
    assert [kept_width(2048, 8192, e) for e in (3.6, 3.2, 2.8, 2.4, 2.0, 1.6)] == kept


@given(width=st.integers(1, 20_000), thousandths=st.integers(0, 999))
def test_cut_count_is_the_exact_floor(width, thousandths):
    exact = Fraction(thousandths, 1000) * width
    assert cut_count(width, thousandths / 1000) == exact.numerator // exact.denominator


@pytest.mark.parametrize("bad", [-0.1, 1, 1.5, float("nan"), float("inf")])
def test_fractions_outside_are_refused(bad):
    with pytest.raises(UsageError, match="0 <= fraction < 1"):
        cut_count(100, bad)


def test_expansion_ratios_outside_are_refused():
    assert kept_width(32, 128, 4) == 128
    assert kept_width(32, 128, 0.01) == 1
    with pytest.raises(UsageError, match="asks for 129 neurons where the layer has 128; give at m"):
        kept_width(32, 128, 4.01)
    with pytest.raises(UsageError, match="give at most 4"):
        kept_width(32, 128, 4.5)
    for bad in (0, -0.5, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="a number above 0"):
            kept_width(32, 128, bad)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.floats(0, 0.99))
def test_ties_go_by_index_and_are_counted(values, fraction):
    scores = np.array(values, dtype=np.float32)
    cut = lowest([scores], fraction=fraction)
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    chosen = sorted(order[: len(cut)])
    assert cut.indices[0].tolist() == chosen
    tied = [i for i in order[len(cut) :] if chosen and values[i] == values[order[len(cut) - 1]]]
    assert ties_at_the_cut([scores], cut) == len(tied)


def test_a_set_is_sorted_unique_and_within_the_model():
    one = NeuronSet((4, 3), (np.array([3, 1, 1]), np.array([], int)))
    assert one.indices[0].tolist() == [1, 3]
    assert one.counts == (2, 0)
    assert len(one) == 2
    assert one.complement() == NeuronSet((4, 3), (np.array([0, 2]), np.arange(3)))
    with pytest.raises(UsageError, match=r"MLP 1: neuron 3 is outside 0\.\.2"):
        NeuronSet((4, 3), (np.arange(2), np.array([3])))
    with pytest.raises(UsageError, match=r"MLP 0: neuron -1 is outside 0\.\.3"):
        NeuronSet((4, 3), (np.array([2, -1]), np.arange(2)))
    with pytest.raises(UsageError, match=r"MLP 0: neuron 5 is outside 0\.\.3"):
        NeuronSet((4, 3), (np.array([2, 5, 4, 0]), np.arange(2)))
    for lists in (1, 3):
        with pytest.raises(UsageError, match=f"{lists} lists of indices for a model of 2 MLPs"):
            NeuronSet((4, 3), (np.arange(2),) * lists)
    with pytest.raises(ValueError, match="read-only"):
        one.indices[0][0] = 2


def test_a_mixture_of_experts_has_many_mlps():
    widths = (3,) * 1000
    one = NeuronSet(widths, tuple(np.arange(k % 4) for k in range(1000)))
    assert len(one.complement()) == 3000 - len(one)
    assert one - one.complement() == one


def test_ties_are_of_the_scores_that_the_cut_was_made_of():
    scores = np.array([1.0, 1.0, 2.0])
    cut = lowest([scores], fraction=0.5)
    with pytest.raises(ValueError, match="shorter"):
        ties_at_the_cut([scores, scores], cut)


@st.composite
def two_sets(draw):
    widths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    pick = st.tuples(*(st.sets(st.integers(0, width - 1)) for width in widths))
    return tuple(widths), draw(pick), draw(pick)


@given(two_sets())
def test_algebra_is_that_of_sets(drawn):
    widths, one, other = drawn

    def made(sets) -> NeuronSet:
        return NeuronSet(widths, tuple(np.array(sorted(s), int) for s in sets))

    a, b = made(one), made(other)
    assert a | b == made([x | y for x, y in zip(one, other, strict=True)])
    assert a & b == made([x & y for x, y in zip(one, other, strict=True)])
    assert a - b == made([x - y for x, y in zip(one, other, strict=True)])
    assert a.complement() == made([set(range(w)) for w in widths]) - a
    assert a - b == a & b.complement()
    assert (a == b) == (one == other)


def test_sets_of_different_models_do_not_mix():
    one, other = NeuronSet((4,), (np.arange(2),)), NeuronSet((5,), (np.arange(2),))
    for pair in ((one, other), (other, one)):
        with pytest.raises(UsageError, match="widths 1 x ., this one has 1 x ."):
            _ = pair[0] | pair[1]
    with pytest.raises(UsageError, match=r"widths 1 x 4, this one has \[4, 6\]"):
        one.check([4, 6])
    with pytest.raises(UsageError, match="widths 1 x 4, this one has 2 x 4"):
        one.check([4, 4])
    with pytest.raises(UsageError, match=r"widths 1 x 4, this one has \[\]"):
        one.check([])
    one.check([4])


def test_overlap_is_that_of_all_possible_draws():
    """Two MLPs of 5 and 4: every pair of sets with these counts, enumerated."""
    widths, counts, others = (5, 4), (2, 2), (3, 1)
    shared = []
    fixed = [set(range(c)) for c in counts]
    for draws in itertools.product(
        *(itertools.combinations(range(w), k) for w, k in zip(widths, others, strict=True))
    ):
        shared.append(sum(len(f & set(d)) for f, d in zip(fixed, draws, strict=True)))
    a = NeuronSet(widths, tuple(np.arange(c) for c in counts))
    b = NeuronSet(widths, (np.array([0, 1, 4]), np.array([3])))
    found = a.overlap(b)
    assert found.shared == 2
    assert found.expected == pytest.approx(np.mean(shared))
    assert found.p_more == pytest.approx(np.mean([s >= 2 for s in shared]))
    assert found.p_fewer == pytest.approx(np.mean([s <= 2 for s in shared]))
    assert found.jaccard == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((0, 1, 2, 3), (0, 1)), ((0, 2, 4), (0, 1, 2))),  # 2 and 1 must be shared, 4 are
        (((0, 1, 2, 3), (0, 1)), ((0, 1, 4), (1, 2, 3))),  # as few as can be
        (((0, 1), ()), ((2, 3), (1,))),  # nothing is
        (((), ()), ((), ())),
        ((range(5), range(4)), (range(5), range(4))),
    ],
)
def test_overlap_of_large_small_and_empty_sets_is_that_of_all_draws(one, other):
    widths = (5, 4)
    shared = [
        sum(len(set(f) & set(d)) for f, d in zip(one, draws, strict=True))
        for draws in itertools.product(
            *(itertools.combinations(range(w), len(k)) for w, k in zip(widths, other, strict=True))
        )
    ]
    a, b = (NeuronSet(widths, tuple(np.array(list(k), int) for k in s)) for s in (one, other))
    found, seen = a.overlap(b), sum(len(set(f) & set(d)) for f, d in zip(one, other, strict=True))
    assert found.shared == seen
    assert found.expected == pytest.approx(np.mean(shared))
    assert found.p_more == pytest.approx(np.mean([s >= seen for s in shared]))
    assert found.p_fewer == pytest.approx(np.mean([s <= seen for s in shared]))
    united = len(a | b)
    assert found.jaccard == pytest.approx(seen / united if united else np.nan, nan_ok=True)


def test_sets_are_equal_where_widths_and_neurons_are():
    one = NeuronSet((4, 3), (np.array([1]), np.array([2])))
    assert one == NeuronSet((4, 3), (np.array([1]), np.array([2])))
    assert one != NeuronSet((4, 3), (np.array([1]), np.array([0])))
    assert one != NeuronSet((4, 5), (np.array([1]), np.array([2])))
    assert one != [1, 2]


def test_an_mlp_without_neurons_is_no_part_of_an_overlap():
    a = NeuronSet((0, 4, 0), (np.arange(0), np.arange(2), np.arange(0)))
    b = NeuronSet((4,), (np.arange(2),))
    assert a.overlap(a) == b.overlap(b)


def test_overlap_at_the_size_of_a_real_model_is_quick_and_sane():
    rng = np.random.default_rng(0)
    widths = (8192,) * 16
    a, b = (
        NeuronSet(widths, tuple(rng.choice(8192, 2000, replace=False) for _ in widths))
        for _ in "ab"
    )
    found = a.overlap(b)
    assert found.expected == pytest.approx(16 * 2000 * 2000 / 8192)
    assert 0.001 < found.p_more < 0.999
    assert found.p_more + found.p_fewer > 1  # both count the observed number
    assert a.overlap(a).p_more < 1e-100


@settings(max_examples=20)
@given(drawn=two_sets())
def test_a_set_survives_its_file(drawn, tmp_path_factory):
    widths, one, _ = drawn
    path = tmp_path_factory.mktemp("sets") / "set.json"
    made = NeuronSet(widths, tuple(np.array(sorted(s), int) for s in one))
    made.save(path)
    assert NeuronSet.load(path) == made


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"kind": "something"}', "not json",
        '{"kind": "glulens neuron set", "schema_version": 2, "widths": [3], "indices": [[0]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [3], "indices": [[3]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [3], "indices": [[0.5]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [3], "indices": [["a"]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [3]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": 3, "indices": 4}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [3], "indices": [[%s]]}'
        % ("9" * 30),
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [true], "indices": [[0]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [3], "indices": [[true]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [-1], "indices": [[]]}',
        '{"kind": "glulens neuron set", "schema_version": 1, "widths": [%s], "indices": [[]]}'
        % (3 * 10**8),
        '{"kind": "a set", "schema_version": 1, "widths": [3], "indices": [[0]]}',
        '{"kind": "this set", "schema_version": 1, "widths": [3], "indices": [[0]]}',
        '{"kind": "glulens neuron set", "widths": [3], "indices": [[0]]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(text, tmp_path):
    path = tmp_path / "set.json"
    path.write_text(text)
    with pytest.raises(DataError, match="cannot be read as a set of neurons"):
        NeuronSet.load(path)
    with pytest.raises(DataError, match="cannot be read as a set of neurons"):
        NeuronSet.load(tmp_path / "missing.json")


def test_sets_of_the_largest_models_can_be_read(tmp_path):
    widths = (20_000_000, 0)
    NeuronSet(widths, (np.array([0, 19_999_999]), np.arange(0))).save(tmp_path / "set.json")
    found = NeuronSet.load(tmp_path / "set.json")
    assert found.widths == widths
    assert found.indices[0].tolist() == [0, 19_999_999]
    NeuronSet((), ()).save(tmp_path / "none.json")
    assert len(NeuronSet.load(tmp_path / "none.json")) == 0


def test_masks_and_fractions_are_not_taken_for_indices():
    with pytest.raises(UsageError, match=r"indices are bool, .* take np.flatnonzero\(mask\)"):
        NeuronSet((4,), (np.array([False, True, False, True]),))
    with pytest.raises(UsageError, match="indices are float64"):
        NeuronSet((4,), (np.array([1.7]),))
    listed: Any = [np.int64(4)]
    assert NeuronSet(listed, (np.array([1]),)).widths == (4,)


def test_a_saved_set_says_what_it_is(tmp_path):
    NeuronSet((4,), (np.array([2]),)).save(tmp_path / "set.json")
    assert json.loads((tmp_path / "set.json").read_text()) == {
        "kind": "glulens neuron set",
        "schema_version": 1,
        "widths": [4],
        "indices": [[2]],
    }
