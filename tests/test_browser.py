"""The browser as a whole: every view and every key, at 80x24 and 120x32."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars
import pytest
from browsing import dense, mixture, run_of
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from glulens import tables
from glulens.errors import DataError
from glulens.prune.selection import NeuronSet
from glulens.rundir import NEURONS
from glulens.tui.app import Browser, open_session
from glulens.tui.ask import Ask
from glulens.tui.grid import NeuronTable
from glulens.tui.heat import HeatMap
from glulens.tui.helping import Help
from glulens.tui.keys import KEYS, VIEWS, keys_of, split
from glulens.tui.live import Answer, Next, Question
from glulens.tui.portrait import Portrait

SIZES = [(80, 24), (120, 32)]
Play = Callable[[Browser, "Tour"], Awaitable[None]]


class Tour:
    """Keys pressed one after the other, each after the work of the last is done."""

    def __init__(self, app: Browser, pilot: Pilot) -> None:
        self._app, self._pilot = app, pilot

    async def rest(self) -> None:
        await self._pilot.pause()
        if self._app._typing is not None:
            await self._app._typing
        await self._app.workers.wait_for_complete()
        await self._pilot.pause()

    async def __call__(self, *keys: str) -> None:
        for key in keys:
            await self._pilot.press(key)
            await self.rest()

    async def type(self, text: str) -> None:
        field = self._app.query_one("Ask Input", Input)
        field.value = text
        await self._pilot.pause(0.2)  # the pause after which a filter is counted
        await self.rest()


def play(
    path: Path, tour: Play, size: tuple[int, int] = (120, 32), other: Path | None = None
) -> list[str] | None:
    async def session() -> list[str] | None:
        app = Browser(open_session(path, other))
        async with app.run_test(size=size) as pilot:
            steps = Tour(app, pilot)
            await steps.rest()
            await tour(app, steps)
        return app.return_value

    return asyncio.run(session())


def text_of(app: Browser, selector: str) -> str:
    return str(app.query_one(selector, Static).render())


def screen(app: Browser) -> str:
    """What stands on the screen, as text."""
    return "\n".join(
        "".join(segment.text for segment in line) for line in app.screen._compositor.render_strips()
    )


@pytest.fixture
def run(tmp_path):
    return run_of(tmp_path / "run", dense(), model={"name": "tiny", "hidden": 16})


@pytest.mark.parametrize("size", SIZES)
def test_sorting_filtering_and_marking_are_one_state_with_undo(run, size):
    async def tour(app, press):
        session = app.session
        assert session.state.by == "ppm"
        ppm = session.columns["ppm"]
        assert session.state.cursor == session.order[0] == np.argmin(ppm)
        await press("right_square_bracket")
        assert session.state.by == "maw"
        assert session.state.cursor == np.argmin(session.columns["maw"])
        await press("r")
        assert session.state.descending
        assert session.order[0] == np.argmax(session.columns["maw"])
        await press("slash")
        await press.type("layer == 1 and ppm > 0.5")
        expected = np.flatnonzero((session.columns.layer == 1) & (ppm > 0.5))
        assert f"{len(expected)} of 120" in text_of(app, "#answer")
        await press("enter")
        assert sorted(session.order) == expected.tolist()
        await press("space", "full_stop", "space")
        assert session.marks.sum() == 2
        assert session.marks[session.order[:2]].all()
        assert f"{len(expected)} of 120 neurons · maw ▼ · 2 marked · where layer == 1" in text_of(
            app, "#said"
        )
        await press("u", "u", "u")
        assert not session.marks.any()
        assert session.state.where == ""
        assert len(session.order) == 120
        await press("U", "ctrl+r")
        assert session.state.where
        assert session.marks.sum() == 1
        await press("m")
        assert session.marks.sum() == len(expected)
        await press("M")
        assert not session.marks.any()

    play(run, tour, size)


def test_a_bad_filter_says_why_and_changes_nothing(run):
    async def tour(app, press):
        await press("slash")
        await press.type("pmp > 1")
        assert "did you mean 'ppm'" in text_of(app, "#answer")
        await press("enter")
        assert app.session.state.where == ""
        assert app.query_one(Ask).has_class("asking")
        await press("escape")
        assert not app.query_one(Ask).has_class("asking")
        assert isinstance(app.focused, NeuronTable)

    play(run, tour)


def test_keys_typed_ahead_go_where_they_would_if_one_waited(run, tmp_path):
    spelled = {"/": "slash", "=": "equals_sign", " ": "space", "\r": "enter", ":": "colon"}

    async def tour(app, press):
        def type_ahead(text: str, *keys: str) -> None:
            for letter in text:
                shown = letter if letter.isprintable() else None
                app.post_message(Key(spelled.get(letter, letter), shown))
            for key in keys:
                app.post_message(Key(key, None))

        type_ahead("/layer == 1\r")
        await press.rest()
        assert app.session.state.where == "layer == 1"
        type_ahead(":L1.N7\r ")
        await press.rest()
        assert app.session.columns.label(app.session.state.cursor) == "L1.N7"
        assert np.flatnonzero(app.session.marks).tolist() == [40 + 7]
        type_ahead(":L2.N7\r")
        await press.rest()
        assert "L2.N7 does not pass the filter" in text_of(app, "#answer")
        assert app.session.columns.label(app.session.state.cursor) == "L1.N7"
        type_ahead("", "escape")
        type_ahead("5", "right", "right")
        await press.rest()
        assert app.view.NAME == "prune"
        assert "18 of 120 neurons" in screen(app)
        type_ahead("w", "ctrl+u")
        type_ahead("out\r7")
        await press.rest()
        assert app.view.NAME == "sets"
        assert (tmp_path / "out").is_file()

    with contextlib.chdir(tmp_path):
        play(run, tour)


def test_going_to_a_neuron_and_along_the_ranking(run):
    async def tour(app, press):
        session = app.session
        await press("colon")
        await press.type("L2.N7")
        await press("enter")
        assert session.columns.label(session.state.cursor) == "L2.N7"
        place = session.order.tolist().index(session.state.cursor)
        await press("comma")
        assert session.state.cursor == session.order[place - 1]
        await press("3")
        assert session.columns.label(session.order[place - 1]) in text_of(app, "Neuron Static")
        await press("full_stop", "full_stop")
        assert session.columns.label(session.order[place + 1]) in text_of(app, "Neuron Static")
        await press("colon")
        await press.type("L9.N9")
        await press("enter")
        assert "not in this run" in text_of(app, "#answer")
        await press("escape")

    play(run, tour)


@pytest.mark.parametrize("size", SIZES)
def test_every_view_comes_up_by_its_number(run, size):
    async def tour(app, press):
        for number, name in enumerate(VIEWS, 1):
            await press(str(number))
            assert name == app.view.NAME
            assert f" {number} {name} " in screen(app).splitlines()[0]

    play(run, tour, size)


def test_the_atlas_filters_to_a_cell(run):
    async def tour(app, press):
        session = app.session
        await press("1", "down", "right", "right")
        heat = app.query_one(HeatMap)
        assert heat.cursor == (1, 2)
        assert "|attr_fact| of each tenth by ppm" in text_of(app, "#title")
        await press("v")
        assert "|ppm|" not in text_of(app, "#title").split(" of ")[0]
        await press("enter")
        assert app.view.NAME == "rank"
        assert session.state.where == "layer == 1 and tenth(ppm) == 3"
        rows = session.columns.rows_of(1)
        lowest = np.argsort(session.columns["ppm"][rows], kind="stable")[8:12] + rows.start
        assert sorted(session.order) == sorted(lowest)

    play(run, tour)


def test_the_atlas_shows_shares_of_the_layers_mean(run):
    async def tour(app, press):
        await press("1")
        rows = app.session.columns.rows_of(0)
        size = np.abs(app.session.columns["attr_fact"][rows].astype(float))
        first = np.argsort(app.session.columns["ppm"][rows], kind="stable")[:4]
        expected = np.log2(np.nanmean(size[first]) / np.nanmean(size))
        assert app.query_one(HeatMap).value == pytest.approx(expected)

    play(run, tour)


def test_the_prune_view_cuts_by_the_ranking_and_writes_the_set(run, tmp_path):
    async def tour(app, press):
        await press("5")
        assert "12 of 120 neurons by ppm" in text_of(app, "#story")
        assert "576 parameters, 48 a neuron" in text_of(app, "#story")
        await press("right")
        assert "15 of 120 neurons" in text_of(app, "#story")
        await press("left", "left")
        assert "9 of 120 neurons" in text_of(app, "#story")
        await press("d", "right")  # multiples of 8
        assert "24 of 120 neurons" in text_of(app, "#story")
        await press("l")
        assert "a share of the model" in text_of(app, "#story")
        await press("l", "w")
        await press.type(str(tmp_path / "cut.json"))
        await press("enter")
        found = NeuronSet.load(tmp_path / "cut.json")
        assert found.counts == (8, 8, 8)
        assert list(app.session.sets) == ["cut"]
        await press("w")
        await press.type(str(tmp_path / "cut.json"))
        await press("enter")
        assert "exists; give another name" in text_of(app, "#answer")
        await press("escape")

    play(run, tour)


def test_what_is_pinned_stays(run):
    async def tour(app, press):
        session = app.session
        await press("5")
        leaving = app.view._drawn.cut.leaving
        row = int(np.flatnonzero(leaving)[0])
        app.mark(row)
        await press("p")
        assert not app.view._drawn.cut.leaving[row]
        assert app.view._drawn.cut.total == leaving.sum()
        assert "1 pinned" in text_of(app, "#story")
        assert session.marks.sum() == 1

    play(run, tour)


def test_two_runs_are_compared_neuron_by_neuron(tmp_path):
    first, second = dense(), dense()
    second = second.with_columns(
        maw=polars.when(polars.int_range(polars.len()) == 50)
        .then(polars.col("maw") + 5)
        .otherwise(polars.col("maw"))
    )
    a = run_of(tmp_path / "a", first)
    b = run_of(tmp_path / "b", second)

    async def tour(app, press):
        await press("4")
        assert "ppm: 0 of 120 neurons differ" in text_of(app, "#pair")
        await press("n")
        assert "maw: 1 of 120 neurons differ" in text_of(app, "#pair")
        table = app.query_one("Compare NeuronTable", NeuronTable)
        await press("home")
        assert table.row == 50
        assert table._table["shift"][50] == pytest.approx(5)
        rows = slice(40, 80)
        expected = 39 - np.argsort(np.argsort(first["maw"].to_numpy()[rows]))[10]
        assert table._table["rank shift"][50] == expected
        await press("enter")
        assert app.view.NAME == "neuron"
        assert "L1.N10" in text_of(app, "Neuron Static")

    play(a, tour, other=b)


def test_columns_of_base_and_tuned_are_compared(tmp_path):
    frame = dense().rename({"ppm": "base_ppm"}).with_columns(tuned_ppm=polars.col("base_ppm") * 2)
    path = run_of(tmp_path / "run", frame)

    async def tour(app, press):
        await press("4")
        assert text_of(app, "#pair").startswith("ppm: ")

    play(path, tour)


def test_with_nothing_to_compare_the_view_says_what_is_needed(run):
    async def tour(app, press):
        await press("4")
        assert "open two runs" in text_of(app, "#pair")

    play(run, tour)


def test_sets_are_kept_combined_written_read_and_marked(run, tmp_path):
    async def tour(app, press):
        sets = app.session.sets
        app.mark(3)
        app.mark(5)
        await press("7", "s")
        await press.type("odd")
        await press("enter")
        app.mark(3)
        app.mark(7)
        await press("s")
        await press.type("even")
        await press("enter")
        assert list(sets) == ["odd", "even"]
        await press("a")
        await press.type("odd & even")
        assert "1 neurons" in text_of(app, "#answer")
        await press("enter")
        assert sets.mask("odd & even").tolist().index(True) == 5
        chosen = app.query_one(OptionList)
        chosen.highlighted = 0
        await press("enter")
        assert np.flatnonzero(app.session.marks).tolist() == [3, 5]
        await press("w")
        await press.type(str(tmp_path / "odd.json"))
        await press("enter")
        await press("delete")
        assert "odd" not in sets
        await press("o")
        await press.type(str(tmp_path / "odd.json"))
        await press("enter")
        assert np.flatnonzero(sets.mask("odd")).tolist() == [3, 5]

    play(run, tour)


def test_export_writes_rows_marks_and_pictures(run, tmp_path):
    async def tour(app, press):
        await press("slash")
        await press.type("layer == 2")
        await press("enter", "m")
        for name in ("rows.csv", "marks.json", "screen.svg"):
            await press("e")
            await press.type(str(tmp_path / name))
            await press("enter")
        await press("e")
        await press.type(str(tmp_path / "rows.xls"))
        await press("enter")
        assert "end the name in .csv" in text_of(app, "#answer")
        await press("escape", "1", "e")
        await press.type(str(tmp_path / "atlas.csv"))
        await press("enter")

    play(run, tour)
    rows = polars.read_csv(tmp_path / "rows.csv")
    assert rows["label"].to_list()[0].startswith("L2.N")
    assert rows.height == 40
    assert rows["ppm"].is_sorted()
    assert len(NeuronSet.load(tmp_path / "marks.json")) == 40
    assert (tmp_path / "screen.svg").read_text().startswith("<svg")
    assert polars.read_csv(tmp_path / "atlas.csv").height == 30


def test_names_are_copied(run):
    async def tour(app, press):
        await press("y")
        assert app.clipboard == app.session.columns.label(app.session.state.cursor)
        app.mark(0)
        app.mark(1)
        await press("y")
        assert app.clipboard == "L0.N0 L0.N1"

    play(run, tour)


def test_leaving_gives_the_marked_neurons(run):
    async def tour(app, press):
        app.mark(41)
        await press("q")

    assert play(run, tour) == ["L1.N1"]


def test_help_lists_every_key_of_the_view_and_the_filters_words(run):
    async def tour(app, press):
        await press("5", "question_mark")
        assert isinstance(app.screen, Help)
        said = str(app.screen.query_one(Static).render())
        for key in (*keys_of(""), *keys_of("prune")):
            assert key.about in said
        assert "pct(x, p)" in said
        await press("escape")
        assert not isinstance(app.screen, Help)

    play(run, tour)


def test_zoom_gives_a_pane_the_screen(run):
    async def tour(app, press):
        await press("z")
        assert app.screen.maximized is not None
        await press("z")
        assert app.screen.maximized is None

    play(run, tour)


def test_every_key_of_the_table_is_bound(run):
    """A name in the table that no action answers to would be a dead key."""

    async def tour(app, press):
        for key in KEYS:
            node = app.query_one(f"#{key.where}") if key.where else app
            name = key.action.split("(")[0]
            assert hasattr(node, f"action_{name}"), key
            bound = {b.id for bs in node._bindings.key_to_bindings.values() for b in bs}
            assert key.id in bound
            assert split(key.keys)

    play(run, tour)


def test_where_there_is_room_the_neuron_stands_beside_the_table(run):
    async def tour(app, press):
        pane = app.query_one("Rank Portrait", Portrait)
        assert pane.display == (app.size.width >= 130)
        if pane.display:
            label = app.session.columns.label(app.session.state.cursor)
            assert label in str(pane.query_one(Static).render())

    for size in ((120, 32), (200, 60)):
        play(run, tour, size)


def test_experts_have_their_names(tmp_path):
    path = run_of(tmp_path / "run", mixture())

    async def tour(app, press):
        await press("slash")
        await press.type("expert == 2")
        await press("enter")
        assert "L1.E2.N2" in screen(app)

    play(path, tour)


def test_one_neuron_is_enough(tmp_path):
    path = run_of(tmp_path / "run", dense(layers=1, width=1))

    async def tour(app, press):
        for number in range(1, 8):
            await press(str(number), "down", "full_stop", "right_square_bracket", "r", "space")

    play(path, tour, (80, 24))


@pytest.mark.parametrize("colour", ["", "1"])
def test_without_colour_everything_is_still_there(run, colour, monkeypatch):
    if colour:
        monkeypatch.setenv("NO_COLOR", colour)

    async def tour(app, press):
        assert app.no_color == bool(colour)
        for number in range(1, 8):
            await press(str(number))
        await press("2")
        assert "> " in screen(app) or ">" in screen(app)

    play(run, tour)


def test_a_run_that_vanishes_is_told_and_nothing_crashes(run):
    async def tour(app, press):
        (run / NEURONS).unlink()
        order = app.session.order.copy()
        await press("left_square_bracket")  # the last column, which nobody has asked for yet
        said = " ".join(str(note.message) for note in app._notifications)
        assert "replaced or removed" in said
        assert app.session.state.by == "ppm"
        assert (app.session.order == order).all()
        await press("1", "3", "4", "5", "6", "7", "2", "r")
        assert app.session.state.descending

    play(run, tour, (80, 24))


def test_keys_are_answered_while_a_slow_column_is_sorted(run, monkeypatch):
    from glulens.tui.columns import Columns

    begun, release = threading.Event(), threading.Event()
    read = Columns._read

    def slow(self, name):
        if name == "maw":
            begun.set()
            assert release.wait(20)
        return read(self, name)

    monkeypatch.setattr(Columns, "_read", slow)

    async def session():
        app = Browser(open_session(run))
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            await pilot.press("right_square_bracket")
            assert await asyncio.to_thread(begun.wait, 20)
            before = app.session.state.cursor
            await pilot.press("down", "down", "down")
            await pilot.pause()
            assert app.session.state.cursor != before
            await pilot.pause(0.3)
            assert "… sorting by maw" in text_of(app, "#said")
            release.set()
            await app.workers.wait_for_complete()
            await pilot.pause()
            assert "sorting" not in text_of(app, "#said")
            maw = app.session.columns["maw"][app.session.order]
            assert (np.diff(maw) >= 0).all()

    asyncio.run(session())


def test_a_storm_of_resizes_leaves_it_whole(run):
    async def session():
        app = Browser(open_session(run))
        async with app.run_test(size=(80, 24)) as pilot:
            await pilot.pause()
            for number in range(1, 8):
                await pilot.press(str(number))
                for width, height in ((200, 60), (20, 5), (80, 24), (1, 1), (120, 32)):
                    await pilot.resize_terminal(width, height)
            await app.workers.wait_for_complete()
            await pilot.pause()
            assert app.view.NAME == "sets"

    asyncio.run(session())


class Speaking:
    """In place of a model's process: answers at once."""

    asked: ClassVar[list[Question]] = []
    stage = "idle"

    def __init__(self, model: str, *, neurons: int) -> None:
        assert (model, neurons) == ("tiny", 120)

    def ask(self, question: Question) -> Future[Answer]:
        self.asked.append(question)
        future: Future[Answer] = Future()
        if question.text == "bad":
            future.set_exception(DataError("the text has 2,000 tokens; at most 1,024 are taken"))
            return future
        tokens = ("The", " \x1b]0;x\x07", "[red]")
        likely = [Next(5, " yes", 0.25 if question.silence else 0.5), Next(6, " no", 0.125)]
        rows = np.array([[1, 2], [41, 3], [7, -1]], np.int32)
        values = np.array([[3, -2], [1, 0.5], [-4, np.nan]], np.float32)
        layers = np.arange(9, dtype=np.float32).reshape(3, 3)
        none = np.zeros((3, 0), np.float32)
        future.set_result(Answer((1, 2, 3), tokens, none, rows, values, layers, tuple(likely)))
        return future

    def close(self) -> None:
        pass


