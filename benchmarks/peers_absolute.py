"""Absolute times at Llama-3.2-1B's shape, randomly initialised, in bfloat16 on a CUDA device.

The code is the same on every device; without CUDA only the toy shape of `--quick` is run. Token ids
are random, so neither tokenizer nor data is needed: texts are shaped like TruthfulQA's, answers of
some tokens after a question that they share. Nothing that depends on what words mean is measured.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers_choices import follow
from peers_rows import Row, Side, contest

SHAPE = {
    "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256,
}  # fmt: skip
TOY = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 200,
}  # fmt: skip
QUESTIONS, ANSWERS, PRIMER = 817, 7, 150
ROUNDS, MAX_TOKENS, ATTRIBUTED = 5, 16_384, 200
FRACTION = 0.4


def rows(quick: bool) -> list[Row]:
    """All rows; one that says that they are missing where there is no CUDA device."""
    cuda = torch.cuda.is_available()
    if not cuda and not quick:
        what = "absolute times, Llama-3.2-1B's shape in bfloat16"
        return [Row(what, failed="these rows are missing: no CUDA device")]
    device = torch.device("cuda" if cuda else "cpu")
    return Absolute(device, TOY if quick else SHAPE, quick).rows()


class Absolute:
    """A random model on a device, random texts, and what is done with them."""

    def __init__(self, device: torch.device, shape: dict[str, int], quick: bool) -> None:
        from transformers import AutoModelForCausalLM, LlamaConfig

        from glulens.probes.hooks import HooksEngine

        self.device, self.rounds = device, 1 if quick else ROUNDS
        self.max_tokens = 256 if quick else MAX_TOKENS
        torch.manual_seed(0)
        settings: dict[str, Any] = {"max_position_embeddings": 1024}
        with device:
            made: Any = AutoModelForCausalLM.from_config(
                LlamaConfig(**shape, **settings), dtype=torch.bfloat16
            )
        self.model: Any = made.eval().requires_grad_(False)
        self.engine = HooksEngine(self.model)
        rng = np.random.default_rng(0)
        self.vocabulary = shape["vocab_size"]
        self.questions = [self.draw(rng, 12, 30) for _ in range(4 if quick else QUESTIONS)]
        self.answers = [[self.draw(rng, 6, 20) for _ in range(ANSWERS)] for _ in self.questions]
        self.primer = self.draw(rng, 8 if quick else PRIMER)
        self.name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, toy"

    def draw(self, rng: Any, least: int, most: int | None = None) -> tuple[int, ...]:
        """Random ids."""
        n = least if most is None else int(rng.integers(least, most))
        return tuple(rng.integers(3, self.vocabulary, n).tolist())

    def texts(self, before: tuple[int, ...] = ()) -> list[Any]:
        """Every answer after its question."""
        from glulens.probes.tokens import Encoded

        return [
            Encoded(before + question + answer, len(before + question))
            for question, some in zip(self.questions, self.answers, strict=True)
            for answer in some
        ]

    def rows(self) -> list[Row]:
        """Times of every job."""
        return [*self.recording(), *self.choices(), *self.attribution(), *self.weights()]

    def timed(
        self, what: str, unit: str, n: int, ours: Callable[[], Any],
        limit: tuple[str, Callable[[], Any]] | None = None,
    ) -> Row:  # fmt: skip
        """A row of ours and, if given, its limit."""
        ways = {"glulens": self.peaking(ours)}
        if limit:
            ways[limit[0]] = self.peaking(limit[1])
        taken, host, given = contest(ways, self.rounds, settle=self.settle)
        sides = {
            name: Side(
                name,
                [s / n for s in seconds],
                given[name] if self.device.type == "cuda" else host[name],
            )
            for name, seconds in taken.items()
        }
        beside = sides[limit[0]] if limit else None
        note = "peaks are of the device's memory" if self.device.type == "cuda" else ""
        return Row(f"{self.name}: {what}", unit, sides["glulens"], None, beside, note=note)

    def peaking(self, work: Callable[[], Any]) -> Callable[[int], Any]:
        """The work; on a GPU it gives the bytes that it held at most beyond what was there."""

        def way(_: int) -> Any:
            if self.device.type != "cuda":
                work()
                return None
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            work()
            return torch.cuda.max_memory_allocated(self.device) - before

        return way

    def settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def recording(self) -> list[Row]:
        from glulens.probes.jobs import Job
        from glulens.probes.recorder import record_job

        texts = self.texts()
        pairs = tuple((k, k + 1) for k in range(0, len(texts), ANSWERS))
        sides = {side: tuple(range(k, len(texts), 2)) for k, side in enumerate(("a", "b"))}
        job = Job(tuple(texts), sides, {"contrast": pairs})

        def ours(share: bool) -> None:
            with tempfile.TemporaryDirectory() as folder:
                found = record_job(
                    self.engine, job, folder=Path(folder), max_tokens=self.max_tokens, share=share
                )
                if found.means is not None:
                    found.means[0].close()

        def bare(share: bool) -> None:
            with torch.inference_mode():
                follow(self.engine, texts, self.max_tokens, share=share)

        return [
            self.timed(
                f"record {len(texts):,} answers, {words}", "answers", len(texts),
                lambda share=share: ours(share),
                ("the same passes, nothing watched", lambda share=share: bare(share)),
            )
            for share, words in ((True, "beginnings shared"), (False, "nothing shared"))
        ]  # fmt: skip

    def choices(self) -> list[Row]:
        from glulens.probes.likelihood import loglikelihoods

        texts = self.texts(self.primer)

        def bare() -> None:
            with torch.inference_mode():
                follow(self.engine, texts, self.max_tokens)

        return [
            self.timed(
                f"multiple choice, {ANSWERS} choices after a primer of {len(self.primer)} tokens",
                "items", len(self.questions),
                lambda: loglikelihoods(self.engine, texts, max_tokens=self.max_tokens),
                ("the same passes, no head, nothing read", bare),
            )
        ]  # fmt: skip

    def attribution(self) -> list[Row]:
        from glulens.probes.attribution import gradient_x_activation

        texts = self.texts()[:ATTRIBUTED]
        # A backward holds the activations of all layers.
        size = self.max_tokens // 4

        def bare() -> None:
            with torch.inference_mode():
                follow(self.engine, texts, size, share=False)

        return [
            self.timed(
                "gradient x activation of every neuron", "texts", len(texts),
                lambda: gradient_x_activation(self.engine, texts, max_tokens=size),
                ("a forward of each text, no head", bare),
            )
        ]  # fmt: skip

    def weights(self) -> list[Row]:
        from glulens.prune import Budget, choose, find_mlps, resize, score_mlps
        from glulens.prune.criteria import WEIGHT_CRITERIA

        mlps = find_mlps(self.model)
        matrices = [
            self.model.get_parameter(slot.tensor)
            for mlp in mlps
            for slot in mlp.layout.slots.values()
        ]

        def total() -> None:
            for matrix in matrices:
                matrix.sum()
            self.settle()

        def scoring() -> Any:
            return score_mlps(mlps, list(WEIGHT_CRITERIA))

        def cut(model: Any) -> None:
            scores = score_mlps(find_mlps(model), ["ppm"])["ppm"]
            layouts = [mlp.layout for mlp in find_mlps(model)]
            resize(model, choose(layouts, scores, Budget(fraction=FRACTION)))

        # Pruning changes the model: each round has a copy, made before the clock starts.
        copies = [copy.deepcopy(self.model) for _ in range(self.rounds + 1)]
        return [
            self.timed(
                f"score by {len(WEIGHT_CRITERIA)} criteria", "", 1, scoring,
                ("a sum of each matrix", total),
            ),
            self.timed(
                f"prune the live model, {FRACTION:.0%} by ppm", "", 1, lambda: cut(copies.pop())
            ),
        ]  # fmt: skip
