"""What recording every neuron costs: TruthfulQA's answers, beside a bare forward and two peers.

    .venv/bin/python benchmarks/recording.py [--part a|b|memory|all] [--limit N] [--rounds 5]

Needs the official data, `transformer-lens` and `nnsight`. SmolLM2-135M-Instruct, float32, every
official answer to a question as a text. A round is a random draw of questions (`--peer-limit`, no
question twice while there are others); every contestant does all of it, and who begins changes from
round to round. Rates and ratios are medians over rounds; a ratio is of one round's two times, and a
range in brackets is its least and its largest. `--limit` takes the first questions of one random
order for everything. Counted are the texts' own tokens, not padding.

Everything from token ids on is timed, models are loaded and kernels compiled before. glulens always
does all that a job does by default: moments and histograms of both conditions, means of texts in a
file, paired statistics of the contrast, examples, samples.

a       The same length-sorted batches, nothing shared: glulens against Transformers' own forward
        with logits, nothing watched; without the head, too, for orientation.
            goal: at least the tokens a second of the forward with logits
b       End to end: glulens, sharing common beginnings, against TransformerLens (`run_with_cache`
        of every `hook_post`) and nnsight (a trace that saves every input of `down_proj`). Of what
        they give, each answer's mean and each condition's sum and sum of squares are taken, no
        more. They run the length-sorted batches of (a), as documented and with the head spared
        (`logits_to_keep=1` here; nnsight stops after the last layer), and prompt by prompt, as in
        tutorials, the first `--single` questions of the round. In the first round their
        statistics are compared with ours.
            goals: 2.5 times the answers a second of the better batched peer; 6 times either one
            prompt by prompt
memory  Fresh processes record some and all questions: peak memory beyond that of the loaded model.
            goal: flat in the number of tokens (at most a tenth more for all)
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

import glulens
from glulens.datasets.probe_sets import load_probe_set
from glulens.probes.engine import run
from glulens.probes.hooks import HooksEngine
from glulens.probes.jobs import Job
from glulens.probes.recorder import Recorded, record_job
from glulens.probes.tokens import Encoder
from glulens.probes.trees import Pass, plan

DATA = Path(os.environ.get("GLULENS_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
MODEL = "smollm2-135m-instruct"
MAX_TOKENS, SEED, ALL = 1024, 0, 817
MET = {True: "met", False: "missed"}
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "numba")


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
now: Callable[[], float] = time.perf_counter


@dataclass
class Questions:
    """All answers to some questions, as a job."""

    job: Job
    truth: Tensor
    """Of each text, whether its condition is the first."""

    @property
    def texts(self) -> int:
        return len(self.job.texts)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.job.texts))


def questions(encoder: Encoder) -> Callable[[Sequence[int]], Questions]:
    """What makes a job of questions, given by their numbers."""
    found = load_probe_set("truthfulqa", DATA)
    encoded = [encoder.text(text.text) for text in found.texts]
    numbers = {item: n for n, item in enumerate(dict.fromkeys(t.item for t in found.texts))}
    of: list[list[int]] = [[] for _ in numbers]
    for place, text in enumerate(found.texts):
        of[numbers[text.item]].append(place)
    pair = {numbers[found.texts[a].item]: (a, b) for a, b in found.pairs}

    def make(chosen: Sequence[int]) -> Questions:
        places = [place for n in chosen for place in of[n]]
        row = {place: k for k, place in enumerate(places)}
        conditions = {
            name: tuple(k for k, p in enumerate(places) if found.texts[p].condition == name)
            for name in found.conditions
        }
        pairs = tuple((row[pair[n][0]], row[pair[n][1]]) for n in chosen)
        job = Job(tuple(encoded[p] for p in places), conditions, {"misconception": pairs})
        truth = [found.texts[p].condition == found.conditions[0] for p in places]
        return Questions(job, torch.tensor(truth))

    return make


@dataclass
class Sums:
    """What a user of a peer would gather of the activations that it hands out."""

    means: dict[int, Tensor] = field(default_factory=dict)
    count: Any = 0
    total: Any = 0
    squares: Any = 0

    def take(self, acts: Sequence[Tensor], step: Pass, given: Questions) -> None:
        """Activations [row, column, neuron] of every layer; each row of the pass is a text."""
        texts = [given.job.texts[t] for t in step.texts]
        column = torch.arange(step.ids.shape[1])
        start = torch.tensor([text.start for text in texts])[:, None]
        end = torch.tensor([len(text) for text in texts])[:, None]
        row, position = ((column >= start) & (column < end)).nonzero(as_tuple=True)
        values = torch.cat([a[row, position] for a in acts], dim=1)
        counts = torch.bincount(row, minlength=len(texts))
        means = torch.zeros(len(texts), values.shape[1]).index_add(0, row, values)
        self.means |= dict(zip(step.texts, means / counts[:, None], strict=True))
        of_first = given.truth[list(step.texts)][row]
        for side, chosen in enumerate((of_first, ~of_first)):
            self.add(side, values[chosen])

    def take_one(self, acts: Sequence[Tensor], text: int, given: Questions) -> None:
        """The same for a single text."""
        start = given.job.texts[text].start
        values = torch.cat([a[0, start:] for a in acts], dim=1)
        self.means[text] = values.mean(0)
        self.add(0 if given.truth[text] else 1, values)

    def add(self, side: int, values: Tensor) -> None:
        if not isinstance(self.total, Tensor):
            self.count = torch.zeros(2, 1, dtype=torch.float64)
            self.total = torch.zeros(2, values.shape[1], dtype=torch.float64)
            self.squares = torch.zeros_like(self.total)
        self.count[side] += len(values)
        self.total[side] += values.sum(0)
        self.squares[side] += values.square().sum(0)


class Bench:
    """The models, and every contestant: each does all of its questions and returns what it has."""

    def __init__(self, peers: bool) -> None:
        opened = glulens.open_model(MODEL)
        self.model: Any = opened.model
        self.engine = HooksEngine(self.model)
        self.make = questions(Encoder(opened.tokenizer))
        self.layers = len(self.engine.widths)
        if not peers:
            return
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        # Wrapping rewrites a model: each peer has its own.
        theirs: Any = copy.deepcopy(opened.model)
        self.lens: Any = build_bridge_from_module(
            theirs, type(theirs).__name__, hf_config=theirs.config
        )
        import nnsight

        self.nnsight = nnsight
        self.traced: Any = nnsight.TransformersModel(
            copy.deepcopy(opened.model),
            task="text-generation",
            tokenizer=copy.deepcopy(opened.tokenizer),
            device=opened.device,
        )

    def passes(self, given: Questions) -> tuple[Pass, ...]:
        return plan(given.job.texts, MAX_TOKENS, share=False).passes

    def ours(self, given: Questions, share: bool = True) -> Recorded:
        with tempfile.TemporaryDirectory() as folder:
            found = record_job(
                self.engine, given.job, folder=Path(folder), max_tokens=MAX_TOKENS, share=share
            )
            assert found.means is not None
            found.means[0].close()
            return found

    def ours_unshared(self, given: Questions) -> Recorded:
        return self.ours(given, share=False)

    def bare(self, given: Questions) -> None:
        with torch.inference_mode():
            for step in self.passes(given):
                self.model(input_ids=torch.from_numpy(step.ids), use_cache=False)

    def headless(self, given: Questions) -> None:
        with torch.inference_mode():
            for step in self.passes(given):
                self.model.base_model(input_ids=torch.from_numpy(step.ids), use_cache=False)

    def shared_headless(self, given: Questions) -> None:
        with torch.inference_mode():
            known: Any = ((), None)
            for step in plan(given.job.texts, MAX_TOKENS).passes:
                if step.prefix and step.prefix != known[0]:
                    ids = torch.tensor([step.prefix])
                    known = step.prefix, self.engine.remember(ids)
                run(self.engine, step, past=known[1] if step.prefix else None)

    def cached(self, ids: Tensor, spare: bool = False) -> list[Tensor]:
        more: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1} if spare else {}
        _, cache = self.lens.run_with_cache(
            ids, names_filter=lambda name: name.endswith("mlp.hook_post"), **more
        )
        return [cache[f"blocks.{layer}.mlp.hook_post"] for layer in range(self.layers)]

    def trace(self, ids: Tensor, spare: bool = False) -> list[Tensor]:
        nnsight, model = self.nnsight, self.traced
        acts: list[Tensor] = []
        if spare:
            with model.trace(input_ids=ids, use_cache=False) as tracer:
                acts = nnsight.save([])
                for layer in model.model.layers:
                    acts.append(layer.mlp.down_proj.input)
                tracer.stop()
        else:
            with model.trace(input_ids=ids):
                acts = nnsight.save([])
                for layer in model.model.layers:
                    acts.append(layer.mlp.down_proj.input)
        return acts

    def batched(self, read: Callable[..., list[Tensor]], given: Questions, **more: Any) -> Sums:
        sums = Sums()
        with torch.inference_mode():
            for step in self.passes(given):
                sums.take(read(torch.from_numpy(step.ids), **more), step, given)
        return sums

    def one_by_one(self, read: Callable[..., list[Tensor]], given: Questions) -> Sums:
        sums = Sums()
        with torch.inference_mode():
            for text, encoded in enumerate(given.job.texts):
                sums.take_one(read(torch.tensor([encoded.ids])), text, given)
        return sums

    def lens_batched(self, given: Questions) -> Sums:
        return self.batched(self.cached, given)

    def lens_spared(self, given: Questions) -> Sums:
        return self.batched(self.cached, given, spare=True)

    def lens_single(self, given: Questions) -> Sums:
        return self.one_by_one(self.cached, given)

    def nnsight_batched(self, given: Questions) -> Sums:
        return self.batched(self.trace, given)

    def nnsight_spared(self, given: Questions) -> Sums:
        return self.batched(self.trace, given, spare=True)

    def nnsight_single(self, given: Questions) -> Sums:
        return self.one_by_one(self.trace, given)


@dataclass
class Taken:
    """Seconds of one contestant, and on how much, by round."""

    seconds: list[float] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def rates(self, of: str) -> np.ndarray:
        return np.array(getattr(self, of)) / np.array(self.seconds)


def compete(
    contestants: dict[str, Callable[[Questions], Any]],
    draws: Sequence[tuple[Questions, Questions]],
    check: Callable[[dict[str, Any]], Any] | None = None,
) -> dict[str, Taken]:
    """Everyone does every draw (those prompt by prompt its smaller one), beginning with another."""
    names = list(contestants)
    taken = {name: Taken() for name in names}
    for number, (whole, part) in enumerate(draws):
        found = {}
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            given = part if "by prompt" in name else whole
            begun = now()
            result = contestants[name](given)
            seconds = now() - begun
            taken[name].seconds.append(seconds)
            taken[name].texts.append(given.texts)
            taken[name].tokens.append(given.tokens)
            if given is whole and not number:
                found[name] = result
            del result
            line = f"  round {number + 1} of {len(draws)}: {name}, {seconds:.1f} s"
            print(line.ljust(78), end="\r", file=sys.stderr, flush=True)
        if check is not None and not number:
            check(found)
    print(" " * 78, end="\r", file=sys.stderr)
    return taken


def show(taken: dict[str, Taken], ours: str, of: str, what: str) -> dict[str, Any]:
    """Print a table; medians over rounds of rates, and of ours over each other's."""
    print(f"  {'':38s} {what + '/s':>10s}   ours is")
    found = {}
    for name, times in taken.items():
        rate, ratios = times.rates(of), taken[ours].rates(of) / times.rates(of)
        found[name] = {
            "rate": float(np.median(rate)),
            "ratio": float(np.median(ratios)),
            "ratios": ratios.tolist(),
            "seconds": times.seconds,
            of: getattr(times, of),
        }
        print(f"  {name:38s} {median(rate):10.1f}", end="")
        line = f"   {median(ratios):5.2f} x  [{min(ratios):.2f}, {max(ratios):.2f}]"
        print("" if name == ours else line)
    return found


