"""Multiple choice, beside lm-evaluation-harness' `hf` model on the very same requests.

    .venv/bin/python benchmarks/multiple_choice.py [--task truthfulqa|mmlu|both] [--questions N]

Needs `lm-eval` (the extra `bench`) and the official data. Both score with the same model object,
SmolLM2-135M-Instruct in float32, in one process: glulens, the harness, glulens again; glulens' two
times are averaged, so that a machine that slows down favours neither. The harness gets the batch
size at which it was fastest on a sample, and keeps its defaults (`logits_cache`: choices of one
token, and requests that are asked twice, cost it nothing extra).

An item is a question: in TruthfulQA all its MC1 and MC2 choices after the primer, in MMLU its four
letters after five shots. glulens runs a subject's shots once, so what it gains grows with the
questions of a subject: by default MMLU's subjects are whole (a subject has 246 questions on
average, half of them fewer than 173). That gain is smaller for a sample: also printed, with
glulens on 25 questions a subject, beside the harness' speed on all of them, which shares nothing
between questions.

    goals: 8 times the harness' items a second; log-likelihoods within 0.001
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glulens.datasets.multiple_choice import (
    LETTERS,
    TARGETS,
    Question,
    load_mmlu,
    load_truthfulqa,
)
from glulens.probes.choices import accuracy, encode_choices, floor, mc2, score_choices
from glulens.probes.hooks import HooksEngine
from glulens.probes.likelihood import layout
from glulens.probes.tokens import Encoder
from glulens.prune.models import open_model

DATA = Path(__file__).parents[2] / "shared" / "data"
SUBJECTS = ("anatomy", "college_chemistry", "us_foreign_policy", "machine_learning")
BATCHES = (8, 16, 32)
QUESTIONS, SAMPLE, FEW, CHECKED = 60, 32, 25, 20
MOST = 6e9  # bytes of logits in a batch of the harness, which holds them twice
MET = {True: "met", False: "missed"}


class Bench:
    """The model, and both ways of scoring with it."""

    def __init__(self) -> None:
        from lm_eval.models import huggingface

        harness: Any = huggingface.HFLM
        opened = open_model("smollm2-135m-instruct", dtype="float32")
        self.engine = HooksEngine(opened.model)
        config: Any = opened.model.config
        self.vocabulary = config.vocab_size
        self.encoder = Encoder(opened.tokenizer, max_length=config.max_position_embeddings)
        self.harness: Any = harness(
            pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=BATCHES[0]
        )

    def ours(self, questions: Sequence[Question]) -> list[np.ndarray]:
        return score_choices(self.engine, self.encoder, questions)

    def theirs(self, questions: Sequence[Question]) -> list[np.ndarray]:
        from lm_eval.api.instance import Instance

        pairs = [(q.context, choice) for q in questions for choice in q.choices]
        requests = [Instance("loglikelihood", {}, pair, k) for k, pair in enumerate(pairs)]
        found = np.array(
            [value for value, _ in self.harness.loglikelihood(requests, disable_tqdm=True)]
        )
        ends = np.cumsum([len(q.choices) for q in questions])
        return np.split(found, ends[:-1])

    def choose_batch(self, questions: Sequence[Question]) -> None:
        """Take the fastest batch size on a few questions."""
        taken: dict[int, float] = {}
        longest = max(len(self.encoder.passage(q.context)) for q in questions)
        for size in BATCHES:
            if taken and size * longest * self.vocabulary * 4 > MOST:
                print(f"  batch {size}: not tried, its logits would fill memory")
                continue
            self.harness.batch_size_per_gpu = size
            self.theirs(questions[:1])
            taken[size], _ = timed(self.theirs, questions)
        best = min(taken, key=taken.__getitem__)
        self.harness.batch_size_per_gpu = best
        tried = ", ".join(f"{size}: {seconds:.1f} s" for size, seconds in taken.items())
        print(f"  harness' batch size {best} ({len(questions)} questions: {tried})", flush=True)

    def compare(self, name: str, questions: Sequence[Question], items: int) -> tuple[float, ...]:
        """Print one line; seconds of ours and theirs, and the largest difference."""
        before, mine = timed(self.ours, questions)
        other, yours = timed(self.theirs, questions)
        after, _ = timed(self.ours, questions)
        both, gap = (before + after) / 2, differ(mine, yours)
        print(
            f"  {name:32s} {items:5d} items {items / both:8.2f} {items / other:8.2f} items/s",
            end="",
        )
        print(f"  {other / both:5.1f} x  (ours {before:.1f}, {after:.1f} s; theirs {other:.1f} s)")
        n_requests = sum(len(q.choices) for q in questions)
        pairs = dict.fromkeys((q.context, choice) for q in questions for choice in q.choices)
        texts = [encode_choices(self.encoder, context, [c])[0] for context, c in pairs]
        plan = layout(self.engine, texts, 1024, share=True, last=False)
        alone = sum(map(len, {text.ids[:-1] for text in texts}))
        print(
            f"    {n_requests:,} requests, {len(texts):,} different; tokens: {alone:,} without ",
            end="",
        )
        print(f"sharing, {plan.tokens_run:,} run by glulens; largest difference {gap:.1e} nats")
        means = [f"{float(np.mean(score(mine, questions))):.4f}" for score in (accuracy, mc2)]
        print(f"    accuracy {means[0]}, share of right choices {means[1]}, ", end="")
        print(f"floor {np.mean(floor(questions)):.4f}", flush=True)
        return both, other, gap


def timed(work: Any, *given: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work(*given)
    return time.perf_counter() - start, found


def differ(mine: Sequence[np.ndarray], yours: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(mine, yours, strict=True))


def level() -> None:
    """Touch the memory that the harness will need: its first use can cost five times as much."""
    torch.ones(int(2 * MOST / 4))


def sampled(questions: Sequence[Question], number: int | None, seed: int) -> list[Question]:
    """A random sample in the data's order, or all."""
    if number is None or number >= len(questions):
        return list(questions)
    chosen = np.random.default_rng(seed).choice(len(questions), number, replace=False)
    return [questions[k] for k in sorted(chosen)]


