"""Linear probes find what is planted and nothing else; folds leak nothing; controls bite."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from glulens.errors import DataError, UsageError
from glulens.probes.linear import (
    decode,
    decode_layers,
    decode_pca,
    decode_subsets,
    difference,
    table,
    tenths,
    text_baselines,
    within_question_null,
)
from glulens.probes.sparse import sparse_sweep
from glulens.probes.tasks import control_labels, interval_over_questions, make_task, permuted_within
from glulens.prune.selection import lowest

QUESTIONS, EACH, NEURONS = 80, 4, 100


def planted(seed: int = 0, where: Iterable[int] = range(10), strength: float = 1.0):
    """Features [texts, neurons] whose neurons `where` carry the label; labels, groups, types."""
    rng = np.random.default_rng(seed)
    groups = np.repeat([f"q{i}" for i in range(QUESTIONS)], EACH)
    labels = np.tile([True, True, False, False], QUESTIONS)
    features = rng.normal(size=(len(labels), NEURONS)).astype(np.float32)
    features[:, list(where)] += strength * (labels[:, None] - 0.5)
    return features, labels, groups, rng.integers(0, 12, len(labels))


def test_signal_is_found_where_it_was_planted_and_nowhere_else():
    features, labels, groups, types = planted()
    sets = tenths(np.arange(NEURONS))
    found = decode(features, labels, groups, subsets=sets, first_tokens=types)
    by_name = {one.what: one for one in found}
    assert list(by_name) == ["lowest", "highest", *(f"random {i}" for i in range(5)), "all"]
    low, high = by_name["lowest"], by_name["highest"]
    assert low.accuracy > 0.85
    assert low.auroc > 0.9
    assert low.interval[0] <= low.accuracy <= low.interval[1]
    assert low.interval[0] > 0.8
    assert high.interval[0] < 0.5 < high.interval[1]
    assert abs(high.auroc - 0.5) < 0.1
    assert low.selectivity > 0.25
    assert low.selectivity_interval[0] > 0.2
    assert by_name["all"].accuracy > 0.75
    assert (low.dimension, by_name["all"].dimension) == (10, NEURONS)
    assert (low.n_texts, low.n_questions) == (QUESTIONS * EACH, QUESTIONS)
    gain, least, most = difference(low, high, groups)
    assert gain == pytest.approx(low.accuracy - high.accuracy)
    assert 0.2 < least < gain < most


def test_a_probe_is_scikit_learns_pipeline_under_the_same_folds():
    features, labels, groups, types = planted(strength=0.5)
    task = make_task(labels, groups, types, seed=3, c=0.1)
    [found] = decode_subsets(task, features, {"some": np.arange(20)})
    predicted = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        features[:, :20].astype(np.float64),
        labels,
        cv=PredefinedSplit(task.fold),
        method="decision_function",
    )
    scores = np.asarray(predicted)
    assert np.allclose(found.decision, scores)
    assert found.accuracy == ((scores > 0) == labels).mean()
    right = (scores > 0) == labels
    assert found.balanced_accuracy == (right[labels].mean() + right[~labels].mean()) / 2


def near_duplicates():
    """Data shaped as TruthfulQA: 817 questions, two claims each, each said in two or three ways.
    Labels are drawn at random for every claim, so that nothing can be learnt from others."""
    rng = np.random.default_rng(0)
    claim = np.repeat(np.arange(2 * 817), rng.integers(2, 5, 2 * 817))
    question = claim // 2
    dimension = 1000
    features = rng.normal(size=(817, dimension))[question]
    features += rng.normal(size=(2 * 817, dimension))[claim]
    features += 0.1 * rng.normal(size=features.shape)
    labels = rng.random(2 * 817)[claim] < 0.5
    return features.astype(np.float32), labels, question, rng.integers(0, 50, len(claim))


def test_folds_by_question_do_not_decode_random_labels_and_folds_by_row_do():
    features, labels, question, types = near_duplicates()

    def accuracy(groups) -> float:
        task = make_task(labels, groups, types, c=10.0, control_draws=1, bootstraps=1)
        return decode_subsets(task, features, {"all": np.arange(features.shape[1])})[0].accuracy

    leaky = accuracy(np.arange(len(labels)))
    assert leaky > 0.85
    assert abs(accuracy(question) - 0.5) < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_no_question_is_on_both_sides_and_every_text_is_tested_once(seed):
    _, labels, groups, types = planted()
    uneven = np.random.default_rng(seed).random(len(labels)) < 0.7
    task = make_task(labels[uneven], groups[uneven], types[uneven], seed=seed)
    assert set(task.fold) == set(range(5))
    for question in np.unique(task.questions):
        assert len(set(task.fold[task.questions == question])) == 1
    again = make_task(labels[uneven], groups[uneven], types[uneven], seed=seed + 1)
    assert not np.array_equal(task.fold, again.fold)


def test_scaler_vocabulary_and_components_see_training_rows_only(monkeypatch):
    features, labels, groups, types = planted()
    features[:, 0] = np.arange(len(labels))  # a mark by which rows can be told
    task = make_task(labels, groups, types)
    seen: dict[str, list[set[int]]] = {"scaler": [], "words": []}
    scale, vocabulary = StandardScaler.fit, CountVectorizer.fit_transform

    def spy_scaler(self, x, *rest, **more):
        seen["scaler"].append({round(value) for value in x[:, 0]})
        return scale(self, x, *rest, **more)

    def spy_words(self, documents, *rest, **more):
        seen["words"].append({int(text.split()[-1]) for text in documents})
        return vocabulary(self, documents, *rest, **more)

    monkeypatch.setattr(StandardScaler, "fit", spy_scaler)
    monkeypatch.setattr(CountVectorizer, "fit_transform", spy_words)
    folds = [set(np.flatnonzero(task.fold != number)) for number in range(5)]

    decode_subsets(task, features, {"all": np.arange(NEURONS)})
    assert seen["scaler"] == folds
    seen["scaler"].clear()
    decode_pca(task, features, 10)
    assert seen["scaler"] == folds
    answers = [f"It is answer {i}" for i in range(len(labels))]
    text_baselines(task, answers, np.ones(len(labels)))
    assert seen["words"] == folds


def test_what_the_test_rows_look_like_changes_no_probe():
    """Blow up one fold's rows: probes judged on the others see them in training, its own not."""
    features, labels, groups, types = planted()
    task = make_task(labels, groups, types)
    sets = {"some": np.arange(10)}
    before = decode_subsets(task, features, sets)[0].decision
    row = np.flatnonzero(task.fold == 0)[0]
    changed = features.copy()
    changed[row] *= 1e6
    after = decode_subsets(task, changed, sets)[0].decision
    others = (task.fold == 0) & (np.arange(len(labels)) != row)
    assert np.array_equal(before[others], after[others])
    assert not np.allclose(before[task.fold != 0], after[task.fold != 0])


