"""Hostile inputs by the million, to every parser of ours.

    python -m faults.fuzz [--cases N] [--seed N] [--only NAME]    (PYTHONPATH=tests; `make fuzz`)

A case passes when the parser returns, or refuses with an error that a user sees as one line. Any
other exception, more than a second of CPU, and memory beyond a gigabyte are crashes. The cases of a
block follow from the seed, the parser and the block's number alone. Prints cases by parser, then
every crash, and ends with 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.parsers import Case, Parser, make_parsers

CASES = 1_000_000
BLOCK = 500
"""Cases that one seed is for."""
WORKERS = 2
THREADS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
SECONDS = 1.0
"""CPU seconds that a case may take."""
MEMORY = 2**30
"""Bytes that a process may take beyond what it has when it begins."""
STALLED = 600.0
"""Seconds without a finished block after which a worker is taken for dead; machines are busy."""


class TooLong(BaseException):
    """A case took too much time."""


@dataclass
class Found:
    """What came of one parser.

    Attributes:
        cases: how many were tried.
        refused: how many were refused in one line; the rest was read.
        crashes: by where it happened, an input and a traceback.
    """

    cases: int = 0
    refused: int = 0
    crashes: dict[str, str] = field(default_factory=dict)


def try_case(parser: Parser, case: Case) -> str | None:
    """One case.

    Returns:
        `read`, `refused`, or None where it was a crash, which then stands in `sys.last_value`.
    """
    from glulens.errors import GlulensError

    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        parser.read(case)
    except GlulensError as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        str(error)
        return "refused"
    except BaseException as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if isinstance(error, KeyboardInterrupt):
            raise
        sys.last_value = error
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return "read"


def where(error: BaseException) -> str:
    """Kind and place of a crash; two at one place are one finding."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "faults" not in f.filename]
    ours = [f for f in frames if "site-packages" not in f.filename and "/lib/" not in f.filename]
    last = (ours or frames or traceback.extract_tb(error.__traceback__))[-1]
    return f"{type(error).__name__} in {Path(last.filename).name}:{last.name}"


