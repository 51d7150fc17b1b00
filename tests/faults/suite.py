"""Faults by the hundred, and what came of them.

    python -m faults.suite [--short] [--seed N]     (with PYTHONPATH=tests; `make faults`)

Every fault meets one command in a folder where two results stand already. Afterwards

- these results are the same bytes (else: lost);
- what stands where the command writes is whole, with the tables it has when nothing goes wrong, or
  is not there (else: corrupted);
- the command has ended (else: hung) with a documented exit code and, unless that is 0, one line
  (else: badly said);
- the same command, with --resume where it left something to go on with, comes to the same tables
  (else: blocked).

Prints a table and ends with 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked child has no other threads
os.environ["NUMBA_NUM_THREADS"] = "1"

from faults.inject import (
    Spoil,
    clock,
    failing,
    killed_at,
    no_memory,
    room_for,
    seemingly_free,
)
from faults.jobs import (
    SHORT,
    Job,
    digest,
    flaw,
    goes_on,
    make_jobs,
    measure,
    said_badly,
    warm,
)
from faults.server import Ended, Server

COLUMNS = ("injected", "lost", "corrupted", "hung", "badly said", "blocked")


@dataclass
class Tally:
    """What faults of each kind did, and what was wrong in words."""

    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str, **found: str) -> None:
        """Count one fault; `found` says by column what is wrong, nothing where it is right."""
        wrong = {column: words for column, words in found.items() if words}
        sys.stderr.write(f"{kind}: {what}: {wrong or 'held'}\n")
        row = self.rows.setdefault(kind, dict.fromkeys(COLUMNS, 0))
        row["injected"] += 1
        for column, words in found.items():
            column = column.replace("_", " ")
            row[column] += bool(words)
            if words:
                self.wrong.append(f"{kind}, {what}: {column}: {words}")

    def lines(self) -> Iterator[str]:
        """The table in Markdown."""
        yield f"| fault | {' | '.join(COLUMNS)} |"
        yield "|---|" + "---:|" * len(COLUMNS)
        total = {name: sum(row[name] for row in self.rows.values()) for name in COLUMNS}
        for kind, row in {**self.rows, "all": total}.items():
            yield f"| {kind} | {' | '.join(str(row[name]) for name in COLUMNS)} |"


class Suite:
    """Faults on jobs, in folders of their own."""

    def __init__(self, folder: Path, jobs: dict[str, Job], server: Server, seed: int) -> None:
        self.folder, self.jobs, self.server = folder, jobs, server
        self.draw = random.Random(seed)
        self.tally = Tally()
        self._count = 0
        self._earlier = folder / "earlier"
        self._earlier.mkdir()
        for name in ("score", "prune"):
            place = self._earlier / name
            server.run(jobs[name].command(place), where=self._earlier)
        self._digest = digest(self._earlier)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A folder with earlier results, where something may be written at `out`."""
        self._count += 1
        place = self.folder / f"place-{self._count}"
        shutil.copytree(self._earlier, place)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def lost(self, place: Path) -> str:
        """Which earlier results are not what they were."""
        names = {path.split("/")[0] for path in self._digest}
        there = {name: digest(place / name) for name in names}
        found = {
            f"{name}/{path}": sha for name, some in there.items() for path, sha in some.items()
        }
        return "" if found == self._digest else "earlier results are not the same bytes"

    def check(
        self,
        kind: str,
        job: Job,
        place: Path,
        ended: Ended,
        allowed: Sequence[int] | None,
        said: str = "",
        exact: bool = True,
    ) -> None:
        """Look at what a fault left, go on, and count it.

        Args:
            allowed: exit codes; None where it was killed.
            said: what was found wrong already.
            exact: see `flaw`.
        """
        out = place / "out"
        corrupted = flaw(out, job, exact=exact)
        lost = self.lost(place)
        after = goes_on(self.server, job, out)
        blocked = flaw(out, job, exact=exact)
        if after.code != 0:
            blocked = f"code {after.code}: {after.err[-600:]}"
        self.tally.add(
            kind,
            job.name,
            lost=lost or self.lost(place),
            corrupted=corrupted,
            hung="it did not end" if ended.hung or after.hung else "",
            badly_said=said if allowed is None else said_badly(ended, allowed),
            blocked=blocked,
        )

    def spoiled(
        self,
        kind: str,
        job: Job,
        make: Callable[[Path], Spoil],
        allowed: Sequence[int] | None,
        *,
        exact: bool = True,
    ) -> None:
        """One fault that the command meets by itself."""
        with self.place() as place:
            command = job.command(place / "out")
            ended = self.server.run(command, where=place, spoil=make(place))
            self.check(kind, job, place, ended, allowed, exact=exact)

    # The kinds of faults.

    def kill_at_random(self, job: Job) -> None:
        """Killed at a random moment."""
        with self.place() as place:
            child = self.server.start(job.command(place / "out"), where=place)
            child.kill_in(self.draw.uniform(0, job.seconds))
            self.check("kill -9, any moment", job, place, child.wait(), None)

    def kill_at_operation(self, job: Job) -> None:
        """Killed between two changes of files."""
        number = self.draw.randrange(job.operations)
        kind = "kill -9, between changes of files"
        self.spoiled(kind, job, lambda place: killed_at(place, number), None)

    def disk_full_at(self, job: Job) -> None:
        """No file or folder can be made any more, from some operation on."""
        number = self.draw.randrange(job.operations)
        self.spoiled(
            "disk full, no new file",
            job,
            lambda place: failing(place, number, errno.ENOSPC, lasting=True),
            (4,),
        )

    def file_too_large(self, job: Job) -> None:
        """Writes fail beyond some size, whoever writes."""
        size = self.draw.randrange(64, 40_000)
        self.spoiled("no file may grow", job, lambda _: room_for(size), (0, 3, 4))

    def disk_full(self, job: Job, room: Path) -> None:
        """A real small disk."""
        for path in room.iterdir():
            shutil.rmtree(path)
        left = self.draw.randrange(4, 60) * 1024
        free = os.statvfs(room)
        (room / "ballast").mkdir()
        fill = free.f_bavail * free.f_frsize - left
        (room / "ballast" / "file").write_bytes(b"\1" * max(0, fill))
        ended = self.server.run(job.command(room / "out"), where=room, spoil=seemingly_free)
        corrupted = flaw(room / "out", job)
        shutil.rmtree(room / "ballast")
        after = goes_on(self.server, job, room / "out", seemingly_free)
        blocked = (
            f"code {after.code}: {after.err[-600:]}" if after.code else flaw(room / "out", job)
        )
        self.tally.add(
            "disk full, a small disk",
            f"{job.name} with {left} bytes",
            corrupted=corrupted,
            hung="it did not end" if ended.hung or after.hung else "",
            badly_said=said_badly(ended, (0, 4)),
            blocked=blocked,
        )

    def forbidden(self, job: Job, *, lasting: bool) -> None:
        """A change of files is not permitted, once or from then on."""
        number = self.draw.randrange(job.operations)
        self.spoiled(
            f"permission lost {'midway' if lasting else 'for a moment'}",
            job,
            lambda place: failing(place, number, errno.EACCES, lasting=lasting),
            (0, 3),
        )

    def odd_clock(self, job: Job) -> None:
        """The clock jumps."""
        seed = self.draw.randrange(2**32)
        self.spoiled("clock jumps", job, lambda _: clock(seed), (0,))

    def out_of_memory(self, job: Job, *, lasting: bool) -> None:
        """A batch does not fit."""
        number, error = self.draw.randrange(8), self.draw.randrange(3)
        self.spoiled(
            f"out of memory {'from a batch on' if lasting else 'in one batch'}",
            job,
            lambda _: no_memory(number, error, lasting=lasting),
            (0, 4),
            exact=False,  # smaller batches round otherwise
        )

    def two_at_once(self, job: Job) -> None:
        """Two processes write at one place."""
        with self.place() as place:
            first = self.server.start(job.command(place / "out"), where=place)
            time.sleep(self.draw.uniform(0, job.seconds))
            second = self.server.start(job.command(place / "out"), where=place)
            ends = [first.wait(), second.wait()]
            said = said_badly(ends[0], (0, 3, 5)) or said_badly(ends[1], (0, 3, 5))
            if 0 not in [end.code for end in ends]:
                said = said or f"neither finished: {ends[0].err[-300:]} {ends[1].err[-300:]}"
            if [end.code for end in ends] == [0, 0]:
                said = "both say that they wrote it: the first one's result was replaced unasked"
            self.check("two processes, one place", job, place, ends[0], None, said)

    def kill_while_replacing(self, job: Job) -> None:
        """Killed between two changes of files of a command that replaces an earlier result."""
        # The last of them put the new one in place.
        number = self.draw.randrange(job.operations - 2, job.operations + 2)
        with self.place() as place:
            out = place / "out"
            shutil.copytree(place / ("prune" if job.name == "prune" else "score"), out)
            before = digest(out)
            command = job.command(out, "--overwrite")
            ended = self.server.run(command, where=place, spoil=killed_at(place, number))
            same = out.is_dir() and digest(out) == before
            broken = "" if same else "the old result is gone" * (not out.exists()) or flaw(out, job)
            after = self.server.run(command, where=place)
            blocked = f"code {after.code}: {after.err[-600:]}" if after.code else flaw(out, job)
            self.tally.add(
                "kill -9 while an old result is replaced",
                job.name,
                lost=broken or self.lost(place),
                hung="it did not end" if ended.hung or after.hung else "",
                blocked=blocked,
            )


