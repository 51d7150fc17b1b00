"""Paired contrasts and attributions of all neurons, in one forward and one backward a batch.

For a text s with answer tokens A, let LL(s) be the summed log-probability of A, and a_tn the
activation of neuron n at position t. Read are

- the mean activation over the answer, m_n(s) = mean over t in A of a_tn, and
- gradient x activation, g_n(s) = sum over t >= 1 of a_tn dLL(s)/da_tn,

and for a pair (a, b) the contrast m(a) - m(b) and the attribution g(a) - g(b). To first order
g_n(s) is what LL(s) loses when the neuron is silenced (zero ablation at t >= 1); it says nothing of
what silencing many neurons together does. Position 0 holds activations that belong to no text (in
SmolLM2's layer 11, 868 times the largest elsewhere) and, like padding, enters nothing here.

Memory: two float32 matrices [pairs, neurons] a property.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..datasets.pairs import Pair, Text
from ..errors import DataError, ModelError
from ..progress import Progress, silent
from .engine import Engine
from .likelihood import answer_loglikelihood
from .moments import ActivationStatistics, Moments
from .tokens import Batch, Encoded, Encoder, batches


@dataclass(frozen=True)
class Contrasts:
    """What one property's pairs made every neuron do; neurons of all layers side by side.

    Attributes:
        items: the pairs' items, in order.
        difference: m(a) - m(b), float32 [pairs, neurons].
        attribution: g(a) - g(b) in nats, float32 [pairs, neurons].
        loglikelihood: LL(a), LL(b) in nats, float64 [pairs, 2].
        answer_tokens: answer tokens of a and b, [pairs, 2].
        activation: statistics over the answer tokens of both members.
    """

    items: tuple[str, ...]
    difference: np.ndarray
    attribution: np.ndarray
    loglikelihood: np.ndarray
    answer_tokens: np.ndarray
    activation: ActivationStatistics


def record_contrasts(
    engine: Engine,
    encoder: Encoder,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> dict[str, Contrasts]:
    """Record every property's pairs; a text that several pairs share is run once.

    Raises:
        DataError: a text that cannot be encoded, or no pair.
        ModelError: activations that are not finite, or a mixture of experts.
    """
    if not engine.dense:
        raise ModelError(
            "attributions are of dense MLPs; a mixture of experts can be scored, pruned, masked "
            "and recorded (glulens probe), not contrasted yet"
        )
    users: dict[Text, list[tuple[str, int, int]]] = {}
    for name, members in pairs.items():
        if not members:
            raise DataError(f"{name}: no pairs to record")
        for place, pair in enumerate(members):
            for side, text in enumerate((pair.a, pair.b)):
                users.setdefault(text, []).append((name, place, side))
    texts = [encoder.text(text) for text in users]
    uses = list(users.values())
    neurons = sum(engine.widths)
    difference = {name: np.zeros((len(p), neurons), np.float32) for name, p in pairs.items()}
    attribution = {name: np.zeros((len(p), neurons), np.float32) for name, p in pairs.items()}
    loglikelihood = {name: np.zeros((len(p), 2)) for name, p in pairs.items()}
    moments = {name: Moments(engine.widths) for name in pairs}
    what, done = "recording and attributing (texts)", 0
    for batch in batches(texts, max_tokens, engine.device):
        activations, mean, grad, ll = read(engine, batch)
        for place, row in enumerate(batch.rows):
            for name, pair, side in uses[row]:
                sign = 1 if side == 0 else -1
                difference[name][pair] += sign * mean[place]
                attribution[name][pair] += sign * grad[place]
                loglikelihood[name][pair, side] = ll[place]
        for name in pairs:
            in_use = [
                place
                for place, row in enumerate(batch.rows)
                if any(user == name for user, _, _ in uses[row])
            ]
            answer = batch.answer[in_use]
            for layer, activation in enumerate(activations):
                moments[name].update(layer, activation[in_use][answer.to(activation.device)])
        done += len(batch.rows)
        progress(what, done, len(texts))
    for matrices in (difference, attribution):
        for name, matrix in matrices.items():
            if not np.isfinite(matrix).all():
                raise ModelError(
                    f"{name}: activations or gradients are not finite; try --dtype float32"
                )
    counts = {text: encoded.n_answer for text, encoded in zip(users, texts, strict=True)}
    return {
        name: Contrasts(
            items=tuple(pair.item for pair in members),
            difference=difference[name],
            attribution=attribution[name],
            loglikelihood=loglikelihood[name],
            answer_tokens=np.array([(counts[pair.a], counts[pair.b]) for pair in members]),
            activation=moments[name].result(),
        )
        for name, members in pairs.items()
    }


def read(engine: Engine, batch: Batch) -> tuple[list[Tensor], np.ndarray, np.ndarray, np.ndarray]:
    """Activations by layer; mean activation and attribution [batch, neurons]; LL [batch]."""
    activations: list[Tensor] = []
    shape = batch.ids.shape

    def visit(layer: int, rows: Tensor, places: Tensor) -> Tensor:
        # Weights are frozen: the graph begins at layer 0's neurons.
        if not rows.requires_grad:
            rows = rows.detach().requires_grad_()
        activations.append(rows)
        return rows

    with torch.enable_grad():
        loglikelihood = answer_loglikelihood(engine, batch, visit)
        gradients = torch.autograd.grad(loglikelihood.sum(), activations)
    means, sums = [], []
    activations = [activation.detach().view(*shape, -1) for activation in activations]
    with torch.no_grad():
        for activation, rows in zip(activations, gradients, strict=True):
            answer = batch.answer.to(activation.device, torch.float32)
            real = batch.real.to(activation.device, torch.float32)
            values, gradient = activation.float(), rows.view(*shape, -1).float()
            total = torch.einsum("btn,bt->bn", values, answer)
            means.append((total / answer.sum(1, keepdim=True)).cpu())
            sums.append(torch.einsum("btn,btn,bt->bn", values, gradient, real).cpu())
    return (
        activations,
        torch.cat(means, 1).numpy(),
        torch.cat(sums, 1).numpy(),
        loglikelihood.detach().cpu().numpy().astype(np.float64),
    )


def encode_pairs(encoder: Encoder, pairs: Sequence[Pair]) -> list[Encoded]:
    """The texts of pairs, a before b, pair after pair."""
    return [encoder.text(text) for pair in pairs for text in (pair.a, pair.b)]
