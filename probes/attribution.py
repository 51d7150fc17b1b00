"""First-order effects of every neuron, and what they are worth.

With LL(s) the summed log-probability (nats) of a text's answer and a_tn the activation of neuron n
at position t, estimated is what LL loses when the neuron is silenced at t >= 1:

====================== ============================================================= ==============
gradient x activation  sum over t >= 1 of a_tn dLL/da_tn                             one backward
integrated gradients   the same with the gradient's mean along a path: all neurons   `steps` a layer
                       of the layer scaled from 0 to 1 together, later layers
                       recomputed
====================== ============================================================= ==============

`check` holds an estimate against what happens. What one text's activations do in another is
estimated in `patching`.

Integrated gradients: Sundararajan, Taly and Yan 2017 (arXiv 1703.01365); layer by layer, as in
Marks et al. 2024 (arXiv 2403.19647), so that no path leads through a model whose layers are all
scaled at once.

Position 0 holds activations that belong to no text; it and padding enter nothing and are never
scaled. All of this is of dense MLPs. Neurons of all MLPs stand side by side, in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, UsageError
from ..progress import Progress, silent
from ..prune.selection import NeuronSet
from .ablation import ablate, ablate_each
from .contrasts import grouped, read
from .engine import Engine
from .likelihood import answer_loglikelihood
from .suffix import layers_of
from .tokens import Batch, Encoded, batches


def gradient_x_activation(
    engine: Engine,
    texts: Sequence[Encoded],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """Gradient x activation of every text's LL, in nats, float32 [texts, neurons].

    Raises:
        ModelError: a mixture of experts, or gradients that are not finite.
    """
    refuse_experts(engine)
    found = np.zeros((len(texts), sum(engine.widths)), np.float32)
    done = 0
    alone, signs = np.arange(len(texts)), np.ones(len(texts))
    for step in grouped(engine, texts, alone, max_tokens):
        seen = read(engine, step, texts, alone, signs)
        found[seen.groups] = seen.attribution
        done += len(step.texts)
        progress("gradient x activation (texts)", done, len(texts))
    return finite(found)


def integrated_gradients(
    engine: Engine,
    texts: Sequence[Encoded],
    *,
    steps: int = 8,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """Integrated gradients of every text's LL, in nats, float32 [texts, neurons].

    One layer at a time: its activations at t >= 1 are scaled by alpha = (k + 1/2) / steps (midpoint
    rule), and a neuron gets the sum over t of a_tn times the mean over alpha of dLL/da_tn. As steps
    grow, a layer's neurons sum up to LL(intact) - LL(the layer silenced at t >= 1); how far they
    are from it says `incompleteness`. They stay far where a norm follows the MLP (gemma2, gemma3,
    olmo2, glm4): it undoes every scaling but the last bit before 0, which no step finds.

    Args:
        steps: forwards and backwards a layer; each begins at that layer.
        max_tokens: padded tokens in a batch, alphas side by side included.
        progress: told of layers done, over all batches.

    Raises:
        UsageError: fewer than one step.
        ModelError: a mixture of experts, or gradients that are not finite.
    """
    if steps < 1:
        raise UsageError(f"steps {steps}: at least 1 is needed, 8 do for most")
    refuse_experts(engine)
    layers = layers_of(engine)
    ends = np.cumsum(engine.widths)
    found = np.zeros((len(texts), int(ends[-1])), np.float32)
    alphas = (np.arange(steps) + 0.5) / steps
    made = list(batches(texts, max_tokens, engine.device))
    for number, batch in enumerate(made):
        with torch.no_grad(), layers.held(layers.of) if layers else nullcontext() as held:
            engine.forward(batch.ids)
        room = max(1, max_tokens // batch.ids.numel())
        for mlp, (end, width) in enumerate(zip(ends, engine.widths, strict=True)):
            total = 0
            for some in np.array_split(alphas, -(-steps // room)):
                within: AbstractContextManager[Any] = nullcontext()
                if layers and held:
                    within = layers.resumed(held, layers.of[mlp], len(some))
                with within:
                    total = total + _along(engine, batch, mlp, torch.from_numpy(some).float())
            assert isinstance(total, Tensor)
            found[list(batch.rows), end - width : end] = (total / steps).cpu().numpy()
            done = number * len(ends) + mlp + 1
            progress("integrated gradients (layers)", done, len(made) * len(ends))
    return finite(found)


def incompleteness(
    engine: Engine,
    texts: Sequence[Encoded],
    attribution: np.ndarray,
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """How far the neurons of each MLP are from summing up to what silencing all of them loses.

    Args:
        attribution: [texts, neurons], of `integrated_gradients`.

    Returns:
        Sum of the attributions - (LL(intact) - LL(the MLP silenced at t >= 1)) in nats, float64
        [texts, MLPs].
    """
    sets = [
        NeuronSet(
            engine.widths,
            tuple(np.arange(w if k == at else 0) for k, w in enumerate(engine.widths)),
        )
        for at in range(len(engine.widths))
    ]
    found = ablate(
        engine, texts, sets, spare_first=True, max_tokens=max_tokens, progress=progress
    ).lost
    ends = np.cumsum(engine.widths)[:-1]
    sums = [part.sum(1, dtype=np.float64) for part in np.split(attribution, ends, axis=1)]
    return np.stack(sums, 1) - found.T


@dataclass(frozen=True)
class Agreement:
    """How an estimate agrees with the exact effect over some neurons; NaN where one is constant."""

    n: int
    spearman: float
    pearson: float

    @classmethod
    def between(cls, estimate: np.ndarray, exact: np.ndarray) -> Agreement:
        """Of two values a neuron, [neurons]."""
        from scipy import stats

        if len(exact) < 2 or not np.ptp(estimate) or not np.ptp(exact):
            return cls(len(exact), float("nan"), float("nan"))
        ranks = stats.rankdata(estimate), stats.rankdata(exact)
        return cls(
            len(exact), float(np.corrcoef(*ranks)[0, 1]), float(np.corrcoef(estimate, exact)[0, 1])
        )

    def __str__(self) -> str:
        return f"Spearman {self.spearman:.3f}, Pearson {self.pearson:.3f} ({self.n} neurons)"


@dataclass(frozen=True)
class Check:
    """An attribution held against silencing single neurons, to be shown beside it.

    Attributes:
        top: over the neurons with the largest attribution, by size. They were chosen by the
            estimate that is checked, so that its errors are among what chose them.
        random: over neurons drawn evenly from all.
        neurons: columns of those checked: the top first, then the random ones.
        estimate: their attribution in nats, [neurons].
        exact: what is lost in nats when they are silenced, [neurons].
    """

    top: Agreement
    random: Agreement
    neurons: np.ndarray
    estimate: np.ndarray
    exact: np.ndarray

    def __str__(self) -> str:
        return f"checked by silencing: top: {self.top}; random: {self.random}"


def check(
    engine: Engine,
    texts: Sequence[Encoded],
    attribution: np.ndarray,
    *,
    weights: Sequence[float] | np.ndarray | None = None,
    top: int = 32,
    random: int = 32,
    seed: int = 0,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> Check:
    """Silence the neurons with the largest attribution, and random ones, each by itself.

    Args:
        texts: those that were attributed.
        attribution: [texts, neurons], of `gradient_x_activation` or `integrated_gradients`.
        weights: of the texts in the sum over them that is compared; their mean without it. For
            pairs (a, b, a, b, ...) take `pair_weights`.
        top: how many of the largest.
        random: how many drawn evenly, without replacement.
        seed: of the draw.

    Raises:
        UsageError: shapes that do not fit.
    """
    n = sum(engine.widths)
    if attribution.shape != (len(texts), n):
        raise UsageError(
            f"the attribution has shape {attribution.shape}; {len(texts)} texts and this model "
            f"need {(len(texts), n)}"
        )
    by = np.full(len(texts), 1 / max(len(texts), 1)) if weights is None else np.asarray(weights)
    if by.shape != (len(texts),):
        raise UsageError(f"{len(texts)} texts need as many weights, not {by.shape}")
    estimate = by @ attribution.astype(np.float64)
    largest = np.argsort(-np.abs(estimate), kind="stable")[:top]
    drawn = np.random.default_rng(seed).choice(n, min(random, n), replace=False)
    neurons = np.concatenate([largest, drawn])
    once, back = np.unique(neurons, return_inverse=True)
    at = mlp_and_index(engine.widths, once)
    lost = ablate_each(engine, texts, at, max_tokens=max_tokens, progress=progress)
    exact, mine = (lost @ by)[back], estimate[neurons]
    return Check(
        top=Agreement.between(mine[: len(largest)], exact[: len(largest)]),
        random=Agreement.between(mine[len(largest) :], exact[len(largest) :]),
        neurons=neurons,
        estimate=mine,
        exact=exact,
    )


def pair_weights(pairs: int) -> np.ndarray:
    """The weights that make the mean over pairs of a minus b out of a, b, a, b, ..."""
    return np.tile([1.0, -1.0], pairs) / max(pairs, 1)


def mlp_and_index(
    widths: Sequence[int], columns: Sequence[int] | np.ndarray
) -> list[tuple[int, int]]:
    """(MLP, index) of columns among all neurons."""
    ends = np.cumsum(widths)
    mlps = np.searchsorted(ends, columns, side="right")
    return [
        (int(mlp), int(column - ends[mlp] + widths[mlp]))
        for mlp, column in zip(mlps, columns, strict=True)
    ]


def refuse_experts(engine: Engine) -> None:
    """Raise `ModelError` where some MLPs do not see every token."""
    if not engine.dense:
        raise ModelError(
            "attributions are of dense MLPs; the neurons of a mixture of experts can be ablated "
            "(probes.ablation), not attributed yet"
        )


def finite(found: np.ndarray) -> np.ndarray:
    """Attributions as they are, or a `ModelError` where they are not finite."""
    if not np.isfinite(found).all():
        raise ModelError("activations or gradients are not finite; try --dtype float32")
    return found


def _along(engine: Engine, batch: Batch, layer: int, alphas: Tensor) -> Tensor:
    """Sum over alphas and positions of a_tn dLL/da_tn at alpha * a, [batch, neurons of the layer].

    Within `Layers.resumed`, or in a whole run: what lies below the layer is the same.
    """
    copies, (rows_in, width) = len(alphas), batch.ids.shape
    stacked = Batch(
        batch.rows * copies,
        *(tensor.repeat(copies, 1) for tensor in (batch.ids, batch.answer, batch.real)),
    )
    kept: list[Tensor] = []

    def visit(mlp: int, rows: Tensor, places: Tensor) -> Tensor | None:
        if mlp != layer:
            return None
        factor = alphas.to(rows.device, rows.dtype).view(-1, 1, 1).repeat(1, rows_in, width)
        factor[:, :, 0] = 1
        scaled = (rows.detach() * factor.view(-1, 1)).requires_grad_()
        kept.extend((rows.detach(), scaled))
        return scaled

    with torch.enable_grad():
        loglikelihood = answer_loglikelihood(engine, stacked, visit)
        (gradient,) = torch.autograd.grad(loglikelihood.sum(), kept[1])
    shape = copies, rows_in, width, -1
    activation = kept[0].view(shape)[0].float()
    real = batch.real.to(activation.device, torch.float32)
    return torch.einsum("btn,btn,bt->bn", activation, gradient.view(shape).float().sum(0), real)
