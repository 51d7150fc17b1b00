"""Multiple choice: the harness' requests, its tokens, and log-likelihoods of an unshared model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from glulens.datasets.multiple_choice import PRIMER, Question, load_mmlu, load_truthfulqa
from glulens.datasets.records import BadRecord
from glulens.errors import DataError, UsageError
from glulens.probes.choices import accuracy, encode_choices, floor, mc1, mc2, score_choices
from glulens.probes.hooks import HooksEngine
from glulens.probes.tokens import Encoder

ITEM = {
    "question": "What is 1+1?",
    "mc1_targets": {"Two.": 1, "Three.": 0},
    "mc2_targets": {"Two.": 1, "2": 1, "Three.": 0},
}
ROW = "What is {n}+{n}?,one,two ,three,four,B\n"


def question(choices, labels, context="Q: Once upon a time?\nA:", name="q"):
    return Question(name, context, tuple(choices), tuple(labels), "some")


def write_json(folder: Path, value) -> Path:
    (folder / "mc_task.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def write_mmlu(folder: Path, dev: int = 5, row: str = ROW, subject: str = "high_school_sums"):
    for split, n in (("test", 2), ("dev", dev)):
        (folder / split).mkdir(exist_ok=True)
        text = "".join(row.format(n=k) for k in range(n))
        (folder / split / f"{subject}_{split}.csv").write_text(text, newline="")
    return folder


# --- requests ---


def test_truthfulqa_asks_after_the_primer(tmp_path):
    loaded = load_truthfulqa(write_json(tmp_path, [ITEM]), "mc2")
    (made,) = loaded.records
    assert PRIMER.startswith("Q: What is human life expectancy in the United States?\nA: Human")
    assert PRIMER.count("\nA: ") == PRIMER.count("Q: ") == 6
    assert made.context == PRIMER + "\n\nQ: What is 1+1?\nA:"
    assert made.choices == (" Two.", " 2", " Three.")
    assert made.labels == (1, 1, 0)
    assert (made.id, made.group) == ("truthfulqa-mc2-1", "truthfulqa_mc2")
    assert load_truthfulqa(tmp_path, "mc1").records[0].choices == (" Two.", " Three.")


def test_mmlu_asks_after_solved_questions(tmp_path):
    first, second = load_mmlu(write_mmlu(tmp_path)).records
    lines = "\nA. one\nB. two \nC. three\nD. four\nAnswer:"
    block = "".join(f"What is {k}+{k}?{lines} B\n\n" for k in range(5))
    about = "The following are multiple choice questions (with answers) about high school sums.\n\n"
    assert second.context == f"{about}{block}What is 1+1?{lines}"
    assert second.choices == (" A", " B", " C", " D")
    assert second.labels == (0, 1, 0, 0)
    assert (second.id, second.group) == ("high_school_sums-2", "mmlu_high_school_sums")
    assert first.context.startswith(about + block)
    none = load_mmlu(tmp_path, shots=0)
    assert none.records[1].context == f"{about}What is 1+1?{lines}"
    assert none.sha256 != load_mmlu(tmp_path).sha256


def test_official_files_give_the_harness_requests(official):
    one, several = (load_truthfulqa(official, target).records for target in ("mc1", "mc2"))
    assert len(one) == len(several) == 817
    assert sum(len(q.choices) for q in one) == 4_186
    assert sum(len(q.choices) for q in several) == 6_204
    assert floor(one).mean() == pytest.approx(0.2225, abs=1e-4)
    assert floor(several).mean() == pytest.approx(0.4641, abs=1e-4)
    facts = load_mmlu(official).records
    assert len(facts) == 14_042
    assert len({q.group for q in facts}) == 57
    assert not any("\r" in q.context for q in facts)
    some = load_mmlu(official, ["astronomy", "anatomy"]).records
    assert [q.id for q in some] == [
        q.id for q in facts if q.group in ("mmlu_anatomy", "mmlu_astronomy")
    ]


BAD_ITEMS = [
    ("{", "not valid JSON"),
    ({"question": "?"}, "dict instead of a list"),
    ([ITEM, 3], "json:2: a int instead of an object"),
    ([], "no rows"),
    ([{"question": "?"}], "json:1: 'mc1_targets' is missing"),
    ([ITEM | {"question": " "}], "json:1: question is empty"),
    ([ITEM | {"mc1_targets": [1]}], "json:1: mc1_targets is not an object"),
    ([ITEM | {"mc1_targets": {"Two.": 1}}], "json:1: 1 choices"),
    ([ITEM | {"mc1_targets": {"Two.": 1, " ": 0}}], "json:1: a choice is empty"),
    ([ITEM | {"mc1_targets": {"Two.": 1, "3": 0.5}}], "json:1: a label is neither 0 nor 1"),
    ([ITEM | {"mc1_targets": {"Two.": 0, "3": 0}}], "json:1: no choice is right"),
    ([ITEM | {"mc1_targets": {"Two.": 1, "2": 1}}], "json:1: 2 right choices"),
    ('[{"question": "?", "mc1_targets": {"a": 1, "a": 0}}]', "'a' stands twice"),
]


@pytest.mark.parametrize(("content", "reason"), BAD_ITEMS)
def test_bad_truthfulqa_is_told_with_file_and_item(tmp_path, content, reason):
    with pytest.raises(DataError, match=reason) as told:
        load_truthfulqa(write_json(tmp_path, content), "mc1")
    assert "mc_task.json" in str(told.value)


@pytest.mark.parametrize("letter", ["E", "AB", "", "b"])
def test_an_answer_that_is_no_letter_is_told_with_its_line(tmp_path, letter):
    write_mmlu(tmp_path, row=ROW.replace(",B\n", f",{letter}\n"))
    with pytest.raises(DataError, match=r"high_school_sums_test.csv:1: .*answer is not one of"):
        load_mmlu(tmp_path)


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(DataError, match="no such data folder"):
        load_mmlu(tmp_path / "none")
    for load in (load_mmlu, lambda source: load_truthfulqa(source, "mc1")):
        with pytest.raises(DataError, match="looked for"):
            load(tmp_path)
        with pytest.raises(DataError, match="built-in sample has no multiple choice"):
            load("builtin")
    write_mmlu(tmp_path, dev=4)
    with pytest.raises(DataError, match="4 dev questions for high_school_sums where 5"):
        load_mmlu(tmp_path)
    assert len(load_mmlu(tmp_path, shots=4)) == 2
    with pytest.raises(UsageError, match="did you mean 'high_school_sums'"):
        load_mmlu(tmp_path, ["high_school_sum"], shots=4)
    with pytest.raises(UsageError, match="6 shots"):
        load_mmlu(tmp_path, shots=6)
    with pytest.raises(UsageError, match="mc3"):
        load_truthfulqa(tmp_path, "mc3")  # pyright: ignore


def test_a_question_checks_itself():
    for choices, labels in (("a", (1,)), ("ab", (1,)), ("a ", (1, 0)), ("ab", (True, False))):
        with pytest.raises(BadRecord):
            question(choices, labels)
    with pytest.raises(BadRecord, match="context"):
        question("ab", (1, 0), context="\n")


# --- tokens ---

PAIRS = [
    ("Q: What is it?\nA:", " A dog."),
    ("Q: What is it?\nA: ", "A dog."),
    ("Once upon a time \n ", "there was"),
    ("Once upon a ti", "me there"),
    ("Answer:", " B"),
    ("Größe \u3000", "naïve 42"),
    ("A ", "dog"),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_white_space_goes_to_the_choice_and_both_are_one_text(smollm, pair):
    context, choice = pair
    (made,) = encode_choices(Encoder(smollm.tokenizer), context, [choice])
    before = smollm.tokenizer(context.rstrip())["input_ids"]
    after = smollm.tokenizer(context + choice)["input_ids"][len(before) :]
    assert (list(made.ids), made.start) == (before + after, len(before))


@pytest.mark.parametrize("pair", PAIRS)
def test_tokens_are_those_of_the_harness(smollm, pair):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", exc_type=ImportError)
    harness = huggingface.HFLM(pretrained=smollm.model, tokenizer=smollm.tokenizer)
    context, choice = harness._encode_pair(*pair)
    (made,) = encode_choices(Encoder(smollm.tokenizer), pair[0], [pair[1]])
    assert (list(made.ids[: made.start]), list(made.ids[made.start :])) == (context, choice)


# --- scores ---


def unshared(opened, context: str, choice: str) -> float:
    ids = torch.tensor([opened.tokenizer(context + choice)["input_ids"]])
    start = len(opened.tokenizer(context)["input_ids"])
    with torch.inference_mode():
        log_p = opened.model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    return float(log_p.gather(1, ids[0, 1:, None]).double()[start - 1 :].sum())


def test_scores_are_those_of_each_choice_alone(stories, tmp_path):
    made = [
        *load_mmlu(write_mmlu(tmp_path), shots=3).records,
        question([" Lily", " Tom", " Tom and Lily"], (1, 0, 0)),
        question([" Tom", " Tom"], (1, 0)),
    ]
    found = score_choices(HooksEngine(stories.model), Encoder(stories.tokenizer), made)
    for scores, asked in zip(found, made, strict=True):
        assert scores.dtype == np.float64
        alone = [unshared(stories, asked.context, choice) for choice in asked.choices]
        np.testing.assert_allclose(scores, alone, atol=1e-3)
    assert found[2][1] == found[3][0] == found[3][1]


def test_a_real_model_is_scored_as_it_is_alone(smollm, official):
    some = [
        replace(q, choices=q.choices[:3], labels=q.labels[:3])
        for q in load_truthfulqa(official, "mc2").records[:2]
    ]
    found = score_choices(HooksEngine(smollm.model), Encoder(smollm.tokenizer), some)
    for scores, asked in zip(found, some, strict=True):
        alone = [unshared(smollm, asked.context, choice) for choice in asked.choices]
        np.testing.assert_allclose(scores, alone, atol=1e-3)


def test_what_is_asked_twice_is_run_once(stories):
    told: list[int] = []
    asked = [question([" Tom", " Lily"], (1, 0)), question([" Lily", " Tom"], (0, 1), name="r")]
    engine, encoder = HooksEngine(stories.model), Encoder(stories.tokenizer)
    found = score_choices(
        engine, encoder, asked, progress=lambda what, done, total: told.append(total)
    )
    assert told[-1] == 2
    assert list(found[0]) == list(found[1][::-1])
    assert score_choices(engine, encoder, []) == []


def test_a_text_too_long_is_refused_with_its_question(stories):
    with pytest.raises(DataError, match=r"^q: a text of .* exceeds"):
        score_choices(
            HooksEngine(stories.model),
            Encoder(stories.tokenizer, max_length=5),
            [question([" Tom", " Lily"], (1, 0))],
        )


# --- metrics ---


def test_metrics_on_numbers_made_by_hand():
    asked = [
        question("abc", (1, 0, 0)),
        question("abc", (0, 1, 1)),
        question("ab", (0, 1)),
        question("ab", (0, 1)),
    ]
    scores = [
        np.log([0.5, 0.25, 0.25]),
        np.log([0.2, 0.1, 0.1]) - 2_000,  # so unlikely that exp alone gives 0 / 0
        np.array([-3.0, -3.0]),
        np.array([-np.inf, -1.0]),
    ]
    assert list(accuracy(scores, asked)) == [1, 0, 0, 1]  # of equals the first
    assert mc1 is accuracy
    np.testing.assert_allclose(mc2(scores, asked), [0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(floor(asked), [1 / 3, 2 / 3, 1 / 2, 1 / 2])
    with pytest.raises(ValueError, match="q: scores"):
        accuracy([np.zeros(2)], asked[:1])
    with pytest.raises(DataError, match="not a number"):
        mc2([np.array([0, np.nan, 0])], asked[:1])
