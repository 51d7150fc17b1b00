"""Run by a test: sweep a trained tiny model, kill it at random moments, and go on until it is done.

    python sweeping.py MODEL DATA WORK SEED SWEEPS

Compares what came of it with a sweep that nobody stopped. Prints a line for each table, `same NAME`
or `other NAME`, and one with the number of kills that left something to go on with.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked child has no other threads

import torch

from glulens.interp import sweep_files, sweep_items
from glulens.interp.harness_tasks import local_tasks
from glulens.interp.sweep import sweep
from glulens.prune.models import OpenedModel, open_model

TABLES = (
    "items.parquet",
    "answers.parquet",
    "neurons.parquet",
    "tables/points.csv",
    "tables/scores.csv",
)


def start(model: OpenedModel, data: Path, out: Path, resume: bool) -> int:
    """A child that sweeps."""
    child = os.fork()
    if child:
        return child
    try:
        sweep(
            model,
            output=out,
            resume=resume,
            criteria="ppm",
            controls="random:1",
            fractions="0,0.5",
            tasks="truthfulqa_mc1,truthfulqa_mc2,lambada_openai",
            data=str(data),
            limit=4,
            argv=["glulens", "sweep"],
        )
    finally:
        os._exit(0)


def kill(child: int, unfinished: Path, draw: random.Random) -> None:
    """Kill a child once it has kept a random number of further units, at a random moment."""
    wanted = kept(unfinished) + draw.randint(0, 6)
    while kept(unfinished) < wanted and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.2))
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with suppress(ChildProcessError):  # it had ended, and was waited for
        os.waitpid(child, 0)


def kept(unfinished: Path) -> int:
    return len(list(unfinished.glob("*.stage.safetensors")))


def main(folder: Path, data: Path, work: Path, seed: int, sweeps: int) -> None:
    torch.set_num_threads(1)
    model = open_model(folder, device="cpu")
    local_tasks(["lambada_openai"], data)  # what it imports: done once, not by every child
    # Figures take longer than all else, and have tests of their own.
    sweep_files._report = lambda *_: None
    sweep_items.CHUNK = dict.fromkeys(sweep_items.CHUNK, 2)
    os.waitpid(start(model, data, work / "whole", resume=False), 0)
    draw, kills = random.Random(seed), 0
    for number in range(sweeps):
        out = work / f"out-{number}"
        unfinished = work / f"out-{number}.unfinished"
        while not out.exists():
            child = start(model, data, out, resume=unfinished.is_dir())
            kill(child, unfinished, draw)
            kills += not out.exists() and kept(unfinished) > 0
        for name in TABLES:
            same = (out / name).read_bytes() == (work / "whole" / name).read_bytes()
            print("same" if same else "other", name, flush=True)  # noqa: T201
    print("kills", kills, flush=True)  # noqa: T201


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:4]]
    main(places[0], places[1], places[2], int(sys.argv[4]), int(sys.argv[5]))
