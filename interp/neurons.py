"""The table of neurons that every run directory holds: one row a neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars

from ..prune.expressions import column
from .resamples import Resamples, functional

if TYPE_CHECKING:
    from ..probes.contrasts import Contrasts
    from ..prune.layout import MlpLayout

COLUMNS = {
    "layer": "layer, from 0",
    "neuron": "index within the layer, from 0",
    "diff_P": "mean over items of the mean activation on the answer, a minus b",
    "dz_P": "diff_P over its standard deviation over items (0 for a neuron that never varies)",
    "attr_P": "mean over items of gradient x activation for LL(a) - LL(b), nats",
    "mean_P, rms_P, positive_P, min_P, max_P": "activation over the answer tokens of both members",
}
"""What columns mean; P is a property. Every other column is a weight criterion of that name."""


def score_table(
    widths: Sequence[int],
    scores: Mapping[str, Sequence[np.ndarray]],
    layouts: Sequence[MlpLayout] = (),
) -> polars.DataFrame:
    """Keys and weight scores of all neurons, sorted by layer and neuron.

    With experts among `layouts` there are two more keys: `part` (`dense`, `expert`, `shared`) and
    `expert` (null where it is none).
    """
    layers = [layout.layer for layout in layouts] or list(range(len(widths)))
    parts = {}
    if any(layout.part != "dense" for layout in layouts):
        of = [i for i, width in enumerate(widths) for _ in range(width)]
        parts = {
            "part": polars.Series([layouts[i].part for i in of], dtype=polars.Categorical),
            "expert": polars.Series([layouts[i].expert for i in of], dtype=polars.Int32),
        }
    return polars.DataFrame(
        {
            "layer": np.repeat(np.array(layers, dtype=np.int16), widths),
            **parts,
            "neuron": np.concatenate([np.arange(width, dtype=np.int32) for width in widths]),
            **{column(name): np.concatenate(list(layers)) for name, layers in scores.items()},
        }
    )


def neuron_table(
    widths: Sequence[int],
    scores: Mapping[str, Sequence[np.ndarray]],
    contrasts: Mapping[str, Contrasts],
) -> polars.DataFrame:
    """`score_table` with what neurons do; columns as in `COLUMNS`, float32."""
    columns: dict[str, np.ndarray] = {}
    for name, found in contrasts.items():
        observed = Resamples.observed(len(found.items))
        difference = found.difference.mean(0, dtype=np.float64)
        size = functional(found.difference, observed, "dz")[0]
        columns[f"diff_{name}"] = difference
        columns[f"dz_{name}"] = np.sign(difference) * size
        columns[f"attr_{name}"] = found.attribution.mean(0, dtype=np.float64)
        columns[f"mean_{name}"] = found.activation.mean
        columns[f"rms_{name}"] = found.activation.rms
        columns[f"positive_{name}"] = found.activation.positive
        columns[f"min_{name}"] = found.activation.minimum
        columns[f"max_{name}"] = found.activation.maximum
    return score_table(widths, scores).with_columns(
        **{name: polars.Series(values.astype(np.float32)) for name, values in columns.items()}
    )
