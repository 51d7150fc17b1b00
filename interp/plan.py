"""What a run would cost, said before it is made."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..datasets.pairs import Text, load_material
from ..errors import ModelError
from ..prune.families import width_entry
from ..prune.models import find_model, read_config
from .hypothesis import Options, causal_draw

CHARACTERS_PER_TOKEN = 4.0
"""English text under a byte-level tokenizer; the plan does not load one."""


@dataclass(frozen=True)
class Plan:
    """Rows, forwards, bytes and time of a hypothesis run, estimated."""

    neurons: int
    texts: int
    tokens: int
    forwards: int
    backwards: int
    matrix_bytes: int
    seconds: float

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            f"neurons (rows of neurons.parquet): {self.neurons:,}",
            f"texts: {self.texts:,} (about {self.tokens:,} tokens)",
            f"forwards: {self.forwards:,} texts; backwards: {self.backwards:,} texts",
            f"memory beyond the model: {self.matrix_bytes / 1e6:,.0f} MB of item matrices",
            f"time: about {self.seconds / 60:.1f} min on this CPU",
        ]


def plan_hypothesis(model: str, options: Options) -> Plan:
    """Plan a run without loading weights.

    Raises:
        ModelError, DataError, UsageError: what the run itself would raise about names and data.
    """
    material = load_material(options.data, limit=options.limit, seed=options.seed)
    source = find_model(model, fetch=False)
    config = read_config(source)
    try:
        entry, _ = width_entry(config, "dense")
        width = getattr(config, entry) or 4 * config.hidden_size  # GPT-2's default is not written
        neurons = config.num_hidden_layers * width
        per_layer = 4 * config.hidden_size**2 + 3 * config.hidden_size * width
        weights = config.num_hidden_layers * per_layer
    except AttributeError as error:
        raise ModelError(
            f"{model}: its config does not say how large it is ({error}); no plan can be made, "
            "leave --dry-run out"
        ) from error

    texts = {text for pairs in material.pairs.values() for p in pairs for text in (p.a, p.b)}
    tokens = sum(map(_tokens, texts))
    items = options.causal_items
    causal_texts, causal_tokens = 0, 0.0
    if items:
        pairs, passages = causal_draw(material, options)
        some = [text for drawn in pairs.values() for p in drawn for text in (p.a, p.b)]
        causal_texts += len(some)
        causal_tokens += sum(map(_tokens, some))
        causal_texts += len(passages)
        causal_tokens += sum(len(p.text) / CHARACTERS_PER_TOKEN for p in passages)
    sets = options.causal_random + 3 if items else 0
    matrices = sum(len(pairs) for pairs in material.pairs.values()) * neurons * 4 * 2
    # Two operations a weight and token forward, two more to carry the gradient back.
    operations = 2 * weights * (2 * tokens + sets * causal_tokens)
    resampled = (options.permutations + options.bootstraps) * neurons * 2 * len(material.pairs)
    return Plan(
        neurons=neurons,
        texts=len(texts),
        tokens=round(tokens),
        forwards=len(texts) + causal_texts * sets,
        backwards=len(texts),
        matrix_bytes=matrices,
        seconds=operations / _speed() + resampled / 3e7,
    )


def _tokens(text: Text) -> float:
    return sum(map(len, text.plain())) / CHARACTERS_PER_TOKEN


def _speed() -> float:
    """Floating-point operations a second that float32 matrix products reach here just now."""
    import torch

    a, b = torch.ones(512, 1024), torch.ones(1024, 1024)
    _ = a @ b
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < 0.3:
        _ = a @ b
        done += 1
    return 2 * 512 * 1024 * 1024 * done / (time.perf_counter() - begin)
