"""k-sparse probes: do a few neurons of a layer tell a property, and which?

The probes, their split and their controls are TransformerLens' (`sweep_sparse_probe`, after Gurnee
et al. 2023, arXiv 2305.01610): the k neurons whose class means differ most in training, a logistic
regression on them, judged on held-out questions. Two controls come with every k: k random neurons,
and neurons chosen and fitted with shuffled training labels.

TransformerLens ranks neurons by the *raw* difference of means and never scales a neuron by less
than 0.001. Both favour neurons with large activations, which tend to be those with large weights,
and would answer a question about magnitude by construction. Activations are therefore divided by
their standard deviation in training before they are handed over.

Shuffled labels ignore questions: it is a weaker null than `tasks.permuted_within`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from .tasks import check_features, check_labels

KS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class SparseRow:
    """One k; flat, so that `polars.DataFrame(rows)` is a table.

    Ranges are the smallest, median and largest of the control fits that converged (NaN for none).

    Attributes:
        k: neurons of the probe.
        accuracy, balanced_accuracy, auroc, f1: on the held-out questions.
        random_accuracy_low, ...: of k random neurons.
        shuffled_accuracy_low, ...: of neurons chosen and fitted with shuffled training labels.
        random_fits, shuffled_fits: how many converged.
        neurons: those selected, the most telling first.
        coefficients: theirs, on standardised activations; above 0 speaks for true.
        train_texts, test_texts, train_questions, test_questions: the one split of all k.
    """

    k: int
    accuracy: float
    balanced_accuracy: float
    auroc: float
    f1: float
    random_accuracy_low: float
    random_accuracy_median: float
    random_accuracy_high: float
    random_auroc_low: float
    random_auroc_median: float
    random_auroc_high: float
    shuffled_accuracy_low: float
    shuffled_accuracy_median: float
    shuffled_accuracy_high: float
    shuffled_auroc_low: float
    shuffled_auroc_median: float
    shuffled_auroc_high: float
    random_fits: int
    shuffled_fits: int
    neurons: list[int]
    coefficients: list[float]
    train_texts: int
    test_texts: int
    train_questions: int
    test_questions: int


def sparse_sweep(
    features: np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    groups: Sequence[Any] | np.ndarray,
    *,
    ks: Sequence[int] = KS,
    test_fraction: float = 0.3,
    n_random_subsets: int = 20,
    n_label_shuffles: int = 20,
    seed: int = 0,
) -> list[SparseRow]:
    """Sweep k over one split by question, with both controls.

    Args:
        features: mean activation over the answer's tokens, float [texts, neurons] of one layer.
        labels: bool [texts].
        groups: question of every text, [texts]; held out whole.
        ks: strictly increasing.
        test_fraction: share of texts held out.
        n_random_subsets, n_label_shuffles: control fits at every k.

    Returns:
        One row a k.

    Raises:
        DataError: a class in fewer than two questions, features that are not finite, or a fit that
        does not converge.
        UsageError: TransformerLens is missing, or an option it does not allow.
    """
    try:
        import torch
        from transformer_lens.tools.analysis import SparseProbeConvergenceError, sweep_sparse_probe
    except ImportError as error:
        raise UsageError(
            "sparse probes need TransformerLens: pip install 'glulens[lens]'"
        ) from error
    told, questions = check_labels(labels, groups, per_class=2)
    features = check_features(features, len(told))
    if not ks or list(ks) != sorted(set(ks)) or ks[0] < 1 or ks[-1] > features.shape[1]:
        raise UsageError(
            f"ks {tuple(ks)}: strictly increasing numbers from 1 to the layer's "
            f"{features.shape[1]} neurons are needed"
        )

    def sweep(x: np.ndarray, ks: Sequence[int], **controls: Any) -> Any:
        return sweep_sparse_probe(
            torch.from_numpy(x),
            torch.from_numpy(told),
            groups=torch.from_numpy(questions),
            ks=tuple(int(k) for k in ks),
            test_fraction=test_fraction,
            preprocess="standardize",
            seed=seed,
            **controls,
        )

    try:
        # The split hangs on labels, groups and seed alone: a probe of nothing tells it.
        train = sweep(np.zeros((len(told), 1)), (1,)).results[0].train_indices.numpy()
        x = features.astype(np.float64)
        scale = x[train].std(0)
        found = sweep(
            x / np.where(scale > 0, scale, 1.0),
            ks,
            n_random_subsets=n_random_subsets,
            n_label_shuffles=n_label_shuffles,
        )
    except SparseProbeConvergenceError as error:
        raise DataError(f"a sparse probe did not converge ({error}); try another seed") from error
    except ValueError as error:
        raise UsageError(f"TransformerLens refuses the sparse probe: {error}") from error
    assert np.array_equal(train, found.results[0].train_indices.numpy())
    test = found.results[0].test_indices.numpy()
    assert not np.intersect1d(questions[train], questions[test]).size, "a question in both"
    return [
        SparseRow(
            k=result.k,
            accuracy=result.metrics.accuracy,
            balanced_accuracy=_balanced(result.metrics),
            auroc=result.metrics.roc_auc,
            f1=result.metrics.f1,
            **_ranges("random", random),
            **_ranges("shuffled", shuffled),
            random_fits=len(random.accuracy),
            shuffled_fits=len(shuffled.accuracy),
            neurons=result.selected_features.tolist(),
            coefficients=result.coefficients.tolist(),
            train_texts=len(train),
            test_texts=len(test),
            train_questions=len(np.unique(questions[train])),
            test_questions=len(np.unique(questions[test])),
        )
        for result, random, shuffled in zip(
            found.results,
            found.random_coordinate_controls,
            found.label_shuffle_controls,
            strict=True,
        )
    ]


def _balanced(metrics: Any) -> float:
    right, wrong = metrics.true_positives, metrics.false_negatives
    spared, raised = metrics.true_negatives, metrics.false_positives
    return (right / (right + wrong) + spared / (spared + raised)) / 2


def _ranges(name: str, control: Any) -> Any:
    found = {}
    for metric, values in (("accuracy", control.accuracy), ("auroc", control.roc_auc)):
        values = values.numpy()
        for part, of in (("low", np.min), ("median", np.median), ("high", np.max)):
            found[f"{name}_{metric}_{part}"] = float(of(values)) if len(values) else float("nan")
    return found
