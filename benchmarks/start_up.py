"""CPU time of `glulens --help`, beside that of a bare interpreter.

.venv/bin/python benchmarks/start_up.py [calls]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path


def cpu_of(*command: str) -> float:
    """Seconds of CPU (user and system) that a command takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(calls: int = 20) -> None:
    commands = {
        "python -c pass": (sys.executable, "-c", "pass"),
        "glulens --help": (str(Path(sys.executable).with_name("glulens")), "--help"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for call in range(calls + 1):  # alternating; the first round warms caches and does not count
        for name, command in commands.items():
            seconds = cpu_of(*command)
            if call:
                times[name].append(seconds)
    for name, taken in times.items():
        middle, worst = statistics.median(taken), max(taken)
        print(f"{name:15s} median {middle:.3f} s, worst {worst:.3f} s of CPU")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
