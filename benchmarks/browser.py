"""CPU time and memory of the browser's table, beside Textual's and textual-fastdatatable's.

    .venv/bin/python benchmarks/browser.py [NEURONS ...] [--rounds 5] [--without-datatable]

By default 46,080, 500,000 and 2,000,000 synthetic neurons with 20 columns of float32; all tables
show the same ten. Each case runs in a process of its own, on Textual's headless driver at 120x32:
lines are drawn and put together, but not sent to a terminal. Times are process CPU time with all
threads, from the call to the drawn screen; of page, sort and filter the median over rounds.

    first paint  a screen that stands empty gets the table, unsorted, once its columns are mapped
    page         a page down
    sort         by a column that was not sorted by yet, in the table's way
    filter       parse, evaluate, select from the order, show
    memory       resident after all of that, above the mapped columns and the empty screen
    peak         the same at its highest

    goals: first paint 0.15 s, page 20 ms, sort 0.5 s, filter 50 ms, memory 30 MB at 2,000,000

Textual's DataTable is given all rows as text, as it asks for, and only up to 50,000 neurons, where
it takes a dozen seconds. textual-fastdatatable runs where it is installed; it gets the frame as it
is, without ranks and labels, and has no filter.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars
from textual.app import App, ComposeResult
from textual.scroll_view import ScrollView
from textual.widget import Widget

from glulens.rundir import NEURONS, write_manifest, writing
from glulens.tui.columns import Columns, open_columns

SIZES = (46_080, 500_000, 2_000_000)
WIDTH, COLUMNS, SHOWN = 8192, 20, 10
SIZE = (120, 32)
LARGEST_DATATABLE = 50_000
FILTER = "layer < 30 and score_{} > pct(score_{}, 90) and not marked"
GOALS = {"first paint": 0.15, "page": 0.02, "sort": 0.5, "filter": 0.05, "memory": 30e6}
FIGURES = (*GOALS, "peak")
NAMES = [f"score_{k}" for k in range(COLUMNS)]
Figures = dict[str, float]


def make(path: Path, n: int) -> None:
    """A run directory with a table of this many neurons."""
    rng = np.random.default_rng(0)
    neurons = np.arange(n)
    keys = {"layer": (neurons // WIDTH).astype(np.int16),
            "neuron": (neurons % WIDTH).astype(np.int32)}  # fmt: skip
    scores = {name: rng.standard_normal(n, np.float32) for name in NAMES}
    with writing(path) as scratch:
        polars.DataFrame(keys | scores).write_parquet(scratch / NEURONS)
        write_manifest(scratch, {"command": "benchmark"})


def resident(which: str = "VmRSS") -> int:
    """Bytes in memory, now (`VmRSS`) or at most (`VmHWM`)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {which}")


class Screen(App[None]):
    """An empty screen, or one with a table that counts the lines it draws."""

    def __init__(self, table: Widget | None) -> None:
        super().__init__()
        self.table = table

    def compose(self) -> ComposeResult:
        if self.table is not None:
            yield self.table


def counting(kind: type[ScrollView]) -> Any:
    """The same kind of table, with the number of lines that it has drawn."""

    class Counting(kind):
        drawn = 0

        def render_line(self, y: int) -> Any:
            self.drawn += 1
            return super().render_line(y)

    return Counting


class Case:
    """One table over one run."""

    table: Any

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.steps: dict[str, Callable[[int], None]] = {"page": self.page, "sort": self.sort}

    def widget(self) -> Widget:
        """The table, empty where it can be."""
        raise NotImplementedError

    def show(self) -> None:
        """Fill it."""
        raise NotImplementedError

    def sort(self, round: int) -> None:
        """Sort by a column that was not sorted by yet."""
        raise NotImplementedError

    def page(self, round: int) -> None:
        """A page down."""
        self.table.action_page_down()


class Ours(Case):
    """The browser's table."""

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        # Imported here: a peer may run under another Textual, where ours need not load.
        from glulens.tui import filters, grid, state

        self.filters, self.grid, self.states = filters, grid, state
        self.state = state.State()
        self.steps["filter"] = self.filter

    def widget(self) -> Widget:
        self.table = counting(self.grid.NeuronTable)()
        return self.table

    def show(self) -> None:
        self._show(np.arange(self.columns.n, dtype=np.int32))

    def page(self, round: int) -> None:
        self.table.action_page(1)

    def sort(self, round: int) -> None:
        self.state = self.states.State(by=NAMES[round], descending=bool(round % 2))
        self._show(self.states.order(self.columns, self.state))

    def filter(self, round: int) -> None:
        wanted = self.filters.parse(FILTER.format(round, round), self.columns.names)
        self._show(self.states.order(self.columns, self.state, wanted.mask(self.columns)))

    def _show(self, rows: np.ndarray) -> None:
        self.table.show(
            self.columns, NAMES[:SHOWN], rows, by=self.state.by, cursor_row=self.table.row
        )


