"""What scoring and pruning cost, beside the least that they could and beside optipfair.

    .venv/bin/python benchmarks/pruning_cost.py scores [--repetitions 7]
    .venv/bin/python benchmarks/pruning_cost.py streaming [--repetitions 3] [--folder DIR]

Everything is timed in turn (A B C A B C ...); printed are medians over repetitions, and medians of
the ratios within one repetition. Linux only.

`scores`: the MLPs of a synthetic Llama in memory, in bfloat16 and in float32. Beside a sum of each
matrix: all weight criteria from one reading; and optipfair's four, which do not look at down.

    goals: at most 3 times the sum; optipfair's four take at least 4 times as long

`streaming`: a synthetic sharded checkpoint of more than 2 GB, made in a temporary folder of DIR
(8 GB must be free), of whose neurons 40 % are cut by `ppm`. Beside `cp -r`: glulens's
`prune_checkpoint`; and load, prune with optipfair, save. The last two run in fresh processes that
do the same to a tiny checkpoint first, so that imports, compiling and thread pools do not count.
Memory is the peak of what is resident (VmHWM) less what was before the work.

    goals: at most 2.5 times `cp -r`; at most 3 times the largest tensor in memory
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}
LARGE = HEADS | {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192}
SCORED = LARGE | {"num_hidden_layers": 8}
TINY = LARGE | {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512}
FRACTION, SHARD, NEEDED = 0.4, 500e6, 8e9
MET = {True: "met", False: "missed"}


def shapes_of(sizes: dict[str, int], within: str = "") -> Shapes:
    """Of all tensors with `within` in their names."""
    hidden, width, vocab = (sizes[f"{of}_size"] for of in ("hidden", "intermediate", "vocab"))
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    one: Shapes = {f"self_attn.{role}_proj": (hidden, hidden) for role in "qo"}
    one |= {f"self_attn.{role}_proj": (keys, hidden) for role in "kv"}
    one |= {f"mlp.{role}_proj": (width, hidden) for role in ("gate", "up")}
    one |= {f"{place}_layernorm": (hidden,) for place in ("input", "post_attention")}
    one |= {"mlp.down_proj": (hidden, width)}
    ends: Shapes = {f"{n}.weight": (vocab, hidden) for n in ("model.embed_tokens", "lm_head")}
    layers = range(sizes["num_hidden_layers"])
    every = ends | {f"model.layers.{i}.{n}.weight": s for i in layers for n, s in one.items()}
    every["model.norm.weight"] = (hidden,)
    return {name: shape for name, shape in every.items() if within in name}


def drawn(shapes: Shapes, dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: torch.empty(s, dtype=dtype).normal_(0, 0.02) for n, s in shapes.items()}


def middle(numerators: list[float], denominators: list[float]) -> float:
    """Median of the ratios within one repetition."""
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start, found = time.perf_counter(), work()
    return time.perf_counter() - start, found


def scores(repetitions: int) -> None:
    shapes, ratios = shapes_of(SCORED, ".mlp."), {}
    print(f"{len(shapes)} matrices, {sum(map(prod, shapes.values())) / 1e6:.0f} million", end=" ")
    print(f"weights, {torch.get_num_threads()} threads, {repetitions} repetitions")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["NUMBA_CACHE_DIR"] = cache  # so that compiling is timed, not reading a cache
        for dtype in (torch.bfloat16, torch.float32):
            ratios[dtype] = score_one(drawn(shapes, dtype), dtype, repetitions)
    for dtype, (over_sum, peer_over) in ratios.items():
        print(f"goal all criteria at most 3 x sum, {dtype}: {MET[over_sum <= 3]}")
        print(f"goal optipfair's four at least 4 x all criteria, {dtype}: {MET[peer_over >= 4]}")


def score_ways(
    tensors: dict[str, Tensor], sizes: dict[str, int]
) -> tuple[dict[str, Callable[[], Any]], float]:
    """A sum of each matrix, our criteria and optipfair's, and seconds of our first call.

    Raises:
        AssertionError: ours and theirs do not agree to a relative 1e-4.
    """
    from optipfair.pruning.mlp_glu import IMPORTANCE_FUNCTIONS
    from transformers import LlamaConfig

    from glulens.prune.criteria import WEIGHT_CRITERIA
    from glulens.prune.expressions import evaluate
    from glulens.prune.layout import locate
    from glulens.prune.scoring import weigh

    peers = {name: IMPORTANCE_FUNCTIONS[name.upper()] for name in ("ppm", "vow", "pon", "l2")}
    layouts = locate({n: tuple(t.shape) for n, t in tensors.items()}, LlamaConfig(**sizes))

    def ours() -> Any:
        weighed = weigh(layouts, tensors.__getitem__)
        return {name: evaluate(name, weighed) for name in WEIGHT_CRITERIA}

    def peer() -> Any:
        found: dict[str, list[Tensor]] = {name: [] for name in peers}
        for layout in layouts:
            # optipfair does this (and converts down) at every call; once a layer is in its favour.
            gate, up = (tensors[layout.slots[role].tensor].float() for role in ("gate", "up"))
            for name, criterion in peers.items():
                found[name].append(criterion(gate, up))
        return found

    first, mine = timed(ours)
    for name, theirs in peer().items():
        for a, b in zip(mine[name], theirs, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=0)
    ways = {"sum": lambda: [t.sum() for t in tensors.values()], "ours": ours, "peer": peer}
    return ways, first


def score_one(tensors: dict[str, Tensor], dtype: Any, repetitions: int) -> tuple[float, float]:
    """Ratios of all criteria to the sum, and of optipfair's four to all criteria."""
    from glulens.prune.criteria import WEIGHT_CRITERIA

    ways, first = score_ways(tensors, SCORED)
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(repetitions + 1):  # the first warms up and does not count
        for way, work in ways.items():
            taken[way] += [timed(work)[0]] * (repetition > 0)
    over_sum, peer_over = middle(taken["ours"], taken["sum"]), middle(taken["peer"], taken["ours"])
    print(f"{dtype}: ours agree with optipfair's four to a relative 1e-4")
    print(f"  sum of each matrix     {median(taken['sum']):7.3f} s")
    print(f"  all {len(WEIGHT_CRITERIA)} weight criteria  {median(taken['ours']):7.3f} s", end="")
    print(f"  {over_sum:5.2f} x sum  (first call, with compiling: {first:.1f} s)")
    print(f"  optipfair's four       {median(taken['peer']):7.3f} s  {peer_over:5.2f} x ours")
    return over_sum, peer_over


