"""The gauge of a gated MLP: what can change in its weights while its function stays.

Row i of `up` times c and column i of `down` over c leave ``down(act(gate(x)) * up(x))`` as it is.
Every score that sees `up` without `down`, or the other way round, changes with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..errors import ModelError, UsageError
from .mlps import find_mlps


def rescale(model: nn.Module, factors: Sequence[np.ndarray]) -> nn.Module:
    """Multiply rows of `up` (and their bias) by c and divide columns of `down` by c, in place.

    The function is unchanged up to rounding; exactly, for powers of two.

    Args:
        factors: per MLP, c of every neuron [neurons]: finite, not 0. A negative c is allowed.

    Raises:
        UsageError: factors of another shape, or 0, or not finite.
        ModelError: the model's MLPs have no gate, so that rescaling would change the function.
    """
    mlps = find_mlps(model)
    if len(factors) != len(mlps):
        raise UsageError(f"{len(factors)} lists of factors for a model of {len(mlps)} MLPs")
    checked = []
    for mlp, given in zip(mlps, factors, strict=True):
        if "gate" not in mlp.layout.slots:
            raise ModelError(
                f"{mlp.layout.name}: its MLP has no gate; what stands between its two matrices is "
                "not linear, so rescaling would change the function"
            )
        factor = np.asarray(given, np.float64)
        if factor.shape != (mlp.width,):
            raise UsageError(
                f"{mlp.layout.name}: factors of shape {factor.shape} for {mlp.width} neurons"
            )
        if not np.isfinite(factor).all() or (factor == 0).any():
            raise UsageError(f"{mlp.layout.name}: factors must be finite and not 0")
        checked.append(torch.from_numpy(factor))
    with torch.no_grad():
        # Looked at first and done after, so that a model is rescaled whole or not at all.
        for write in (False, True):
            for mlp, factor in zip(mlps, checked, strict=True):
                for role, by in (
                    ("up", factor[:, None]),
                    ("up_bias", factor),
                    ("down", 1 / factor),
                ):
                    weight = mlp.view(role)
                    if weight is None:
                        continue
                    new = (weight.double() * by.to(weight.device)).to(weight.dtype)
                    if write:
                        weight.copy_(new)
                    elif not torch.isfinite(new).all():
                        raise UsageError(
                            f"{mlp.layout.name}: {role} would exceed what {weight.dtype} holds; "
                            "give factors nearer to 1 or a float32 model"
                        )
    return model
