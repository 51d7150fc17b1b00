"""What TruthfulQA's scores are worth: the same numbers for answerers that know little or nothing.

MC1 asks whether the likeliest choice is the right one, MC2 what share of the choices' probability
falls on right ones. Both have a floor on this very set of questions: what an answerer that gives
all choices the same probability gets. Beside the model stand

- *tempered*: the intact model with every choice's log-likelihood divided by T, from 1 to infinity.
  It knows what the model knows and says it with less confidence. At infinity it is the floor.
- *length only*: log-likelihood = -(nats per token) x tokens, with the rate fitted to the model's
  own answers by least squares through the origin: an answerer that sees only how long answers are.

A score that rises on its way to the floor is no sign of knowledge. The entropy of the choices'
probabilities, over its maximum, says how near an answerer is to having no preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.multiple_choice import Question
from ..probes.choices import accuracy, encode_choices, floor, mc2, score_choices
from ..probes.engine import Engine, silencer
from ..probes.tokens import Encoder
from ..progress import Progress, silent
from ..prune.selection import NeuronSet

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, float("inf"))
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Answerer:
    """Scores of one way of answering.

    Attributes:
        name: `chance`, `length only`, `model`, `model at T = ...`, or a cut.
        temperature: of a tempered model; NaN for others.
        mc1, mc2: means over questions; `low` and `high` are 95 % bootstrap intervals over them.
        entropy: mean entropy of the choices' probabilities over its maximum, of MC2's choices.
        n: questions.
    """

    name: str
    temperature: float
    n: int
    mc1: float
    mc1_low: float
    mc1_high: float
    mc2: float
    mc2_low: float
    mc2_high: float
    entropy: float


@dataclass(frozen=True)
class Choices:
    """Both targets' questions, item by item the same."""

    mc1: tuple[Question, ...]
    mc2: tuple[Question, ...]

    def some(self, places: Sequence[int]) -> Choices:
        """A part of the items."""
        return Choices(tuple(self.mc1[k] for k in places), tuple(self.mc2[k] for k in places))

    def score(
        self,
        engine: Engine,
        encoder: Encoder,
        cut: NeuronSet | None = None,
        *,
        max_tokens: int = 1024,
        progress: Progress = silent,
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Log-likelihoods of all choices, of MC1's questions and of MC2's."""
        found = score_choices(
            engine,
            encoder,
            (*self.mc1, *self.mc2),
            intervene=None if cut is None else silencer(cut),
            max_tokens=max_tokens,
            progress=progress,
        )
        return found[: len(self.mc1)], found[len(self.mc1) :]


def answer(
    name: str,
    choices: Choices,
    scores: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    *,
    temperature: float = float("nan"),
    seed: int = 0,
) -> Answerer:
    """The scores of an answerer from its log-likelihoods."""
    one = accuracy(scores[0], choices.mc1)
    two = mc2(scores[1], choices.mc2)
    return _answerer(name, temperature, one, two, [_entropy(s) for s in scores[1]], seed)


def _answerer(
    name: str,
    temperature: float,
    one: np.ndarray,
    two: np.ndarray,
    entropies: Sequence[float],
    seed: int,
) -> Answerer:
    n = len(one)
    # The same resampled questions for every answerer.
    weights = np.random.default_rng([seed, 5]).multinomial(n, np.full(n, 1 / n), BOOTSTRAPS) / n
    low, high = np.quantile(weights @ np.stack([one, two], 1), [0.025, 0.975], axis=0)
    return Answerer(
        name,
        temperature,
        n,
        float(one.mean()),
        float(low[0]),
        float(high[0]),
        float(two.mean()),
        float(low[1]),
        float(high[1]),
        float(np.mean(entropies)),
    )


def answerers(
    encoder: Encoder,
    choices: Choices,
    scores: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    *,
    seed: int = 0,
) -> list[Answerer]:
    """Chance, length only, and the model at every temperature.

    Args:
        scores: the intact model's log-likelihoods.
    """
    even = floor(choices.mc1), floor(choices.mc2), [1.0] * len(choices.mc2), seed
    found = [_answerer("chance", float("nan"), *even)]
    lengths = [_lengths(encoder, questions) for questions in (choices.mc1, choices.mc2)]
    tokens, heard = np.concatenate(lengths[1]), np.concatenate(list(scores[1]))
    rate = float(tokens @ -heard / (tokens @ tokens))
    one, two = ([-rate * count for count in part] for part in lengths)
    found.append(answer(f"length only ({rate:.2f} nats a token)", choices, (one, two), seed=seed))
    for t in TEMPERATURES:
        if np.isinf(t):
            # Of equal choices accuracy takes the first; what is meant is one at random.
            found.append(_answerer("model at T = infinity", t, *even))
            continue
        one, two = ([score / t for score in part] for part in scores)
        name = "model" if t == 1 else f"model at T = {t:g}"
        found.append(answer(name, choices, (one, two), temperature=t, seed=seed))
    return found


def _lengths(encoder: Encoder, questions: Sequence[Question]) -> list[np.ndarray]:
    return [
        np.array([text.n_answer for text in encode_choices(encoder, q.context, q.choices)], float)
        for q in questions
    ]


def _entropy(score: np.ndarray) -> float:
    p = np.exp(score - score.max())
    p /= p.sum()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum() / np.log(len(p)))


@dataclass(frozen=True)
class Dose:
    """An answerer whose neurons were cut.

    Attributes:
        order: `lowest`, `highest` or `random`.
        draw: which random order; 0 for the others.
        fraction: of every layer's neurons.
    """

    order: str
    draw: int
    fraction: float
    answerer: Answerer
    damage: float