def whole_suite(suite: Suite, short: bool) -> None:
    """All kinds on all jobs; `short`: a few of each on those that take no second."""
    jobs = [job for name, job in suite.jobs.items() if not short or name in SHORT]
    quick = [job for job in jobs if job.name in SHORT]
    heavy = [job for job in jobs if job.name not in SHORT]

    def times(of_quick: int, of_heavy: int, of_short: int = 1) -> Iterator[Job]:
        for job in quick:
            yield from [job] * (of_short if short else of_quick)
        for job in heavy:
            yield from [job] * of_heavy

    for job in times(14, 6, 3):
        suite.kill_at_random(job)
    for job in times(10, 2, 2):
        suite.kill_at_operation(job)
    for job in times(6, 1):
        suite.kill_while_replacing(job)
    for job in times(6, 2, 2):
        suite.disk_full_at(job)
    for job in times(5, 1):
        suite.file_too_large(job)
    for job in times(5, 1):
        suite.forbidden(job, lasting=True)
    for job in times(5, 1):
        suite.forbidden(job, lasting=False)
    for job in times(3, 1):
        suite.odd_clock(job)
    for job in times(3, 1):
        suite.out_of_memory(job, lasting=True)
    for job in times(3, 1):
        suite.out_of_memory(job, lasting=False)
    for job in times(4, 1):
        suite.two_at_once(job)
    with small_disk(suite.folder / "small") as room:
        for job in () if room is None else times(5, 1):
            assert room is not None
            suite.disk_full(job, room)