def test_types_that_can_be_memorised_leave_no_selectivity():
    """Neurons that spell the first token and nothing else solve the control; and the true task only
    so far as openings tell it."""
    _, labels, groups, _ = planted()
    rng = np.random.default_rng(1)
    # Openings 0 to 7 are true ones', 8 to 15 false ones': the probe needs nothing but the table.
    types = np.where(labels, 0, 8) + rng.integers(0, 8, len(labels))
    spelt = np.eye(16, dtype=np.float32)[types] + 0.05 * rng.normal(size=(len(labels), 16))
    options: dict[str, Any] = {"first_tokens": types, "c": 1.0}
    [found] = decode(spelt, labels, groups, subsets={"all": np.arange(16)}, **options)
    assert found.accuracy > 0.99
    assert found.control > 0.95
    assert abs(found.selectivity) < 0.05
    assert found.control_range[0] <= found.control <= found.control_range[1]
    # The label itself in one neuron: as accurate, and no table can be read off it.
    direct = labels[:, None] + 0.05 * rng.normal(size=(len(labels), 1)).astype(np.float32)
    types = rng.integers(0, 16, len(labels))
    [found] = decode(
        direct, labels, groups, subsets={"all": np.arange(1)}, first_tokens=types, c=1.0
    )
    assert found.accuracy > 0.99
    assert found.selectivity > 0.3


