"""The language of filters: which neurons are shown.

    layer in (10, 11) and ppm > pct(ppm, 99) and abs(attr_fact) > 0.01 and not marked

Names are columns and `KEYS`; a name that is no plain word stands in backticks. Numbers are
compared in the precision of their column; with NaN no comparison holds, != and `not in` neither.
Nothing else is ever evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np

from ..errors import UsageError, nearest, visible
from ..neuron_keys import PARTS
from . import filter_tree as tree
from .columns import Columns
from .filter_functions import FUNCTIONS
from .filter_tree import Kind, Node

KEYS = {
    "layer": "layer, from 0",
    "neuron": "index within its MLP, from 0",
    "expert": "number of the expert; NaN where it is none",
    "part": "'dense', 'expert' or 'shared'",
    "marked": "whether the neuron is marked",
}
LONGEST = 10_000
"""Characters of a filter."""
DEEPEST = 200
"""Conditions and terms nested in each other."""

_WORDS = ("and", "or", "not", "in")
_COMPARE = ("<", "<=", ">", ">=", "==", "!=")
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    | (?P<name>[^\W\d]\w*) | `(?P<quoted>[^`]*)`
    | '(?P<single>[^']*)' | "(?P<double>[^"]*)"
    | (?P<sign><=|>=|==|!=|[-+*/<>(),])
    | (?P<end>\Z) | (?P<odd>.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_OTHERWISE = {"=": "==", "&": "and", "|": "or", "!": "not", "~": "not", "%": "pct(column, p)",
              "^": "*", "[": "(", "{": "("}  # fmt: skip
"""What is meant by signs of other languages."""
_LEVELS = {"or": 1, "and": 2, "in": 4, **dict.fromkeys(_COMPARE, 4), "+": 5, "-": 5, "*": 6, "/": 6}
"""How tightly what stands between two terms binds them."""
_NOT, _SUM, _SIGN = 3, 5, 7


@dataclass(frozen=True)
class Filter:
    """A condition on neurons; the empty text lets all pass."""

    text: str
    condition: Node | None

    def mask(self, columns: Columns, marked: np.ndarray | None = None) -> np.ndarray:
        """Which neurons pass, bool [n].

        Args:
            columns: the run's.
            marked: bool [n]; None: nothing is.

        Raises:
            UsageError: a column that this run does not have.
            RunError: a column cannot be read.
        """
        if self.condition is None:
            return np.ones(columns.n, bool)
        with np.errstate(all="ignore"):
            found = tree.evaluate(self.condition, tree.Scope(columns, marked))
        return np.array(np.broadcast_to(found, columns.n), bool)


def parse(text: str, names: Collection[str]) -> Filter:
    """Read a filter.

    Args:
        text: as above.
        names: columns there are; `KEYS` are known besides.

    Raises:
        UsageError: it is none; one line that says where (characters from 1) and why.
    """
    if len(text) > LONGEST:
        raise UsageError(f"filter: {len(text):,} characters; at most {LONGEST:,} are read")
    return Filter(text, _Parser(text, names).whole() if text.strip() else None)


def grammar() -> list[tuple[str, str]]:
    """Everything the language has, as pairs of a form and what it means."""
    return [
        *KEYS.items(),
        ("`name`", "a column whose name is no plain word"),
        ("+ - * / ( )", "arithmetic"),
        ("< <= > >= == !=", "comparisons, also chained: 3 <= layer < 9"),
        ("in (1, 2), not in (1, 2)", "equal to one of them, or to none"),
        ("and, or, not", "conditions joined"),
        ("isnan(x)", "whether there is no value"),
        *((function.signature, function.about) for function in FUNCTIONS.values()),
    ]


@dataclass(frozen=True)
class _Token:
    kind: Literal["number", "name", "quoted", "word", "sign", "end"]
    text: str
    at: int
    """Of its first character, from 1."""


def _tokens(text: str) -> Iterable[_Token]:
    place = 0
    while True:
        match = _TOKEN.match(text, place)
        assert match is not None  # the last two alternatives take anything
        kind = match.lastgroup
        at = match.start(kind or 0) + (kind not in ("quoted", "single", "double"))
        if kind == "odd":
            _odd(match["odd"], at)
        if kind in ("single", "double"):
            yield _Token("word", match[kind], at)
        else:
            yield _Token(kind, match[kind], at)  # pyright: ignore
        if kind == "end":
            return
        place = match.end()


def _odd(sign: str, at: int) -> NoReturn:
    if sign in "`'\"":
        _fail(at, f"{sign} opens a name or word that does not end")
    if sign in _OTHERWISE:
        _fail(at, f"{sign!r} is not part of the language; write {_OTHERWISE[sign]}")
    _fail(at, f"{visible(sign)!r} is not part of the language")


def _fail(at: int, what: str) -> NoReturn:
    raise UsageError(f"filter, at {at}: {what}")


class _Parser:
    """Precedence climbing over the tokens of one filter."""

    def __init__(self, text: str, names: Collection[str]) -> None:
        self._tokens = list(_tokens(text))
        self._place = 0
        self._depth = 0
        self._names = frozenset(names)

    def whole(self) -> Node:
        """The condition that the text is."""
        found = self._expression()
        if self._next.kind != "end":
            _fail(self._next.at, f"{_shown(self._next)} stands after the end of the condition")
        return _wanted(found, "condition")

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        self._place += 1
        return self._tokens[self._place - 1]

    def _is(self, *texts: str) -> bool:
        return self._next.kind in ("name", "sign") and self._next.text in texts

    def _expect(self, text: str, why: str) -> None:
        if not self._is(text):
            _fail(self._next.at, f"{text!r} is missing {why}")
        self._take()

    def _between(self) -> tuple[str, int]:
        """What joins the next term to the one before, and how tightly; 0: nothing does."""
        joint = self._next
        if joint.kind not in ("name", "sign"):
            return "", 0
        following = self._tokens[self._place + 1] if joint.text == "not" else joint
        if joint.text == "not" and following.kind == "name" and following.text == "in":
            return "not in", _LEVELS["in"]
        return joint.text, _LEVELS.get(joint.text, 0)

    def _expression(self, least: int = 1) -> Node:
        self._depth += 1
        if self._depth > DEEPEST:
            _fail(self._next.at, f"nested more than {DEEPEST} deep")
        found = self._term()
        while True:
            joint, level = self._between()
            if not level or level < least:
                break
            if level <= _LEVELS["and"]:
                found = self._joined(found, joint, level)
            elif joint in ("in", "not in"):
                found = self._membership(found, joint == "not in")
            elif level == _LEVELS["<"]:
                found = self._comparison(found)
            else:
                found = self._arithmetic(found, level)
        self._depth -= 1
        return found

    def _joined(self, first: Node, joint: str, level: int) -> Node:
        parts = [_wanted(first, "condition")]
        while self._is(joint):
            self._take()
            parts.append(_wanted(self._expression(level + 1), "condition"))
        return tree.Joined(first.at, joint, tuple(parts))

    def _membership(self, of: Node, inverted: bool) -> Node:
        for _ in range(2 if inverted else 1):
            self._take()
        self._expect("(", "after 'in'")
        items = [self._expression(_SUM)]
        while self._is(","):
            self._take()
            items.append(self._expression(_SUM))
        self._expect(")", "after the list")
        for item in items:
            _alike(of, item)
        return tree.Member(of.at, of, tuple(items), inverted)

    def _comparison(self, first: Node) -> Node:
        rest: list[tuple[str, Node]] = []
        before = first
        while self._is(*_COMPARE):
            sign = self._take()
            after = self._expression(_SUM)
            _alike(before, after)
            if before.kind == "word" and sign.text not in ("==", "!="):
                _fail(sign.at, f"words are compared by == and !=, not by {sign.text}")
            rest.append((sign.text, after))
            before = after
        return tree.Compared(first.at, first, tuple(rest))

    def _arithmetic(self, first: Node, level: int) -> Node:
        _wanted(first, "number")
        rest: list[tuple[str, Node]] = []
        while self._between()[1] == level:
            sign = self._take().text
            rest.append((sign, _wanted(self._expression(level + 1), "number")))
        return tree.Arithmetic(first.at, first, tuple(rest))

    def _term(self) -> Node:
        token = self._take()
        match token.kind:
            case "number":
                return tree.Number(token.at, float(token.text))
            case "word":
                if token.text not in PARTS:
                    allowed = ", ".join(map(repr, PARTS))
                    _fail(token.at, f"no part {visible(token.text)[:40]!r}; there are {allowed}")
                return tree.Word(token.at, token.text)
            case "quoted":
                return self._name(token)
            case "end":
                _fail(token.at, "a name, a number or a condition is missing at the end")
            case "sign":
                return self._signed(token)
        if token.text == "not":
            return tree.Not(token.at, _wanted(self._expression(_NOT), "condition"))
        if token.text in _WORDS:
            _fail(token.at, f"{token.text!r} stands where a name or a number is expected")
        return self._call(token) if self._is("(") else self._name(token)

    def _signed(self, token: _Token) -> Node:
        if token.text == "(":
            found = self._expression()
            self._expect(")", f"for the parenthesis at {token.at}")
            return found
        if token.text == "-":
            return tree.Negative(token.at, _wanted(self._expression(_SIGN), "number"))
        _fail(token.at, f"{token.text!r} stands where a name or a number is expected")

    def _name(self, token: _Token) -> Node:
        name = token.text
        if name in self._names:
            return tree.Column(token.at, name)
        if name == "marked":
            return tree.Marked(token.at)
        if name in KEYS:
            return tree.Key(token.at, name)
        if name in FUNCTIONS:
            _fail(token.at, f"{name} is a function; write {FUNCTIONS[name].signature}")
        hint = nearest(name, {*KEYS, *self._names})
        _fail(token.at, f"no column {visible(name)[:60]!r}{hint}")

    def _call(self, token: _Token) -> Node:
        function = FUNCTIONS.get(token.text)
        if function is None and token.text != "isnan":
            hint = nearest(token.text, [*FUNCTIONS, "isnan"])
            _fail(token.at, f"no function {visible(token.text)[:60]!r}"
                  + (hint or f"; there are {', '.join(FUNCTIONS)} and isnan"))  # fmt: skip
        self._take()
        arguments: list[Node] = []
        while not arguments or self._is(","):
            if arguments:
                self._take()
            arguments.append(_wanted(self._expression(), "number"))
        self._expect(")", f"after the arguments of {token.text}")
        if function is None:
            if len(arguments) != 1:
                _fail(token.at, "isnan(x) takes one argument")
            return tree.Missing(token.at, arguments[0])
        count = len(arguments)
        if count < function.least or (function.most is not None and count > function.most):
            _fail(token.at, f"write {function.signature}: {count} arguments are given")
        if function.constant and not tree.is_constant(arguments[-1]):
            _fail(arguments[-1].at, f"{function.signature}: the last argument is one number")
        return tree.Call(token.at, token.text, tuple(arguments))


def _wanted(node: Node, kind: Kind) -> Node:
    if node.kind != kind:
        advice = "compare it, as in ppm > 0" if kind == "condition" else "a number is expected"
        _fail(node.at, f"this is a {node.kind}, not a {kind}; {advice}")
    return node


def _alike(one: Node, other: Node) -> None:
    for node in (one, other):
        if node.kind == "condition":
            _wanted(node, "number")
    if one.kind != other.kind:
        _fail(other.at, f"a {one.kind} cannot be compared with a {other.kind}")


def _shown(token: _Token) -> str:
    return repr(visible(token.text)[:40])
