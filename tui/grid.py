"""The table of neurons, drawn line by line: what is not on the screen is neither read nor written.

Rows come from an array of row numbers, so that a sort or a filter is a new array and nothing else.
The table scrolls sideways by whole columns, since half a number is another number, and formats a
column when it first comes into view. One that takes long to read is read in a thread, and dots
stand in its place until it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ..errors import GlulensError
from .glyphs import fitted, safe
from .sheet import GAP, GUTTER, Layout, Reader, Table, header_of, lay_out

CURSOR, MARK, ASCENDING, DESCENDING = ">", "●", "▲", "▼"
LEFT, RIGHT = "‹", "›"
_BOLD = Style(bold=True)


class NeuronTable(ScrollView, can_focus=True):
    """Neurons in an order, with a cursor that stays on its neuron when the order changes."""

    ALLOW_SELECT = False
    NOTHING = "no neuron passes the filter"

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "neuron-table--header",
        "neuron-table--by",
        "neuron-table--rank",
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
        scrollbar-size-vertical: 1;
        & > .neuron-table--header { background: $panel; color: $foreground; }
        & > .neuron-table--by { background: $panel; color: $text-accent; text-style: bold; }
        & > .neuron-table--rank { color: $text-muted; }
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
        Binding("up", "move(-1)", "up", show=False, id="table.up"),
        Binding("down", "move(1)", "down", show=False, id="table.down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="table.page_up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="table.page_down"),
        Binding("home", "first", "first", show=False, id="table.first"),
        Binding("end", "last", "last", show=False, id="table.last"),
        Binding("left", "sideways(-1)", "columns to the left", show=False, id="table.left"),
        Binding("right", "sideways(1)", "columns to the right", show=False, id="table.right"),
        Binding("enter", "choose", "open", show=False, id="table.open"),
        Binding("space", "mark", "mark", show=False, id="table.mark"),
    ]

    class About(Message):
        """Something about a table. Base of its messages."""

        def __init__(self, table: NeuronTable) -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> NeuronTable:
            """The table, for `@on` selectors."""
            return self.table

    class Moved(About):
        """The cursor is on another neuron."""

        def __init__(self, table: NeuronTable, place: int, row: int) -> None:
            super().__init__(table)
            self.place, self.row = place, row

    class Chosen(About):
        """A neuron is to be opened: enter, or a double click."""

        def __init__(self, table: NeuronTable, row: int) -> None:
            super().__init__(table)
            self.row = row

    class Marked(About):
        """A neuron is to be marked, or no longer: space, or a click in the gutter. The table
        changes nothing by itself; give it the new marks with `mark_rows`."""

        def __init__(self, table: NeuronTable, row: int) -> None:
            super().__init__(table)
            self.row = row

    class Sorted(About):
        """A column's name was clicked. The table waits for the new order with `show`."""

        def __init__(self, table: NeuronTable, name: str) -> None:
            super().__init__(table)
            self.name = name

    class Unreadable(About):
        """A column could not be read, and shows as missing."""

        def __init__(self, table: NeuronTable, name: str, error: GlulensError) -> None:
            super().__init__(table)
            self.name, self.error = name, error

    class Read(Message, bubble=False):
        """A column was read, well or not. For the table itself."""

        def __init__(self, reader: Reader, name: str, error: GlulensError | None) -> None:
            super().__init__()
            self.reader, self.name, self.error = reader, name, error

    place: reactive[int] = reactive(0, repaint=False)
    """Where the cursor is in the order, from 0."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._table: Table | None = None
        self._reader: Reader | None = None
        self._names: tuple[str, ...] = ()
        self._order: np.ndarray = np.empty(0, np.int32)
        self._marks: np.ndarray | None = None
        self._by, self._descending = "", False
        self._first = 0  # number of the first column shown
        self._label = 0  # cells
        self._header = 1  # lines
        self._layout_now: Layout | None = None
        self._width = 0  # for which the layout was made
        self._to_reveal = ""  # a column to bring into view
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
            self._reader = Reader(columns, self._ready)
            self._label = self._reader.label_width()
        height = self.place - self.scroll_offset.y
        self._to_reveal = by if by != self._by else ""
        self._table, self._names, self._order = columns, tuple(names), order
        self._by, self._descending, self._marks = by, descending, marks
        self._first = min(self._first, max(len(self._names) - 1, 0))
        self._header = 1 + any(header_of(name)[0] for name in names)
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
        self._bring_into_view()
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
        return self._header

    @property
    def room(self) -> int:
        """Rows that fit below the header."""
        return max(self.scrollable_size.height - self.header_height, 1)

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The columns in view."""
        layout = self._layout
        return () if layout is None else tuple(column.name for column in layout.columns)

    # Moving

    def validate_place(self, place: int) -> int:
        return min(max(place, 0), max(len(self._order) - 1, 0))

    def watch_place(self, before: int, place: int) -> None:
        header = self.header_height
        self.refresh_lines(header + before)
        self.refresh_lines(header + place)
        self._bring_into_view()
        if self.row is not None:
            self.post_message(self.Moved(self, place, self.row))

    def _bring_into_view(self) -> None:
        """The cursor, and a column that has just been sorted by."""
        if not self.size:  # not yet laid out; the first resize comes back here
            return
        top, room = self.scroll_offset.y, self.room
        if not top <= self.place < top + room:
            y = self.place if self.place < top else self.place - room + 1
            self.scroll_to(y=y, animate=False, force=True)
        name, self._to_reveal = self._to_reveal, ""
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
        self._bring_into_view()
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
        layout = self._layout
        if layout is not None and (layout.first > 0 if step < 0 else layout.right):
            self._scroll_columns(layout.first + step)

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
            name = self._layout.name_at(at.x) if self._layout is not None else None
            if name is not None:
                self.post_message(self.Sorted(self, name))
            return
        place = line + self.scroll_offset.y
        if place >= len(self._order):
            return
        self.place = place
        if at.x < GUTTER:
            self.action_mark()
        elif event.chain == 2:
            self.action_choose()

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
        self._bring_into_view()

    # Drawing

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles_now = {}

    @property
    def _ground(self) -> Style:
        """The table's own style."""
        if "" not in self._styles_now:
            self._styles_now[""] = self.rich_style
        return self._styles_now[""]

    def _style(self, name: str) -> Style:
        """A component's style on the table's own; without colour, reversed where that carries
        meaning."""
        if name not in self._styles_now:
            style = self.get_component_rich_style(f"neuron-table--{name}")
            if name in ("cursor", "header") and self.app.no_color:
                style = Style(bold=True, reverse=True) if name == "cursor" else style + _BOLD
            self._styles_now[name] = style
        return self._styles_now[name]

    def _ready(self, reader: Reader, name: str, error: GlulensError | None) -> None:
        self.post_message(self.Read(reader, name, error))

    def on_neuron_table_read(self, message: Read) -> None:
        """Show a column that came late; say so if one cannot be read."""
        if message.reader is not self._reader:  # of a table shown before
            return
        if message.error is not None:
            self.post_message(self.Unreadable(self, message.name, message.error))
        if message.name in message.reader.awaited:
            message.reader.awaited.discard(message.name)
            self._layout_now = None
            self.refresh()

    @property
    def _layout(self) -> Layout | None:
        # A scrollbar that comes or goes changes the width without a resize.
        width = self.scrollable_size.width
        if self._reader is None:
            return None
        if self._layout_now is None or self._width != width:
            self._width = width
            self._layout_now = lay_out(
                self._reader,
                self._names,
                self._first,
                rows=len(self._order),
                label=self._label,
                width=width,
            )
            self._first = self._layout_now.first
        return self._layout_now

    def render_line(self, y: int) -> Strip:
        """A line of what is in view; the first are the header's."""
        header, layout, width = self.header_height, self._layout, self.scrollable_size.width
        if layout is None:
            return Strip.blank(width, self._ground)
        if y < header:
            return self._header_line(layout, width, upper=y < header - 1)
        place = y - header + self.scroll_offset.y
        if place < len(self._order):
            return self._row_line(layout, width, place)
        if not len(self._order) and y == header + 1:
            said = fitted(f"{' ' * (GUTTER + 1)}{self.NOTHING}", width)
            return Strip([Segment(said, self._style("nothing"))], width)
        return Strip.blank(width, self._ground)

    def _header_line(self, layout: Layout, width: int, *, upper: bool) -> Strip:
        plain, by = self._style("header"), self._style("by")
        arrow = DESCENDING if self._descending else ASCENDING
        rank, label = ("", "") if upper else ("rank", "neuron")
        left = f"{' ' * GUTTER} " + (f"{rank:>{layout.rank}}  " if layout.rank else "")
        edge = LEFT if layout.first and not upper else "│"
        segments = [Segment(f"{left}{fitted(label, layout.label)} {edge}", plain)]
        for column in layout.columns:
            chosen = column.name == self._by
            # The arrow stands in the gap, so that sorting moves nothing.
            text = (arrow if chosen and not upper else "") + column.header[not upper]
            text = fitted(text, GAP + column.width, "right")
            segments.append(Segment(text, by if chosen else plain))
        used = layout.fixed + sum(GAP + column.width for column in layout.columns)
        if used < width:
            more = RIGHT if layout.right and not upper else " "
            segments.append(Segment(more.rjust(width - used), plain))
        return Strip(segments, max(used, width))

    def _row_line(self, layout: Layout, width: int, place: int) -> Strip:
        assert self._table is not None
        row = int(self._order[place])
        marked = self._marks is not None and bool(self._marks[row])
        here = place == self.place
        gutter = f"{CURSOR if here else ' '}{MARK if marked else ' '}"
        rank = f" {place + 1:>{layout.rank},}  " if layout.rank else " "
        label = f"{fitted(safe(self._table.label(row)), layout.label)} │"
        numbers = [column.cell(row).rjust(GAP + column.width) for column in layout.columns]
        used = layout.fixed + sum(map(len, numbers))
        numbers.append(" " * max(width - used, 0))
        length = max(used, width)
        if here:
            text = "".join((gutter, rank, label, *numbers))
            return Strip([Segment(text, self._style("cursor"))], length)
        ground = self._style("odd") if place % 2 else self._ground
        names = [column.name for column in layout.columns]
        by = names.index(self._by) if self._by in names else len(numbers)
        segments = (
            Segment(gutter, ground + self._partial("mark")),
            Segment(rank, ground + self._partial("rank")),
            Segment(label, ground + self._partial("mark") if marked else ground),
            Segment("".join(numbers[:by]), ground),
            Segment("".join(numbers[by : by + 1]), ground + self._partial("sorted")),
            Segment("".join(numbers[by + 1 :]), ground),
        )
        return Strip([segment for segment in segments if segment.text], length)

    def _partial(self, name: str) -> Style:
        """A component's style without the ground that it stands on."""
        key = f"{name} alone"
        if key not in self._styles_now:
            style = self.get_component_rich_style(f"neuron-table--{name}")
            self._styles_now[key] = Style(color=style.color, bold=style.bold)
        return self._styles_now[key]
