"""Text that may hold anything, numbers written down a column, and drawings made of text."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from glulens.tui.bars import bar, histogram, interval, rebinned, shared_scale
from glulens.tui.glyphs import AMOUNTS, SIGNED, cells, drawn, fitted, levels, safe
from glulens.tui.numbers import WIDEST, Format, extremes, format_of

# Any code point, lone surrogates among them, and often those that terminals act on.
hostile = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=["Cs", "Cc", "Cf", "Mn", "Me"]),
        st.sampled_from("\x1b\x07\u202e\u200b\ufe0f\u200d\u3164[]日é\u0301"),
    )
)


@given(hostile, st.booleans())
def test_safe_text_does_nothing_to_a_terminal(text, borders):
    shown = safe(text, borders=borders)
    assert shown.isprintable()
    assert not set(shown) & set("\u200b\u200d\u202e\ufe0f\u3164\u2800")
    shown.encode("utf-8")  # no lone surrogates
    assert (shown == "") == (text == "")


@given(hostile, hostile)
def test_safe_text_is_as_wide_as_its_parts(one, other):
    one, other = safe(one), safe(other)
    assert cell_len(one) + cell_len(other) == cell_len(one + other)
    assert all(cell_len(safe(text)) > 0 for text in (one, other) if text)


@given(hostile, st.integers(0, 30))
def test_text_is_cut_to_cells(text, width):
    text = safe(text)
    cut = cells(text, width)
    assert cell_len(cut) <= width
    if cell_len(text) <= width:
        assert cut == text
    elif width:
        assert cut.endswith("…")
        assert text.startswith(cut[:-1])
    for align in ("left", "right"):
        assert cell_len(fitted(text, width, align)) == width


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("[red]", "[red]"),
        ("日本", "日本"),
        ("a\nb\tc\r", "a⏎b⇥c\\r"),
        ("\u202etxt", "\\u202etxt"),
        ("\udcff", "\\udcff"),
        ("\u0301", "\\u0301"),
        ("e\u0301", "e\u0301"),
        ("e" + "\u0301" * 5, "e\u0301\u0301" + "\\u0301" * 3),
        ("1\ufe0f\u20e3", "1\\ufe0f\\u20e3"),
        ("ไม่", "ไม่"),
        ("\xa0", "\\xa0"),
        ("", ""),
    ],
)
def test_what_hides_is_spelled(text, shown):
    assert safe(text) == shown


def test_spaces_at_the_borders_are_shown():
    assert safe("  a b ", borders=True) == "··a b·"
    assert safe("   ", borders=True) == "···"
    assert safe(" a") == " a"


def test_a_long_token_is_not_read_to_its_end():
    class Counting(str):
        read = 0

        def __iter__(self):
            for c in str(self):
                Counting.read += 1
                yield c

    assert cells(Counting("日" * 10_000), 9) == "日日日日…"
    assert Counting.read < 10


def test_shares_become_levels():
    shares = np.array([[0.0, 0.5, 1.0], [-np.inf, np.inf, np.nan]])
    assert levels(shares, 5).tolist() == [[0, 2, 4], [0, 4, 5]]
    assert drawn(shares).tolist() == [[" ", "▒", "█"], [" ", "█", "?"]]
    assert len(set(AMOUNTS)) == len(AMOUNTS)
    assert len(set(SIGNED)) == len(SIGNED) == 7


numbers = st.one_of(
    st.lists(st.floats(width=32), max_size=50).map(lambda v: np.array(v, np.float32)),
    st.lists(st.floats(), max_size=50).map(lambda v: np.array(v, np.float64)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50).map(lambda v: np.array(v, np.int64)),
)


@given(numbers)
def test_every_cell_of_a_column_fits(values):
    form = format_of(values)
    texts = [form(value) for value in values.tolist()]
    assert all(len(text) <= form.width for text in texts)
    points = {len(text) - text.index(".") for text in texts if "." in text and "e" not in text}
    assert len(points) <= 1
    assert values.dtype.kind == "i" or form.width <= WIDEST
    assert "-0" not in {text.rstrip("0").rstrip(".") for text in texts}


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1.5, 20.25, math.nan], ["1.50", "20.25", "-"]),
        ([12345.6, 2.0], ["12,346", "2"]),
        ([math.inf, -math.inf, 0.25], ["inf", "-inf", "0.2500"]),
        ([3e-9, -2e-9], ["3.000e-09", "-2.000e-09"]),
        ([0.0, 0.0], ["0.0", "0.0"]),
        ([math.nan], ["-"]),
    ],
)
def test_a_column_shares_its_decimals(values, texts):
    assert [format_of(np.array(values))(value) for value in values] == texts


def test_extremes_are_those_of_all_values_not_of_the_sample():
    values = np.zeros(1_000_003, np.float32)
    values[[7, 500_001]] = -1234.5, 99_999.0
    values[3] = np.nan
    assert extremes(values) == (-1234.5, 99_999.0)
    values[4] = np.inf
    assert extremes(values) == (-1234.5, 99_999.0)
    assert len(format_of(values)(-1234.5)) <= format_of(values).width
    assert format_of(np.array([1000, -5])) == Format(",d", 5)


@given(st.lists(st.floats(), max_size=40), st.integers(1, 5))
def test_histograms_show_every_count(counts, height):
    lines = histogram(counts, height)
    assert len(lines) == height
    assert all(len(line) == len(counts) for line in lines)
    for at, count in enumerate(counts):
        there = math.isfinite(count) and count > 0
        assert (lines[-1][at] != " ") == there


def test_a_histogram_is_to_scale():
    assert histogram([0, 1, 4, 8]) == [" ▁▄█"]
    assert histogram([8, 16], 2) == [" █", "██"]
    assert rebinned([1, 2, 3, 4], 2).tolist() == [3, 7]
    assert rebinned([1, 1, 1], 2).tolist() == [1.5, 1.5]
    assert rebinned([], 4).tolist() == []


@given(st.floats(), st.floats(), st.floats(), st.floats(), st.floats(), st.integers(0, 30))
def test_bars_and_intervals_keep_to_their_width(low, value, high, first, last, width):
    assert cell_len(interval(low, value, high, (first, last), width)) == width
    assert cell_len(bar(value, width)) == width


def test_intervals_are_drawn_to_scale():
    assert interval(-1, 0, 1, (-2, 2), 9) == "  ├─●─┤  "
    assert interval(-math.inf, 0, 1, (-2, 2), 9) == "◂───●─┤  "
    assert interval(math.nan, math.nan, 1, (-2, 2), 9) == "    ┊    "
    assert bar(0.5, 4) == "██  "
    assert shared_scale([1.0, math.nan], np.array([-1.0])) == pytest.approx((-1.1, 1.1))
    assert shared_scale([]) == (-1, 1)
