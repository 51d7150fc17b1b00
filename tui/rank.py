"""The ranking: the table of neurons, and beside it, where there is room, the neuron itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from textual.app import ComposeResult
from textual.containers import Horizontal

from ..neuron_keys import labels
from .grid import NeuronTable
from .portrait import Portrait
from .session import write_text
from .view import TableView

_WIDE = 130
"""Cells of the screen from which on the neuron is shown beside the table."""


class Rank(TableView):
    """The neurons that pass the filter, in order."""

    NAME = "rank"
    DEFAULT_CSS = """
    Rank Portrait { width: 56; border-left: vkey $panel; display: none; }
    Rank.wide Portrait { display: block; }
    """

    def compose(self) -> ComposeResult:
        """The table and the neuron."""
        with Horizontal():
            yield NeuronTable()
            yield Portrait()

    def refresh_view(self) -> None:
        """Show the order and the cursor."""
        session, state = self.session, self.session.state
        self.query_one(NeuronTable).show(
            session.columns,
            session.names,
            session.order,
            by=state.by,
            descending=state.descending,
            marks=session.marks,
            cursor_row=state.cursor,
        )
        self._portray()

    def _portray(self) -> None:
        if self.has_class("wide"):
            self.query_one(Portrait).show(self.session.state.cursor)

    def on_resize(self) -> None:
        """The neuron comes and goes with the room for it."""
        self.set_class(self.app.size.width >= _WIDE, "wide")
        self._portray()

    def on_neuron_table_sorted(self, message: NeuronTable.Sorted) -> None:
        """A name was clicked."""
        self.browser.rank_by(message.name)

    def file_name(self) -> str:
        """After what is ranked by."""
        return f"rank-{self.session.state.by}.csv"

    def export_to(self, path: Path) -> str:
        """Every neuron that passes the filter, in order, with all columns as they are stored."""
        import polars

        columns, order = self.session.columns, self.session.order
        frame = polars.DataFrame(
            {
                "rank": np.arange(1, len(order) + 1),
                "label": labels(columns.keys, order),
                "layer": columns.layer[order],
                "neuron": columns.neuron[order],
                **{name: columns[name][order] for name in columns.names},
            }
        )
        write_text(path, frame.write_csv())
        return f"{len(order):,} neurons"