class Textuals(Case):
    """Textual's, with every cell as text."""

    def widget(self) -> Widget:
        from textual.widgets import DataTable

        self.table = counting(DataTable)(cursor_type="row", zebra_stripes=True, fixed_columns=2)
        return self.table

    def show(self) -> None:
        values = [[f"{v:.4f}" for v in self.columns[name].tolist()] for name in NAMES[:SHOWN]]
        rank = [str(k + 1) for k in range(self.columns.n)]
        label = [self.columns.label(row) for row in range(self.columns.n)]
        for name in ("rank", "neuron", *NAMES[:SHOWN]):
            self.table.add_column(name, key=name)
        self.table.add_rows(zip(rank, label, *values, strict=True))

    def sort(self, round: int) -> None:
        self.table.sort(NAMES[round], key=float, reverse=bool(round % 2))


class Fast(Case):
    """textual-fastdatatable, over a polars frame of the same arrays."""

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        from textual_fastdatatable import DataTable  # pyright: ignore

        self.kind = counting(DataTable)
        names = ("layer", "neuron", *NAMES[:SHOWN])
        self.frame = polars.DataFrame({name: columns[name] for name in names})

    def widget(self) -> Widget:
        self.table = self.kind(data=self.frame, cursor_type="row", fixed_columns=2)
        return self.table

    def sort(self, round: int) -> None:
        self.table.sort([(NAMES[round], "descending" if round % 2 else "ascending")])


CASES: dict[str, type[Case]] = {
    "glulens": Ours,
    "textual-fastdatatable": Fast,
    "Textual's DataTable": Textuals,
}


async def measure(case: Case, rounds: int) -> Figures:
    """Run one case."""
    found: Figures = {}

    async def drawn(work: Callable[[], Any]) -> float:
        """CPU seconds until the screen is drawn again."""
        before, start = getattr(case.table, "drawn", 0), time.process_time()
        work()
        while case.table.drawn == before:
            await asyncio.sleep(0.005)
        await pilot.pause()
        return time.process_time() - start

    # textual-fastdatatable takes its data when it is made, so that for it making it counts.
    late = not isinstance(case, Fast)
    app = Screen(case.widget() if late else None)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        if late:
            case.table.focus()
            await pilot.pause()
        base = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the highest is from now on
        if late:
            found["first paint"] = await drawn(case.show)
        else:
            start = time.process_time()
            table = case.widget()
            made = time.process_time() - start
            found["first paint"] = made + await drawn(lambda: app.mount(table))
            case.table.focus()
            await pilot.pause()
        for name, step in case.steps.items():
            times = [await drawn(lambda r=r, s=step: s(r)) for r in range(1, rounds + 1)]
            found[name] = median(times)
        found["memory"] = resident() - base
        found["peak"] = resident("VmHWM") - base
    return found


def one(name: str, path: Path, rounds: int) -> Figures:
    """One case in this process."""
    columns = open_columns(path)
    for column in NAMES:
        columns[column].max()  # every page of it is in memory
    return asyncio.run(measure(CASES[name](columns), rounds))


def row(name: str, n: int, found: Figures) -> str:
    """A line of the table."""
    cells = []
    for figure in FIGURES:
        value = found.get(figure)
        if value is None:
            cells.append("")
            continue
        if figure in ("memory", "peak"):
            text = f"{value / 1e6:,.1f} MB"
        else:
            text = f"{value * 1e3:,.1f} ms" if value < 1 else f"{value:,.1f} s"
        goal = GOALS.get(figure)
        if name == "glulens" and goal is not None and value > goal:
            text += " (missed)"
        cells.append(text)
    return f"| {n:,} | {name} | {' | '.join(cells)} |"


def main() -> None:
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("neurons", type=int, nargs="*", default=SIZES)
    read.add_argument("--rounds", type=int, default=5)
    read.add_argument("--without-datatable", action="store_true")
    read.add_argument("--one", nargs=2, metavar=("CASE", "RUN"), help=argparse.SUPPRESS)
    given = read.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], Path(given.one[1]), given.rounds)))
        return
    print(f"| neurons | table | {' | '.join(FIGURES)} |")
    print("|--:|---|" + "--:|" * len(FIGURES))
    with tempfile.TemporaryDirectory() as folder:
        for n in given.neurons:
            path = Path(folder) / str(n)
            make(path, n)
            for name in CASES:
                if name == "textual-fastdatatable" and not importlib.util.find_spec(
                    "textual_fastdatatable"
                ):
                    continue
                if CASES[name] is Textuals and (given.without_datatable or n > LARGEST_DATATABLE):
                    continue
                command = [sys.executable, __file__, "--one", name, str(path)]
                command += ["--rounds", str(given.rounds if CASES[name] is not Textuals else 1)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                print(row(name, n, found), flush=True)


if __name__ == "__main__":
    main()
