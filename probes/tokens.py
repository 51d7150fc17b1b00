"""From texts to batches of token ids, with the tokens that matter marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..datasets.pairs import Text
from ..errors import DataError, ModelError, UsageError, is_out_of_memory, visible


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

    A text is data: what is spelled like a special token in it ("<|im_end|>") is encoded as ordinary
    characters, and a text that would still bring a special token into play is refused. Special is
    what the tokenizer marks so, named (as EOS) or not. A token that only stands for what the
    tokenizer does not know may come from data, but not by its spelling.
    """

    def __init__(
        self, tokenizer: Any, *, chat: bool = False, max_length: int | None = None
    ) -> None:
        if chat and not getattr(tokenizer, "chat_template", None):
            raise UsageError("this model has no chat template; leave --chat out")
        self._tokenizer = tokenizer
        self._chat = chat
        self._max_length = max_length
        self._special = _special_tokens(tokenizer)
        # Its spelling, where unknown characters become a token that has no other role.
        roles = dict(getattr(tokenizer, "special_tokens_map", {}))
        unknown = roles.pop("unk_token", None)
        self._unknown = None if unknown in roles.values() else unknown
        # Answers to one prompt come one after the other: the prompt is encoded once for all.
        self._plain_ids = lru_cache(2)(self._encode_plain)
        self._plain: dict[str, bool] = {"add_special_tokens": True}
        try:
            tokenizer("", **self._plain, split_special_tokens=True)
            self._plain["split_special_tokens"] = True
        except (TypeError, ValueError):  # not every kind knows the option: then the ids must do
            pass
        self._tail = _closing_tokens(tokenizer)
        # Special tokens that stand in every text, whatever it says.
        self._frame = self._count_special(self._plain_ids(""))
        if chat:
            self._chat_frame = self._count_special(self._template_ids(self._prompt("a")))

    def text(self, text: Text) -> Encoded:
        """Encode a prompt with its answer; the answer's tokens matter.

        Raises:
            DataError: the answer has no token of its own, all is longer than the model's context,
            half a surrogate pair stands in it, or it brings a special token into play.
        """
        _refuse_surrogates(text.user)
        _refuse_surrogates(text.answer)
        if not text.answer:  # by name: the form may put a space before it, which is a token
            raise DataError(f"no token of its own in the empty answer to {_head(text.user)}")
        if self._chat:
            self._refuse_spellings(text)
            prompt, answer = self._prompt(text.user), text.answer
            encode, frame = self._template_ids, self._chat_frame
        else:
            prompt, answer = text.plain()
            encode, frame = self._plain_ids, self._frame
        # Together, then split at the prompt's length: a token across the seam stays what it is.
        before, ids = encode(prompt), encode(prompt + answer)
        self._refuse_special(ids, frame, f"{text.user} {text.answer}")
        return self._checked(ids, max(len(before), 1), answer)

    def passage(self, text: str) -> Encoded:
        """Encode neutral text; every token but the first matters.

        Raises:
            DataError: as `text` does.
        """
        _refuse_surrogates(text)
        ids = self._plain_ids(text)
        self._refuse_special(ids, self._frame, text)
        return self._checked(ids, 1, text)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Encode a text that is only read on from, of one token or more.

        Raises:
            DataError: as `passage` does.
        """
        _refuse_surrogates(text)
        ids = self._plain_ids(text)
        self._refuse_special(ids, self._frame, text)
        return self._checked(ids, 0, text).ids

    def many(self, texts: Sequence[Text]) -> tuple[list[Encoded | None], dict[int, str]]:
        """Encode all texts that can be encoded.

        Returns:
            As many entries as texts, None where one was refused; and why, by its place.
        """
        encoded: list[Encoded | None] = []
        refused: dict[int, str] = {}
        for place, text in enumerate(texts):
            try:
                encoded.append(self.text(text))
            except DataError as error:
                encoded.append(None)
                refused[place] = str(error)
        return encoded, refused

    def _prompt(self, user: str) -> str:
        return from_template(self._tokenizer, [{"role": "user", "content": user}])

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer(text, **self._plain)["input_ids"]
        return tuple(ids[: len(ids) - self._tail])

    def _template_ids(self, text: str) -> tuple[int, ...]:
        # The template's special tokens are meant, and it brings the BOS along.
        return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count_special(self, ids: Sequence[int]) -> Counter[int]:
        if self._special.keys().isdisjoint(ids):  # often, and far cheaper than counting
            return Counter()
        return Counter(token for token in ids if token in self._special)

    def _refuse_spellings(self, text: Text) -> None:
        """A template is text too: a tokenizer cannot tell its special tokens from the data's."""
        for said in (text.user, text.answer):
            for spelling in self._special.values():
                if spelling in said:
                    raise DataError(
                        f"the special token {spelling!r} stands in the text {_head(said)}, where "
                        "the chat template's own could not be told from it; take it out or leave "
                        "--chat out"
                    )

    def _refuse_special(self, ids: Sequence[int], frame: Counter[int], text: str) -> None:
        """Whatever the tokenizer makes of its options, the ids tell."""
        for token in self._count_special(ids) - frame:
            spelling = self._special[token]
            if spelling != self._unknown or spelling in text:
                raise DataError(
                    f"the text {_head(text)} becomes the model's special token {spelling!r}, which "
                    "data may not; leave it out or rewrite it"
                )

    def _checked(self, ids: tuple[int, ...], start: int, text: str) -> Encoded:
        if len(ids) <= start:
            raise DataError(f"no token of its own in the text {_head(text)}; give a longer one")
        if self._max_length is not None and len(ids) > self._max_length:
            raise DataError(
                f"a text of {len(ids)} tokens exceeds the model's context of {self._max_length}: "
                f"{_head(text)}; leave it out or take another model"
            )
        return Encoded(ids, start)


