"""Which neurons a table holds: their order, their MLPs, and what people call them.

A neuron is called `L3.N12`; of an expert `L3.E5.N12`, of a shared expert `L3.S.N12`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from .errors import RunError, UsageError
from .rundir import KEYS, RunDirectory

if TYPE_CHECKING:
    import polars

PARTS = ("dense", "expert", "shared")
COLUMNS = (*KEYS, "part", "expert")
"""Of a table, those that say which neuron a row is."""
_NAME = re.compile(r"L(\d{1,6})(?:\.(?:E(\d{1,6})|(S)))?\.N(\d{1,9})", re.IGNORECASE)


@dataclass(frozen=True)
class MlpRows:
    """One MLP and its rows: `start` to `stop` (exclusive) of the table in its order."""

    layer: int
    part: str
    """One of `PARTS`."""
    expert: int | None
    start: int
    stop: int
    width: int
    """Neurons of the MLP: rows, unless the table leaves some out."""

    @property
    def name(self) -> str:
        """`L3`, `L3.E5` or `L3.S`."""
        within = {"dense": "", "shared": ".S"}.get(self.part, f".E{self.expert}")
        return f"L{self.layer}{within}"


class NeuronKeys:
    """The neurons of a table, in the order in which a `NeuronSet` counts them: by layer; within it
    experts by number, then the shared one; within an MLP by index.

    Attributes:
        layer: integers [n].
        neuron: int32 [n], index within the MLP.
        mlps: the MLPs there are, in that order.
        stored: int64 [n], where each row stands in the file; None where the file has this order
            already, as all that glulens writes have.
    """

    def __init__(self, frame: polars.DataFrame) -> None:
        """Take the keys `layer`, `neuron` and, where there are any, `part` and `expert`.

        Raises:
            RunError: keys that are missing, negative, of another kind, or there twice.
        """
        layer, shared, expert, self.neuron = _arrays(frame)
        experts = int(expert.max(initial=-1)) + 2
        group = layer
        if shared.any() or experts > 1:
            group = (layer.astype(np.int64) * 2 + shared) * experts + expert + 1
        self.stored = None
        if not _ascending(group, self.neuron):
            self.stored = np.lexsort((self.neuron, group))
            group, layer, self.neuron = (a[self.stored] for a in (group, layer, self.neuron))
            shared, expert = shared[self.stored], expert[self.stored]
            if not _ascending(group, self.neuron):
                raise RunError("the run's table has a neuron twice; run the job again")
        # int16 halves the memory, and no model has more layers.
        small = layer.max(initial=0) <= np.iinfo(np.int16).max
        self.layer = layer.astype(np.int16 if small else np.int32)
        edges = [0, *(np.flatnonzero(group[1:] != group[:-1]) + 1), len(group)]
        self.mlps = tuple(
            MlpRows(
                layer=int(layer[start]),
                part="shared" if shared[start] else "expert" if expert[start] >= 0 else "dense",
                expert=int(expert[start]) if expert[start] >= 0 and not shared[start] else None,
                start=int(start),
                stop=int(stop),
                width=int(self.neuron[stop - 1]) + 1,
            )
            for start, stop in pairwise(edges)
            if start < stop
        )
        self._starts = [mlp.start for mlp in self.mlps]
        self._by_place = {(mlp.layer, mlp.part, mlp.expert): mlp for mlp in self.mlps}

    def __len__(self) -> int:
        return len(self.neuron)

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons, by MLP, as in a `NeuronSet` of the model."""
        return tuple(mlp.width for mlp in self.mlps)

    @property
    def has_experts(self) -> bool:
        """Whether some MLP is an expert."""
        return any(mlp.part != "dense" for mlp in self.mlps)

    def mlp_of(self, row: int) -> int:
        """Place among `mlps` of the MLP that a row belongs to."""
        return bisect_right(self._starts, row) - 1

    def label(self, row: int) -> str:
        """What the neuron of a row is called."""
        return f"{self.mlps[self.mlp_of(row)].name}.N{self.neuron[row]}"

    def find(self, name: str) -> int:
        """The row of a neuron called as in `L12.N345`, `L12.E3.N345` or `L12.S.N345`.

        Raises:
            UsageError: not such a name, or there is no such neuron.
            RunError: the table is empty.
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise UsageError(
                f"neuron {name[:40]!r}: write layer and number, as in L12.N345 (an expert's: "
                "L12.E3.N345, a shared expert's: L12.S.N345)"
            )
        layer, expert, shared, number = match.groups()
        if not self.mlps:
            raise RunError("the run's table of neurons is empty; run the job again")
        if (expert or shared) and not self.has_experts:
            raise UsageError(
                f"neuron {name!r}: this model has no experts; write L{layer}.N{number}"
            )
        part = "expert" if expert else "shared" if shared else "dense"
        mlp = self._by_place.get((int(layer), part, int(expert) if expert else None))
        if mlp is not None:
            row = mlp.start + int(np.searchsorted(self.neuron[mlp.start : mlp.stop], int(number)))
            if row < mlp.stop and self.neuron[row] == int(number):
                return row
        raise UsageError(
            f"neuron {name!r} is not in this run; layers go to {self.mlps[-1].layer}, neurons to "
            f"{max(self.widths) - 1} (in the widest layer)"
        )


def _arrays(frame: polars.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Layer, whether shared, expert (-1: none) and neuron, each [n]."""
    import polars

    rows = frame.height
    try:
        for key in KEYS:
            if frame[key].null_count():
                raise RunError(f"the run's table has rows without a {key}; run the job again")
        layer, neuron = (frame[key].cast(polars.Int32).to_numpy() for key in KEYS)
        shared, expert = np.zeros(rows, bool), np.full(rows, -1, np.int32)
        if "expert" in frame.columns:
            shared = (frame["part"].cast(polars.String) == "shared").fill_null(False).to_numpy()
            expert = frame["expert"].cast(polars.Int32).fill_null(-1).to_numpy()
    except polars.exceptions.PolarsError as error:
        raise RunError(
            "the run's table of neurons is not one that glulens wrote: its keys are no numbers of "
            "layers and neurons; run the job again"
        ) from error
    if min(layer.min(initial=0), neuron.min(initial=0)) < 0:
        raise RunError("the run's table has a layer or neuron below 0; run the job again")
    return layer, shared, expert, neuron


def _ascending(group: np.ndarray, neuron: np.ndarray) -> bool:
    """Whether rows are by group, then by neuron, none twice."""
    same = group[1:] == group[:-1]
    return bool(np.all((group[1:] > group[:-1]) | (same & (neuron[1:] > neuron[:-1]))))


def labels(keys: NeuronKeys, rows: Sequence[int] | np.ndarray) -> list[str]:
    """What the neurons of some rows are called."""
    return [keys.label(int(row)) for row in rows]


def read_keys(run: RunDirectory) -> NeuronKeys:
    """The neurons of a run; no other column of its table is read.

    Raises:
        RunError: see `RunDirectory.neurons` and `NeuronKeys`.
    """
    present = run.schema()
    return NeuronKeys(run.neurons([name for name in COLUMNS if name in present]))
