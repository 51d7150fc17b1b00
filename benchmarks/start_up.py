"""CPU time of `glulens --help` and of `glulens browse RUN`, beside that of a bare interpreter.

    .venv/bin/python benchmarks/start_up.py [calls] [RUN]

The browser runs in a terminal of 120x32 until the line under the table says how many neurons there
are; its whole process counts, imports and all threads.

    goal: 1 s of CPU for the browser on the demo's run
"""

from __future__ import annotations

import fcntl
import os
import pty
import resource
import statistics
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path

GLULENS = str(Path(sys.executable).with_name("glulens"))
GOAL = 1.0


def cpu_of(*command: str) -> float:
    """Seconds of CPU (user and system) that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_of_browser(run: str) -> float:
    """Seconds of CPU until the browser's first screen is whole."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 32, 120, 0, 0))
    process = subprocess.Popen([GLULENS, "browse", run], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b" neurons " not in seen:
        seen += os.read(ours, 65536)
    words = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    process.kill()
    process.wait()
    os.close(ours)
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main(calls: int = 20, run: str | None = None) -> None:
    commands: dict[str, Callable[[], float]] = {
        "python -c pass": partial(cpu_of, sys.executable, "-c", "pass"),
        "glulens --help": partial(cpu_of, GLULENS, "--help"),
    }
    if run is not None:
        commands["glulens browse"] = partial(cpu_of_browser, run)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for call in range(calls + 1):  # alternating; the first round warms caches and does not count
        for name, command in commands.items():
            seconds = command()
            if call:
                times[name].append(seconds)
    for name, taken in times.items():
        middle, worst = statistics.median(taken), max(taken)
        goal = ""
        if name == "glulens browse":
            goal = f"  (goal {GOAL:g} s: {'met' if middle <= GOAL else 'missed'})"
        print(f"{name:15s} median {middle:.3f} s, worst {worst:.3f} s of CPU{goal}")


if __name__ == "__main__":
    main(*(int(word) if word.isdecimal() else word for word in sys.argv[1:]))  # pyright: ignore