def goal(what: str, ratio: float, least: float) -> None:
    print(f"  goal {what}: {ratio:.2f} x of {least:g} x, {MET[ratio >= least]}")


def part_a(bench: Bench, draws: Sequence[tuple[Questions, Questions]]) -> dict[str, Any]:
    contestants = {
        "glulens": bench.ours_unshared,
        "Transformers, with logits": bench.bare,
        "Transformers, without the head": bench.headless,
    }
    print("\n(a) the same length-sorted batches, nothing shared")
    found = show(compete(contestants, draws), "glulens", "tokens", "tokens")
    goal("bare forward with logits", found["Transformers, with logits"]["ratio"], 1)
    return found


def part_b(
    bench: Bench, draws: Sequence[tuple[Questions, Questions]], whole: Questions
) -> dict[str, Any]:
    contestants = {
        "glulens": bench.ours,
        "TransformerLens, batches": bench.lens_batched,
        "nnsight, batches": bench.nnsight_batched,
        "TransformerLens, batches, head spared": bench.lens_spared,
        "nnsight, batches, head spared": bench.nnsight_spared,
        "TransformerLens, prompt by prompt": bench.lens_single,
        "nnsight, prompt by prompt": bench.nnsight_single,
        "Transformers, shared, nothing watched": bench.shared_headless,
    }
    print("\n(b) end to end, common beginnings shared by glulens")
    found = show(compete(contestants, draws, agree), "glulens", "texts", "answers")
    for names, what, least in (
        (contestants.keys() - {"glulens"}, "batched peers, as documented", 2.5),
        (contestants.keys() - {"glulens"}, "batched peers, head spared", 2.5),
        (contestants.keys() - {"glulens"}, "peers prompt by prompt", 6),
    ):
        ending = {"as documented": "batches", "head spared": "head spared"}
        tail = ending.get(what.rpartition(", ")[2], "by prompt")
        goal(what, min(found[n]["ratio"] for n in names if n.endswith(tail)), least)
    begun = now()
    result = bench.ours(whole)
    seconds = now() - begun
    print(
        f"  glulens alone, all {len(whole.job.contrasts['misconception'])} questions: "
        f"{whole.texts} answers, {result.tokens[0]:,} tokens ({result.tokens[1]:,} run) in "
        f"{seconds:.1f} s, {whole.texts / seconds:.1f} answers/s"
    )
    found["glulens, all"] = {"seconds": seconds, "texts": whole.texts, "tokens": result.tokens}
    return found


