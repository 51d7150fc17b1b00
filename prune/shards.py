"""Safetensors files, read and written one tensor at a time.

The library that defines the format checks every file before it is used (`safe_open`: header,
offsets, size). It reads and writes whole files, though, and a shard may be larger than memory; so
tensors are mapped one by one here and the output is written in the order of its header. The format:
eight bytes that hold the header's length, a JSON header with dtype, shape and byte range of every
tensor, then the bytes.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import ModelError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of weights that can be scored; other tensors are copied as they are."""
_CHUNK = 2**24
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """One tensor in a shard."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte in the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Shard:
    """A safetensors file whose header has been checked."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_shard(path: Path) -> Shard:
    """Read and check a file's header.

    Raises:
        ModelError: missing, truncated or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if path.is_file() and not os.access(path, os.R_OK):
            raise ModelError(f"{path} may not be read; check its permissions")
        with safe_open(path, "pt") as checked:  # checks every offset and the file's size
            metadata = dict(checked.metadata() or {})
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        entries = {
            name: Entry(
                name,
                path.name,
                about["dtype"],
                tuple(about["shape"]),
                8 + length + about["data_offsets"][0],
                about["data_offsets"][1] - about["data_offsets"][0],
            )
            for name, about in header.items()
        }
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; fetch the checkpoint again") from error
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is truncated or damaged ({_short(error)}); fetch the checkpoint again"
        ) from error
    return Shard(path, entries, metadata)


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def plain_dtype(entry: Entry) -> torch.dtype:
    """The tensor's dtype.

    Raises:
        ModelError: it is stored in one that holds no plain weights.
    """
    if entry.dtype not in DTYPES:
        raise ModelError(
            f"{entry.name} is stored as {entry.dtype}: quantised weights cannot be scored or cut; "
            "convert the checkpoint to bfloat16, float16 or float32"
        )
    return DTYPES[entry.dtype]


def mapped(folder: Path, entry: Entry) -> Tensor:
    """The tensor, mapped from its file; do not write to it. The mapping goes when the tensor does.

    Raises:
        ModelError: it is stored in a dtype that holds no plain weights.
    """
    dtype = plain_dtype(entry)
    if not entry.size:
        return torch.empty(entry.shape, dtype=dtype)
    offset = entry.start % mmap.ALLOCATIONGRANULARITY
    with (folder / entry.shard).open("rb") as file:
        # A private mapping: torch wants a writable buffer, the file must never be written.
        memory = mmap.mmap(
            file.fileno(),
            entry.size + offset,
            access=mmap.ACCESS_COPY,
            offset=entry.start - offset,
        )
    if entry.start % dtype.itemsize:  # a valid file need not be aligned
        data = bytearray(memory[offset : offset + entry.size])
        return torch.frombuffer(data, dtype=dtype).view(entry.shape)
    count = entry.size // dtype.itemsize
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(entry.shape)


Write = Callable[[BinaryIO], int]
"""Writes a tensor's bytes to a file and says how many it wrote."""


def copied(folder: Path, entry: Entry) -> Write:
    """The bytes of a tensor as they are."""

    def write(target: BinaryIO) -> int:
        with (folder / entry.shard).open("rb") as source:
            _copy_range(source, target, entry.start, entry.size)
        return entry.size

    return write


def _copy_range(source: BinaryIO, target: BinaryIO, start: int, size: int) -> None:
    target.flush()
    done = 0
    if hasattr(os, "copy_file_range"):
        at = target.tell()
        try:
            while done < size:
                moved = os.copy_file_range(
                    source.fileno(), target.fileno(), size - done, start + done, at + done
                )
                if not moved:
                    break
                done += moved
        except OSError as error:
            # Not every pair of file systems can; ENOSPC and the like will come again below.
            if done:
                raise
            _ = error
        target.seek(at + done)
    source.seek(start + done)
    while done < size:
        chunk = source.read(min(_CHUNK, size - done))
        if not chunk:
            raise OSError(f"{source.name} became shorter while it was read")
        target.write(chunk)
        done += len(chunk)


def written(tensor: Tensor) -> Write:
    """The bytes of a tensor in memory."""
    data: Any = tensor.contiguous().view(-1).view(torch.uint8).numpy()

    def write(target: BinaryIO) -> int:
        target.write(memoryview(data))
        return len(data)

    return write


def write_shard(
    path: Path,
    tensors: Sequence[tuple[str, str, tuple[int, ...], int]],
    bodies: Mapping[str, Callable[[], Write]],
    metadata: Mapping[str, str],
    told: Callable[[], None] = lambda: None,
) -> None:
    """Write a file. While one tensor is written, the next is made in a second thread.

    Args:
        tensors: name, dtype, shape and bytes of each, in their order in the file.
        bodies: by name, what makes the tensor's writer when its turn comes.
        metadata: of the file.
        told: called after every tensor.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file, ThreadPoolExecutor(1) as ahead:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        coming = [ahead.submit(bodies[name]) for name, *_ in tensors[:1]]
        for place, (name, _, _, size) in enumerate(tensors):
            write = coming.pop().result()
            coming += [ahead.submit(bodies[name]) for name, *_ in tensors[place + 1 : place + 2]]
            if write(file) != size:
                raise OSError(f"{name}: not as many bytes as planned")
            told()
