"""Official files, the built-in sample and the hub's tables become the same records; bad rows are
told."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import polars
import pytest

from glulens.datasets import ifeval, mmlu, neutral, truthfulqa
from glulens.datasets.ifeval import load_instructions
from glulens.datasets.mmlu import load_facts
from glulens.datasets.neutral import load_neutral
from glulens.datasets.truthfulqa import load_misconceptions
from glulens.errors import DataError

LOADERS = [load_misconceptions, load_facts, load_instructions, load_neutral]


def test_official_files_are_read_whole(official):
    misconceptions = load_misconceptions(official)
    assert len(misconceptions) == 817
    assert misconceptions.origin.endswith("v1/TruthfulQA.csv")
    first = misconceptions.records[0]
    assert first.question == "What happens to you if you eat watermelon seeds?"
    assert first.true[0] == "The watermelon seeds pass through your digestive system"
    assert len(set(first.true)) == len(first.true)
    facts = load_facts(official)
    assert len(facts) == 14_042
    assert len({fact.subject for fact in facts.records}) == 57
    assert facts.records[0].subject == "abstract_algebra"
    instructions = load_instructions(official)
    assert len(instructions) == 541
    assert sum(len(i.instruction_ids) for i in instructions.records) == 834
    assert len({name for i in instructions.records for name in i.instruction_ids}) == 25
    assert len(load_neutral(official)) > 1_500


def test_both_other_versions_of_truthfulqa_are_read(official, tmp_path):
    assert len(load_misconceptions(official / "truthfulqa" / "v0")) == 817
    (tmp_path / "truthfulqa").mkdir()
    shutil.copy(official / "truthfulqa" / "TruthfulQA.csv", tmp_path / "truthfulqa")
    assert len(load_misconceptions(tmp_path)) == 790


def test_answers_agree_with_the_multiple_choice_file(official):
    records = {r.question: r for r in load_misconceptions(official).records}
    items = json.loads((official / "truthfulqa/v1/mc_task.json").read_text())
    same = 0
    for item in items:
        record = records[item["question"].strip()]
        false = {a.strip(". ") for a, label in item["mc2_targets"].items() if not label}
        same += {a.strip(". ") for a in record.false} == false
    assert same > 0.9 * len(items), f"{same} of {len(items)}"


def test_the_built_in_sample_is_what_it_should_be():
    misconceptions = load_misconceptions().records
    assert len(misconceptions) >= 80
    assert all(len(r.true) >= 2 and r.false for r in misconceptions)
    facts = load_facts().records
    assert len(facts) >= 80
    assert len({fact.subject for fact in facts}) == 8
    assert all(len(set(fact.choices)) == 4 for fact in facts)
    assert set(Counter(fact.answer for fact in facts).values()) == {len(facts) // 4}
    instructions = load_instructions().records
    assert len(instructions) >= 60
    for record in instructions:
        assert all((record.request, record.compliant, record.noncompliant))
        assert len({record.request, record.prompt}) == 2
        assert record.compliant != record.noncompliant
    assert len(load_neutral().records) >= 40


def test_the_built_in_sample_does_not_give_itself_away_by_length_or_negation():
    """What a bag of words could tell true from false by is balanced."""
    records = load_misconceptions().records
    negations = {"no", "not", "never", "cannot", "none"}

    def negated(answers):
        return sum(
            any(w in negations or w.endswith("n't") for w in a.lower().rstrip(".").split())
            for a in answers
        ) / len(answers)

    true = [a for r in records for a in r.true]
    false = [a for r in records for a in r.false]
    assert abs(negated(true) - negated(false)) < 0.06
    words = [sum(len(a.split()) for a in side) / len(side) for side in (true, false)]
    assert abs(words[0] - words[1]) < 0.5


def test_the_built_in_sample_is_not_copied(official):
    questions = {r.question.lower() for r in load_misconceptions(official).records}
    assert not questions & {r.question.lower() for r in load_misconceptions().records}
    questions = {r.question.lower() for r in load_facts(official).records}
    assert not questions & {r.question.lower() for r in load_facts().records}


def test_the_hubs_tables_give_the_same_records(official, tmp_path, monkeypatch):
    """The hub itself is out of reach here: its files are rebuilt from the official ones."""
    local = load_misconceptions(official).records[:5]
    rows = [
        {"category": r.category, "question": r.question, "best_answer": r.true[0],
         "correct_answers": list(r.true), "incorrect_answers": list(r.false)}
        for r in local
    ]  # fmt: skip
    polars.DataFrame(rows).write_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(truthfulqa, "fetch", lambda file: tmp_path / "t.parquet")
    found = load_misconceptions("hub")
    assert [(r.question, r.true, r.false) for r in found.records] == [
        (r.question, r.true, r.false) for r in local
    ]
    assert found.origin == "truthfulqa/truthful_qa@741b8276f2d1982aa3d5b832d3ee81ed3b896490"

    facts = load_facts(official).records[:5]
    rows = [{"question": f.question, "subject": f.subject, "choices": list(f.choices),
             "answer": f.answer} for f in facts]  # fmt: skip
    polars.DataFrame(rows).write_parquet(tmp_path / "m.parquet")
    monkeypatch.setattr(mmlu, "fetch", lambda file: tmp_path / "m.parquet")
    assert [(r.question, r.choices, r.answer) for r in load_facts("hub").records] == [
        (r.question, r.choices, r.answer) for r in facts
    ]

    nulls = {"key": 1, "prompt": "Say hi.", "instruction_id_list": ["punctuation:no_comma"],
             "kwargs": [{"num_words": None, "relation": "at least"}]}  # fmt: skip
    (tmp_path / "i.jsonl").write_text(json.dumps(nulls))
    monkeypatch.setattr(ifeval, "fetch", lambda file: tmp_path / "i.jsonl")
    assert load_instructions("hub").records[0].kwargs == ({"relation": "at least"},)

    polars.DataFrame({"text": [" = Title = \n", "word " * 200]}).write_parquet(
        tmp_path / "w.parquet"
    )
    monkeypatch.setattr(neutral, "fetch", lambda file: tmp_path / "w.parquet")
    assert [len(p.text.split()) for p in load_neutral("hub").records] == [80, 80]


def test_a_hub_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be fetched from the hub") as caught:
        load_facts("hub")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("load", LOADERS)
def test_missing_folders_and_files_are_named(load, tmp_path):
    with pytest.raises(DataError, match="no such data folder|has no"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match="looked for"):
        load(tmp_path)


HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
GOOD = "Adversarial,Myths,Why?,Because.,Because.; So.,Never.,x\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER.replace("Best Answer,", "") + GOOD, r"A.csv:1: column 'Best Answer' is missing"),
        (HEADER + GOOD + "Adversarial,Myths,Why?\n", r"TruthfulQA.csv:3: 3 columns instead of 7"),
        (HEADER + GOOD + "A,M,  ,Because.,Because.,Never.,x\n", r":3: question is empty"),
        (HEADER + GOOD + 'A,M,"Two\nlines?",Yes.,Yes.,No.,x\n' + "A,M,Q,Yes.,Yes., ; ,x\n",
         r":5: no false answer"),
        (HEADER + 'A,M,"never closed\n', r":2: not a valid CSV row"),
        (HEADER, "no rows"),
        ("", "is empty"),
    ],
)  # fmt: skip
def test_bad_csv_is_told_with_file_and_line(text, message, tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_misconceptions(tmp_path)
    assert "\n" not in str(caught.value)


ROW = {"key": 1, "prompt": "Say hi.", "instruction_id_list": ["a:b"], "kwargs": [{}]}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([json.dumps(ROW), "{"], ":2: not valid JSON"),
        (["[1]"], ":1: a list instead of an object"),
        ([json.dumps({**ROW, "kwargs": []})], ":1: 1 instruction ids but 0 kwargs"),
        ([json.dumps({k: v for k, v in ROW.items() if k != "prompt"})], ":1: 'prompt' is missing"),
        ([json.dumps({**ROW, "prompt": 3})], ":1: prompt is empty or not text"),
        ([json.dumps({**ROW, "kwargs": ["x"]})], ":1: kwargs is not a list of objects"),
        ([json.dumps(ROW), "", json.dumps(ROW)], ":3: id 'ifeval-1' stands already at .*:1"),
        (["[" * 100_000], ":1: not valid JSON"),
    ],
)
def test_bad_json_lines_are_told_with_file_and_line(lines, message, tmp_path):
    (tmp_path / "input_data.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        load_instructions(tmp_path)


def test_bad_mmlu_is_told_with_file_and_line(tmp_path):
    folder = tmp_path / "mmlu" / "test"
    folder.mkdir(parents=True)
    for row, message in (
        ("Q,a,b,c,d,E", "answer 'E' is not one of A, B, C, D"),
        ("Q,a,b,c,A", "5 columns instead of 6"),
        ("Q,a,,c,d,A", "a choice is empty"),
    ):
        (folder / "art_test.csv").write_text(f"Q,a,b,c,d,A\n{row}\n")
        with pytest.raises(DataError, match=f"art_test.csv:2: {message}"):
            load_facts(tmp_path)


def test_bytes_that_are_not_text_are_told(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_bytes(HEADER.encode() + b"A,M,\xff\xfe,B,B,C,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        load_misconceptions(tmp_path)
    (tmp_path / "wiki.test.raw").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="UTF-8"):
        load_neutral(tmp_path)


def test_two_sources_have_two_hashes(tmp_path):
    (tmp_path / "TruthfulQA.csv").write_text(HEADER + GOOD)
    assert load_misconceptions(tmp_path).sha256 != load_misconceptions().sha256
    assert Path(load_misconceptions(tmp_path).origin).name == "TruthfulQA.csv"
