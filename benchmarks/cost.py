"""What a sweep costs, as arithmetic: operations, GPU-hours, bytes. See docs/cost.md.

    .venv/bin/python benchmarks/cost.py [--model NAME] [--ratios 8] [--controls 10]
    .venv/bin/python benchmarks/cost.py --measure FOLDER

The first runs nothing and prints tables from formulas; every assumption is an option. The second
counts tokens of the official data anew, with SmolLM2's tokenizer and the passes that glulens makes
(minutes, no model is run), and prints what `TASKS` below should hold.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """A Llama's shape, as its config gives it."""

    layers: int
    hidden: int
    width: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    item: int = 2
    """Bytes a weight."""

    @property
    def attention(self) -> int:
        """Weights of a layer's q, k, v and o."""
        return 2 * self.hidden * self.head * (self.heads + self.kv_heads)

    @property
    def mlp(self) -> int:
        """Weights of a layer's gate, up and down."""
        return 3 * self.hidden * self.width

    @property
    def weights(self) -> int:
        """Of the whole model; norms are too few to count."""
        ends = self.hidden * self.vocabulary * (1 if self.tied else 2)
        return self.layers * (self.attention + self.mlp) + ends

    def flops(self, tokens: float, scored: float, seen: float) -> float:
        """Operations of a forward: two for every weight and token, and attention's own.

        Args:
            tokens: that are run.
            scored: of these, tokens that the head is run on.
            seen: tokens that one attends to on average.
        """
        blocks = 2 * self.layers * (self.attention + self.mlp)
        attention = 4 * self.layers * self.heads * self.head * seen
        return tokens * (blocks + attention) + scored * 2 * self.hidden * self.vocabulary

    def narrower(self, fraction: float) -> Model:
        """With a fraction of every MLP cut."""
        return replace(self, width=self.width - math.floor(fraction * self.width + 1e-9))


MODELS = {
    "llama-3.1-70b": Model(80, 8192, 28672, 64, 8, 128, 128_256, False),
    "llama-3.1-8b": Model(32, 4096, 14336, 32, 8, 128, 128_256, False),
    "llama-3.2-3b": Model(28, 3072, 8192, 24, 8, 128, 128_256, True),
    "llama-3.2-1b": Model(16, 2048, 8192, 32, 8, 64, 128_256, True),
    "smollm2-135m": Model(30, 576, 1536, 9, 3, 64, 49_152, True, 4),
}


@dataclass(frozen=True)
class Task:
    """Tokens of a task, counted by `--measure`."""

    items: int
    alone: int
    """Tokens run when every different request is run by itself."""
    shared: int
    """Tokens run when common beginnings are run once."""
    scored: int
    """Tokens that the head is run on."""
    length: float
    """Mean tokens of a request."""


TASKS = {
    "mmlu, 5 shots": Task(14042, 10133122, 1479519, 14015, 723.0),
    "truthfulqa, mc1 and mc2": Task(1634, 1227891, 59507, 47237, 197.9),
}
GENERATED, NEW_TOKENS = 541, 1280
"""IFEval: prompts, and tokens after which the harness cuts an answer off."""


def fractions(ratios: int) -> list[float]:
    """Cuts in even steps up to 60 %, the intact model among the ratios."""
    return [0.6 * k / max(ratios - 1, 1) for k in range(ratios)]


def points(ratios: int, ways: int) -> list[float]:
    """The fraction cut at every point: the intact model once, every cut in so many ways."""
    return [0.0, *(f for f in fractions(ratios)[1:] for _ in range(ways))]


def hours(flops: float, given: argparse.Namespace) -> float:
    """GPU-hours."""
    return flops / (given.peak * 1e12 * given.utilisation) / 3600


def print_tables(name: str, given: argparse.Namespace) -> None:
    model = MODELS[name]
    cuts = points(given.ratios, given.criteria + given.controls)
    gib = model.weights * model.item / 1e9
    gpus = math.ceil(gib * 1.1 / given.memory)
    print(f"{name}: {model.weights / 1e9:.2f} billion weights, {gib:,.1f} GB; ", end="")
    print(f"MLPs are {model.layers * model.mlp / model.weights:.0%} of them")
    print(
        f"{len(cuts)} points: the intact model and {given.ratios - 1} cuts, each by "
        f"{given.criteria} criterion and {given.controls} controls"
    )
    print(
        f"GPU: {given.peak:g} TFLOP/s, {given.utilisation:.0%} of it reached, {given.memory:g} GB, "
        f"{given.bandwidth:g} TB/s; the model needs {gpus}\n"
    )
    print("| task | items a point | way | tokens a point | PFLOP a point | GPU-hours, all points |")
    print("|---|---:|---|---:|---:|---:|")
    for task, counted in TASKS.items():
        first = 0.0
        for way, tokens, narrow in (
            ("alone, masked", counted.alone, False),
            ("shared, masked", counted.shared, False),
            ("shared, narrower", counted.shared, True),
        ):
            each = [
                (model.narrower(f) if narrow else model).flops(
                    tokens, counted.scored, counted.length * (0.5 if way.startswith("alone") else 1)
                )
                for f in cuts
            ]
            total = hours(sum(each), given)
            first = first or total
            print(
                f"| {task} | {counted.items:,} | {way} | {tokens:,} | "
                f"{sum(each) / len(each) / 1e15:,.4g} | {total:,.4g}"
                + (f" ({first / total:.1f} x less) |" if total != first else " |")
            )
    print_generation(model, cuts, gpus, given)
    print_bytes(model, cuts, given)


