"""Weight scores of a model's neurons as a table: the smallest useful call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..progress import Progress, silent
from ..prune.criteria import WEIGHT_CRITERIA, score_layers
from ..prune.glu import glu_layers
from ..prune.models import OpenedModel, open_model
from .neurons import score_table

if TYPE_CHECKING:
    import polars


def score(
    model: OpenedModel | str,
    criteria: Sequence[str] = tuple(WEIGHT_CRITERIA),
    *,
    progress: Progress = silent,
) -> polars.DataFrame:
    """Rank every MLP neuron of a model by its weights.

    Args:
        model: an opened model, or a name for `open_model`.
        criteria: see `prune.criteria`.

    Returns:
        One row a neuron: `layer`, `neuron`, and a float32 column for each criterion.

    Raises:
        ModelError, UsageError: see `open_model` and `prune.criteria`.
    """
    if isinstance(model, str):
        model = open_model(model, progress=progress)
    layers = glu_layers(model.model)
    return score_table(
        [layer.width for layer in layers], {name: score_layers(layers, name) for name in criteria}
    )
