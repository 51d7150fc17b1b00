"""What a hypothesis run found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .causal import EVERY, Effect
from .controls import NullModel
from .enrichment import Enrichment
from .floors import Answerer, Dose
from .json_values import finite
from .localisation import Association, Difference, TenthRow
from .rivals import Overlap
from .shown import hypothesis_html, short
from .verdict import Verdict

if TYPE_CHECKING:
    import numpy as np
    import polars

    from ..prune.histograms import WeightHistograms

FAMILY = (
    "criteria (without controls) x properties (without the control) x attribution, d_z and AUROC"
)


@dataclass(frozen=True)
class HypothesisResult:
    """All of a run; the fields from `associations` to `properties` are its tables.

    Attributes:
        verdict: the primary test in words and numbers, with its controls.
        associations: every criterion against every functional score of every property.
        tenths: what each tenth of each criterion's order holds of it.
        enrichments: top functional neurons in each tenth, by layer, counted against chance.
        differences: between properties.
        nulls: the primary test on models that know nothing.
        effects: what silencing tenths did.
        items: per silenced set, quantity and item: the change.
        answerers: TruthfulQA's scores and their floors.
        doses: the same under growing cuts.
        overlaps: of cuts with neurons that have other jobs.
        decoding: linear probes, a row a layer and set of neurons; None where none were fitted.
        null_draws: the primary statistic under swapped labels, minus its mean [permutations].
        neurons: one row a neuron: `layer`, `neuron`, scores, functional columns.
        layers: one row a layer, criterion, property and function.
        properties: per property: items, margin, accuracy, answer lengths.
        manifest: what was run on what.
        path: the run directory, where one was written.
        histograms: of every neuron's weights.
    """

    verdict: Verdict
    associations: tuple[Association, ...]
    tenths: tuple[TenthRow, ...]
    enrichments: tuple[Enrichment, ...]
    differences: tuple[Difference, ...]
    nulls: tuple[NullModel, ...]
    effects: tuple[Effect, ...]
    items: polars.DataFrame
    answerers: tuple[Answerer, ...]
    doses: tuple[Dose, ...]
    overlaps: tuple[Overlap, ...]
    decoding: polars.DataFrame | None
    null_draws: np.ndarray
    neurons: polars.DataFrame
    layers: polars.DataFrame
    properties: tuple[dict[str, Any], ...]
    manifest: dict[str, Any]
    path: Path | None = None
    histograms: WeightHistograms | None = None

    def __repr__(self) -> str:
        return short(
            "HypothesisResult",
            outcome=self.verdict.outcome,
            criterion=self.verdict.criterion,
            neurons=self.neurons.height,
            path=self.path,
        )

    def _repr_html_(self) -> str:
        return hypothesis_html(self)

    def tables(self) -> dict[str, polars.DataFrame]:
        """The smaller tables, by name; what is empty is left out."""
        import polars

        doses = [
            {
                "order": dose.order,
                "draw": dose.draw,
                "fraction": dose.fraction,
                "damage": dose.damage,
                **{k: v for k, v in asdict(dose.answerer).items() if k != "temperature"},
            }
            for dose in self.doses
        ]
        rows: dict[str, list[dict[str, Any]]] = {
            "properties": list(self.properties),
            "checks": [asdict(row) for row in self.verdict.checks],
            "associations": [asdict(row) for row in self.associations],
            "tenths": [asdict(row) for row in self.tenths],
            "enrichment": [asdict(row) for row in self.enrichments],
            "differences": [asdict(row) for row in self.differences],
            "null-models": [asdict(row) for row in self.nulls],
            "causal": [asdict(row) for row in self.effects],
            "answerers": [asdict(row) for row in self.answerers],
            "dose": doses,
            "overlaps": [asdict(row) for row in self.overlaps],
        }
        found = {
            name: polars.DataFrame(part, infer_schema_length=None)
            for name, part in rows.items()
            if part
        }
        found["layers"] = self.layers
        if self.items.height:
            found["causal-items"] = self.items
        if self.decoding is not None:
            found["decoding"] = self.decoding
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""

        def plain(rows: Any) -> list[dict[str, Any]]:
            return [finite(asdict(row)) for row in rows]

        whole = [row for row in self.effects if row.layer == EVERY]
        return {
            "schema_version": 1,
            "verdict": finite(asdict(self.verdict)),
            "family": FAMILY,
            "associations": plain(self.associations),
            "differences": plain(self.differences),
            "null_models": plain(self.nulls),
            "causal": plain(whole),
            "answerers": plain(self.answerers),
            "overlaps": plain(self.overlaps),
            "properties": list(self.properties),
            "path": str(self.path) if self.path else None,
        }
