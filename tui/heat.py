"""A heat map in half blocks: two rows a line, one prepared segment a cell.

Every pair of colours that can stand in a cell is made once; a redraw looks them up. Where there is
no colour a ramp of glyphs carries the values, a row a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.filter import ANSIToTruecolor, LineFilter
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from .glyphs import AMOUNTS, SIGNED, cells, drawn, fitted, levels, safe

Kind = Literal["diverging", "sequential"]
LEVELS = 33
"""Steps of a ramp; odd, so that one of them is zero."""
_NOTHING = LEVELS + 1  # code of where the grid has no cell; that of NaN is LEVELS
_CODES = LEVELS + 2
_RAMP_OF = {"diverging": SIGNED, "sequential": AMOUNTS}
# Blue and orange, as in the figures, and viridis: told apart by colour-blind eyes. On a dark ground
# the middle is dark and the ends are light, so that what is near zero recedes.
RAMPS: dict[tuple[Kind, bool], tuple[str, ...]] = {
    ("diverging", False): ("#0072B2", "#FFFFFF", "#D55E00"),
    ("diverging", True): ("#56B4E9", "#0072B2", "#262626", "#D55E00", "#F0A030"),
    ("sequential", False): ("#FDE725", "#5EC962", "#21918C", "#3B528B", "#440154"),
    ("sequential", True): ("#440154", "#3B528B", "#21918C", "#5EC962", "#FDE725"),
}
GREY = (110, 110, 110)
"""Of what is missing."""
_WIDEST = 9  # cells that a column may take
_LABEL = 18  # cells that a row's label may take
_LEGEND = 13  # cells of the ramp below


@lru_cache
def colours(kind: Kind, dark: bool) -> tuple[tuple[int, int, int], ...]:
    """The ramp's `LEVELS` colours from low to high, then that of a missing value."""
    stops = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in RAMPS[kind, dark]])
    at = np.linspace(0, len(stops) - 1, LEVELS)
    ramp = np.stack([np.interp(at, np.arange(len(stops)), stops[:, k]) for k in range(3)], 1)
    ramp = [(int(r), int(g), int(b)) for r, g, b in ramp.round().tolist()]
    return (*ramp, GREY)


@lru_cache(maxsize=16)
def _blocks(kind: Kind, dark: bool, width: int, ground: Color) -> list[Segment]:
    """A segment for every pair of codes, upper * codes + lower."""
    shades = [*(Color.from_rgb(*rgb) for rgb in colours(kind, dark)), ground]
    return [Segment("▀" * width, Style(color=up, bgcolor=low)) for up in shades for low in shades]


class _Frame(NamedTuple):
    """What a redraw needs to know of the terminal and the sizes, gathered once."""

    size: Size
    theme: str
    glyphs: bool
    """Whether glyphs carry the values, for want of colours."""
    halved: bool
    """Whether a line holds two rows."""
    label: int
    """Cells of the rows' labels, with a space before and after."""
    cell: int
    """Cells of a column."""
    visible: int
    """Columns that fit."""
    dark: bool
    ground: Color
    plain: Style
    quiet: Style
    here: Style

    @property
    def room(self) -> int:
        """Lines between the names above and the legend below."""
        return max(self.size.height - 2, 1)

    @property
    def rows(self) -> int:
        """Rows that a line holds."""
        return 1 + self.halved


