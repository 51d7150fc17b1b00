"""Log-likelihood of the tokens that matter, in float32 whatever the model's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ResourceError, is_out_of_memory
from ..progress import Progress, silent
from .engine import Engine, Intervention, Visit, run
from .tokens import Batch, Encoded
from .trees import Pass, Plan, plan

_AT_ONCE = 512
"""Rows of logits that are turned into probabilities at a time: a vocabulary is wide."""


def answer_loglikelihood(engine: Engine, batch: Batch, visit: Visit | None = None) -> Tensor:
    """Summed log-probability (nats) of each text's answer tokens, [batch]; differentiable."""
    row, position = batch.answer.nonzero(as_tuple=True)
    keep = row * batch.ids.shape[1] + position - 1
    logits = engine.forward(batch.ids, keep=keep, visit=visit)
    assert logits is not None
    row, target = row.to(logits.device), batch.ids[batch.answer].to(logits.device)
    log_p = logits.float().log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    return torch.zeros(len(batch.rows), device=log_p.device).index_add(0, row, log_p)


def layout(
    engine: Engine, texts: Sequence[Encoded], max_tokens: int, *, share: bool, last: bool
) -> Plan:
    """A plan that the engine can follow: beginnings are shared where it can."""
    longest = max(map(len, texts), default=0)
    return plan(texts, max_tokens, share=share and longest <= engine.shares_up_to, last=last)


def loglikelihoods(
    engine: Engine,
    texts: Sequence[Encoded],
    *,
    intervene: Intervention | None = None,
    max_tokens: int = 1024,
    share: bool = True,
    greedy: np.ndarray | None = None,
    progress: Progress = silent,
    what: str = "log-likelihoods (texts)",
) -> np.ndarray:
    """Summed log-probability (nats) of the answer of every text, float64 [texts].

    Args:
        engine: the model.
        texts: what to score.
        intervene: replaces activations meanwhile.
        max_tokens: padded tokens in a batch; halved where memory runs out.
        share: run common beginnings once.
        greedy: bool [texts], filled: whether each token of the answer is the likeliest, the first
            of equals.
        progress: told of texts done.
        what: what to call the job.

    Raises:
        ResourceError: memory does not even suffice for a single row.
    """
    found = np.empty(len(texts))
    done = 0
    passes = layout(engine, texts, max_tokens, share=share, last=False).passes
    known: tuple[tuple[int, ...], Any] = ((), None)
    with torch.inference_mode():
        for whole in passes:
            if whole.prefix and whole.prefix != known[0]:
                known = ((), None)  # the former one goes before the next comes
                ids = torch.tensor([whole.prefix], device=engine.device)
                visit = intervene(torch.arange(ids.numel())) if intervene else None
                known = (whole.prefix, engine.remember(ids, visit))
            past = known[1] if whole.prefix else None

            def score(step: Pass, past: Any = past) -> None:
                found[list(step.texts)] = score_pass(engine, step, texts, past, intervene, greedy)

            in_parts(score, whole)
            done += len(whole.texts)
            progress(what, done, len(texts))
    return found


def in_parts(work: Any, whole: Pass) -> int:
    """Do a pass, in halves of its rows where memory runs out.

    Returns:
        In how many parts it was done.

    Raises:
        ResourceError: memory does not suffice for a single row.
    """
    try:
        work(whole)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        parts = whole.halves()
        if parts is None:
            raise ResourceError(
                f"out of memory on a single row of {whole.ids.shape[1]} tokens; leave the longest "
                "texts out, or take --dtype bfloat16 or another --device"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return sum(in_parts(work, part) for part in parts)


def score_pass(
    engine: Engine,
    step: Pass,
    texts: Sequence[Encoded],
    past: Any,
    intervene: Intervention | None,
    greedy: np.ndarray | None = None,
) -> np.ndarray:
    visit = intervene(torch.from_numpy(step.positions).flatten()) if intervene else None
    wanted = _wanted(step, texts)
    logits = run(
        engine, step, past=past, keep=torch.from_numpy(wanted.keep).to(engine.device), visit=visit
    )
    assert logits is not None
    total = torch.cat([part.float().logsumexp(-1) for part in logits.split(_AT_ONCE)])
    row = torch.from_numpy(wanted.row).to(logits.device)
    target = torch.from_numpy(wanted.target).to(logits.device)
    if greedy is not None:
        missed = (logits.argmax(-1)[row] != target).cpu().numpy()
        greedy[list(step.texts)] = np.bincount(wanted.owner, missed, len(step.texts)) == 0
    log_p = (logits[row, target].float() - total[row]).double().cpu().numpy()
    return np.bincount(wanted.owner, log_p, len(step.texts))


def pass_loglikelihood(
    engine: Engine, step: Pass, texts: Sequence[Encoded], visit: Visit | None = None
) -> Tensor:
    """Summed log-probability (nats) of each answer in a pass without prefix, [texts of the pass];
    differentiable."""
    wanted = _wanted(step, texts)
    logits = run(engine, step, keep=torch.from_numpy(wanted.keep).to(engine.device), visit=visit)
    assert logits is not None
    row, target, owner = (
        torch.from_numpy(part).to(logits.device)
        for part in (wanted.row, wanted.target, wanted.owner)
    )
    log_p = logits.float().log_softmax(-1)[row, target]
    return torch.zeros(len(step.texts), device=log_p.device).index_add(0, owner, log_p)


class _Wanted(NamedTuple):
    """The logits that answers need: of places `keep`; of each answer token the row among these,
    the token, and whose it is."""

    keep: np.ndarray
    row: np.ndarray
    target: np.ndarray
    owner: np.ndarray


def _wanted(step: Pass, texts: Sequence[Encoded]) -> _Wanted:
    owner, places, targets = [], [], []
    for number, (text, place) in enumerate(zip(step.texts, step.places, strict=True)):
        encoded = texts[text]
        first = encoded.start - 1 - len(step.prefix)
        before = place[first : first + encoded.n_answer]
        places.append(before)
        owner.append(np.full(len(before), number))
        targets.append(np.array(encoded.ids[encoded.start :], np.int64))
    keep, row = np.unique(np.concatenate(places), return_inverse=True)
    return _Wanted(keep, row, np.concatenate(targets), np.concatenate(owner))
