"""What every weight criterion needs to know of a neuron, from one reading of its weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError

BLOCK = 2**20
"""Weights converted at a time where the compiled kernels cannot read them as they are: 4 MB of
float32."""


@dataclass(frozen=True, eq=False)
class MatrixWeights:
    """Of one matrix, per neuron, over its `n` weights there; float64 arrays [neurons]."""

    n: int
    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    absolute: np.ndarray
    """Sum of absolute values: the L1 norm."""
    squares: np.ndarray
    """Sum of squares."""
    deviation: np.ndarray
    """Sum of squared deviations from the neuron's mean."""

    @property
    def peak(self) -> np.ndarray:
        """Largest absolute weight."""
        return np.maximum(self.high, -self.low)

    @property
    def spread(self) -> np.ndarray:
        """max + |min|: peak to peak where the signs differ, as they do in practice."""
        return self.high + np.abs(self.low)

    @property
    def variance(self) -> np.ndarray:
        """Unbiased; NaN for a single weight."""
        return self.deviation / (self.n - 1) if self.n > 1 else np.full_like(self.squares, np.nan)

    @property
    def norm(self) -> np.ndarray:
        """The L2 norm."""
        return np.sqrt(self.squares)

    def of(self, keep: np.ndarray) -> MatrixWeights:
        """Of some neurons only."""
        arrays = ("low", "high", "total", "absolute", "squares", "deviation")
        return replace(self, **{name: getattr(self, name)[keep] for name in arrays})

    def scaled(self, factor: np.ndarray) -> MatrixWeights:
        """The same after each neuron's weights were multiplied by its factor, above 0."""
        return replace(
            self,
            low=self.low * factor,
            high=self.high * factor,
            total=self.total * factor,
            absolute=self.absolute * factor,
            squares=self.squares * factor**2,
            deviation=self.deviation * factor**2,
        )


@dataclass(frozen=True, eq=False)
class MlpWeights:
    """Of one MLP: its input matrices (gate and up, or up alone) and its output matrix."""

    inputs: tuple[MatrixWeights, ...]
    down: MatrixWeights
    folded: tuple[MatrixWeights, ...] | None = None
    """The inputs with the gain of the norm before them multiplied in, where that was asked for."""

    @property
    def gated(self) -> bool:
        """Whether there is a gate."""
        return len(self.inputs) == 2

    @property
    def width(self) -> int:
        """Neurons."""
        return len(self.down.low)

    def of(self, keep: np.ndarray) -> MlpWeights:
        """Of some neurons only."""
        return MlpWeights(
            tuple(matrix.of(keep) for matrix in self.inputs),
            self.down.of(keep),
            self.folded and tuple(matrix.of(keep) for matrix in self.folded),
        )

    @property
    def finite(self) -> np.ndarray:
        """Whether all weights of a neuron are finite, bool [neurons]."""
        return np.all([np.isfinite(m.squares) for m in (*self.inputs, self.down)], axis=0)


def weigh_matrix(matrix: Tensor, axis: int, gain: Tensor | None = None) -> MatrixWeights:
    """Read a matrix once.

    Args:
        matrix: two-dimensional, of a floating dtype, on any device, contiguous or not.
        axis: the axis that counts neurons.
        gain: multiplied into every neuron's weights first, [n].
    """
    if matrix.ndim != 2 or not matrix.is_floating_point() or matrix.element_size() < 2:
        raise ModelError(
            f"a weight of shape {tuple(matrix.shape)} and dtype {matrix.dtype} is packed or "
            "quantised; give the model in bfloat16, float16 or float32"
        )
    matrix = matrix.detach()
    if matrix.stride(1) != 1 and matrix.stride(0) == 1:
        matrix, axis = matrix.T, 1 - axis
    sums = np.empty((5, matrix.shape[axis]))
    direct = as_compiled(matrix) if gain is None else None
    if direct is None:
        _blockwise(matrix, axis, gain, sums)
    else:
        _compiled(direct, axis, sums)
    return from_sums(sums, matrix, axis, gain)


def from_sums(
    sums: np.ndarray, matrix: Tensor, axis: int, gain: Tensor | None = None
) -> MatrixWeights:
    """What `weigh_matrix` gives, of the five sums [5, neurons] that the kernels made of a
    matrix."""
    low, high, total, absolute, squares = sums
    n = matrix.shape[1 - axis]
    with np.errstate(invalid="ignore", over="ignore"):
        of_mean = total**2 / n
        deviation = np.maximum(squares - of_mean, 0)
        # The difference cancels where the mean is large beside the spread; weights are not like
        # that, but a padded or frozen row may be.
        for i in np.flatnonzero(of_mean > squares / 2):
            row = matrix.select(axis, int(i)).double()
            if gain is not None:
                row = row * gain.to(row.device).double()
            deviation[i] = float((row - row.mean()).square().sum())
    return MatrixWeights(n, low, high, total, absolute, squares, deviation)


def as_compiled(matrix: Tensor) -> np.ndarray | None:
    """The matrix as the compiled kernels read it (bfloat16 as uint16), without a copy; None where
    they cannot."""
    if matrix.device.type != "cpu" or not matrix.is_contiguous():
        return None
    if matrix.dtype == torch.bfloat16:
        return matrix.view(torch.uint16).numpy()
    return matrix.numpy() if matrix.dtype == torch.float32 else None


def _compiled(matrix: np.ndarray, axis: int, out: np.ndarray) -> None:
    with warnings.catch_warnings():
        # numba speaks of the threading layer it finds; any will do.
        warnings.simplefilter("ignore")
        from .kernels import column_sums, row_sums

        (column_sums if axis else row_sums)(matrix, out)


def _blockwise(matrix: Tensor, axis: int, gain: Tensor | None, out: np.ndarray) -> None:
    """Whole neurons at a time, in float32, on the matrix's own device."""
    n = matrix.shape[1 - axis]
    step = max(1, BLOCK // max(n, 1))
    gain = None if gain is None else gain.to(matrix.device, torch.float32)
    for start in range(0, matrix.shape[axis], step):
        stop = min(start + step, matrix.shape[axis])
        block = matrix.narrow(axis, start, stop - start)
        block = (block if axis == 0 else block.T).to(torch.float32)
        if gain is not None:
            block = block * gain
        if block.device.type == "cpu":
            _compiled(block.contiguous().numpy(), 0, out[:, start:stop])
            continue
        low, high = torch.aminmax(block, dim=1)
        found = (low, high, block.sum(1), block.abs().sum(1), block.square().sum(1))
        out[:, start:stop] = torch.stack(found).double().cpu().numpy()
