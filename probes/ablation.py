"""Exact effects of neuron sets: what every text's log-likelihood becomes when a set is replaced.

Many sets are evaluated on the same texts; each is run only from the first layer it touches on (see
`suffix`). Zero answers questions about pruning, mean and resample questions about where information
is; they can disagree in sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UsageError
from ..progress import Progress, silent
from ..prune.masks import REPLACEMENTS, Replacement, replacements
from ..prune.models import OpenedModel
from ..prune.selection import NeuronSet
from .engine import Engine, Visit, make_engine
from .suffix import Change, evaluate
from .tokens import Encoded
from .trees import Pass


@dataclass(frozen=True)
class Ablated:
    """Log-likelihoods (summed over the answer's tokens, nats) of every text, never only means.

    Attributes:
        intact: of the model as it is, float64 [texts].
        loglikelihood: with a set replaced, float64 [sets, texts].
    """

    intact: np.ndarray
    loglikelihood: np.ndarray

    @property
    def lost(self) -> np.ndarray:
        """LL(intact) - LL(replaced) in nats, float64 [sets, texts]."""
        return self.intact - self.loglikelihood


def ablate(
    opened_or_engine: OpenedModel | Engine,
    texts: Sequence[Encoded],
    sets: Sequence[NeuronSet],
    *,
    replacement: Replacement = "zero",
    reference: Sequence[np.ndarray] | None = None,
    seed: int = 0,
    spare_first: bool = False,
    max_tokens: int = 1024,
    share: bool = True,
    progress: Progress = silent,
) -> Ablated:
    """Replace one set of neurons after the other, and score every text under each.

    Args:
        opened_or_engine: the model. Engines other than `hooks` run all of it for every set.
        texts: what to score.
        sets: sets of this model's neurons; an empty one leaves the model intact.
        replacement: `zero`; `mean` of the reference (both as `prune.masks.masked` does them); or
            `resample`, where every token gets the activations of one row of the reference. The
            row is a hash of the seed, the MLP and the token with all that stands before it. So it
            depends on neither batches nor what else is evaluated: all sets see the same draws, and
            so do texts, as far as they are the same.
        reference: per MLP, activations on other text [samples, neurons]; a mean alone may be
            [neurons]. See `probes.recording`.
        seed: of the rows that `resample` draws.
        spare_first: leave position 0 as it is, as attributions do.
        max_tokens: padded tokens in a batch, sets side by side included.
        share: run common beginnings of texts once.
        progress: told of log-likelihoods done.

    Raises:
        UsageError: a set or the reference belongs to another shape, or no reference is given.
        ResourceError: memory does not even suffice for a single row.
    """
    engine = opened_or_engine
    if isinstance(engine, OpenedModel):
        engine = make_engine(engine)
    if replacement not in REPLACEMENTS:
        raise UsageError(f"replacement {replacement!r}; allowed are {', '.join(REPLACEMENTS)}")
    for cut in sets:
        cut.check(engine.widths)
    values = _values(engine, replacement, reference)
    changes = [_change(cut, values, seed, spare_first) for cut in sets]
    intact, changed = evaluate(
        engine,
        texts,
        changes,
        max_tokens=max_tokens,
        share=share,
        progress=progress,
        what="ablating (sets x texts)",
    )
    return Ablated(intact, changed)


def ablate_each(
    engine: Engine,
    texts: Sequence[Encoded],
    neurons: Sequence[tuple[int, int]],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """What every text's log-likelihood loses when one neuron is silenced.

    The neuron's activation is set to 0 at all positions but 0, which attributions leave out too.

    Args:
        neurons: (MLP, index) pairs.

    Returns:
        LL(intact) - LL(silenced) in nats, float64 [neurons, texts].
    """
    sets = [single(engine.widths, *neuron) for neuron in neurons]
    return ablate(
        engine, texts, sets, spare_first=True, max_tokens=max_tokens, progress=progress
    ).lost


def single(widths: Sequence[int], mlp: int, index: int) -> NeuronSet:
    """The set of one neuron."""
    chosen = [np.array([index] if at == mlp else [], int) for at in range(len(widths))]
    return NeuronSet(tuple(widths), tuple(chosen))


def _values(
    engine: Engine, replacement: Replacement, reference: Sequence[np.ndarray] | None
) -> list[Tensor]:
    """What replaces any neuron, by MLP: [neurons] or [samples, neurons]."""
    # Not every engine has the MLPs themselves; their names and widths are all that is needed.
    named: Any = [
        SimpleNamespace(width=width, layout=SimpleNamespace(name=f"MLP {number}"))
        for number, width in enumerate(engine.widths)
    ]
    everything = NeuronSet(engine.widths, tuple(map(np.arange, engine.widths)))
    return replacements(named, everything, replacement, reference)


def _change(cut: NeuronSet, values: Sequence[Tensor], seed: int, spare_first: bool) -> Change:
    touched = tuple(mlp for mlp, count in enumerate(cut.counts) if count)
    indices = {mlp: torch.from_numpy(cut.indices[mlp].copy()) for mlp in touched}
    draws = any(values[mlp].ndim == 2 for mlp in touched)

    def make(step: Pass) -> Visit:
        first = torch.from_numpy(step.positions.reshape(-1) == 0)
        keys = _histories(step) if draws else None

        def visit(mlp: int, rows: Tensor, places: Tensor) -> Tensor:
            where = indices[mlp]
            stored = values[mlp][..., where]
            if stored.ndim == 2:
                assert keys is not None
                stored = stored[_drawn(keys[places.cpu().numpy()], seed, mlp, len(stored))]
            filled = stored.to(rows.device, rows.dtype).expand(len(rows), len(where))
            changed = rows.index_copy(1, where.to(rows.device), filled)
            if spare_first:
                changed = torch.where(first.to(rows.device)[places][:, None], rows, changed)
            return changed

        return visit

    return Change(touched, make)


def _histories(step: Pass) -> np.ndarray:
    """A number for every place that tells its token with all that stands before it, uint64."""
    rows, width = step.ids.shape
    found, tokens = np.zeros((rows, width), np.uint64), _mixed(step.ids.astype(np.uint64))
    for column in range(width):
        parent = step.parents[:, column]
        before = found[np.arange(rows), np.maximum(parent, 0)]
        before[parent < 0] = 0
        found[:, column] = _mixed(before ^ tokens[:, column])
    return found.reshape(-1)


def _drawn(keys: np.ndarray, seed: int, mlp: int, n: int) -> Tensor:
    """A row of the reference for each key, evenly from 0 to n - 1."""
    salt = np.random.SeedSequence([seed, mlp]).generate_state(1, np.uint64)
    return torch.from_numpy((_mixed(keys ^ salt) % np.uint64(n)).astype(np.int64))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Scatter 64-bit numbers (the finaliser of splitmix64, Steele et al. 2014)."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
