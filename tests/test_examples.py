"""Which tokens stand for a neuron's range, whatever values it takes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.probes import examples
from glulens.probes.examples import spread

ODD = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, np.inf, -np.inf, np.nan, -np.nan]


@settings(max_examples=100, deadline=None)
@given(
    columns=st.lists(
        st.lists(st.sampled_from(ODD) | st.floats(width=32), min_size=9, max_size=9),
        min_size=1,
        max_size=5,
    ),
    k=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_each_stretch_of_the_ranks_gives_one_token(columns, k, seed):
    samples = np.array(columns, np.float32).T.copy()
    texts, positions = np.arange(9) * 10, np.arange(9) + 1
    table = spread(samples, texts, positions, k, seed)
    for values, row in zip(samples.T, table, strict=True):
        # Infinities are no values of a neuron that works: they take no stretch, but are ranked.
        seen = int(np.isfinite(values).sum())
        if not seen:
            assert (row["text"] == -1).all()
            assert (row["position"] == -1).all()
            continue
        ranked = np.argsort(values, kind="stable")  # NaN last, of equal values the first
        places = row["text"] // 10
        assert (row["position"] == positions[places]).all()
        np.testing.assert_array_equal(row["value"], values[places])
        for stretch, place in enumerate(places[::-1]):
            (rank,) = np.flatnonzero(ranked == place)
            assert stretch * seen // k <= rank <= (stretch + 1) * seen / k


def test_neurons_are_ranked_apart_however_many_at_once(monkeypatch):
    samples = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    numbers = np.arange(40)
    whole = spread(samples, numbers, numbers, 5)
    monkeypatch.setattr(examples, "_AT_ONCE", 7)
    np.testing.assert_array_equal(spread(samples, numbers, numbers, 5), whole)
