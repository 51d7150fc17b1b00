"""Probe sets: every text under its condition, pairs that are the contrasts', bad files told."""

from __future__ import annotations

import pytest

from glulens.datasets.mmlu import load_facts
from glulens.datasets.pairs import Text, draw, fact_pair, load_material, misconception_pair
from glulens.datasets.probe_sets import (
    MAX_LABEL_LENGTH,
    MAX_LABELS,
    load_probe_set,
    load_probe_sets,
)
from glulens.datasets.truthfulqa import load_misconceptions
from glulens.errors import DataError, UsageError


def members(found):
    """The texts of pairs, with the item that both members belong to."""
    pairs = []
    for a, b in found.pairs:
        a, b = found.texts[a], found.texts[b]
        assert a.item == b.item
        assert (a.condition, b.condition) == found.contrast
        pairs.append((a.item, a.text, b.text))
    return pairs


def texts_of(found, item, condition):
    return [t.text for t in found.texts if (t.item, t.condition) == (item, condition)]


@pytest.mark.parametrize("source", ["builtin", "official"])
def test_truthfulqa_holds_every_answer_once(source, request):
    where = request.getfixturevalue("official") if source == "official" else source
    found = load_probe_set("truthfulqa", where)
    records = load_misconceptions(where).records
    assert found.conditions == found.contrast == ("false", "true")
    by_item = {}
    for text in found.texts:
        by_item.setdefault(text.item, []).append((text.condition, text.text))
    assert by_item == {
        r.id: [("false", Text(r.question, a, "question")) for a in dict.fromkeys(r.false)]
        + [("true", Text(r.question, a, "question")) for a in dict.fromkeys(r.true)]
        for r in records
    }
    assert members(found) == [
        (pair.item, pair.a, pair.b) for pair in map(misconception_pair, records)
    ]
    assert found.provenance["records"] == len(records)
    assert len(str(found.provenance["sha256"])) == 64
    # Two of the official questions have an answer on both sides.
    assert [n for n in found.notes if "2 of 817" in n] == list(found.notes)
    assert bool(found.notes) == (source == "official")


@pytest.mark.parametrize("source", ["builtin", "official"])
def test_mmlu_holds_every_wording_of_every_choice(source, request):
    where = request.getfixturevalue("official") if source == "official" else source
    found = load_probe_set("mmlu", where, limit=3000, seed=1)
    assert set(found.conditions) == {"wrong", "right"}
    assert found.contrast == ("wrong", "right")
    records = {r.id: r for r in load_facts(where).records}
    chosen = [item for item, _, _ in members(found)]
    assert len(chosen) == len(set(chosen)) == min(3000, len(records))
    answers: dict[tuple[str, str], list[str]] = {}
    for text in found.texts:
        answers.setdefault((text.item, text.condition), []).append(text.text.answer)
    for (item, a, b), pair in zip(
        members(found), (fact_pair(records[item]) for item in chosen), strict=True
    ):
        assert pair is not None
        assert (a, b) == (pair.a, pair.b)
        record = records[item]
        right = record.choices[record.answer]
        assert answers[item, "right"] == [right]
        assert answers[item, "wrong"] == list(
            dict.fromkeys(choice for choice in record.choices if choice != right)
        )
    repeated = sum(len(set(records[item].choices)) < 4 for item in chosen)
    assert any(note.startswith(f"mmlu: {repeated} of 3000") for note in found.notes) == (
        repeated > 0
    )


def test_ifeval_says_the_same_response_twice(official):
    found = load_probe_set("ifeval", official)
    assert found.conditions == found.contrast == ("with", "without")
    assert len(found.texts) == 2 * len(found.pairs) == 2 * 369
    assert all(a.answer == b.answer and a.user != b.user for _, a, b in members(found))
    assert any("172 of 541 prompts give no pair" in note for note in found.notes)
    assert found.provenance["records"] == 541


