"""Counts as the paper counts them, ties by index, sets that cannot be wrong."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glulens.errors import UsageError
from glulens.prune.selection import NeuronSet, cut_count, kept_width, lowest, ties_at_the_cut


def test_counts_are_the_papers():
    kept = [8192 - cut_count(8192, f / 10) for f in range(1, 7)]
    assert kept == [7373, 6554, 5735, 4916, 4096, 3277]
    assert [kept_width(2048, 8192, e) for e in (3.6, 3.2, 2.8, 2.4, 2.0, 1.6)] == kept


@given(st.integers(1, 20_000), st.integers(0, 999))
def test_a_decimal_fraction_is_that_fraction(width, thousandths):
    exact = Fraction(thousandths, 1000) * width
    assert cut_count(width, thousandths / 1000) == exact.numerator // exact.denominator


@pytest.mark.parametrize("bad", [-0.1, 1.0, 1.5, float("nan")])
def test_fractions_outside_the_model_are_refused(bad):
    with pytest.raises(UsageError, match="outside 0 <= fraction < 1"):
        cut_count(100, bad)


def test_expansion_above_the_models_is_refused():
    with pytest.raises(UsageError, match="give at most 4"):
        kept_width(32, 128, 4.5)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above 0"):
            kept_width(32, 128, bad)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0, 0.99))
def test_the_lowest_go_and_ties_go_by_index(values, fraction):
    scores = np.array(values, np.float32)
    cut = lowest([scores], fraction=fraction)
    expected = sorted(range(len(values)), key=lambda i: (values[i], i))[: len(cut)]
    assert cut.indices[0].tolist() == sorted(expected)
    tied = [i for i in range(len(values)) if i not in expected and expected
            and values[i] == max(values[j] for j in expected)]  # fmt: skip
    assert ties_at_the_cut([scores], cut) == len(tied)


def test_expansion_and_fraction_agree():
    scores = [np.random.default_rng(0).random(8192) for _ in range(2)]
    assert lowest(scores, fraction=0.4) == lowest(scores, expansion=2.4, hidden=2048)
    with pytest.raises(UsageError, match="either"):
        lowest(scores)


def test_a_set_checks_itself():
    chosen = NeuronSet((4, 3), (np.array([3, 1, 1]), np.array([], int)))
    assert chosen.counts == (2, 0)
    assert len(chosen) == 2
    assert chosen.complement().indices[0].tolist() == [0, 2]
    assert chosen.complement().complement() == chosen
    with pytest.raises(UsageError, match=r"layer 1: neuron 3 is outside 0\.\.2"):
        NeuronSet((4, 3), (np.array([0]), np.array([3])))
    with pytest.raises(UsageError, match="neuron -1"):
        NeuronSet((4,), (np.array([-1]),))
    with pytest.raises(ValueError, match="read-only"):
        chosen.indices[0][0] = 2
