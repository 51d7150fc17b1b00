"""What results look like in a notebook: pieces of HTML that run nothing and fetch nothing.

Jupyter asks an object for `_repr_html_`. Texts of a result can be anybody's (a model's name, a
token, a file's name): every one of them passes through `text`, figures are data, and there is no
other way in.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import visible

if TYPE_CHECKING:
    import polars
    from matplotlib.figure import Figure

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST = 2_000_000
"""Bytes of a figure on disk; a larger one is no figure of ours."""
ROWS, COLUMNS = 5, 12
"""Of a frame that is shown in part."""


@dataclass(frozen=True)
class Grid:
    """Rows of text under a header; the first `left` columns are words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    title: str = ""


@dataclass(frozen=True)
class Image:
    """A PNG and what it shows."""

    png: bytes
    about: str


Part = str | Grid | Image
"""A string is a paragraph."""


def page(title: str, *parts: Part) -> str:
    """A result as HTML: a title, and paragraphs, tables and figures under it."""
    lead = f"<p><strong>{text(title)}</strong></p>"
    return "\n".join(['<div class="glulens">', lead, *map(_part, parts), "</div>"])


def text(value: str) -> str:
    """Anybody's text, as it can stand in HTML, in an attribute too."""
    return html.escape(visible(value), quote=True)


def _part(part: Part) -> str:
    if isinstance(part, str):
        return f"<p>{text(part)}</p>"
    if isinstance(part, Image):
        data = base64.b64encode(part.png).decode()
        about = text(part.about)
        return f'<p><img src="data:image/png;base64,{data}" alt="{about}" title="{about}"></p>'
    return _table(part)


def _table(grid: Grid) -> str:
    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f'<{tag} style="text-align:{"left" if k < grid.left else "right"}">{text(cell)}</{tag}>'
            for k, cell in enumerate(row)
        )

    head = f"<caption>{text(grid.title)}</caption>\n" if grid.title else ""
    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in grid.rows)
    return (
        f"<table>\n{head}<thead><tr>{cells(grid.header, 'th')}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody></table>"
    )


def image(figure: Figure, about: str) -> Image:
    """A figure of Matplotlib's."""
    found = io.BytesIO()
    figure.savefig(found, format="png", dpi=80)
    return Image(found.getvalue(), about)


def images(folder: Path, most: int) -> list[Image]:
    """The first PNGs of a folder, by name; what only calls itself one is left out."""
    found: list[Image] = []
    for path in sorted(folder.glob("*.png")):
        if len(found) == most:
            break
        try:
            data = path.read_bytes() if path.stat().st_size <= LARGEST else b""
        except OSError:
            continue
        if data.startswith(PNG):
            found.append(Image(data, path.stem))
    return found


def head(frame: polars.DataFrame, title: str = "") -> Grid:
    """The first rows and columns of a frame, and how many there are."""
    shown = frame[:ROWS, :COLUMNS]
    size = f"{frame.height:,} rows x {frame.width} columns"
    rows = [tuple(map(cell, row)) for row in shown.iter_rows()]
    return Grid(shown.columns, rows, left=0, title=f"{title}, {size}" if title else size)


def cell(value: Any) -> str:
    """One value of a table."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
