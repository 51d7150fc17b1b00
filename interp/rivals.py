"""Neurons with other jobs, which a cut may hit: the rival explanations of what a cut does.

- **Entropy neurons** write into directions that the unembedding hardly reads, and so change how
  sure the model is rather than what it says (Stolfo et al. 2024, arXiv 2406.16254; Gurnee et al.
  2024, arXiv 2401.12181). Of a column of `down`, the share of its energy within the unembedding's
  near-null space: its `NULL` of directions with the smallest singular values, the final norm's
  gain folded in.
- **Token-frequency neurons** move the logits of all tokens by how frequent they are (Stolfo et
  al.). The correlation, over the tokens that occur in this run's texts, of the column's direct
  effect on a token's logit with the logarithm of the token's count there.
- **Super-weight carriers** make the spikes on which a model stands (Yu et al. 2024,
  arXiv 2411.07191): where the largest entry that a layer's MLP adds is more than `SPIKE` times the
  median of the layers' largest entries, those neurons that each make at least `CARRIED` of it.
  Position 0 counts here: that is where the spikes are.

For the first two a neuron counts where random directions would not: energy, or correlation, beyond
the point that one of as many random directions as there are neurons would exceed in one model of
twenty (Bonferroni at 5 %). Direct effects are first order: through the final norm as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..probes.engine import Engine
from ..probes.tokens import Encoded
from ..prune.mlps import find_mlps
from ..prune.selection import NeuronSet
from .enrichment import hypergeometric

NULL = 0.02
SPIKE = 50.0
CARRIED = 0.1
LEVEL = 0.05
DIRECTIONS = 4096
"""Random directions whose correlations make the scale of the second class."""


@dataclass(frozen=True)
class Rival:
    """One class of neurons.

    Attributes:
        name: `entropy`, `token frequency` or `super weight`.
        neurons: its members.
        scores: what they were chosen by, per layer [neurons]; empty where a layer has none.
        threshold: above which (in absolute value) a neuron belongs to it.
    """

    name: str
    neurons: NeuronSet
    scores: tuple[np.ndarray, ...]
    threshold: float


def find_rivals(model: Any, engine: Engine, texts: Sequence[Encoded]) -> list[Rival]:
    """The three classes of neurons in a model.

    Args:
        model: the causal language model itself, unwrapped.
        engine: on the same model.
        texts: neutral and other texts of this run: their tokens are counted, and the first few are
            run to see spikes.
    """
    down = [mlp.weights[2].detach().double() for mlp in find_mlps(model)]
    read = _unembedding(model)
    widths = tuple(weight.shape[1] for weight in down)
    return [
        _entropy(down, read, widths),
        _frequency(down, read, widths, texts),
        _carriers(engine, model, down, widths, texts[:8]),
    ]


def _unembedding(model: Any) -> Tensor:
    """[vocabulary, hidden] in float64, the final norm's gain folded in where there is one."""
    weight = model.get_output_embeddings().weight.detach().double()
    norms = [
        module.weight.detach().double()
        for module in model.base_model.children()
        if getattr(module, "weight", None) is not None
        and module.weight.ndim == 1
        and len(module.weight) == weight.shape[1]
    ]
    return weight * norms[-1].to(weight.device) if norms else weight


def _classify(
    name: str, scores: Sequence[np.ndarray], widths: tuple[int, ...], threshold: float
) -> Rival:
    chosen = tuple(np.flatnonzero(np.abs(score) > threshold) for score in scores)
    return Rival(name, NeuronSet(widths, chosen), tuple(scores), threshold)


def _entropy(down: Sequence[Tensor], read: Tensor, widths: tuple[int, ...]) -> Rival:
    # Logits that all move alike change nothing: the mean over tokens is no direction that is read.
    centred = read - read.mean(0)
    hidden = read.shape[1]
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending: the least read come first
    count = max(1, round(NULL * hidden))
    null = vectors[:, :count]
    scores = []
    for weight in down:
        energy = (null.T.to(weight.device) @ weight).square().sum(0)
        scores.append((energy / weight.square().sum(0).clamp_min(1e-300)).cpu().numpy())
    # Of a random direction the share is Beta(k / 2, (d - k) / 2).
    threshold = stats.beta.isf(LEVEL / sum(widths), count / 2, max(hidden - count, 1) / 2)
    return _classify("entropy", scores, widths, float(threshold))


