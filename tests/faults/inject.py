"""Faults that a child does to itself before its command begins; they end with the process.

File operations are met through Python's audit events, which are raised before the operation and
stop it when the hook raises. What libraries write by themselves (safetensors, polars) raises none:
a limit on the size of files and a small disk are for those.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

Spoil = Callable[[], None]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.mkdir", "os.rename", "os.chmod")
_REMOVALS = ("os.remove", "os.rmdir")


def _watch(folder: Path, met: Callable[[str], None], removals: bool = False) -> None:
    """Call `met` before every operation that changes something under a folder."""
    prefix = str(folder)
    events = _CHANGES + (_REMOVALS if removals else ())

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not args[2] & _WRITES:
                return
        elif event not in events:
            return
        if isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(prefix):
            met(event)

    sys.addaudithook(hook)


def counting(folder: Path, told: Path) -> Spoil:
    """No fault: how many operations there are is written to the file `told`."""

    def spoil() -> None:
        file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        _watch(folder, lambda _: os.write(file, b"."))  # type: ignore[func-returns-value]

    return spoil


def failing(folder: Path, number: int, code: int, *, lasting: bool) -> Spoil:
    """The `number`th operation under a folder (from 0), or all from it on, end with an errno."""

    def spoil() -> None:
        seen = 0

        def met(event: str) -> None:
            nonlocal seen
            if event not in _REMOVALS:
                seen += 1
            if seen - 1 == number or (lasting and seen > number):
                raise OSError(code, os.strerror(code))

        # A disk that is full still lets go of files; a folder that may not be written does not.
        _watch(folder, met, removals=lasting and code == errno.EACCES)

    return spoil


def killed_at(folder: Path, number: int) -> Spoil:
    """Killed -9 right before the `number`th operation under a folder (from 0)."""

    def spoil() -> None:
        seen = 0

        def met(_: str) -> None:
            nonlocal seen
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

        _watch(folder, met)

    return spoil


def room_for(size: int) -> Spoil:
    """No file may grow beyond `size` bytes: a write past it fails, whoever writes."""

    def spoil() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return spoil


def seemingly_free() -> None:
    """A small disk that says it is large: the check before the work passes."""
    import shutil

    shutil.disk_usage = lambda _: shutil._ntuple_diskusage(10**12, 0, 10**12)  # pyright: ignore


def clock(seed: int) -> Spoil:
    """The wall clock jumps by up to ten years, back or on, at every reading; the monotonic one
    stands still or leaps, as over a suspended night."""

    def spoil() -> None:
        draw = random.Random(seed)
        years = 10 * 365.25 * 86400
        now, ticks, leapt = time.time, time.monotonic, 0.0

        def wall() -> float:
            return max(0.0, now() + draw.uniform(-years, years))

        def monotonic() -> float:
            nonlocal leapt
            leapt += draw.choice((0.0, 0.0, 60.0, 40_000.0))
            return ticks() + leapt

        class Odd(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.now(tz) + timedelta(seconds=draw.uniform(-years, years))

        time.time, time.monotonic, time.perf_counter = wall, monotonic, monotonic
        for name, module in list(sys.modules.items()):
            if name.startswith("glulens") and getattr(module, "datetime", None) is datetime:
                vars(module)["datetime"] = Odd

    return spoil


def memory_errors() -> tuple[Callable[[], BaseException], ...]:
    """What is raised when memory runs out: by torch on a CPU, on a device, and by Python."""
    import torch

    said = (
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
    )
    return (
        lambda: RuntimeError(said),
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError,
    )


def no_memory(number: int, error: int, *, lasting: bool) -> Spoil:
    """The `number`th pass through an MLP (from 0), or all from it on, run out of memory; so does
    the mapping of tensors from disk, for commands that build no model."""

    def spoil() -> None:
        from transformers.models.llama.modeling_llama import LlamaMLP

        from glulens.prune import checkpoint, shards, stream

        seen = 0
        raised = memory_errors()[error]

        def after(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **options: Any) -> Any:
                nonlocal seen
                seen += 1
                if seen - 1 == number or (lasting and seen > number):
                    raise raised()
                return real(*given, **options)

            return call

        LlamaMLP.forward = after(LlamaMLP.forward)
        mapped = after(shards.mapped)
        for module in (checkpoint, stream, shards):
            vars(module)["mapped"] = mapped

    return spoil