def agree(found: dict[str, Any]) -> float:
    """Print and return the largest difference of peers' statistics from ours, relative to the
    RMS."""
    ours = found["glulens"]
    worst = 0.0
    for sums in found.values():
        if not isinstance(sums, Sums):
            continue
        mean, rms = sums.total / sums.count, (sums.squares / sums.count).sqrt()
        for side, mine in enumerate(ours.conditions.values()):
            scale = np.maximum(mine.rms, 1e-12)
            for a, b in ((mean[side], mine.mean), (rms[side], mine.rms)):
                worst = max(worst, float((np.abs(a.numpy() - b) / scale).max()))
    print(f"  means and RMS of conditions differ by at most {worst:.1e} of the RMS".ljust(78))
    return worst


def memory(sizes: Sequence[int], threads: int) -> dict[str, Any]:
    print("\n(memory) peak beyond the loaded model, in fresh processes")
    found = {}
    for size in sizes:
        command = [sys.executable, __file__, "--child", str(size), "--threads", str(threads)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        one = json.loads(done.stdout.splitlines()[-1])
        found[size] = one
        print(
            f"  {size:4d} questions, {one['tokens']:7,d} tokens: {one['peak'] / 1e6:7.1f} MB "
            f"(model and libraries {one['before'] / 1e6:.0f} MB, {one['seconds']:.1f} s)",
            flush=True,
        )
    few, many = found[sizes[0]], found[sizes[-1]]
    more = many["peak"] / few["peak"]
    print(f"  goal flat: {more:.2f} x, {MET[more <= 1.1]}", end="")
    growth = (many["peak"] - few["peak"]) / max(1, many["tokens"] - few["tokens"])
    print(f" ({growth:.0f} bytes a token)")
    return found


def child(size: int) -> None:
    """Record some questions in this process; print what it took."""
    bench = Bench(peers=False)
    order = np.random.default_rng(SEED).permutation(ALL)[:size]
    for weights in bench.model.parameters():  # files that are mapped are read when touched
        weights.sum()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    begun = time.perf_counter()
    found = bench.ours(bench.make(order.tolist()))
    seconds = time.perf_counter() - begun
    peak = resident("VmHWM") - before
    told = {"tokens": found.tokens[0], "before": before, "peak": peak, "seconds": seconds}
    print(json.dumps(told))


def resident(key: str) -> int:
    """Bytes, from the kernel."""
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("a", "b", "memory", "all"), default="all")
    parser.add_argument("--limit", type=int, default=ALL, help="questions (all 817)")
    parser.add_argument("--peer-limit", type=int, default=80, help="questions a round (80)")
    parser.add_argument("--single", type=int, default=10, help="prompt by prompt (10)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    global now
    now = CLOCKS[given.clock]
    torch.set_num_threads(given.threads)
    numba.set_num_threads(min(given.threads, numba.get_num_threads()))
    if given.child:
        child(given.child)
        return
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print(
        f"{MODEL}, float32, {given.threads} threads, {given.clock} time, batches of {MAX_TOKENS} "
        f"tokens; load {os.getloadavg()[0]:.1f}\n{given.rounds} rounds of "
        f"{min(given.peer_limit, given.limit)} questions, seed {SEED}"
    )
    told: dict[str, Any] = {"versions": versions, "options": vars(given) | {"json": None}}
    if given.part in ("a", "b", "all"):
        bench = Bench(peers=given.part != "a")
        order = np.random.default_rng(SEED).permutation(ALL)[: given.limit].tolist()
        few = min(given.peer_limit, len(order))
        turns = np.resize(order, few * given.rounds).reshape(given.rounds, few).tolist()
        draws = [(bench.make(turn), bench.make(turn[: given.single])) for turn in turns]
        warm = bench.make(order[:1])
        ways = [bench.ours, bench.ours_unshared, bench.bare, bench.headless]
        if given.part != "a":
            ways += [bench.lens_batched, bench.lens_spared, bench.lens_single]
            ways += [bench.nnsight_batched, bench.nnsight_spared, bench.nnsight_single]
        for way in ways:
            way(warm)
        if given.part != "b":
            told["a"] = part_a(bench, draws)
        if given.part != "a":
            told["b"] = part_b(bench, draws, bench.make(order))
    if given.part in ("memory", "all"):
        sizes = [max(1, given.limit // 4), given.limit]
        told["memory"] = memory(sizes, given.threads)
    told["load"] = os.getloadavg()
    if given.json:
        given.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
