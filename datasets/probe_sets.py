"""Probe sets: texts under conditions, to see what neurons do on each of them.

==========  =============  ========================================  ====================
name        conditions     texts                                     pairs (a minus b)
==========  =============  ========================================  ====================
truthfulqa  false, true    every answer to every question            `misconception_pair`
mmlu        wrong, right   every choice of every question, as text   `fact_pair`
ifeval      with, without  the same response after both prompts      `instruction_pair`
FILE.csv    its labels     its rows                                  see `load_probe_set`
==========  =============  ========================================  ====================
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError, UsageError, nearest
from .ifeval import load_instructions
from .mmlu import load_facts
from .pairs import Pair, Text, draw, fact_pair, instruction_pair, misconception_pair
from .records import BadRecord, Fact, Misconception
from .sources import BUILTIN, DataSet, Row, build, read_csv
from .truthfulqa import load_misconceptions

MAX_LABELS, MAX_LABEL_LENGTH = 64, 64
"""A CSV file's labels are conditions; more or longer ones than this are values or texts."""

FALSE, TRUE = "false", "true"
WRONG, RIGHT = "wrong", "right"
WITH, WITHOUT = "with", "without"

T = TypeVar("T")


@dataclass(frozen=True)
class ProbeText:
    """A text under a condition.

    `item` is the question it belongs to: the unit of resampling and of grouped folds.
    """

    text: Text
    item: str
    condition: str


@dataclass(frozen=True)
class ProbeSet:
    """Texts under conditions, and the contrasts between texts of one item.

    Attributes:
        pairs: places in `texts` of a pair's members a and b; the contrast is a minus b. At most one
            pair an item.
        contrast: the conditions of all members a and of all members b; None without pairs.
        provenance: name, origin, sha256 and number of records of what was read (all of it, whatever
            was then drawn).
        notes: what a reader of results has to know, such as what could not be used.
    """

    name: str
    texts: tuple[ProbeText, ...]
    pairs: tuple[tuple[int, int], ...]
    contrast: tuple[str, str] | None
    provenance: dict[str, object]
    notes: tuple[str, ...] = ()

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions' names, in order of first appearance."""
        return tuple(dict.fromkeys(text.condition for text in self.texts))


def load_probe_sets(
    names: str, data: str | Path = BUILTIN, *, limit: int | None = None, seed: int = 0
) -> tuple[ProbeSet, ...]:
    """Probe sets by their names, separated by commas (so a CSV file's path may not hold one).

    Raises:
        UsageError: an empty, unknown or repeated name, or a limit below 1.
        DataError: missing, malformed or empty data.
    """
    given = [name.strip() for name in names.split(",")]
    seen: dict[str, str] = {}
    for name in given:  # all names are looked at before anything is read
        known = _name(name)
        if known in seen:
            raise UsageError(
                f"two probe sets are called {known!r} ({seen[known]!r} and {name!r}); "
                "leave one out or rename its file"
            )
        seen[known] = name
    return tuple(load_probe_set(name, data, limit=limit, seed=seed) for name in given)


