"""Log-likelihood of the tokens that matter, in float32 whatever the model's dtype."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..progress import Progress, silent
from .engine import Engine, Visit
from .tokens import Batch, Encoded, batches


def answer_loglikelihood(engine: Engine, batch: Batch, visit: Visit | None = None) -> Tensor:
    """Summed log-probability (nats) of each text's answer tokens, [batch]; differentiable."""
    keep = batch.keep
    logits = engine.forward(batch.ids, keep=keep, visit=visit)
    assert logits is not None
    row, position = batch.answer.nonzero(as_tuple=True)
    # Only the logits that predict an answer token are turned into probabilities.
    place = torch.searchsorted(keep, position - 1)
    row, place = row.to(logits.device), place.to(logits.device)
    target = batch.ids[batch.answer].to(logits.device)
    log_p = logits[row, place].float().log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    return torch.zeros(len(batch.rows), device=log_p.device).index_add(0, row, log_p)


def loglikelihoods(
    engine: Engine,
    texts: Sequence[Encoded],
    *,
    visit: Visit | None = None,
    max_tokens: int = 1024,
    progress: Progress = silent,
    what: str = "log-likelihoods (texts)",
) -> np.ndarray:
    """Summed log-probability (nats) of the answer of every text, float64 [texts]."""
    found = np.empty(len(texts))
    done = 0
    with torch.inference_mode():
        for batch in batches(texts, max_tokens, engine.device):
            found[list(batch.rows)] = answer_loglikelihood(engine, batch, visit).cpu().numpy()
            done += len(batch.rows)
            progress(what, done, len(texts))
    return found
