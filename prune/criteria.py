"""What a neuron weighs: the criteria by which neurons are ranked.

A criterion maps the weights of one layer to one score a neuron; higher means keep. With G, U
[neurons, hidden] and i a neuron:

====== ================================================ ==================================
maw    max|G_i| + max|U_i|                              arXiv 2512.22671, as worded
ppm    (max G_i + |min G_i|) + (max U_i + |min U_i|)    arXiv 2512.22671, as its code does
vow    Var(G_i) + Var(U_i), unbiased                    optipfair
pon    ||G_i||_1 * ||U_i||_1                            optipfair
l2     ||G_i||_2 + ||U_i||_2                            optipfair
====== ================================================ ==================================

`random:SEED` and `reversed:NAME` are controls: the same counts per layer, without the criterion's
order or with its opposite. To add a criterion, write one function and give it one line in
`WEIGHT_CRITERIA`.

None of these sees `down`, and multiplying a row of U by c while dividing the column of D by c
leaves the function as it is and changes every one of them: a score is not a property of the
function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, UsageError, nearest
from .glu import GluLayer

WeightCriterion = Callable[[Tensor, Tensor, Tensor], Tensor]


def maw(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Maximum absolute weight."""
    return gate.abs().amax(1) + up.abs().amax(1)


def ppm(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Peak-to-peak magnitude (optipfair calls it MAW)."""

    def spread(rows: Tensor) -> Tensor:
        low, high = torch.aminmax(rows, dim=1)
        return high + low.abs()

    return spread(gate) + spread(up)


def vow(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Variance of weights."""
    return gate.var(1) + up.var(1)


def pon(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Product of the L1 norms of gate and up."""
    return gate.abs().sum(1) * up.abs().sum(1)


def l2(gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Sum of the L2 norms of gate and up."""
    return gate.norm(dim=1) + up.norm(dim=1)


WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    "ppm": ppm,
    "maw": maw,
    "vow": vow,
    "pon": pon,
    "l2": l2,
}
"""Criteria by name. The paper's own, `ppm`, comes first."""

ALLOWED = (*WEIGHT_CRITERIA, "random:SEED", "reversed:NAME")


def parse_criteria(text: str) -> tuple[str, ...]:
    """The criteria named in a comma-separated list, each checked, none twice.

    Raises:
        UsageError: an unknown name (with the nearest one), a bad seed, an empty list.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"no criterion given; allowed are {', '.join(ALLOWED)}")
    for name in names:
        check_criterion(name)
    return names


def check_criterion(name: str) -> None:
    """Raise `UsageError` unless `name` is a criterion."""
    kind, _, rest = name.partition(":")
    if kind == "random" and rest:
        if not rest.isdecimal():
            raise UsageError(f"criterion {name!r}: SEED must be a whole number, as in random:0")
    elif kind == "reversed" and rest:
        check_criterion(rest)
    elif name not in WEIGHT_CRITERIA:
        raise UsageError(
            f"unknown criterion {name!r}{nearest(name, WEIGHT_CRITERIA)}; "
            f"allowed are {', '.join(ALLOWED)}"
        )


def is_control(name: str) -> bool:
    """Whether the criterion is there to be compared with, not to rank by."""
    return name.startswith(("random:", "reversed:"))


def column(name: str) -> str:
    """The criterion's column in `neurons.parquet`: its name with `:` as `_`."""
    return name.replace(":", "_")


def score_layers(layers: Sequence[GluLayer], name: str) -> list[np.ndarray]:
    """Score every neuron by one criterion.

    Returns:
        One float32 array [neurons] a layer, on the CPU. Weights are read as float32, whatever the
        model's dtype, so that a bf16 model is ranked by its weights and not by rounding.

    Raises:
        UsageError: unknown criterion.
        ModelError: a score is not finite (the layer is named).
    """
    check_criterion(name)
    kind, _, rest = name.partition(":")
    if kind == "reversed":
        return [-scores for scores in score_layers(layers, rest)]
    if kind == "random":
        # One stream a layer: a layer's draw does not depend on the widths of those before it.
        streams = np.random.SeedSequence(int(rest)).spawn(len(layers))
        return [
            np.random.default_rng(stream).random(layer.width, dtype=np.float32)
            for stream, layer in zip(streams, layers, strict=True)
        ]
    criterion = WEIGHT_CRITERIA[name]
    found = []
    with torch.no_grad():
        for layer in layers:
            scores = criterion(*(weight.float() for weight in layer.weights)).cpu().numpy()
            if not np.isfinite(scores).all():
                raise ModelError(
                    f"layer {layer.index}: {int((~np.isfinite(scores)).sum())} neurons have "
                    f"NaN or infinite weights ({name}); the checkpoint is damaged"
                )
            found.append(scores)
    return found
