"""A sweep on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..rundir import NEURONS, write_manifest, writing

if TYPE_CHECKING:
    import polars

    from .sweep_result import SweepResult

ITEMS, ANSWERS, TABLES = "items.parquet", "answers.parquet", "tables"


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
                _write(table, scratch / name)
                columns[name] = dict(zip(table.columns, map(str, table.dtypes), strict=True))
        (scratch / TABLES).mkdir()
        for name, table in result.tables().items():
            (scratch / TABLES / f"{name}.csv").write_text(table.write_csv())
        _report(result, scratch)
        write_manifest(scratch, {**result.manifest, "columns": columns})


def _write(table: polars.DataFrame, path: Path) -> None:
    # Through memory: a full disk is then one plain OSError, whatever the library would say.
    file = io.BytesIO()
    table.write_parquet(file)
    path.write_bytes(file.getvalue())


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
        answers = polars.read_parquet(run.path / ANSWERS, glob=False)
        points = polars.read_csv(run.path / TABLES / "points.csv", glob=False)
        scores = polars.read_csv(run.path / TABLES / "scores.csv", glob=False)
    except (OSError, polars.exceptions.PolarsError) as error:
        reason = (str(error).splitlines() or ["damaged"])[0][:160]
        raise DataError(f"{path}: its tables cannot be read ({reason}); run it again") from error
    return SweepResult(
        points=points.cast({"point": polars.Int32, "control": polars.String, "seed": polars.Int64}),
        items=items.drop("criterion", "control", "seed", "fraction"),
        scores=scores.select("point", "task", "metric", "value", "stderr", "n").cast(
            {"point": polars.Int32, "n": polars.Int32, "stderr": polars.Float64}
        ),
        neurons=run.neurons(),
        manifest=run.manifest,
        path=run.path,
        answers=answers,
    )
