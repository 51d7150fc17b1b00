"""What a sweep measured, as matrices: every cut's answers to the same items, metric by metric.

A score is a sum over items over a sum of their weights, as in `SweepResult.items`. Perplexities are
kept as what they are the exponential of, nats a word or a token: intervals and differences of
perplexities are taken there, where one item counts as much as another, and shown on either scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from ..errors import DataError
from .sweep_points import INTACT

if TYPE_CHECKING:
    from .sweep_result import SweepResult

Key = tuple[str, str]
"""A task and its metric, as lm-evaluation-harness names them."""

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
BITS = "bits_per_byte"
LOWER_IS_BETTER = (*PERPLEXITIES, BITS)
PART = ":"
"""Between a metric and the kind of instruction that it is taken over alone."""
IFEVAL = "ifeval"
IFEVAL_METRICS = (
    "prompt_level_strict_acc",
    "inst_level_strict_acc",
    "prompt_level_loose_acc",
    "inst_level_loose_acc",
)
TESTED: Mapping[str, tuple[str, ...]] = {
    "gsm8k": ("exact_match,strict-match",),
    IFEVAL: IFEVAL_METRICS[:1],
    "lambada_openai": ("acc", "perplexity"),
    "wikitext": ("word_perplexity",),
}
"""Metrics that tests are made of; of other tasks the first one."""
YARDSTICKS: tuple[Key, ...] = (("wikitext", "word_perplexity"), ("lambada_openai", "perplexity"))
"""What a cut's damage is measured by: the first that a sweep has."""


@dataclass(frozen=True)
class Measure:
    """One metric of one task at every point.

    Attributes:
        points: numbers of the points [points].
        numbers: what an item adds to the sum: value times weight [points, items].
        weights: [items].
    """

    task: str
    metric: str
    points: tuple[int, ...]
    numbers: np.ndarray
    weights: np.ndarray

    @property
    def key(self) -> Key:
        return self.task, self.metric

    @property
    def n(self) -> int:
        """Items."""
        return len(self.weights)

    @property
    def is_perplexity(self) -> bool:
        """Whether scores are logarithms of what is shown."""
        return self.metric in PERPLEXITIES

    @property
    def is_part(self) -> bool:
        """Whether it is of one kind of instruction alone."""
        return PART in self.metric

    @property
    def is_lower_better(self) -> bool:
        return self.metric in LOWER_IS_BETTER

    def scores(self) -> np.ndarray:
        """[points]; of perplexities the logarithm."""
        return self.numbers.sum(1) / self.weights.sum()

    def shown(self, scores: np.ndarray) -> np.ndarray:
        """Scores as the harness shows them."""
        return np.exp(scores) if self.is_perplexity else scores

    def row(self, point: int) -> int:
        """Where a point's numbers are."""
        return self.points.index(point)

    def contributions(self) -> np.ndarray:
        """Items' parts of the score [points, items]: their mean is the score."""
        return self.numbers * (self.n / self.weights.sum())


def measures(result: SweepResult) -> dict[Key, Measure]:
    """Every metric of a sweep, in the order in which tasks and metrics stand there.

    Raises:
        DataError: a point lacks items that others have.
    """
    found = {}
    points = tuple(result.points["point"].to_list())
    for key, frame in result.items.group_by("task", "metric", maintain_order=True):
        task, metric = map(str, key)
        by_point = frame.sort("doc_id").partition_by("point", as_dict=True)
        there = {int(number): part for (number,), part in by_point.items()}
        if missing := [number for number in points if number not in there]:
            raise DataError(f"{task}: point {missing[0]} has no items; finish the sweep first")
        first = there[points[0]]
        for number in points:
            if not there[number]["doc_id"].equals(first["doc_id"]):
                raise DataError(
                    f"{task}: points {points[0]} and {number} have other items; a comparison needs "
                    "the same"
                )
        weight = first["weight"].to_numpy().astype(np.float64)
        values = np.stack([there[number]["value"].to_numpy() for number in points])
        # Of these the harness keeps log-likelihoods, which their scores count downwards from 0.
        unit = -1.0 if metric in PERPLEXITIES else -1 / np.log(2) if metric == BITS else 1.0
        found[task, metric] = Measure(task, metric, points, unit * values * weight, weight)
    return found


def in_family(found: Mapping[Key, Measure]) -> list[Measure]:
    """The measures that the families of tests are made of, one or two a task."""
    chosen = []
    for task in dict.fromkeys(task for task, _ in found):
        names = [metric for of, metric in found if of == task]
        wanted = [metric for metric in TESTED.get(task, ()) if metric in names] or names[:1]
        chosen += [found[task, metric] for metric in wanted]
    return chosen


def yardstick(found: Mapping[Key, Measure]) -> Measure | None:
    """The perplexity by which a cut's damage is measured, if the sweep has one."""
    return next((found[key] for key in YARDSTICKS if key in found), None)


@dataclass(frozen=True)
class Cuts:
    """Which points are what.

    Attributes:
        rows: by number, a point's row of `SweepResult.points`.
        intact: the point at which nothing is cut; None where there is none.
    """

    rows: Mapping[int, Mapping[str, Any]]
    intact: int | None

    @classmethod
    def of(cls, points: polars.DataFrame) -> Cuts:
        rows = {row["point"]: row for row in points.iter_rows(named=True)}
        intact = [number for number, row in rows.items() if row["criterion"] == INTACT]
        return cls(rows, intact[0] if intact else None)

    def fraction(self, point: int) -> float:
        return float(self.rows[point]["fraction"])

    def control(self, point: int) -> str | None:
        return self.rows[point]["control"]

    def criterion(self, point: int) -> str:
        return str(self.rows[point]["criterion"])

    def where(self, point: int) -> dict[str, Any]:
        """Columns that say which cut a row is of."""
        names = ("point", "criterion", "control", "fraction")
        return {name: self.rows[point][name] for name in names}

    def random(self, fraction: float) -> list[int]:
        """Random cuts of a fraction."""
        return [
            number
            for number in self.rows
            if number != self.intact
            and self.control(number) == "random"
            and self.fraction(number) == fraction
        ]

    def series(self) -> dict[str, list[int]]:
        """By criterion (each random order is one): its cuts by fraction, the intact model first."""
        found: dict[str, list[int]] = {}
        for number in sorted(self.rows, key=self.fraction):
            if number != self.intact:
                start = [] if self.intact is None else [self.intact]
                found.setdefault(self.criterion(number), start).append(number)
        ordered = {self.criterion(number): None for number in self.rows if number != self.intact}
        return {name: found[name] for name in ordered}

    def kind(self, series: str) -> str | None:
        """The kind of control that a series is."""
        return next(
            self.control(n) for n in self.rows if n != self.intact and self.criterion(n) == series
        )
