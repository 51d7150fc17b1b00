"""The table of a run as numpy arrays, each read when first asked for."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import RunError, UsageError, nearest
from ..neuron_keys import COLUMNS, MlpRows, NeuronKeys, read_keys
from ..rundir import NEURONS, RunDirectory, open_run
from .ordering import ascending

if TYPE_CHECKING:
    import polars

CONDITION = ("tokens", "mean", "sd", "rms", "abs", "min", "max", "positive", "median")
"""Beginnings of columns that describe activations under a condition, which follows after `_`."""
CONTRAST = ("diff", "dz", "t", "auroc")
"""Beginnings of columns that compare the two sides of a property."""
ATTRIBUTION = "attr"
Within = Literal["layer", "model"]


class Columns:
    """The table of a run: numpy arrays by name, one entry a neuron.

    Rows are in the order of `NeuronKeys`, whatever the file's. Arrays are read-only; a column stays
    in memory once it was asked for, and so do the last order and the last ranks.

    Attributes:
        path, manifest: of the run.
        n: rows.
        keys: which neuron each row is.
        names: columns one can rank by, weight scores first, then what neurons do.
        conditions, contrasts, attributions: what stands after `rms_`, `dz_` and `attr_`.
    """

    def __init__(self, run: RunDirectory, schema: Mapping[str, Any], keys: NeuronKeys) -> None:
        self.path, self.manifest, self.keys = run.path, run.manifest, keys
        self.n = len(keys)
        numeric = [
            name for name, kind in schema.items() if kind.is_numeric() and name not in COLUMNS
        ]
        self.conditions = _after(numeric, "rms")
        self.contrasts = _after(numeric, "dz")
        self.attributions = _after(numeric, ATTRIBUTION)
        functional = self.functional()
        self.names = tuple(sorted(numeric, key=lambda name: name in functional))
        self.scores = tuple(name for name in numeric if name not in functional)
        if not self.names or not self.n:
            raise RunError("the run's table has no scores to rank by; run the job again")
        self.layers = tuple(dict.fromkeys(mlp.layer for mlp in keys.mlps))
        starts = np.searchsorted(keys.layer, self.layers).tolist()
        self._slices = {
            layer: slice(start, stop)
            for layer, start, stop in zip(self.layers, starts, [*starts[1:], self.n], strict=True)
        }
        self._run = run
        self._stamp = _stamp(run)
        self._arrays: dict[str, np.ndarray] = {"layer": keys.layer, "neuron": keys.neuron}
        for array in self._arrays.values():
            array.flags.writeable = False
        self._order: tuple[tuple[str, bool], np.ndarray] | None = None
        self._rank: tuple[str, np.ndarray] | None = None
        self.memo: dict[Hashable, Any] = {}
        """Numbers that were computed from whole columns, for whoever wants them again."""

    def __len__(self) -> int:
        return self.n

    def __contains__(self, name: object) -> bool:
        return name in ("layer", "neuron") or name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        """A column, [n], read-only; missing values are NaN.

        Raises:
            UsageError: there is no such column.
            RunError: the file is damaged, gone, or no longer the one that was opened.
        """
        found = self._arrays.get(name)
        if found is None:
            self.check(name)
            found = self._arrays[name] = self._read(name)
        return found

    def check(self, name: str) -> None:
        """Raise `UsageError` unless there is such a column of numbers."""
        if name not in self:
            allowed = ("layer", "neuron", *self.names)
            hint = nearest(name, allowed) or f"; there are {', '.join(allowed)}"
            raise UsageError(f"no column {name!r}{hint}")

    @property
    def layer(self) -> np.ndarray:
        """Layer of every row, integers [n]."""
        return self.keys.layer

    @property
    def neuron(self) -> np.ndarray:
        """Index within the MLP of every row, int32 [n]."""
        return self.keys.neuron

    @property
    def mlps(self) -> tuple[MlpRows, ...]:
        """MLPs with their rows, in the order in which a `NeuronSet` counts them."""
        return self.keys.mlps

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons, by MLP, as in a `NeuronSet` of the model."""
        return self.keys.widths

    def rows_of(self, layer: int) -> slice:
        """The rows of a layer."""
        return self._slices[layer]

    def label(self, row: int) -> str:
        """What a neuron is called: `L3.N12`, `L3.E5.N12`, `L3.S.N12`."""
        return self.keys.label(row)

    def find(self, name: str) -> int:
        """The row of a neuron by what it is called (see `NeuronKeys.find`)."""
        return self.keys.find(name)

    def functional(self) -> frozenset[str]:
        """Names of columns that say what neurons do; all others are scores."""
        groups = (
            (CONDITION, self.conditions),
            (CONTRAST, self.contrasts),
            ((ATTRIBUTION,), self.attributions),
        )
        return frozenset(f"{part}_{of}" for parts, some in groups for part in parts for of in some)

    def shown(self, by: str) -> tuple[str, ...]:
        """Columns for a narrow place: the one ranked by, scores, attributions and d_z."""
        functions = [f"{ATTRIBUTION}_{of}" for of in self.attributions]
        functions += [f"dz_{of}" for of in self.contrasts]
        first = [by] if by in self.names else []
        return tuple(dict.fromkeys([*first, *self.scores, *functions]))

    def order(self, by: str, *, descending: bool = False) -> np.ndarray:
        """All rows sorted by a column, int32 [n]; ties by row, NaN last in both directions."""
        kept = self._order
        if kept is None or kept[0] != (by, descending):
            values = self[by]
            self._order = kept = None  # frees the last one before the next is made
            rows = ascending(values, descending=descending)
            rows.flags.writeable = False
            self._order = kept = (by, descending), rows
        return kept[1]

    def rank(self, name: str) -> np.ndarray:
        """Place of each neuron, from 0, when all are sorted by a column, int32 [n]."""
        kept = self._rank
        if kept is None or kept[0] != name:
            order = self.order(name)
            self._rank = None
            places = np.empty(self.n, np.int32)
            places[order] = np.arange(self.n, dtype=np.int32)
            places.flags.writeable = False
            self._rank = kept = name, places
        return kept[1]

    def percentile(self, name: str, row: int, within: Within = "layer", *, size=False) -> float:
        """Percent of the neurons with a smaller value, and half of those with the same.

        Args:
            name: the column.
            row: whose value; NaN gives NaN.
            within: whom it is compared with; NaN counts nowhere.
            size: compare magnitudes instead.
        """
        values = self[name]
        if within == "layer":
            rows = self.rows_of(int(self.layer[row]))
            values, row = values[rows], row - rows.start
        values = np.abs(values) if size else values
        value = values[row]
        if np.isnan(value):
            return float("nan")
        less, same = np.count_nonzero(values < value), np.count_nonzero(values == value)
        there = len(values) - np.count_nonzero(np.isnan(values))
        return 100 * (less + same / 2) / there

    def _read(self, name: str) -> np.ndarray:
        self._check_unchanged()
        column = self._run.neurons([name])[name]
        self._check_unchanged()
        array = _numbers(column)
        if len(array) != self.n:
            raise RunError(
                f"{self.path / NEURONS}: column {name!r} is cut short; run the job again"
            )
        if self.keys.stored is not None:
            array = array[self.keys.stored]
        array.flags.writeable = False
        return array

    def _check_unchanged(self) -> None:
        """Columns of two files must not stand side by side."""
        if _stamp(self._run) != self._stamp:
            raise RunError(
                f"{self.path / NEURONS} was replaced or removed since it was opened; open the run "
                "again"
            )


def open_columns(path: str | Path) -> Columns:
    """Open the table of a run; only the keys are read at once.

    Raises:
        RunError: no such run, a damaged one, or nothing in it to rank.
    """
    run = open_run(path)
    return Columns(run, run.schema(), read_keys(run))


def _after(names: list[str], part: str) -> tuple[str, ...]:
    return tuple(n.removeprefix(f"{part}_") for n in names if n.startswith(f"{part}_"))


def _numbers(column: polars.Series) -> np.ndarray:
    """Values as numpy's; without a copy where nothing is missing."""
    import polars

    native = (polars.Float32, polars.Float64, polars.Int8, polars.Int16, polars.Int32, polars.Int64,
              polars.UInt8, polars.UInt16, polars.UInt32, polars.UInt64)  # fmt: skip
    if column.dtype not in native:  # decimals, halves, 128 bits
        column = column.cast(polars.Float64, strict=False)
    return column.rechunk().to_numpy()


def _stamp(run: RunDirectory) -> tuple[int, int, int] | None:
    """What tells a file from its successor in the same place."""
    try:
        about = (run.path / NEURONS).stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns
