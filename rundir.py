"""Run directories: what a command leaves behind, and what the browser and others read.

    manifest.json     what was run on what, with versions, hashes, seeds and warnings
    neurons.parquet   one row a neuron: layer, neuron, scores, functional columns
    figures/NAME.{png,svg,csv}
    report.md

A run is written beside its place and renamed into it: a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import appearing
from .errors import ResourceError, RunError, is_out_of_space, of_system
from .show_html import Part, head, images, page

if TYPE_CHECKING:
    import polars

SCHEMA_VERSION = 1
MANIFEST, NEURONS, REPORT, FIGURES = "manifest.json", "neurons.parquet", "report.md", "figures"
KEYS = ("layer", "neuron")
LONGEST = 200
"""Bytes in a run directory's name: file systems take 255, and scratch folders add to it."""
ROOM = 50_000_000
"""Bytes that must be free where a run is to be written; SmolLM2's takes about a fifth of it."""

SHOWN = 2
"""Figures that a notebook shows of a run."""
_ABOUT = {
    "command": ("command",),
    "model": ("model", "name"),
    "started": ("started",),
    "verdict": ("verdict", "sentence"),
}


@dataclass(frozen=True)
class RunDirectory:
    """A finished run, read from disk."""

    path: Path
    manifest: dict[str, Any]

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r}, command={self.manifest.get('command')!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, the first neurons and figures."""
        told = [f"{key}: {_said(self.manifest, *path)}" for key, path in _ABOUT.items()]
        parts: list[Part] = [", ".join(told)]
        if (self.path / NEURONS).exists():
            try:
                parts.append(head(self.neurons(), "neurons"))
            except RunError as error:
                parts.append(str(error))
        parts += images(self.path / FIGURES, SHOWN)
        return page(f"Run directory {self.path}", *parts)

    def neurons(self, columns: Sequence[str] | None = None) -> polars.DataFrame:
        """The table of neurons, or only some of its columns.

        Raises:
            RunError: missing, damaged, or without its keys.
        """
        import polars

        wanted = None if columns is None else list(columns)
        with self._reading() as path:
            # A path with a star in it is a path, not a pattern.
            frame = polars.read_parquet(path, columns=wanted, glob=False)
        self._check_keys(frame.schema, KEYS if columns is None else ())
        return frame

    def schema(self) -> polars.Schema:
        """Columns of the table of neurons and their types; no value is read.

        Raises:
            RunError: as for `neurons`.
        """
        import polars

        with self._reading() as path, path.open("rb") as file:
            schema = polars.Schema(polars.read_parquet_schema(file))
        self._check_keys(schema, KEYS)
        return schema

    @contextmanager
    def _reading(self) -> Iterator[Path]:
        import polars

        path = self.path / NEURONS
        try:
            yield path
        except (OSError, polars.exceptions.PolarsError, polars.exceptions.PanicException) as error:
            raise RunError(f"{path} cannot be read ({_short(error)}); run the job again") from error

    def _check_keys(self, schema: polars.Schema, keys: Sequence[str]) -> None:
        path = self.path / NEURONS
        for key in keys:
            if key not in schema:
                raise RunError(f"{path} has no column {key!r}; it is not a table of neurons")
        for key in keys:
            if not schema[key].is_integer():
                raise RunError(f"{path}: column {key!r} does not hold integers; run the job again")

    @property
    def report(self) -> str:
        """The report in Markdown."""
        return (self.path / REPORT).read_text(encoding="utf-8")


def _said(manifest: dict[str, Any], *path: str) -> str:
    """What the manifest says under a path of keys; it may be anybody's."""
    found: Any = manifest
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return "-" if found is None else str(found)


def _short(error: BaseException) -> str:
    said = (isinstance(error, OSError) and error.strerror) or str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0][:160]


