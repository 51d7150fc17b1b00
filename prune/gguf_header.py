"""A GGUF file's header, walked before a library reads it.

The `gguf` package believes the counts in a header: of an array that announces 2^60 numbers it makes
a list, element by element, whatever the file holds. Here every count is held against the bytes that
are left, so that a damaged or hostile file is an error before it costs memory or time.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from ..errors import ModelError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_LAYERS = 10_000
"""Layers of the deepest model that is taken for one; the deepest there are have some hundred."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number, by its type."""
_STRING, _ARRAY = 8, 9
_LEAST_VALUE, _LEAST_TENSOR = 13, 24
"""Bytes of the shortest value (an empty name, a type, a byte) and of the shortest tensor entry."""
_INTEGERS = {4: "I", 5: "i", 10: "Q", 11: "q"}
_LAYERS = b".block_count"
_DIMENSIONS = 8
_DEEPEST = 4
"""Arrays in arrays; the format's writers make none."""


class _Header:
    """A place in a file, moved on by what is read; never past the end."""

    def __init__(self, data: mmap.mmap, order: str) -> None:
        self._data, self._order, self._at = data, order, len(MAGIC)

    def number(self, kind: str) -> int:
        """A whole number."""
        size = struct.calcsize(kind)
        at = self._at
        self.skip(size)
        return struct.unpack_from(self._order + kind, self._data, at)[0]

    def skip(self, size: int) -> None:
        """Pass over bytes."""
        if size > len(self._data) - self._at:
            raise ValueError(f"it announces {size:,} bytes where {self._left:,} are left")
        self._at += size

    def text(self) -> bytes:
        """A string's bytes."""
        size = self.number("Q")
        at = self._at
        self.skip(size)
        return self._data[at : at + size]

    def count(self, kind: str, least: int, what: str) -> int:
        """How many follow, each of at least so many bytes."""
        found = self.number(kind)
        if found * least > self._left:
            raise ValueError(f"it announces {found:,} {what} in the {self._left:,} bytes left")
        return found

    def value(self, kind: int, depth: int = 0) -> int | None:
        """Pass over a value of some type; a whole number is returned."""
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            if depth == _DEEPEST:
                raise ValueError("arrays are nested too deep")
            inner = self.number("I")
            if inner in _SIZES:
                self.skip(_SIZES[inner] * self.count("Q", _SIZES[inner], "numbers"))
            elif inner in (_STRING, _ARRAY):
                for _ in range(self.count("Q", 8, "elements")):
                    self.value(inner, depth + 1)
            else:
                raise ValueError(f"it has a value of the unknown type {inner}")
        elif kind in _INTEGERS:
            return self.number(_INTEGERS[kind])
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return None

    @property
    def _left(self) -> int:
        return len(self._data) - self._at


def check_gguf(path: Path) -> None:
    """Walk the header of a file.

    Raises:
        ModelError: not a GGUF file, or one whose header does not fit the file.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{path} is not a GGUF file (wrong magic number)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _walk(data)
    except (ValueError, struct.error) as error:
        raise ModelError(
            f"{path} cannot be read as a model: its GGUF header is truncated or damaged ({error}); "
            "fetch it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror or error})") from error


def _walk(data: mmap.mmap) -> None:
    header = _Header(data, "<")
    version = header.number("I")
    if version & 0xFFFF == 0:  # written on a machine of the other byte order
        header = _Header(data, ">")
        version = header.number("I")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}, not one of {', '.join(map(str, VERSIONS))}")
    tensors = header.count("Q", _LEAST_TENSOR, "tensors")
    for _ in range(header.count("Q", _LEAST_VALUE, "values")):
        name = header.text()
        value = header.value(header.number("I"))
        if name.endswith(_LAYERS) and value is not None and not 0 <= value <= MOST_LAYERS:
            raise ValueError(f"it announces {value:,} layers, at most {MOST_LAYERS:,} are read")
    for _ in range(tensors):
        header.text()
        dimensions = header.number("I")
        if dimensions > _DIMENSIONS:
            raise ValueError(f"it has a tensor of {dimensions:,} dimensions")
        header.skip(8 * dimensions + 4 + 8)
