"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A scratch folder that becomes `path` when the block ends well and vanishes when it does not.

    It lies beside `path`, so that the last step is a rename within one file system. What stood at
    `path` is replaced; whether it may be is the caller's question.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.unfinished-", dir=path.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # mkdtemp made it the owner's alone
        if path.exists():
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
        else:
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
