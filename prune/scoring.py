"""Weight scores of a live model, all criteria from one reading of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..progress import Progress, silent
from .expressions import evaluate, parse_criterion
from .families import FAMILIES, Family
from .layout import MlpLayout
from .mlps import Mlp, oriented
from .recording import Recording
from .weights import MatrixWeights, MlpWeights, weigh_matrix

Read = Callable[[str], Tensor]
"""Gives a stored tensor by its name."""
Watch = Callable[[MlpLayout, str, Tensor, MatrixWeights], None]
"""`watch(layout, role, matrix, weighed)`: sees every matrix while it is at hand, `gate` and `up`
[neurons, hidden] and `down` [hidden, neurons], with what was weighed of it."""


def weigh(
    layouts: Sequence[MlpLayout],
    read: Read,
    *,
    gains: bool = False,
    family: str = "",
    allow_nonfinite: bool = False,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> list[MlpWeights]:
    """Read the weights of every MLP once.

    Args:
        layouts: where they lie.
        read: gives tensors, of a live model or from a checkpoint.
        gains: also weigh gate and up with the gain of the norm before them multiplied in.
        family: `model_type`, which says how that gain is stored.
        allow_nonfinite: pass over weights that are NaN or infinite; their neurons score lowest.
        watch: shown every matrix once.

    Raises:
        ModelError: weights that are not finite (layer and tensor are named), or are quantised.
    """
    found = []
    with torch.no_grad():
        for layout in layouts:
            found.append(_weigh_one(layout, read, gains, family, watch))
            if not allow_nonfinite:
                _check_finite(layout, found[-1])
            progress("reading weights (MLPs)", layout.index + 1, len(layouts))
    return found


def _weigh_one(
    layout: MlpLayout, read: Read, gains: bool, family: str, watch: Watch | None
) -> MlpWeights:
    def weighed(role: str) -> tuple[Tensor, MatrixWeights]:
        slot = layout.slots[role]
        matrix = oriented(read(slot.tensor), slot, layout)
        found = weigh_matrix(matrix, int(role == "down"))
        if watch is not None:
            watch(layout, role, matrix, found)
        return matrix, found

    roles = [role for role in ("gate", "up") if role in layout.slots]
    gain = None
    if gains and layout.norm is not None:
        gain = read(layout.norm).float() + FAMILIES.get(family, Family()).norm_offset
    inputs, folded = [], []
    for role in roles:
        rows, found = weighed(role)
        inputs.append(found)
        if gain is not None:
            folded.append(weigh_matrix(rows, 0, gain))
    return MlpWeights(tuple(inputs), weighed("down")[1], tuple(folded) if folded else None)


def _check_finite(layout: MlpLayout, weights: MlpWeights) -> None:
    roles = [role for role in ("gate", "up") if role in layout.slots]
    for role, matrix in zip([*roles, "down"], [*weights.inputs, weights.down], strict=True):
        bad = ~np.isfinite(matrix.squares)
        if bad.any():
            raise ModelError(
                f"{layout.name}: {int(bad.sum())} neurons have NaN or infinite weights in "
                f"{layout.slots[role].tensor} (the first is {int(np.flatnonzero(bad)[0])}); the "
                "checkpoint is damaged: fetch it again, or rank them lowest with --allow-nonfinite"
            )


def score(
    layouts: Sequence[MlpLayout],
    read: Read,
    names: Sequence[str],
    *,
    family: str,
    recording: Recording | None = None,
    allow_nonfinite: bool = False,
    watch: Watch | None = None,
    progress: Progress = silent,
) -> dict[str, list[np.ndarray]]:
    """Score every neuron by several criteria, reading the weights once; `watch` as in `weigh`.

    Returns:
        By criterion, one float32 array [neurons] an MLP, on the CPU.

    Raises:
        UsageError, ModelError: see `expressions.evaluate` and `weigh`.
    """
    criteria = [parse_criterion(name) for name in names]
    weights = weigh(
        layouts,
        read,
        gains=any(c.needs_gain for c in criteria),
        family=family,
        allow_nonfinite=allow_nonfinite,
        watch=watch,
        progress=progress,
    )
    return {
        name: evaluate(criterion, weights, recording)
        for name, criterion in zip(names, criteria, strict=True)
    }


def score_mlps(
    mlps: Sequence[Mlp], names: Sequence[str], **options: Any
) -> dict[str, list[np.ndarray]]:
    """Score every neuron of a live model (`options`, results and errors as in `score`)."""
    model = mlps[0].model
    family = model.config.get_text_config().model_type  # pyright: ignore
    layouts = [mlp.layout for mlp in mlps]
    return score(layouts, model.get_parameter, names, family=family, **options)
