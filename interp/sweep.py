"""Cuts of growing size by criteria and controls, each evaluated on lm-eval's tasks.

The model is loaded once. A point's neurons are silenced (their activations set to 0), which is what
cutting them out does, to the last bit but rounding: a neuron's only way out is its column of
`down`, and what `down` adds besides (a bias, in the few families that have one) stays in both. No
checkpoint is written.

Every item's result is kept. Work is done in units of a point, a task and some of its items, each of
which is kept in `RUN.unfinished` as soon as it is done; a killed sweep goes on after them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResourceError, UsageError, is_out_of_memory
from ..progress import Progress, silent
from ..prune.expressions import parse_criterion
from ..prune.layout import MlpLayout
from ..prune.mlps import find_mlps
from ..prune.models import OpenedModel, open_model
from ..prune.scoring import score_mlps
from .neurons import score_table
from .stages import Stages, worth_keeping
from .sweep_items import (
    JOINT,
    Found,
    SweepState,
    Unit,
    fingerprint,
    floor_of,
    pack,
    run_unit,
    units,
    unpack,
)
from .sweep_options import SweepOptions, make_sweep_options
from .sweep_points import Point, make_points, orders, point_table
from .sweep_result import SweepResult
from .unfinished import at_work, folder_of
from .versions import occasion, size_entry, source_entry, versions

if TYPE_CHECKING:
    import polars

    from ..prune.recording import Recording

__all__ = ["Point", "SweepOptions", "SweepResult", "make_points", "run_unit", "sweep"]

KEYS = ("point", "task", "subtask", "doc_id")


def sweep(
    model: OpenedModel | str,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    recording: Recording | None = None,
    ray: str | None = None,
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
    **options: Any,
) -> SweepResult:
    """Evaluate a model intact and under growing cuts, by criteria and controls.

    Args:
        model: an opened model, or a name for `open_model`.
        output: where to write a run directory; nothing is written without it.
        resume: go on with the run that was begun there.
        overwrite: replace a run that is there, finished or not.
        recording: for criteria that look at activations; without one the built-in neutral text is
            recorded where a criterion asks for it.
        ray: `local`, or the address of a Ray cluster that does the work. Takes a model by name,
            which every worker can open.
        progress: told how far it is.
        argv: the command line, for the manifest.
        **options: see `SweepOptions`.

    Raises:
        UsageError, ModelError, DataError, RunError, ResourceError: see `errors`.
    """
    settings = make_sweep_options(**options)
    folder = None if output is None else folder_of(output, resume=resume, overwrite=overwrite)
    if output is None and resume:
        raise UsageError("there is nothing to go on with where nothing is written; give an output")
    if ray is not None and not isinstance(model, str):
        raise UsageError("workers open the model by name; give a name where ray is given")
    started = time.time()
    try:
        job = prepare(model, settings, recording=recording, progress=progress)
        with at_work(folder, worth_keeping=worth_keeping) if folder else nullcontext():
            stages = Stages(folder, _about(job))
            result = collect(job, _answers(job, stages, ray, progress))
            manifest = _manifest(job, stages, ray, started, argv)
            result = replace(result, manifest=manifest)
            if output is not None:
                from .sweep_files import write_run

                result = replace(result, path=Path(output))
                write_run(result, Path(output), overwrite=overwrite)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory; lower --max-tokens (now {settings.max_tokens}), or take "
            "--dtype bfloat16"
        ) from error
    return result


@dataclass(frozen=True, eq=False)
class Job:
    """A sweep that is ready to run: the model, the items, the points."""

    opened: OpenedModel
    options: SweepOptions
    layouts: list[MlpLayout]
    scores: Mapping[str, Sequence[np.ndarray]]
    points: list[Point]
    state: SweepState

    @property
    def units(self) -> list[Unit]:
        """All units of work, in order."""
        return units(len(self.points), self.state.tasks)


def prepare(
    model: OpenedModel | str,
    options: SweepOptions,
    *,
    recording: Recording | None = None,
    progress: Progress = silent,
) -> Job:
    """Open the model, score its neurons, choose every point's cut, and build the items.

    Raises:
        UsageError, ModelError, DataError: see `errors`.
    """
    from .sweep_state import leaves_of, open_state

    leaves = leaves_of(options)  # what is wrong with them is told before a model is opened
    if isinstance(model, str):
        dtype: Any = options.dtype
        model = open_model(model, dtype=dtype, device=options.device, progress=progress)
    mlps = find_mlps(model.model)
    layouts = [mlp.layout for mlp in mlps]
    cut_by = orders(options.criteria, options.controls, options.seed)
    names = [order.criterion for order in cut_by]
    if recording is None and any(parse_criterion(name).needs_recording for name in names):
        recording = _recorded(model, progress)
    scores = score_mlps(mlps, names, recording=recording, progress=progress)
    points = make_points(
        layouts,
        scores,
        cut_by,
        fractions=options.fractions,
        ratios=options.ratios,
        keep_layers=options.keep_layers,
    )
    return Job(model, options, layouts, scores, points, open_state(model, options, leaves))


def _recorded(opened: OpenedModel, progress: Progress) -> Recording:
    from ..datasets.neutral import load_neutral
    from ..probes.recording import record

    texts = [passage.text for passage in load_neutral().records]
    return record(opened, texts, progress=progress)


def _answers(
    job: Job, stages: Stages, ray: str | None, progress: Progress
) -> Iterator[tuple[Unit, Found]]:
    """Every unit's tables, from the files of a run that was begun, or by doing the work."""
    todo: list[Unit] = []
    total = sum(len(unit.doc_ids) * _joint(unit) for unit in job.units)
    done = 0

    def told(unit: Unit) -> None:
        nonlocal done
        done += len(unit.doc_ids) * _joint(unit)
        progress("evaluating (points x items)", done, total)

    for unit in job.units:
        try:
            yield unit, unpack(stages(unit.name, _missing))
            told(unit)
        except _MissingError:
            todo.append(unit)
    for unit, found in _done(job, todo, ray):
        # Kept and read again: what a run gives does not depend on where it was stopped.
        packed = pack(found)
        yield unit, unpack(stages(unit.name, lambda packed=packed: packed))
        told(unit)