def from_template(tokenizer: Any, turns: Sequence[Mapping[str, str]], **options: Any) -> str:
    """A conversation as the model's chat template writes it, ready for an answer.

    A template is the model's own and runs in Transformers' sandbox, which knows no attribute that
    leads out of it; what the sandbox refuses is the template's fault. It has no limit of time.

    Raises:
        ModelError: the template cannot be run.
    """
    options = {"add_generation_prompt": True} | options
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # jinja's own kinds, and whatever the template divides by
        if is_out_of_memory(error):
            raise
        said = visible((str(error).strip().splitlines() or [""])[0])[:160]
        raise ModelError(
            f"the model's chat template cannot be run ({type(error).__name__}: {said}); leave the "
            "template out, or mend chat_template in the model's folder"
        ) from error


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Spellings of the special tokens, by id."""
    special = {
        token: tokenizer.convert_ids_to_tokens(token)
        for token in getattr(tokenizer, "all_special_ids", ())
        if token is not None  # one that is named but not in the vocabulary
    }
    # Of SmolLM2's 17 special tokens only those with a role, three, are in `all_special_ids`.
    added = getattr(tokenizer, "added_tokens_decoder", None)
    if isinstance(added, Mapping):
        special |= {token: entry.content for token, entry in added.items() if entry.special}
    return special


def _closing_tokens(tokenizer: Any) -> int:
    """How many tokens (EOS) the tokenizer puts after a text; they would pass for its answer's."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    places = range(len(full) - len(bare), -1, -1)
    begin = next((k for k in places if full[k : k + len(bare)] == bare), len(full) - len(bare))
    return len(full) - len(bare) - begin


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"half a surrogate pair ({text[error.start]!a}) at character {error.start + 1} of "
            f"the text {_head(text)}: no valid Unicode; mend the text's encoding"
        ) from None


def _head(text: str) -> str:
    """The text's beginning for a message: `repr` escapes whatever cannot be printed."""
    return repr(text[:60])


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
