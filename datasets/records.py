"""The records that every source of text is turned into.

A record checks itself; the reader that made it adds the file and the line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class BadRecord(ValueError):
    """What is wrong with one row, in words; readers turn it into a `DataError` with its place."""


def _text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(f"{what} is empty or not text")


@dataclass(frozen=True)
class Misconception:
    """A question with true answers, the best first, and false ones that people believe."""

    id: str
    question: str
    true: tuple[str, ...]
    false: tuple[str, ...]
    category: str = ""

    def __post_init__(self) -> None:
        _text(self.question, "question")
        for side, answers in (("true", self.true), ("false", self.false)):
            if not answers:
                raise BadRecord(f"no {side} answer")
            for answer in answers:
                _text(answer, f"a {side} answer")


@dataclass(frozen=True)
class Fact:
    """A question with choices of which one, `choices[answer]`, is right."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""

    def __post_init__(self) -> None:
        _text(self.question, "question")
        if len(self.choices) < 2:
            raise BadRecord(f"{len(self.choices)} choices; at least two are needed")
        for choice in self.choices:
            _text(choice, "a choice")
        if not isinstance(self.answer, int) or not 0 <= self.answer < len(self.choices):
            raise BadRecord(f"answer {self.answer!r} is not a choice's number")


@dataclass(frozen=True)
class Instruction:
    """A prompt with checkable instructions (IFEval's ids and arguments).

    `request` is the same request without the instruction; `compliant` and `noncompliant` are
    responses that obey and break it. Official IFEval has only the prompt, the ids and the
    arguments.
    """

    id: str
    prompt: str
    instruction_ids: tuple[str, ...]
    kwargs: tuple[Mapping[str, Any], ...]
    request: str | None = None
    compliant: str | None = None
    noncompliant: str | None = None

    def __post_init__(self) -> None:
        _text(self.prompt, "prompt")
        if not self.instruction_ids:
            raise BadRecord("no instruction id")
        if len(self.instruction_ids) != len(self.kwargs):
            raise BadRecord(
                f"{len(self.instruction_ids)} instruction ids but {len(self.kwargs)} kwargs"
            )


@dataclass(frozen=True)
class Passage:
    """Neutral text, to see what a change costs the language model as such."""

    id: str
    text: str

    def __post_init__(self) -> None:
        _text(self.text, "text")