class _MissingError(Exception):
    """A unit of work has not been done before."""


def _missing() -> Any:
    raise _MissingError


def _joint(unit: Unit) -> int:
    return len(unit.task.split(JOINT))


def _done(job: Job, todo: Sequence[Unit], ray: str | None) -> Iterable[tuple[Unit, Found]]:
    if ray is not None:
        from .sweep_ray import run_units

        return run_units(job, todo, ray)
    return (
        (unit, run_unit(job.state, job.points[unit.point], unit.task, unit.doc_ids))
        for unit in todo
    )


def collect(job: Job, answered: Iterable[tuple[Unit, Found]]) -> SweepResult:
    """Put the units' tables together, whatever order they come in."""
    import polars

    from .sweep_scores import scores

    items, answers = [], []
    for unit, found in answered:
        items.append(_at(found.items, unit.point))
        answers.append(_at(found.answers, unit.point))
    place = {name: number for number, name in enumerate(job.options.tasks)}

    def ordered(parts: list[polars.DataFrame]) -> polars.DataFrame:
        whole = polars.concat(parts)
        task = polars.col("task").replace_strict(place, return_dtype=polars.Int32)
        return whole.sort("point", task, "doc_id", maintain_order=True)

    whole = ordered(items)
    widths = [layout.width for layout in job.layouts]
    shown = {name: of for name, of in job.scores.items() if not name.startswith("reversed:")}
    return SweepResult(
        points=point_table(job.points, job.layouts, job.opened.model.num_parameters()),
        items=whole.drop("form"),
        scores=scores(whole, job.state.tasks),
        neurons=score_table(widths, shown, job.layouts),
        manifest={},
        answers=ordered(answers),
    )


def _at(table: polars.DataFrame, point: int) -> polars.DataFrame:
    import polars

    return table.select(polars.lit(point, polars.Int32).alias("point"), polars.all())


def _about(job: Job) -> list[Any]:
    """What tells a run from others, so that kept results are not those of another one."""
    import torch

    return [
        job.opened.source.sha256,
        str(job.opened.model.dtype),
        str(job.opened.device),
        asdict(job.options),
        fingerprint(job.state.tasks),
        [[point.name, *map(_checksum, point.cut.indices)] for point in job.points if point.cut],
        torch.__version__,
    ]


def _checksum(indices: np.ndarray) -> int:
    import zlib

    return zlib.crc32(indices.astype("<i8").tobytes())


def _manifest(
    job: Job, stages: Stages, ray: str | None, started: float, argv: Sequence[str] | None
) -> dict[str, Any]:
    opened, tasks = job.opened, job.state.tasks
    hashes = fingerprint(tasks)
    return {
        **occasion("sweep", argv, started),
        "options": asdict(job.options),
        "model": {
            **source_entry(opened.source),
            "family": opened.model.config.get_text_config().model_type,
            "dtype": str(opened.model.dtype).removeprefix("torch."),
            **size_entry(job.layouts, opened.model.num_parameters()),
            "layers": job.layouts[-1].layer + 1,
            "mlps": len(job.layouts),
            "neurons": sum(layout.width for layout in job.layouts),
        },
        "tasks": [
            {
                "name": name,
                "items": len(task.items),
                "of": sum(len(leaf.eval_docs) for leaf in task.leaves),
                "subtasks": len(task.leaves),
                "kind": task.kind,
                "num_fewshot": task.leaves[0].get_config("num_fewshot") or 0,
                "version": task.leaves[0].VERSION,
                "higher_is_better": dict(task.leaves[0].higher_is_better()),
                "floor": floor_of(task),
                "requests_hash": hashes[name],
            }
            for name, task in tasks.items()
        ],
        "ray": ray,
        "warnings": _warnings(job, stages),
        "versions": versions("lm_eval", "torch", "transformers", "numpy", "polars"),
    }


def _warnings(job: Job, stages: Stages) -> list[str]:
    said = list(stages.notes)
    drawn = [
        f"{name} {len(task.items):,}"
        for name, task in job.state.tasks.items()
        if job.options.limit_of(name) is not None
    ]
    if drawn:
        how = "at random" if job.options.pick == "random" else "from the front"
        said.append(f"not all items were asked, but some, taken {how}: {', '.join(drawn)}")
    if "ifeval" in job.state.tasks:
        from .ifeval_check import TRAINED, load_checker

        found = load_checker().tokenizer
        if found != TRAINED:
            said.append(f"IFEval's sentences were found by {found}")
    return said
