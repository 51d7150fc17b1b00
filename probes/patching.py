"""What a neuron does on one answer, put in its place on another: attribution patching, and the
real thing.

Attribution patching estimates from one backward pass what activation patching of every single
neuron would do (Nanda 2023, neelnanda.io/attribution-patching; Syed, Rager and Conmy 2023, arXiv
2310.10348). It is of dense MLPs. Neurons of all MLPs stand side by side, in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..progress import Progress, silent
from .attribution import finite, mlp_and_index, refuse_experts
from .engine import Engine, Visit
from .likelihood import answer_loglikelihood
from .suffix import Change, evaluate
from .tokens import Batch, Encoded, batches
from .trees import Pass


def attribution_patching(
    engine: Engine,
    pairs: Sequence[tuple[Encoded, Encoded]],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """First-order gain of LL(a) when a neuron does on a's answer what it does on b's.

    For a pair (a, b) and a neuron n: the sum over the answer's positions t in a of
    (b_tn - a_tn) dLL(a)/da_tn. With as many answer tokens in b as in a, b_tn is what the neuron
    does on b's token of the same place in the answer; otherwise it is its mean over b's answer.
    What stands before the answer is left as it is. (A text's last token cannot change its LL.)

    Returns:
        Estimates of LL(a patched) - LL(a) in nats, float32 [pairs, neurons]; positive where b's
        value makes a's answer likelier. `patch_each` gives the exact value.

    Raises:
        ModelError: a mixture of experts, or gradients that are not finite.
    """
    refuse_experts(engine)
    found = np.zeros((len(pairs), sum(engine.widths)), np.float32)
    done = 0
    for batch in batches([a for a, _ in pairs], max_tokens, engine.device):
        others = [pairs[row][1] for row in batch.rows]
        donors = dict(_on_answers(engine, others, max_tokens))
        activations, gradients = _gradients(engine, batch)
        for place, row in enumerate(batch.rows):
            answer = batch.answer[place].cpu()
            mine, slope = activations[place][answer], gradients[place][answer]
            there = _fitted(donors[place], len(mine))
            found[row] = ((there - mine) * slope).sum(0).numpy()
        done += len(batch.rows)
        progress("attribution patching (pairs)", done, len(pairs))
    return finite(found)


def patch_each(
    engine: Engine,
    pairs: Sequence[tuple[Encoded, Encoded]],
    neurons: Sequence[int],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """What `attribution_patching` estimates, by doing it, one neuron at a time.

    Args:
        neurons: their columns among all neurons.

    Returns:
        LL(a patched) - LL(a) in nats, float64 [pairs, neurons].
    """
    at = mlp_and_index(engine.widths, neurons)
    donors: list[Tensor] = [torch.empty(0)] * len(pairs)
    columns = torch.tensor(list(neurons), dtype=torch.long)
    for row, values in _on_answers(engine, [b for _, b in pairs], max_tokens):
        donors[row] = _fitted(values[:, columns], pairs[row][0].n_answer)

    def change(number: int) -> Change:
        mlp, index = at[number]

        def make(step: Pass) -> Visit:
            where, new = [], []
            for text, mine in zip(step.texts, step.places, strict=True):
                answer = mine[pairs[text][0].start :]
                where.append(torch.from_numpy(answer))
                new.append(donors[text][: len(answer), number])
            tokens, values = torch.cat(where), torch.cat(new)

            def visit(mlp: int, rows: Tensor, places: Tensor) -> Tensor:
                changed = rows.clone()
                changed[tokens.to(rows.device), index] = values.to(rows.device, rows.dtype)
                return changed

            return visit

        return Change((mlp,), make)

    intact, patched = evaluate(
        engine,
        [a for a, _ in pairs],
        [change(number) for number in range(len(at))],
        max_tokens=max_tokens,
        share=False,  # two answers that begin alike are patched each in its own way
        progress=progress,
        what="patching single neurons (neurons x pairs)",
    )
    return (patched - intact).T


def _fitted(donor: Tensor, n: int) -> Tensor:
    """What is put in the place of `n` answer tokens: token by token, or else the mean."""
    return donor if len(donor) == n else donor.mean(0, keepdim=True).expand(n, -1)


def _gradients(engine: Engine, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Of every text in a batch, activations and the gradient of its LL, float32
    [position, neurons]."""
    seen: list[Tensor] = []

    def visit(mlp: int, rows: Tensor, places: Tensor) -> Tensor:
        seen.append(rows if rows.requires_grad else rows.detach().requires_grad_())
        return seen[-1]

    with torch.enable_grad():
        loglikelihood = answer_loglikelihood(engine, batch, visit)
        gradients = torch.autograd.grad(loglikelihood.sum(), seen)

    def by_text(layers: Sequence[Tensor]) -> list[Tensor]:
        rows = torch.cat([layer.detach().float().cpu() for layer in layers], -1)
        return list(rows.view(*batch.ids.shape, -1))

    return by_text(seen), by_text(gradients)


def _on_answers(
    engine: Engine, texts: Sequence[Encoded], max_tokens: int
) -> Iterator[tuple[int, Tensor]]:
    """Every text's number, and its activations on the answer, float32 [answer, neurons]."""
    for batch in batches(texts, max_tokens, engine.device):
        seen: list[Tensor] = []

        def visit(mlp: int, rows: Tensor, places: Tensor, seen: list = seen) -> None:
            seen.append(rows)

        with torch.no_grad():
            engine.forward(batch.ids, visit=visit)
        for place, row in enumerate(batch.rows):
            answer = batch.answer[place]
            mine = [rows.view(*batch.ids.shape, -1)[place] for rows in seen]
            found = [rows[answer.to(rows.device)].float().cpu() for rows in mine]
            yield row, torch.cat(found, -1)
