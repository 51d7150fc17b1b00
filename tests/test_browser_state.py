"""The state all views share, its history, and the rows it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from browsing import columns_of, dense
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from glulens.errors import UsageError
from glulens.tui.filters import parse
from glulens.tui.state import History, Marks, State, order


@given(arrays.arrays(bool, st.integers(0, 70)))
def test_marks_are_a_mask_as_a_value(mask):
    marks = Marks.of(mask)
    assert np.array_equal(marks.mask(len(mask)), mask)
    assert marks == Marks.of(mask.copy())
    assert bool(marks) == mask.any()
    assert (marks == Marks()) == (not mask.any())


def test_a_mark_is_toggled_and_back():
    state = State().toggled(3, 10).toggled(7, 10)
    assert np.flatnonzero(state.marks.mask(10)).tolist() == [3, 7]
    assert state.toggled(3, 10).toggled(7, 10) == State()


def test_undo_and_redo_walk_through_what_was_pushed():
    history = History(State(by="ppm"))
    states = [State(by="ppm"), State(by="maw"), State(by="maw", where="layer == 1")]
    for state in states[1:]:
        history.push(state)
    assert [history.undo(), history.undo(), history.undo()] == [states[1], states[0], states[0]]
    assert not history.can_undo
    assert [history.redo(), history.redo(), history.redo()] == [states[1], states[2], states[2]]
    assert not history.can_redo
    history.undo()
    history.push(State(by="odd"))
    assert not history.can_redo, "a new step forgets what was undone"
    assert history.undo() == states[1]


def test_moving_the_cursor_is_no_step_and_forgets_nothing():
    history = History(State(by="ppm"))
    history.push(State(by="maw"))
    history.undo()
    for cursor in range(5):
        history.push(replace(history.current, cursor=cursor))
    assert not history.can_undo
    assert history.can_redo
    assert history.current.cursor == 4
    assert history.redo().by == "maw"


def test_a_history_is_bounded_in_states_and_bytes(monkeypatch):
    history = History()
    for step in range(500):
        history.push(State(where=f"layer == {step}"))
    walked = 0
    while history.can_undo:
        history.undo()
        walked += 1
    assert walked == History.LONGEST - 1
    monkeypatch.setattr(History, "LARGEST", 1000)
    rng = np.random.default_rng(0)
    history = History()
    for _ in range(50):
        history.push(State().marked(rng.random(3000) < 0.5))  # some 400 bytes each
    assert sum(len(state.marks.packed) for state in history._states) <= 1000
    last = history.current
    assert history.can_undo
    history.undo()
    assert history.redo() == last
    history.push(State().marked(rng.random(30_000) < 0.5))
    assert len(history._states) == 1, "one state is always kept"


def test_marks_shared_by_many_states_count_once(monkeypatch):
    monkeypatch.setattr(History, "LARGEST", 1000)
    history = History(State().marked(np.random.default_rng(0).random(3000) < 0.5))
    for step in range(20):
        history.push(replace(history.current, where=f"layer == {step}"))
    assert len(history._states) == 21


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    return columns_of(tmp_path_factory.mktemp("state") / "run", dense())


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("by", ["ppm", "attr_fact", "odd", "tokens_fact"])
def test_what_is_shown_is_sorted_with_ties_by_row_and_nan_last(columns, by, descending):
    keep = parse("layer > 0 and not neuron == 7", columns.names).mask(columns)
    values = columns[by].astype(float)
    rows = order(columns, State(by=by, descending=descending), keep)
    assert rows.dtype == np.int32
    assert sorted(rows) == np.flatnonzero(keep).tolist()
    shown = values[rows]
    there = ~np.isnan(shown)
    assert not (there[1:] & ~there[:-1]).any(), "NaN comes last"
    signed = -shown[there] if descending else shown[there]
    keys = list(zip(signed, rows[there], strict=True))
    assert keys == sorted(keys)
    assert rows[~there].tolist() == sorted(rows[~there])


def test_without_a_column_the_first_one_ranks(columns):
    assert np.array_equal(order(columns, State()), order(columns, State(by="ppm")))
    assert len(order(columns, State(), np.zeros(columns.n, bool))) == 0
    with pytest.raises(UsageError, match="did you mean 'ppm'"):
        order(columns, State(by="pmp"))
