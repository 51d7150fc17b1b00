"""Work in stages: what one stage found is kept in a folder, so that a killed run goes on after it.

Each file holds arrays and a digest of what they are and of the run they belong to. A file that does
not match it, or belongs to a run with other options, another model or other data, is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ResourceError, RunError, is_out_of_space, of_system

Arrays = Mapping[str, np.ndarray]
_FILE = "{}.stage.safetensors"


class Stages:
    """Stages of one run.

    Args:
        folder: where they are kept; None keeps nothing.
        about: anything JSON can hold that tells this run from others.

    Attributes:
        notes: a line about every file that was damaged and made again.
        reused: names of the stages that were found.
    """

    def __init__(self, folder: Path | None, about: Any) -> None:
        self._folder = folder
        text = json.dumps(about, sort_keys=True, default=str)
        self._about = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        self.notes: list[str] = []
        self.reused: list[str] = []

    def __call__(self, name: str, make: Callable[[], Arrays]) -> Arrays:
        """What the stage found before, or what `make` finds now.

        Raises:
            ResourceError: the disk is full.
            RunError: what was found cannot be kept.
        """
        if self._folder is None:
            return make()
        path = self._folder / _FILE.format(name)
        found = self._load(path)
        if found is not None:
            self.reused.append(name)
            return found
        found = {key: np.ascontiguousarray(value) for key, value in make().items()}
        self._save(path, found)
        return found

    def _load(self, path: Path) -> Arrays | None:
        from safetensors import safe_open

        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
                if about.get("run") != self._about:
                    return None
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if about.get("digest") != _digest(self._about, found):
                raise ValueError("its content does not match its digest")
        except Exception as error:  # a damaged file can raise anything from the reader
            line = (str(error).splitlines() or [type(error).__name__])[0]
            self.notes.append(f"{path.name} was damaged ({line[:100]}): its part is done again")
            return None
        return found

    def _save(self, path: Path, arrays: Arrays) -> None:
        from safetensors.numpy import save_file

        scratch = path.with_name(path.name + ".new")
        about = {"run": self._about, "digest": _digest(self._about, arrays)}
        try:
            save_file(dict(arrays), scratch, metadata=about)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(path)
        except Exception as error:  # safetensors wraps what the system says in its own
            scratch.unlink(missing_ok=True)
            said = of_system(error)
            if said is not None and is_out_of_space(said):
                raise ResourceError(
                    f"the disk filled up while a stage was kept in {path.parent}; free some and "
                    "go on with --resume"
                ) from error
            if said is not None:
                raise RunError(f"{path.parent} cannot be written ({said.strerror})") from error
            raise


def _digest(about: str, arrays: Arrays) -> str:
    found = hashlib.blake2b(about.encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        found.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def worth_keeping(folder: Path) -> bool:
    """Whether a stage is kept in the folder that a later call could go on from."""
    return any(folder.glob(_FILE.format("*")))
