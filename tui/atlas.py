"""Layers against tenths of magnitude: where in the model a column is large."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

from .columns import Columns
from .glyphs import cells, safe
from .heat import HeatMap
from .ordering import ascending, tenths
from .view import View, bindings

TENTHS = 10
_WIDE = 110  # cells of the screen from which on the cell is described beside the map


def shares(columns: Columns, by: str, value: str) -> np.ndarray:
    """log2 of a cell's mean |value| over its layer's, [layers, tenths]: 0 where a tenth holds what
    its size would give it. NaN where there is nothing to compare."""
    key = "atlas", by, value
    if key not in columns.memo:
        found = np.full((len(columns.layers), TENTHS), np.nan)
        magnitudes, sizes = columns[by], columns[value]
        for at, layer in enumerate(columns.layers):
            rows = columns.rows_of(layer)
            size = np.abs(sizes[rows].astype(np.float64))
            there = np.isfinite(size)
            tenth = tenths(magnitudes[rows])[there]
            counts = np.bincount(tenth, minlength=TENTHS)
            sums = np.bincount(tenth, size[there], minlength=TENTHS)
            whole = size[there].mean() if there.any() else 0.0
            with np.errstate(divide="ignore", invalid="ignore"):
                found[at] = np.log2(sums / counts / whole)
        columns.memo[key] = found
    return columns.memo[key]


class Atlas(View):
    """A heat map; enter filters to the cell."""

    NAME = "atlas"
    BINDINGS = bindings("atlas")
    DEFAULT_CSS = """
    Atlas #title { height: 1; padding: 0 1; }
    Atlas #cell { width: 46; padding: 0 1; display: none; border-left: vkey $panel; }
    Atlas.wide #cell { display: block; }
    Atlas #cell Static { height: auto; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._value = ""
        self._shown: tuple[str, str] | None = None

    def compose(self) -> ComposeResult:
        """What is drawn, the map, the cell."""
        yield Static(id="title", markup=False)
        with Horizontal():
            yield HeatMap()
            with VerticalScroll(id="cell", can_focus=False):
                yield Static(markup=False)

    def focus_view(self) -> None:
        """The keys go to the map."""
        self.screen.set_focus(self.query_one(HeatMap))

    @property
    def value(self) -> str:
        """The column that colours the map: at first an attribution, where there is one."""
        columns = self.session.columns
        if not self._value:
            names = [f"attr_{name}" for name in columns.attributions]
            names += [f"dz_{name}" for name in columns.contrasts]
            self._value = (names or [columns.names[-1]])[0]
        return self._value

    def refresh_view(self) -> None:
        """Draw the map of the column that is ranked by."""
        columns, by, value = self.session.columns, self.session.state.by, self.value
        if self._shown == (by, value):
            return

        def draw(grid: np.ndarray) -> None:
            self._shown = by, value
            finite = np.abs(grid[np.isfinite(grid)])
            end = float(np.quantile(finite, 0.98)) if finite.size else 1.0
            self.query_one(HeatMap).show(
                grid,
                [f"layer {layer}" for layer in columns.layers],
                [str(tenth + 1) for tenth in range(TENTHS)],
                kind="diverging",
                ends=(-end or -1.0, end or 1.0),
            )
            title = f"|{value}| of each tenth by {by}, over its layer's mean (log2)"
            self.query_one("#title", Static).update(
                cells(safe(title), max(self.app.size.width - 2, 1))
            )
            self._describe()

        self.browser.work_on(
            "drawing the atlas", lambda: shares(columns, by, value), draw, group="atlas"
        )

    def on_resize(self) -> None:
        """The description comes and goes with the room for it."""
        self.set_class(self.app.size.width >= _WIDE, "wide")

    def on_heat_map_moved(self, message: HeatMap.Moved) -> None:
        """Describe the cell."""
        self._describe()

    def on_heat_map_chosen(self, message: HeatMap.Chosen) -> None:
        """Filter to the cell."""
        layer = self.session.columns.layers[message.row]
        by = self.session.state.by
        name = by if by.isidentifier() else f"`{by}`"
        self.browser.filter_to(f"layer == {layer} and tenth({name}) == {message.column + 1}")

    def action_value(self, step: int) -> None:
        """Colour by another column."""
        names = self.session.names
        self._value = names[(names.index(self.value) + step) % len(names)]
        self.refresh_view()

    def _describe(self) -> None:
        map = self.query_one(HeatMap)
        row, column = map.cursor
        columns, by = self.session.columns, self.session.state.by
        rows = columns.rows_of(columns.layers[row])
        inside = tenths(columns[by][rows]) == column
        magnitudes = columns[by][rows][inside]
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append(f"layer {columns.layers[row]}, tenth {column + 1}\n", "bold")
        text.append(f"{int(inside.sum()):,} neurons\n")
        if len(magnitudes):
            text.append(f"{safe(by)} {magnitudes.min():.4g} .. {magnitudes.max():.4g}\n")
        ratio = map.value
        told = "-" if math.isnan(ratio) else f"{2**ratio:.3g} x the layer's mean"
        text.append(f"|{safe(self.value)}| {told}\n")
        sizes = np.abs(columns[self.value][rows])
        best = np.flatnonzero(inside)[ascending(sizes[inside], descending=True)[:10]]
        if len(best):
            text.append("\nlargest\n", "bold")
        for at in best:
            value = columns[self.value][rows.start + at]
            text.append(f"{columns.label(rows.start + int(at)):<14} {value:+.4g}\n")
        text.append("\nenter: its neurons in the ranking", "dim")
        self.query_one("#cell Static", Static).update(text)

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """The map, a row a cell."""
        columns = self.session.columns
        grid = shares(columns, self.session.state.by, self.value)
        return ("layer", "tenth", "log2_ratio"), [
            (layer, tenth + 1, float(grid[at, tenth]))
            for at, layer in enumerate(columns.layers)
            for tenth in range(TENTHS)
        ]
