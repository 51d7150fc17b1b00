"""Where records come from: the built-in sample, a local folder of official files, or the hub.

A bad row is an error with file and line; no reader drops one.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import DataError
from .records import BadRecord

Record = TypeVar("Record")
BUILTIN = "builtin"
HUB = "hub"


@dataclass(frozen=True)
class DataSet(Generic[Record]):
    """Records with where they came from and a hash of the bytes they were read from."""

    name: str
    origin: str
    sha256: str
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class HubFile:
    """One file of a data set on the hub, at a pinned revision."""

    repo: str
    revision: str
    path: str


Row = tuple[int, Mapping[str, Any]]
"""A line number (1-based) and what stands there."""


def read_csv(
    path: Path, *, columns: Sequence[str] | None = None, header: bool = True
) -> Iterator[Row]:
    """Rows of a CSV file as mappings.

    Args:
        columns: with a header, the columns that must be there; without, the names of all columns.
        header: whether the first line names the columns.

    Raises:
        DataError: unreadable file, missing column, or a row of another length, with its line.
    """
    start = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                names = next(reader) if header else list(columns or ())
            except StopIteration:
                raise DataError(f"{path} is empty") from None
            missing = [name for name in columns or () if name not in names]
            if missing:
                raise DataError(
                    f"{path}:1: column {missing[0]!r} is missing; the file has {', '.join(names)}"
                )
            start = reader.line_num + 1
            for row in reader:
                if len(row) != len(names):
                    raise DataError(f"{path}:{start}: {len(row)} columns instead of {len(names)}")
                yield start, dict(zip(names, row, strict=True))
                start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: not a valid CSV row ({error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a JSON-lines file; blank lines are allowed.

    Raises:
        DataError: unreadable file, or a line that is not a JSON object, with its number.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}:{number}: not valid JSON ({error})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: a {type(row).__name__} instead of an object")
                yield number, row
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error


def build(
    name: str,
    origin: str,
    rows: Mapping[Path, Iterator[Row]],
    make: Callable[[int, Mapping[str, Any], Path], Record],
) -> DataSet[Record]:
    """Records out of rows; what a record finds wrong is reported with file and line.

    Raises:
        DataError: a bad row, a repeated id, or no row at all.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}
    digest = hashlib.sha256()
    for path, lines in rows.items():
        for number, row in lines:
            place = f"{path}:{number}"
            try:
                record = make(number, row, path)
            except KeyError as error:
                raise DataError(f"{place}: {error.args[0]!r} is missing") from error
            except (BadRecord, TypeError, AttributeError) as error:
                raise DataError(f"{place}: {error}") from error
            identity = str(getattr(record, "id", place))
            if identity in seen:
                raise DataError(f"{place}: id {identity!r} stands already at {seen[identity]}")
            seen[identity] = place
            records.append(record)
        digest.update(path.read_bytes())
    if not records:
        raise DataError(f"{name}: no rows in {', '.join(map(str, rows))}; give a file with data")
    return DataSet(name, origin, digest.hexdigest(), tuple(records))


def find_local(folder: Path, candidates: Sequence[str], what: str) -> Path:
    """The first of the candidate files that exists under the folder that the user named.

    Raises:
        DataError: the folder or every candidate is missing.
    """
    if not folder.is_dir():
        raise DataError(f"no such data folder: {folder}; give a folder, {BUILTIN!r} or {HUB!r}")
    for candidate in candidates:
        if (folder / candidate).is_file():
            return folder / candidate
    raise DataError(f"{folder} has no {what}: looked for {', '.join(candidates)}")


def fetch(file: HubFile) -> Path:
    """Download one data file from the hub (or take it from its cache).

    Raises:
        DataError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(file.repo, file.path, revision=file.revision, repo_type="dataset")
        )
    except Exception as error:  # the hub's client raises a dozen kinds, HTTP's among them
        raise DataError(
            f"{file.repo} cannot be fetched from the hub ({type(error).__name__}); check the "
            f"network, or give a local folder with --data, or --data {BUILTIN}"
        ) from error


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a parquet file; the number counts rows from 1."""
    import polars

    try:
        with path.open("rb") as file:  # of a name with stars polars would read many
            frame = polars.read_parquet(file)
    except (OSError, polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
        raise DataError(f"{path} cannot be read as parquet ({error})") from error
    yield from enumerate(frame.iter_rows(named=True), 1)


def sample_file(name: str) -> Path:
    """A file of the built-in sample, which ships with the package."""
    return Path(__file__).parent / "sample" / name
