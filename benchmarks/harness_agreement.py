"""The harness' model `glulens` beside its own `hf` model on the very same requests.

    .venv/bin/python benchmarks/harness_agreement.py [--mc2 N] [--lambada N] [--mmlu N]
        [--subjects NAME ...]

Needs the extra `eval` and the official data. Both score with the same model object,
SmolLM2-135M-Instruct in float32, in one process: glulens, the harness, glulens again; glulens' two
times are averaged. The harness gets the batch size at which it was fastest on a few requests, and
keeps its defaults. Requests are made by the harness' own tasks (`harness_tasks.local_tasks`): the
first N questions of TruthfulQA MC2, of LAMBADA, and of MMLU's subjects (all by default) after five
shots.

    goals: log-likelihoods within 0.001, every greedy flag the same; 8 times the items a second on
    MC2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from glulens.interp.harness import GlulensLM, quiet
from glulens.interp.harness_tasks import local_tasks
from glulens.prune.models import open_model

DATA = Path(__file__).parents[2] / "shared" / "data"
BATCHES = (8, 16, 32)
SAMPLE = 32  # requests on which the harness' batch size is chosen
MOST = 2e9  # bytes of logits in a batch of the harness, which holds them twice
MET = {True: "met", False: "missed"}


def timed(score: Any, requests: Sequence[Any]) -> tuple[float, list[tuple[float, bool]]]:
    start = time.perf_counter()
    found = score(requests, disable_tqdm=True)
    return time.perf_counter() - start, found


def choose_batch(theirs: Any, requests: Sequence[Any], vocabulary: int) -> None:
    """Take the fastest batch size on a few requests."""
    taken: dict[int, float] = {}
    longest = max(len(theirs.tok_encode("".join(r.args))) for r in requests)
    for size in BATCHES:
        if taken and size * longest * vocabulary * 4 > MOST:
            continue
        theirs.batch_size_per_gpu = size
        theirs.loglikelihood(requests[:size], disable_tqdm=True)
        taken[size], _ = timed(theirs.loglikelihood, requests)
    theirs.batch_size_per_gpu = min(taken, key=taken.__getitem__)


def compare(ours: GlulensLM, theirs: Any, task: Any, n: int | None) -> tuple[float, float, int]:
    """Print a line; how often faster, the largest difference in nats, and greedy flags that are
    not the same."""
    with quiet():
        task.build_all_requests(limit=n)
    requests = list(task.instances)
    items = len({request.doc_id for request in requests})
    choose_batch(theirs, requests[:SAMPLE], ours.opened.model.config.vocab_size)
    before, mine = timed(ours.loglikelihood, requests)
    other, yours = timed(theirs.loglikelihood, requests)
    after, _ = timed(ours.loglikelihood, requests)
    both = (before + after) / 2
    gap = max(abs(a - b) for (a, _), (b, _) in zip(mine, yours, strict=True))
    flags = sum(a != b for (_, a), (_, b) in zip(mine, yours, strict=True))
    print(
        f"{task.config.task:24s} {items:5d} items {len(requests):6d} requests  "
        f"{items / both:7.2f} and {items / other:7.2f} items/s  {other / both:5.1f} x  "
        f"(ours {before:.1f}, {after:.1f} s; theirs {other:.1f} s, batch "
        f"{theirs.batch_size_per_gpu})  largest difference {gap:.1e} nats, {flags} flags differ",
        flush=True,
    )
    return other / both, gap, flags


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mc2", type=int, default=60)
    parser.add_argument("--lambada", type=int, default=100)
    parser.add_argument("--subjects", nargs="*", default=["anatomy"])
    parser.add_argument("--mmlu", type=int, help="of each subject; all of them")
    given = parser.parse_args()
    from lm_eval.models import huggingface

    hflm: Any = huggingface.HFLM
    opened = open_model("smollm2-135m-instruct", dtype="float32")
    ours = GlulensLM.of(opened)
    with quiet():
        theirs = hflm(pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=8)
    print(f"SmolLM2-135M-Instruct, float32, {torch.get_num_threads()} threads")
    torch.ones(int(2 * MOST / 4))  # the harness' first use of memory can cost five times as much
    names = {"truthfulqa_mc2": given.mc2, "lambada_openai": given.lambada}
    names |= {f"mmlu_{subject}": given.mmlu for subject in given.subjects}
    found = {
        name: compare(ours, theirs, local_tasks([name], DATA)[0], n)
        for name, n in names.items()
        if n != 0
    }
    gap, flags = (max(row[k] for row in found.values()) for k in (1, 2))
    print(f"goal log-likelihoods within 1e-3: {gap:.1e}, {MET[gap <= 1e-3]}")
    print(f"goal greedy flags the same: {flags} differ, {MET[flags == 0]}")
    if "truthfulqa_mc2" in found:
        ratio = found["truthfulqa_mc2"][0]
        print(f"goal MC2 at least 8 x items/s: {ratio:.1f} x, {MET[ratio >= 8]}")


if __name__ == "__main__":
    main()
