"""What a filter is once it is read: a tree of values, and how it is evaluated on columns."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from ..neuron_keys import PARTS
from .columns import Columns
from .filter_functions import FUNCTIONS, Value

Kind = Literal["number", "condition", "word"]
_OPERATIONS: dict[str, Callable[..., Value]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[..., Value]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A part of a filter; two are equal wherever they stand in the text."""

    kind: ClassVar[Kind] = "number"
    at: int = field(compare=False)
    """Its first character, from 1."""


@dataclass(frozen=True)
class Number(Node):
    """A number as written."""

    value: float


@dataclass(frozen=True)
class Column(Node):
    """A column's values."""

    name: str


@dataclass(frozen=True)
class Key(Node):
    """Layer, neuron, expert or part."""

    name: str

    @property
    def kind(self) -> Kind:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A part is a word, all else a number."""
        return "word" if self.name == "part" else "number"


@dataclass(frozen=True)
class Word(Node):
    """One of `PARTS`."""

    kind: ClassVar[Kind] = "word"
    text: str


@dataclass(frozen=True)
class Marked(Node):
    """Whether a neuron is marked."""

    kind: ClassVar[Kind] = "condition"


@dataclass(frozen=True)
class Negative(Node):
    """Minus something."""

    of: Node


@dataclass(frozen=True)
class Arithmetic(Node):
    """Terms joined by + and -, or by * and /, from left to right."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Call(Node):
    """A function of `FUNCTIONS`."""

    name: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Missing(Node):
    """Whether there is no value."""

    kind: ClassVar[Kind] = "condition"
    of: Node


@dataclass(frozen=True)
class Compared(Node):
    """A chain: each comparison with the one before must hold."""

    kind: ClassVar[Kind] = "condition"
    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True)
class Member(Node):
    """Equal to one of some."""

    kind: ClassVar[Kind] = "condition"
    of: Node
    items: tuple[Node, ...]
    inverted: bool


@dataclass(frozen=True)
class Not(Node):
    """The contrary."""

    kind: ClassVar[Kind] = "condition"
    of: Node


@dataclass(frozen=True)
class Joined(Node):
    """All of them (`and`), or one at least (`or`)."""

    kind: ClassVar[Kind] = "condition"
    joint: str
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Scope:
    """What a filter is evaluated on."""

    columns: Columns
    marked: np.ndarray | None


def is_constant(node: Node) -> bool:
    """Whether the value is the same for all neurons, whatever the run."""
    match node:
        case Number() | Word():
            return True
        case Negative():
            return is_constant(node.of)
        case Arithmetic():
            return is_constant(node.first) and all(is_constant(term) for _, term in node.rest)
        case _:
            return False


def evaluate(node: Node, scope: Scope) -> Value:
    """The value of a node: numbers (of words their places in `PARTS`) or conditions, [n] or one."""
    match node:
        case Number():
            return node.value
        case Word():
            return float(PARTS.index(node.text))
        case Column():
            return scope.columns[node.name]
        case Key():
            return _key(node.name, scope.columns)
        case Marked():
            return False if scope.marked is None else scope.marked
        case Negative():
            return _plain(np.negative(_wide(evaluate(node.of, scope))))
        case Arithmetic():
            return _arithmetic(node, scope)
        case Call():
            return _call(node, scope)
        case Missing():
            return np.isnan(evaluate(node.of, scope))
        case Compared():
            return _compared(node, scope)
        case Member():
            return _member(node, scope)
        case Not():
            return np.logical_not(evaluate(node.of, scope))
        case Joined():
            return _joined(node, scope)
    raise TypeError(type(node).__name__)


def _key(name: str, columns: Columns) -> Value:
    if name in ("layer", "neuron"):
        return columns[name]
    sizes = [mlp.stop - mlp.start for mlp in columns.mlps]
    if name == "part":
        return np.repeat(np.array([PARTS.index(m.part) for m in columns.mlps], np.float32), sizes)
    experts = [np.nan if mlp.expert is None else mlp.expert for mlp in columns.mlps]
    return np.repeat(np.array(experts, np.float32), sizes)


def _wide(value: Value) -> Value:
    """Integers as floats: they must not overflow."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return value.astype(np.float64)
    return value


def _plain(value: Value) -> Value:
    """A single number as Python's own, which takes on the precision of the array it meets."""
    return value if np.ndim(value) else float(value)


def _arithmetic(node: Arithmetic, scope: Scope) -> Value:
    found = _wide(evaluate(node.first, scope))
    for sign, term in node.rest:
        found = _plain(_OPERATIONS[sign](found, _wide(evaluate(term, scope))))
    return found


def _call(node: Call, scope: Scope) -> Value:
    function = FUNCTIONS[node.name]
    memo = scope.columns.memo
    # A percentile is one number, and asked for again with every letter that is typed.
    if function.constant and node in memo:
        return memo[node]
    values = [_wide(evaluate(argument, scope)) for argument in node.arguments]
    found = _plain(function.apply(scope.columns, *values))
    if function.constant and not isinstance(found, np.ndarray):
        memo[node] = found
    return found


def _compared(node: Compared, scope: Scope) -> Value:
    before = evaluate(node.first, scope)
    found: Value | None = None
    for sign, term in node.rest:
        after = evaluate(term, scope)
        one = _compare(sign, before, after)
        found = one if found is None else np.logical_and(found, one)
        before = after
    assert found is not None
    return found


def _compare(sign: str, one: Value, other: Value) -> Value:
    holds = _COMPARISONS[sign](_whole_number(one, other), _whole_number(other, one))
    if sign == "!=":  # the one comparison that NaN passes
        holds = holds & ~np.isnan(one) & ~np.isnan(other)
    return holds


def _whole_number(value: Value, beside: Value) -> Value | int:
    """A number beside integers as an integer, if it is one: no floats are made of millions."""
    integers = isinstance(beside, np.ndarray) and beside.dtype.kind in "iu"
    return int(value) if integers and isinstance(value, float) and value.is_integer() else value


def _member(node: Member, scope: Scope) -> Value:
    of = evaluate(node.of, scope)
    found: Value = False
    for item in node.items:
        found = np.logical_or(found, _compare("==", of, evaluate(item, scope)))
    if node.inverted:
        return np.logical_and(np.logical_not(found), np.logical_not(np.isnan(of)))
    return found


def _joined(node: Joined, scope: Scope) -> Value:
    join = np.logical_and if node.joint == "and" else np.logical_or
    found = evaluate(node.parts[0], scope)
    for part in node.parts[1:]:
        found = join(found, evaluate(part, scope))
    return found
