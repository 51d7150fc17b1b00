"""Named sets: their algebra is that of Python's sets, their files are those of `glulens prune`."""

from __future__ import annotations

import numpy as np
import pytest
from browsing import columns_of, dense, mixture
from hypothesis import given
from hypothesis import strategies as st

from glulens.errors import DataError, RunError, UsageError
from glulens.prune.selection import NeuronSet
from glulens.tui.sets import DEEPEST, LONGEST, Sets, chosen, mask_of


@pytest.fixture(scope="module")
def columns(tmp_path_factory):
    return columns_of(tmp_path_factory.mktemp("sets") / "run", mixture())


@pytest.fixture(scope="module")
def drawn(columns):
    rng = np.random.default_rng(0)
    return {name: rng.random(columns.n) < 0.5 for name in "abcd"}


@pytest.fixture
def sets(columns, drawn):
    found = Sets(columns)
    for name, mask in drawn.items():
        found[name] = chosen(columns, mask)
    return found


def test_rows_and_neurons_are_the_same_set(columns, drawn):
    for mask in drawn.values():
        found = chosen(columns, mask)
        assert len(found) == mask.sum()
        assert np.array_equal(mask_of(columns, found), mask)
    row = columns.find("L1.E2.N1")
    one = chosen(columns, np.arange(columns.n) == row)
    assert [indices.tolist() for indices in one.indices] == [[], [], [], [1], []]


def test_a_table_that_leaves_neurons_out_has_the_models_widths(tmp_path):
    columns = columns_of(tmp_path / "run", dense().filter(dense()["neuron"] % 2 == 1))
    assert columns.widths == (40, 40, 40)
    found = chosen(columns, np.arange(columns.n) == 1)
    assert found.indices[0].tolist() == [3]
    whole = NeuronSet(columns.widths, (np.arange(40),) * 3)
    assert mask_of(columns, whole).all()
    assert np.flatnonzero(mask_of(columns, found)).tolist() == [1]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a | b & c", lambda a, b, c, d: a | (b & c)),
        ("a & b | c", lambda a, b, c, d: (a & b) | c),
        ("a & b - c", lambda a, b, c, d: a & (b - c)),
        ("a-b & c", lambda a, b, c, d: (a - b) & c),
        ("a - b - c", lambda a, b, c, d: (a - b) - c),
        ("a - (b - c)", lambda a, b, c, d: a - (b - c)),
        ("~a - b", lambda a, b, c, d: (set(range(18)) - a) - b),
        ("a | ~(b & c) - d", lambda a, b, c, d: a | ((set(range(18)) - (b & c)) - d)),
        ("(a | b) & (c | d)", lambda a, b, c, d: (a | b) & (c | d)),
        ("~~a", lambda a, b, c, d: a),
    ],
)
def test_operators_bind_as_between_pythons_sets(columns, drawn, sets, text, same):
    rows = [set(np.flatnonzero(mask).tolist()) for mask in drawn.values()]
    assert set(np.flatnonzero(mask_of(columns, sets.combine(text)))) == same(*rows)


def _joined(parts):
    (left, one), sign, (right, other) = parts
    found = one & other if sign == "&" else one | other if sign == "|" else one - other
    return f"({left} {sign}{right})", found


@given(st.data())
def test_random_expressions_are_what_pythons_sets_say(columns, drawn, data):
    rows = {name: frozenset(np.flatnonzero(mask).tolist()) for name, mask in drawn.items()}
    sets = Sets(columns)
    for name, mask in drawn.items():
        sets[name] = chosen(columns, mask)
    expressions = st.recursive(
        st.sampled_from("abcd").map(lambda name: (name, rows[name])),
        lambda inner: st.one_of(
            inner.map(lambda x: (f"~{x[0]}", frozenset(range(18)) - x[1])),
            st.tuples(inner, st.sampled_from("&|-"), inner).map(_joined),
        ),
        max_leaves=8,
    )
    text, wanted = data.draw(expressions)
    assert set(np.flatnonzero(mask_of(columns, sets.combine(text)))) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "sets, at 1: the name of a set is missing"),
        ("a &", "sets, at 4: the name of a set is missing"),
        ("a & & b", "sets, at 5: the name of a set is missing before '&'"),
        ("a b", "sets, at 3: 'b' stands after the end"),
        ("(a | b", "sets, at 7: ')' is missing for the parenthesis at 1"),
        ("a | bb", "sets, at 5: no set 'bb' (did you mean 'b'?)"),
        ("a + b", "sets, at 3: '+' is not part of the language"),
        ("`a", "sets, at 1: '`' is not part of the language"),
        ("~" * (DEEPEST + 1) + "a", "nested more than 200 deep"),
        ("a" * (LONGEST + 1), "at most 10,000 are read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(sets, text, said):
    with pytest.raises(UsageError) as caught:
        sets.combine(text)
    assert said in str(caught.value)


@given(st.text(alphabet="ab`~&|-() \n\x1b", max_size=30))
def test_any_text_is_a_set_or_one_line(columns, drawn, text):
    sets = Sets(columns)
    sets["a"] = sets["b"] = chosen(columns, drawn["a"])
    said = ""
    try:
        assert isinstance(sets.combine(text), NeuronSet)
    except UsageError as error:
        said = str(error)
    assert said.isprintable()


def test_sets_are_written_and_read_as_prune_does(sets, columns, tmp_path):
    sets.save("a", tmp_path / "my cut.json")
    assert NeuronSet.load(tmp_path / "my cut.json") == sets["a"]
    assert sets.load(tmp_path / "my cut.json") == "my cut"
    assert sets.combine("`my cut` - a") == sets["a"] - sets["a"]
    assert sets.load(tmp_path / "my cut.json", "again") == "again"
    assert list(sets) == [*"abcd", "my cut", "again"]
    del sets["again"]
    assert "again" not in sets
    assert len(sets) == 5


def test_a_set_of_another_model_is_refused_in_one_line(sets, tmp_path):
    NeuronSet((4, 4), (np.array([1]), np.array([2]))).save(tmp_path / "other.json")
    with pytest.raises(UsageError, match="other.json: the set is of a model with widths 2 x 4"):
        sets.load(tmp_path / "other.json")
    assert "other" not in sets


def test_files_that_cannot_be_are_one_line(sets, tmp_path):
    (tmp_path / "text.json").write_text("[1]")
    with pytest.raises(DataError, match="cannot be read as a set of neurons"):
        sets.load(tmp_path / "text.json")
    with pytest.raises(DataError, match="cannot be read as a set of neurons"):
        sets.load(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot be written"):
        sets.save("a", tmp_path / "no" / "folder.json")
    with pytest.raises(UsageError, match="no set 'x'; there are a, b, c, d"):
        sets.save("x", tmp_path / "x.json")


@pytest.mark.parametrize("name", ["", "  ", "a`b", "a\nb", "\x1b]0;x\x07", "x" * 61])
def test_names_are_short_and_printable(sets, name):
    with pytest.raises(UsageError, match="1 to 60 printable characters"):
        sets[name] = sets["a"]
