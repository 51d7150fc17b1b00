"""What a sweep found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .shown import short, sweep_html

if TYPE_CHECKING:
    import polars

    from .sweep_findings import SweepAnalysis


@dataclass(frozen=True)
class SweepResult:
    """All of a sweep.

    Attributes:
        points: one row a point: `point` (its number), `criterion`, `control` (`random`,
            `reversed`, or null), `seed`, `fraction`, `ratio`, `neurons_cut`, `parameters`. The
            intact model is point 0, its criterion `intact`.
        items: one row an item's metric: `point`, `task`, `subtask` (a subject of MMLU; else the
            task), `doc_id` (unique in a task), `metric`, `value`, and `weight`. The weight is 1
            but for metrics that count parts of an item (words of a document, instructions of a
            prompt): there the value is the mean over them, the weight their number.
        answers: one row an item: `point`, `task`, `subtask`, `doc_id`; `loglikelihoods` and
            `greedy` of its choices; of generated answers `text`, `answer_tokens`,
            `answer_characters`, `ended` (the model stopped of itself).
        scores: one row a point, task and metric: `point`, `task`, `metric`, `value`, `stderr` (of
            the mean over items; null where the judge gives none), `n` (items).
        neurons: one row a neuron: keys and the scores that the cuts went by.
        manifest: what was run on what.
        path: the run directory, where one was written.
    """

    points: polars.DataFrame
    items: polars.DataFrame
    scores: polars.DataFrame
    neurons: polars.DataFrame
    manifest: dict[str, Any]
    path: Path | None = None
    answers: polars.DataFrame | None = None

    def __repr__(self) -> str:
        return short(
            "SweepResult",
            points=self.points.height,
            criteria=self.points["criterion"].unique(maintain_order=True).to_list(),
            path=self.path,
        )

    def _repr_html_(self) -> str:
        return sweep_html(self)

    @cached_property
    def analysis(self) -> SweepAnalysis:
        """Curves, paired tests, correlations: made once, from the tables alone."""
        from .sweep_analysis import analyse

        return analyse(self)

    def tables(self) -> dict[str, polars.DataFrame]:
        """The smaller tables, by name."""
        points = self.points.select("point", "criterion", "control", "seed", "fraction", "ratio")
        return {"points": self.points, "scores": self.scores.join(points, on="point", how="left")}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`; what is no number is null."""
        from .json_values import finite

        return {
            "schema_version": 1,
            "points": finite(self.points.to_dicts()),
            "scores": finite(self.scores.to_dicts()),
            "warnings": list(self.manifest.get("warnings", ())),
            "path": str(self.path) if self.path else None,
        }
