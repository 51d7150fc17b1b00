"""Perplexity of running text against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glulens.errors import DataError, UsageError
from glulens.probes.perplexity import window_losses


def test_every_predicted_token_counts_once_whatever_its_window(tiny):
    model = tiny()
    ids = np.random.default_rng(0).integers(0, 100, 66).tolist()
    expected = []
    for piece in (ids[:64], ids[64:]):
        log_p = model(torch.tensor([piece])).logits[0].double().log_softmax(-1)
        expected += [-float(log_p[t, piece[t + 1]]) for t in range(len(piece) - 1)]
    found = window_losses(model, ids, window=64)
    assert found.tokens.tolist() == [63, 1]
    assert found.perplexity == pytest.approx(np.exp(np.mean(expected)), rel=1e-5)
    assert window_losses(model, ids[:65], window=64).tokens.tolist() == [63]


def test_too_little_to_predict_is_said(tiny):
    with pytest.raises(DataError, match="at least two tokens"):
        window_losses(tiny(), [3])
    with pytest.raises(UsageError, match="window 1: at least 2 tokens"):
        window_losses(tiny(), [3, 4], window=1)
