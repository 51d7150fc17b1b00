"""Histograms of every neuron's weights, taken of each matrix right after it was weighed.

All neurons of an MLP share the bins of a matrix, so that they can be compared: 22 of equal width,
0.4 root mean squares of the matrix, with 0 in the middle, and an open one at either end (beyond 4.4
root mean squares: what makes a neuron large to a criterion of extremes).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..tables import BIN_WIDTH, MATRICES, SCALE, WEIGHT_BINS, WEIGHTS, save_array, save_tables
from .layout import MlpLayout
from .weights import BLOCK, MatrixWeights, as_compiled


class WeightHistograms:
    """Gathers the histograms of a model, matrix by matrix: 24 counts of 2 bytes each.

    Args:
        layouts: its MLPs; rows are numbered as their neurons stand side by side.
    """

    def __init__(self, layouts: Sequence[MlpLayout]) -> None:
        widths = [layout.width for layout in layouts]
        self._first = np.concatenate([[0], np.cumsum(widths)])
        self._counts: dict[str, np.ndarray] = {}
        self._scale = np.zeros((len(widths), 1), SCALE)
        self._scale["first"][:, 0] = self._first[:-1]

    def __call__(
        self, layout: MlpLayout, role: str, matrix: Tensor, weighed: MatrixWeights
    ) -> None:
        """Take in a matrix as `Mlp.view` gives it; see `scoring.Watch`."""
        counts = self._counts.get(role)
        if counts is None:
            counts = np.zeros((int(self._first[-1]), WEIGHT_BINS), np.uint16)
            self._counts[role] = counts
        width = bin_width(weighed)
        self._scale[role][layout.index, 0] = width
        part = slice(self._first[layout.index], self._first[layout.index + 1])
        count_weights(matrix, int(role == "down"), width, counts[part])

    def arrays(self) -> dict[str, np.ndarray]:
        """Counts by matrix, uint16 [neurons, 24]."""
        return {matrix: self._counts[matrix] for matrix in MATRICES if matrix in self._counts}

    def save(self, folder: Path) -> None:
        """Write `weights/` of a run directory (see `glulens.tables`).

        Raises:
            OSError: it cannot be written.
        """
        save_tables(folder / WEIGHTS, self.arrays())
        save_array(folder / WEIGHTS / "bins.npy", self._scale)


def bin_width(weighed: MatrixWeights) -> float:
    """0.4 root mean squares over the neurons whose weights are finite; 1 where there is nothing."""
    squares = weighed.squares[np.isfinite(weighed.squares)]
    mean = squares.sum() / max(squares.size * weighed.n, 1)
    return BIN_WIDTH * float(np.sqrt(mean)) or 1.0


def count_weights(matrix: Tensor, axis: int, width: float, out: np.ndarray) -> None:
    """Count a matrix's weights by bin.

    Args:
        matrix: two-dimensional, of a floating dtype, on any device, contiguous or not.
        axis: the axis that counts neurons.
        width: of a bin, above 0. Weights are compared in float32; NaN are in no bin.
        out: uint16 [neurons, 24], zeros; counts stop at 65,535.
    """
    with np.errstate(over="ignore"):
        steps = np.float32(1 / width)
    if not np.isfinite(steps):  # weights so small that float32 tells them from 0 with difficulty
        steps = np.finfo(np.float32).max
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, of the threading layer it finds
        from .kernels import column_bins, row_bins

        matrix = matrix.detach()
        if matrix.stride(1) != 1 and matrix.stride(0) == 1:
            matrix, axis = matrix.T, 1 - axis
        whole = as_compiled(matrix)
        if whole is not None:
            (column_bins if axis else row_bins)(whole, steps, out)
            return
        rows = matrix if axis == 0 else matrix.T
        at_once = max(1, BLOCK // max(rows.shape[1], 1))
        for start in range(0, len(rows), at_once):
            block = rows[start : start + at_once].to("cpu", torch.float32).contiguous()
            row_bins(block.numpy(), steps, out[start : start + at_once])
