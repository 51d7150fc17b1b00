"""Perplexity of running text, in windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import DataError, UsageError
from ..progress import Progress, silent


@dataclass(frozen=True)
class WindowLosses:
    """What each window of a text costs a model."""

    losses: np.ndarray
    """Summed negative log-likelihood in nats, float64 [windows]."""
    tokens: np.ndarray
    """Tokens predicted, [windows]: one less than the window holds."""

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a predicted token; a short last window counts as what it is."""
        return float(np.exp(self.losses.sum() / self.tokens.sum()))


def window_losses(
    model: Any,
    ids: Sequence[int],
    *,
    window: int = 512,
    progress: Progress = silent,
    what: str = "perplexity (windows)",
) -> WindowLosses:
    """The loss of running text, window by window.

    The text is cut into windows that do not overlap, each read without what came before, so a
    window's first token is not predicted. No token is added. A last window of one token is left
    out.

    Args:
        model: a causal language model of Transformers, whole, masked or pruned.
        ids: token ids.
        window: tokens, at least 2.

    Raises:
        UsageError: the window is too short.
        DataError: fewer than two tokens.
    """
    if window < 2:
        raise UsageError(f"window {window}: at least 2 tokens are needed, one to predict from")
    device = model.get_input_embeddings().weight.device
    pieces = [ids[at : at + window] for at in range(0, len(ids), window)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise DataError("perplexity needs at least two tokens")
    losses = np.empty(len(pieces))
    with torch.inference_mode():
        for place, piece in enumerate(pieces):
            row = torch.tensor([list(piece)], device=device)
            logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")
            losses[place] = float(loss)
            progress(what, place + 1, len(pieces))
    return WindowLosses(losses, np.array([len(piece) - 1 for piece in pieces]))
