"""Hostile variants of valid texts, bytes, JSON and expressions; of one seed always the same."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS = ("0", "-1", "1e999", "nan", "-inf", "1" * 5000, "9" * 400, str(2**60), "1e-400", "٣",
           "0x10", "1_000", "007", ".5", "1.", "1e9")  # fmt: skip
ODD = (
    *("", "\0", "\x1b[2J", "\ud800", "\u202e", "🦆" * 9, "`", "'", '"', "\\", "\n", "\r", "\t"),
    *(",", "(", ")" * 30, "(" * 300, "[" * 300, "{" * 300, "~" * 300, "-" * 300, "not " * 300),
    *("%s%n", "__import__('os').system('true')", "{{7*7}}", "$(true)", "../../etc/passwd", "=1+1"),
    *("é", "ﬁ", "İ", "\u2028", "\x85", "\ufeff", "a" * 3000),
)
VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 2**31, 2**63, 2**60, -(2**64), 10**400, 1.5,
                           1e308, float("nan"), float("inf"), "", "a", "\ud800", "1", [], {}, [[]],
                           [None], {"a": None}, [1, "a", {}], "\x1b]0;x\x07")  # fmt: skip
_WORDS = (0, 1, 2, 8, 9, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1)


def of_bytes(draw: random.Random, data: bytes) -> bytes:
    """Bits, bytes and lengths changed; parts cut, doubled and moved."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(found) + 1)
        end = min(len(found), at + draw.choice((1, 2, 4, 8, 64, 512)))
        match draw.randrange(8):
            case 0:
                if found:
                    found[at % len(found)] ^= 1 << draw.randrange(8)
            case 1:
                found[at:end] = draw.randbytes(end - at)
            case 2:
                del found[at:]
            case 3:
                del found[at:end]
            case 4:
                found[at:at] = found[at:end] * draw.choice((1, 2, 50))
            case 5:
                size = draw.choice("BHIQ")
                word = draw.choice(_WORDS) % 2 ** (8 * struct.calcsize(size))
                found[at : at + struct.calcsize(size)] = struct.pack("<" + size, word)
            case 6:
                found[at:at] = draw.choice(ODD).encode("utf-8", "surrogatepass")
            case _:
                other = draw.randrange(len(found) + 1)
                found[at:end], found[other:other] = b"", bytes(found[at:end])
    return bytes(found)


def of_text(draw: random.Random, text: str, words: Sequence[str] = ()) -> str:
    """Characters and words changed; `words` are what the language has."""
    found = text
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        at = draw.randrange(len(found) + 1)
        end = min(len(found), at + draw.choice((1, 1, 2, 5, 20)))
        match draw.randrange(6):
            case 0:
                found = found[:at] + found[end:]
            case 1:
                found = found[:at] + draw.choice(NUMBERS) + found[end:]
            case 2:
                found = found[:at] + draw.choice(ODD) + found[at:]
            case 3:
                found = found[:at] + found[at:end] * draw.choice((2, 3, 40)) + found[end:]
            case 4 if words:
                found = found[:at] + draw.choice(words) + found[at:]
            case _:
                found = found[:at] + chr(draw.randrange(0x250)) + found[end:]
    return found


def of_json(draw: random.Random, value: Any) -> str:
    """A JSON text: values replaced, dropped and doubled; now and then no JSON any more."""
    found = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 4))):
        found = _spoil(draw, found)
    text = json.dumps(found, ensure_ascii=draw.random() < 0.5)
    return (
        of_text(draw, text, ("[", "]", "{", "}", ",", ":", "null")) if draw.random() < 0.2 else text
    )


def _spoil(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        match draw.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, draw.choice(ODD): value[key]}
            case _:
                return {**value, key: _spoil(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        match draw.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value * 2
            case _:
                return [*value[:at], _spoil(draw, value[at]), *value[at + 1 :]]
    if isinstance(value, str) and draw.random() < 0.4:
        return of_text(draw, value)
    return draw.choice(VALUES)


Grammar = dict[str, tuple[tuple[str, ...], ...]]
"""By symbol, what it may be: sequences of symbols and, where there is no such symbol, of text."""


def of_grammar(draw: random.Random, grammar: Grammar, symbol: str, depth: int = 0) -> str:
    """A text that the grammar makes; the deeper, the more it prefers a symbol's first forms."""
    forms = grammar[symbol]
    form = forms[0] if depth > 12 else draw.choice(forms)
    return "".join(
        of_grammar(draw, grammar, part, depth + 1) if part in grammar else part for part in form
    )
