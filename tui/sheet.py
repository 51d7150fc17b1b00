"""What of a table fits on a screen: which columns, how wide, and where each begins.

A column is read and measured when it first comes into view, in a thread: what takes long to read
keeps nobody waiting, and shows as dots until it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Thread
from time import monotonic
from typing import NamedTuple, Protocol

import numpy as np
from rich.cells import cell_len

from ..errors import GlulensError
from .glyphs import CUT, cells, safe
from .numbers import Format, extremes, format_of

GUTTER = 2
"""Cells on the left: the cursor's glyph and the mark."""
GAP = 2
"""Cells before a column of numbers."""
_PATIENCE = 0.05  # seconds that a redraw waits for columns it has not seen
_SHORT = 9  # names no longer than this stay on one line of the header
_LONGEST = 24  # cells that a line of the header may take
_LEAST = 14  # cells for numbers, below which the rank goes
_SAMPLE = 512


class Table(Protocol):
    """Arrays by name, one entry a neuron, and what its neurons are called."""

    @property
    def layer(self) -> np.ndarray: ...

    @property
    def neuron(self) -> np.ndarray: ...

    def __getitem__(self, name: str, /) -> np.ndarray: ...

    def label(self, row: int, /) -> str: ...


@dataclass(frozen=True)
class Column:
    """A column ready to be drawn: its values (None while they are being read), how they are
    written, and its name on two lines."""

    name: str
    values: np.ndarray | None
    format: Format
    header: tuple[str, str]

    @cached_property
    def width(self) -> int:
        """Cells, without the gap before it."""
        return max(self.format.width, *map(cell_len, self.header))

    def cell(self, row: int) -> str:
        """A value as text."""
        return CUT if self.values is None else self.format(self.values[row].item())


def header_of(name: str) -> tuple[str, str]:
    """A column's name on two lines, broken after the underscore that leaves the shortest longer
    half; joined they are the name again, unless a half had to be cut. The first may be empty."""
    name = safe(name)
    breaks = [at + 1 for at, c in enumerate(name[:-1]) if c == "_"]
    if len(name) <= _SHORT or not breaks:
        return "", cells(name, _LONGEST)
    at = min(breaks, key=lambda at: max(at, len(name) - at))
    return cells(name[:at], _LONGEST), cells(name[at:], _LONGEST)


class Reader:
    """The columns of a table, each read once.

    Args:
        table: what is read.
        ready: called in another thread with this reader, a column's name and, if it could not be
            read, why; such a column holds NaN only.
    """

    def __init__(
        self, table: Table, ready: Callable[[Reader, str, GlulensError | None], object]
    ) -> None:
        self._table, self._ready = table, ready
        self._columns: dict[str, Column] = {}
        self._done: dict[str, Event] = {}
        self.awaited: set[str] = set()
        """Columns that were asked for and were not there in time."""

    def column(self, name: str, until: float) -> Column:
        """A column, or one of dots if it is not read by `until` on the monotonic clock."""
        if name not in self._done:
            self._done[name] = Event()
            # A daemon: nobody who leaves waits for it.
            Thread(target=self._read, args=(name,), daemon=True).start()
        if self._done[name].wait(max(until - monotonic(), 0)):
            return self._columns[name]
        self.awaited.add(name)
        return Column(name, None, Format("", len(CUT)), header_of(name))

    def _read(self, name: str) -> None:
        error = None
        try:
            values = self._table[name]
        except GlulensError as found:  # the file is gone, or is another one by now
            values = np.broadcast_to(np.float32(np.nan), len(self._table.layer))
            error = found
        self._columns[name] = Column(name, values, format_of(values), header_of(name))
        self._done[name].set()
        self._ready(self, name, error)

    def label_width(self) -> int:
        """Cells that hold every label: parts of an MLP from a sample, the numbers from all."""
        layers, neurons = self._table.layer, self._table.neuron
        if not len(layers):
            return 0
        digits = sum(len(str(int(extremes(keys)[1]))) for keys in (layers, neurons))
        sample = map(self._table.label, range(0, len(layers), max(1, len(layers) // _SAMPLE)))
        part = max(sum(map(len, label.split(".")[1:-1])) + label.count(".") for label in sample)
        return len("LN") + digits + part


class Layout(NamedTuple):
    """What fits between the edges."""

    fixed: int
    """Cells of the part that stays: gutter, rank, label and the line after them."""
    rank: int
    """Cells of the rank; 0 where there is no room for it."""
    label: int
    first: int
    """Number of the first column shown."""
    columns: tuple[Column, ...]
    right: bool
    """Whether columns are left out on the right."""

    def name_at(self, x: int) -> str | None:
        """The column that a cell belongs to, with the gap before it."""
        edge = self.fixed
        for column in self.columns:
            if edge <= x < edge + GAP + column.width:
                return column.name
            edge += GAP + column.width
        return None


def lay_out(
    reader: Reader, names: Sequence[str], first: int, *, rows: int, label: int, width: int
) -> Layout:
    """Whole columns from number `first` on, since half a number is another number.

    Where the last column leaves room, earlier ones come back.

    Args:
        rows: in the order, which sets the width of the rank.
        label: cells of the label.
        width: cells in all.
    """
    until = monotonic() + _PATIENCE
    label = max(label, len("neuron"))
    rank = max(len(f"{rows:,}"), len("rank"))
    fixed = GUTTER + 1 + rank + 2 + label + 2
    if width - fixed < _LEAST:
        fixed, rank = fixed - rank - 2, 0
    room = width - fixed - 1  # the last cell says whether there are more
    chosen: list[Column] = []
    for name in names[first:]:
        column = reader.column(name, until)
        if GAP + column.width > room:
            break
        room -= GAP + column.width
        chosen.append(column)
    right = first + len(chosen) < len(names)
    while not right and first > 0:
        column = reader.column(names[first - 1], until)
        if GAP + column.width > room:
            break
        room -= GAP + column.width
        chosen.insert(0, column)
        first -= 1
    return Layout(fixed, rank, label, first, tuple(chosen), right)
