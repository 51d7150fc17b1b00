"""Greedy generation with a clock and a meter at hand.

The loop is Transformers' own forward with a cache of keys and values, in eager mode, and a token is
done when it is known on the host, as somebody who waits for it would count.
"""

from __future__ import annotations

import gc
import inspect
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, ResourceError, UsageError, is_out_of_memory
from ..probes.tokens import from_template
from .efficiency_models import Contender
from .energy import Meter

HARD_LIMIT = 1 << 40


@dataclass(frozen=True)
class Run:
    """One batch of answers.

    Attributes:
        first: seconds until the first token of every row is known: prefill.
        rest: seconds from there to the end.
        tokens: written by each row; the one that ends a text counts.
        joules: used meanwhile, or None.
        ended: whether the text ended by itself.
    """

    first: float
    rest: float
    tokens: int
    joules: float | None
    ended: bool

    @property
    def seconds(self) -> float:
        """From beginning to end."""
        return self.first + self.rest


def generate(
    contender: Contender, ids: Tensor, new_tokens: int, meter: Meter, *, stop: bool = False
) -> Run:
    """Write up to `new_tokens` after every row of `ids` [rows, tokens], greedily.

    Args:
        stop: end where the model ends its text (a single row); otherwise go on regardless.

    Raises:
        ResourceError: memory does not suffice.
    """
    from transformers import DynamicCache

    model: Any = contender.model
    ends = end_tokens(contender) if stop else frozenset[int]()
    keep = {"logits_to_keep": 1} if _keeps(model) else {}
    ids = ids.to(contender.device)
    with torch.inference_mode():
        _wait(contender.device)
        meter.start()
        begun = time.perf_counter()
        cache: Any = DynamicCache(config=model.config)
        try:
            token = _next(model(input_ids=ids, past_key_values=cache, use_cache=True, **keep))
            known = token.tolist()
            first = time.perf_counter()
            tokens, ended = 1, known[0] in ends
            while tokens < new_tokens and not ended:
                row = token[:, None]
                token = _next(model(input_ids=row, past_key_values=cache, use_cache=True, **keep))
                known = token.tolist()
                tokens, ended = tokens + 1, known[0] in ends
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"out of memory with {len(ids)} rows of {ids.shape[1]} + {new_tokens} tokens; "
                "lower --batch, --prompt-tokens or --new-tokens"
            ) from error
        last = time.perf_counter()
        _wait(contender.device)
        return Run(first - begun, last - first, tokens, meter.stop(), ended)


def _next(output: Any) -> Tensor:
    return output.logits[:, -1].argmax(-1)


def _keeps(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _wait(device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Garbage is collected before, and not meanwhile."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def end_tokens(contender: Contender) -> frozenset[int]:
    """The tokens by which a model ends its text."""
    given = [
        getattr(getattr(contender.model, "generation_config", None), "eos_token_id", None),
        getattr(contender.model.config.get_text_config(), "eos_token_id", None),
        getattr(contender.tokenizer, "eos_token_id", None),
    ]
    found: set[int] = set()
    for entry in given:
        found.update([entry] if isinstance(entry, int) else entry or ())
    return frozenset(found)


def context_of(contender: Contender) -> int:
    """The longest text that a model reads."""
    config = contender.model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or HARD_LIMIT)


def passages(contender: Contender, texts: Sequence[str], rows: int, tokens: int) -> Tensor:
    """Rows of running text [rows, tokens], each from another place.

    Raises:
        DataError: the texts have no token.
    """
    whole: list[int] = []
    for text in texts:
        if len(whole) < rows * tokens:  # more would not be read
            whole += contender.tokenizer(text)["input_ids"]
    if not whole:
        raise DataError("no text to read before the first token")
    step = max(1, len(whole) // rows)
    taken = [[whole[(row * step + k) % len(whole)] for k in range(tokens)] for row in range(rows)]
    return torch.tensor(taken)


def questions(contender: Contender, prompts: Sequence[str], longest: int) -> list[Tensor]:
    """Instructions as the model is to read them, [1, tokens] each.

    Raises:
        UsageError: an answer of `longest` tokens would not fit the model's context.
    """
    found = []
    for prompt in prompts:
        text = prompt
        if contender.chat:
            text = from_template(contender.tokenizer, [{"role": "user", "content": prompt}])
            # The template has written what the tokenizer would add.
            ids = contender.tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = contender.tokenizer(text)["input_ids"]
        if len(ids) + longest > context_of(contender):
            raise UsageError(
                f"{contender.size.name}: a prompt of {len(ids)} tokens and an answer of {longest} "
                f"exceed its context of {context_of(contender)}; lower --longest"
            )
        found.append(torch.tensor([ids]))
    return found
