"""From items to scores: lm-eval's aggregation, with standard errors over items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars

    from .sweep_items import AskedTask

SCORES = {
    "point": "Int32",
    "task": "String",
    "metric": "String",
    "value": "Float64",
    "stderr": "Float64",
    "n": "Int32",
}


def scores(items: polars.DataFrame, tasks: Mapping[str, AskedTask]) -> polars.DataFrame:
    """Scores of every point, task and metric: [point, task, metric, value, stderr, n].

    A value is what the task's own aggregation makes of the items. Items of all subjects of MMLU
    count alike, as in lm-eval. Its standard error:

    - of a mean, the items' standard deviation over the root of their number; within subjects where
      there are several, pooled as in lm-eval, so that differences between subjects do not count;
    - of a ratio (instructions followed, words of documents) that of its linearisation;
    - of the exponential of either that of the exponent times the value (the delta method; lm-eval
      bootstraps LAMBADA's perplexity and gives none for perplexity by the word).

    Args:
        items: as in `SweepResult`, with `form` besides.
    """
    from .sweep_items import frame

    rows = []
    for key, part in items.group_by("point", "task", "metric", maintain_order=True):
        point, name, metric = key
        how = _aggregation(tasks[str(name)], str(metric))
        value = part["value"].to_numpy().astype(np.float64)
        weight = part["weight"].to_numpy().astype(np.float64)
        groups = part["subtask"].to_numpy()
        total = _aggregate(how, str(part["form"][0]), value, weight)
        rows.append(
            {
                "point": point,
                "task": name,
                "metric": metric,
                "value": total,
                "stderr": _stderr(getattr(how, "__name__", ""), total, value, weight, groups),
                "n": part.height,
            }
        )
    return frame(rows, SCORES)


def _aggregation(task: AskedTask, metric: str) -> Any:
    from lm_eval.api.metrics import mean

    known = task.leaves[0].aggregation()
    return known.get(metric.partition(":")[0].partition(",")[0], mean)


def _aggregate(how: Any, form: str, value: np.ndarray, weight: np.ndarray) -> float:
    if form == "list":  # of parts, each as good as another
        return float((value * weight).sum() / weight.sum())
    given: Sequence[Any] = value.tolist()
    if form == "pair":
        given = list(zip((value * weight).tolist(), weight.tolist(), strict=True))
    return float(how(given))


def _stderr(
    how: str, total: float, value: np.ndarray, weight: np.ndarray, groups: np.ndarray
) -> float | None:
    n = len(value)
    if n < 2:
        return None
    # An item's part of the score, of which the score is the mean.
    parts = (value - (value * weight).sum() / weight.sum()) * weight * n / weight.sum()
    names = np.unique(groups)
    if len(names) > 1:
        free = n - len(names)
        if not free:
            return None
        within = sum(float(((parts[groups == g]) - parts[groups == g].mean()) @ parts[groups == g])
                     for g in names)  # fmt: skip
        error = math.sqrt(max(within, 0.0) / free / n)
    else:
        error = float(parts.std(ddof=1)) / math.sqrt(n)
    factors = {
        "mean": 1.0,
        "nanmean": 1.0,
        "perplexity": total,
        "weighted_perplexity": total,
        "bits_per_byte": 1 / math.log(2),
        "weighted_mean": 1.0,
    }
    factor = 1.0 if "inst_level" in how or "agg" in how else factors.get(how)
    return None if factor is None else error * factor
