"""A sweep on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rundir import NEURONS, column_types, save_frame, write_manifest, writing
from .run_files import TABLES, write_tables

if TYPE_CHECKING:
    from .sweep_result import SweepResult

ITEMS, ANSWERS = "items.parquet", "answers.parquet"


def write_run(result: SweepResult, path: Path, *, overwrite: bool = False) -> None:
    """Write the run directory, whole or not at all: tables, report, figures, manifest.

    Raises:
        RunError, ResourceError: see `rundir.writing`.
    """
    with writing(path, overwrite=overwrite) as scratch:
        # Items carry what their point is, so that one file answers a question by itself.
        points = result.points.select("point", "criterion", "control", "seed", "fraction")
        tables = {
            NEURONS: result.neurons,
            ITEMS: result.items.join(points, on="point", how="left", maintain_order="left"),
            ANSWERS: result.answers,
        }
        columns: dict[str, Any] = {}
        for name, table in tables.items():
            if table is not None:
                save_frame(scratch / name, table)
                columns[name] = column_types(table)
        write_tables(scratch, result.tables())
        _report(result, scratch)
        write_manifest(scratch, {**result.manifest, "columns": columns})


def _report(result: SweepResult, scratch: Path) -> None:
    from .sweep_report import write_report

    write_report(result, scratch)


def read_sweep(path: str | Path) -> SweepResult:
    """A sweep that was written before, for another look at its numbers.

    Raises:
        RunError: no run, or one of another command.
        DataError: a table is missing or damaged.
    """
    import polars

    from ..errors import DataError, RunError
    from ..rundir import open_run
    from .sweep_result import SweepResult

    run = open_run(path)
    if run.manifest.get("command") != "sweep":
        raise RunError(f"{path} is a run of {run.manifest.get('command')!r}, not of sweep")
    try:
        items = polars.read_parquet(run.path / ITEMS, glob=False)
        items = items.drop("criterion", "control", "seed", "fraction")
        answers = polars.read_parquet(run.path / ANSWERS, glob=False)
        points = polars.read_csv(run.path / TABLES / "points.csv", glob=False)
        points = points.cast(
            {"point": polars.Int32, "control": polars.String, "seed": polars.Int64}
        )
        scores = polars.read_csv(run.path / TABLES / "scores.csv", glob=False)
        scores = scores.select("point", "task", "metric", "value", "stderr", "n").cast(
            {"point": polars.Int32, "n": polars.Int32, "stderr": polars.Float64}
        )
    except (OSError, polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        reason = (str(error).splitlines() or ["damaged"])[0][:160]
        raise DataError(f"{path}: its tables cannot be read ({reason}); run it again") from error
    return SweepResult(
        points=points,
        items=items,
        scores=scores,
        neurons=run.neurons(),
        manifest=run.manifest,
        path=run.path,
        answers=answers,
    )
