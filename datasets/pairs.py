"""Paired contrasts: two texts of one item that differ in a property and in little else.

=============  =====================================  ==========================================
property       a minus b                              what it is
=============  =====================================  ==========================================
misconception  a false minus a true answer            TruthfulQA
fact           a wrong minus the right choice         MMLU, choices as text (no letters)
instruction    with minus without the instruction     IFEval; the same response after both
control        another true minus the best answer     same questions, same form, nothing false in it
=============  =====================================  ==========================================

Of several answers the one nearest in length to the other member's is taken, so that length tells
the two apart as little as the data allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from ..errors import DataError, UsageError
from .ifeval import load_instructions
from .ifeval_pairs import compliant_opening, without_instruction
from .mmlu import load_facts
from .neutral import load_neutral
from .records import Fact, Instruction, Misconception, Passage
from .sources import BUILTIN, DataSet
from .truthfulqa import load_misconceptions

Form = Literal["question", "request", "statement", "prompt"]
T = TypeVar("T")

MISCONCEPTION, FACT, INSTRUCTION, CONTROL = "misconception", "fact", "instruction", "control"


@dataclass(frozen=True)
class Text:
    """What a user says and an answer to it. The answer's tokens are those that matter.

    A `statement` stands alone: it is all answer. In the form `prompt` the user's words are joined
    with the answer as they are, with nothing between.
    """

    user: str
    answer: str
    form: Form

    def plain(self) -> tuple[str, str]:
        """Prompt and answer as the model reads them without a chat template, to be joined as is."""
        match self.form:
            case "question":
                return f"Q: {self.user}\nA:", f" {self.answer}"
            case "request":
                return f"{self.user}\n\n", self.answer
            case "statement":
                return "", self.answer
            case "prompt":
                return self.user, self.answer


@dataclass(frozen=True)
class Pair:
    """Two texts of one item; the contrast is `a` minus `b`."""

    property: str
    item: str
    a: Text
    b: Text


@dataclass(frozen=True)
class Property:
    """A property: what its pairs contrast, and which member a good model prefers.

    `preferred` is the sign that turns log-likelihood(a) - log-likelihood(b) into a margin.
    """

    name: str
    contrast: str
    preferred: Literal[-1, 1]
    is_control: bool = False


PROPERTIES = {
    MISCONCEPTION: Property(MISCONCEPTION, "false minus true answer", -1),
    FACT: Property(FACT, "wrong minus right choice", -1),
    INSTRUCTION: Property(INSTRUCTION, "with minus without the instruction", 1),
    CONTROL: Property(CONTROL, "another true minus the best answer", -1, is_control=True),
}


@dataclass(frozen=True)
class Material:
    """What a hypothesis run reads: pairs by property, neutral text, and where they came from."""

    pairs: dict[str, tuple[Pair, ...]]
    neutral: tuple[Passage, ...]
    provenance: tuple[dict[str, object], ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def n_texts(self) -> int:
        """Different texts to be run through the model."""
        return len({t for pairs in self.pairs.values() for p in pairs for t in (p.a, p.b)})


def nearest_in_length(answers: Iterable[str], to: str) -> str:
    """The answer whose number of characters is nearest to that of `to`; the first of equals."""
    return min(answers, key=lambda answer: abs(len(answer) - len(to)))


def misconception_pair(record: Misconception) -> Pair:
    """A false answer minus the best true one."""
    best = record.true[0]
    false = nearest_in_length(record.false, best)
    return Pair(MISCONCEPTION, record.id, _answer(record.question, false), _best(record))


def control_pair(record: Misconception) -> Pair | None:
    """Another true answer minus the best; none when the item has only one."""
    others = [answer for answer in record.true[1:] if answer != record.true[0]]
    if not others:
        return None
    other = nearest_in_length(others, record.true[0])
    return Pair(CONTROL, record.id, _answer(record.question, other), _best(record))


def fact_pair(record: Fact) -> Pair | None:
    """A wrong choice minus the right one; none when all choices read the same."""
    right = record.choices[record.answer]
    wrong = [choice for choice in record.choices if choice != right]
    if not wrong:
        return None
    other = nearest_in_length(wrong, right)
    return Pair(FACT, record.id, _answer(record.question, other), _answer(record.question, right))


def instruction_pair(record: Instruction) -> Pair | None:
    """The same compliant response after the prompt with and without its instruction.

    Official IFEval ships neither the bare request nor responses; both are then made by
    `ifeval_pairs`, and a prompt for which they cannot be made gives no pair.
    """
    request = record.request or without_instruction(record.prompt, record.instruction_ids)
    response = record.compliant or compliant_opening(record.instruction_ids, record.kwargs)
    if request is None or response is None:
        return None
    return Pair(
        INSTRUCTION,
        record.id,
        Text(record.prompt, response, "request"),
        Text(request, response, "request"),
    )


def _answer(question: str, answer: str) -> Text:
    return Text(question, answer, "question")


def _best(record: Misconception) -> Text:
    return _answer(record.question, record.true[0])


def draw(records: Sequence[T], limit: int | None, seed: int) -> tuple[T, ...]:
    """At most `limit` records, drawn without replacement and kept in their order.

    Raises:
        UsageError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: at least 1 item is needed; leave --limit out for all")
    if limit is None or limit >= len(records):
        return tuple(records)
    chosen = np.random.default_rng(seed).choice(len(records), size=limit, replace=False)
    return tuple(records[i] for i in sorted(chosen))


def load_material(
    source: str | Path = BUILTIN, *, limit: int | None = None, seed: int = 0
) -> Material:
    """Pairs of every property and neutral text, from `builtin`, `hub` or a local folder.

    The limit holds for each property, and counts items that give a pair. Items that cannot give one
    are counted in `notes`, never passed over in silence.

    Raises:
        DataError: missing, malformed or empty data.
        UsageError: a limit below 1.
    """
    draw((), limit, seed)  # a bad limit is told before anything is read
    misconceptions = load_misconceptions(source)
    facts = load_facts(source)
    instructions = load_instructions(source)
    neutral = load_neutral(source)
    notes: list[str] = []

    def usable(
        data: DataSet[T], make: Callable[[T], Pair | None], why: str, records: Sequence[T]
    ) -> tuple[Pair, ...]:
        pairs = tuple(pair for record in records if (pair := make(record)) is not None)
        if len(pairs) < len(records):
            notes.append(f"{data.name}: {len(records) - len(pairs)} of {len(records)} {why}")
        return pairs

    chosen = draw(misconceptions.records, limit, seed)
    pairs = {
        MISCONCEPTION: tuple(misconception_pair(record) for record in chosen),
        FACT: draw(
            usable(facts, fact_pair, "questions have no wrong choice of another wording",
                   facts.records), limit, seed),
        INSTRUCTION: draw(
            usable(instructions, instruction_pair,
                   "prompts give no pair (their instruction cannot be taken out, or no short "
                   "response shows it)", instructions.records), limit, seed),
        CONTROL: usable(misconceptions, control_pair,
                        "drawn questions have a single true answer and no control pair", chosen),
    }  # fmt: skip
    for name, found in pairs.items():
        if len(found) < 2:
            raise DataError(
                f"{name}: {len(found)} usable items in {source}; at least 2 are needed, "
                "give more data or a higher --limit"
            )
    passages = draw(neutral.records, limit, seed)
    provenance = tuple(
        {"name": d.name, "origin": d.origin, "sha256": d.sha256, "records": len(d)}
        for d in (misconceptions, facts, instructions, neutral)
    )
    return Material(pairs, passages, provenance, tuple(notes))
