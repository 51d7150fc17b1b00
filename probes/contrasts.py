"""Paired contrasts and attributions of all neurons, in one forward and one backward a batch.

For a text s with answer tokens A, let LL(s) be the summed log-probability of A, and a_tn the
activation of neuron n at position t. Read are

- the mean activation over the answer, m_n(s) = mean over t in A of a_tn, and
- gradient x activation, g_n(s) = sum over t >= 1 of a_tn dLL(s)/da_tn,

and for a pair (a, b) the contrast m(a) - m(b) and the attribution g(a) - g(b). To first order
g_n(s) is what LL(s) loses when the neuron is silenced (zero ablation at t >= 1); it says nothing of
what silencing many neurons together does. Position 0 holds activations that belong to no text (in
SmolLM2's layer 11, 868 times the largest elsewhere) and, like padding, enters nothing here.

The two texts of a pair stand in one token tree: what they begin with is run once, and one backward
of LL(a) - LL(b) gives the pair's attribution.

Memory: three float32 matrices [pairs, neurons] a property.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..datasets.pairs import Pair
from ..errors import DataError, ModelError
from ..progress import Progress, silent
from .engine import Engine
from .likelihood import pass_loglikelihood
from .moments import ActivationStatistics, Moments
from .tokens import Encoded, Encoder
from .trees import Pass, plan_groups

_COLUMNS = 512
"""Neurons that are ranked at a time."""


@dataclass(frozen=True)
class Contrasts:
    """What one property's pairs made every neuron do; neurons of all layers side by side.

    Attributes:
        items: the pairs' items, in order.
        means: m(a) and m(b), float32 [2, pairs, neurons].
        attribution: g(a) - g(b) in nats, float32 [pairs, neurons].
        loglikelihood: LL(a), LL(b) in nats, float64 [pairs, 2].
        answer_tokens: answer tokens of a and b, [pairs, 2].
        activation: statistics over the answer tokens of both members.
    """

    items: tuple[str, ...]
    means: np.ndarray
    attribution: np.ndarray
    loglikelihood: np.ndarray
    answer_tokens: np.ndarray
    activation: ActivationStatistics

    @property
    def difference(self) -> np.ndarray:
        """m(a) - m(b), float32 [pairs, neurons]; made anew at each call."""
        return self.means[0] - self.means[1]

    @property
    def ranks(self) -> np.ndarray:
        """(rank m(a) - rank m(b)) / 2 pairs, float32 [pairs, neurons]; made anew at each call."""
        return rank_contrasts(*self.means)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it but the items' names, to be kept in a file."""
        whole = {name: getattr(self, name) for name in _ARRAYS}
        of = {f"activation/{f.name}": getattr(self.activation, f.name) for f in _STATISTICS}
        return whole | of

    @classmethod
    def restored(cls, items: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Contrasts:
        """What `arrays` gave, with the items' names."""
        activation = {f.name: arrays[f"activation/{f.name}"] for f in _STATISTICS}
        whole = {name: arrays[name] for name in _ARRAYS}
        return cls(items=tuple(items), activation=ActivationStatistics(**activation), **whole)


_ARRAYS = ("means", "attribution", "loglikelihood", "answer_tokens")
_STATISTICS = fields(ActivationStatistics)


def record_contrasts(
    engine: Engine,
    encoder: Encoder,
    pairs: Mapping[str, Sequence[Pair]],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> dict[str, Contrasts]:
    """Record every property's pairs.

    Raises:
        DataError: a text that cannot be encoded, or no pair.
        ModelError: activations that are not finite, or a mixture of experts.
    """
    if not engine.dense:
        raise ModelError(
            "attributions are of dense MLPs; a mixture of experts can be scored, pruned, masked "
            "and recorded (glulens probe), not contrasted yet"
        )
    for name, members in pairs.items():
        if not members:
            raise DataError(f"{name}: no pairs to record")
    every = [pair for members in pairs.values() for pair in members]
    texts = encode_pairs(encoder, every)
    groups, signs = np.arange(len(texts)) // 2, np.tile([1.0, -1.0], len(every))
    ends = np.cumsum([0, *map(len, pairs.values())])
    spans = {name: slice(*ends[k : k + 2]) for k, name in enumerate(pairs)}
    neurons = sum(engine.widths)
    means = {name: np.zeros((2, len(p), neurons), np.float32) for name, p in pairs.items()}
    attribution = {name: np.zeros((len(p), neurons), np.float32) for name, p in pairs.items()}
    loglikelihood = np.zeros(len(texts))
    moments = {name: Moments(engine.widths) for name in pairs}
    done = 0
    for step in grouped(engine, texts, groups, max_tokens):
        seen = read(engine, step, texts, groups, signs)
        loglikelihood[list(step.texts)] = seen.loglikelihood
        for name, span in spans.items():
            answers = []
            for row, (text, places) in enumerate(zip(step.texts, step.places, strict=True)):
                pair, side = divmod(text, 2)
                if span.start <= pair < span.stop:
                    means[name][side, pair - span.start] = seen.means[row]
                    answers.append(places[texts[text].start :])
            for row, pair in enumerate(seen.groups):
                if span.start <= pair < span.stop:
                    attribution[name][pair - span.start] += seen.attribution[row]
            if answers:
                answer = torch.from_numpy(np.concatenate(answers))
                for layer, activation in enumerate(seen.activations):
                    moments[name].update(layer, activation[answer.to(activation.device)])
        done += len(step.texts)
        progress("recording and attributing (texts)", done, len(texts))
    for matrices in (means, attribution):
        for name, matrix in matrices.items():
            if not np.isfinite(matrix).all():
                raise ModelError(
                    f"{name}: activations or gradients are not finite; try --dtype float32"
                )
    counts = np.array([text.n_answer for text in texts]).reshape(-1, 2)
    return {
        name: Contrasts(
            items=tuple(pair.item for pair in members),
            means=means[name],
            attribution=attribution[name],
            loglikelihood=loglikelihood.reshape(-1, 2)[spans[name]],
            answer_tokens=counts[spans[name]],
            activation=moments[name].result(),
        )
        for name, members in pairs.items()
    }


def rank_contrasts(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(rank a - rank b) / 2n among the 2n values of each column, whose mean is AUROC - 1/2.

    The area is that of telling a from b, unpaired; with the pairs' labels swapped, that of swapped
    labels.

    Args:
        a, b: [n, columns].

    Returns:
        float32 [n, columns].
    """
    n, columns = a.shape
    found = np.empty((n, columns), np.float32)

    def some(first: int) -> None:
        part = slice(first, first + _COLUMNS)
        ranks = stats.rankdata(np.concatenate([a[:, part], b[:, part]]), axis=0)
        found[:, part] = (ranks[:n] - ranks[n:]) / (2 * n)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # sorting releases the interpreter's lock
        list(pool.map(some, range(0, columns, _COLUMNS)))
    return found


class Read(NamedTuple):
    """What one pass showed.

    Attributes:
        activations: by MLP, [tokens, neurons].
        means: mean activation over the answer, float32 [texts of the pass, neurons].
        loglikelihood: in nats, float64 [texts of the pass].
        groups: numbers of the groups with texts in the pass.
        attribution: gradient x activation of each of these groups' signed sum of log-likelihoods,
            float32 [groups, neurons]; of a group that lies in several passes, a part.
    """

    activations: list[Tensor]
    means: np.ndarray
    loglikelihood: np.ndarray
    groups: np.ndarray
    attribution: np.ndarray


def grouped(
    engine: Engine, texts: Sequence[Encoded], groups: np.ndarray, max_tokens: int
) -> tuple[Pass, ...]:
    """Passes for `read`: beginnings are shared within a group, where the engine can.

    Args:
        groups: which one every text is in, [texts].
    """
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    share = max(map(len, texts), default=0) <= engine.shares_up_to
    return plan_groups(texts, [some.tolist() for some in members], max_tokens, share=share)


def read(
    engine: Engine,
    step: Pass,
    texts: Sequence[Encoded],
    groups: np.ndarray,
    signs: np.ndarray,
) -> Read:
    """One forward and one backward over a pass of `grouped`.

    Args:
        texts: all of them.
        groups, signs: of every text, the group and the sign in its sum, [texts].
    """
    activations: list[Tensor] = []

    def visit(layer: int, rows: Tensor, places: Tensor) -> Tensor:
        # Weights are frozen: the graph begins at layer 0's neurons.
        if not rows.requires_grad:
            rows = rows.detach().requires_grad_()
        activations.append(rows)
        return rows

    members = list(step.texts)
    sign = torch.from_numpy(signs[members])
    with torch.enable_grad():
        loglikelihood = pass_loglikelihood(engine, step, texts, visit)
        total = (loglikelihood * sign.to(loglikelihood)).sum()
        gradients = torch.autograd.grad(total, activations)
    known, at = np.unique(groups[members], return_inverse=True)
    answer = torch.zeros(len(members), step.ids.size)
    own = torch.zeros(len(known), step.ids.size)
    for row, (text, places) in enumerate(zip(members, step.places, strict=True)):
        answer[row, places[texts[text].start :]] = 1 / texts[text].n_answer
        own[at[row], places[1:]] = 1  # not position 0
    means, sums = [], []
    activations = [activation.detach() for activation in activations]
    with torch.no_grad():
        for activation, gradient in zip(activations, gradients, strict=True):
            values = activation.float()
            means.append((answer.to(values.device) @ values).cpu())
            sums.append((own.to(values.device) @ (values * gradient.float())).cpu())
    return Read(
        activations,
        torch.cat(means, 1).numpy(),
        loglikelihood.detach().cpu().numpy().astype(np.float64),
        known,
        torch.cat(sums, 1).numpy(),
    )


def encode_pairs(encoder: Encoder, pairs: Sequence[Pair]) -> list[Encoded]:
    """The texts of pairs, a before b, pair after pair."""
    return [encoder.text(text) for pair in pairs for text in (pair.a, pair.b)]
