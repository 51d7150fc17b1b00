"""`glulens browse`: the ranking table of a run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import polars
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Header, Label, Select

from ..errors import UsageError
from ..rundir import NEURONS, RunDirectory, open_run
from .ranking import TOP, Ranking, labels, shown, sortable

ALL_LAYERS = "all layers"


class Browser(App[None]):
    """One table: the neurons of a run, ranked."""

    TITLE = "glulens"
    CSS = """
    #controls { height: 3; }
    #controls Label { padding: 1 1 0 2; }
    #by { width: 32; }
    #layer { width: 22; }
    #status { padding: 0 2; height: 1; color: $text-muted; }
    DataTable { height: 1fr; }
    """
    BINDINGS: ClassVar = [
        Binding("r", "flip", "reverse order"),
        Binding("right_square_bracket", "step(1)", "next column", key_display="]"),
        Binding("left_square_bracket", "step(-1)", "previous column", key_display="["),
        Binding("full_stop", "layer(1)", "next layer", key_display="."),
        Binding("comma", "layer(-1)", "previous layer", key_display=","),
        Binding("a", "all_layers", "all layers"),
        Binding("q", "quit", "quit"),
    ]

    def __init__(self, run: RunDirectory, neurons: polars.DataFrame) -> None:
        super().__init__()
        self._neurons = neurons
        self._columns = sortable(neurons)
        self._layers = neurons["layer"].unique().sort().to_list()
        self.ranking = Ranking(by=self._columns[0])
        model = run.manifest.get("model") or {}
        self.sub_title = f"{run.path.name}: {model.get('name', 'unknown model')}"

    def compose(self) -> ComposeResult:
        """Header, the two choices, the table, and a line that says what is shown."""
        yield Header()
        with Horizontal(id="controls"):
            yield Label("rank by")
            yield Select(
                [(name, name) for name in self._columns],
                value=self.ranking.by,
                allow_blank=False,
                id="by",
            )
            yield Label("layer")
            yield Select(
                [(ALL_LAYERS, -1), *((f"layer {n}", n) for n in self._layers)],
                value=-1,
                allow_blank=False,
                id="layer",
            )
        yield DataTable(cursor_type="row", zebra_stripes=True, fixed_columns=2)
        yield Label("", id="status")
        yield Footer()

    def on_mount(self) -> None:
        """Show the first ranking, with the keys on the table."""
        self._show()
        self.query_one(DataTable).focus()

    def _show(self) -> None:
        rows = self.ranking.apply(self._neurons)
        names = shown(self._neurons, self.ranking.by)
        table = self.query_one(DataTable)
        table.clear(columns=True)
        arrow = " ▼" if self.ranking.descending else " ▲"
        for name in ("rank", "neuron"):
            table.add_column(Text(name, justify="right"), key=name)
        for name in names:
            mark = arrow if name == self.ranking.by else ""
            table.add_column(Text(name + mark, justify="right"), key=name)
        cells = [_cells(rows[name]) for name in names]
        for place, (rank, label) in enumerate(zip(rows["rank"], labels(rows), strict=True)):
            values = [str(rank), label, *(column[place] for column in cells)]
            table.add_row(*(Text(value, justify="right") for value in values))
        layer = self.ranking.layer
        total = self._neurons.height
        if layer is not None:
            total = self._neurons.filter(polars.col("layer") == layer).height
        where = "all layers" if layer is None else f"layer {layer}"
        order = "highest" if self.ranking.descending else "lowest"
        self.query_one("#status", Label).update(
            f"{rows.height:,} of {total:,} neurons of {where}, {order} {self.ranking.by} first"
            + (f" (the table holds the first {TOP})" if total > TOP else "")
        )

    def on_select_changed(self, event: Select.Changed) -> None:
        """A choice above the table; the value may also come from a key, and is then known."""
        value: Any = event.value
        if event.select.id == "by":
            self._rank(Ranking(value, self.ranking.descending, self.ranking.layer))
        else:
            self._rank(
                Ranking(self.ranking.by, self.ranking.descending, None if value < 0 else value)
            )

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        """A click on a column ranks by it; another turns the order round."""
        name = str(event.column_key.value)
        if name == self.ranking.by:
            self.action_flip()
        elif name in self._columns:
            self.query_one("#by", Select).value = name

    def _rank(self, ranking: Ranking) -> None:
        if ranking != self.ranking:
            self.ranking = ranking
            self._show()

    def action_flip(self) -> None:
        """Reverse the order."""
        self._rank(self.ranking.flipped())

    def action_step(self, step: int) -> None:
        """Rank by the next or the previous column."""
        place = self._columns.index(self.ranking.by) + step
        self.query_one("#by", Select).value = self._columns[place % len(self._columns)]

    def action_layer(self, step: int) -> None:
        """Go to the next or the previous layer; all layers come before the first."""
        choices = [-1, *self._layers]
        now = -1 if self.ranking.layer is None else self.ranking.layer
        self.query_one("#layer", Select).value = choices[(choices.index(now) + step) % len(choices)]

    def action_all_layers(self) -> None:
        """Drop the layer filter."""
        self.query_one("#layer", Select).value = -1


def _cells(values: polars.Series) -> list[str]:
    """A column's values with one number of decimals, so that they can be compared down the
    column."""
    if values.dtype.is_integer():
        return ["-" if value is None else f"{value:,}" for value in values]
    finite = values.filter(values.is_finite()).abs()
    largest = float(finite.max() or 0)  # pyright: ignore
    decimals = min(6, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 1
    return [
        "-" if value is None or value != value else f"{value:,.{decimals}f}" for value in values
    ]


def browse(path: str | Path) -> None:
    """Open the browser on a run directory.

    Raises:
        RunError: no such run, or nothing in it to rank.
        UsageError: there is no terminal to draw on.
    """
    run = open_run(path)
    # Textual reads keys from stdin and draws on stderr; without them it would wait for ever.
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"browse needs a terminal; to read {path} elsewhere, open its {NEURONS}")
    Browser(run, run.neurons()).run()