def by_harness(path: str, docs: dict[str, list[dict[str, Any]]], shots: int) -> list[Any]:
    """(context, continuation) as the harness' own task makes them of these documents."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    import datasets

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / path, resolve_func=False)
    config.pop("process_results", None)
    tables = {split: datasets.Dataset.from_list(rows) for split, rows in docs.items()}
    config |= {"custom_dataset": lambda **_: tables, "num_fewshot": shots, "metadata": {}}
    task = ConfigurableTask(config=config)
    task.build_all_requests()
    return [request.args for request in task.instances]


def check(name: str, theirs: Sequence[Any], ours: Iterable[Question]) -> None:
    made = [(question.context, choice) for question in ours for choice in question.choices]
    if list(theirs) != made:
        raise SystemExit(f"{name}: the harness makes other requests than glulens")
    print(f"  {name}: {len(made)} requests are those that the harness' own task makes")


def truthfulqa(bench: Bench, number: int | None, seed: int) -> bool:
    print("TruthfulQA, MC1 and MC2 after the primer" + HEADER)
    both = {target: load_truthfulqa(DATA, target).records for target in TARGETS}
    items = json.loads((DATA / "truthfulqa/v1/mc_task.json").read_text())[:CHECKED]
    docs = [{"question": item["question"]} for item in items]
    for target in TARGETS:
        for doc, item in zip(docs, items, strict=True):
            of = item[f"{target}_targets"]
            doc[f"{target}_targets"] = {"choices": list(of), "labels": list(of.values())}
        made = by_harness(f"truthfulqa/truthfulqa_{target}.yaml", {"validation": docs}, 0)
        check(f"truthfulqa_{target}", made, both[target][:CHECKED])
    # Both targets number the same items, so that the same draw takes the same questions.
    parts = [sampled(both[target], number or QUESTIONS, seed) for target in TARGETS]
    chosen = [question for pair in zip(*parts, strict=True) for question in pair]
    bench.choose_batch(chosen[: SAMPLE // 3])
    ours, theirs, gap = bench.compare("mc1 and mc2", chosen, len(parts[0]))
    return verdict("TruthfulQA", theirs / ours, gap)


def mmlu(bench: Bench, number: int | None, seed: int, subjects: Sequence[str]) -> bool:
    print(f"MMLU, 5 shots{HEADER}")
    asked = {name: load_mmlu(DATA, [name]).records for name in subjects}
    docs = {}
    for split in ("test", "dev"):
        with (DATA / f"mmlu/{split}/{subjects[0]}_{split}.csv").open(encoding="utf-8") as file:
            docs[split] = [
                {"question": row[0], "choices": row[1:5], "answer": LETTERS.index(row[5])}
                for row in list(csv.reader(file))[:CHECKED]
            ]
    made = by_harness(f"mmlu/default/mmlu_{subjects[0]}.yaml", docs, 5)
    check(f"mmlu_{subjects[0]}", made, asked[subjects[0]][:CHECKED])
    chosen = {name: sampled(records, number, seed) for name, records in asked.items()}
    bench.choose_batch(chosen[subjects[0]][:SAMPLE])
    found = [bench.compare(name, some, len(some)) for name, some in chosen.items()]
    ours, theirs, gaps = zip(*found, strict=True)
    n = sum(map(len, chosen.values()))
    print(f"  together {n / sum(ours):.2f} and {n / sum(theirs):.2f} items/s on {n} questions")
    if n > FEW * len(subjects):
        few = [sampled(records, FEW, seed) for records in chosen.values()]
        seconds = sum(timed(bench.ours, some)[0] for some in few)
        rate = sum(map(len, few)) / seconds
        print(f"  with {FEW} questions a subject: {rate:.2f} items/s, ", end="")
        print(f"{rate * sum(theirs) / n:.1f} x the harness' speed on all of them")
    return verdict("MMLU", sum(theirs) / sum(ours), max(gaps))


def verdict(name: str, ratio: float, gap: float) -> bool:
    print(f"goal {name} at least 8 x items/s: {ratio:.1f} x, {MET[ratio >= 8]}")
    print(f"goal {name} log-likelihoods within 1e-3: {gap:.1e}, {MET[gap <= 1e-3]}", flush=True)
    return ratio >= 8 and gap <= 1e-3


HEADER = " (items/s of glulens and of the harness, and their ratio)"

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", choices=("truthfulqa", "mmlu", "both"), default="both")
    parser.add_argument(
        "--questions", type=int, help="TruthfulQA: 60; MMLU, of each subject: all of them"
    )
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS, help=" ".join(SUBJECTS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    bench = Bench()
    print(f"SmolLM2-135M-Instruct, float32, {torch.get_num_threads()} threads, seed {given.seed}")
    level()
    bench.ours(load_truthfulqa(DATA, "mc1").records[:2])
    if given.task != "mmlu":
        truthfulqa(bench, given.questions, given.seed)
    if given.task != "truthfulqa":
        mmlu(bench, given.questions, given.seed, given.subjects)
