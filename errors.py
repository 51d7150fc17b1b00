"""Errors that a user can act on, each with the exit code its kind ends a command with.

Exit codes: 0 ok; 1 failed; 2 usage; 3 model or data missing or unsupported; 4 out of memory or
disk; 5 unfinished, resumable; 130 interrupted. A message says what was wrong, what is allowed and
what to do, in one line.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable


class GlulensError(Exception):
    """Base of every error meant for the user's eyes."""

    exit_code = 1


class UsageError(GlulensError):
    """An option or argument has a value that is not allowed."""

    exit_code = 2


class ModelError(GlulensError):
    """A model is missing, damaged or of a kind that is not supported."""

    exit_code = 3


class DataError(GlulensError):
    """A data set is missing, empty or malformed."""

    exit_code = 3


class RunError(GlulensError):
    """A run directory is missing, damaged or in the way."""

    exit_code = 3


class UnfinishedError(RunError):
    """A run was begun and can be gone on with."""

    exit_code = 5


class ResourceError(GlulensError):
    """Memory or disk ran out; the message names the option to lower."""

    exit_code = 4


def nearest(name: str, allowed: Iterable[str]) -> str:
    """A `did you mean` clause for `name`, or the empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",  # MPS' and, of CUDA's own calls, the driver's words
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
"""What a RuntimeError says, in lower case, when memory ran out."""


_OF_SYSTEM = re.compile(r"\(os error (\d{1,5})\)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU (where torch raises a plain RuntimeError) or a device."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _MEMORY)


def visible(text: str) -> str:
    """Data on one line of a terminal: what would move the cursor or hide is spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def is_out_of_space(error: OSError) -> bool:
    """Whether the operating system refused a write for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def of_system(error: Exception) -> OSError | None:
    """What the operating system said, also where a library (safetensors) says it in words of its
    own; None where it was not the system."""
    if isinstance(error, OSError):
        return error
    found = None if isinstance(error, GlulensError) else _OF_SYSTEM.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def refused(error: OSError) -> GlulensError:
    """What the operating system refused and no other error tells better."""
    what = f" ({error.filename})" if error.filename else ""
    if is_out_of_space(error):
        return ResourceError(f"the disk filled up{what}; free some or choose another place with -o")
    return RunError(
        f"the system refused to read or write a file: {error.strerror or error}{what}; check its "
        "permissions, or choose another place with -o"
    )
