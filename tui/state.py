"""What all views share: which neurons are shown, in which order, where the cursor is, what is
marked; with undo and redo."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np

from .columns import Columns


@dataclass(frozen=True)
class Marks:
    """A set of rows as a value: their bits, packed and deflated, so that a history of states of
    millions of neurons stays small. The empty set is `Marks()`."""

    packed: bytes = b""

    @classmethod
    def of(cls, mask: np.ndarray) -> Marks:
        """The rows where a mask [n] is true."""
        return cls(zlib.compress(np.packbits(mask).tobytes(), 1)) if mask.any() else cls()

    def mask(self, n: int) -> np.ndarray:
        """Whether each of n rows is marked, bool [n]."""
        if not self.packed:
            return np.zeros(n, bool)
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=n).view(bool)

    def __bool__(self) -> bool:
        return bool(self.packed)


@dataclass(frozen=True)
class State:
    """One moment of the browser.

    Attributes:
        where: the filter as typed (see `filters`).
        by: the column ranked by; empty: the run's first.
        descending: the largest first.
        cursor: a row of the table, not a place in the ranking: it stays on its neuron.
        marks: the rows that are marked.
    """

    where: str = ""
    by: str = ""
    descending: bool = False
    cursor: int = 0
    marks: Marks = Marks()

    def marked(self, mask: np.ndarray) -> State:
        """The same with these rows marked, bool [n]."""
        return replace(self, marks=Marks.of(mask))

    def toggled(self, row: int, n: int) -> State:
        """The same with a row's mark turned round, of n rows."""
        mask = self.marks.mask(n)
        mask[row] = not mask[row]
        return self.marked(mask)


class History:
    """States one can go back to."""

    LONGEST = 200
    """States kept."""
    LARGEST = 16_000_000
    """Bytes that the marks of all states may take."""

    def __init__(self, first: State | None = None) -> None:
        self._states = [first or State()]
        self._place = 0

    @property
    def current(self) -> State:
        """The state now."""
        return self._states[self._place]

    @property
    def can_undo(self) -> bool:
        """Whether there is a state before."""
        return self._place > 0

    @property
    def can_redo(self) -> bool:
        """Whether something was undone."""
        return self._place < len(self._states) - 1

    def push(self, state: State) -> None:
        """Go on to a state; what was undone is forgotten. Moving the cursor is no step: it
        replaces."""
        if state == replace(self.current, cursor=state.cursor):
            self._states[self._place] = state
            return
        self._states[self._place + 1 :] = [state]
        while len(self._states) > 1 and (len(self._states) > self.LONGEST or self._too_large()):
            del self._states[0]
        self._place = len(self._states) - 1

    def _too_large(self) -> bool:
        kept = {id(state.marks.packed): len(state.marks.packed) for state in self._states}
        return sum(kept.values()) > self.LARGEST

    def undo(self) -> State:
        """The state before, which becomes the current one; at the first, that one."""
        self._place = max(0, self._place - 1)
        return self.current

    def redo(self) -> State:
        """The state that was undone last; if there is none, the current one."""
        self._place = min(len(self._states) - 1, self._place + 1)
        return self.current


def order(columns: Columns, state: State, keep: np.ndarray | None = None) -> np.ndarray:
    """The rows that are shown, in their order, int32.

    Ties go by layer and neuron, ascending; NaN and missing values come last in both directions.

    Args:
        keep: which rows pass, bool [n]; None: all.

    Raises:
        UsageError, RunError: see `Columns.__getitem__`.
    """
    rows = columns.order(state.by or columns.names[0], descending=state.descending)
    return rows if keep is None else rows[keep[rows]]