def test_control_labels_hang_on_the_type_and_keep_the_ratio():
    rng = np.random.default_rng(0)
    types, labels = rng.geometric(0.15, 3000), rng.random(3000) < 0.4
    drawn = [control_labels(types, labels, seed) for seed in range(20)]
    for control in drawn:
        assert all(len(set(control[types == kind])) == 1 for kind in np.unique(types))
        assert abs(control.mean() - labels.mean()) <= 0.02
    # The commonest opening is not tied to one label by keeping the ratio.
    common = np.bincount(types).argmax()
    assert {bool(control[types == common][0]) for control in drawn} == {True, False}
    rare = control_labels(np.array([0] * 999 + [1]), np.arange(1000) == 0, 0)
    assert 0 < rare.sum() < 1000
    with pytest.raises(DataError, match="begin with one token"):
        control_labels(np.zeros(5), np.arange(5) < 2)


def test_permuting_within_questions_keeps_their_counts_and_kills_the_signal():
    features, labels, groups, types = planted()
    permuted = permuted_within(labels, groups, 0)
    assert not np.array_equal(permuted, labels)
    for question in np.unique(groups):
        assert permuted[groups == question].sum() == labels[groups == question].sum()
    assert np.array_equal(permuted, permuted_within(labels, groups, 0))
    shuffled = np.random.default_rng(0).permutation(len(labels))  # questions need not be together
    apart = permuted_within(labels[shuffled], groups[shuffled], 1)
    for question in np.unique(groups):
        assert apart[groups[shuffled] == question].sum() == 2
    task = make_task(labels, groups, types)
    p, null = within_question_null(task, features[:, :10], draws=39)
    assert p == 1 / 40
    assert abs(null.mean() - 0.5) < 0.05
    p, null = within_question_null(task, features[:, 60:80], draws=39)
    assert p > 0.05
    assert abs(null.mean() - 0.5) < 0.05


def test_a_tenth_is_what_cutting_takes():
    scores = np.random.default_rng(0).integers(0, 9, 257).astype(np.float32)
    sets = tenths(scores, n_random=3)
    assert np.array_equal(sets["lowest"], lowest([scores], 0.1).indices[0])
    assert np.array_equal(sets["highest"], lowest([-scores], 0.1).indices[0])
    assert {len(indices) for name, indices in sets.items() if name != "all"} == {25}
    assert not np.array_equal(sets["random 0"], sets["random 1"])
    assert len(tenths(np.arange(5.0))["lowest"]) == 1
    with pytest.raises(DataError, match="too equal"):
        tenths(np.ones(50))
    with pytest.raises(DataError, match="NaN"):
        tenths(np.array([1.0, np.nan]))


def test_components_are_as_many_as_the_tenth_or_as_there_can_be():
    features, labels, groups, types = planted()
    task = make_task(labels, groups, types)
    assert decode_pca(task, features, 10).dimension == 10
    assert decode_pca(task, features[:, :6], 10).dimension == 6
    few = np.isin(groups, [f"q{i}" for i in range(5)])
    task = make_task(labels[few], groups[few], types[few])
    assert decode_pca(task, features[few], 50).dimension == 4 * EACH - 1


def test_baselines_of_the_text_look_at_the_answer_alone(monkeypatch):
    _, labels, groups, types = planted()
    task = make_task(labels, groups, types)
    rng = np.random.default_rng(0)
    words = [("yes" if label else "no") for label in labels]
    answers = [f"{word} {rng.integers(1000)}" for word in words]
    tokens = np.where(labels, 5, 9)
    fitted: list[str] = []
    original = CountVectorizer.fit_transform

    def spy(self, documents, *rest, **more):
        fitted.extend(documents)
        return original(self, documents, *rest, **more)

    monkeypatch.setattr(CountVectorizer, "fit_transform", spy)
    majority, length, tfidf = text_baselines(task, answers, tokens)
    assert [one.what for one in (majority, length, tfidf)] == ["majority", "length", "tf-idf"]
    assert [one.layer for one in (majority, length, tfidf)] == [None] * 3
    assert set(fitted) <= set(answers)
    assert min(tfidf.accuracy, length.accuracy) > 0.95
    assert majority.dimension == 0
    assert majority.auroc == 0.5
    assert length.dimension == 2
    # Nothing to tell: one answer for all, equally long.
    _, length, tfidf = text_baselines(task, ["maybe"] * len(labels), np.ones(len(labels)))
    assert length.auroc == tfidf.auroc == 0.5
    with pytest.raises(DataError, match="blank"):
        text_baselines(task, [" "] * len(labels), tokens)
    with pytest.raises(DataError, match="1 answers"):
        text_baselines(task, ["a"], tokens)