def load_probe_set(
    name_or_csv: str | Path,
    data: str | Path = BUILTIN,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> ProbeSet:
    """One probe set: `truthfulqa`, `mmlu`, `ifeval` or a CSV file.

    A CSV file is UTF-8 with a header. Its columns, in any order and case, are

    - `text` or `statement`: the text, as it is (an empty one stays, for the encoder to refuse);
    - `label`: the condition. If all labels are 0, 1, true or false, they become false and true;
    - `item`, optional: what belongs together; without it every row is its own item;
    - `prompt`, optional: what the text continues, joined with it as is; its tokens do not count.

    With exactly two labels, each item that has both gives a pair of the first text of either:
    false minus true, or else the label that comes first in the file minus the other.

    Args:
        data: where the named sets are read from: `builtin`, `hub` or a local folder.
        limit: draw at most so many items (questions); of the named sets, of those that give a pair.
        seed: of that draw.

    Raises:
        UsageError: an unknown name, or a limit below 1.
        DataError: missing, malformed or empty data, with file and line.
    """
    name = _name(str(name_or_csv))
    draw((), limit, seed)  # a bad limit is told before anything is read
    if name in _NAMED:
        return _NAMED[name](data, limit, seed)
    return _from_csv(Path(name_or_csv), limit, seed)


def _name(given: str) -> str:
    """What the set is called that a user asks for."""
    allowed = f"give {', '.join(_NAMED)} or a CSV file (NAME.csv)"
    if not given:
        raise UsageError(f"an empty name of a probe set; {allowed}")
    if given in _NAMED:
        return given
    if Path(given).suffix.lower() != ".csv":
        hint = nearest(given.lower(), _NAMED)
        raise UsageError(f"unknown probe set {given!r}{hint}; {allowed}")
    return Path(given).stem


def _assemble(
    name: str,
    data: DataSet[Any],
    items: Sequence[tuple[Pair, Mapping[str, Sequence[Text]]]],
    contrast: tuple[str, str],
    notes: Sequence[str],
) -> ProbeSet:
    """A set of items that each have a pair and, by condition, texts (the pair's among them)."""
    texts: list[ProbeText] = []
    pairs: list[tuple[int, int]] = []
    for pair, by_condition in items:
        places: dict[tuple[str, Text], int] = {}
        for condition, said in by_condition.items():
            for text in dict.fromkeys(said):
                places[condition, text] = len(texts)
                texts.append(ProbeText(text, pair.item, condition))
        pairs.append((places[contrast[0], pair.a], places[contrast[1], pair.b]))
    if not texts:
        raise DataError(f"{name}: no usable item in {data.origin}; give other data")
    return ProbeSet(name, tuple(texts), tuple(pairs), contrast, _provenance(data), tuple(notes))


def _provenance(data: DataSet[Any]) -> dict[str, object]:
    told: dict[str, object] = {"name": data.name, "origin": data.origin, "sha256": data.sha256}
    return told | {"records": len(data)}


def _with_pair(
    data: DataSet[T], make: Callable[[T], Pair | None], why: str
) -> tuple[list[tuple[T, Pair]], list[str]]:
    """The records that give a pair, and a note on how many do not."""
    found = [(record, pair) for record in data.records if (pair := make(record)) is not None]
    lost = len(data) - len(found)
    return found, [f"{data.name}: {lost} of {len(data)} {why}"] if lost else []


def _questions(question: str, answers: Sequence[str]) -> list[Text]:
    return [Text(question, answer, "question") for answer in answers]


def _truthfulqa(source: str | Path, limit: int | None, seed: int) -> ProbeSet:
    data = load_misconceptions(source)
    chosen = draw(data.records, limit, seed)

    def texts(record: Misconception) -> dict[str, list[Text]]:
        return {
            FALSE: _questions(record.question, record.false),
            TRUE: _questions(record.question, record.true),
        }

    both = sum(bool(set(record.true) & set(record.false)) for record in chosen)
    notes = [f"{data.name}: {both} of {len(chosen)} questions have an answer that is given both as "
             "true and as false"] if both else []  # fmt: skip
    items = [(misconception_pair(record), texts(record)) for record in chosen]
    return _assemble("truthfulqa", data, items, (FALSE, TRUE), notes)


def _mmlu(source: str | Path, limit: int | None, seed: int) -> ProbeSet:
    data = load_facts(source)
    usable, notes = _with_pair(
        data, fact_pair, "questions have no wrong choice of another wording and are left out"
    )
    chosen = draw(usable, limit, seed)

    def texts(record: Fact) -> dict[str, list[Text]]:
        right = record.choices[record.answer]
        wrong = [choice for choice in record.choices if choice != right]
        return {
            WRONG: _questions(record.question, wrong),
            RIGHT: _questions(record.question, [right]),
        }

    repeated = sum(len(set(record.choices)) < len(record.choices) for record, _ in chosen)
    if repeated:
        notes.append(f"{data.name}: {repeated} of {len(chosen)} questions have choices that read "
                     "the same; each wording is taken once, the right one as right")  # fmt: skip
    items = [(pair, texts(record)) for record, pair in chosen]
    return _assemble("mmlu", data, items, (WRONG, RIGHT), notes)


def _ifeval(source: str | Path, limit: int | None, seed: int) -> ProbeSet:
    data = load_instructions(source)
    usable, notes = _with_pair(
        data, instruction_pair,
        "prompts give no pair (their instruction cannot be taken out, or no short response "
        "shows it) and are left out",
    )  # fmt: skip
    items = [(pair, {WITH: [pair.a], WITHOUT: [pair.b]}) for _, pair in draw(usable, limit, seed)]
    return _assemble("ifeval", data, items, (WITH, WITHOUT), notes)


_NAMED: dict[str, Callable[[str | Path, int | None, int], ProbeSet]] = {
    "truthfulqa": _truthfulqa,
    "mmlu": _mmlu,
    "ifeval": _ifeval,
}
"""The sets that have a name; the keys are what a user may say."""

_HOLDS = {name: name for name in ("text", "label", "item", "prompt")} | {"statement": "text"}
"""What the columns of a CSV file hold, by their names in lower case."""


def _columns(path: Path) -> tuple[dict[str, str], list[str]]:
    """From what a CSV file's columns hold to their names, and the names of all others."""
    # Read by itself: in a mapping, of two columns of one name only the last would be left.
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next(csv.reader(file, strict=True))
    found: dict[str, str] = {}
    others: list[str] = []
    for name in header:
        holds = _HOLDS.get(name.strip().lower())
        if holds is None:
            others.append(name)
        elif holds in found:
            raise DataError(
                f"{path}:1: columns {found[holds]!r} and {name!r} both name the {holds}; rename one"
            )
        else:
            found[holds] = name
    for needed, called in (("text", "'text' or 'statement'"), ("label", "'label'")):
        if needed not in found:
            raise DataError(f"{path}:1: no column {called}; the file has {_some(header)}")
    return found, others


def _some(names: Sequence[str]) -> str:
    """Names for a message: what was taken for a header may be anything."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name[:40]) for name in names[:8]) + more


def _from_csv(path: Path, limit: int | None, seed: int) -> ProbeSet:
    if not path.is_file():
        raise DataError(f"no such file: {path}; give a CSV file with the columns text and label")
    others: list[str] = []

    def rows() -> Iterator[Row]:
        columns: dict[str, str] = {}
        for number, row in read_csv(path):
            if not columns:  # the reader has found the header good by now
                columns, unread = _columns(path)
                others.extend(unread)
            yield number, {holds: row[name] for holds, name in columns.items()}

    data = build(path.stem, str(path), {path: rows()}, _row)
    texts = _conditions(data.records, path)
    notes = [f"{path}: columns not read: {_some(others)}"] if others else []
    a, *rest = dict.fromkeys(text.condition for text in texts)
    contrast = (a, rest[0]) if len(rest) == 1 else None
    if contrast == (TRUE, FALSE):
        contrast = (FALSE, TRUE)
    kept = set(draw(tuple(dict.fromkeys(text.item for text in texts)), limit, seed))
    texts = tuple(text for text in texts if text.item in kept)
    pairs = _pairs(texts, contrast) if contrast else ()
    if contrast and len(pairs) < len(kept):
        notes.append(
            f"{path}: {len(kept) - len(pairs)} of {len(kept)} items have one of the labels "
            f"{contrast[0]!r} and {contrast[1]!r} only, and give no pair"
        )
    return ProbeSet(
        path.stem, texts, pairs, contrast if pairs else None, _provenance(data), tuple(notes)
    )


def _row(number: int, row: Mapping[str, str], path: Path) -> ProbeText:
    """A row as it stands, its label still to be read."""
    label = row["label"].strip()
    if not label:
        raise BadRecord("label is empty; give every row its condition")
    if len(label) > MAX_LABEL_LENGTH or not label.isprintable():
        raise BadRecord(
            f"label {label[:MAX_LABEL_LENGTH]!r} is longer than {MAX_LABEL_LENGTH} characters or "
            "not printable; a label is a category"
        )
    item = row.get("item", f"{path.stem}-{number}")
    if not item.strip():
        raise BadRecord("item is empty; give every row its item, or leave the column out")
    if "prompt" in row:
        return ProbeText(Text(row["prompt"], row["text"], "prompt"), item, label)
    return ProbeText(Text("", row["text"], "statement"), item, label)


def _conditions(rows: Sequence[ProbeText], path: Path) -> tuple[ProbeText, ...]:
    """The rows with their labels read as conditions."""
    labels = {row.condition for row in rows}
    truth = {"0": FALSE, "false": FALSE, "1": TRUE, "true": TRUE}
    # All or none: among 0, 1 and 2 a 1 is a number like the others.
    if all(label.lower() in truth for label in labels):
        return tuple(replace(row, condition=truth[row.condition.lower()]) for row in rows)
    if len(labels) > MAX_LABELS:
        raise DataError(
            f"{path}: {len(labels)} different labels, and at most {MAX_LABELS} are allowed; "
            "a label is a category"
        )
    return tuple(rows)


def _pairs(texts: Sequence[ProbeText], contrast: tuple[str, str]) -> tuple[tuple[int, int], ...]:
    """Places of the first text of either condition, of every item that has both."""
    first: dict[str, dict[str, int]] = {}
    for place, text in enumerate(texts):
        first.setdefault(text.item, {}).setdefault(text.condition, place)
    a, b = contrast
    return tuple((places[a], places[b]) for places in first.values() if len(places) == 2)
