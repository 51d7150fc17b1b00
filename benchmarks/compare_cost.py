"""What comparing two checkpoints costs, beside reading their files once.

    .venv/bin/python benchmarks/compare_cost.py [--repetitions 3] [--folder DIR]

Two synthetic sharded checkpoints of 2.2 GB each, made in a temporary folder of DIR (5 GB must be
free); the second is the first with a little noise on every weight. Reading is plain: every byte of
both, in order, into one buffer of 16 MB. Comparing is `prune.differences.difference`: every weight
criterion's sums, norms and cosines of every neuron, and the distributions of all tensors. Both run
in turn (A B A B ...), each in a fresh process that does the same to a tiny pair first, so that
imports, compiling and thread pools do not count; once with the files in the kernel's cache and once
without (where the kernel lets go of them when asked to). Memory is the peak of what is resident
(VmHWM, mapped pages of files included) less what was before the work. Printed are medians over
repetitions, and medians of the ratios within one repetition. The ratio wants an idle machine:
comparing uses all cores, reading one. Linux only.

    goals: at most 2.5 times reading; at most 4 times the largest tensor in memory
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from statistics import median

import torch
from pruning_cost import LARGE, MET, TINY, make_checkpoint, middle, resident, shapes_of, timed

BUFFER, NEEDED = 2**24, 5e9
NOISE = 2e-3


def main(repetitions: int, parent: Path) -> None:
    free = shutil.disk_usage(parent).free
    print(f"{free / 1e9:.0f} GB are free at {parent}, {NEEDED / 1e9:.0f} GB are needed")
    if free < NEEDED:
        raise SystemExit("too little; give another --folder")
    total, largest = (2 * f(map(prod, shapes_of(LARGE).values())) for f in (sum, max))
    with tempfile.TemporaryDirectory(prefix="glulens-compare-cost-", dir=parent) as scratch:
        for sizes, name in ((LARGE, "large"), (TINY, "tiny")):
            make_checkpoint(Path(scratch, name), sizes)
            noisy(Path(scratch, name), Path(scratch, f"{name}-tuned"))
        os.sync()  # pages not written yet cannot be let go of
        print(f"two checkpoints of {total / 1e9:.2f} GB, bfloat16", end=", ")
        print(f"largest tensor {largest / 1e6:.0f} MB, {os.cpu_count()} cores", end=", ")
        print(f"{repetitions} repetitions")
        for cache in ("warm", "cold"):
            if cache == "cold" and not forgets(Path(scratch, "large")):
                print("cold: the kernel keeps files in its cache here, so not measured")
                continue
            part(cache, scratch, repetitions, 2 * total, largest)


def part(cache: str, scratch: str, repetitions: int, size: int, largest: int) -> None:
    """Measure and print, with the files in the cache or not."""
    ways = {"read": "reading", "compare": "comparing"}
    taken, worked, peaks = ({way: [] for way in ways} for _ in range(3))
    for way in list(ways) * repetitions:
        command = [sys.executable, __file__, "child", way, cache, scratch]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        numbers = done.stdout.split()[-3:]
        for kept, number in zip((taken, worked, peaks), numbers, strict=True):
            kept[way].append(float(number))
    ratio, peak = middle(taken["compare"], taken["read"]), max(peaks["compare"])
    print(f"{cache} cache (load average of the machine {os.getloadavg()[0]:.1f}):")
    for way, name in ways.items():
        seconds = median(taken[way])
        every = ", ".join(f"{one:.2f}" for one in taken[way])
        print(f"  {name:10s} {seconds:6.2f} s  {size / 1e9 / seconds:5.1f} GB/s  ({every})", end="")
        print(f"; processor {median(worked[way]):.2f} s")
    print(f"  ratio {ratio:.2f}; peak {peak / 1e6:.0f} MB, {peak / largest:.2f} x largest tensor")
    print(f"  goal at most 2.5 x reading: {MET[ratio <= 2.5]}")
    print(f"  goal memory at most 4 x largest tensor: {MET[peak <= 4 * largest]}")


def noisy(source: Path, target: Path) -> None:
    """A copy with noise on every weight, shard by shard."""
    from safetensors.torch import load_file, save_file

    target.mkdir()
    for file in sorted(source.iterdir()):
        if file.suffix != ".safetensors":
            shutil.copyfile(file, target / file.name)
            continue
        tensors = load_file(file)
        for tensor in tensors.values():
            tensor += NOISE * torch.empty_like(tensor).normal_()
        save_file(tensors, target / file.name, metadata={"format": "pt"})


def pairs(scratch: str, name: str) -> list[Path]:
    folders = (Path(scratch, name), Path(scratch, f"{name}-tuned"))
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def forget(files: list[Path]) -> None:
    """Ask the kernel to drop what it keeps of files."""
    for file in files:
        opened = os.open(file, os.O_RDONLY)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(opened)


def forgets(folder: Path) -> bool:
    """Whether it does so: reading a file anew must take longer."""
    files = sorted(folder.glob("*.safetensors"))[:1]
    read(files)
    warm, _ = timed(lambda: read(files))
    forget(files)
    cold, _ = timed(lambda: read(files))
    return cold > 1.5 * warm


def read(files: list[Path]) -> None:
    """All bytes, in order, into one buffer."""
    buffer = bytearray(BUFFER)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def compare(scratch: str, name: str) -> None:
    from glulens.prune.checkpoint import open_checkpoint
    from glulens.prune.differences import difference

    base, tuned = str(Path(scratch, name)), str(Path(scratch, f"{name}-tuned"))
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        found = difference(one, other)
    if not all((mlp.squares > 0).all() for mlp in found.mlps):
        raise SystemExit("neurons that did not change")


def child(way: str, cache: str, scratch: str) -> None:
    """Do it in this process; print seconds and bytes."""
    logging.disable(logging.INFO)
    large = pairs(scratch, "large")
    if way == "compare":
        compare(scratch, "tiny")
    else:
        read(pairs(scratch, "tiny"))
    if cache == "warm":
        read(large)
    else:
        forget(large)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    begun = time.process_time()
    seconds, _ = timed(lambda: compare(scratch, "large") if way == "compare" else read(large))
    print(seconds, time.process_time() - begun, resident("VmHWM") - before)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        raise SystemExit(child(*sys.argv[2:]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    main(given.repetitions, given.folder)
