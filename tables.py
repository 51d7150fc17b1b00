"""What a run keeps beside its table of neurons, one row a neuron, in the order of that table.

    examples/SIDE.npy    `ENTRY` [neurons, k]: tokens that drive the neuron, with texts.parquet
    histograms/NAME.npy  uint32 [neurons, 64]: activations by bin, of the conditions that the
                         manifest's `histograms` names; `ACTIVATION_EDGES` between the bins
    weights/MATRIX.npy   uint16 [neurons, 24]: weights by bin, of gate (not in plain MLPs), up and
                         down; weights/bins.npy says how wide the bins are
    vocabulary/LIST.npy  `LISTED` [neurons, k]: tokens that the neuron writes and reads, with
                         vocabulary/tokens.parquet
    samples.npy          float32 [tokens, neurons]: activations of random tokens

Readers take a run directory and a neuron's row, and read that row alone (the texts whole, once).
Nothing is mapped into memory: a file that shrinks under a map would end the process. Neither torch
nor numba is needed. What is missing or damaged is a `RunError` of one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .errors import RunError, visible
from .rundir import open_run

if TYPE_CHECKING:
    import polars

EXAMPLES, TEXTS = "examples", "texts.parquet"
SIDES = ("high", "low", "spread")
"""The most positive, the most negative, and a random one from each stretch of the range."""
ENTRY = np.dtype([("value", "<f4"), ("text", "<i4"), ("position", "<i4")])
"""An example: the activation, the number of the text, the token's position in it (-1: none)."""

