"""Exact effects of single neurons, to hold first-order attributions against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..progress import Progress, silent
from ..prune.selection import NeuronSet
from .engine import Engine, silencer
from .likelihood import loglikelihoods
from .tokens import Encoded


def ablate_each(
    engine: Engine,
    texts: Sequence[Encoded],
    neurons: Sequence[tuple[int, int]],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> np.ndarray:
    """What every text's log-likelihood loses when one neuron is silenced, one forward pass each.

    The neuron's activation is set to 0 at all positions but 0, which attributions leave out too.

    Args:
        neurons: (layer, index) pairs.

    Returns:
        LL(intact) - LL(silenced) in nats, float64 [neurons, texts].
    """
    intact = loglikelihoods(engine, texts, max_tokens=max_tokens)
    found = np.empty((len(neurons), len(texts)))
    for place, (layer, index) in enumerate(neurons):
        chosen = [np.array([index] if at == layer else [], int) for at in range(len(engine.widths))]
        silence = silencer(NeuronSet(engine.widths, tuple(chosen)), spare_first=True)
        found[place] = intact - loglikelihoods(
            engine, texts, intervene=silence, max_tokens=max_tokens
        )
        progress("silencing single neurons", place + 1, len(neurons))
    return found
