"""The table of neurons, driven by a pilot, over columns made for the purpose."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from glulens.errors import RunError
from glulens.tui.grid import NeuronTable
from glulens.tui.sheet import header_of

SIZES = [(80, 24), (120, 32)]


class Made:
    """Columns that say which of them were read, and how often a label was asked for."""

    def __init__(self, n: int = 1200, **columns: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        self.layer = (np.arange(n) // 400).astype(np.int16)
        self.neuron = (np.arange(n) % 400).astype(np.int32)
        self.columns = {
            "ppm": rng.random(n).astype(np.float32),
            "attr_misconception": rng.normal(size=n).astype(np.float32),
            "tokens": rng.integers(0, 5000, n),
            **columns,
        }
        self.read: list[str] = []
        self.labels = 0

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.append(name)
        return self.columns[name]

    def label(self, row: int) -> str:
        self.labels += 1
        return f"L{self.layer[row]}.N{self.neuron[row]}"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def order(self, by: str = "ppm") -> np.ndarray:
        return np.argsort(self.columns[by], kind="stable").astype(np.int32)


class Shell(App[None]):
    """The table alone, and what it said."""

    def __init__(self, first: Callable[[NeuronTable], object]) -> None:
        super().__init__()
        self.first = first
        self.said: list[tuple] = []

    def compose(self) -> ComposeResult:
        yield NeuronTable()

    def on_mount(self) -> None:
        table = self.query_one(NeuronTable)
        self.first(table)
        table.focus()

    def on_neuron_table_moved(self, message: NeuronTable.Moved) -> None:
        self.said.append(("moved", message.place, message.row))

    def on_neuron_table_chosen(self, message: NeuronTable.Chosen) -> None:
        self.said.append(("chosen", message.row))

    def on_neuron_table_marked(self, message: NeuronTable.Marked) -> None:
        self.said.append(("marked", message.row))

    def on_neuron_table_sorted(self, message: NeuronTable.Sorted) -> None:
        self.said.append(("sorted", message.name))

    def on_neuron_table_unreadable(self, message: NeuronTable.Unreadable) -> None:
        self.said.append(("unreadable", message.name, str(message.error)))


Play = Callable[[Shell, NeuronTable, Pilot[None]], Awaitable[None]]


def drive(first: Callable[[NeuronTable], object], play: Play, size=(80, 24)) -> None:
    async def session() -> None:
        app = Shell(first)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await play(app, app.query_one(NeuronTable), pilot)

    asyncio.run(session())


def lines(table: NeuronTable) -> list[str]:
    """What is drawn, each line checked to be as wide as the table."""
    size = table.scrollable_size
    strips = [table.render_line(y) for y in range(size.height)]
    for strip in strips:
        assert cell_len(strip.text) == strip.cell_length == size.width, strip.text
        assert all(segment.style is not None for segment in strip)
    return [strip.text for strip in strips]


def values_of(line: str) -> list[str]:
    return line.split("│")[1].split()


@pytest.mark.parametrize("size", SIZES)
def test_rows_stand_in_the_given_order_under_their_names(size):
    made = Made()
    order = made.order()

    async def play(app, table, pilot):
        text = lines(table)
        assert text[1].split() == ["rank", "neuron", "│", "▲ppm", "misconception", "tokens"]
        assert text[0].split() == ["│", "attr_"]
        for place in range(size[1] - 2):
            row = int(order[place])
            rank, label = text[place + 2].removeprefix(">").split("│")[0].split()
            assert (rank, label) == (str(place + 1), f"L{made.layer[row]}.N{made.neuron[row]}")
            shown = values_of(text[place + 2])
            assert shown[0] == f"{made.columns['ppm'][row]:.4f}"
            assert shown[2] == f"{made.columns['tokens'][row]:,}"
        # Decimal points and right edges stand below each other.
        for name in ("ppm", "misconception", "tokens"):
            edge = text[1].index(name) + len(name)
            assert all(line[edge - 1].isdigit() and line[edge] == " " for line in text[2:])

    drive(lambda t: t.show(made, made.names, order, by="ppm", cursor_row=int(order[0])), play, size)


@pytest.mark.parametrize("size", SIZES)
def test_keys_move_the_cursor(size):
    made = Made()
    order, room = made.order(), size[1] - 2

    async def play(app, table, pilot):
        async def at(*keys: str) -> tuple[int, int]:
            await pilot.press(*keys)
            await pilot.pause()
            text = lines(table)
            (line,) = [y for y, row in enumerate(text) if row.startswith(">")]
            assert line == table.place - table.scroll_offset.y + 2
            assert f" {table.place + 1:,} " in text[line]
            return table.place, line - 2

        assert await at("down", "down", "down") == (3, 3)
        assert await at("pagedown") == (3 + room, 3)
        assert await at("pageup", "up") == (2, 2)
        assert await at("up", "up", "up", "up") == (0, 0)
        assert await at("end") == (1199, room - 1)
        assert await at("down", "pagedown") == (1199, room - 1)
        assert await at("up", "up") == (1197, room - 3)
        assert await at("home") == (0, 0)
        app.said.clear()
        await pilot.press("down", "enter", "space")
        await pilot.pause()
        row = int(order[1])
        assert app.said == [("moved", 1, row), ("chosen", row), ("marked", row)]

    drive(lambda t: t.show(made, made.names, order, by="ppm", cursor_row=int(order[0])), play, size)


def test_the_cursor_stays_on_its_neuron_when_the_order_changes():
    made = Made()
    order = made.order()

    async def play(app, table, pilot):
        await pilot.press("pagedown", "down", "down")
        row, height = table.row, table.place - table.scroll_offset.y
        app.said.clear()
        back = order[::-1].copy()
        table.show(made, made.names, back, by="ppm", descending=True, cursor_row=row)
        await pilot.pause()
        assert table.row == row
        assert table.place == 1199 - int(np.flatnonzero(order == row)[0])
        assert table.place - table.scroll_offset.y == height
        assert "▼ppm" in lines(table)[1]
        assert app.said == []  # nothing moved: it is the same neuron
        kept = back[back != row]
        place = table.place
        table.show(made, made.names, kept, by="ppm", descending=True, cursor_row=row)
        await pilot.pause()
        assert table.place == place
        assert app.said == [("moved", place, int(kept[place]))]
        table.show(made, made.names, kept[:3], by="ppm", cursor_row=row)
        await pilot.pause()
        assert (table.place, table.row) == (2, kept[2])
        assert len([line for line in lines(table) if "N" in line]) == 3

    drive(lambda t: t.show(made, made.names, order, by="ppm", cursor_row=int(order[0])), play)


def test_columns_scroll_sideways_whole_and_are_read_when_seen():
    made = Made(1200, **{f"attr_property_{k}": np.full(1200, k + 0.5) for k in range(12)})
    order = made.order()

    async def play(app, table, pilot):
        seen = set()
        assert "attr_property_11" not in made.read
        for _ in range(20):
            text = lines(table)
            seen |= set(table.shown_names)
            # Every number in view is whole: 0.500, 1.500 ...
            for name, value in zip(table.shown_names, values_of(text[2]), strict=True):
                if name.startswith("attr_property"):
                    assert float(value) == int(name.split("_")[-1]) + 0.5
            assert (text[1].rstrip()[-1] == "›") == (made.names[-1] not in table.shown_names)
            assert ("‹" in text[1]) == (made.names[0] not in table.shown_names)
            await pilot.press("right")
        assert seen == set(made.names)
        assert sorted(set(made.read)) == sorted(made.read)  # each once
        await pilot.press(*["left"] * 20)
        assert table.shown_names[0] == "ppm"
        # Ranking by a column brings it into view.
        table.show(made, made.names, order, by="attr_property_11", cursor_row=table.row)
        await pilot.pause()
        assert "attr_property_11" in table.shown_names
        # A wider window brings earlier columns back.
        await pilot.resize_terminal(300, 24)
        await pilot.pause()
        assert table.shown_names == made.names

    drive(lambda t: t.show(made, made.names, order, by="ppm"), play)


def test_only_what_is_on_the_screen_is_formatted():
    n = 2_000_000
    made = Made(n)
    made.layer, made.neuron = made.layer % 32, np.arange(n, dtype=np.int32)

    async def play(app, table, pilot):
        made.labels = 0
        await pilot.press("end")
        await pilot.pause()
        assert made.labels < 200
        assert "2,000,000  L" in lines(table)[-1]
        made.labels = 0
        await pilot.press("up")  # two lines
        await pilot.pause()
        assert made.labels <= 2

    drive(lambda t: t.show(made, made.names, np.arange(n, dtype=np.int32)), play)


def test_marks_and_cursor_are_seen_without_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    made = Made()
    order = made.order()
    marks = np.zeros(1200, bool)
    marks[order[[1, 3]]] = True

    async def play(app, table, pilot):
        assert app.no_color
        assert [line[:2] for line in lines(table)[2:7]] == ["> ", " ●", "  ", " ●", "  "]
        cursor = table.render_line(2)
        assert all(segment.style.reverse for segment in cursor)
        assert not any(segment.style.reverse for segment in table.render_line(3))
        marks[order[0]] = True
        table.mark_rows(marks)
        await pilot.pause()
        assert lines(table)[2][:2] == ">●"
        app.export_screenshot()

    drive(lambda t: t.show(made, made.names, order, by="ppm", marks=marks), play)


def test_the_mouse_sorts_marks_and_opens():
    made = Made()
    order = made.order()

    async def play(app, table, pilot):
        name = lines(table)[1].index("tokens")
        app.said.clear()
        await pilot.click(NeuronTable, offset=(name, 1))
        await pilot.click(NeuronTable, offset=(name, 0))
        await pilot.click(NeuronTable, offset=(8, 1))  # `rank` is no column
        assert app.said == [("sorted", "tokens")] * 2
        app.said.clear()
        await pilot.click(NeuronTable, offset=(30, 7))
        assert app.said == [("moved", 5, int(order[5]))]
        await pilot.click(NeuronTable, offset=(1, 8))
        assert app.said[1:] == [("moved", 6, int(order[6])), ("marked", int(order[6]))]
        app.said.clear()
        await pilot.click(NeuronTable, offset=(30, 9), times=2)
        assert ("chosen", int(order[7])) in app.said
        table.show(made, made.names, order[:2], by="ppm")
        await pilot.pause()
        app.said.clear()
        await pilot.click(NeuronTable, offset=(30, 12))  # below the last row
        assert app.said == []

    drive(lambda t: t.show(made, made.names, order, by="ppm", cursor_row=int(order[0])), play)


def test_odd_numbers_keep_the_columns_straight():
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1.5, 3e38] * 150, np.float32)
    made = Made(odd=odd, empty=np.full(1200, np.nan), ends=np.full(1200, -np.inf))

    async def play(app, table, pilot):
        text = lines(table)
        edge = text[1].index("odd") + 3
        column = [line[:edge].split()[-1] for line in text[2:]]
        assert {"-", "inf", "-inf"} < set(column)
        assert all(line[edge - 1] != " " for line in text[2:])
        assert all(values_of(line)[-2:] == ["-", "-inf"] for line in text[2:])

    drive(lambda t: t.show(made, made.names, np.arange(1200, dtype=np.int32)), play)


@pytest.mark.parametrize("rows", [0, 1])
def test_next_to_nothing_is_shown(rows):
    made = Made()

    async def play(app, table, pilot):
        keys = (
            "down",
            "up",
            "pagedown",
            "pageup",
            "end",
            "home",
            "left",
            "right",
            "enter",
            "space",
        )
        await pilot.press(*keys)
        await pilot.click(NeuronTable, offset=(1, 5))
        text = lines(table)
        assert sum(".N" in line for line in text) == rows
        assert any(NeuronTable.NOTHING in line for line in text) == (rows == 0)
        assert table.row == (7 if rows else None)
        assert {kind for kind, *_ in app.said} <= ({"moved", "chosen", "marked"} if rows else set())

    drive(lambda t: t.show(made, made.names, np.full(rows, 7, np.int32), by="ppm"), play)


def test_a_table_without_data_waits_for_it():
    made = Made()

    async def play(app, table, pilot):
        await pilot.press("down", "left", "right", "pagedown", "enter", "space")
        await pilot.click(NeuronTable, offset=(30, 0))
        assert app.said == []
        assert not "".join(lines(table)).strip()
        table.show(made, [], made.order())
        await pilot.pause()
        assert ".N" in lines(table)[1]

    drive(lambda t: None, play)


def test_hostile_names_and_labels_are_spelled_out():
    bad = "\x1b]0;x\x07[red]_日本\u202e_" + "z" * 10_000
    made = Made(1200, **{bad: np.ones(1200), "": np.ones(1200)})
    made.label = lambda row: bad  # pyright: ignore

    async def play(app, table, pilot):
        text = "\n".join(lines(table))
        assert text.replace("\n", "").isprintable()
        assert "\\x1b]0;x\\x07[red]" in text
        app.export_screenshot()

    drive(lambda t: t.show(made, made.names, made.order(), by=bad), play, (200, 24))


def test_names_are_broken_where_it_saves_most():
    assert header_of("ppm") == ("", "ppm")
    assert header_of("attr_fact") == ("", "attr_fact")
    assert header_of("attr_misconception") == ("attr_", "misconception")
    assert header_of("mean_of_a_long_name") == ("mean_of_a_", "long_name")
    assert header_of("abcdefghijklm") == ("", "abcdefghijklm")


def test_a_slow_column_keeps_nobody_waiting():
    made = Made()
    free = threading.Event()

    class Slow(Made):
        def __getitem__(self, name: str) -> np.ndarray:
            if name == "slow":
                assert free.wait(60)
                return np.full(1200, 0.5)
            return super().__getitem__(name)

    made = Slow(slow=np.zeros(1))

    async def play(app, table, pilot):
        assert values_of(lines(table)[2])[-1] == "…"
        await pilot.press("down", "down")
        assert table.place == 2
        free.set()
        for _ in range(500):
            await pilot.pause(0.01)
            if values_of(lines(table)[2])[-1] == "0.5000":
                break
        else:
            pytest.fail("the column never came")

    drive(lambda t: t.show(made, made.names, made.order(), by="ppm"), play)
    free.set()


def test_a_column_that_cannot_be_read_is_missing_and_said_so():
    class Gone(Made):
        def __getitem__(self, name: str) -> np.ndarray:
            if name == "tokens":
                raise RunError("the table was removed")
            return super().__getitem__(name)

    made = Gone()

    async def play(app, table, pilot):
        await pilot.pause()
        assert values_of(lines(table)[2])[-1] == "-"
        assert ("unreadable", "tokens", "the table was removed") in app.said

    drive(lambda t: t.show(made, made.names, made.order(), by="ppm"), play)


def test_a_storm_of_sizes_leaves_the_cursor_in_view():
    made = Made()
    rng = np.random.default_rng(0)

    async def play(app, table, pilot):
        await pilot.press("pagedown", "pagedown")
        row = table.row
        for width, height in [(1, 1), (5, 2), (200, 60), *rng.integers(1, 150, (9, 2)).tolist()]:
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            for y in range(table.scrollable_size.height):
                assert table.render_line(y).cell_length >= table.scrollable_size.width
        await pilot.resize_terminal(80, 24)
        await pilot.pause()
        assert table.row == row
        assert any(line.startswith(">") for line in lines(table))

    drive(lambda t: t.show(made, made.names, made.order(), by="ppm"), play)


def test_a_narrow_table_gives_up_the_rank_for_a_number():
    made = Made()

    async def play(app, table, pilot):
        text = lines(table)
        assert "rank" not in text[1]
        assert "ppm" in text[1]

    drive(lambda t: t.show(made, made.names, made.order(), by="ppm"), play, (30, 10))