def test_majority_is_the_share_of_the_commoner_class():
    _, labels, groups, types = planted()
    some = labels | (np.arange(len(labels)) % EACH == 2)
    task = make_task(labels[some], groups[some], types[some])
    majority = text_baselines(task, ["a"] * int(some.sum()), np.ones(int(some.sum())))[0]
    assert majority.accuracy == pytest.approx(2 / 3)
    assert majority.balanced_accuracy == 0.5


def test_one_seed_one_result():
    features, labels, groups, types = planted(strength=0.3)
    sets = {"some": np.arange(10)}

    def run(seed: int):
        return decode(features, labels, groups, subsets=sets, first_tokens=types, seed=seed)[0]

    one, same, other = run(0), run(0), run(1)
    assert np.array_equal(one.decision, same.decision)
    for name in ("accuracy", "interval", "auroc", "control", "selectivity_interval"):
        assert getattr(one, name) == getattr(same, name)
    assert not np.array_equal(one.decision, other.decision)


def test_intervals_resample_questions():
    rng = np.random.default_rng(0)
    values = rng.random(200) < 0.7
    single = interval_over_questions(values, np.arange(200))
    # Saying every answer ten times adds texts and no evidence.
    tenfold = interval_over_questions(np.repeat(values, 10), np.repeat(np.arange(200), 10))
    assert tenfold == pytest.approx(single)
    error = np.sqrt(values.mean() * (1 - values.mean()) / 200)
    assert single[1] - single[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    by_row = interval_over_questions(np.repeat(values, 10), np.arange(2000))
    assert (by_row[1] - by_row[0]) * 3 < 1.1 * (single[1] - single[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, y, g: (f, np.ones_like(y), g), "no text is labelled False"),
        (lambda f, y, g: (f, y & (g == "q1"), g), "1 questions have a text labelled True, 5"),
        (lambda f, y, g: (f, y + 1, g), "true or false"),
        (lambda f, y, g: (f, y, g[1:]), "groups for"),
        (lambda f, y, g: (np.where(f == f[3, 2], np.nan, f), y, g), r"text 3, neuron 2"),
        (lambda f, y, g: (np.where(f == f[3, 2], np.inf, f), y, g), "not finite"),
        (lambda f, y, g: (f[1:], y, g), "have shape"),
    ],
)
def test_bad_data_is_told_in_one_line(change, message):
    features, labels, groups, types = planted()
    features, labels, groups = change(features, labels, groups)
    with pytest.raises(DataError, match=message) as told:
        decode(features, labels, groups, subsets={"a": np.arange(3)}, first_tokens=types)
    assert "\n" not in str(told.value)


def test_bad_options_are_told():
    features, labels, groups, types = planted()
    for indices in ([], [1, 1], [NEURONS], [-1]):
        with pytest.raises(UsageError, match="different neurons"):
            decode(features, labels, groups, subsets={"a": np.array(indices)}, first_tokens=types)
    with pytest.raises(UsageError, match="2 folds"):
        make_task(labels, groups, types, folds=1)
    with pytest.raises(DataError, match="first tokens"):
        make_task(labels, groups, types[1:])


