"""What storage in 16 bits makes of a change: noise of one size, rounded as the weights are.

A bfloat16 has eight significant bits. A weight near w moves in steps of about w / 128, and a
smaller change leaves it where it was. So where both models are stored in 16 bits and tuning moved
weights by less than such steps, what is left of one and the same change depends on how large the
weight was: changes of large weights vanish, and low-magnitude neurons seem to have been chosen. In
six layers of SmolLM2-135M-Instruct, equal noise of which 76 % of the weights show nothing has rho
-0.11 with `ppm` and -0.34 with `pon_io`, intervals below 0: the verdict would say *supported*.

The opposite happens where both models were rounded from finer weights, as those who tune their own
model before release may do: a small change then crosses to the next neighbour the more rarely, but
the further, the larger the weight. The squared change grows with the step, and high-magnitude
neurons seem to have been chosen.

**Control.** Every weight of a matrix is moved by normal noise of one size s and rounded. By how
much it then moves depends on s and on its step u alone. With Q the normal distribution's upper
tail, phi its density, and L(x) = phi(x) - x Q(x):

    E[d^2] = 2 u^2 sum_k (2k + 1) Q((k + 1/2) u / s)               from the base as stored
    E[d^2] = 2 u s (L(0) + 2 sum_k L((k + 1) u / s)),  k = 0, 1, ...  both from finer weights

s is chosen so that the matrix changes by as much as it did. Which of the two it was is seen from
the weights that did not move: from the base as stored hardly any coarse weight moves, from finer
ones the rarer the wider their steps. A neuron's squared change is the sum over its weights, in mean
and variance, drawn as if normal. `concentration` then tells rho of that (`if_rounded`), and the
verdict wants more than it.

The steps are the base's; a weight that ends where steps are wider is rounded a little too finely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats
from torch import Tensor

from ..progress import Progress, silent
from ..prune.exponents import steps_held, steps_of
from ..prune.layout import MlpLayout
from ..prune.mlps import oriented
from ..prune.scoring import Read

Start = Literal["stored", "finer"]
STARTS: tuple[Start, Start] = ("stored", "finer")
"""What tuning began from: the base as it is stored, or finer weights of which both are rounded."""
FINE = 0.05
"""Steps so small beside the noise (u / s) that rounding is nothing."""
NEGLIGIBLE = 0.1
"""Share of weights held back below which rho stays within some hundredths of 0."""
SAMPLED_MLPS = 64
SAMPLED_WEIGHTS = 2**16
"""What is looked at to see whether rounding matters at all: of MLPs, and weights of a matrix."""


@dataclass(frozen=True, eq=False)
class Rounded:
    """Squared changes of one MLP's neurons under noise of one size and rounding.

    Attributes:
        mean, variance: float64 [neurons].
        unchanged: share of the MLP's weights that the rounding leaves where they were.
        start: what was rounded: the change of stored weights, or finer weights before and after.
    """

    mean: np.ndarray
    variance: np.ndarray
    unchanged: float
    start: Start = "stored"

    def draws(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Norms of changes, [count, neurons]."""
        noise = rng.standard_normal((count, len(self.mean)))
        return np.sqrt(np.maximum(self.mean + np.sqrt(self.variance) * noise, 0))


