"""From texts to batches of token ids, with the tokens that matter marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..datasets.pairs import Text
from ..errors import DataError, UsageError


@dataclass(frozen=True)
class Encoded:
    """Token ids, of which those from `start` on are the answer (`start` is at least 1)."""

    ids: tuple[int, ...]
    start: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_answer(self) -> int:
        """Number of answer tokens."""
        return len(self.ids) - self.start


class Encoder:
    """Turns texts into token ids, once, for every engine.

    Prompts are plain unless `chat` is set; then the user's words go through the model's own chat
    template. No BOS is added that the tokenizer does not add by itself.
    """

    def __init__(
        self, tokenizer: Any, *, chat: bool = False, max_length: int | None = None
    ) -> None:
        if chat and not getattr(tokenizer, "chat_template", None):
            raise UsageError("this model has no chat template; leave --chat out")
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_length = max_length

    def text(self, text: Text) -> Encoded:
        """Encode a prompt with its answer; the answer's tokens matter.

        Raises:
            DataError: the answer has no token of its own, or all is longer than the model's
            context.
        """
        if self._chat:
            prompt = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text.user}],
                tokenize=False,
                add_generation_prompt=True,
            )
            answer, special = text.answer, False
        else:
            (prompt, answer), special = text.plain(), True
        # Together, then split at the prompt's length: a token across the seam stays what it is.
        before = self._ids(prompt, special)
        ids = self._ids(prompt + answer, special)
        return self._checked(ids, max(len(before), 1), answer)

    def passage(self, text: str) -> Encoded:
        """Encode neutral text; every token but the first matters."""
        return self._checked(self._ids(text, True), 1, text)

    def _ids(self, text: str, special: bool) -> list[int]:
        return self._tokenizer(text, add_special_tokens=special)["input_ids"]

    def _checked(self, ids: list[int], start: int, text: str) -> Encoded:
        if len(ids) <= start:
            raise DataError(f"no token of its own in the text {text[:60]!r}; give a longer one")
        if self._max_length is not None and len(ids) > self._max_length:
            raise DataError(
                f"a text of {len(ids)} tokens exceeds the model's context of {self._max_length}: "
                f"{text[:60]!r}; leave it out or take another model"
            )
        return Encoded(tuple(ids), start)


@dataclass(frozen=True)
class Batch:
    """Texts side by side, padded on the right.

    Attributes:
        rows: the texts' places in the list they came from.
        ids: [batch, position].
        answer: [batch, position], true on answer tokens.
        real: [batch, position], true on tokens other than padding and position 0.
    """

    rows: tuple[int, ...]
    ids: Tensor
    answer: Tensor
    real: Tensor

    @property
    def keep(self) -> Tensor:
        """Positions from which some text's next token is an answer token."""
        return (self.answer.any(0).nonzero().flatten() - 1).contiguous()


def batches(texts: Sequence[Encoded], max_tokens: int, device: torch.device) -> Iterator[Batch]:
    """All texts in batches of like length, the longest first (so that memory fails early).

    Args:
        max_tokens: padded tokens in a batch; a text longer than that goes alone.
    """
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i))
    begin = 0
    while begin < len(order):
        width = len(texts[order[begin]])
        end = min(len(order), begin + max(1, max_tokens // width))
        yield _collate(texts, tuple(order[begin:end]), width, device)
        begin = end


def _collate(
    texts: Sequence[Encoded], rows: tuple[int, ...], width: int, device: torch.device
) -> Batch:
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    lengths = torch.tensor([len(texts[row]) for row in rows])
    starts = torch.tensor([texts[row].start for row in rows])
    for place, row in enumerate(rows):
        ids[place, : len(texts[row])] = torch.tensor(texts[row].ids)
    position = torch.arange(width)
    real = (position > 0) & (position < lengths[:, None])
    answer = real & (position >= starts[:, None])
    return Batch(rows, ids.to(device), answer.to(device), real.to(device))