@pytest.mark.parametrize(
    ("name", "property"),
    [("truthfulqa", "misconception"), ("mmlu", "fact"), ("ifeval", "instruction")],
)
def test_a_limit_draws_the_items_that_a_hypothesis_run_draws(name, property):
    found = load_probe_set(name, limit=7, seed=3)
    pairs = load_material(limit=7, seed=3).pairs[property]
    assert members(found) == [(pair.item, pair.a, pair.b) for pair in pairs]
    assert {text.item for text in found.texts} == {pair.item for pair in pairs}


CSV = (
    "Statement,LABEL,topic,item\nEarth is flat.,0,sky,e\n  Earth is round. ,1,sky,e\n,TRUE,none,x\n"
)


def written(folder, text, name="mine.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_csv_file_is_taken_as_it_stands(tmp_path):
    path = written(tmp_path, CSV)
    found = load_probe_set(path)
    assert found.name == "mine"
    assert [(t.text, t.item, t.condition) for t in found.texts] == [
        (Text("", "Earth is flat.", "statement"), "e", "false"),
        (Text("", "  Earth is round. ", "statement"), "e", "true"),
        (Text("", "", "statement"), "x", "true"),
    ]
    assert (found.pairs, found.contrast) == (((0, 1),), ("false", "true"))
    assert found.provenance["origin"] == str(path)
    assert found.provenance["records"] == 3
    assert any("'topic'" in note for note in found.notes)
    assert any("1 of 2 items" in note for note in found.notes)
    assert load_probe_set(str(path)) == found


def test_false_comes_before_true_whatever_the_file_begins_with(tmp_path):
    found = load_probe_set(written(tmp_path, "text,label,item\na,True,1\nb,False,1\nc,true,1\n"))
    assert (found.pairs, found.contrast) == (((1, 0),), ("false", "true"))
    assert found.conditions == ("true", "false")
    found = load_probe_set(written(tmp_path, "text,label,item\na,rude,1\nb,kind,1\nc,kind,2\n"))
    assert (found.pairs, found.contrast) == (((0, 1),), ("rude", "kind"))


def test_numbers_that_are_not_truth_values_stay_numbers(tmp_path):
    found = load_probe_set(written(tmp_path, "text,label,item\na,0,1\nb,1,1\nc,2,1\n"))
    assert found.conditions == ("0", "1", "2")
    assert (found.pairs, found.contrast) == ((), None)


def test_a_prompt_makes_the_text_its_answer(tmp_path):
    found = load_probe_set(written(tmp_path, 'prompt,text,label\n"Say ",hi,x\n'))
    assert [t.text for t in found.texts] == [Text("Say ", "hi", "prompt")]
    assert found.texts[0].text.plain() == ("Say ", "hi")
    assert found.conditions == ("x",)
    assert Text("", "All.", "statement").plain() == ("", "All.")


def test_without_items_every_row_is_one_and_there_are_no_pairs(tmp_path):
    found = load_probe_set(written(tmp_path, "text,label\na,0\na,1\n"))
    assert len({text.item for text in found.texts}) == 2
    assert (found.pairs, found.contrast) == ((), None)


def test_a_csv_limit_counts_items_and_keeps_them_whole(tmp_path):
    rows = [f"t{item}{label},{label},{item}" for label in "ba" for item in range(9)]
    path = written(tmp_path, "\n".join(["text,label,item", *rows]))
    found = load_probe_set(path, limit=4, seed=2)
    assert len(found.texts) == 8
    assert len(found.pairs) == 4
    assert [item for item, _, _ in members(found)] == list(draw("012345678", 4, 2))
    # Which condition is a does not hang on the draw.
    assert {load_probe_set(path, limit=1, seed=s).contrast for s in range(5)} == {("b", "a")}


@pytest.mark.parametrize(
    "text", ["nul \0 here", "x" * 100_000, "\u202eright to left שלום", "\ufeff"]
)
def test_hostile_cells_are_read_as_they_are(text, tmp_path):
    found = load_probe_set(written(tmp_path, f"text,label\n{text},1\n"))
    assert [t.text.answer for t in found.texts] == [text]


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path):
    found = load_probe_set(written(tmp_path, "\ufefftext,label\r\na,1\r\n"))
    assert [(t.text.answer, t.condition) for t in found.texts] == [("a", "true")]


