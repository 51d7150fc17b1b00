"""The browser's tables for scripts and pipes: `glulens top` and `glulens show` as values and
lines."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.cells import cell_len

from ..errors import UsageError, visible
from .columns import Columns
from .facts import Facts
from .filters import parse
from .numbers import format_of
from .state import State, order

GAP = "  "
ABSENT = "-"


@dataclass(frozen=True, eq=False)
class Ranking:
    """The first neurons of a ranking.

    Attributes:
        by, descending, where: the column ranked by, its direction, the filter.
        total, passed: neurons of the run, and those that pass the filter.
        labels: what the neurons are called, in their order.
        values: columns by name, each [neurons]; `layer` and `neuron` are among them.
        shown: names of the columns to show.
    """

    by: str
    descending: bool
    where: str
    total: int
    passed: int
    labels: tuple[str, ...]
    values: dict[str, np.ndarray]
    shown: tuple[str, ...]

    def records(self) -> list[dict[str, Any]]:
        """One a neuron: its rank (from 1), label, layer, index, and values; None is missing."""
        names = ("layer", "neuron", *self.shown)
        return [
            {
                "rank": place + 1,
                "label": label,
                **{name: _finite(self.values[name][place].item()) for name in names},
            }
            for place, label in enumerate(self.labels)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema_version": 1,
            "by": self.by,
            "descending": self.descending,
            "where": self.where,
            "total": self.total,
            "passed": self.passed,
            "columns": list(self.shown),
            "neurons": self.records(),
        }

    def cells(self, width: int | None = None) -> list[list[str]]:
        """The header and the rows as text; numbers of a column have the same decimals.

        Args:
            width: cells of a line; columns that do not fit are left out from the right, but not the
                one ranked by.
        """
        found = [
            ["rank", *(str(place + 1) for place in range(len(self.labels)))],
            ["neuron", *self.labels],
        ]
        used = sum(map(_widest, found)) + len(GAP)
        for name in self.shown:
            values = self.values[name]
            written = format_of(values)
            column = [visible(name), *(written(value) for value in values.tolist())]
            used += len(GAP) + _widest(column)
            if width is not None and used > width and len(found) > 2:
                break
            found.append(column)
        return [list(row) for row in zip(*found, strict=True)]

    def csv(self) -> str:
        """Comma-separated, with a header; every digit that the column holds."""
        text = io.StringIO()
        names = tuple(dict.fromkeys(("layer", "neuron", *self.shown)))
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["rank", "label", *names])
        for place, label in enumerate(self.labels):
            values = (self.values[name][place] for name in names)
            writer.writerow([place + 1, label, *map(_digits, values)])
        return text.getvalue()

    def sentence(self) -> str:
        """What is shown, in words."""
        end = "highest" if self.descending else "lowest"
        which = f" where {visible(self.where)}" if self.where.strip() else ""
        return f"{len(self.labels):,} of {self.passed:,} neurons{which}, {end} {self.by} first"


def top(
    columns: Columns,
    *,
    by: str = "",
    descending: bool = False,
    where: str = "",
    limit: int = 20,
    shown: Sequence[str] = (),
) -> Ranking:
    """The first neurons of a ranking.

    Args:
        by: the column; empty: the run's first.
        where: a filter (see `filters`); nothing is marked.
        limit: how many at most.
        shown: columns; empty: the one ranked by, scores, attributions and d_z.

    Raises:
        UsageError: a column that is not there, a filter that is none, a limit below 1.
        RunError: a column cannot be read.
    """
    if limit < 1:
        raise UsageError(f"-n {limit}: at least 1 is needed")
    by = by or columns.names[0]
    for name in (by, *shown):
        columns.check(name)
    keep = parse(where, columns.names).mask(columns) if where.strip() else None
    passed = columns.n if keep is None else int(np.count_nonzero(keep))
    rows = order(columns, State(by=by, descending=descending), keep)[:limit]
    names = tuple(dict.fromkeys(shown)) or columns.shown(by)
    return Ranking(
        by=by,
        descending=descending,
        where=where,
        total=columns.n,
        passed=passed,
        labels=tuple(columns.label(int(row)) for row in rows),
        values={name: columns[name][rows] for name in ("layer", "neuron", *names)},
        shown=names,
    )


def aligned(rows: Sequence[Sequence[str]], *, left: int = 0) -> Iterator[str]:
    """Rows of cells as lines; all but the first `left` columns stand at the right."""
    widths = [_widest(column) for column in zip(*rows, strict=True)]
    for row in rows:
        line = []
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            room = " " * (width - cell_len(cell))
            line.append(cell + room if place < left else room + cell)
        yield GAP.join(line).rstrip()


def sheet(found: Facts, *, examples: int = 3) -> Iterator[str]:
    """What is known of a neuron, as lines of text.

    Args:
        examples: how many to show of each side.
    """
    yield f"{found.label}, one of {found.neurons_in_layer:,} neurons of layer {found.layer}"
    rows = [(s.name, _number(s.value), _percent(s.in_layer), _percent(s.in_model))
            for s in found.scores]  # fmt: skip
    yield from _table("scores", ("", "value", "% of layer below", "% of model below"), rows)
    rows = [(a.property, _number(a.value, "+"), _percent(a.in_layer), _percent(a.in_model))
            for a in found.attributions]  # fmt: skip
    yield from _table(
        "attribution (nats), by magnitude",
        ("", "value", "% of layer below", "% of model below"),
        rows,
    )
    rows = [
        (
            c.property,
            _number(c.diff, "+"),
            ABSENT if c.low is None else f"[{_number(c.low, '+')}, {_number(c.high, '+')}]",
            _number(c.dz, "+"),
            _percent(c.dz_in_layer),
            _number(c.t, "+"),
            _number(c.auroc),
        )
        for c in found.contrasts
    ]
    yield from _table(
        "contrasts (the interval is of this neuron alone)",
        ("", "difference", "95 %", "d_z", "% of layer below in |d_z|", "t", "AUROC"),
        rows,
    )
    parts = ("mean", "sd", "rms", "median", "min", "max", "positive", "tokens")
    rows = [(a.condition, *(_number(getattr(a, part)) for part in parts))
            for a in found.activations]  # fmt: skip
    yield from _table("activation", ("", *parts), rows)
    yield from _words(found, examples)
    if found.missing:
        yield ""
    yield from found.missing.values()


def _words(found: Facts, count: int) -> Iterator[str]:
    """Vocabulary and examples."""
    for name, some in (found.vocabulary or {}).items():
        tokens = ", ".join(repr(one.text) for one in some[:8])
        yield from ("", f"{name.replace('_', ' ')}: {tokens}")
    titles = {"high": "most positive", "low": "most negative", "spread": "across its range"}
    for side, some in (found.examples or {}).items():
        if some:
            yield from ("", titles.get(side, side))
        for one in some[:: max(1, len(some) // count) if side == "spread" else 1][:count]:
            before = visible("".join(one.tokens[: one.position]))[-40:]
            after = visible("".join(one.tokens[one.position + 1 :]))[:40]
            yield f"{one.value:+10.4g}  {before}[{visible(one.tokens[one.position])[:80]}]{after}"


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A titled table, if there are rows, without columns that no row has a value in."""
    if rows := list(rows):
        full = [k for k in range(len(header)) if any(row[k] != ABSENT for row in rows)]
        yield from ("", title)
        yield from aligned([[visible(row[k]) for k in full] for row in (header, *rows)], left=1)


def _number(value: float | None, sign: str = "") -> str:
    if value is None or value != value:
        return ABSENT
    return f"{value:{sign},}" if isinstance(value, int) else f"{value:{sign}.4g}"


def _percent(value: float) -> str:
    return ABSENT if value != value else f"{value:.1f}"


def _digits(value: np.generic) -> str:
    """A number as short as reads back as the same; nothing for NaN."""
    return "" if value != value else str(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _widest(column: Sequence[str]) -> int:
    return max(map(cell_len, column))