@contextmanager
def small_disk(place: Path) -> Iterator[Path | None]:
    """A disk of a megabyte, where the user may mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        allowed = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        allowed = False
    try:
        yield place if allowed else None
    finally:
        if allowed:
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the suite, print the table; 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, prog="faults.suite")
    parser.add_argument("--short", action="store_true", help="a few of each; seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    from conftest import OFFICIAL
    from faults.cache import spoil_caches

    official = OFFICIAL if (OFFICIAL / "stories260k").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="glulens-faults-") as scratch:
        folder = Path(scratch)
        (folder / "said").mkdir()
        jobs = make_jobs(folder, None if options.short else official)
        server = Server(folder / "said")
        warm(jobs, short=options.short)
        for job in jobs.values():
            if not options.short or job.name in SHORT:
                measure(server, job, folder)
                sys.stderr.write(f"{job.name}: {job.seconds:.1f} s, {job.operations} operations\n")
        suite = Suite(folder, jobs, server, options.seed)
        spoil_caches(suite.tally, server, folder / "cache", suite.draw, short=options.short)
        whole_suite(suite, options.short)
    say("\n".join(suite.tally.lines()))
    for line in suite.tally.wrong:
        say(line)
    return 1 if suite.tally.wrong else 0


def say(text: str) -> None:
    """One line on stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
