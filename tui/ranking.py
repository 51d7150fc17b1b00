"""The ranking behind the browser's table: a filter and a sort over a run's columns, no widgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars

from ..errors import RunError

TOP = 500
"""Rows that the table shows."""
FUNCTIONAL = (
    "attr_", "dz_", "diff_", "t_", "auroc_", "rms_", "mean_", "sd_", "abs_", "median_",
    "positive_", "min_", "max_", "tokens_",
)  # fmt: skip


@dataclass(frozen=True)
class Ranking:
    """What the table shows: the column sorted by, its direction, and the layer it is held to."""

    by: str
    descending: bool = False
    layer: int | None = None

    def flipped(self) -> Ranking:
        """The same in the other direction."""
        return replace(self, descending=not self.descending)

    def apply(self, neurons: polars.DataFrame) -> polars.DataFrame:
        """The first `TOP` rows, with their `rank` (from 1) among all neurons that pass the filter.

        Ties go by layer and neuron, ascending; missing values and NaN come last in both directions.
        """
        rows = neurons
        if self.layer is not None:
            rows = rows.filter(polars.col("layer") == self.layer)
        key = polars.col(self.by)
        if neurons.schema[self.by].is_float():
            key = key.fill_nan(None)
        rows = rows.sort(
            key,
            "layer",
            "neuron",
            descending=[self.descending, False, False],
            nulls_last=True,
            maintain_order=True,
        )
        return rows.head(TOP).with_row_index("rank", offset=1)


def sortable(neurons: polars.DataFrame) -> list[str]:
    """Columns that can be ranked by: weight scores first, then what neurons do.

    Raises:
        RunError: the table has no numbers besides its keys.
    """
    numeric = [
        name
        for name, kind in neurons.schema.items()
        if kind.is_numeric() and name not in ("layer", "neuron", "expert")
    ]
    if not numeric or not neurons.height:
        raise RunError("the run's table has no scores to rank by; run the job again")
    return sorted(numeric, key=lambda name: name.startswith(FUNCTIONAL))


def labels(rows: polars.DataFrame) -> list[str]:
    """What neurons are called: `L3.N12`, an expert's `L3.E5.N12`, a shared expert's `L3.S.N12`."""
    part: Sequence[str] = [""] * rows.height
    if "expert" in rows.columns:
        part = [
            f".E{expert}" if expert is not None else ".S" if kind == "shared" else ""
            for kind, expert in rows.select("part", "expert").iter_rows()
        ]
    return [
        f"L{layer}{of}.N{neuron}"
        for (layer, neuron), of in zip(
            rows.select("layer", "neuron").iter_rows(), part, strict=True
        )
    ]


def shown(neurons: polars.DataFrame, by: str) -> list[str]:
    """Columns that fit a terminal: the one ranked by, weight scores, attributions and d_z."""
    names = sortable(neurons)
    scores = [name for name in names if not name.startswith(FUNCTIONAL)]
    functions = [name for name in names if name.startswith(("attr_", "dz_"))]
    return list(dict.fromkeys([by, *scores, *functions]))
