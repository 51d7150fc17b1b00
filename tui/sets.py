"""Named sets of neurons of one run, their algebra, and their files."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import RunError, UsageError, nearest, visible
from ..prune.selection import NeuronSet
from .columns import Columns

LONGEST = 10_000
"""Characters of an expression."""
DEEPEST = 200
"""Parentheses in each other."""
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[^\W\d]\w*)|`(?P<quoted>[^`]+)`|(?P<sign>[-&|~()])|(?P<end>\Z)|(?P<odd>.))",
    re.DOTALL,
)
_LEVELS = {"|": 1, "&": 2, "-": 3}
"""How tightly operators bind, as between Python's sets."""
_OPERATORS = {"|": operator.or_, "&": operator.and_, "-": operator.sub}


def chosen(columns: Columns, mask: np.ndarray) -> NeuronSet:
    """The rows where a mask [n] is true, as a set of the run's model."""
    neuron = columns.neuron
    return NeuronSet(
        columns.widths,
        tuple(neuron[mlp.start : mlp.stop][mask[mlp.start : mlp.stop]] for mlp in columns.mlps),
    )


def mask_of(columns: Columns, found: NeuronSet) -> np.ndarray:
    """Which rows are in a set, bool [n].

    Raises:
        UsageError: the set is of another model.
    """
    found.check(columns.widths)
    mask = np.zeros(columns.n, bool)
    for mlp, indices in zip(columns.mlps, found.indices, strict=True):
        neurons = columns.neuron[mlp.start : mlp.stop]
        if len(neurons) == mlp.width:
            mask[mlp.start + indices] = True
        else:
            mask[mlp.start : mlp.stop] = np.isin(neurons, indices)
    return mask


class Sets:
    """Sets by name, all of the run's model."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._sets: dict[str, NeuronSet] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __contains__(self, name: object) -> bool:
        return name in self._sets

    def __getitem__(self, name: str) -> NeuronSet:
        """A set by its name.

        Raises:
            UsageError: there is none.
        """
        if name not in self._sets:
            hint = nearest(name, self._sets) or (
                f"; there are {', '.join(self._sets)}" if self._sets else "; none is named yet"
            )
            raise UsageError(f"no set {visible(name)[:60]!r}{hint}")
        return self._sets[name]

    def __setitem__(self, name: str, found: NeuronSet) -> None:
        """Name a set; one of that name is replaced.

        Raises:
            UsageError: the name is empty or has a backtick or line break, or the set is of another
                model.
        """
        if not name.strip() or "`" in name or not name.isprintable() or len(name) > 60:
            raise UsageError(
                f"set name {visible(name)[:60]!r}: 1 to 60 printable characters without a backtick"
            )
        found.check(self._columns.widths)
        self._sets[name] = found

    def __delitem__(self, name: str) -> None:
        _ = self[name]
        del self._sets[name]

    def mask(self, name: str) -> np.ndarray:
        """Which rows are in a set, bool [n]."""
        return mask_of(self._columns, self[name])

    def combine(self, text: str) -> NeuronSet:
        """The set that an expression gives: `a & b - c | ~d`.

        Operators bind as between Python's sets: `~` (all other neurons), then `-`, `&`, `|`; names
        that are no plain words stand in backticks.

        Raises:
            UsageError: no such expression, or no such set; one line that says where (from 1).
        """
        if len(text) > LONGEST:
            raise UsageError(f"sets: {len(text):,} characters; at most {LONGEST:,} are read")
        return _Algebra(text, self).whole()

    def load(self, path: str | Path, name: str = "") -> str:
        """Read a set from its JSON, under the file's name unless another is given.

        Returns:
            The name it has now.

        Raises:
            DataError: it cannot be read.
            UsageError: it is a set of another model.
        """
        found = NeuronSet.load(path)
        name = name or visible(Path(path).stem).replace("`", "'")[:60]
        try:
            self[name] = found
        except UsageError as error:
            raise UsageError(f"{visible(str(path))}: {error}") from error
        return name

    def save(self, name: str, path: str | Path) -> None:
        """Write a set as JSON, as `glulens prune --cut-set` reads it.

        Raises:
            UsageError: there is no such set.
            RunError: it cannot be written.
        """
        found = self[name]
        try:
            found.save(path)
        except OSError as error:
            raise RunError(
                f"{visible(str(path))} cannot be written ({error.strerror or error}); choose "
                "another place"
            ) from error


class _Algebra:
    """Precedence climbing over names and operators."""

    def __init__(self, text: str, sets: Sets) -> None:
        self._sets = sets
        self._tokens = list(_tokens(text))
        self._place = 0
        self._depth = 0

    def whole(self) -> NeuronSet:
        found = self._expression(1)
        kind, text, at = self._tokens[self._place]
        if kind != "end":
            _fail(at, f"{text!r} stands after the end of the expression")
        return found

    def _expression(self, least: int) -> NeuronSet:
        found = self._term()
        while True:
            kind, sign, _ = self._tokens[self._place]
            level = _LEVELS.get(sign, 0) if kind == "sign" else 0
            if level < max(least, 1):
                return found
            self._place += 1
            other = self._expression(level + 1)
            found = (
                found | other if sign == "|" else found & other if sign == "&" else found - other
            )

    def _term(self) -> NeuronSet:
        kind, text, at = self._tokens[self._place]
        if kind in ("name", "quoted"):
            self._place += 1
            try:
                return self._sets[text]
            except UsageError as error:
                _fail(at, str(error))
        if kind != "sign" or text not in "~(":
            _fail(at, "the name of a set is missing" + (f" before {text!r}" if text else ""))
        self._place += 1
        self._depth += 1
        if self._depth > DEEPEST:
            _fail(at, f"nested more than {DEEPEST} deep")
        if text == "~":
            found = self._term().complement()
        else:
            found = self._expression(1)
            kind, text, after = self._tokens[self._place]
            if (kind, text) != ("sign", ")"):
                _fail(after, f"')' is missing for the parenthesis at {at}")
            self._place += 1
        self._depth -= 1
        return found


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, text and place (from 1)."""
    place = 0
    while True:
        match = _TOKEN.match(text, place)
        assert match is not None  # the last two alternatives take anything
        kind = str(match.lastgroup)
        at = match.start(kind) + 1
        if kind == "odd":
            _fail(at, f"{visible(match[kind])!r} is not part of the language: names, & | - ~ ( )")
        yield kind, match[kind], at
        if kind == "end":
            return
        place = match.end()


def _fail(at: int, what: str) -> NoReturn:
    raise UsageError(f"sets, at {at}: {what}")
