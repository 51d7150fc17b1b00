"""The state of unfinished work, kept so that a kill at any moment costs a minute at most.

Two files take turns: while one is written the other stands. Each holds a digest of its content; a
file that does not match it is told apart and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import ResourceError, RunError, is_out_of_space

_NAMES = ("state-0.safetensors", "state-1.safetensors")


def save_state(folder: Path, job: str, step: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the state after `step` steps of the work `job`; the older of the two files goes.

    Raises:
        ResourceError: the disk is full; the state before stays.
    """
    from safetensors.numpy import save_file

    older = min(_NAMES, key=lambda name: _step(folder / name, job))
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    about = {"job": job, "step": str(step), "digest": _digest(job, step, plain)}
    scratch = folder / f"{older}.new"
    try:
        save_file(plain, scratch, metadata=about)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(folder / older)
    except Exception as error:  # safetensors wraps what the system says in an error of its own
        scratch.unlink(missing_ok=True)
        if (isinstance(error, OSError) and is_out_of_space(error)) or "os error 28" in str(error):
            raise ResourceError(
                f"the disk filled up while the state was kept in {folder}; free some and go on "
                "with --resume"
            ) from error
        raise


def forget_states(folder: Path) -> None:
    """Take all states away, whole or not."""
    for path in folder.glob("state-?.safetensors*"):
        path.unlink()


def load_state(folder: Path, job: str) -> tuple[int, dict[str, np.ndarray], list[str]]:
    """The furthest state that is whole.

    Returns:
        Steps done (0 for none), the arrays, and a line about every file that was damaged.

    Raises:
        RunError: only states of another job are there.
    """
    best: tuple[int, dict[str, np.ndarray]] = (0, {})
    notes, others = [], False
    for name in _NAMES:
        path = folder / name
        if not path.exists():
            continue
        try:
            about, arrays = _read(path)
            step = int(about["step"])
            if about["job"] != job:
                others = True
                continue
            if about["digest"] != _digest(job, step, arrays):
                raise ValueError("its content does not match its digest")
        except Exception as error:  # a damaged file can raise anything from the reader
            line = (str(error).splitlines() or [type(error).__name__])[0]
            notes.append(f"{name} was damaged ({line[:100]}): its part of the work is done again")
            continue
        if step > best[0]:
            best = (step, arrays)
    if others and not best[0]:
        raise RunError(
            f"what stands in {folder} was begun with other options, another model or other data; "
            "go on with the same ones, or begin anew with --overwrite"
        )
    return best[0], best[1], notes


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _step(path: Path, job: str) -> int:
    """Steps that a file says it holds; -1 where it is none of this job."""
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
        return int(about["step"]) if about.get("job") == job else -1
    except Exception:  # as above
        return -1


def _digest(job: str, step: int, arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.blake2b(f"{job} {step}".encode(), digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        found.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def prefixed(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a part, called as such in the whole."""
    return {f"{name}/{key}": value for key, value in arrays.items()}


def below(name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `prefixed` put into the whole."""
    start = f"{name}/"
    return {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
