"""What linear probes of one run share: labels, folds by question, control labels, resamples.

**Folds are by question.** Answers to one question resemble each other: with random labels that
near-duplicates share, folds by row decode noise at 0.91 where folds by question stay at 0.49
(tests/test_linear.py). One question never stands in both train and test. Standardisation,
vocabulary and principal components are fitted on the training rows only.

**Control task** (Hewitt & Liang 2019, arXiv 1909.03368). Every *type*, here an answer's first token
id, gets a random label in about the true ratio. The label must hang on a type because only then can
a probe that memorises succeed on unseen questions too: labels drawn row by row cannot be predicted
by anything. Selectivity is accuracy minus control accuracy. Low selectivity says that the probe
could have learnt a table of openings; high selectivity says that it could not do so as well. It
does not say what was decoded: a regularity that openings do not carry (length, hedging, an answer
like "I have no comment" that recurs over questions) passes. For these there are the baselines:
majority, length, TF-IDF of the answer alone, principal components, a randomly initialised model.

**Intervals** resample questions (cluster bootstrap, percentiles) with the fitted probes and the
control's draws held fixed: they cover the choice of questions to be judged, not of those to be
trained on, nor which openings the control called true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, UsageError

C = 0.01
"""Inverse strength of the ridge on standardised features (scikit-learn's C), the same for every
set of neurons: chosen once, never tuned on the data at hand."""


@dataclass(frozen=True, eq=False)
class Task:
    """What every probe of a run shares: the same labels, folds, control labels and resamples.

    Attributes:
        labels: bool [texts].
        questions: int [texts], questions numbered from 0.
        fold: int [texts], the fold in which a text is tested.
        controls: bool [draws, texts], labels of the control task.
        resamples: [bootstraps, questions], how often each question was drawn.
        seed: also of the randomised PCA.
        c: see `C`.
    """

    labels: np.ndarray
    questions: np.ndarray
    fold: np.ndarray
    controls: np.ndarray
    resamples: np.ndarray
    seed: int
    c: float


def make_task(
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    first_tokens: Sequence[int] | np.ndarray,
    *,
    folds: int = 5,
    seed: int = 0,
    c: float = C,
    control_draws: int = 5,
    bootstraps: int = 1000,
) -> Task:
    """Draw folds, control labels and resamples once, so that probes differ in features only.

    Args:
        labels: bool [texts].
        groups: question of every text, [texts].
        first_tokens: id of every answer's first token, [texts]; the control task's types.

    Raises:
        DataError: labels other than true and false, a single class, fewer questions with a class
            than folds, or a single type.
        UsageError: fewer than two folds, or no control or bootstrap draws.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if folds < 2 or control_draws < 1 or bootstraps < 1 or not c > 0:
        raise UsageError(
            f"folds {folds}, c {c}, control_draws {control_draws}, bootstraps {bootstraps}: "
            "at least 2 folds, c above 0, and one draw of each are needed"
        )
    told, questions = check_labels(labels, groups, per_class=folds)
    types = np.asarray(first_tokens)
    if len(types) != len(told):
        raise DataError(f"{len(types)} first tokens for {len(told)} texts; give one a text")
    fold = np.full(len(told), -1)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for number, (train, test) in enumerate(splitter.split(questions, told, questions)):
        assert not np.intersect1d(questions[train], questions[test]).size, "a question in both"
        if len(np.unique(told[train])) < 2:
            raise DataError(f"a training fold has a single class; lower folds (now {folds})")
        fold[test] = number
    assert (fold >= 0).all()
    return Task(
        labels=told,
        questions=questions,
        fold=fold,
        controls=np.stack([control_labels(types, told, (seed, i)) for i in range(control_draws)]),
        resamples=draw_resamples(int(questions.max()) + 1, bootstraps, seed),
        seed=seed,
        c=c,
    )


def check_labels(
    labels: Sequence[Any] | np.ndarray, groups: Sequence[Any] | np.ndarray, *, per_class: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bool [texts], and questions numbered from 0 [texts].

    Raises:
        DataError: see `make_task`.
    """
    given = np.asarray(labels)
    if given.ndim != 1 or not np.isin(given, (0, 1)).all():
        raise DataError("labels must be true or false, one a text")
    told, questions = given.astype(bool), np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(questions) != len(told):
        raise DataError(f"{len(questions)} groups for {len(told)} labels; give one a text")
    for value in (True, False):
        having = len(np.unique(questions[told == value]))
        if having == 0:
            raise DataError(f"no text is labelled {value}; a probe needs both classes")
        if having < per_class:
            raise DataError(
                f"{having} questions have a text labelled {value}, {per_class} are needed; "
                "give more questions or fewer folds"
            )
    return told, questions


def check_features(features: np.ndarray, n_texts: int, name: str = "features") -> np.ndarray:
    """The features as an array [texts, neurons].

    Raises:
        DataError: another shape, or values that are not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[0] != n_texts or not features.shape[1]:
        raise DataError(f"{name} have shape {features.shape}; [{n_texts} texts, neurons] is needed")
    if not np.isfinite(features).all():
        row, neuron = np.argwhere(~np.isfinite(features))[0]
        raise DataError(f"{name} are not finite (text {row}, neuron {neuron}); record in float32")
    return features


def control_labels(
    types: np.ndarray, labels: np.ndarray, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """One draw of the control task: a random label for every type, bool [texts].

    Of independent labels a type, the first draw within 0.02 of the true ratio of texts is taken
    (of 500, else the nearest): few openings make most of the texts, and a control with another
    majority share would be easier or harder for no reason of memory. An opening so common that the
    ratio cannot be kept otherwise is tied to one label.

    Raises:
        DataError: a single type.
    """
    _, kind, counts = np.unique(types, return_inverse=True, return_counts=True)
    if len(counts) < 2:
        raise DataError("all answers begin with one token; the control task needs two or more")
    rng, ratio = np.random.default_rng(seed), float(labels.mean())
    drawn = rng.random((500, len(counts))) < ratio
    drawn = drawn[drawn.any(1) & ~drawn.all(1)]
    if not len(drawn):  # two types, and hardly a text of one class
        drawn = np.eye(len(counts), dtype=bool)[rng.permutation(len(counts))]
    off = np.abs(drawn @ counts / len(types) - ratio)
    near = np.flatnonzero(off <= 0.02)
    return drawn[near[0] if len(near) else off.argmin()][kind]


def permuted_within(
    labels: np.ndarray, groups: Sequence[Any] | np.ndarray, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """Labels permuted within every question: one draw of the primary null, [texts].

    Everything but the pairing of labels with answers stays: each question's counts, the folds, the
    features' covariance. Questions with one class only are the same in every draw.
    """
    questions = np.unique(np.asarray(groups), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    permuted = np.empty_like(labels)
    shuffled = np.lexsort((rng.random(len(labels)), questions))
    permuted[np.argsort(questions, kind="stable")] = np.asarray(labels)[shuffled]
    return permuted


def interval_over_questions(
    values: np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    *,
    bootstraps: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of the mean of values [texts], whole questions being resampled."""
    questions = np.unique(np.asarray(groups), return_inverse=True)[1]
    return interval(values, questions, draw_resamples(int(questions.max()) + 1, bootstraps, seed))


def draw_resamples(n: int, bootstraps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=bootstraps)


def interval(
    values: np.ndarray, questions: np.ndarray, resamples: np.ndarray
) -> tuple[float, float]:
    sums, texts = np.bincount(questions, values), np.bincount(questions)
    low, high = np.percentile((resamples @ sums) / (resamples @ texts), (2.5, 97.5))
    return float(low), float(high)
