"""The browser, driven by a pilot; the ranking behind it, without one."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import polars
import pytest
from test_rundir import make_run

from glulens.errors import RunError
from glulens.rundir import NEURONS, open_run
from glulens.tui.app import Browser, _cells
from glulens.tui.ranking import TOP, Ranking, labels, shown, sortable


def frame() -> polars.DataFrame:
    rng = np.random.default_rng(0)
    return polars.DataFrame(
        {
            "layer": np.repeat(np.arange(3), 400),
            "neuron": np.tile(np.arange(400), 3),
            "attr_fact": rng.normal(size=1200).astype(np.float32),
            "ppm": np.round(rng.random(1200), 2).astype(np.float32),
            "rms_fact": rng.random(1200).astype(np.float32),
        }
    )


def test_a_ranking_is_a_stable_sort_with_a_filter():
    rows = Ranking("ppm").apply(frame())
    assert rows.height == TOP
    assert rows["rank"].to_list() == list(range(1, TOP + 1))
    keys = list(zip(rows["ppm"], rows["layer"], rows["neuron"], strict=True))
    assert keys == sorted(keys)
    down = Ranking("ppm", descending=True, layer=2).apply(frame())
    assert down.height == 400
    assert down["layer"].unique().to_list() == [2]
    keys = [(-p, n) for p, n in zip(down["ppm"], down["neuron"], strict=True)]
    assert keys == sorted(keys)


def test_missing_values_come_last_both_ways():
    data = frame().head(4).with_columns(ppm=polars.Series([1.0, math.nan, None, 2.0]))
    assert Ranking("ppm").apply(data)["neuron"].to_list() == [0, 3, 1, 2]
    assert Ranking("ppm", descending=True).apply(data)["neuron"].to_list() == [3, 0, 1, 2]


def test_scores_come_first_and_the_wide_columns_stay_out():
    assert sortable(frame()) == ["ppm", "attr_fact", "rms_fact"]
    assert shown(frame(), "ppm") == ["ppm", "attr_fact"]
    assert shown(frame(), "rms_fact") == ["rms_fact", "ppm", "attr_fact"]
    with pytest.raises(RunError, match="no scores"):
        sortable(polars.DataFrame({"layer": [1], "neuron": [1], "name": ["x"]}))


def test_neurons_of_experts_are_called_by_their_expert():
    rows = polars.DataFrame({"layer": [0, 3, 3], "neuron": [5, 6, 7]})
    assert labels(rows) == ["L0.N5", "L3.N6", "L3.N7"]
    rows = rows.with_columns(
        part=polars.Series(["dense", "expert", "shared"]), expert=polars.Series([None, 2, None])
    )
    assert labels(rows) == ["L0.N5", "L3.E2.N6", "L3.S.N7"]
    assert sortable(rows.with_columns(ppm=polars.Series([1.0, 2.0, 3.0]))) == ["ppm"]


def test_cells_share_their_decimals():
    assert _cells(polars.Series([1.5, 20.25, None, math.nan])) == ["1.50", "20.25", "-", "-"]
    assert _cells(polars.Series([12345.6])) == ["12,346"]
    assert _cells(polars.Series([1000, None])) == ["1,000", "-"]
    assert _cells(polars.Series([math.inf, 0.001])) == ["inf", "0.001000"]


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run")
    frame().write_parquet(path / NEURONS)
    return open_run(path)


def drive(run, size, play):
    async def session():
        app = Browser(run, run.neurons())
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await play(app, pilot)

    asyncio.run(session())


@pytest.mark.parametrize("size", [(80, 24), (120, 32)])
def test_keys_sort_filter_and_reverse(run, size):
    from textual.widgets import DataTable, Label

    async def play(app, pilot):
        table = app.query_one(DataTable)
        assert table.row_count == TOP
        assert app.ranking == Ranking("ppm")
        await pilot.press("right_square_bracket")
        await pilot.pause()
        assert app.ranking == Ranking("attr_fact")
        await pilot.press("left_square_bracket", "full_stop", "full_stop", "r")
        await pilot.pause()
        assert app.ranking == Ranking("ppm", descending=True, layer=1)
        assert table.row_count == 400
        expected = app.ranking.apply(run.neurons())
        shown_first = [str(cell) for cell in table.get_row_at(0)]
        assert shown_first[:2] == ["1", f"L1.N{expected['neuron'][0]}"]
        status = str(app.query_one("#status", Label).render())
        assert "400 of 400 neurons of layer 1, highest ppm first" in status
        await pilot.press("a")
        await pilot.pause()
        assert app.ranking.layer is None
        await pilot.press("comma")
        await pilot.pause()
        assert app.ranking.layer == 2
        await pilot.press("q")

    drive(run, size, play)


def test_a_click_on_a_column_ranks_by_it(run):
    async def play(app, pilot):
        table = app.query_one("DataTable")
        column = next(c for c in table.ordered_columns if c.key.value == "attr_fact")
        for _ in range(2):
            table.post_message(
                type(table).HeaderSelected(
                    table, column.key, table.get_column_index(column.key), column.label
                )
            )
            await pilot.pause()
        assert app.ranking == Ranking("attr_fact", descending=True)

    drive(run, (120, 32), play)
