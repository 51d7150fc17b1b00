"""What 300 exact ablations cost: the shared-prefix engine against one masked run a set.

    python benchmarks/ablation_engine.py [FOLDER] [--items N] [--naive-sets N] [--markdown FILE]

SmolLM2-135M-Instruct, 30 layers x 10 tenths of `ppm`: every set is a tenth of one layer's neurons.
Items are TruthfulQA questions of FOLDER (`../shared/data` beside the checkout, or
GLULENS_TEST_DATA), each with its best true answer and the false one nearest in length: two texts.

`naive` masks a set and scores every text in a row of its own; `naive, shared` masks it and runs
common beginnings once. Both go through the sets in one random order, side by side. With
--naive-sets below 300 only so many of them are timed, and the rest extrapolated: the line says so.
All 300 on 100 items take about an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import glulens as gl
from glulens.datasets.pairs import draw, misconception_pair
from glulens.datasets.truthfulqa import load_misconceptions
from glulens.probes.ablation import ablate
from glulens.probes.contrasts import encode_pairs
from glulens.probes.engine import make_engine
from glulens.probes.likelihood import loglikelihoods
from glulens.probes.tokens import Encoder
from glulens.progress import on_stderr
from glulens.prune import NeuronSet, find_mlps, masked, score_mlps

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
PARTS = 10


def tenths(scores: list[np.ndarray]) -> list[NeuronSet]:
    """Every layer's neurons in ten sets, from the lowest scores to the highest."""
    widths = tuple(map(len, scores))
    found = []
    for layer, values in enumerate(scores):
        for part in np.array_split(np.argsort(values, kind="stable"), PARTS):
            chosen = [part if at == layer else np.empty(0, int) for at in range(len(widths))]
            found.append(NeuronSet(widths, tuple(chosen)))
    return found


def clocks() -> np.ndarray:
    """Seconds on the wall and of the CPU. Where others are at work, the second is to be trusted,
    and OMP_NUM_THREADS=1 to be set: threads that wait for each other count as busy."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("folder", type=Path, nargs="?",
                      default=Path(os.environ.get("GLULENS_TEST_DATA", BESIDE)))  # fmt: skip
    read.add_argument("--items", type=int, default=100)
    read.add_argument("--naive-sets", type=int, default=None, help="default: all")
    read.add_argument("--max-tokens", type=int, default=1024)
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--markdown", type=Path, help="append the table to this file")
    given = read.parse_args()

    opened = gl.open_model("smollm2-135m-instruct")
    engine, encoder = make_engine(opened), Encoder(opened.tokenizer)
    records = draw(load_misconceptions(given.folder).records, given.items, given.seed)
    texts = encode_pairs(encoder, [misconception_pair(record) for record in records])
    sets = tenths(score_mlps(find_mlps(opened.model), ["ppm"])["ppm"])
    order = np.random.default_rng(given.seed).permutation(len(sets))
    timed = order[: len(sets) if given.naive_sets is None else given.naive_sets]

    loglikelihoods(engine, texts[:8])  # the first pass of a process pays for more than itself
    with on_stderr() as progress:
        begin = clocks()
        found = ablate(engine, texts, sets, max_tokens=given.max_tokens, progress=progress)
        ours = clocks() - begin
        taken = {False: np.zeros(2), True: np.zeros(2)}
        largest = {False: 0.0, True: 0.0}
        for done, number in enumerate(timed):
            for share in (False, True):
                begin = clocks()
                with masked(opened.model, sets[number]):
                    naive = loglikelihoods(engine, texts, share=share, max_tokens=given.max_tokens)
                taken[share] += clocks() - begin
                off = float(np.abs(naive - found.loglikelihood[number]).max())
                largest[share] = max(largest[share], off)
            progress("naive sets", done + 1, len(timed))

    part = len(timed) / len(sets)
    tokens = sum(map(len, texts))
    effect = float(np.abs(found.lost).max())
    lines = [
        f"SmolLM2-135M-Instruct, float32, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads: {len(sets)} sets "
        f"({len(engine.widths)} layers x {PARTS} tenths of `ppm`), {len(records)} items "
        f"({len(texts)} texts, {tokens:,} tokens)",
        "",
        "| way | seconds | CPU seconds | ours takes | of the CPU | largest difference in nats |",
        "|---|---|---|---|---|---|",
        f"| shared-prefix engine | {ours[0]:,.0f} | {ours[1]:,.0f} | | | |",
    ]
    for share, name in ((False, "naive"), (True, "naive, common beginnings shared")):
        whole = taken[share] / part
        wall, cpu = ours / whole
        lines.append(
            f"| {name} | {whole[0]:,.0f} | {whole[1]:,.0f} | {wall:.2f} x | {cpu:.2f} x "
            f"| {largest[share]:.1e} |"
        )
    lines += ["", f"The largest effect of a set on a text is {effect:.1f} nats."]
    if part < 1:
        lines += [
            "",
            f"Naive seconds are extrapolated from {len(timed)} random sets of {len(sets)}.",
        ]
    print("\n".join(lines), flush=True)
    if given.markdown:
        with given.markdown.open("a", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
