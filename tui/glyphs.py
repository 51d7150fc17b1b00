"""Text that may hold anything made safe to show, cut to cells, and the glyphs that stand for
amounts.

Tokens are the bytes of the web: they hold escape sequences, markup, marks that pile up on the
letter before, and writing that turns the line round. `safe` leaves none of it in force. What it
returns is still data: give it to `rich.text.Text` or to a Segment, never to anything that reads
markup.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal

import numpy as np
from rich.cells import cell_len, get_character_cell_size

from ..errors import visible

AMOUNTS = " ░▒▓█"
"""Nothing to most, for when there is no colour."""
SIGNED = "≡=-·+*#"
"""Most below zero, about zero, most above it, for when there is no colour."""
EIGHTHS = " ▁▂▃▄▅▆▇█"
"""A column filled from below, by eighths."""
LENGTHS = " ▏▎▍▌▋▊▉█"
"""A cell filled from the left, by eighths."""
CUT = "…"
"""Stands where text was left out."""

_NAMED = {"\n": "⏎", "\t": "⇥"}
_HIDDEN = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and signs by name that leave the cell blank."""
_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Of a glyph's variant: some change its width, and terminals disagree on which."""
_MARKS = 2
"""Combining marks that a letter may carry; Vietnamese and Hebrew need two."""


def safe(text: str, *, borders: bool = False) -> str:
    """One line that does nothing to a terminal and hides nothing.

    A line feed is `⏎`, a tab `⇥`. Everything else that would not be seen (control characters,
    zero-width and bidirectional ones, odd spaces, lone surrogates, unassigned code points) is
    spelled as Python spells it: `\\x1b`. Combining marks stay where they follow a letter, two at
    most. The width of the result is the sum of its characters' widths.

    Args:
        text: anything.
        borders: show spaces at either end as `·`, so that ` the` and `the` differ.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_spelled(text))
    if not borders:
        return text
    inner = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    return "·" * left + inner + "·" * (len(text) - left - len(inner))


def _spelled(text: str) -> Iterator[str]:
    carried = _MARKS  # at the beginning there is no letter to carry a mark
    for c in text:
        if c in _NAMED:
            yield _NAMED[c]
        elif c in _HIDDEN or c in _SELECTORS:
            yield c.encode("unicode_escape").decode()
        elif get_character_cell_size(c) and not unicodedata.combining(c):
            yield visible(c)
            carried = 0 if unicodedata.category(c)[0] in "LM" else _MARKS
            continue
        elif carried < _MARKS and c.isprintable():
            yield c
            carried += 1
            continue
        else:
            yield c.encode("unicode_escape").decode()
        carried = _MARKS


def cells(text: str, width: int) -> str:
    """Safe text cut to at most a width in cells, with `…` for what is left out.

    Looks no further into the text than the width asks for.
    """
    if width <= 0:
        return ""
    used = whole = 0  # `whole`: characters that leave room for the sign of the cut
    for at, c in enumerate(text):
        used += get_character_cell_size(c)
        if used < width:
            whole = at + 1
        elif used > width:
            return text[:whole] + CUT
    return text


def fitted(text: str, width: int, align: Literal["left", "right"] = "left") -> str:
    """Safe text cut or padded to exactly a width in cells."""
    text = cells(text, width)
    space = " " * (width - cell_len(text))
    return space + text if align == "right" else text + space


def drawn(shares: np.ndarray, glyphs: str = AMOUNTS) -> np.ndarray:
    """Shares in [0, 1] as glyphs of a ramp, NaN as `?`; characters, of the same shape."""
    return np.array([*glyphs, "?"])[levels(shares, len(glyphs))]


def levels(shares: np.ndarray, count: int) -> np.ndarray:
    """Shares in [0, 1] as one of `count` equal steps; beyond the ends is at the end, NaN is
    `count`.

    Returns:
        int64, of the same shape.
    """
    shares = np.asarray(shares, np.float64)
    missing = np.isnan(shares)
    steps = np.clip(np.where(missing, 0, shares), 0, 1) * count
    return np.where(missing, count, np.minimum(steps, count - 1)).astype(np.int64)
