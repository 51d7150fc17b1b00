"""Linear probes: can a property be decoded from a layer's neurons, and from which of them?

A logistic regression on standardised mean activations is fitted to sets of neurons (the tenth of
lowest and of highest magnitude, random tenths, all) and judged out of fold, beside a control task
and baselines; `tasks` says which and why. What is decoded is present and linearly readable; whether
the model uses it is a question for ablation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..progress import Progress, silent
from ..prune.selection import cut_count
from .tasks import (
    Task,
    check_features,
    interval,
    interval_over_questions,
    make_task,
    permuted_within,
)

TENTH = 0.1
C_TEXT = 1.0
"""C for TF-IDF rows, which have length 1: under the ridge of neurons they would hardly count."""
FeaturesByLayer = Callable[[int], np.ndarray] | Mapping[int, np.ndarray] | Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Decoded:
    """How well one set of features tells the labels, out of fold.

    Attributes:
        layer: None for baselines that look at no neuron.
        what: the set's name, e.g. `lowest`, `random 0`, `all`, `tf-idf`.
        accuracy: share of texts told right.
        interval: of the accuracy, 95 %, over questions.
        balanced_accuracy: mean of the two classes' shares.
        auroc: mean over folds (scores of different folds do not compare); NaN if no fold has both.
        control: accuracy on the control task, mean over its draws.
        control_range: least and most of the draws, far apart where few openings are most texts.
        selectivity: accuracy - control.
        selectivity_interval: 95 %, over the same questions.
        dimension: neurons or features given to the probe; for `tf-idf` the largest fold's.
        n_texts, n_questions: what was told, and the units of resampling.
        correct: bool [texts], whether the out-of-fold prediction is right.
        decision: float64 [texts], out-of-fold score; above 0 says true.
    """

    layer: int | None
    what: str
    accuracy: float
    interval: tuple[float, float]
    balanced_accuracy: float
    auroc: float
    control: float
    control_range: tuple[float, float]
    selectivity: float
    selectivity_interval: tuple[float, float]
    dimension: int
    n_texts: int
    n_questions: int
    correct: np.ndarray = field(repr=False)
    decision: np.ndarray = field(repr=False)


def tenths(scores: np.ndarray, *, n_random: int = 5, seed: Any = 0) -> dict[str, np.ndarray]:
    """Sets of neurons to probe: `lowest`, `highest`, `random 0`..., `all`; sorted indices.

    A tenth is floor(n / 10) neurons, at least 1. Ties break by index, ascending, as when cutting;
    `highest` is what the reversed criterion would cut. Random tenths are drawn from all neurons.

    Raises:
        DataError: scores that are NaN, or too equal to tell lowest from highest.
    """
    scores = np.asarray(scores, np.float64)
    count = max(1, cut_count(len(scores), TENTH))
    if np.isnan(scores).any():
        raise DataError("scores have NaN; neurons cannot be ranked by them")
    sets = {
        "lowest": np.argsort(scores, kind="stable")[:count],
        "highest": np.argsort(-scores, kind="stable")[:count],
    }
    if np.intersect1d(sets["lowest"], sets["highest"]).size:
        raise DataError("scores are too equal: a neuron is in the lowest and the highest tenth")
    rng = np.random.default_rng(seed)
    for i in range(n_random):
        sets[f"random {i}"] = rng.choice(len(scores), count, replace=False)
    sets["all"] = np.arange(len(scores))
    return {name: np.sort(indices) for name, indices in sets.items()}


def decode(
    features: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    *,
    subsets: Mapping[str, np.ndarray],
    first_tokens: Sequence[int] | np.ndarray,
    layer: int | None = None,
    **options: Any,
) -> list[Decoded]:
    """Probe sets of one layer's neurons.

    Args:
        features: mean activation over the answer's tokens, float [texts, neurons].
        labels: bool [texts].
        groups: question of every text, [texts].
        subsets: indices by name, e.g. from `tenths`.
        first_tokens: id of every answer's first token, [texts].
        options: of `make_task`: folds, seed, c, control_draws, bootstraps.

    Returns:
        One result a set, in order.

    Raises:
        DataError: see `tasks.make_task` and `check_features`.
        UsageError: a set that is empty, repeats a neuron or leaves the layer.
    """
    task = make_task(labels, groups, first_tokens, **options)
    return decode_subsets(task, features, subsets, layer)


def decode_subsets(
    task: Task, features: np.ndarray, subsets: Mapping[str, np.ndarray], layer: int | None = None
) -> list[Decoded]:
    """`decode`, for labels whose folds are drawn already."""
    features = check_features(features, len(task.labels))
    width = features.shape[1]
    for name, indices in subsets.items():
        unique = np.unique(indices)
        if (
            not len(unique)
            or len(unique) < len(indices)
            or not 0 <= unique[0] <= unique[-1] < width
        ):
            raise UsageError(f"set {name!r} must hold different neurons of 0..{width - 1}")
    return [
        _judge(task, lambda: _linear(task), features[:, indices].astype(np.float64), layer, name)
        for name, indices in subsets.items()
    ]


def text_baselines(
    task: Task, answers: Sequence[str], answer_tokens: Sequence[int] | np.ndarray
) -> list[Decoded]:
    """What is told without a model: `majority`, `length` and `tf-idf`, under the same folds.

    `majority` can lie below one half: what is more common in training is rarer in test. `length`
    is tokens and characters. `tf-idf` sees the answer's words and signs (1- and 2-grams), never
    the question.

    Raises:
        DataError: another number of answers than of labels, or answers without a word.
    """
    n = len(task.labels)
    if not len(answers) == len(answer_tokens) == n:
        raise DataError(
            f"{len(answers)} answers and {len(answer_tokens)} token counts for {n} texts"
        )
    if not any(answer.strip() for answer in answers):
        raise DataError("all answers are blank; there are no words to look at")
    length = np.array([answer_tokens, [len(answer) for answer in answers]], np.float64).T
    return [
        _judge(task, _majority, np.zeros((n, 0)), None, "majority"),
        _judge(task, lambda: _linear(task), length, None, "length"),
        _judge(task, _words, np.array(answers, dtype=object), None, "tf-idf"),
    ]


def decode_pca(
    task: Task, features: np.ndarray, dimension: int, layer: int | None = None
) -> Decoded:
    """The first principal components of all neurons: the best a linear summary of that size does.

    Fitted and whitened on training rows; fewer components where there are too few rows or neurons.
    """
    from sklearn.decomposition import PCA

    features = check_features(features, len(task.labels))
    rows = int((len(task.fold) - np.bincount(task.fold)).min()) - 1  # centred: one is lost
    size = min(dimension, rows, features.shape[1])

    def make() -> Any:
        return _linear(task, PCA(size, whiten=True, random_state=task.seed))

    return _judge(task, make, features.astype(np.float64), layer, "pca")


def decode_layers(
    features_by_layer: FeaturesByLayer,
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    *,
    scores_by_layer: Sequence[np.ndarray] | Mapping[int, np.ndarray],
    first_tokens: Sequence[int] | np.ndarray,
    answers: Sequence[str],
    answer_tokens: Sequence[int] | np.ndarray,
    random_features_by_layer: FeaturesByLayer | None = None,
    layers: Sequence[int] | None = None,
    n_random: int = 5,
    progress: Progress = silent,
    **options: Any,
) -> list[Decoded]:
    """Baselines of the text, then of every layer its tenths, all neurons, PCA and random model.

    Args:
        features_by_layer: float [texts, neurons] by layer; a function is asked a layer at a time.
        scores_by_layer: a magnitude criterion by layer, higher = keep, [neurons].
        random_features_by_layer: the same texts in a randomly initialised model: `random model`
            (all its neurons) and `random model tenth` (as many as a tenth, drawn with the seed).
        layers: which; all that have scores when left out.
        options: of `make_task`.

    Returns:
        Results in that order; see `table`.

    Raises:
        DataError: see `make_task`, `check_features`, `tenths`, `text_baselines`.
    """
    task = make_task(labels, groups, first_tokens, **options)
    if layers is None:
        named = isinstance(scores_by_layer, Mapping)
        layers = sorted(scores_by_layer) if named else range(len(scores_by_layer))
    found = text_baselines(task, answers, answer_tokens)
    for done, layer in enumerate(layers):
        features = check_features(_of(features_by_layer, layer), len(task.labels))
        scores = scores_by_layer[layer]
        if len(scores) != features.shape[1]:
            raise DataError(f"layer {layer}: {len(scores)} scores, {features.shape[1]} neurons")
        sets = tenths(scores, n_random=n_random, seed=(task.seed, layer))
        found += decode_subsets(task, features, sets, layer)
        found.append(decode_pca(task, features, len(sets["lowest"]), layer))
        if random_features_by_layer is not None:
            features = _of(random_features_by_layer, layer)
            width, rng = np.shape(features)[-1], np.random.default_rng((task.seed, layer))
            some = rng.choice(width, min(width, len(sets["lowest"])), replace=False)
            sets = {"random model": np.arange(width), "random model tenth": np.sort(some)}
            found += decode_subsets(task, features, sets, layer)
        progress("probing (layers)", done + 1, len(layers))
    return found


def table(decoded: Sequence[Decoded]) -> Any:
    """A polars DataFrame: a row a result, intervals as `*low` and `*high`, no predictions."""
    import polars as pl

    rows = []
    for one in decoded:
        row = asdict(one)
        del row["correct"], row["decision"]
        row["low"], row["high"] = row.pop("interval")
        for name, key in (("control", "control_range"), ("selectivity", "selectivity_interval")):
            row[f"{name}_low"], row[f"{name}_high"] = row.pop(key)
        rows.append(row)
    return pl.DataFrame(rows, schema_overrides={"layer": pl.Int64}, infer_schema_length=None)


def difference(
    one: Decoded,
    other: Decoded,
    groups: Sequence[Any] | np.ndarray,
    *,
    bootstraps: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Accuracy of one minus the other on the same texts, with its 95 % interval over questions."""
    gain = one.correct.astype(np.float64) - other.correct
    return float(gain.mean()), *interval_over_questions(
        gain, groups, bootstraps=bootstraps, seed=seed
    )