def surviving(
    step: np.ndarray, size: float, start: Start = "stored"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of noise with standard deviation `size` on weights that move in steps: mean of the squared
    change, mean of its square, and how likely there is none; each as `step`."""
    step = np.asarray(step, np.float64)
    second, fourth = np.full(step.shape, size**2), np.full(step.shape, 3 * size**4)
    ratio = step / size
    none = np.zeros(step.shape)
    coarse = ratio > FINE
    if coarse.any():
        r, u = ratio[coarse][:, None], step[coarse]
        k = np.arange(np.ceil(8 / float(r.min())) + 1)
        if start == "stored":
            beyond = 2 * stats.norm.sf((k + 0.5) * r)  # further than k steps
        else:
            beyond = 2 * (_tail(k * r) - _tail((k + 1) * r)) / r
        second[coarse] = u**2 * (beyond @ (2 * k + 1))
        fourth[coarse] = u**4 * (beyond @ ((k + 1) ** 4 - k**4))
        none[coarse] = 1 - beyond[:, 0]
    return second, fourth, none


def _tail(x: np.ndarray) -> np.ndarray:
    """Integral of the normal distribution's upper tail from x on."""
    return stats.norm.pdf(x) - x * stats.norm.sf(x)


def noise_size(
    step: np.ndarray, counts: np.ndarray, squares: float, start: Start = "stored"
) -> float:
    """Size of the noise that changes a matrix by `squares` in all.

    Args:
        step: the distances between neighbours there are [steps].
        counts: weights that have each.
        squares: above 0.
    """

    def excess(log: float) -> float:
        return float(counts @ surviving(step, float(np.exp(log)), start)[0]) - squares

    # With much more noise than this the change is larger, with much less it is smaller.
    high = float(np.log(np.sqrt(squares / counts.sum()) + step.max()) + 3)
    low = high - 1
    while excess(low) > 0:
        low -= 2
    return float(np.exp(optimize.brentq(excess, low, high, xtol=1e-6)))  # pyright: ignore


@dataclass(frozen=True, eq=False)
class Side:
    """One model's MLPs, and what reads its stored tensors."""

    layouts: Sequence[MlpLayout]
    read: Read

    def matrix(self, mlp: int, role: str) -> Tensor:
        """As `mlps.oriented` gives it."""
        slot = self.layouts[mlp].slots[role]
        return oriented(self.read(slot.tensor), slot, self.layouts[mlp])


def rounded_noise(
    base: Side,
    tuned: Side,
    squares: Sequence[Mapping[str, float]],
    *,
    rows: Sequence[np.ndarray] = (),
    negligible: float = NEGLIGIBLE,
    progress: Progress = silent,
) -> list[Rounded] | None:
    """The control for every MLP; reads each matrix of the base once, and little of the tuned.

    Args:
        squares: by MLP, the squared change of each matrix (`gate`, `up`, `down`).
        rows: the neurons of the base that were compared, by MLP; all without it. Where it leaves
            any out, tuning is taken to have begun from the base as stored.
        negligible: share of weights that must be equal in both, by a sample, for all to be read.

    Returns:
        None where there is nothing to control for: a matrix is stored in more than 16 bits, dtypes
        differ, or rounding holds back fewer weights than that.
    """
    sampled = _sampled(base, tuned, squares)
    if sampled is None or sampled[0] < negligible:
        return None
    start = sampled[1]
    found = []
    for mlp, (layout, changed) in enumerate(zip(base.layouts, squares, strict=True)):
        some = rows[mlp] if rows else np.arange(layout.width)
        mean, variance = np.zeros(len(some)), np.zeros(len(some))
        still = weights = 0.0
        for role, total in changed.items():
            counted = steps_of(base.matrix(mlp, role), int(role == "down"))
            if counted is None:
                return None
            step, counts = counted[0], counted[1][some]
            whole = counts.sum(0, dtype=np.float64)
            weights += whole.sum()
            if not 0 < total < np.inf:
                still += whole.sum()
                continue
            size = noise_size(step, whole, float(total), start)
            second, fourth, none = surviving(step, size, start)
            mean += counts @ second
            variance += counts @ (fourth - second**2)
            still += float(whole @ none)
        found.append(Rounded(mean, variance, still / weights, start))
        progress("what rounding lets through (MLPs)", len(found), len(base.layouts))
    return found


def _sampled(
    base: Side, tuned: Side, squares: Sequence[Mapping[str, float]]
) -> tuple[float, Start] | None:
    """Share of weights that are equal in both, and which start explains better where they are; by
    some rows of some matrices. None where dtypes differ or have more than 16 bits."""
    held = weights = 0.0
    misses = dict.fromkeys(STARTS, 0.0)
    for mlp in np.unique(np.linspace(0, len(base.layouts) - 1, SAMPLED_MLPS).astype(int)):
        for role, total in squares[mlp].items():
            sides = [base.matrix(mlp, role), tuned.matrix(mlp, role)]
            every = max(1, -(-sides[0].numel() // SAMPLED_WEIGHTS))
            one, other = (matrix[::every] for matrix in sides)
            if one.dtype != other.dtype:
                return None
            if one.shape != other.shape or not 0 < total < np.inf:
                other = one  # pruned, or not changed: nothing to see but how fine the steps are
            found = steps_held(one, other)
            if found is None:
                return None
            step, counts, same = found
            weights += counts.sum()
            held += same.sum()
            if other is one:
                continue
            share = float(total) * one.numel() / sides[0].numel()
            for start in STARTS:
                none = surviving(step, noise_size(step, counts, share, start), start)[2]
                misses[start] += float(np.abs(counts * none - same).sum())
    if not weights:
        return None
    return held / weights, min(STARTS, key=lambda start: misses[start])
