"""The table of neurons, drawn line by line: what is not on the screen is neither read nor written.

Rows come from an array of row numbers, so that a sort or a filter is a new array and nothing else.
The table scrolls sideways by whole columns, since half a number is another number, and formats a
column when it first comes into view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .glyphs import cells, fitted, safe
from .numbers import Format, extremes, format_of

CURSOR, MARK, ASCENDING, DESCENDING = ">", "●", "▲", "▼"
LEFT, RIGHT = "‹", "›"
_GUTTER = 2  # cells: the cursor's glyph and the mark
_GAP = 2  # cells before a column; the header shows the direction of the sort in the last of them
_SHORT = 9  # names no longer than this stay on one line of the header
_LONGEST = 24  # cells that a line of the header may take
_LEAST = 14  # cells for numbers, below which the rank goes


class Table(Protocol):
    """What is drawn: arrays by name, one entry a neuron, and what its neurons are called."""

    @property
    def layer(self) -> np.ndarray: ...

    @property
    def neuron(self) -> np.ndarray: ...

    def __getitem__(self, name: str, /) -> np.ndarray: ...

    def label(self, row: int, /) -> str: ...


@dataclass(frozen=True)
class Column:
    """A column ready to be drawn: its values, how they are written, its name on two lines."""

    name: str
    values: np.ndarray
    format: Format
    header: tuple[str, str]

    @property
    def width(self) -> int:
        """Cells, without the gap before it."""
        return max(self.format.width, *map(cell_len, self.header))


class Layout(NamedTuple):
    """What fits between the edges."""

    fixed: int
    """Cells of the part that stays: gutter, rank, label and the line after them."""
    rank: int
    label: int
    columns: tuple[Column, ...]
    left: bool
    """Whether columns are hidden on this side."""
    right: bool


def header_of(name: str) -> tuple[str, str]:
    """A column's name on two lines, broken after the underscore that leaves the shortest longer
    half; joined they are the name again, unless a half had to be cut. The first may be empty."""
    name = safe(name)
    breaks = [at + 1 for at, c in enumerate(name[:-1]) if c == "_"]
    if len(name) <= _SHORT or not breaks:
        return "", cells(name, _LONGEST)
    at = min(breaks, key=lambda at: max(at, len(name) - at))
    return cells(name[:at], _LONGEST), cells(name[at:], _LONGEST)


class NeuronTable(ScrollView, can_focus=True):
    """Neurons in an order, with a cursor that stays on its neuron when the order changes."""

    ALLOW_SELECT = False
    NOTHING = "no neuron passes the filter"

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "neuron-table--header",
        "neuron-table--by",
        "neuron-table--fixed",
        "neuron-table--odd",
        "neuron-table--sorted",
        "neuron-table--mark",
        "neuron-table--cursor",
        "neuron-table--nothing",
    }
    DEFAULT_CSS = """
    NeuronTable {
        background: $surface;
        color: $foreground;
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        & > .neuron-table--header { background: $panel; color: $foreground; }
        & > .neuron-table--by { background: $panel; color: $text-accent; text-style: bold; }
        & > .neuron-table--fixed { color: $text-muted; }
        & > .neuron-table--odd { background: $foreground 4%; }
        & > .neuron-table--sorted { text-style: bold; }
        & > .neuron-table--mark { color: $text-warning; text-style: bold; }
        & > .neuron-table--nothing { color: $text-muted; }
        & > .neuron-table--cursor {
            background: $block-cursor-blurred-background;
            color: $block-cursor-blurred-foreground;
            text-style: bold;
        }
        &:focus > .neuron-table--cursor {
            background: $block-cursor-background;
            color: $block-cursor-foreground;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False, id="table.up"),
        Binding("down,j", "move(1)", "down", show=False, id="table.down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="table.page_up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="table.page_down"),
        Binding("home,g", "first", "first", show=False, id="table.first"),
        Binding("end,G", "last", "last", show=False, id="table.last"),
        Binding("left,h", "sideways(-1)", "columns to the left", show=False, id="table.left"),
        Binding("right,l", "sideways(1)", "columns to the right", show=False, id="table.right"),
        Binding("enter", "choose", "open", show=False, id="table.open"),
        Binding("space", "mark", "mark", show=False, id="table.mark"),
    ]

    class Moved(Message):
        """The cursor is on another neuron."""

        def __init__(self, table: NeuronTable, place: int, row: int) -> None:
            super().__init__()
            self.table, self.place, self.row = table, place, row

        @property
        def control(self) -> NeuronTable:
            """The table, for `@on` selectors."""
            return self.table

    class Chosen(Message):
        """A neuron is to be opened: enter, or a double click."""

        def __init__(self, table: NeuronTable, row: int) -> None:
            super().__init__()
            self.table, self.row = table, row

        @property
        def control(self) -> NeuronTable:
            """The table, for `@on` selectors."""
            return self.table

    class Marked(Message):
        """A neuron is to be marked, or no longer: space, or a click in the gutter. The table
        changes nothing by itself; give it the new marks with `mark_rows`."""

        def __init__(self, table: NeuronTable, row: int) -> None:
            super().__init__()
            self.table, self.row = table, row

        @property
        def control(self) -> NeuronTable:
            """The table, for `@on` selectors."""
            return self.table

    class Sorted(Message):
        """A column's name was clicked. The table waits for the new order with `show`."""

        def __init__(self, table: NeuronTable, name: str) -> None:
            super().__init__()
            self.table, self.name = table, name

        @property
        def control(self) -> NeuronTable:
            """The table, for `@on` selectors."""
            return self.table

    place: reactive[int] = reactive(0, repaint=False)
    """Where the cursor is in the order, from 0."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._table: Table | None = None
        self._names: tuple[str, ...] = ()
        self._order: np.ndarray = np.empty(0, np.int32)
        self._marks: np.ndarray | None = None
        self._by, self._descending = "", False
        self._first = 0  # number of the first column shown
        self._label = 0  # cells
        self._columns: dict[str, Column] = {}
        self._layout_now: Layout | None = None
        self._styles_now: dict[str, Style] = {}

    # What is shown

    def show(
        self,
        columns: Table,
        names: Sequence[str],
        order: np.ndarray,
        *,
        by: str = "",
        descending: bool = False,
        marks: np.ndarray | None = None,
        cursor_row: int | None = None,
    ) -> None:
        """Show other rows, columns or data. The cursor stays at its height on the screen.

        Args:
            columns: the values and labels.
            names: columns, from left to right.
            order: rows, int32 [rows shown], the first on top.
            by: the column they are ordered by, which is brought into view when it is another one.
            descending: whether the largest comes first.
            marks: of each row of the table, whether it is marked, bool [n].
            cursor_row: a row for the cursor; if it is not in the order, the cursor stays where it
                was, or goes to the last place, and `Moved` is sent.
        """
        if columns is not self._table:
            self._columns.clear()
            self._label = _label_width(columns)
        height = self.place - self.scroll_offset.y
        reveal = by != self._by
        self._table, self._names, self._order = columns, tuple(names), order
        self._by, self._descending, self._marks = by, descending, marks
        self._first = min(self._first, max(len(self._names) - 1, 0))
        self._layout_now = None

        place = min(self.place, max(len(order) - 1, 0))
        if cursor_row is not None and len(order):
            found = order == cursor_row
            at = int(found.argmax())
            place = at if found[at] else place
        self.set_reactive(NeuronTable.place, place)
        self.virtual_size = Size(1, self.header_height + len(order))
        if self.size and 0 <= height < self.room:
            self.scroll_to(y=place - height, animate=False, force=True)
        self._keep_in_view()
        if reveal:
            self._reveal(by)
        self.refresh()
        if self.row is not None and self.row != cursor_row:
            self.post_message(self.Moved(self, place, self.row))

    def mark_rows(self, marks: np.ndarray | None) -> None:
        """Show other marks, bool [n of the table]; the array may be the one shown, changed."""
        self._marks = marks
        self.refresh()

    @property
    def row(self) -> int | None:
        """The row under the cursor; none if the order is empty."""
        return int(self._order[self.place]) if len(self._order) else None

    @property
    def header_height(self) -> int:
        """Lines; two as soon as some name is broken, in view or not."""
        return 1 + any(header_of(name)[0] for name in self._names)

    @property
    def room(self) -> int:
        """Rows that fit below the header."""
        return max(self.size.height - self.header_height, 1)

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The columns in view."""
        return tuple(column.name for column in self._layout.columns)

    # Moving

    def validate_place(self, place: int) -> int:
        return min(max(place, 0), max(len(self._order) - 1, 0))

    def watch_place(self, before: int, place: int) -> None:
        header = self.header_height
        self.refresh_lines(header + before)
        self.refresh_lines(header + place)
        self._keep_in_view()
        if self.row is not None:
            self.post_message(self.Moved(self, place, self.row))

    def _keep_in_view(self) -> None:
        top, room = self.scroll_offset.y, self.room
        if not self.size:  # not yet laid out; the first resize comes back here
            return
        if not top <= self.place < top + room:
            y = self.place if self.place < top else self.place - room + 1
            self.scroll_to(y=y, animate=False, force=True)

    def _reveal(self, name: str) -> None:
        if name not in self._names:
            return
        at = self._names.index(name)
        if at < self._first:
            self._scroll_columns(at)
        while name not in self.shown_names and self._first < at:
            self._scroll_columns(self._first + 1)

    def _scroll_columns(self, first: int) -> None:
        self._first, self._layout_now = first, None
        self.refresh()

    def action_move(self, step: int) -> None:
        """Go up or down."""
        self.place += step

    def action_page(self, pages: int) -> None:
        """Turn the page; the cursor stays at its height on the screen."""
        self._keep_in_view()
        self.scroll_to(y=self.scroll_offset.y + pages * self.room, animate=False, force=True)
        self.place += pages * self.room

    def action_first(self) -> None:
        """Go to the first neuron of the order."""
        self.place = 0

    def action_last(self) -> None:
        """Go to the last neuron of the order."""
        self.place = len(self._order) - 1

    def action_sideways(self, step: int) -> None:
        """Show columns further left or right."""
        if self._layout.left if step < 0 else self._layout.right:
            self._scroll_columns(self._first + step)

    def action_choose(self) -> None:
        """Open the neuron."""
        if self.row is not None:
            self.post_message(self.Chosen(self, self.row))

    def action_mark(self) -> None:
        """Mark the neuron, or take its mark away."""
        if self.row is not None:
            self.post_message(self.Marked(self, self.row))

    def on_click(self, event: events.Click) -> None:
        """A name sorts, the gutter marks, anything else moves the cursor and, twice, opens."""
        at = event.get_content_offset(self)
        if at is None:
            return
        event.stop()
        line = at.y - self.header_height
        if line < 0:
            name = self._name_at(at.x)
            if name is not None:
                self.post_message(self.Sorted(self, name))
            return
        place = line + self.scroll_offset.y
        if place >= len(self._order):
            return
        self.place = place
        if at.x < _GUTTER:
            self.action_mark()
        elif event.chain == 2:
            self.action_choose()

    def _name_at(self, x: int) -> str | None:
        layout = self._layout
        edge = layout.fixed
        for column in layout.columns:
            if edge <= x < edge + _GAP + column.width:
                return column.name
            edge += _GAP + column.width
        return None

    def _wheel_sideways(self, event: events.MouseEvent, step: int) -> None:
        event.prevent_default()
        event.stop()
        self.action_sideways(step)

    def _on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        if event.ctrl or event.shift:
            self._wheel_sideways(event, 1)
        else:
            super()._on_mouse_scroll_down(event)

    def _on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        if event.ctrl or event.shift:
            self._wheel_sideways(event, -1)
        else:
            super()._on_mouse_scroll_up(event)

    def _on_mouse_scroll_right(self, event: events.MouseScrollRight) -> None:
        self._wheel_sideways(event, 1)

    def _on_mouse_scroll_left(self, event: events.MouseScrollLeft) -> None:
        self._wheel_sideways(event, -1)

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._layout_now = None
        self._keep_in_view()

    # Drawing

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles_now = {}

    def _style(self, name: str) -> Style:
        """A component's style on the table's own; without colour, reversed where that carries
        meaning."""
        if name not in self._styles_now:
            style = self.get_component_rich_style(f"neuron-table--{name}")
            if name in ("cursor", "header") and self.app.no_color:
                style = Style(bold=True, reverse=name == "cursor", underline=name == "header")
            self._styles_now[name] = style
        return self._styles_now[name]

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            assert self._table is not None
            values = self._table[name]
            self._columns[name] = Column(name, values, format_of(values), header_of(name))
        return self._columns[name]

    @property
    def _layout(self) -> Layout:
        if self._layout_now is None:
            self._layout_now = self._lay_out()
        return self._layout_now

    def _lay_out(self) -> Layout:
        rank = max(len(f"{len(self._order):,}"), len("rank"))
        fixed = _GUTTER + 1 + rank + 2 + self._label + 2
        if self.size.width - fixed < _LEAST:
            fixed, rank = fixed - rank - 2, 0
        room = self.size.width - fixed
        chosen: list[Column] = []
        for name in self._names[self._first :]:
            column = self._column(name)
            if _GAP + column.width > room:
                break
            room -= _GAP + column.width
            chosen.append(column)
        right = self._first + len(chosen) < len(self._names)
        # The window grew at the end of the columns: earlier ones come back.
        while not right and self._first > 0:
            column = self._column(self._names[self._first - 1])
            if _GAP + column.width > room:
                break
            room -= _GAP + column.width
            chosen.insert(0, column)
            self._first -= 1
        return Layout(fixed, rank, self._label, tuple(chosen), self._first > 0, right)

    def render_line(self, y: int) -> Strip:
        """A line of what is in view; the first are the header's."""
        header = self.header_height
        if y < header:
            return self._header_line(upper=y < header - 1)
        place = y - header + self.scroll_offset.y
        if place < len(self._order):
            return self._row_line(place)
        if not len(self._order) and y == header + 1:
            said = fitted(f"{' ' * (_GUTTER + 1)}{self.NOTHING}", self.size.width)
            return Strip([Segment(said, self._style("nothing"))], self.size.width)
        return Strip.blank(self.size.width, self.rich_style)

    def _header_line(self, *, upper: bool) -> Strip:
        layout, plain, by = self._layout, self._style("header"), self._style("by")
        arrow = DESCENDING if self._descending else ASCENDING
        rank = "" if upper else "rank"
        label = "" if upper else "neuron"
        left = f"{' ' * _GUTTER} " + (f"{rank:>{layout.rank}}  " if layout.rank else "")
        left += f"{fitted(label, layout.label)} {LEFT if layout.left and not upper else '│'}"
        segments = [Segment(left, plain)]
        used = layout.fixed
        for column in layout.columns:
            chosen = column.name == self._by
            text = column.header[not upper]
            if chosen and not upper:
                text = arrow + text
            segments.append(
                Segment(fitted(text, _GAP + column.width, "right"), by if chosen else plain)
            )
            used += _GAP + column.width
        if used < self.size.width:
            more = RIGHT if layout.right and not upper else " "
            segments.append(Segment(more.rjust(self.size.width - used), plain))
        return Strip(segments, max(used, self.size.width))

    def _row_line(self, place: int) -> Strip:
        table, layout = self._table, self._layout
        assert table is not None
        row = int(self._order[place])
        marked = self._marks is not None and bool(self._marks[row])
        here = place == self.place
        gutter = f"{CURSOR if here else ' '}{MARK if marked else ' '}"
        rank = f"{place + 1:>{layout.rank},}  " if layout.rank else ""
        fixed = f" {rank}{fitted(safe(table.label(row)), layout.label)} │"
        numbers = [
            (column.name == self._by,
             column.format(column.values[row].item()).rjust(_GAP + column.width))
            for column in layout.columns
        ]  # fmt: skip
        used = layout.fixed + sum(len(text) for _, text in numbers)
        rest = " " * max(self.size.width - used, 0)
        length = max(used, self.size.width)
        if here:
            text = gutter + fixed + "".join(text for _, text in numbers) + rest
            return Strip([Segment(text, self._style("cursor"))], length)
        ground = self._style("odd") if place % 2 else self.rich_style
        segments = [
            Segment(gutter, ground + self._partial("mark")),
            Segment(fixed, ground + self._partial("mark" if marked else "fixed")),
        ]
        plain = ""
        for sorted_by, text in numbers:
            if not sorted_by:
                plain += text
                continue
            if plain:
                segments.append(Segment(plain, ground))
            segments.append(Segment(text, ground + self._partial("sorted")))
            plain = ""
        if plain + rest:
            segments.append(Segment(plain + rest, ground))
        return Strip(segments, length)

    def _partial(self, name: str) -> Style:
        """A component's style without the ground that it stands on."""
        key = f"{name} alone"
        if key not in self._styles_now:
            self._styles_now[key] = self.get_component_rich_style(
                f"neuron-table--{name}", partial=True
            )
        return self._styles_now[key]


def _label_width(table: Table) -> int:
    """Cells that hold every label: the parts' names from a sample, the numbers from all."""
    layers, neurons = table.layer, table.neuron
    if not len(layers):
        return len("neuron")
    numbers = len(str(int(extremes(layers)[1]))) + len(str(int(extremes(neurons)[1])))
    parts = max(
        len(label := table.label(row)) - len(label.split(".")[0]) - len(label.rsplit(".")[-1])
        for row in range(0, len(layers), max(1, len(layers) // 512))
    )
    return max(len("LN") + numbers + max(parts, 1), len("neuron"))
