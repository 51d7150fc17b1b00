"""Folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SWAP = 2
"""The flag of Linux' renameat2 and macOS' renamex_np that makes them swap two names."""
_HERE = -100
"""AT_FDCWD: paths are as the process sees them."""


@contextmanager
def appearing(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A scratch folder that becomes `path` when the block ends well and vanishes when it does not.

    It lies beside `path`, so that the last step is a rename within one file system.

    Args:
        path: where it is to appear.
        replace: put it in the place of what stands at `path`.

    Raises:
        FileExistsError: without `replace`, something has come to stand at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.unfinished-", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp made it the owner's alone
        if replace and path.exists():
            _replace(scratch, path)
        else:
            try:
                scratch.rename(path)  # the system itself refuses to replace a folder that is full
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    said = "another process put something there meanwhile"
                    raise FileExistsError(errno.EEXIST, said, str(path)) from error
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(scratch: Path, path: Path) -> None:
    """Put the new one in place; the old one is where the new one was, or gone."""
    if _swapped(scratch, path):
        return  # in one step: a kill leaves the old one or the new one there
    # Aside first, and back again should the last step fail.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    path.rename(aside / "old")
    try:
        scratch.rename(path)
    except BaseException:
        (aside / "old").rename(path)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    """Whether the system could swap two names in one step; not all systems and disks can."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(one), os.fsencode(other)
        if sys.platform == "darwin":
            return library.renamex_np(*names, _SWAP) == 0
        return library.renameat2(_HERE, names[0], _HERE, names[1], _SWAP) == 0
    except (OSError, AttributeError, TypeError):  # no such library, no such function
        return False
