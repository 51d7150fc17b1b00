"""Everything a run knows of one neuron, as values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import tables
from ..errors import RunError
from .columns import Columns


@dataclass(frozen=True)
class Score:
    """A column's value, and how many percent of neurons lie below (see `Columns.percentile`)."""

    name: str
    value: float
    in_layer: float
    in_model: float


@dataclass(frozen=True)
class Activation:
    """What the neuron does under one condition; None is not in the run.

    `sd` and `rms` are over tokens, which are not independent: no interval of the mean follows.
    """

    condition: str
    tokens: int | None
    mean: float | None
    sd: float | None
    rms: float | None
    abs: float | None
    median: float | None
    min: float | None
    max: float | None
    positive: float | None


@dataclass(frozen=True)
class Contrast:
    """How the two sides of a property differ; pairs of texts are the unit.

    Attributes:
        diff: mean over pairs of the difference of mean activations, a minus b.
        low, high: its 95 % interval by Student's t, of this one neuron alone: a neuron picked from
            many as the most extreme lies outside far more often.
        dz_in_layer, dz_in_model: percent of neurons with a smaller |d_z|.
        pairs: None where the manifest does not say, and then there is no interval.
    """

    property: str
    diff: float | None
    low: float | None
    high: float | None
    dz: float
    dz_in_layer: float
    dz_in_model: float
    t: float | None
    auroc: float | None
    pairs: int | None


@dataclass(frozen=True)
class Attribution:
    """Gradient times activation, nats, with percent of neurons of smaller magnitude."""

    property: str
    value: float
    in_layer: float
    in_model: float


@dataclass(frozen=True)
class Facts:
    """One neuron. `examples` and what follows is None where the run has no such part; `missing`
    then says why, in a sentence, under the part's name."""

    label: str
    row: int
    layer: int
    neuron: int
    neurons_in_layer: int
    scores: tuple[Score, ...]
    activations: tuple[Activation, ...]
    contrasts: tuple[Contrast, ...]
    attributions: tuple[Attribution, ...]
    examples: Mapping[str, list[tables.Example]] | None = None
    activation_histograms: Mapping[str, tables.Histogram] | None = None
    weight_histograms: Mapping[str, tables.Histogram] | None = None
    vocabulary: Mapping[str, list[tables.Listed]] | None = None
    missing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; None for what is not a finite number."""
        found = {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}
        return {"schema_version": 1, **found}


_PARTS: dict[str, Callable[[Path, int], Any]] = {
    "examples": tables.examples_of,
    "activation_histograms": tables.activation_histograms,
    "weight_histograms": tables.weight_histograms,
    "vocabulary": tables.vocabulary,
}


def facts(columns: Columns, row: int) -> Facts:
    """All that is known of the neuron of a row.

    Raises:
        RunError: a column cannot be read. What lies beside the table and is missing or damaged is
            no error, but said in `Facts.missing`.
    """
    parts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    stored = row if columns.keys.stored is None else int(columns.keys.stored[row])
    for name, read in _PARTS.items():
        try:
            parts[name] = read(columns.path, stored)
        except RunError as error:
            missing[name] = str(error)
    layer = int(columns.layer[row])
    rows = columns.rows_of(layer)
    return Facts(
        label=columns.label(row),
        row=row,
        layer=layer,
        neuron=int(columns.neuron[row]),
        neurons_in_layer=rows.stop - rows.start,
        scores=tuple(_score(columns, name, row) for name in columns.scores),
        activations=tuple(_activation(columns, name, row) for name in columns.conditions),
        contrasts=tuple(_contrast(columns, name, row) for name in columns.contrasts),
        attributions=tuple(_attribution(columns, name, row) for name in columns.attributions),
        missing=missing,
        **parts,
    )


def _value(columns: Columns, name: str, row: int) -> float | None:
    """A column's value; None without the column, or where the value is missing."""
    if name not in columns:
        return None
    value = columns[name][row].item()
    return None if value != value else value


def _both(columns: Columns, name: str, row: int, *, size: bool = False) -> tuple[float, float]:
    return (
        columns.percentile(name, row, "layer", size=size),
        columns.percentile(name, row, "model", size=size),
    )


def _score(columns: Columns, name: str, row: int) -> Score:
    return Score(name, columns[name][row].item(), *_both(columns, name, row))


def _activation(columns: Columns, condition: str, row: int) -> Activation:
    found: dict[str, Any] = {
        part: _value(columns, f"{part}_{condition}", row)
        for part in ("mean", "sd", "rms", "abs", "median", "min", "max", "positive")
    }
    tokens = _value(columns, f"tokens_{condition}", row)
    return Activation(condition, None if tokens is None else int(tokens), **found)


def _contrast(columns: Columns, name: str, row: int) -> Contrast:
    diff = _value(columns, f"diff_{name}", row)
    dz = columns[f"dz_{name}"][row].item()
    pairs = _pairs(columns.manifest, name)
    t = _value(columns, f"t_{name}", row)
    low, high = _interval(diff, dz, t, pairs)
    in_layer, in_model = _both(columns, f"dz_{name}", row, size=True)
    return Contrast(
        property=name,
        diff=diff,
        low=low,
        high=high,
        dz=dz,
        dz_in_layer=in_layer,
        dz_in_model=in_model,
        t=t,
        auroc=_value(columns, f"auroc_{name}", row),
        pairs=pairs,
    )


def _attribution(columns: Columns, name: str, row: int) -> Attribution:
    column = f"attr_{name}"
    value = columns[column][row].item()
    return Attribution(name, value, *_both(columns, column, row, size=True))


def _pairs(manifest: Mapping[str, Any], name: str) -> int | None:
    """Pairs behind a contrast, as a probe's manifest says it, or a hypothesis'."""
    contrasts, items = manifest.get("contrasts"), manifest.get("items")
    found = None
    if isinstance(contrasts, dict) and isinstance(contrasts.get(name), dict):
        found = contrasts[name].get("pairs")
    elif isinstance(items, dict):
        found = items.get(name)
    return found if isinstance(found, int) and found > 0 else None


def _interval(
    diff: float | None, dz: float, t: float | None, pairs: int | None
) -> tuple[float | None, float | None]:
    """The difference's 95 % interval; its standard error is |diff / t|, t = d_z sqrt(pairs)."""
    if diff is None or pairs is None or pairs < 2:
        return None, None
    t = dz * math.sqrt(pairs) if t is None else t
    if not math.isfinite(t) or t == 0:  # a neuron that never varies
        return None, None
    from scipy.special import stdtrit

    half = float(stdtrit(pairs - 1, 0.975)) * abs(diff / t)
    return diff - half, diff + half


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tables.Histogram):  # arrays: `asdict` would copy, not convert them
        return {"edges": _plain(value.edges), "counts": _plain(value.counts)}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(some) for key, some in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(some) for some in value]
    return value
