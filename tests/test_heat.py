"""The heat map, driven by a pilot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from glulens.tui.heat import GREY, LEVELS, HeatMap, colours


class Shell(App[None]):
    """The map alone, and what it said."""

    def __init__(self, first: Callable[[HeatMap], object]) -> None:
        super().__init__()
        self.first = first
        self.said: list[tuple] = []

    def compose(self) -> ComposeResult:
        yield HeatMap()

    def on_mount(self) -> None:
        shown = self.query_one(HeatMap)
        self.first(shown)
        shown.focus()

    def on_heat_map_moved(self, message: HeatMap.Moved) -> None:
        self.said.append(("moved", message.row, message.column))

    def on_heat_map_chosen(self, message: HeatMap.Chosen) -> None:
        self.said.append(("chosen", message.row, message.column))


Play = Callable[[Shell, HeatMap, Pilot[None]], Awaitable[None]]


def drive(first: Callable[[HeatMap], object], play: Play, size=(80, 24)) -> None:
    async def session() -> None:
        app = Shell(first)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await play(app, app.query_one(HeatMap), pilot)

    asyncio.run(session())


def named(letter: str, count: int) -> list[str]:
    return [f"{letter}{k}" for k in range(count)]


def lines(shown: HeatMap) -> list[str]:
    """What is drawn, each line checked to be as wide as the map."""
    size = shown.scrollable_size
    strips = [shown.render_line(y) for y in range(size.height)]
    for strip in strips:
        assert cell_len(strip.text) == strip.cell_length == size.width, strip.text
        assert all(segment.style is not None for segment in strip)
    return [strip.text for strip in strips]


def drawn(shown: HeatMap, y: int, x: int) -> tuple[tuple, tuple]:
    """Upper and lower colour of a cell of the screen."""
    at = 0
    for text, style, _ in shown.render_line(y):
        at += cell_len(text)
        if x < at:
            assert style is not None
            assert style.color is not None
            assert style.bgcolor is not None
            return tuple(style.color.get_truecolor()), tuple(style.bgcolor.get_truecolor())
    raise AssertionError(f"nothing at {x}")


@pytest.mark.parametrize("size", [(80, 24), (120, 32)])
def test_two_rows_share_a_line(size):
    grid = np.linspace(-1, 1, 40 * 60).reshape(40, 60)
    ramp = colours("diverging", True)

    async def play(app, shown, pilot):
        text = lines(shown)
        assert text[1].startswith("> r0 ")
        assert [line.split()[0] for line in text[2:21]] == [f"r{k}" for k in range(2, 40, 2)]
        for row in (4, 20, 38):
            up, low = drawn(shown, 1 + row // 2, 5 + 10)
            for r, found in ((row, up), (row + 1, low)):
                level = min(int((grid[r, 10] + 1) / 2 * LEVELS), LEVELS - 1)
                assert found == ramp[level]
        assert text[-1].startswith(" -1 ▀▀▀")
        assert "r0, c0: -1" in text[-1]

    drive(lambda m: m.show(grid, named("r", 40), named("c", 60), kind="diverging"), play, size)


def test_a_row_has_a_line_where_there_is_room_and_columns_fill_the_width():
    grid = np.arange(100.0).reshape(10, 10)
    grid[2, 3] = np.nan
    ramp = colours("sequential", True)

    async def play(app, shown, pilot):
        text = lines(shown)
        assert text[0].split() == named("c", 10)
        width = text[0].index("c2") - text[0].index("c1")
        assert width > 3
        first = text[0].index("c0")
        assert drawn(shown, 2, first) == (ramp[3], ramp[3])  # 10 of 0 .. 99
        assert drawn(shown, 3, first + 3 * width) == (GREY, GREY)
        assert text[1][first] == "["
        assert text[1][first + width - 1] == "]"
        await pilot.press("down", "down", "right", "right", "right")
        await pilot.pause()
        assert np.isnan(shown.value)
        assert "r2, c3: missing" in lines(shown)[-1]

    drive(lambda m: m.show(grid, named("r", 10), named("c", 10)), play)


def test_keys_and_mouse_move_the_cursor():
    grid = np.zeros((126, 200))

    async def play(app, shown, pilot):
        await pilot.press("down", "right", "enter")
        await pilot.pause()
        assert app.said == [("moved", 1, 0), ("moved", 1, 1), ("chosen", 1, 1)]
        await pilot.press("end", "pagedown")
        await pilot.pause()
        assert shown.cursor == (1 + 22 * 2, 199)
        text = lines(shown)
        assert any(line.startswith("> r45") for line in text)
        assert "c199" in text[0]
        await pilot.press(*["pagedown"] * 5)
        await pilot.pause()
        assert shown.cursor == (125, 199)
        assert any(line.startswith(">r125") for line in lines(shown))
        await pilot.press("home", *["pageup"] * 5)
        await pilot.pause()
        assert shown.cursor == (0, 0)
        app.said.clear()
        await pilot.click(HeatMap, offset=(6 + 10, 4))
        await pilot.click(HeatMap, offset=(2, 4))  # a label
        await pilot.click(HeatMap, offset=(20, 0))  # the names
        await pilot.click(HeatMap, offset=(20, 23))  # the legend
        assert app.said == [("moved", 6, 10)]
        await pilot.click(HeatMap, offset=(6 + 12, 4), times=2)
        assert app.said[-1] == ("chosen", 6, 12)

    drive(lambda m: m.show(grid, named("r", 126), named("c", 200)), play)


def test_glyphs_carry_the_values_where_there_is_no_colour(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    grid = np.array([[-1.0, -0.5, 0.0, 0.5, 1.0, np.nan]] * 2)

    async def play(app, shown, pilot):
        text = lines(shown)
        assert text[1].startswith(">r0 [≡≡≡")
        assert text[2].startswith(" r1 ≡≡≡")
        assert "".join(dict.fromkeys(text[2][4:].rstrip())) == "≡=·*#?"
        assert "≡=-·+*#" in text[-1]
        shown.show(np.abs(grid), ["r0", "r1"], named("c", 6))
        await pilot.pause()
        assert "".join(dict.fromkeys(lines(shown)[2][4:].rstrip())) == "█▒ ?"
        app.export_screenshot()

    drive(lambda m: m.show(grid, ["r0", "r1"], named("c", 6), kind="diverging"), play)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (3, 300), (301, 2)])
def test_any_shape_is_drawn(shape):
    grid = np.full(shape, np.nan)

    async def play(app, shown, pilot):
        await pilot.press("down", "up", "left", "right", "pagedown", "home", "end", "enter")
        await pilot.click(HeatMap, offset=(20, 5))
        lines(shown)
        for width, height in [(1, 1), (3, 2), (150, 50), (80, 24)]:
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            for y in range(shown.scrollable_size.height):
                shown.render_line(y)

    drive(lambda m: m.show(grid, named("r", shape[0]), named("c", shape[1])), play)


def test_infinite_and_enormous_values_stand_at_the_ends():
    grid = np.array([[np.inf, -np.inf, 1e308, -1e308, 0.0]])

    async def play(app, shown, pilot):
        ramp = colours("diverging", True)
        text = lines(shown)
        cell = text[0].index("c1") - text[0].index("c0")
        at = text[0].index("c0")
        found = [drawn(shown, 1, at + cell * k)[0] for k in range(1, 5)]
        assert found == [ramp[0], ramp[-2], ramp[0], ramp[LEVELS // 2]]

    drive(lambda m: m.show(grid, ["r"], named("c", 5), kind="diverging"), play)


def test_hostile_names_are_spelled_out():
    bad = ["\x1b]0;x\x07", "[red]", "日本語日本語", "\u200b\u202e", "z" * 10_000, "\udcff"]

    async def play(app, shown, pilot):
        text = "\n".join(lines(shown))
        assert text.replace("\n", "").isprintable()
        assert "[red]" in text
        assert "\\x1b]0;x\\x07" in text
        app.export_screenshot()

    drive(lambda m: m.show(np.eye(6), bad, bad), play, (140, 24))


def test_labels_must_fit_the_grid():
    with pytest.raises(ValueError, match="2 rows and 1 columns are named"):
        HeatMap().show(np.zeros((3, 1)), ["a", "b"], ["c"])


@pytest.mark.parametrize("dark", [True, False])
def test_ramps_run_from_end_to_end_by_lightness(dark):
    def lightness(rgb):
        return np.dot(rgb, (0.299, 0.587, 0.114))

    light = np.array([lightness(rgb) for rgb in colours("sequential", dark)[:LEVELS]])
    assert (np.diff(light) > 0).all() if dark else (np.diff(light) < 0).all()
    both = np.array([lightness(rgb) for rgb in colours("diverging", dark)[:LEVELS]])
    middle = LEVELS // 2
    assert (both.argmin() if dark else both.argmax()) == middle
    assert colours("diverging", dark)[LEVELS] == GREY
