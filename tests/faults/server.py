"""Commands as children of one process that has imported everything: a fork costs milliseconds.

The parent never runs a command itself: a library that has begun threads (polars, torch, numba) does
not survive a fork.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 300.0
"""Seconds after which a command counts as hung. The longest takes a few; a machine may be busy."""


_NAP = 0.002


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; None where it was killed.
        hung: whether it had to be killed because it did not end.
        out, err: what it wrote.
        seconds: how long it took.
    """

    code: int | None
    hung: bool
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Child:
    """A command at work."""

    process: int
    begun: float
    says: Path

    def kill_in(self, seconds: float) -> None:
        """Kill it -9 after so many seconds, unless it has ended by then."""
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and not self._ended():
            time.sleep(_NAP)
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def _ended(self) -> bool:
        about = os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return about is not None

    def wait(self, limit: float = LIMIT) -> Ended:
        """How it ends; after `limit` seconds it is killed."""
        # Counted in naps: while a machine sleeps, or this process is stopped, none is taken.
        naps = int(limit / _NAP)
        while not self._ended() and naps:
            time.sleep(_NAP)
            naps -= 1
        hung = not self._ended()
        if hung:
            os.kill(self.process, signal.SIGKILL)
        _, status = os.waitpid(self.process, 0)
        out, err = (
            Path(f"{self.says}.{name}").read_text(encoding="utf-8", errors="replace")
            for name in ("out", "err")
        )
        code = os.waitstatus_to_exitcode(status)
        return Ended(code if code >= 0 else None, hung, out, err, time.perf_counter() - self.begun)


class Server:
    """Starts children; what they write on stdout and stderr goes to files under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def start(
        self,
        words: Sequence[str | Path],
        *,
        where: Path,
        spoil: Callable[[], Any] | None = None,
    ) -> Child:
        """Begin `glulens WORDS` in the folder `where`, once `spoil` was called in the child."""
        from glulens.interp.cli import main

        return self.call(lambda: main([str(word) for word in words]), where=where, spoil=spoil)

    def run(self, words: Sequence[str | Path], **options: Any) -> Ended:
        """The same, to its end."""
        return self.start(words, **options).wait()

    def call(
        self, work: Callable[[], Any], *, where: Path, spoil: Callable[[], Any] | None = None
    ) -> Child:
        """Begin a function that ends as a command does, by `SystemExit`."""
        self._count += 1
        says = self._folder / f"child-{self._count}"
        for name in ("out", "err"):  # there even if it is killed before its first step
            Path(f"{says}.{name}").touch()
        sys.stdout.flush()
        sys.stderr.flush()
        begun = time.perf_counter()
        process = os.fork()
        if process:
            return Child(process, begun, says)
        code = 1
        try:
            for number, name in ((1, "out"), (2, "err")):
                file = os.open(f"{says}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, number)
                os.close(file)
            # What pytest or anyone else put there is not the child's.
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            os.chdir(where)
            if spoil is not None:
                spoil()
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            traceback.print_exc()
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