def test_a_text_is_tried_and_neurons_switched_off(run, monkeypatch):
    monkeypatch.setattr("glulens.tui.prompt.Live", Speaking)
    Speaking.asked.clear()

    async def tour(app, press):
        app.session.model = "tiny"
        await press("6")
        assert "a text to try" in text_of(app, "#text")
        await press("t")
        await press.type("The earth")
        await press("enter")
        assert "3 tokens" in text_of(app, "#text")
        assert "50.00%" in text_of(app, "#next")
        assert "\x1b" not in screen(app)
        assert "[red]" in screen(app)
        assert "L0.N7" in screen(app)  # the largest at the last token
        app.query_one("Prompt HeatMap", HeatMap).focus()
        await press("up")
        assert "L1.N1" in screen(app)
        await press("tab", "down", "space")
        assert app.session.marks.sum() == 1
        await press("x")
        assert Speaking.asked[-1].silence == np.flatnonzero(app.session.marks).tolist()
        assert "25.00% (50.00%)" in text_of(app, "#next")
        assert "1 neurons switched off" in text_of(app, "#text")
        await press("x")
        assert "before" not in text_of(app, "#next")
        await press("t")
        await press.type("bad")
        await press("enter")
        assert "at most 1,024" in text_of(app, "#text")
        await press("c")
        assert "stopped" in text_of(app, "#text")

    play(run, tour)


