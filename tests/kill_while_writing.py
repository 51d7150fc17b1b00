"""Run by a test: prune a checkpoint 20 times and kill each at a random moment of the writing.

    python kill_while_writing.py SOURCE WHOLE WORK SEED

WHOLE is a finished result to compare with. Prints a line for each attempt: `absent`, `whole`, or
what is wrong with it.
"""

from __future__ import annotations

import filecmp
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM  # noqa: F401

import glulens.prune.kernels  # noqa: F401
from glulens.prune.budget import Budget
from glulens.prune.stream import prune_checkpoint

ATTEMPTS = 20


def start(source: Path, out: Path) -> tuple[int, int]:
    """A child that prunes; the pipe says a byte when it begins to write."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    told = False

    def progress(what: str, done: int, total: int) -> None:
        nonlocal told
        if what.startswith("writing") and not told:
            told = True
            os.write(writing, b"w")

    prune_checkpoint(
        source, out, budget=Budget(fraction=0.3), progress=progress, argv=["glulens", "prune"]
    )
    os._exit(0)


def wait_for_writing(reading: int) -> None:
    os.read(reading, 1)
    os.close(reading)


def state(out: Path, whole: Path) -> str:
    if not out.exists():
        return "absent"
    names = sorted(path.name for path in whole.iterdir())
    if sorted(path.name for path in out.iterdir()) != names:
        return "files are missing"
    _, wrong, errors = filecmp.cmpfiles(out, whole, names, shallow=False)
    return f"{wrong + errors} differ" if wrong or errors else "whole"


def main(source: Path, whole: Path, work: Path, seed: int) -> None:
    AutoConfig.from_pretrained(source)  # like the imports above: done once, not by every child
    child, reading = start(source, work / "timed")
    wait_for_writing(reading)
    begin = time.perf_counter()
    os.waitpid(child, 0)
    takes = time.perf_counter() - begin
    draw = random.Random(seed)
    for attempt in range(ATTEMPTS):
        out = work / f"out-{attempt}"
        child, reading = start(source, out)
        wait_for_writing(reading)
        time.sleep(draw.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(state(out, whole), flush=True)  # noqa: T201
        shutil.rmtree(out, ignore_errors=True)
        for left in work.glob(".out-*"):
            shutil.rmtree(left, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