def test_layers_give_one_row_each_for_all_that_was_probed():
    features, labels, groups, types = planted()
    noise = np.random.default_rng(5).normal(size=features.shape).astype(np.float32)
    asked: list[int] = []
    told: list[tuple[int, int]] = []

    def by_layer(layer: int) -> np.ndarray:
        asked.append(layer)
        return features if layer else noise

    found = decode_layers(
        by_layer,
        labels,
        groups,
        scores_by_layer=[np.arange(NEURONS), np.arange(NEURONS), np.arange(NEURONS)],
        first_tokens=types,
        answers=["a", "b b", "c", "d"] * QUESTIONS,
        answer_tokens=[1, 2, 1, 1] * QUESTIONS,
        random_features_by_layer={0: noise, 1: noise, 2: noise},
        layers=[0, 2],
        n_random=2,
        control_draws=1,
        bootstraps=50,
        progress=lambda what, done, total: told.append((done, total)),
    )
    assert asked == [0, 2]
    assert told == [(1, 2), (2, 2)]
    rows = table(found)
    a_layer = ["lowest", "highest", "random 0", "random 1", "all", "pca", "random model"]
    a_layer += ["random model tenth"]
    assert rows["what"].to_list() == ["majority", "length", "tf-idf", *a_layer, *a_layer]
    assert rows["layer"].to_list() == [None] * 3 + [0] * 8 + [2] * 8
    assert rows["dimension"].to_list()[3:11] == [10, 10, 10, 10, 100, 10, 100, 10]
    assert rows.schema["layer"] == pl.Int64
    assert {"low", "high", "control_low", "selectivity_high", "n_questions"} <= set(rows.columns)
    accuracy = {(one.layer, one.what): one.accuracy for one in found}
    assert accuracy[2, "lowest"] > 0.85 > 0.65 > accuracy[0, "lowest"]
    with pytest.raises(DataError, match="3 scores, 100 neurons"):
        decode_layers(
            [features], labels, groups, scores_by_layer=[np.arange(3)], first_tokens=types,
            answers=["a"] * len(labels), answer_tokens=[1] * len(labels),
        )  # fmt: skip


def test_sparse_probes_name_the_planted_neurons_beside_their_controls():
    pytest.importorskip("transformer_lens")
    features, labels, groups, _ = planted(where=(7, 30, 31), strength=3.0)
    # Small neurons must not lose to large ones that tell nothing: magnitude is the question.
    features[:, [7, 30, 31]] *= 1e-5
    features[:, 60:] *= 1e3
    rows = sparse_sweep(features, labels, groups, ks=(1, 3), n_random_subsets=8, n_label_shuffles=8)
    one, three = rows
    assert one.neurons[0] in (7, 30, 31)
    assert set(three.neurons) == {7, 30, 31}
    assert min(three.coefficients) > 0
    assert three.accuracy > 0.9
    assert three.accuracy > three.shuffled_accuracy_high
    assert three.auroc > three.random_auroc_median
    assert three.random_accuracy_low <= three.random_accuracy_median <= three.random_accuracy_high
    assert three.random_fits == three.shuffled_fits == 8
    assert three.train_questions + three.test_questions == QUESTIONS
    assert rows == sparse_sweep(
        features, labels, groups, ks=(1, 3), n_random_subsets=8, n_label_shuffles=8
    )
    frame = pl.DataFrame(rows)
    assert frame["k"].to_list() == [1, 3]
    assert set(frame["neurons"][1]) == {7, 30, 31}
    bare = sparse_sweep(features, labels, groups, ks=(1,), n_random_subsets=0, n_label_shuffles=0)
    assert np.isnan(bare[0].random_auroc_median)


def test_sparse_probes_refuse_in_one_line(monkeypatch):
    features, labels, groups, _ = planted()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformer_lens.tools.analysis", None)
        with pytest.raises(UsageError, match="pip install 'glulens\\[lens\\]'"):
            sparse_sweep(features, labels, groups)
    pytest.importorskip("transformer_lens")
    for ks in ((), (2, 1), (0, 1), (1, NEURONS + 1)):
        with pytest.raises(UsageError, match="ks"):
            sparse_sweep(features, labels, groups, ks=ks)
    with pytest.raises(UsageError, match="test_fraction"):
        sparse_sweep(features, labels, groups, test_fraction=2.0)
    with pytest.raises(DataError, match="1 questions have a text labelled True, 2"):
        sparse_sweep(features, labels & (groups == "q1"), groups)
    features[3, 2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        sparse_sweep(features, labels, groups)
