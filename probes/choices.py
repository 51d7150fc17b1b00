"""Multiple choice: the log-likelihood of every choice, each common beginning run once.

Scores are those of lm-evaluation-harness' `hf` model on the same requests, to rounding: the same
tokens (`HFLM._encode_pair`), the same sums. All questions of a subject share their few-shot block,
all choices of a question their context, and what is asked twice is run once.

It departs from the harness where that would score something else than was asked: a text longer than
the model's context is refused, not cut on the left; what is spelled like a special token in the
data is encoded as ordinary characters (see `Encoder`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..datasets.multiple_choice import Question
from ..datasets.pairs import Text
from ..errors import DataError
from ..progress import Progress, silent
from .engine import Engine, Intervention
from .likelihood import loglikelihoods
from .tokens import Encoded, Encoder

MAX_TOKENS = 1024
"""Padded tokens in a pass."""


def encode_choices(encoder: Encoder, context: str, choices: Sequence[str]) -> list[Encoded]:
    """Encode choices after their context.

    White space at the context's end goes to the choice: with it a word is one token, and so it
    stands in running text. Both are encoded as one text, of which the choice is what comes after
    as many tokens as the context has by itself; where a token crosses that seam the model still
    reads the context's own tokens, as it does under the harness.

    Raises:
        DataError: see `Encoder.text`.
    """
    stripped = context.rstrip()
    moved = context[len(stripped) :]
    texts = [encoder.text(Text(stripped, moved + choice, "prompt")) for choice in choices]
    if not texts or texts[0].start < 2:  # too short for a passage, and for a seam to matter
        return texts
    before = encoder.passage(stripped).ids
    return [Encoded(before + text.ids[text.start :], text.start) for text in texts]


def score_choices(
    engine: Engine,
    encoder: Encoder,
    questions: Sequence[Question],
    *,
    intervene: Intervention | None = None,
    max_tokens: int = MAX_TOKENS,
    share: bool = True,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """Summed log-probability (nats) of every choice of every question.

    Args:
        engine: the model.
        encoder: its tokens, without a chat template: contexts are texts to be continued.
        questions: in any order; the same choice after the same context is run once.
        intervene: replaces activations meanwhile.
        max_tokens: padded tokens in a pass; halved where memory runs out.
        share: run common beginnings once.
        progress: told of choices done.

    Returns:
        For every question, float64 [choices].

    Raises:
        DataError: a choice cannot be encoded; the message names the question.
        ResourceError: memory does not suffice for a single row.
    """
    places: dict[tuple[str, str], int] = {}
    texts: list[Encoded] = []
    for question in questions:
        asked = dict.fromkeys((question.context, choice) for choice in question.choices)
        new = [pair for pair in asked if pair not in places]
        try:
            texts += encode_choices(encoder, question.context, [choice for _, choice in new])
        except DataError as error:
            raise DataError(f"{question.id}: {error}") from error
        places |= {pair: len(places) + k for k, pair in enumerate(new)}
    if not texts:
        return []
    found = loglikelihoods(
        engine,
        texts,
        intervene=intervene,
        max_tokens=max_tokens,
        share=share,
        progress=progress,
        what="multiple choice (choices)",
    )
    return [found[[places[q.context, choice] for choice in q.choices]] for q in questions]


def accuracy(scores: Sequence[np.ndarray], questions: Sequence[Question]) -> np.ndarray:
    """Whether the likeliest choice is right, 0.0 or 1.0 [questions]; of equals the first counts.

    The harness' `acc`, and MC1 of TruthfulQA where it is asked with one right choice.
    """
    both = zip(scores, questions, strict=True)
    return np.array([float(q.labels[int(np.argmax(_checked(s, q)))]) for s, q in both])


mc1 = accuracy
"""TruthfulQA's first score by its own name."""


def mc2(scores: Sequence[np.ndarray], questions: Sequence[Question]) -> np.ndarray:
    """Share of the right choices in the probability of all choices, 0 to 1 [questions]."""
    shares = []
    for score, question in zip(scores, questions, strict=True):
        # Relative to the largest, so that long choices do not vanish.
        weight = np.exp(_checked(score, question) - np.max(score))
        shares.append(weight[np.array(question.labels) == 1].sum() / weight.sum())
    return np.array(shares)


def floor(questions: Sequence[Question]) -> np.ndarray:
    """What an answerer that knows nothing expects of either score: the share of right choices."""
    return np.array([np.mean(question.labels) for question in questions])


def _checked(score: np.ndarray, question: Question) -> np.ndarray:
    if score.shape != (len(question.choices),):
        raise ValueError(f"{question.id}: scores {score.shape} for {len(question.choices)} choices")
    if np.isnan(score).any():
        raise DataError(f"{question.id}: a log-likelihood is not a number; the model is damaged")
    return score
