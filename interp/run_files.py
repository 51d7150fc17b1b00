"""Files that runs of several jobs have: tables as CSV, the report as Markdown and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..rundir import FIGURES, REPORT, save_frame
from .content import Report, Table, html, markdown

if TYPE_CHECKING:
    import polars

    from .rows import Rows

PAGE = "report.html"
TABLES = "tables"


def kept_table(content: Rows, source: str, left: int = 1) -> Table:
    """A report's table that names the file which holds its numbers in full."""
    return Table(*content, source=f"{TABLES}/{source}.csv", left=left)


def write_tables(scratch: Path, tables: Mapping[str, polars.DataFrame]) -> None:
    """Write tables into a run's folder, by name."""
    (scratch / TABLES).mkdir(exist_ok=True)
    for name, frame in tables.items():
        save_frame(scratch / TABLES / f"{name}.csv", frame)


def write_pages(scratch: Path, report: Report) -> None:
    """Write a report in both its forms into a run's folder, whose figures are there already."""
    figures = scratch / FIGURES
    (scratch / REPORT).write_text(markdown(report, figures), encoding="utf-8")
    (scratch / PAGE).write_text(html(report, figures), encoding="utf-8")
