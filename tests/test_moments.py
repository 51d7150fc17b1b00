"""Streamed statistics equal those of everything at once, however the rows were cut up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.probes.moments import Moments


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    offset=st.sampled_from([0.0, 1e4, -1e6]),
)
def test_streamed_equals_batch(seed, cuts, offset):
    # What a model gives is float32; what is made of it is float64.
    rows = (np.random.default_rng(seed).standard_normal((60, 5)) + offset).astype(np.float32)
    moments = Moments((3, 2))
    edges = [0, *sorted(cuts), 60]
    for begin, end in itertools.pairwise(edges):
        part = torch.from_numpy(rows[begin:end])
        moments.update(0, part[:, :3]).update(1, part[:, 3:])
    found = moments.result()
    rows = rows.astype(np.float64)
    assert found.n_tokens == 60
    for ours, theirs in (
        (found.mean, rows.mean(0)),
        (found.variance, rows.var(0, ddof=1)),
        (found.rms, np.sqrt((rows**2).mean(0))),
        (found.mean_abs, np.abs(rows).mean(0)),
        (found.positive, (rows > 0).mean(0)),
        (found.minimum, rows.min(0)),
        (found.maximum, rows.max(0)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_what_saw_no_token_is_not_a_number():
    found = Moments((2, 2)).update(0, torch.ones(3, 2)).result()
    assert found.count.tolist() == [3, 3, 0, 0]
    assert (
        np.isnan(found.mean).tolist()
        == np.isnan(found.maximum).tolist()
        == [False] * 2 + [True] * 2
    )
    with pytest.raises(ValueError, match="seen"):
        Moments((2,)).result()
