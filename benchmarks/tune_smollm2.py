"""Make a tuned model to compare with its base: SmolLM2-135M-Instruct on the built-in instructions.

    python benchmarks/tune_smollm2.py OUT [--save-base FOLDER] [--method full|lora] [--steps 36]
                                          [--rate 2e-5] [--batch 4] [--seed 0] [--dtype float32]

Supervised fine-tuning by AdamW (no weight decay, ten steps of warm-up, then a cosine to a tenth).
Each target is a built-in prompt with its compliant response, in the plain form that glulens
evaluates, and the loss is that of the response's tokens. A quarter of the items is held out. `full`
changes every weight; `lora` adds a product of rank 8 to the seven matrices of every layer (Hu et
al., arXiv 2106.09685), merged in the end. Printed are loss and margin before and after, on items
trained and held out.

OUT gets the tuned model with its tokenizer, and FOLDER the model before tuning. Both are
safetensors in the same dtype. The embedded model itself was dequantised from a GGUF, so a
comparison should read FOLDER. About three minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import glulens as gl
from glulens.datasets.pairs import INSTRUCTION, Pair, load_material
from glulens.probes.contrasts import encode_pairs
from glulens.probes.tokens import Batch, Encoded, Encoder, batches

HELD_OUT = 0.25
WARM_UP = 10
RANK = 8
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LowRank(nn.Module):
    """Adds the product of two thin matrices to a frozen weight; at the start it adds nothing."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, into = weight.shape
        draw = torch.randn(rank, into, generator=generator) / math.sqrt(into)
        self.narrow = nn.Parameter(draw)
        self.wide = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that the model computes with."""
        return weight + self.wide @ self.narrow


def adapt(model: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Put a `LowRank` on the seven matrices of every layer; the parameters to be trained."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in ADAPTED:
            weight: Any = module.weight
            added = LowRank(weight, rank, generator)
            parametrize.register_parametrization(module, "weight", added)
            trained += added.parameters()
    return trained


def merge(model: nn.Module) -> None:
    """Make every sum of `adapt` the weight itself."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")


def log_probabilities(model: Any, batch: Batch) -> Tensor:
    """Of every answer token of a batch, in nats, row after row. The head sees no other token."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    answer = batch.answer[:, 1:]
    scores = model.lm_head(hidden[:, :-1][answer]).float().log_softmax(-1)
    return scores.gather(1, batch.ids[:, 1:][answer][:, None])[:, 0]


@torch.no_grad()
def measure(model: Any, texts: Sequence[Encoded], max_tokens: int = 1024) -> tuple[float, float]:
    """Of pairs encoded a before b: loss of a's answers in nats a token, and margin in nats."""
    model.eval()
    found = np.zeros(len(texts))
    for batch in batches(texts, max_tokens, torch.device("cpu")):
        rows = torch.repeat_interleave(torch.arange(len(batch.rows)), batch.answer.sum(1))
        sums = torch.zeros(len(batch.rows)).index_add(0, rows, log_probabilities(model, batch))
        found[list(batch.rows)] = sums.numpy()
    tokens = sum(text.n_answer for text in texts[0::2])
    return -found[0::2].sum() / tokens, float((found[0::2] - found[1::2]).mean())


def passes(texts: Sequence[Encoded], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    """Batches without end: every text once, in a random order, then again in another."""
    size = min(size, len(texts))
    while True:
        order = rng.permutation(len(texts))
        for begin in range(0, len(order) - size + 1, size):
            some = [texts[k] for k in order[begin : begin + size]]
            yield next(batches(some, 1_000_000, torch.device("cpu")))


def tune(
    model: Any,
    texts: Sequence[Encoded],
    *,
    steps: int,
    rate: float,
    size: int = 4,
    method: str = "full",
    seed: int = 0,
    say: Any = print,
) -> None:
    """Fine-tune in place on the answers of the texts."""
    torch.manual_seed(seed)
    if method == "lora":
        trained = adapt(model, RANK, seed)
    else:
        trained = list(model.requires_grad_(True).parameters())
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    feed = passes(texts, size, np.random.default_rng(seed))
    model.train()
    begin = time.perf_counter()
    for step in range(steps):
        progress = step / max(steps, 1)
        cosine = 0.55 + 0.45 * math.cos(math.pi * progress)
        for group in optimiser.param_groups:
            group["lr"] = rate * cosine * min(1.0, (step + 1) / WARM_UP)
        batch = next(feed)
        loss = -log_probabilities(model, batch).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == steps - 1:
            each = (time.perf_counter() - begin) / (step + 1)
            say(f"step {step + 1} of {steps}: loss {loss.item():.3f}, {each:.2f} s a step")
    merge(model)
    model.eval().requires_grad_(False)


def split(pairs: Sequence[Pair], seed: int) -> tuple[list[Pair], list[Pair]]:
    """Items to train on, and items held out."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    held = max(1, round(HELD_OUT * len(pairs)))
    return [pairs[k] for k in sorted(order[held:])], [pairs[k] for k in sorted(order[:held])]


def main() -> None:
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("out", type=Path, help="folder for the tuned model")
    read.add_argument("--save-base", type=Path, help="folder for the model before tuning")
    read.add_argument("--method", choices=["full", "lora"], default="full")
    read.add_argument("--steps", type=int, default=36)
    read.add_argument("--rate", type=float, help="default 2e-5, or 5e-4 for lora")
    read.add_argument("--batch", type=int, default=4)
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                      help="of both saved models")  # fmt: skip
    given = read.parse_args()
    rate = given.rate or {"full": 2e-5, "lora": 5e-4}[given.method]

    opened = gl.open_model("smollm2-135m-instruct")
    dtype = getattr(torch, given.dtype)

    def save(folder: Path) -> None:
        opened.model.to(dtype).save_pretrained(folder)  # pyright: ignore
        opened.tokenizer.save_pretrained(folder)

    if given.save_base:
        save(given.save_base)
        opened.model.float()
    trained, held = split(load_material().pairs[INSTRUCTION], given.seed)
    encoder = Encoder(opened.tokenizer)
    sides = {"trained": encode_pairs(encoder, trained), "held out": encode_pairs(encoder, held)}
    before = {name: measure(opened.model, texts) for name, texts in sides.items()}
    tune(opened.model, sides["trained"][0::2], steps=given.steps, rate=rate, size=given.batch,
         method=given.method, seed=given.seed)  # fmt: skip
    after = {name: measure(opened.model, texts) for name, texts in sides.items()}
    save(given.out)
    print(
        f"\n{given.method}, {given.steps} steps of {given.batch} at {rate:g}, seed {given.seed}\n"
    )
    print("| items | n | loss before | loss after | margin before | margin after |")
    print("|---|---|---|---|---|---|")
    for name, texts in sides.items():
        (loss, margin), (new, moved) = before[name], after[name]
        print(
            f"| {name} | {len(texts) // 2} | {loss:.3f} | {new:.3f} | {margin:.2f} | {moved:.2f} |"
        )


if __name__ == "__main__":
    main()
