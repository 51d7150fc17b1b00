"""The folder RUN.unfinished: where a run keeps what it needs to go on after a kill."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import RunError, UnfinishedError
from ..rundir import MANIFEST, absolute, check_free

UNFINISHED = ".unfinished"


def folder_of(output: str | Path, *, resume: bool, overwrite: bool) -> Path:
    """The folder of a run to be written at `output`, once it is sure that it may be used.

    Raises:
        RunError: the place cannot be written, something is in the way, or there is nothing to go on
            with.
        UnfinishedError: a run was begun there, and neither `resume` nor `overwrite` is given.
    """
    path = absolute(output)
    finished = os.path.isfile(path / MANIFEST) and not os.path.lexists(f"{path}{UNFINISHED}")
    if resume and finished and not overwrite:
        raise RunError(
            f"{path} is finished: there is nothing to go on with; begin another elsewhere (-o), or "
            "in its place (--overwrite), without --resume"
        )
    check_free(path, overwrite=overwrite)
    folder = path.with_name(path.name + UNFINISHED)
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise RunError(f"{folder} is in the way: no folder of ours; move it, or choose another -o")
    if folder.exists() and not resume and not overwrite:
        raise UnfinishedError(
            f"{folder} holds an unfinished run; go on with --resume, or begin anew with --overwrite"
        )
    if resume and not folder.is_dir():
        raise RunError(f"there is nothing to go on with at {folder}; leave --resume out")
    return folder


@contextmanager
def at_work(folder: Path, *, worth_keeping: Callable[[Path], bool]) -> Iterator[None]:
    """Makes the folder, keeps others off it, and takes it away again when all is done, or when the
    work fails before anything in it is worth keeping.

    Raises:
        RunError: another process is at work on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        try:
            yield
        except BaseException:
            if not worth_keeping(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    import fcntl

    file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RunError(f"another process is at work on {folder}; wait for it or stop it") from error
    finally:
        os.close(file)


def holds(output: str | Path, pattern: str) -> bool:
    """Whether the unfinished run of `output` has a file to go on with."""
    try:
        path = absolute(output)
        return any(path.with_name(path.name + UNFINISHED).glob(pattern))
    except (OSError, ValueError, RunError):
        return False


def find_unfinished(folder: Path, stem: str) -> Path:
    """The run that was begun last under a folder and not finished.

    Raises:
        RunError: there is none.
    """
    # As `rundir.unused` names them: of model `a` none of model `a-b`.
    name = re.compile(re.escape(stem) + r"-\d{8}-\d{6}(-\d+)?" + re.escape(UNFINISHED))
    there = folder.iterdir() if folder.is_dir() else ()
    runs = [path for path in there if name.fullmatch(path.name) and path.is_dir()]
    found = sorted(runs, key=lambda path: path.stat().st_mtime)
    if not found:
        raise RunError(f"no unfinished {stem} run in {folder}; name it with -o, or begin one")
    return found[-1].with_name(found[-1].name.removesuffix(UNFINISHED))
