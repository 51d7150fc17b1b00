"""A report as plain data, and as Markdown or one HTML page without anything from outside."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as Grid

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a header; `source` is the file that its numbers stand in, `left` how many columns
    are text."""

    header: Row
    rows: Sequence[Row]
    source: str = ""
    left: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure of the run, by name, and what it shows."""

    name: str
    caption: str


Block = str | Table | Picture
"""A string is a paragraph, or a list where its lines begin with `- `; backticks make code."""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """A title, a lead in bold, and sections."""

    title: str
    lead: str
    about: str
    sections: Sequence[Section]


def grid(
    title: str, content: tuple[Row, Sequence[Row]], left: int, *, grouped: bool = False
) -> Grid:
    """A table for the terminal: header and rows under a title, the first `left` columns text.

    Args:
        grouped: leave a gap where the first column's word changes.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    header, rows = content
    found = Grid(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    for place, name in enumerate(header):
        found.add_column(name, justify="left" if place < left else "right")
    for place, row in enumerate(rows):
        following = rows[place + 1 : place + 2]
        found.add_row(*row, end_section=grouped and bool(following) and following[0][0] != row[0])
    return found


def markdown(report: Report, figures: Path) -> str:
    """The report in Markdown, figures by their place in the run directory.

    Args:
        figures: the folder that holds `NAME.png`; what is missing there is left out.
    """
    parts = [f"# {report.title}", f"**{report.lead}**", report.about]
    for section in report.sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            if isinstance(block, Table):
                parts.append(_grid(block))
                if block.source:
                    parts.append(f"(`{block.source}`)")
            elif isinstance(block, Picture):
                if not (figures / f"{block.name}.png").exists():
                    continue
                parts.append(f"![{block.caption}](figures/{block.name}.png)")
                parts.append(f"*{block.caption}* (`figures/{block.name}.csv`)")
            else:
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def _grid(table: Table) -> str:
    def line(row: Row) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"

    marks = ["---"] * table.left + ["---:"] * (len(table.header) - table.left)
    return "\n".join([line(table.header), "|" + "|".join(marks) + "|", *map(line, table.rows)])


def html(report: Report, figures: Path) -> str:
    """The report as one page: figures inside, no script, nothing fetched.

    Args:
        figures: the folder that holds `NAME.png`; what is missing there is left out.
    """
    from jinja2 import Environment, PackageLoader

    def pieces(block: str) -> list[tuple[str, str]]:
        """The element that a piece of text stands in (`code`, `em`, or none), and the piece."""
        found = re.split(r"(`[^`\n]+`|\*[A-Za-z][^*\n]*\*)", block)
        kinds = {"`": "code", "*": "em"}
        return [
            (kinds[part[0]], part[1:-1]) if k % 2 else ("", part) for k, part in enumerate(found)
        ]

    def items(block: str) -> list[str]:
        return [line.removeprefix("- ") for line in re.split(r"\n(?=- )", block)]

    def data(name: str) -> str:
        path = figures / f"{name}.png"
        return base64.b64encode(path.read_bytes()).decode() if path.exists() else ""

    environment = Environment(
        loader=PackageLoader("glulens.interp"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"pieces": pieces, "items": items, "data": data}
    environment.tests |= {
        "table": lambda block: isinstance(block, Table),
        "picture": lambda block: isinstance(block, Picture),
        "fenced": lambda block: block.startswith("```"),
        "list": lambda block: block.startswith("- "),
    }
    return environment.get_template("report.html").render(report=report)