HISTOGRAMS = "histograms"
_UPPER = np.array([(1 + 0.5 * (k % 2)) * 2.0 ** (k // 2 - 10) for k in range(1, 32)])
ACTIVATION_EDGES = np.concatenate([-_UPPER[::-1], [0.0], _UPPER])
"""The 63 inner edges of the bins, half-octaves of magnitude from 2^-10 to 2^6, ascending; a value
on one belongs to the bin farther from 0."""

WEIGHTS = "weights"
MATRICES = ("gate", "up", "down")
WEIGHT_BINS = 24
WEIGHT_STEPS = np.arange(1, WEIGHT_BINS) - WEIGHT_BINS // 2
"""The 23 inner edges of the bins, in widths of a bin: -11 to 11; the outermost bins are open."""
BIN_WIDTH = 0.4
"""Width of a bin, in root mean squares of the MLP's matrix."""
SCALE = np.dtype([("first", "<i8"), *((matrix, "<f8") for matrix in MATRICES)])
"""Of an MLP: its first row in the table, and the width of a bin in each of its matrices."""

VOCABULARY, TOKENS = "vocabulary", "tokens.parquet"
LISTS = ("out_high", "out_low", "in_gate", "in_up")
"""Tokens that the neuron makes more and less likely, and whose embeddings its rows point to."""
LISTED = np.dtype([("token", "<i4"), ("value", "<f2")])
"""A token of the vocabulary (-1: none), and its logit or cosine (see `probes.vocabulary`)."""

SAMPLES = "samples.npy"

_PROBE = "make them with `glulens probe MODEL --on truthfulqa`"
_SCORE = "make them with `glulens score MODEL`"


@dataclass(frozen=True)
class Example:
    """A token in its context.

    Attributes:
        value: the neuron's activation there.
        text: number of the text in the run.
        tokens: all tokens of the text, as strings.
        position: which of them.
        about: what else is known of the text: at least its set, condition and item.
    """

    value: float
    text: int
    tokens: tuple[str, ...]
    position: int
    about: dict[str, str]


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts [bins] and the inner edges between them [bins - 1], ascending; the outermost bins are
    open."""

    edges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Listed:
    """A token of the vocabulary, its text, and its logit or cosine."""

    token: int
    text: str
    value: float


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an .npy; what the system says of a full disk comes through, which numpy's own writing
    swallows.

    Raises:
        OSError: it cannot be written.
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        about = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, about)
        file.write(array.reshape(-1).view(np.uint8).data)


def save_tables(folder: Path, tables: Mapping[str, np.ndarray]) -> None:
    """Write each array as `folder/NAME.npy`; the folder is made."""
    folder.mkdir()
    for name, table in tables.items():
        save_array(folder / f"{name}.npy", table)


def examples_of(run: Path, row: int) -> dict[str, list[Example]]:
    """The examples of one neuron, by side; the strongest of `high` and `low` and the highest of
    `spread` first.

    Raises:
        RunError: the run has no examples, or they are damaged.
    """
    with _reading(run, "examples", _PROBE):
        texts = _texts(*_stamp(run / TEXTS))
        return {
            side: [
                _example(entry, texts)
                for entry in _row(run / EXAMPLES / f"{side}.npy", row, ENTRY)
                if entry["text"] >= 0
            ]
            for side in SIDES
        }


def activation_histograms(run: Path, row: int) -> dict[str, Histogram]:
    """Activations of one neuron by condition.

    Raises:
        RunError: the run has no such histograms, or they are damaged.
    """
    files = open_run(run).manifest.get("histograms")
    with _reading(run, "activation histograms", _PROBE):
        if not files:
            raise FileNotFoundError
        return {
            str(name): Histogram(
                ACTIVATION_EDGES,
                _row(_inside(run, HISTOGRAMS, file), row, np.dtype("<u4"), 64),
            )
            for name, file in files.items()
        }


def weight_histograms(run: Path, row: int) -> dict[str, Histogram]:
    """Weights of one neuron by matrix: `gate` where there is one, `up` and `down`.

    All neurons of an MLP share the edges of a matrix. A count that reaches 65,535 stays there.

    Raises:
        RunError: the run has no such histograms, or they are damaged.
    """
    with _reading(run, "weight histograms", _SCORE):
        scale = _whole(run / WEIGHTS / "bins.npy", SCALE)
        found = {}
        for matrix in MATRICES:
            file = run / WEIGHTS / f"{matrix}.npy"
            if matrix == "gate" and not file.exists():
                continue
            counts = _row(file, row, np.dtype("<u2"), WEIGHT_BINS)
            mlp = scale[np.searchsorted(scale["first"], row, side="right") - 1]
            found[matrix] = Histogram(WEIGHT_STEPS * float(mlp[matrix]), counts)
        return found


def vocabulary(run: Path, row: int) -> dict[str, list[Listed]]:
    """The tokens that one neuron writes and reads, by list of `LISTS`; the most extreme first.

    `in_gate` is missing where the MLP has no gate, and any list that the model did not allow.

    Raises:
        RunError: the run has no vocabulary, or it is damaged.
    """
    folder = run / VOCABULARY
    with _reading(run, "vocabulary", _PROBE):
        texts = _tokens(*_stamp(folder / TOKENS))
        found = {}
        for name in LISTS:
            if (folder / f"{name}.npy").exists():
                entries = _row(folder / f"{name}.npy", row, LISTED)
                ids = [int(token) for token in entries["token"] if token >= 0]
                if missing := [token for token in ids if token not in texts]:
                    raise ValueError(f"{TOKENS} does not know token {missing[0]}")
                values = entries["value"].tolist()
                found[name] = [
                    Listed(token, texts[token], value)
                    for token, value in zip(ids, values, strict=False)
                ]
        if not found:
            raise FileNotFoundError
        return found


def sample_means(run: Path, rows: Sequence[int]) -> np.ndarray:
    """Mean activation of some neurons over the run's random tokens, float64 [rows].

    A reference for silencing by the mean; 0 for a neuron that saw none of these tokens.

    Raises:
        RunError: the run has no samples, or they are damaged.
    """
    chosen = np.asarray(rows, np.int64)
    with _reading(run, "samples of activations", _PROBE), (run / SAMPLES).open("rb") as file:
        tokens, neurons = _header(file, np.dtype("<f4"))
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < neurons:
            raise ValueError(f"{SAMPLES} is of {neurons} neurons")
        total, seen = np.zeros(len(chosen)), np.zeros(len(chosen))
        for _ in range(tokens):
            values = np.frombuffer(_exactly(file, 4 * neurons), "<f4")[chosen].astype(np.float64)
            there = np.isfinite(values)
            total += np.where(there, values, 0)
            seen += there
        return total / np.maximum(seen, 1)


@contextmanager
def _reading(run: Path, what: str, remedy: str) -> Iterator[None]:
    """Says in one line what is missing or damaged."""
    name = visible(str(run))
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunError(f"{name} holds no {what}; {remedy}") from error
    except Exception as error:  # a damaged file can raise anything from the readers below
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"the {what} of {name} cannot be read ({visible(line)[:160]}); {remedy}"
        ) from error


def _header(file: BinaryIO, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The shape of a two-dimensional .npy of this dtype; the file then stands at its data."""
    name = os.path.basename(file.name)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(np.lib.format.read_magic(file))
    if read is None:
        raise ValueError(f"{name} is of an unknown version")
    shape, by_column, found = read(file)
    if found != dtype or by_column or len(shape) != 2:
        raise ValueError(f"{name} holds {found} {shape}, not {dtype} by rows")
    rows, columns = shape
    left = os.fstat(file.fileno()).st_size - file.tell()
    if min(rows, columns) < 0 or rows * columns * dtype.itemsize != left:
        raise ValueError(f"{name} has {left} bytes of data, not those of {shape}")
    return rows, columns


def _row(path: Path, row: int, dtype: np.dtype[Any], width: int | None = None) -> np.ndarray:
    with path.open("rb") as file:
        rows, found = _header(file, dtype)
        if not 0 <= row < rows:
            raise ValueError(f"{path.name} has {rows} rows, none of number {row}")
        if width not in (None, found):
            raise ValueError(f"{path.name} has {found} columns, not {width}")
        file.seek(row * found * dtype.itemsize, os.SEEK_CUR)
        return np.frombuffer(_exactly(file, found * dtype.itemsize), dtype)


def _whole(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    """A small one-column .npy, at least one row long."""
    with path.open("rb") as file:
        rows, columns = _header(file, dtype)
        if rows < 1 or columns != 1:
            raise ValueError(f"{path.name} has the shape ({rows}, {columns})")
        return np.frombuffer(_exactly(file, rows * dtype.itemsize), dtype)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{os.path.basename(file.name)} is cut short")
    return data


def _inside(run: Path, folder: str, file: Any) -> Path:
    """A file that the manifest names; a manifest is data, and names nothing outside its run."""
    start, _, name = file.partition("/") if isinstance(file, str) else ("", "", "")
    if start != folder or not name or name in (".", "..") or "/" in name or "\\" in name:
        raise ValueError(f"the manifest names {file!r}, which is no file in {folder}/")
    return run / folder / name


def _stamp(path: Path) -> tuple[Path, int, int]:
    """A file with what tells it from its successors."""
    about = path.stat()
    return path, about.st_mtime_ns, about.st_size


@lru_cache(maxsize=2)
def _texts(path: Path, changed: int, size: int) -> polars.DataFrame:
    return _frame(path, ("set", "condition", "item", "tokens"))


@lru_cache(maxsize=2)
def _tokens(path: Path, changed: int, size: int) -> dict[int, str]:
    frame = _frame(path, ("text",))
    return dict(zip(frame["id"].to_list(), frame["text"].to_list(), strict=True))


def _frame(path: Path, names: Sequence[str]) -> polars.DataFrame:
    import polars

    try:
        with path.open("rb") as file:  # of a folder, or a name with stars, polars would read many
            frame = polars.read_parquet(file)
    except polars.exceptions.PanicException as error:  # no Exception, as Python counts
        raise ValueError(f"{path.name} is damaged") from error
    for name in names:
        if frame.schema.get(name) != polars.String or frame[name].null_count():
            raise ValueError(f"{path.name} has no column {name!r} of strings")
    return frame


def _example(entry: np.void, texts: polars.DataFrame) -> Example:
    text, position = int(entry["text"]), int(entry["position"])
    row = texts.row(text, named=True)
    tokens = json.loads(row.pop("tokens"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{TEXTS}: the tokens of text {text} are no list of strings")
    if not 0 <= position < len(tokens):
        raise ValueError("a position lies outside its text")
    about = {key: str(value) for key, value in row.items()}
    return Example(float(entry["value"]), text, tuple(tokens), position, about)