class HeatMap(ScrollView, can_focus=True):
    """Numbers by row and column as colours, with a cursor on a cell."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {"heat-map--label", "heat-map--here"}
    DEFAULT_CSS = """
    HeatMap {
        background: $surface;
        color: $foreground;
        height: 1fr;
        overflow-x: hidden;
        overflow-y: auto;
        scrollbar-size-vertical: 1;
        & > .heat-map--label { color: $text-muted; }
        & > .heat-map--here { color: $foreground; text-style: bold; }
        &:focus > .heat-map--here { color: $text-accent; text-style: bold; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1, 0)", "up", show=False, id="map.up"),
        Binding("down", "move(1, 0)", "down", show=False, id="map.down"),
        Binding("left", "move(0, -1)", "left", show=False, id="map.left"),
        Binding("right", "move(0, 1)", "right", show=False, id="map.right"),
        Binding("pageup", "page(-1)", "page up", show=False, id="map.page_up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="map.page_down"),
        Binding("home", "move(0, -1000000)", "first column", show=False, id="map.first"),
        Binding("end", "move(0, 1000000)", "last column", show=False, id="map.last"),
        Binding("enter", "choose", "open", show=False, id="map.open"),
    ]

    class At(Message):
        """Something about a cell. Base of the map's messages."""

        def __init__(self, map: HeatMap, row: int, column: int) -> None:
            super().__init__()
            self.map, self.row, self.column = map, row, column

        @property
        def control(self) -> HeatMap:
            """The map, for `@on` selectors."""
            return self.map

    class Moved(At):
        """The cursor is on another cell."""

    class Chosen(At):
        """A cell is to be opened: enter, or a double click."""

    cursor: reactive[tuple[int, int]] = reactive((0, 0))
    """Row and column."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._grid = np.zeros((0, 0))
        self._rows: tuple[str, ...] = ()
        self._heads: tuple[str, ...] = ()
        self._kind: Kind = "sequential"
        self._ends = 0.0, 1.0
        self._codes = np.zeros((0, 0), np.int64)
        self._glyphs = np.zeros((0, 0), "U1")
        self._left = 0  # number of the first column shown
        self._frame_now: _Frame | None = None

    # What is shown

    def show(
        self,
        grid: np.ndarray,
        rows: Sequence[str],
        columns: Sequence[str],
        *,
        kind: Kind = "sequential",
        ends: tuple[float, float] | None = None,
        cursor: tuple[int, int] | None = None,
    ) -> None:
        """Show other numbers.

        Args:
            grid: numbers [rows, columns]; NaN is grey, what lies beyond the ends is as the end.
            rows, columns: what they are called; any text.
            kind: `diverging` for numbers about zero, else `sequential`.
            ends: values of the first and the last colour; by default the least and the largest
                finite one, for `diverging` the largest absolute one on both sides of zero.
            cursor: row and column; by default it stays.

        Raises:
            ValueError: as many labels as rows and columns are needed.
        """
        grid = np.asarray(grid, np.float64)
        if grid.shape != (len(rows), len(columns)):
            raise ValueError(
                f"{len(rows)} rows and {len(columns)} columns are named, the grid is {grid.shape}"
            )
        self._grid, self._kind = grid, kind
        self._rows, self._heads = tuple(map(safe, rows)), tuple(map(safe, columns))
        self._ends = low, high = ends or _ends(grid, kind)
        # Halved first: the distance of two floats may be more than a float.
        span = high / 2 - low / 2
        shares = (grid / 2 - low / 2) / span if span > 0 else np.where(np.isnan(grid), grid, 0.5)
        self._codes = levels(shares, LEVELS)
        self._glyphs = drawn(shares, _RAMP_OF[kind])
        self._frame_now = None
        self.set_reactive(HeatMap.cursor, self.validate_cursor(cursor or self.cursor))
        self._fit()
        self.refresh()

    @property
    def value(self) -> float:
        """The number under the cursor; NaN without one."""
        return float(self._grid[self.cursor]) if self._grid.size else float("nan")

    # Measures

    @property
    def _frame(self) -> _Frame:
        size, theme = self.scrollable_size, self.app.theme
        kept = self._frame_now
        if kept is None or kept.size != size or kept.theme != theme:
            self._frame_now = kept = self._measured(size, theme)
        return kept

    def _measured(self, size: Size, theme: str) -> _Frame:
        # Without a terminal the picture goes to a file, which has all colours.
        few = self.app.console.color_system in (None, "standard") and not self.app.is_headless
        glyphs = self.app.no_color or few
        longest = max(map(cell_len, self._rows), default=0)
        label = min(longest, _LABEL, max(size.width // 3, 1)) + 2
        room = max(size.width - label, 0)
        cell = min(max(room // max(len(self._heads), 1), 1), _WIDEST)
        visible = min(room // cell, len(self._heads))
        self._scroll_columns(visible)
        return _Frame(
            size=size,
            theme=theme,
            glyphs=glyphs,
            halved=not glyphs and len(self._rows) > size.height - 2,
            label=label,
            cell=cell,
            visible=visible,
            dark=self.app.current_theme.dark,
            ground=self.rich_style.bgcolor or Color.default(),
            plain=self.rich_style,
            quiet=self.get_component_rich_style("heat-map--label"),
            here=self.get_component_rich_style("heat-map--here"),
        )

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._frame_now = None

    def _fit(self) -> None:
        frame = self._frame
        self.virtual_size = Size(1, -(-len(self._rows) // frame.rows) + 2)
        if not self.size:  # not yet laid out; the first resize comes back here
            return
        line, top = self.cursor[0] // frame.rows, self.scroll_offset.y
        if not top <= line < top + frame.room:
            y = line if line < top else line - frame.room + 1
            self.scroll_to(y=y, animate=False, force=True)
        self._scroll_columns(frame.visible)

    def _scroll_columns(self, visible: int) -> None:
        """As little as brings the cursor into view and leaves no room on the right."""
        column = self.cursor[1]
        least, most = column - max(visible, 1) + 1, max(len(self._heads) - visible, 0)
        self._left = max(min(max(self._left, least), column, most), 0)

    def on_resize(self) -> None:
        """Keep the cursor in view."""
        self._fit()

    # Moving

    def validate_cursor(self, cursor: tuple[int, int]) -> tuple[int, int]:
        row, column = cursor
        return (
            min(max(row, 0), max(len(self._rows) - 1, 0)),
            min(max(column, 0), max(len(self._heads) - 1, 0)),
        )

    def watch_cursor(self) -> None:
        if self._grid.size:
            self._fit()
            self.post_message(self.Moved(self, *self.cursor))

    def action_move(self, down: int, right: int) -> None:
        """Go by so many rows and columns."""
        row, column = self.cursor
        self.cursor = row + down, column + right

    def action_page(self, pages: int) -> None:
        """Go by as many rows as are in view."""
        self.action_move(pages * self._frame.room * self._frame.rows, 0)

    def action_choose(self) -> None:
        """Open the cell."""
        if self._grid.size:
            self.post_message(self.Chosen(self, *self.cursor))

    def on_click(self, event: events.Click) -> None:
        """Go there; twice: open it. Of two rows on a line, the upper."""
        at = event.get_content_offset(self)
        if at is None or not self._grid.size:
            return
        event.stop()
        frame = self._frame
        row = (at.y - 1 + self.scroll_offset.y) * frame.rows
        across = (at.x - frame.label) // frame.cell
        inside = 1 <= at.y <= frame.room and 0 <= across < frame.visible
        if inside and row < len(self._rows):
            self.cursor = row, self._left + across
            if event.chain == 2:
                self.action_choose()

    # Drawing

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Without the filter that looks for the terminal's own colours: there are none here."""
        filters = super().get_line_filters()
        return [found for found in filters if not isinstance(found, ANSIToTruecolor)]

    def render_line(self, y: int) -> Strip:
        """A line of what is in view: names above, the legend below."""
        frame = self._frame
        if not self._grid.size:
            return Strip.blank(frame.size.width, frame.plain)
        if y == 0:
            return self._names_line(frame)
        if y == frame.size.height - 1:
            return self._legend_line(frame)
        row = (y - 1 + self.scroll_offset.y) * frame.rows
        if row >= len(self._rows):
            return Strip.blank(frame.size.width, frame.plain)
        segments = [self._row_label(frame, row), *self._row_cells(frame, row)]
        used = frame.label + frame.visible * frame.cell
        if used < frame.size.width:
            segments.append(Segment(" " * (frame.size.width - used), frame.plain))
        return Strip(segments, max(used, frame.size.width))

    def _row_label(self, frame: _Frame, row: int) -> Segment:
        here = self.cursor[0]
        shown = here if row < here < row + frame.rows else row
        text = fitted(self._rows[shown], frame.label - 2, "right")
        if shown == here:
            return Segment(f">{text} ", frame.here)
        return Segment(f" {text} ", frame.quiet)

    def _row_cells(self, frame: _Frame, row: int) -> list[Segment]:
        left, right = self._left, self._left + frame.visible
        if frame.glyphs:
            glyphs = self._glyphs[row, left:right].tolist()
            found = [Segment(glyph * frame.cell, frame.plain) for glyph in glyphs]
        else:
            upper = lower = self._codes[row, left:right]
            if frame.halved and row + 1 < len(self._rows):
                lower = self._codes[row + 1, left:right]
            elif frame.halved:
                lower = np.full_like(upper, _NOTHING)
            blocks = _blocks(self._kind, frame.dark, frame.cell, frame.ground)
            found = [blocks[code] for code in (upper * _CODES + lower).tolist()]
        at, column = self.cursor
        if row <= at < row + frame.rows and left <= column < right:
            found[column - left] = self._under_cursor(frame)
        return found

    def _under_cursor(self, frame: _Frame) -> Segment:
        """Brackets where there is room, else a sign, or where glyphs count the glyph reversed."""
        if frame.glyphs:
            glyph = str(self._glyphs[self.cursor])
            text = f"[{glyph * (frame.cell - 2)}]" if frame.cell > 2 else glyph * frame.cell
            return Segment(text, frame.here + Style(reverse=True))
        rgb = colours(self._kind, frame.dark)[self._codes[self.cursor]]
        light = np.dot(rgb, (0.299, 0.587, 0.114)) > 127
        ink = Color.from_rgb(0, 0, 0) if light else Color.from_rgb(255, 255, 255)
        text = f"[{' ' * (frame.cell - 2)}]" if frame.cell > 2 else "◆".ljust(frame.cell)
        return Segment(text, Style(color=ink, bgcolor=Color.from_rgb(*rgb), bold=True))

    def _names_line(self, frame: _Frame) -> Strip:
        """As many of the columns' names as fit, that of the cursor's before all others."""
        end, here = frame.size.width - frame.label, self.cursor[1]
        taken: dict[int, tuple[int, Segment]] = {}  # from where to where
        for column in dict.fromkeys([here, *range(self._left, self._left + frame.visible)]):
            text = cells(self._heads[column], min(_LABEL, end))
            start = min((column - self._left) * frame.cell, end - cell_len(text))
            stop = start + cell_len(text)
            free = all(stop < other or to < start for other, (to, _) in taken.items())
            if text and start >= 0 and free:
                style = frame.here if column == here else frame.quiet
                taken[start] = stop, Segment(text, style)
        segments, x = [Segment(" " * frame.label, frame.plain)], 0
        for start, (stop, segment) in sorted(taken.items()):
            segments += [Segment(" " * (start - x), frame.plain), segment]
            x = stop
        strip = Strip([segment for segment in segments if segment.text], frame.label + x)
        return strip.adjust_cell_length(frame.size.width, frame.plain)

    def _legend_line(self, frame: _Frame) -> Strip:
        """The ramp with its ends, and the number under the cursor."""
        low, high = self._ends
        row, column = self.cursor
        value = "missing" if np.isnan(self.value) else f"{self.value:.4g}"
        said = f"  {cells(self._rows[row], _LABEL)}, {cells(self._heads[column], _LABEL)}: {value}"
        if frame.glyphs:
            ramp = [Segment(_RAMP_OF[self._kind], frame.quiet)]
        else:
            blocks = _blocks(self._kind, frame.dark, 1, frame.ground)
            steps = np.linspace(0, LEVELS - 1, _LEGEND).round().astype(int)
            ramp = [blocks[code * (_CODES + 1)] for code in steps.tolist()]
        ends = Segment(f" {low:.3g} ", frame.quiet), Segment(f" {high:.3g}", frame.quiet)
        strip = Strip([ends[0], *ramp, ends[1], Segment(said, frame.here)])
        return strip.adjust_cell_length(frame.size.width, frame.plain)


def _ends(grid: np.ndarray, kind: Kind) -> tuple[float, float]:
    finite = grid[np.isfinite(grid)]
    if not finite.size:
        return (-1.0, 1.0) if kind == "diverging" else (0.0, 1.0)
    if kind == "diverging":
        reach = float(np.abs(finite).max())
        return -reach, reach
    return float(finite.min()), float(finite.max())