def open_run(path: str | Path) -> RunDirectory:
    """Open a run directory.

    Raises:
        RunError: there is none, or its manifest is damaged or of a later version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RunError(f"no such run directory: {folder}; `glulens runs` lists those under ./runs")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except FileNotFoundError as error:
        raise RunError(f"{folder} has no {MANIFEST}: it is not a run directory") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{folder / MANIFEST} cannot be read ({_short(error)})") from error
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{folder} has schema version {version!r}, this glulens reads {SCHEMA_VERSION}; "
            "run the job again or use the glulens that wrote it"
        )
    return RunDirectory(folder, manifest)


def absolute(output: str | Path) -> Path:
    """Where a run is to be written, as an absolute path.

    Raises:
        RunError: a path that no file system takes.
    """
    try:
        return Path(os.path.abspath(Path(output).expanduser()))
    except (OSError, RuntimeError, ValueError) as error:  # no home, no working directory
        raise RunError(f"{str(output)[:80]!r} is no place for a run ({_short(error)})") from error


def check_free(path: Path, *, overwrite: bool = False, room: int = ROOM) -> None:
    """Say before any work is done whether a run of `room` bytes can be written at `path`.

    Raises:
        RunError: something is there already, or the place cannot be written.
        ResourceError: the disk has no room.
    """
    try:
        length = len(os.fsencode(path.name))
        if "\0" in str(path):
            raise ValueError("a null byte in the path")
        there = path.exists()
    except (OSError, ValueError) as error:
        raise RunError(f"{str(path)[:80]!r} cannot be written ({_short(error)})") from error
    if length > LONGEST:
        raise RunError(
            f"the name {path.name[:40]!r}... has {length} bytes, a run's at most {LONGEST}; choose "
            "another with -o"
        )
    if there:
        if not overwrite:
            raise RunError(f"{path} exists; choose another with -o, or give --overwrite")
        if not (path / MANIFEST).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"{path} is not a run directory and will not be overwritten")
    nearest = path.absolute().parent
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RunError(f"{nearest} cannot be written; choose another place with -o")
    free = shutil.disk_usage(nearest).free
    if free < room:
        raise ResourceError(
            f"{free / 1e6:.0f} MB are free at {nearest}, a run needs {room / 1e6:.0f} MB; "
            "free some or choose another place with -o"
        )


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes `path` when the block ends well and vanishes when it does not.

    Raises:
        RunError, ResourceError: as `check_free`; also when the disk fills up on the way.
    """
    check_free(path, overwrite=overwrite)
    try:
        with appearing(path, replace=overwrite) as scratch:
            yield scratch
    except Exception as error:
        said = of_system(error)
        if said is None:
            raise
        if is_out_of_space(said):
            raise ResourceError(
                f"the disk filled up while {path} was written; nothing was kept; "
                "free some or choose another place with -o"
            ) from error
        raise RunError(f"{path} cannot be written ({said.strerror or said})") from error


def save_frame(path: Path, frame: polars.DataFrame) -> None:
    """Write a table as Parquet or CSV, as its name ends.

    It goes through memory: a full disk is then one plain `OSError`, whatever polars would say.
    """
    table = io.BytesIO()
    if path.suffix == ".csv":
        frame.write_csv(table)
    else:
        frame.write_parquet(table)
    path.write_bytes(table.getvalue())


def column_types(frame: polars.DataFrame) -> dict[str, str]:
    """Names and types of a table's columns, as manifests list them."""
    return dict(zip(frame.columns, map(str, frame.dtypes), strict=True))


def write_manifest(scratch: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, last, with the hash and size of every file written before it."""
    outputs = {
        str(file.relative_to(scratch)): {
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "bytes": file.stat().st_size,
        }
        for file in sorted(scratch.rglob("*"))
        if file.is_file()
    }
    whole = {"schema_version": SCHEMA_VERSION, **manifest, "outputs": outputs}
    text = json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False)
    (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")


def find_runs(folder: Path) -> list[RunDirectory]:
    """The finished runs directly under a folder, the newest first; what is no run is passed
    over."""
    found = []
    for manifest in folder.glob(f"*/{MANIFEST}"):
        try:
            found.append(open_run(manifest.parent))
        except RunError:
            continue
    return sorted(found, key=lambda run: str(run.manifest.get("started", "")), reverse=True)


def unused(stem: Path) -> Path:
    """A run directory's name that nothing has yet: the stem and the time."""
    path = stem.with_name(f"{stem.name}-{datetime.now():%Y%m%d-%H%M%S}")
    number = 1
    while path.exists():
        number += 1
        path = stem.with_name(f"{stem.name}-{datetime.now():%Y%m%d-%H%M%S}-{number}")
    return path
