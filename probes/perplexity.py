"""Perplexity of running text, in windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..progress import Progress, silent


def window_losses(
    model: Any,
    ids: Sequence[int],
    *,
    window: int = 512,
    progress: Progress = silent,
    what: str = "perplexity (windows)",
) -> np.ndarray:
    """Mean negative log-likelihood of each window, in nats per token, float64 [windows].

    The text is cut into windows that do not overlap, each read without what came before, so a
    window's first token is not predicted. No token is added. A last window of one token is left
    out.

    Args:
        model: a causal language model of Transformers, whole, masked or pruned.
        ids: token ids.

    Raises:
        DataError: fewer than two tokens.
    """
    device = model.get_input_embeddings().weight.device
    pieces = [ids[at : at + window] for at in range(0, len(ids), window)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise DataError("perplexity needs at least two tokens")
    found = np.empty(len(pieces))
    with torch.inference_mode():
        for place, piece in enumerate(pieces):
            row = torch.tensor([list(piece)], device=device)
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
            found[place] = float(torch.nn.functional.cross_entropy(logits, row[0, 1:]))
            progress(what, place + 1, len(pieces))
    return found


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean loss of windows of equal length."""
    return float(np.exp(losses.mean()))
