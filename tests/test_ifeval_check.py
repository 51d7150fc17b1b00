"""IFEval's checker offline: the harness' own verdicts, instruction by instruction."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glulens.errors import DataError

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'glulens[eval]'")
pytest.importorskip("langdetect", reason="langdetect is missing: pip install 'glulens[eval]'")
pytest.importorskip("immutabledict", reason="immutabledict is missing: pip install 'glulens[eval]'")

from ifeval_canned import SENTENCES, canned

from glulens.interp import ifeval_check
from glulens.interp.harness import quiet
from glulens.interp.harness_tables import instructions
from glulens.interp.harness_tasks import local_tasks
from glulens.interp.ifeval_check import Checked, accuracies, by_kind, contentless, load_checker

TRAINED_HERE = ifeval_check._trained_are_there()
KINDS_OF_SENTENCES = {
    "length_constraints:number_sentences",
    "change_case:capital_word_frequency",
}


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    """A test may change how sentences are found; the next begins as the machine is."""
    yield
    load_checker()


@pytest.fixture(scope="module")
def prompts(official: Path) -> list[dict[str, Any]]:
    return instructions(official)["train"]


def checked(prompts: list[dict[str, Any]], *, trained: bool | None = None) -> list[Checked]:
    checker = load_checker(trained=trained)
    return [checker.check(row, canned(row, number)) for number, row in enumerate(prompts)]


def test_541_answers_get_the_verdicts_of_the_harness(prompts: list[dict[str, Any]]) -> None:
    """With NLTK's parameters here this is the harness as it is; without, all but its tokenizer."""
    ours = checked(prompts)
    from lm_eval.tasks.ifeval import utils

    followed: dict[str, set[bool]] = {}
    for number, (row, mine) in enumerate(zip(prompts, ours, strict=True)):
        random.seed(row["key"])  # an instruction may be drawn (see prompt 1122)
        theirs = utils.process_results(row, [canned(row, number)])
        assert list(mine.strict) == theirs["inst_level_strict_acc"]
        assert list(mine.loose) == theirs["inst_level_loose_acc"]
        for kind, strict in zip(mine.instructions, mine.strict, strict=True):
            followed.setdefault(kind, set()).add(strict)
    assert len(ours) == 541
    assert sum(len(mine.strict) for mine in ours) == 834
    # The answers tell something: every kind of instruction is followed once, and once it is not.
    assert len(followed) == 25
    assert all(seen == {True, False} for seen in followed.values())


def test_the_harness_own_task_on_canned_answers(
    prompts: list[dict[str, Any]], official: Path
) -> None:
    from lm_eval import evaluator
    from lm_eval.api.model import LM

    answers = {row["prompt"]: canned(row, number) for number, row in enumerate(prompts)}

    class Canned(LM):
        def generate_until(self, requests: Any) -> list[str]:
            return [answers[request.args[0]] for request in requests]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    tasks: Any = {task.config.task: task for task in local_tasks(["ifeval"], official)}
    with quiet():
        given: Any = {"tasks": tasks, "groups": {}}
        found: Any = evaluator.evaluate(Canned(), given, bootstrap_iters=0)
    scores = {k.removesuffix(",none"): v for k, v in found["results"]["ifeval"].items()}
    for metric, value in accuracies(checked(prompts)).items():
        assert scores[metric] == pytest.approx(value, abs=1e-12)


def test_an_answer_always_gets_the_same_verdict(prompts: list[dict[str, Any]]) -> None:
    drawn = [row for row in prompts if row["key"] == 1122]  # wants the letter "#"
    language = [row for row in prompts if "language" in str(row["instruction_id_list"])][:8]
    checker = load_checker()
    for row in drawn + language:
        seen = set()
        for seed in range(8):
            random.seed(seed)
            before = random.getstate()
            seen.add(checker.check(row, "the the plan so ok e o i ue " * 6))
            assert random.getstate() == before
        assert len(seen) == 1


def test_the_floor_of_an_answer_without_content(prompts: list[dict[str, Any]]) -> None:
    found = accuracies(contentless(prompts))
    assert found["prompt_level_strict_acc"] == pytest.approx(0.161, abs=5e-4)
    kinds = by_kind(contentless(prompts[:40]))
    assert sum(row["n"] for row in kinds.values()) == sum(
        len(row["instruction_id_list"]) for row in prompts[:40]
    )
    assert kinds["punctuation:no_comma"]["strict"] == 1
    assert kinds["detectable_format:title"]["loose"] == 0


def test_built_in_sentences() -> None:
    load_checker(trained=False)
    from lm_eval.tasks.ifeval import instructions_util

    whole, cut = SENTENCES[0], SENTENCES[2]  # after "Dr." and "U.S." none begins, after "e.g." one
    assert instructions_util.count_sentences(whole) == 1
    assert instructions_util.count_sentences(cut) == 2
    assert (
        instructions_util.count_sentences("It rained. He left! Why? It was good... but late") == 4
    )
    words = instructions_util.nltk.word_tokenize("They don't go to the U.S. Mr. X. left.")
    assert words == ["They", "do", "n't", "go", "to", "the", "U.S.", "Mr.", "X.", "left", "."]
    if not TRAINED_HERE:
        assert "not on this machine" in load_checker().tokenizer
        with pytest.raises(DataError, match="nltk.downloader"):
            load_checker(trained=True)


@pytest.mark.skipif(not TRAINED_HERE, reason="NLTK's punkt_tab is not on this machine")
def test_built_in_sentences_do_nearly_as_the_trained_ones(prompts: list[dict[str, Any]]) -> None:
    both = checked(prompts, trained=True), checked(prompts, trained=False)
    differ = [
        kind
        for one, other in zip(*both, strict=True)
        for place, kind in enumerate(one.instructions)
        if (one.strict[place], one.loose[place]) != (other.strict[place], other.loose[place])
    ]
    assert set(differ) <= KINDS_OF_SENTENCES
    assert len(differ) <= 4  # of 834; "A. B. Brown" is two sentences more to the trained ones
    assert instructions_prompts_differ(prompts) <= 8


def instructions_prompts_differ(prompts: list[dict[str, Any]]) -> int:
    """In how many of the prompts themselves another number of sentences is found."""
    counts = []
    for trained in (True, False):
        load_checker(trained=trained)
        from lm_eval.tasks.ifeval import instructions_util

        counts.append([instructions_util.count_sentences(row["prompt"]) for row in prompts])
    return sum(a != b for a, b in zip(*counts, strict=True))
