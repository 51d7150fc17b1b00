"""Silencing or replacing neurons of a live model for the time of a `with` block.

Zero is pruning by another name and answers questions about pruning. Mean and resample replace what
a neuron says by what it says on other text, and answer questions about where information is. They
can disagree in sign: look at both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UsageError
from .mlps import Mlp, find_mlps, watching
from .selection import NeuronSet

Replacement = Literal["zero", "mean", "resample"]
REPLACEMENTS: tuple[Replacement, ...] = ("zero", "mean", "resample")


@contextmanager
def masked(
    model: nn.Module,
    cut: NeuronSet,
    replacement: Replacement = "zero",
    *,
    reference: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """Within the block the neurons of `cut` are replaced at every position; no weight is changed.

    Args:
        model: any supported live model.
        cut: the neurons.
        replacement: `zero`; `mean` of the reference; or `resample`, where every token gets the
            activations of one row of the reference, drawn anew at every pass (one row for all
            neurons of an MLP, so that what belongs together stays together).
        reference: per MLP, activations on other text [samples, neurons]; a mean alone may be
            [neurons]. See `probes.recording`.
        seed: of the rows that `resample` draws.

    Raises:
        UsageError: the set or the reference belongs to another shape, or no reference is given.
    """
    mlps = find_mlps(model)
    cut.check([mlp.width for mlp in mlps])
    if replacement not in REPLACEMENTS:
        raise UsageError(f"replacement {replacement!r}; allowed are {', '.join(REPLACEMENTS)}")
    values = replacements(mlps, cut, replacement, reference)
    places = [torch.from_numpy(index.copy()) for index in cut.indices]
    generator = torch.Generator().manual_seed(seed)

    def see(index: int, rows: Tensor, tokens: Tensor) -> Tensor:
        where = places[index].to(rows.device)
        stored = values[index]
        if stored.ndim == 2:
            drawn = torch.randint(len(stored), (len(rows),), generator=generator)
            stored = stored[drawn]
        filled = stored.to(rows.device, rows.dtype).expand(len(rows), len(where))
        return rows.index_copy(1, where, filled)

    touched = [mlp for mlp in mlps if len(cut.indices[mlp.index])]
    with watching(touched, see):
        yield model


def replacements(
    mlps: Sequence[Mlp],
    cut: NeuronSet,
    replacement: Replacement,
    reference: Sequence[np.ndarray] | None,
) -> list[Tensor]:
    """What replaces the neurons of each MLP: [neurons of the set] or [samples, the same]."""
    if replacement == "zero":
        return [torch.zeros(count) for count in cut.counts]
    if reference is None:
        raise UsageError(f"{replacement} needs a reference: activations on other text, per MLP")
    if len(reference) != len(mlps):
        raise UsageError(f"the reference has {len(reference)} MLPs, the model {len(mlps)}")
    found = []
    for mlp, index, given in zip(mlps, cut.indices, reference, strict=True):
        rows: Any = np.asarray(given, np.float32)
        if rows.shape[-1:] != (mlp.width,) or rows.ndim not in (1, 2) or not rows.size:
            raise UsageError(
                f"{mlp.layout.name}: the reference has shape {rows.shape} where [samples, "
                f"{mlp.width}] is needed"
            )
        if replacement == "mean":
            found.append(torch.from_numpy((rows if rows.ndim == 1 else rows.mean(0))[index]))
        elif rows.ndim == 1:
            raise UsageError(f"{mlp.layout.name}: resample needs samples, not one mean")
        else:
            found.append(torch.from_numpy(rows[:, index]))
    return found