def test_without_a_model_the_prompt_says_what_is_needed(run):
    async def tour(app, press):
        await press("6", "t")
        await press.type("hello")
        await press("enter")
        assert "--model" in text_of(app, "#answer")
        await press("escape", "x")
        assert "--model" in text_of(app, "#text")

    play(run, tour)


def test_a_written_set_is_what_prune_reads(run, tmp_path):
    async def tour(app, press):
        app.mark(0)
        await press("e")
        await press.type(str(tmp_path / "marks.json"))
        await press("enter")

    play(run, tour)
    found = json.loads((tmp_path / "marks.json").read_text())
    assert found["kind"] == "glulens neuron set"
    assert found["indices"][0] == [0]


def test_a_neurons_words_stand_beside_its_numbers_where_there_is_room(tmp_path):
    # What is missing is said with the run's path, which may be longer than a line.
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    run = run_of(folder / "run", dense(), model={"name": "tiny", "hidden": 16})
    word = tables.Listed(7, "·long word", 1.0)
    found = tables.Example(5.0, 0, tuple(f" token{k}" for k in range(60)), 30, {})

    async def tour(app, press):
        await press("3")
        portrait = app.view.query_one(Portrait)
        portrait._found = replace(
            portrait._found,
            vocabulary={"out_high": [word] * 30},
            examples={side: [found] * 20 for side in ("high", "low", "spread")},
        )
        portrait._draw()
        await press.rest()
        lines = screen(app).splitlines()
        beside = [line for line in lines if "vocabulary" in line]
        assert len(beside) == 1
        assert "weights" in beside[0]
        # Every line of the page is one line on the screen, whatever stands in it.
        page = portrait.query_one(Static)
        wanted = str(page.render()).count("\n") + 1
        for _ in range(50):  # the page is laid out anew when the app finds the time
            if page.size.height == wanted:
                break
            await asyncio.sleep(0.05)
        assert page.size.height == wanted

    play(run, tour)
