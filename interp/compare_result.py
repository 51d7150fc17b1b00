"""What a comparison found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .json_values import finite
from .shown import compare_html, short

if TYPE_CHECKING:
    import polars

    from .concentration import Concentration
    from .kept_alike import KeptAlike
    from .transplant import Transplant
    from .tuning_verdict import ChangeVerdict


@dataclass(frozen=True)
class CompareResult:
    """All of a comparison.

    Attributes:
        kind: whether two models' weights were compared, or the tables of two runs.
        verdict: whether the change lies in neurons of low magnitude; None for two runs, which hold
            scores and no weights.
        concentrations: every criterion against absolute and relative change.
        kept_alike: overlap of cuts by either side's scores, beside what chance would give.
        carriers: neurons that a cut would take and that carry most of the change.
        selective: changes against what a probe run says that neurons do.
        transplants: what weights of one model did in the other.
        neurons: one row a neuron: keys, both sides' scores, changes.
        layers: one row an MLP.
        tensors, groups: how far every tensor and kind of tensor moved; empty for two runs.
        distributions: distances between distributions before and after.
        scores: one row a score: rank correlation, shifts.
        norms: histograms of row norms by layer; empty for two runs.
        manifest: what was compared with what.
        path: the run directory, where one was written.
    """

    kind: Literal["models", "runs"]
    verdict: ChangeVerdict | None
    concentrations: tuple[Concentration, ...]
    kept_alike: tuple[KeptAlike, ...]
    carriers: tuple[Any, ...]
    selective: tuple[Any, ...]
    transplants: tuple[Transplant, ...]
    neurons: polars.DataFrame
    layers: polars.DataFrame
    tensors: polars.DataFrame
    groups: polars.DataFrame
    distributions: polars.DataFrame
    scores: polars.DataFrame
    norms: polars.DataFrame
    manifest: dict[str, Any]
    path: Path | None = None

    def __repr__(self) -> str:
        outcome = None if self.verdict is None else self.verdict.outcome
        return short(
            "CompareResult",
            kind=self.kind,
            outcome=outcome,
            neurons=self.neurons.height,
            path=self.path,
        )

    def _repr_html_(self) -> str:
        return compare_html(self)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict in words: where the change lies, and how much of itself a neuron lost."""
        if self.verdict is None:
            return (
                "no verdict: two runs hold scores and no weights, so how far a neuron moved is not "
                "known. Give the two models.",
            )
        return self.verdict.sentence, self.verdict.relative_sentence

    def tables(self) -> dict[str, polars.DataFrame]:
        """The smaller tables, by name; what is empty is left out."""
        import polars

        rows: dict[str, tuple[Any, ...]] = {
            "concentration": self.concentrations,
            "kept-alike": self.kept_alike,
            "carriers": self.carriers,
            "selective": self.selective,
            "transplant": self.transplants,
        }
        found = {
            name: polars.DataFrame([_flat(asdict(row)) for row in part], infer_schema_length=None)
            for name, part in rows.items()
            if part
        }
        frames = {
            "layers": self.layers,
            "tensors": self.tensors,
            "groups": self.groups,
            "distributions": self.distributions,
            "scores": self.scores,
        }
        return found | {name: frame for name, frame in frames.items() if frame.height}

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""

        def plain(rows: Any) -> list[dict[str, Any]]:
            return [finite(asdict(row)) for row in rows]

        return {
            "schema_version": 1,
            "kind": self.kind,
            "verdict": None if self.verdict is None else finite(asdict(self.verdict)),
            "sentences": list(self.sentences),
            "concentration": plain(self.concentrations),
            "groups": finite(self.groups.to_dicts()),
            "scores": finite(self.scores.to_dicts()),
            "kept_alike": plain(self.kept_alike),
            "carriers": plain(self.carriers),
            "selective": plain(self.selective),
            "transplant": plain(self.transplants),
            "warnings": list(self.manifest.get("warnings", ())),
            "path": str(self.path) if self.path else None,
        }


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row that CSV can hold: lists become numbered columns."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, tuple | list):
            for k, part in enumerate(value, 1):
                found |= _flat({f"{name}_{k}": part})
        else:
            found[name] = value
    return found
