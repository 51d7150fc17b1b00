"""Linear probes on what a probe run recorded: every set of two conditions, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, UsageError
from ..progress import Progress, silent

if TYPE_CHECKING:
    import polars

    from ..probes.recorder import Recorded
    from ..prune.models import OpenedModel
    from .probe import Prepared, ProbeOptions


def decode_sets(
    opened: OpenedModel,
    prepared: Prepared,
    recorded: Recorded,
    scores: Mapping[str, Sequence[np.ndarray]],
    settings: ProbeOptions,
    folder: Path,
    progress: Progress = silent,
) -> polars.DataFrame:
    """Decode the condition of every set that has two, from mean activations.

    Returns:
        One row a set, layer and set of neurons; see `probes.linear.table`.

    Raises:
        DataError: no set has two conditions, or too few questions.
        UsageError: a layer that the model does not have.
    """
    import polars

    from ..probes.linear import decode_layers, table

    if recorded.means is None:
        raise DataError("means of texts were not kept: too many texts to decode; lower --limit")
    layers = settings.decode_layers or tuple(range(len(recorded.widths)))
    if max(layers) >= len(recorded.widths):
        raise UsageError(f"layer {max(layers)}: the model has {len(recorded.widths)}, from 0")
    random = None
    if settings.random_model:
        random = _random_model(opened, prepared, settings, folder, progress)
    found = []
    for number, probe_set in enumerate(prepared.sets):
        if len(probe_set.conditions) != 2:
            continue
        texts = [t for t, (of, _) in enumerate(prepared.rows) if of == number]
        about = [probe_set.texts[prepared.rows[t][1]] for t in texts]
        positive = (probe_set.contrast or probe_set.conditions)[0]
        encoded = [prepared.job.texts[t] for t in texts]
        rows = table(
            decode_layers(
                _features(recorded, texts),
                np.array([text.condition == positive for text in about]),
                np.array([text.item for text in about]),
                scores_by_layer=scores[settings.criteria[0]],
                first_tokens=[text.ids[text.start] for text in encoded],
                answers=[text.text.answer for text in about],
                answer_tokens=[text.n_answer for text in encoded],
                random_features_by_layer=None if random is None else _features(random, texts),
                layers=layers,
                seed=settings.seed,
                progress=progress,
            )
        )
        found.append(rows.insert_column(0, polars.lit(probe_set.name).alias("set")))
    if not found:
        raise DataError("no probe set has two conditions to tell apart; leave --decode out")
    if random is not None and random.means is not None:
        random.means[0].close()
    return polars.concat(found)


def _features(recorded: Recorded, texts: Sequence[int]) -> Any:
    """By layer, the mean activations of some texts, float32 [texts, neurons]."""
    assert recorded.means is not None
    file, row = recorded.means
    edges = np.concatenate([[0], np.cumsum(recorded.widths)])
    places = [row[text] for text in texts]

    def of(layer: int) -> np.ndarray:
        return file.get(places, int(edges[layer]), int(edges[layer + 1]))

    return of


def _random_model(
    opened: OpenedModel,
    prepared: Prepared,
    settings: ProbeOptions,
    folder: Path,
    progress: Progress,
) -> Recorded:
    """The same texts in a model of the same shape whose weights were never trained."""
    import torch
    from transformers import AutoModelForCausalLM

    from ..probes.hooks import HooksEngine
    from ..probes.recorder import record_job

    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = AutoModelForCausalLM.from_config(opened.model.config, dtype=opened.model.dtype)
    model = model.to(opened.device).eval().requires_grad_(False)
    (folder / "random").mkdir(exist_ok=True)
    return record_job(
        HooksEngine(model),
        replace(prepared.job, contrasts={}),
        folder=folder / "random",
        max_tokens=settings.max_tokens,
        every=1e9,
        progress=lambda what, done, total: progress(f"random model: {what}", done, total),
    )
