"""One size of one task of `growth.py`, measured in this process.

    python benchmarks/growth_tasks.py TASK SIZE [--quick]

Prints one line of JSON: `size` in the task's own measure, seconds (the median of some runs after
one that does not count), bytes (peak above what was there before, of the first that counts).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
from peers_rows import data_folder, peak_of

WIDTH, HIDDEN, ITEMS = 8192, 2048, 817
TOKENS, LENGTH = 4096, 32
"""Of random texts: all, and of one."""


def timed(work: Callable[[], Any], runs: int) -> dict[str, float | None]:
    """Median seconds and the peak of the first."""
    taken, peak = [], None
    for number in range(runs):
        begun = time.perf_counter()
        if number:
            work()
        else:
            peak, _ = peak_of(work)
        taken.append(time.perf_counter() - begun)
    return {"seconds": median(taken), "bytes": peak}


def scoring(layers: int, quick: bool) -> dict[str, Any]:
    """Weights in memory, by every weight criterion."""
    import torch
    from transformers import LlamaConfig

    from glulens.prune.criteria import WEIGHT_CRITERIA
    from glulens.prune.expressions import evaluate
    from glulens.prune.layout import locate
    from glulens.prune.scoring import weigh

    width, hidden = (64, 32) if quick else (WIDTH, HIDDEN)
    shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    tensors = {
        f"model.layers.{layer}.mlp.{role}_proj.weight": torch.empty(
            shape, dtype=torch.bfloat16
        ).normal_(0, 0.02)
        for layer in range(layers)
        for role, shape in shapes.items()
    }
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=width, num_hidden_layers=layers,
        num_attention_heads=4,
    )  # fmt: skip
    layouts = locate({name: tuple(t.shape) for name, t in tensors.items()}, config)

    def work(some: Any = layouts) -> None:
        weighed = weigh(some, tensors.__getitem__)
        for name in WEIGHT_CRITERIA:
            evaluate(name, weighed)

    work(layouts[:1])
    sizes = {"size": 3 * layers * width * hidden, "neurons": layers * width}
    return sizes | timed(work, 1 if quick else 5)


def texts(questions: int, quick: bool) -> dict[str, Any]:
    """TruthfulQA's answers through SmolLM2."""
    import recording

    recording.DATA = data_folder()
    bench = recording.Bench(peers=False)
    order = np.random.default_rng(recording.SEED).permutation(recording.ALL)
    bench.ours(bench.make(order[-1:].tolist()))
    given = bench.make(order[:questions].tolist())
    found = timed(lambda: bench.ours(given), 1)
    return {"size": given.tokens, **found}


def llama(layers: int, hidden: int, width: int) -> Any:
    """A random one in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=hidden, intermediate_size=width,
        num_attention_heads=max(1, hidden // 64), num_key_value_heads=max(1, hidden // 256),
        head_dim=64, vocab_size=1000, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def recorded(model: Any, tokens: int) -> Callable[[], None]:
    """Recording random texts in two conditions."""
    from glulens.probes.hooks import HooksEngine
    from glulens.probes.jobs import Job
    from glulens.probes.recorder import record_job
    from glulens.probes.tokens import Encoded

    rng = np.random.default_rng(0)
    made = [
        Encoded(tuple(row), 8) for row in rng.integers(3, 1000, (tokens // LENGTH, LENGTH)).tolist()
    ]
    conditions = {side: tuple(range(k, len(made), 2)) for k, side in enumerate(("a", "b"))}
    pairs = tuple((k, k + 1) for k in range(0, len(made) - 1, 2))
    job, engine = Job(tuple(made), conditions, {"contrast": pairs}), HooksEngine(model)

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            found = record_job(engine, job, folder=Path(folder), share=False)
            if found.means is not None:
                found.means[0].close()

    return work


def weights(hidden: int, quick: bool) -> dict[str, Any]:
    """A Llama of four layers, four times as many neurons as its hidden size."""
    model = llama(4, hidden, 4 * hidden)
    size = sum(p.numel() for p in model.model.layers.parameters())
    recorded(model, 2 * LENGTH)()
    return {"size": size, **timed(recorded(model, 4 * LENGTH if quick else TOKENS), 1)}


def kept(layers: int, quick: bool) -> dict[str, Any]:
    """Many neurons and few weights, for the memory of the statistics."""
    width = 64 if quick else WIDTH
    recorded(llama(1, 64, 64), 2 * LENGTH)()
    model = llama(layers, 64, width)
    return {"size": layers * width, **timed(recorded(model, 512), 1)}


def effects(neurons: int, quick: bool) -> np.ndarray:
    """Item contrasts with a little that is common, float32 [questions, neurons]."""
    items = 44 if quick else ITEMS
    rng = np.random.default_rng(0)
    made = rng.standard_normal((items, neurons), np.float32)
    made += 0.1 * rng.standard_normal(neurons, np.float32)
    return made


def widths(layers: int, quick: bool) -> list[int]:
    return [64 if quick else WIDTH] * layers


def hypothesis(layers: int, quick: bool) -> dict[str, Any]:
    """One functional score of one property against all criteria."""
    from glulens.interp.localisation import associate
    from glulens.interp.localiser import Localiser
    from glulens.interp.resamples import Resamples

    def run(layers: int, quick: bool) -> None:
        rng, wide = np.random.default_rng(1), widths(layers, quick)
        given = [[rng.random(n) for n in wide] for _ in range(8)]
        localiser = Localiser({str(k): one for k, one in enumerate(given[:6])}, given[6:])
        contrasts = effects(sum(wide), quick)
        draws = [20, 20] if quick else [2000, 500]
        flips = Resamples.sign_flips(len(contrasts), draws[0], rng)
        boots = Resamples.bootstrap(len(contrasts), draws[1], rng)
        associate(localiser, "property", contrasts, "attribution", flips, boots, rng)

    run(1, True)
    return {"size": sum(widths(layers, quick)), **timed(lambda: run(layers, quick), 1)}


def calibration(layers: int, quick: bool) -> dict[str, Any]:
    """One halving: a planting of each of 12 kinds and 73 random orders, as an eighth of the default
    has."""
    from glulens.datasets.pairs import CONTROL, MISCONCEPTION
    from glulens.interp.calibrate import calibrate_contrasts

    def run(layers: int, quick: bool) -> None:
        wide = widths(layers, quick)
        found = effects(sum(wide), quick)
        items = tuple(map(str, range(len(found))))
        # The control's contrasts are others in truth; their number is what counts here.
        of: Any = SimpleNamespace(items=items, attribution=found)
        draws = (20, 20) if quick else (999, 200)
        calibrate_contrasts(
            {MISCONCEPTION: of, CONTROL: of}, wide, plantings=1, orders=1 if quick else 73,
            permutations=draws[0], bootstraps=draws[1],
        )  # fmt: skip

    run(1, True)
    return {"size": sum(widths(layers, quick)), **timed(lambda: run(layers, quick), 1)}


TASKS = {task.__name__: task for task in (scoring, texts, weights, kept, hypothesis, calibration)}

if __name__ == "__main__":
    read = argparse.ArgumentParser()
    read.add_argument("task", choices=TASKS)
    read.add_argument("size", type=int)
    read.add_argument("--quick", action="store_true")
    given = read.parse_args()
    print(json.dumps(TASKS[given.task](given.size, given.quick)))