def make_checkpoint(folder: Path, sizes: dict[str, int]) -> int:
    """Write shard by shard, without a model; returns the number of shards."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    shards: list[Shapes] = [{}]
    for name, shape in shapes_of(sizes).items():
        if 2 * (sum(map(prod, shards[-1].values())) + prod(shape)) > SHARD:
            shards.append({})
        shards[-1][name] = shape
    homes = {}
    folder.mkdir()
    for number, shapes in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(drawn(shapes, torch.bfloat16), folder / file, metadata={"format": "pt"})
        homes |= dict.fromkeys(shapes, file)
    index = {"metadata": {}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    kind: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    LlamaConfig(**sizes, **kind, dtype="bfloat16").save_pretrained(folder)
    return len(shards)


def streaming(repetitions: int, parent: Path) -> None:
    free = shutil.disk_usage(parent).free
    print(f"{free / 1e9:.0f} GB are free at {parent}, {NEEDED / 1e9:.0f} GB are needed")
    if free < NEEDED:
        raise SystemExit("too little; give another --folder")
    ways = {"cp": "cp -r", "ours": "glulens", "peer": "load-prune-save"}
    taken, peaks = ({way: [] for way in ways} for _ in range(2))
    with tempfile.TemporaryDirectory(prefix="glulens-pruning-cost-", dir=parent) as scratch:
        source, tiny, target = (str(Path(scratch, name)) for name in ("source", "tiny", "target"))
        shards, _ = make_checkpoint(Path(source), LARGE), make_checkpoint(Path(tiny), TINY)
        for way in list(ways) * repetitions:
            command = [sys.executable, __file__, "child", way, source, target, tiny]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            for kept, number in zip((taken, peaks), done.stdout.split()[-2:], strict=True):
                kept[way].append(float(number))
            width = json.loads(Path(target, "config.json").read_text())["intermediate_size"]
            if width != 8192 - (way != "cp") * int(FRACTION * 8192):
                raise SystemExit(f"{way} left {width} neurons")
            shutil.rmtree(target)
    total, largest = (2 * f(map(prod, shapes_of(LARGE).values())) for f in (sum, max))
    of_mlps = 2 * max(map(prod, shapes_of(LARGE, ".mlp.").values()))
    print(f"checkpoint of {total / 1e9:.2f} GB in {shards} shards, bfloat16", end=", ")
    print(f"{FRACTION:.0%} of the neurons cut, {os.cpu_count()} cores, {repetitions} repetitions")
    print(f"largest tensor {largest / 1e6:.0f} MB, largest of the MLPs {of_mlps / 1e6:.0f} MB")
    print(f"cp -r copied {total / 1e9 / median(taken['cp']):.1f} GB/s", end="; ")
    print("peak: above the warmed-up process, mapped pages of files included\n" + " " * 17, end="")
    print("seconds    x cp  x ours  peak MB  x largest  x largest of MLPs")
    for way, name in ways.items():
        over_cp, over_ours = (middle(taken[way], taken[other]) for other in ("cp", "ours"))
        peak = median(peaks[way])
        memory = f"{peak / 1e6:8.0f} {peak / largest:10.2f} {peak / of_mlps:18.2f}"
        print(f"{name:15s} {median(taken[way]):8.2f} {over_cp:7.2f} {over_ours:7.2f}", end=" ")
        print("       -          -                  -" if way == "cp" else memory)
    print(f"goal glulens at most 2.5 x cp -r: {MET[middle(taken['ours'], taken['cp']) <= 2.5]}")
    print(f"goal memory at most 3 x largest tensor: {MET[median(peaks['ours']) <= 3 * largest]}")


def child(way: str, source: str, target: str, tiny: str) -> None:
    """Do it in this process; print seconds and bytes."""
    logging.disable(logging.INFO)
    work = {"cp": copy, "ours": ours, "peer": peer}[way]
    work(tiny, target)
    shutil.rmtree(target)
    os.sync()  # dirty pages of what was before do not count
    if source != tiny:
        level(Path(target).parent)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    seconds, _ = timed(lambda: work(source, target))
    print(seconds, resident("VmHWM") - before)


def level(folder: Path) -> None:
    """Write 3 GB and delete them: the same free memory for everyone.

    In a virtual machine the first use of memory that the host has taken back can cost five times
    what writing to it costs, and whoever comes first after a pause pays.
    """
    ones, file = bytes(2**26), folder / "level"
    with file.open("wb") as opened:
        for _ in range(45):
            opened.write(ones)
    file.unlink()


def copy(source: str, target: str) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)


def ours(source: str, target: str) -> None:
    from glulens.prune import Budget, prune_checkpoint

    prune_checkpoint(source, target, criterion="ppm", budget=Budget(fraction=FRACTION))


def peer(source: str, target: str) -> None:
    from optipfair.pruning.mlp_glu import prune_model_mlp_glu
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    prune_model_mlp_glu(model, "PPM", pruning_percentage=100 * FRACTION, show_progress=False)
    model.save_pretrained(target)


def resident(key: str) -> int:
    """Bytes, from the kernel."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        raise SystemExit(child(*sys.argv[2:]))
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("scores", "streaming"))
    parser.add_argument("--repetitions", type=int, help="7 for scores, 3 for streaming")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    given = parser.parse_args()
    if given.part == "scores":
        scores(given.repetitions or 7)
    else:
        streaming(given.repetitions or 3, given.folder)