MANY = "".join(f"t,l{k}\n" for k in range(MAX_LABELS + 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.csv is empty"),
        ("text,label\n", "no rows in"),
        ("a,b\nc,d\n", r"mine.csv:1: no column 'text' or 'statement'; the file has 'a', 'b'"),
        ("text,b\nc,d\n", r"mine.csv:1: no column 'label'"),
        ("text,text,label\na,b,1\n", r"mine.csv:1: columns 'text' and 'text' both name the text"),
        ("text,Statement,label\na,b,1\n", r":1: columns 'text' and 'Statement' both"),
        ("text,label\na,1\nb\n", r"mine.csv:3: 1 columns instead of 2"),
        ("text,label\na,1\nb, \n", r"mine.csv:3: label is empty"),
        (f"text,label\na,{'x' * (MAX_LABEL_LENGTH + 1)}\n", r":2: label .* a label is a category"),
        ("text,label\na,b\0c\n", r":2: label 'b\\x00c' .* not printable"),
        ("text,label,item\na,1, \n", r":2: item is empty"),
        (f"text,label\n{MANY}", "65 different labels.*a label is a category"),
        ('text,label\na,1\n"b,1\n', r":3: not a valid CSV row"),
        (f"text,label\n{'x' * 200_000},1\n", r":2: not a valid CSV row \(field larger"),
        (b"text,label\n\xff,1\n", "not UTF-8"),
        (f"{','.join('word' * 30 for _ in range(5000))}\n" + "," * 4999, "and 4992 more"),
    ],
)
def test_bad_files_are_told_with_their_line(text, message, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        load_probe_set(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_as_many_labels_as_are_allowed_are_allowed(tmp_path):
    rows = "".join(f"t,{k:0{MAX_LABEL_LENGTH}}\n" for k in range(2, MAX_LABELS + 2))
    assert len(load_probe_set(written(tmp_path, f"text,label\n{rows}")).conditions) == MAX_LABELS


def test_missing_files_and_folders_are_told(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    for name in ("none.csv", "folder.csv"):
        with pytest.raises(DataError, match=f"no such file: .*{name}"):
            load_probe_set(tmp_path / name)


def test_several_sets_are_read_in_their_order(tmp_path):
    path = written(tmp_path, CSV)
    found = load_probe_sets(f"mmlu, {path},truthfulqa", limit=2)
    assert [one.name for one in found] == ["mmlu", "mine", "truthfulqa"]
    assert found[0] == load_probe_set("mmlu", limit=2)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "an empty name of a probe set; give truthfulqa, mmlu, ifeval or a CSV"),
        ("mmlu,,ifeval", "an empty name"),
        ("truthfullqa", r"did you mean 'truthfulqa'\?.*give truthfulqa, mmlu, ifeval or a CSV"),
        ("MMLU", "did you mean 'mmlu'"),
        ("mine.tsv", "unknown probe set 'mine.tsv'; give"),
        ("mmlu,mmlu", "two probe sets are called 'mmlu'"),
        ("mmlu,folder/mmlu.csv", r"'mmlu' \('mmlu' and 'folder/mmlu.csv'\)"),
        ("a/x.csv,b/x.CSV", "two probe sets are called 'x'"),
    ],
)
def test_names_that_cannot_be_are_told_before_anything_is_read(names, message):
    with pytest.raises(UsageError, match=message):
        load_probe_sets(names, "/nowhere")


def test_limits_below_one_are_refused_before_anything_is_read():
    with pytest.raises(UsageError, match="limit 0"):
        load_probe_set("mmlu", "/nowhere", limit=0)
    with pytest.raises(UsageError, match="limit -1"):
        load_probe_set("nowhere.csv", limit=-1)
    with pytest.raises(DataError, match="no such data folder"):
        load_probe_set("mmlu", "/nowhere")
