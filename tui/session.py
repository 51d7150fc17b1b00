"""What the seven views share: the run, the state, the order it gives, and the named sets."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import RunError, UsageError
from . import filters, sets
from .columns import Columns
from .state import History, State, order


class Session:
    """One browser's worth of a run.

    Attributes:
        columns: the run's table.
        other: of a second run to compare with, or None.
        model: the name of a model to try texts on, or None.
        history: the states so far.
        sets: named sets of neurons.
        order: rows shown, as of the last finished ordering, int32.
        marks: which rows are marked, bool [n]; of the current state.
    """

    def __init__(
        self, columns: Columns, other: Columns | None = None, model: str | None = None
    ) -> None:
        self.columns, self.other, self.model = columns, other, model
        self.history = History(State(by=columns.names[0]))
        self.sets = sets.Sets(columns)
        self.order = np.arange(columns.n, dtype=np.int32)
        self._marks = State().marks, np.zeros(columns.n, bool)

    @property
    def state(self) -> State:
        """The state now."""
        return self.history.current

    @property
    def marks(self) -> np.ndarray:
        """Which rows are marked, bool [n]; not to be written to."""
        if self._marks[0] != self.state.marks:
            self._marks = self.state.marks, self.state.marks.mask(self.columns.n)
        return self._marks[1]

    @property
    def names(self) -> tuple[str, ...]:
        """Columns from left to right: scores, attributions and d_z, then all else; whatever is
        ranked by, they stay where they are."""
        columns = self.columns
        # Counts of tokens are the same for nearly all neurons: nobody ranks by them first.
        others = sorted(columns.names, key=lambda name: name.startswith("tokens_"))
        return tuple(dict.fromkeys([*columns.shown(columns.names[0]), *others]))

    def keep(self, state: State) -> np.ndarray | None:
        """Which rows pass a state's filter, bool [n]; None for all.

        Raises:
            UsageError: the filter is none, or of columns that the run does not have.
        """
        if not state.where.strip():
            return None
        found = filters.parse(state.where, self.columns.names)
        return found.mask(self.columns, state.marks.mask(self.columns.n))

    def ordered(self, state: State) -> np.ndarray:
        """The rows that a state shows, in order, int32.

        Raises:
            UsageError, RunError: see `keep` and `Columns`.
        """
        return order(self.columns, state, self.keep(state))

    def marked_labels(self) -> list[str]:
        """What the marked neurons are called."""
        return [self.columns.label(int(row)) for row in np.flatnonzero(self.marks)]

    def marked_set(self) -> sets.NeuronSet:
        """The marked neurons as a set.

        Raises:
            UsageError: nothing is marked.
        """
        if not self.marks.any():
            raise UsageError("nothing is marked; mark neurons with space, or all with m")
        return sets.chosen(self.columns, self.marks)


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table as CSV.

    Raises:
        RunError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file, all of it or nothing.

    Raises:
        RunError: it is there already, or cannot be written.
    """
    try:
        if path.exists():
            raise RunError(f"{path} exists; give another name")
        scratch = path.with_name(f".{path.name}.part")
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
        scratch.replace(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path} cannot be written ({reason}); give another name") from error