def within_question_null(
    task: Task, features: np.ndarray, *, draws: int = 100, seed: int = 0
) -> tuple[float, np.ndarray]:
    """Test the accuracy of a probe against labels permuted within every question.

    Folds stay: a question's counts of labels do. The probe is refitted to every draw.

    Args:
        features: float [texts, neurons].

    Returns:
        p = (1 + b) / (1 + draws), b the draws at least as accurate; the draws' accuracies [draws].
    """
    x = check_features(features, len(task.labels)).astype(np.float64)

    drawn = [permuted_within(task.labels, task.questions, (seed, i)) for i in range(draws)]
    targets = np.stack([task.labels, *drawn])
    decisions, _ = _out_of_fold(task, lambda: _linear(task), x, targets)
    accuracy = ((decisions > 0) == targets).mean(1)
    observed, null = accuracy[0], accuracy[1:]
    return float((1 + (null >= observed).sum()) / (1 + draws)), null


def _of(source: FeaturesByLayer, layer: int) -> np.ndarray:
    return source(layer) if callable(source) else source[layer]


def _linear(task: Task, *between: Any) -> Any:
    """The probe; its scaler is part of it, so that it is fitted where the probe is."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = LogisticRegression(C=task.c, solver="lbfgs", max_iter=2000)
    return make_pipeline(StandardScaler(), *between, probe)


def _words() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    # Scikit-learn's own pattern passes over words of one letter and all signs.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]")
    return make_pipeline(words, LogisticRegression(C=C_TEXT, solver="lbfgs", max_iter=2000))


def _majority() -> Any:
    from sklearn.pipeline import make_pipeline

    return make_pipeline("passthrough", _Majority())


class _Majority:
    """Says for every text what is more common among the training labels."""

    def fit(self, x: Any, y: np.ndarray) -> _Majority:
        self._score = float(y.mean()) - 0.5
        return self

    def decision_function(self, x: Any) -> np.ndarray:
        return np.full(len(x), self._score)


def _judge(
    task: Task, make: Callable[[], Any], x: np.ndarray, layer: int | None, what: str
) -> Decoded:
    from sklearn.metrics import roc_auc_score

    targets = np.vstack([task.labels, task.controls])
    decisions, dimension = _out_of_fold(task, make, x, targets)
    decision = decisions[0]
    correct, *controls = (decisions > 0) == targets
    control, by_draw = np.mean(controls, axis=0), np.mean(controls, axis=1)
    tests = [np.flatnonzero(task.fold == number) for number in np.unique(task.fold)]
    areas = [
        roc_auc_score(task.labels[test], decision[test])
        for test in tests
        if len(np.unique(task.labels[test])) == 2
    ]
    return Decoded(
        layer=layer,
        what=what,
        accuracy=float(correct.mean()),
        interval=interval(correct, task.questions, task.resamples),
        balanced_accuracy=float((correct[task.labels].mean() + correct[~task.labels].mean()) / 2),
        auroc=float(np.mean(areas)) if areas else float("nan"),
        control=float(control.mean()),
        control_range=(float(by_draw.min()), float(by_draw.max())),
        selectivity=float(correct.mean() - control.mean()),
        selectivity_interval=interval(correct - control, task.questions, task.resamples),
        dimension=dimension,
        n_texts=len(correct),
        n_questions=task.resamples.shape[1],
        correct=correct,
        decision=decision,
    )


def _out_of_fold(
    task: Task, make: Callable[[], Any], x: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, int]:
    """For labels [targets, texts] the scores by probes that did not see the text's question, and
    the dimension. What comes before the classifier sees no label: it is fitted once a fold."""
    decision, dimension = np.empty(targets.shape), 0
    for number in np.unique(task.fold):
        test = task.fold == number
        probe = make()
        seen = (before := probe[:-1]).fit_transform(x[~test])
        unseen = before.transform(x[test])
        dimension = max(dimension, seen.shape[1])
        for target, scores in zip(targets, decision, strict=True):
            # Control labels may leave a training fold with one class: nothing to fit then.
            last = probe[-1] if len(np.unique(target[~test])) == 2 else _Majority()
            scores[test] = last.fit(seen, target[~test]).decision_function(unseen)
    return decision, dimension
