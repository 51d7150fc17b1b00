"""Series along a sweep's cuts: correlated, held side by side at equal damage, beside the paper's.

See `sweep_analysis` for what they mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from .claims import published
from .sweep_findings import Beside, Matched, Score, Series
from .sweep_measures import Cuts, Key, Measure
from .sweep_points import INTACT
from .sweep_stats import at_same, correlate, interval

CORRELATED: tuple[Key, Key] = (("mmlu", "acc"), ("truthfulqa_mc2", "acc"))
"""The paper's pair."""
PAPERS_CRITERION = "ppm"
"""What the paper's code computes; its text calls it MAW."""
_NAN = float("nan")


def correlations(
    found: Mapping[Key, Measure],
    cuts: Cuts,
    draws: Mapping[Key, np.ndarray],
    scale: Measure | None,
    seed: int,
) -> Iterator[Series]:
    if not all(key in found for key in CORRELATED):
        return
    for name, points in cuts.series().items():
        if len(points) < 3:
            continue
        at = [[found[key].row(point) for point in points] for key in CORRELATED]
        x, y = (found[key].scores()[rows] for key, rows in zip(CORRELATED, at, strict=True))
        x_draws, y_draws = (draws[key][:, rows] for key, rows in zip(CORRELATED, at, strict=True))
        damage = None if scale is None else scale.scores()[[scale.row(p) for p in points]]
        fractions = np.array([cuts.fraction(point) for point in points])
        one = correlate(x, y, fractions, damage, x_draws=x_draws, y_draws=y_draws, seed=seed)
        yield Series(name, cuts.kind(name), one)


def matched(
    found: Mapping[Key, Measure],
    chosen: Sequence[Key],
    cuts: Cuts,
    draws: Mapping[Key, np.ndarray],
    scale: Measure,
) -> Iterator[Matched]:
    series = cuts.series()
    rivals = [points for name, points in series.items() if cuts.kind(name) == "random"]
    rivals = [points for points in rivals if len(points) > 1]
    others = {name: points for name, points in series.items() if cuts.kind(name) != "random"}
    if not rivals:
        return
    damage = scale.scores()
    for key in chosen:
        of = found[key]
        if key == scale.key:
            continue
        scores = of.scores()
        for points in others.values():
            own = [point for point in points if point != cuts.intact]
            at, rows = [scale.row(p) for p in own], [of.row(p) for p in own]
            mean, size, inside = _interpolated(damage, scores, at, rivals, scale, of, cuts)
            drawn = np.stack(
                [
                    some[rows] - _interpolated(there, some, at, rivals, scale, of, cuts)[0]
                    for there, some in zip(draws[scale.key], draws[key], strict=True)
                ]
            )
            low, high = interval(drawn)
            for k, point in enumerate(own):
                there = bool(inside[k])
                value, random = of.shown(np.array([scores[rows[k]], mean[k]]))
                yield Matched(
                    task=of.task,
                    metric=of.metric,
                    perplexity=float(np.exp(damage[at[k]])),
                    value=float(value),
                    random=float(random) if there else _NAN,
                    random_fraction=float(size[k]) if there else _NAN,
                    difference=float(scores[rows[k]] - mean[k]) if there else _NAN,
                    low=float(low[k]) if there else _NAN,
                    high=float(high[k]) if there else _NAN,
                    draws=len(rivals),
                    **cuts.where(point),
                )


def _interpolated(
    damage: np.ndarray,
    scores: np.ndarray,
    at: Sequence[int],
    rivals: Sequence[Sequence[int]],
    scale: Measure,
    of: Measure,
    cuts: Cuts,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean score and mean fraction of random orders at the damage of some cuts, and whether it lies
    within the reach of all orders; each [cuts]."""
    where = damage[list(at)]
    found, sizes, inside = [], [], np.ones(len(where), bool)
    for points in rivals:
        places = damage[[scale.row(p) for p in points]]
        values, within = at_same(where, (places, scores[[of.row(p) for p in points]]))
        found.append(values)
        sizes.append(at_same(where, (places, np.array([cuts.fraction(p) for p in points])))[0])
        inside &= within
    return np.mean(found, 0), np.mean(sizes, 0), inside


def paper_model(manifest: Mapping[str, Any]) -> str | None:
    """The paper's name of the model that a sweep was of, by its own name or its folder's."""
    name = PurePath(str(manifest.get("model", {}).get("name", ""))).name
    return next((known for known in published() if known.lower() == name.lower()), None)


def beside(scores: Sequence[Score], model: str) -> Iterator[Beside]:
    """The paper's numbers beside ours at the same fractions, of the paper's criterion."""
    for (task, metric), series in published()[model].items():
        for fraction, value in zip(series.fractions, series.values, strict=True):
            here = [
                row
                for row in scores
                if (row.task, row.metric) == (task, metric) and abs(row.fraction - fraction) < 0.005
            ]
            own = [r for r in here if r.criterion in (PAPERS_CRITERION, INTACT)]
            random = [row.value for row in here if row.control == "random"]
            if own:
                yield Beside(
                    fraction,
                    task,
                    metric,
                    value,
                    own[0].value,
                    own[0].low,
                    own[0].high,
                    min(random, default=_NAN),
                    max(random, default=_NAN),
                )
