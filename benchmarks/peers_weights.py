"""Scoring and pruning beside optipfair, with the contestants of `pruning_cost.py`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import pruning_cost
import torch
from peers_rows import Row, Side, contest

SCORING, PRUNING = 7, 3
"""Rounds."""
NAMES = {"cp": "cp -r", "ours": "glulens", "peer": "optipfair, load-prune-save"}


def scoring(quick: bool) -> list[Row]:
    """All weight criteria beside optipfair's four and a sum of each matrix."""
    from glulens.prune.criteria import WEIGHT_CRITERIA

    sizes = pruning_cost.TINY if quick else pruning_cost.SCORED
    shapes = pruning_cost.shapes_of(sizes, ".mlp.")
    millions = sum(map(prod, shapes.values())) / 1e6
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        ways, first = pruning_cost.score_ways(pruning_cost.drawn(shapes, dtype), sizes)
        rounds = 1 if quick else SCORING
        # A lambda of its own for each: they do the same in every round.
        each = {name: lambda _, way=way: way() for name, way in ways.items()}
        taken, peaks, _ = contest(each, rounds)
        ours, peer, limit = (
            Side(name, taken[way], peaks[way])
            for way, name in (
                ("ours", "glulens"),
                ("peer", "optipfair's four"),
                ("sum", "a sum of each matrix"),
            )
        )
        what = f"score {millions:,.0f} million MLP weights, {str(dtype).removeprefix('torch.')}"
        note = (
            f"ours makes {len(WEIGHT_CRITERIA)} criteria, down included; the shared four agree to "
            f"a relative 1e-4; first call {first:.1f} s"
        )
        found.append(Row(what, "", ours, peer, limit, note=note).faster(4).within(3))
    return found


def pruning(quick: bool) -> list[Row]:
    """A checkpoint cut by `ppm` beside loading, pruning and saving it, and `cp -r`."""
    sizes = pruning_cost.TINY if quick else pruning_cost.LARGE
    rounds = 1 if quick else PRUNING
    parent = tempfile.gettempdir()
    free, needed = shutil.disk_usage(parent).free, 2e8 if quick else pruning_cost.NEEDED
    if free < needed:
        raise OSError(
            f"{needed / 1e9:.1f} GB are needed at {parent}, {free / 1e9:.1f} are free; "
            "set TMPDIR to another folder"
        )
    total, largest = (
        2 * of(map(prod, pruning_cost.shapes_of(sizes).values())) for of in (sum, max)
    )
    taken: dict[str, list[float]] = {way: [] for way in NAMES}
    peaks: dict[str, list[float]] = {way: [] for way in NAMES}
    with tempfile.TemporaryDirectory(prefix="glulens-bench-") as scratch:
        source, tiny, target = (Path(scratch, name) for name in ("source", "tiny", "target"))
        pruning_cost.make_checkpoint(tiny, pruning_cost.TINY)
        if quick:
            source = tiny
        else:
            pruning_cost.make_checkpoint(source, sizes)
        os.sync()
        for number in range(rounds):
            order = list(NAMES)
            for way in order[number % 3 :] + order[: number % 3]:
                seconds, peak = child(way, source, target, tiny)
                taken[way].append(seconds)
                peaks[way].append(peak)
                check(way, target, sizes["intermediate_size"])
                shutil.rmtree(target)
    ours, peer, limit = (
        Side(NAMES[way], taken[way], sorted(peaks[way])[len(peaks[way]) // 2])
        for way in ("ours", "peer", "cp")
    )
    what = f"prune a checkpoint of {total / 1e9:.2g} GB, 40 % by ppm"
    row = Row(what, "", ours, peer, limit).within(2.5)
    assert ours.peak is not None
    row.below(f"peak over the largest tensor of {largest / 1e6:.0f} MB", ours.peak / largest, 3)
    return [row]


def child(way: str, source: Path, target: Path, tiny: Path) -> tuple[float, float]:
    """Seconds and peak bytes of one way, in a process that did the same to a tiny one first."""
    script = str(pruning_cost.__file__)
    command = [sys.executable, script, "child", way, str(source), str(target), str(tiny)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def check(way: str, target: Path, width: int) -> None:
    """What was made must have the width that was asked for."""
    left = json.loads((target / "config.json").read_text())["intermediate_size"]
    wanted = width - (way != "cp") * int(pruning_cost.FRACTION * width)
    if left != wanted:
        raise RuntimeError(f"{NAMES[way]} left {left} neurons, {wanted} were to be left")
