"""One column twice: of two runs, or of the base and tuned models of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from textual.app import ComposeResult
from textual.widgets import Static

from ..errors import UsageError
from ..neuron_keys import labels
from .columns import Columns
from .glyphs import cells, safe
from .grid import NeuronTable
from .ordering import ascending
from .session import Session, write_text
from .view import TableView, bindings

BASE, TUNED = "base_", "tuned_"
NAMES = ("a", "b", "shift", "rank a", "rank b", "rank shift")


class Pair:
    """Two columns of the same neurons side by side, as a table.

    Columns: `a`, `b`, `shift` (b - a), `rank a` and `rank b` (place within the layer, from 0), and
    `rank shift`.
    """

    def __init__(self, columns: Columns, a: np.ndarray, b: np.ndarray) -> None:
        self._columns = columns
        first, second = (np.empty(columns.n, np.int32) for _ in range(2))
        for layer in columns.layers:
            rows = columns.rows_of(layer)
            for values, place in ((a, first), (b, second)):
                order = ascending(values[rows])
                place[rows.start + order] = np.arange(len(order), dtype=np.int32)
        shift = np.asarray(b, np.float64) - np.asarray(a, np.float64)
        moved = second - first
        self._arrays: dict[str, np.ndarray] = dict(
            zip(NAMES, (a, b, shift, first, second, moved), strict=True)
        )
        self.order = ascending(np.abs(shift), descending=True)
        """Rows, those that moved furthest first."""

    @property
    def layer(self) -> np.ndarray:
        """As in the run's table."""
        return self._columns.layer

    @property
    def neuron(self) -> np.ndarray:
        """As in the run's table."""
        return self._columns.neuron

    def __getitem__(self, name: str, /) -> np.ndarray:
        """One of `NAMES`."""
        return self._arrays[name]

    def label(self, row: int, /) -> str:
        """What a neuron is called."""
        return self._columns.label(row)


def pairs(session: Session) -> tuple[tuple[str, str, str], ...]:
    """What can be compared: a name, the first column, the second.

    Raises:
        UsageError: there is nothing to compare, or the runs are not of the same neurons.
    """
    columns, other = session.columns, session.other
    if other is not None:
        if other.widths != columns.widths or other.n != columns.n:
            raise UsageError(
                f"the runs are of models with {columns.n:,} and {other.n:,} neurons; only runs of "
                "the same widths can be compared"
            )
        both = tuple((name, name, name) for name in columns.names if name in other.names)
        if not both:
            raise UsageError("the two runs have no column in common")
        return both
    found = tuple(
        (name.removeprefix(BASE), name, TUNED + name.removeprefix(BASE))
        for name in columns.names
        if name.startswith(BASE) and TUNED + name.removeprefix(BASE) in columns
    )
    if not found:
        raise UsageError(
            "nothing to compare with: open two runs (glulens browse RUN RUN2), or one with base_ "
            "and tuned_ columns"
        )
    return found


class Compare(TableView):
    """Values, shifts and rank shifts; those that moved furthest first."""

    NAME = "compare"
    BINDINGS = bindings("compare")
    DEFAULT_CSS = "Compare #pair { height: auto; max-height: 3; padding: 0 1; }"

    def __init__(self) -> None:
        super().__init__()
        self._at = 0
        self._pair: Pair | None = None
        self._shown = ""

    def compose(self) -> ComposeResult:
        """What is compared, and the table."""
        yield Static(id="pair", markup=False)
        yield NeuronTable()

    def action_pair(self, step: int) -> None:
        """Another column."""
        self._at += step
        self.refresh_view()

    def refresh_view(self) -> None:
        """Show the column, and the marks."""
        session = self.session
        try:
            found = pairs(session)
        except UsageError as error:
            self.query_one("#pair", Static).update(safe(str(error)))
            return
        name, first, second = found[self._at % len(found)]
        if name == self._shown and self._pair is not None:
            self._draw(name, self._pair)
            return

        def work() -> Pair:
            other = session.other or session.columns
            return Pair(session.columns, session.columns[first], other[second])

        def done(pair: Pair) -> None:
            self._shown, self._pair = name, pair
            self._draw(name, pair)

        self.browser.work_on(f"comparing {name}", work, done, group="compare")

    def _draw(self, name: str, pair: Pair) -> None:
        session = self.session
        keep = np.zeros(session.columns.n, bool)
        keep[session.order] = True
        order = pair.order[keep[pair.order]]
        self.query_one(NeuronTable).show(
            pair,
            NAMES,
            order,
            by="shift",
            descending=True,
            marks=session.marks,
            cursor_row=session.state.cursor,
        )
        a, b = pair["a"], pair["b"]
        there = np.isfinite(a) & np.isfinite(b)
        moved = int(np.count_nonzero(a[there] != b[there]))
        ranks = [
            np.corrcoef(pair["rank a"][rows], pair["rank b"][rows])[0, 1]
            for rows in map(session.columns.rows_of, session.columns.layers)
            if rows.stop - rows.start > 1
        ]
        told = f"{float(np.mean(ranks)):.3f}" if ranks else "-"
        title = (
            f"{name}: {moved:,} of {len(a):,} neurons differ; rank correlation within layers {told}"
        )
        self.query_one("#pair", Static).update(cells(safe(title), max(self.app.size.width - 2, 1)))

    def file_name(self) -> str:
        """After the column."""
        return f"compare-{self._shown}.csv"

    def export_to(self, path: Path) -> str:
        """The comparison, those that moved furthest first."""
        import polars

        if self._pair is None:
            raise UsageError("nothing is compared")
        order = self._pair.order
        frame = polars.DataFrame(
            {
                "label": labels(self.session.columns.keys, order),
                **{name.replace(" ", "_"): self._pair[name][order] for name in NAMES},
            }
        )
        write_text(path, frame.write_csv())
        return f"{len(order):,} neurons"
