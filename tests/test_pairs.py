"""Pairs differ in the property and as little else as the data allow; nothing is lost on the way."""

from __future__ import annotations

import pytest

from glulens.datasets.pairs import (
    PROPERTIES,
    Text,
    control_pair,
    draw,
    fact_pair,
    instruction_pair,
    load_material,
    misconception_pair,
)
from glulens.datasets.records import Fact, Instruction, Misconception
from glulens.errors import DataError, UsageError

RECORD = Misconception("m", "Why?", ("The best.", "Other one", "No."), ("Far too long", "A wrong."))


def test_members_are_matched_in_length():
    pair = misconception_pair(RECORD)
    assert (pair.a.answer, pair.b.answer) == ("A wrong.", "The best.")
    control = control_pair(RECORD)
    assert control is not None
    assert (control.a.answer, control.b) == ("Other one", pair.b)
    assert control_pair(Misconception("m", "Why?", ("One.", "One."), ("No.",))) is None


def test_a_fact_contrasts_texts_not_letters():
    pair = fact_pair(Fact("f", "Capital?", ("Rome", "Paris", "Vienna"), 1))
    assert pair is not None
    assert (pair.a.answer, pair.b.answer) == ("Rome", "Paris")
    assert pair.a.plain() == ("Q: Capital?\nA:", " Rome")
    assert fact_pair(Fact("f", "Q?", ("same", "same"), 0)) is None


def test_an_instruction_contrasts_prompts_with_the_same_response():
    ids, kwargs = ("change_case:english_lowercase",), ({},)
    whole = Instruction("i", "Tell a joke. Use lowercase.", ids, kwargs, "Tell a joke.", "ha", "Ha")
    pair = instruction_pair(whole)
    assert pair is not None
    assert (pair.a.user, pair.b.user) == ("Tell a joke. Use lowercase.", "Tell a joke.")
    assert pair.a.answer == pair.b.answer == "ha"
    assert pair.a.plain() == ("Tell a joke. Use lowercase.\n\n", "ha")
    unknown = Instruction("i", "Tell a joke.", ("made:up",), ({},))
    assert instruction_pair(unknown) is None


@pytest.mark.parametrize("source", ["builtin", "official"])
def test_material_is_complete_and_its_losses_are_counted(source, request):
    where = request.getfixturevalue("official") if source == "official" else source
    material = load_material(where, limit=50, seed=1)
    assert set(material.pairs) == set(PROPERTIES)
    for name, pairs in material.pairs.items():
        assert all(pair.property == name and pair.a != pair.b for pair in pairs)
        assert len({pair.item for pair in pairs}) == len(pairs)
    assert [len(p) for n, p in material.pairs.items() if n != "control"] == [50, 50, 50]
    items = {pair.item for pair in material.pairs["misconception"]}
    assert {pair.item for pair in material.pairs["control"]} <= items
    lost = 50 - len(material.pairs["control"])
    assert any(f"{lost} of 50 drawn" in note for note in material.notes) == bool(lost)
    if source == "official":
        assert any(note.startswith("ifeval: 172 of 541 prompts") for note in material.notes)
    assert load_material(where, limit=50, seed=1) == material
    assert load_material(where, limit=50, seed=2).pairs != material.pairs


def test_limits_below_one_and_too_little_data_are_refused():
    with pytest.raises(UsageError, match="limit 0"):
        load_material(limit=0)
    with pytest.raises(DataError, match="at least 2 are needed"):
        load_material(limit=1)


def test_draw_keeps_order_and_takes_all_when_it_may():
    assert draw("abcdef", 3, 0) == tuple(sorted(draw("abcdef", 3, 0)))
    assert draw("abc", 5, 0) == tuple("abc")
    assert draw("abc", None, 0) == tuple("abc")


def test_texts_are_values():
    assert Text("u", "a", "question") == Text("u", "a", "question")
    assert len({Text("u", "a", "question"), Text("u", "a", "question")}) == 1
