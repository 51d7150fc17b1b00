"""What to record (texts, which of their tokens, how they are pooled and paired), and what was
found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..errors import DataError, UsageError
from ..prune.recording import Recording
from .means import MeansFile, Paired
from .moments import ActivationStatistics
from .tokens import Encoded
from .trees import common

Selection = Literal["answer", "last", "all", "prompt"]
SELECTIONS: tuple[Selection, ...] = ("answer", "last", "all", "prompt")


def selected(text: Encoded, tokens: Selection) -> tuple[int, int]:
    """The positions of a text that a selection means: from the first to before the second.

    `answer`: the answer's tokens; `last`: the last one of these; `prompt`: what stands before the
    answer; `all`: both. Position 0 is in none.
    """
    first, last = {
        "answer": (text.start, len(text)),
        "last": (len(text) - 1, len(text)),
        "all": (1, len(text)),
        "prompt": (1, text.start),
    }[tokens]
    return max(first, 1), max(last, 1)


def told_once(texts: Sequence[Encoded], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Of each text the selected positions whose token, in its context, no text before it selects,
    in alphabetical order: so that each is told once."""
    found = [np.zeros(0, np.int32)] * len(texts)
    told: list[bool] = []  # by position, of the text before
    before: tuple[int, ...] = ()
    for text in sorted(range(len(texts)), key=lambda k: (texts[k].ids, k)):
        ids, (first, last) = texts[text].ids, spans[text]
        del told[common(before, ids) :]
        told += [False] * (len(ids) - len(told))
        found[text] = np.array([p for p in range(first, last) if not told[p]], np.int32)
        told[first:last] = [True] * max(last - first, 0)
        before = ids
    return found


@dataclass(frozen=True)
class Job:
    """What to record.

    Attributes:
        texts: all texts.
        conditions: by name, the numbers of the texts whose tokens it pools; a text may be in
            several.
        contrasts: by name, pairs of texts; the contrast is the first minus the second.
        tokens: which tokens of a text.
        examples: how many examples to keep of a neuron, at either end and across its range.
        samples: random tokens whose activations are kept.
        all_means: keep the means of all texts, not only those of pairs.
        seed: of the random tokens.
    """

    texts: tuple[Encoded, ...]
    conditions: Mapping[str, tuple[int, ...]]
    contrasts: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    tokens: Selection = "answer"
    examples: int = 10
    samples: int = 256
    all_means: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tokens not in SELECTIONS:
            raise UsageError(f"tokens {self.tokens!r}; allowed are {', '.join(SELECTIONS)}")
        if self.examples < 1 or self.samples < self.examples:
            raise UsageError(
                f"{self.examples} examples of {self.samples} samples; at least 1, and as many "
                "samples as examples"
            )
        if not self.conditions or not all(self.conditions.values()):
            raise DataError("a condition without texts; leave it out or give it some")

    def digest(self, about: Any) -> str:
        """Names this job, done in the way that `about` says, among others."""
        whole = [
            [(text.ids, text.start) for text in self.texts],
            sorted((name, list(texts)) for name, texts in self.conditions.items()),
            sorted((name, list(pairs)) for name, pairs in self.contrasts.items()),
            [self.tokens, self.examples, self.samples, self.all_means, self.seed],
            about,
        ]
        return hashlib.blake2b(json.dumps(whole).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Recorded:
    """What a job found; neurons of all MLPs side by side.

    Attributes:
        widths: neurons, by MLP.
        conditions: statistics over each condition's tokens.
        contrasts: paired statistics of each contrast.
        examples: `high`, `low` and `spread`, each `tables.ENTRY` [neurons, k].
        samples: activations of random tokens, float32 [tokens, neurons]; NaN where an expert did
            not see the token. Fit to be the reference of `prune.masks.masked`.
        activity: what activation-based criteria need, over the tokens of all conditions (a text of
            two conditions counts twice).
        means: the file of means and the row of each text in it, or None where it was not kept.
        tokens: tokens of all texts, those computed, and those selected.
        seconds: of this call.
        notes: what a reader should know: resumed, damaged, out of memory.
    """

    widths: tuple[int, ...]
    conditions: dict[str, ActivationStatistics]
    contrasts: dict[str, Paired]
    examples: dict[str, np.ndarray]
    samples: np.ndarray
    activity: Recording
    means: tuple[MeansFile, dict[int, int]] | None
    tokens: tuple[int, int, int]
    seconds: float
    notes: tuple[str, ...]
