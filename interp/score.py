"""Weight scores of a model's neurons as a table, and as a run directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress, silent
from ..prune.checkpoint import open_checkpoint
from ..prune.criteria import WEIGHT_CRITERIA
from ..prune.expressions import column, parse_criterion
from ..prune.histograms import WeightHistograms
from ..prune.layout import MlpLayout
from ..prune.mlps import find_mlps
from ..prune.models import ModelSource, OpenedModel
from ..prune.recording import Recording
from ..prune.scoring import score_mlps
from ..rundir import (
    NEURONS,
    REPORT,
    RunDirectory,
    check_free,
    open_run,
    save_frame,
    write_manifest,
    writing,
)
from .neurons import score_table
from .versions import occasion, size_entry, source_entry, versions

if TYPE_CHECKING:
    import polars

DEFAULT_CRITERIA = tuple(WEIGHT_CRITERIA)


def score(
    model: OpenedModel | str | Path,
    criteria: Sequence[str] = DEFAULT_CRITERIA,
    *,
    recording: Recording | None = None,
    allow_nonfinite: bool = False,
    progress: Progress = silent,
) -> polars.DataFrame:
    """Rank every MLP neuron of a model by its weights, which are read once for all criteria.

    Args:
        model: an opened model, or a name for `open_model`, whose checkpoint is then read tensor by
            tensor: the model is not built.
        criteria: see `prune.expressions`.
        recording: for criteria that look at activations.
        allow_nonfinite: neurons with NaN or infinite weights score -inf instead of being an error.

    Returns:
        One row a neuron: `layer`, `neuron`, and a float32 column for each criterion; with experts
        also `part` (`dense`, `expert`, `shared`) and `expert`.

    Raises:
        ModelError, UsageError: see `open_model` and `prune.expressions`.
    """
    return _score(model, criteria, recording, allow_nonfinite, progress).table


@dataclass(frozen=True)
class _Scored:
    """The table, where its neurons lie, and what else one reading of the weights gave."""

    table: polars.DataFrame
    layouts: list[MlpLayout]
    source: ModelSource
    about: dict[str, Any]
    histograms: WeightHistograms | None


def _score(
    model: OpenedModel | str | Path,
    criteria: Sequence[str],
    recording: Recording | None,
    allow_nonfinite: bool,
    progress: Progress,
    *,
    with_histograms: bool = False,
) -> _Scored:
    for name in criteria:
        parse_criterion(name)
    options: Any = {
        "recording": recording,
        "allow_nonfinite": allow_nonfinite,
        "progress": progress,
    }
    if isinstance(model, OpenedModel):
        mlps = find_mlps(model.model)
        layouts, source = [mlp.layout for mlp in mlps], model.source
        histograms = WeightHistograms(layouts) if with_histograms else None
        scores = score_mlps(mlps, criteria, watch=histograms, **options)
        config = model.model.config.get_text_config()
        dtypes = [str(model.model.dtype).removeprefix("torch.")]
        parameters = model.model.num_parameters()
    else:
        with open_checkpoint(model, progress=progress) as checkpoint:
            layouts, source = checkpoint.layouts, checkpoint.source
            histograms = WeightHistograms(layouts) if with_histograms else None
            scores = checkpoint.score(criteria, watch=histograms, **options)
            config = checkpoint.config
            slots = {s.tensor for layout in layouts for s in layout.slots.values()}
            dtypes = sorted({checkpoint.entries[name].dtype for name in slots})
            parameters = checkpoint.parameters
    about = {
        "family": config.model_type,
        "dtype": ", ".join(dtypes),
        **size_entry(layouts, parameters),
    }
    table = score_table([layout.width for layout in layouts], scores, layouts)
    return _Scored(table, layouts, source, about, histograms)


def score_run(
    model: str | Path,
    output: str | Path,
    criteria: Sequence[str] = DEFAULT_CRITERIA,
    *,
    recording: Recording | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
) -> RunDirectory:
    """Score a model's checkpoint and write a run directory (see `score`), with histograms of every
    neuron's weights.

    Raises:
        RunError, ResourceError: the run cannot be written; otherwise as `score`.
    """
    path = Path(output).expanduser()
    check_free(path, overwrite=overwrite)
    started = time.time()
    found = _score(model, criteria, recording, allow_nonfinite, progress, with_histograms=True)
    table = found.table
    manifest: dict[str, Any] = {
        **occasion("score", argv, started),
        "options": {"criteria": list(criteria), "allow_nonfinite": allow_nonfinite},
        "model": {
            **source_entry(found.source),
            **found.about,
            "layers": found.layouts[-1].layer + 1,
            "mlps": len(found.layouts),
            "neurons": table.height,
        },
        "warnings": [],
        "versions": versions("torch", "transformers", "numpy", "polars", "numba"),
    }
    with writing(path, overwrite=overwrite) as scratch:
        save_frame(scratch / NEURONS, table)
        if found.histograms is not None:
            found.histograms.save(scratch)
        (scratch / REPORT).write_text(_report(table, criteria, manifest), encoding="utf-8")
        write_manifest(scratch, manifest)
    return open_run(path)


def summary(table: polars.DataFrame, criteria: Sequence[str]) -> polars.DataFrame:
    """Quantiles of every criterion over all neurons, one row a criterion."""
    import polars

    rows = []
    for name in criteria:
        found = table[column(name)]
        rows.append(
            {
                "criterion": name,
                "minimum": found.min(),
                "lowest tenth": found.quantile(0.1),
                "median": found.median(),
                "highest tenth": found.quantile(0.9),
                "maximum": found.max(),
                "distinct": found.n_unique(),
            }
        )
    return polars.DataFrame(rows)


def _report(table: polars.DataFrame, criteria: Sequence[str], manifest: dict[str, Any]) -> str:
    model = manifest["model"]
    found = summary(table, criteria)
    lines = [
        f"# Weight scores of {model['name']}",
        "",
        f"{model['neurons']:,} neurons in {model['mlps']} MLPs of {model['layers']} layers, "
        f"{model['family']}, {model['dtype']}. Higher means keep.",
        "",
        "| " + " | ".join(found.columns) + " |",
        "|" + "---|" * len(found.columns),
    ]
    for row in found.iter_rows():
        cells = [f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "A score is not a property of the function: multiplying a row of up by c and dividing the "
        "column of down by c leaves the function as it is and changes every score that does not "
        "see both.",
        "",
        f"Made by `{' '.join(manifest['argv'])}`.",
    ]
    return "\n".join(lines) + "\n"
