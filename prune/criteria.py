"""What a neuron weighs: the criteria by which neurons are ranked.

A criterion maps what is known of one MLP's weights (and perhaps of its activity on some text) to
one score a neuron; higher means keep. With G, U [neurons, hidden], D [hidden, neurons], a the
activation and i a neuron:

======== ================================================ ==================================
ppm      (max G_i + |min G_i|) + (max U_i + |min U_i|)    arXiv 2512.22671, as its code does
maw      max|G_i| + max|U_i|                              arXiv 2512.22671, as worded
vow      Var(G_i) + Var(U_i), unbiased                    optipfair
pon      ||G_i||_1 * ||U_i||_1                            optipfair
l2       ||G_i||_2 + ||U_i||_2                            optipfair
vow_out  ||D_:i||_2                                       arXiv 2512.22671, as worded
pon_io   ||[G_i, U_i]||_2 * ||D_:i||_2                    arXiv 2512.22671, as worded
hybrid   (spread of G_i, U_i, D_:i, each over its largest in the layer) * RMS(a_i)
                                                          after optipfair's data-driven score
amp      mean |a_i|                                       AMP, arXiv 2504.21174
wanda    mean_j |D_ji| * RMS(a_i)                         Wanda, arXiv 2306.11695, by column
flap     Var(a_i) * ||D_:i||_2^2                          FLAP, arXiv 2312.11983
minitron root of the mean over texts of (mean_t |a_i|)^2  Minitron, arXiv 2407.14679,
                                                          restated free of batches
======== ================================================ ==================================

MLPs without a gate have U alone: sums and products run over the input matrices there are. Biases do
not enter. `expressions` adds controls and compositions. To add a criterion, write one function and
give it one line in `WEIGHT_CRITERIA` or `ACTIVATION_CRITERIA`.

Those that do not see D change when a row of U is multiplied by c and the column of D divided by it,
which leaves the function as it is: a score is not a property of the function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .recording import Activity
from .weights import MlpWeights

WeightCriterion = Callable[[MlpWeights], np.ndarray]
ActivationCriterion = Callable[[MlpWeights, Activity], np.ndarray]


def ppm(w: MlpWeights) -> np.ndarray:
    """Peak-to-peak magnitude (optipfair calls it MAW)."""
    return _sum(m.spread for m in w.inputs)


def maw(w: MlpWeights) -> np.ndarray:
    """Maximum absolute weight."""
    return _sum(m.peak for m in w.inputs)


def vow(w: MlpWeights) -> np.ndarray:
    """Variance of weights."""
    return _sum(m.variance for m in w.inputs)


def pon(w: MlpWeights) -> np.ndarray:
    """Product of the L1 norms of gate and up."""
    return np.prod([m.absolute for m in w.inputs], axis=0)


def l2(w: MlpWeights) -> np.ndarray:
    """Sum of the L2 norms of gate and up."""
    return _sum(m.norm for m in w.inputs)


def vow_out(w: MlpWeights) -> np.ndarray:
    """L2 norm of what the neuron writes."""
    return w.down.norm


def pon_io(w: MlpWeights) -> np.ndarray:
    """Product of the norms of what the neuron reads by and what it writes."""
    return np.sqrt(_sum(m.squares for m in w.inputs)) * w.down.norm


def hybrid(w: MlpWeights, a: Activity) -> np.ndarray:
    """Relative spreads of all three matrices, times how large the activation is."""
    spreads = [m.spread for m in (*w.inputs, w.down)]
    return _sum(s / max(float(s.max()), np.finfo(float).tiny) for s in spreads) * a.rms


def amp(w: MlpWeights, a: Activity) -> np.ndarray:
    """Mean absolute activation."""
    return a.mean_abs


def wanda(w: MlpWeights, a: Activity) -> np.ndarray:
    """Wanda's |weight| x input norm, averaged over the column that a neuron writes."""
    return w.down.absolute / w.down.n * a.rms


def flap(w: MlpWeights, a: Activity) -> np.ndarray:
    """Fluctuation of the activation, weighted by what it writes."""
    return a.variance * w.down.squares


def minitron(w: MlpWeights, a: Activity) -> np.ndarray:
    """Mean |activation| within texts, L2 over texts."""
    return a.text_rms


def _sum(parts: object) -> np.ndarray:
    return np.sum(list(parts), axis=0)  # pyright: ignore[reportArgumentType, reportCallIssue]


WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    "ppm": ppm,
    "maw": maw,
    "vow": vow,
    "pon": pon,
    "l2": l2,
    "vow_out": vow_out,
    "pon_io": pon_io,
}
"""Criteria of weights alone. The paper's own, `ppm`, comes first."""

ACTIVATION_CRITERIA: dict[str, ActivationCriterion] = {
    "hybrid": hybrid,
    "amp": amp,
    "wanda": wanda,
    "flap": flap,
    "minitron": minitron,
}
"""Criteria that also need a recording."""
