"""Streaming statistics of every neuron's activation: memory does not grow with the text.

`Moments` is fed rows of activations and holds, per neuron, the count, mean, sum of squared
deviations (Chan, Golub and LeVeque's pairwise update, which does not cancel), mean |a|, share > 0,
minimum and maximum, all in float64. The result does not depend on how the rows were batched beyond
rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivationStatistics:
    """What a set of tokens made every neuron do; float64 arrays [neurons of all layers]."""

    n_tokens: int
    mean: np.ndarray
    variance: np.ndarray
    """Unbiased; NaN for a single token."""
    rms: np.ndarray
    mean_abs: np.ndarray
    positive: np.ndarray
    """Share of tokens with an activation above 0."""
    minimum: np.ndarray
    maximum: np.ndarray


class Moments:
    """Gathers the statistics; give every layer the same tokens."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        self._counts = [0] * len(widths)
        self._mean = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self._squares = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self._abs = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self._positive = [torch.zeros(width, dtype=torch.float64) for width in widths]
        self._low = [torch.full((width,), torch.inf, dtype=torch.float64) for width in widths]
        self._high = [torch.full((width,), -torch.inf, dtype=torch.float64) for width in widths]

    def update(self, layer: int, rows: Tensor) -> Moments:
        """Take in activations [tokens, neurons] of one layer."""
        new = rows.shape[0]
        if not new:
            return self
        rows = rows.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        squares = (rows - mean).square().sum(0)
        old = self._counts[layer]
        total = old + new
        shift = mean - self._mean[layer]
        self._squares[layer] += squares + shift.square() * (old * new / total)
        self._mean[layer] += shift * (new / total)
        self._abs[layer] += rows.abs().sum(0)
        self._positive[layer] += (rows > 0).sum(0)
        low, high = torch.aminmax(rows, dim=0)
        self._low[layer] = torch.minimum(self._low[layer], low)
        self._high[layer] = torch.maximum(self._high[layer], high)
        self._counts[layer] = total
        return self

    def result(self) -> ActivationStatistics:
        """The statistics so far."""
        counts = set(self._counts)
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"layers have seen {sorted(counts)} tokens; give all of them the same")
        n = counts.pop()
        mean, squares = torch.cat(self._mean).numpy(), torch.cat(self._squares).numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = squares / np.float64(n - 1)
        return ActivationStatistics(
            n_tokens=n,
            mean=mean,
            variance=variance,
            rms=np.sqrt(squares / n + mean**2),
            mean_abs=torch.cat(self._abs).numpy() / n,
            positive=torch.cat(self._positive).numpy() / n,
            minimum=torch.cat(self._low).numpy(),
            maximum=torch.cat(self._high).numpy(),
        )