def _frequency(
    down: Sequence[Tensor], read: Tensor, widths: tuple[int, ...], texts: Sequence[Encoded]
) -> Rival:
    counts = np.bincount(np.concatenate([text.ids for text in texts]), minlength=len(read))
    seen = torch.from_numpy(np.flatnonzero(counts)).to(read.device)
    log = torch.log(torch.from_numpy(counts[counts > 0]).double()).to(read.device)
    log = log - log.mean()
    rows = read[seen] - read[seen].mean(0)
    # corr(rows w, log) = (rows' log) . w / (|rows w| |log|), with |rows w|^2 = w' (rows' rows) w.
    toward, spread = rows.T @ log, rows.T @ rows

    def correlation(columns: Tensor) -> np.ndarray:
        columns = columns.to(read.device)
        along = toward @ columns
        size = (columns * (spread @ columns)).sum(0).clamp_min(1e-300).sqrt()
        return (along / (size * log.norm().clamp_min(1e-300))).cpu().numpy()

    scores = [correlation(weight) for weight in down]
    generator = torch.Generator().manual_seed(0)
    random = correlation(
        torch.randn(read.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    )
    # About normal on Fisher's scale; its centre is 0, since a direction is as likely as its
    # opposite.
    scale = float(np.sqrt(np.square(np.arctanh(np.clip(random, -0.999999, 0.999999))).mean()))
    threshold = float(np.tanh(stats.norm.isf(LEVEL / sum(widths) / 2) * scale))
    return _classify("token frequency", scores, widths, threshold)


def _carriers(
    engine: Engine,
    model: Any,
    down: Sequence[Tensor],
    widths: tuple[int, ...],
    texts: Sequence[Encoded],
) -> Rival:
    largest = [0.0] * len(widths)
    parts: list[np.ndarray] = [np.zeros(width) for width in widths]

    def visit(mlp: int, rows: Tensor, places: Tensor) -> None:
        weight = down[mlp].to(rows.device)
        out = rows.double() @ weight.T
        at = int(out.abs().argmax())
        token, entry = divmod(at, out.shape[1])
        size = float(out[token, entry].abs())
        if size > largest[mlp]:
            largest[mlp] = size
            share = rows[token].double() * weight[entry] / out[token, entry]
            parts[mlp] = share.cpu().numpy()

    with torch.inference_mode():
        for text in texts:
            engine.forward(torch.tensor([text.ids], device=engine.device), visit=visit)
    usual = float(np.median(largest))
    scores = [
        part if size > SPIKE * usual else np.zeros_like(part)
        for part, size in zip(parts, largest, strict=True)
    ]
    # What works against the spike does not carry it.
    return _classify("super weight", [np.maximum(s, 0) for s in scores], widths, CARRIED)


@dataclass(frozen=True)
class Overlap:
    """How many of a class a cut hits, beside what a random cut of the same counts would hit.

    Attributes:
        members: in the class.
        found: of these in the cut.
        expected: mean of a random cut of the same counts per layer.
        more_p, fewer_p: probability that such a cut hits so many or more, so many or fewer
            (hypergeometric within layers, summed over layers).
    """

    cut: str
    rival: str
    members: int
    found: int
    expected: float
    more_p: float
    fewer_p: float


def overlaps(cuts: Mapping[str, NeuronSet], rivals: Sequence[Rival]) -> list[Overlap]:
    """Every cut against every class."""
    rows = []
    for name, cut in cuts.items():
        for rival in rivals:
            found, spread = 0, np.ones(1)
            for width, some, members in zip(
                cut.widths, cut.indices, rival.neurons.indices, strict=True
            ):
                found += len(np.intersect1d(some, members))
                # Of the members those in the cut, as if members were drawn: the same law.
                spread = np.convolve(spread, hypergeometric(width, len(some), len(members))).real
            rows.append(
                Overlap(
                    name,
                    rival.name,
                    len(rival.neurons),
                    found,
                    float(spread @ np.arange(len(spread))),
                    float(min(1, spread[found:].sum())),
                    float(min(1, spread[: found + 1].sum())),
                )
            )
    return rows