def print_generation(
    model: Model, cuts: Sequence[float], gpus: int, given: argparse.Namespace
) -> None:
    """Writing is bound by memory: every token of a batch reads all weights once."""
    steps = math.ceil(GENERATED / given.batch) * NEW_TOKENS
    total = sum(
        steps * model.narrower(f).weights * model.item / (gpus * given.bandwidth * 1e12)
        for f in cuts
    )
    cache = 2 * model.layers * model.kv_heads * model.head * NEW_TOKENS * given.batch * model.item
    print(
        f"\nIFEval, no answer ending before {NEW_TOKENS} tokens: {steps:,} steps a point in "
        f"batches of {given.batch}, at best {total / 3600:,.1f} h on {gpus} GPUs = "
        f"{gpus * total / 3600:,.1f} GPU-hours for {len(cuts)} points; keys and values "
        f"{cache / 1e9:,.1f} GB"
    )


def print_bytes(model: Model, cuts: Sequence[float], given: argparse.Namespace) -> None:
    """What is not written, and what compensation takes."""
    written = sum(model.narrower(f).weights * model.item for f in cuts[1:])
    print(f"checkpoints that are not written: {len(cuts) - 1} with {written / 1e12:,.2f} TB")
    moments, tokens = 8 * model.width**2, given.calibration
    gathered = 2 * model.layers * model.width**2 * tokens
    solved = model.layers * sum(
        (k**3 / 3 + 2 * k**2 * model.hidden) for k in (model.narrower(f).width for f in cuts[1:])
    )
    print(
        f"compensation: {moments / 1e9:,.2f} GB of second moments an MLP, "
        f"{model.layers * moments / 1e9:,.0f} GB in all; {gathered / 1e15:,.3g} PFLOP (float64) to "
        f"gather them once from {tokens:,} tokens, {solved / 1e15:,.3g} to solve all cuts"
    )


def measure(folder: Path) -> None:
    """Count tokens of MMLU and TruthfulQA as glulens runs them."""
    from glulens.datasets.multiple_choice import (
        TARGETS,
        Question,
        load_mmlu,
        load_truthfulqa,
    )
    from glulens.probes.choices import encode_choices
    from glulens.probes.tokens import Encoder
    from glulens.probes.trees import plan
    from glulens.prune.models import open_model

    encoder = Encoder(open_model("smollm2-135m-instruct").tokenizer)
    # A letter is one token, which is not run: all four of a question run the same.
    asked = (
        ("mmlu, 5 shots", load_mmlu(folder).records, 1),
        (
            "truthfulqa, mc1 and mc2",
            [q for t in TARGETS for q in load_truthfulqa(folder, t).records],
            None,
        ),
    )
    for name, records, most in asked:
        groups: dict[str, list[Question]] = {}
        for question in records:
            # A subject's questions share its shots, MC1 and MC2 their questions.
            groups.setdefault(question.group.removesuffix("mc1").removesuffix("mc2"), []).append(
                question
            )
        alone = shared = scored = requests = 0
        for some in groups.values():
            texts = list(
                dict.fromkeys(
                    text
                    for question in some
                    for text in encode_choices(encoder, question.context, question.choices[:most])
                )
            )
            different = {text.ids[:-1] for text in texts}
            alone += sum(map(len, different))
            requests += len(different)
            shared += plan(texts, share=True, last=False).tokens_run
            scored += len({text.ids[:k] for text in texts for k in range(text.start, len(text))})
        items = len({q.id for q in records})
        print(
            f'"{name}": Task({items}, {alone}, {shared}, {scored}, {alone / requests:.1f}),',
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-70b")
    parser.add_argument("--ratios", type=int, default=8, help="the intact model's among them")
    parser.add_argument("--criteria", type=int, default=1)
    parser.add_argument("--controls", type=int, default=10, help="random cuts beside each")
    parser.add_argument("--peak", type=float, default=989.4, help="TFLOP/s, dense bfloat16 (H100)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share that is reached")
    parser.add_argument("--memory", type=float, default=80, help="GB a GPU")
    parser.add_argument("--bandwidth", type=float, default=3.35, help="TB/s a GPU")
    parser.add_argument("--batch", type=int, default=32, help="answers written together")
    parser.add_argument("--calibration", type=int, default=100_000, help="tokens")
    parser.add_argument("--measure", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
    else:
        print_tables(given.model, given)