def smaller(parser: Parser, case: Any, place: str) -> Any:
    """The same crash from less, by leaving parts out as long as it stays; a few seconds."""
    until = time.monotonic() + 5
    part = max(1, len(case) // 2)
    while part and time.monotonic() < until:
        at = 0
        while at < len(case) and time.monotonic() < until:
            less = case[:at] + case[at + part :]
            if try_case(parser, less) is None and where(_last()) == place:
                case = less
            else:
                at += part
        part //= 2
    return case


def _last() -> BaseException:
    error: Any = sys.last_value
    return error


def seed_of(seed: int, parser: str, block: int) -> str:
    """What the cases of a block follow from."""
    return f"{seed}/{parser}/{block}"


def _work(blocks: Sequence[tuple[str, int, int]], seed: int, folder: Path, told: int) -> None:
    """Try blocks; a line of JSON into the pipe `told` after each, and before each its number."""
    signal.signal(signal.SIGPROF, _too_long)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a Rust library says when it panics
    parsers = {parser.name: parser for parser in make_parsers(folder)}
    for parser in parsers.values():  # what a first call imports and builds is no case's fault
        for number in range(3):
            with suppress(Exception):
                parser.read(parser.make(random.Random(number)))
    _limit_memory()
    for name, block, cases in blocks:
        parser, draw, found = parsers[name], random.Random(seed_of(seed, name, block)), Found()
        _tell(told, {"begins": [name, block]})
        for _ in range(cases):
            case = parser.make(draw)
            found.cases += 1
            came = try_case(parser, case)
            found.refused += came == "refused"
            if came is None:
                error = _last()
                place = where(error)
                if place not in found.crashes:
                    lines = "".join(traceback.format_exception(error))[-1500:]
                    least = smaller(parser, case, place)
                    found.crashes[place] = f"{least[:400]!r} ({len(least)} long)\n{lines}"
        about = {"cases": found.cases, "refused": found.refused, "crashes": found.crashes}
        _tell(told, {"done": [name, block], **about})


def _too_long(*_: object) -> None:
    raise TooLong


def _limit_memory() -> None:
    """Allocations beyond the bound fail, in Python as in libraries."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _tell(told: int, what: dict[str, Any]) -> None:
    data = json.dumps(what).encode() + b"\n"
    while data:
        data = data[os.write(told, data) :]


def run(parsers: Sequence[tuple[str, int]], cases: int, seed: int) -> dict[str, Found]:
    """Fuzz.

    Args:
        parsers: names and shares (see `Parser.share`).
        cases: in all, about; every parser gets its share.
        seed: of everything.
    """
    blocks: list[tuple[str, int, int]] = []
    for name, share in parsers:
        left, block = -(-cases * share // 1000), 0
        while left > 0:
            blocks.append((name, block, min(BLOCK, left)))
            left, block = left - BLOCK, block + 1
    random.Random(seed).shuffle(blocks)  # dear and cheap ones side by side
    found = {name: Found() for name, _ in parsers}
    lists = [blocks[k::WORKERS] for k in range(WORKERS)]
    with tempfile.TemporaryDirectory(prefix="glulens-fuzz-", dir=_scratch()) as scratch:
        running = [_begin(some, seed, Path(scratch) / str(k)) for k, some in enumerate(lists)]
        while running:
            for worker in list(running):
                ended = worker.read(found)
                if ended:
                    running.remove(worker)
                    if worker.left:  # it died: what it was at is a crash, the rest goes on
                        name, block, count = worker.left[0]
                        found[name].cases += count
                        found[name].crashes[f"the process died in block {block}"] = (
                            f"seed {seed_of(seed, name, block)!r}"
                        )
                        place = Path(scratch) / f"again-{len(os.listdir(scratch))}"
                        if worker.left[1:]:
                            running.append(_begin(worker.left[1:], seed, place))
            time.sleep(0.05)
    return found


def _scratch() -> str | None:
    """Files are small and many: in memory, where there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class _Worker:
    """A process at work, and the pipe that it tells of it."""

    def __init__(self, process: int, pipe: int, blocks: Sequence[tuple[str, int, int]]) -> None:
        self._process, self._pipe, self._held = process, pipe, b""
        self.left = list(blocks)
        self._heard = time.monotonic()
        os.set_blocking(pipe, False)

    def read(self, found: dict[str, Found]) -> bool:
        """Take in what it told; whether it has ended."""
        gone, _ = os.waitpid(self._process, os.WNOHANG)
        with suppress(BlockingIOError):
            while data := os.read(self._pipe, 1 << 16):
                self._held += data
                self._heard = time.monotonic()
        *lines, self._held = self._held.split(b"\n")
        for line in lines:
            about = json.loads(line)
            if "done" in about:
                name, block = about["done"]
                one = found[name]
                one.cases += about["cases"]
                one.refused += about["refused"]
                one.crashes |= about["crashes"]
                self.left = [b for b in self.left if b[:2] != (name, block)]
        if not gone and time.monotonic() - self._heard > STALLED:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            gone = True
        if gone:
            os.close(self._pipe)
        return bool(gone)


def _begin(blocks: Sequence[tuple[str, int, int]], seed: int, folder: Path) -> _Worker:
    reading, writing = os.pipe()
    process = os.fork()
    if process:
        os.close(writing)
        return _Worker(process, reading, blocks)
    try:
        os.close(reading)
        folder.mkdir()
        _work(blocks, seed, folder, writing)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print counts by parser and crashes; 0 without one."""
    parser = argparse.ArgumentParser(prog="faults.fuzz")
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="NAME", help="one parser")
    options = parser.parse_args(argv)
    os.environ.update(dict.fromkeys(THREADS, "1"))  # before anyone counts them
    warm()
    names = [one for one in _names() if options.only in (None, one[0])]
    began = time.process_time()
    found = run(names, options.cases, options.seed)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = ["| parser | cases | refused in a line | crashes |", "|---|---:|---:|---:|"]
    total: Counter[str] = Counter()
    for name, one in found.items():
        row = {"cases": one.cases, "refused": one.refused, "crashes": len(one.crashes)}
        total.update(row)
        lines.append(f"| {name} | {' | '.join(f'{n:,}' for n in row.values())} |")
    lines.append(f"| all | {' | '.join(f'{n:,}' for n in total.values())} |")
    seconds = time.process_time() - began + children.ru_utime + children.ru_stime
    lines.append(f"\nseed {options.seed}, {seconds:,.0f} s of CPU")
    for name, one in found.items():
        lines += [f"\n{name}: {place}: {said}" for place, said in one.crashes.items()]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if total["crashes"] else 0


def warm() -> None:
    """Import once what every process needs; nothing that begins threads is called."""
    import polars
    import transformers
    from transformers.models.llama import modeling_llama

    import glulens.interp.cli
    import glulens.interp.sweep_options
    import glulens.prune.checkpoint
    import glulens.tui.filters  # noqa: F401

    _ = polars, modeling_llama
    transformers.utils.logging.disable_progress_bar()


def _names() -> list[tuple[str, int]]:
    """Names and shares of all parsers; made in a child, since some of the making begins threads."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        with tempfile.TemporaryDirectory() as scratch:
            names = [(parser.name, parser.share) for parser in make_parsers(Path(scratch))]
        _tell(writing, {"names": names})
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    return [(name, share) for name, share in json.loads(said)["names"]]


if __name__ == "__main__":
    sys.exit(main())
