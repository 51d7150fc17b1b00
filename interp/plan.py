"""What a run would cost, said before it is made."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..datasets.pairs import MISCONCEPTION, Material, Text, load_material
from ..datasets.sources import BUILTIN
from ..errors import ModelError
from ..prune.families import width_entry
from ..prune.models import find_model, read_config
from .causal import causal_draw
from .experiments import DOSE_DRAWS, FRACTIONS
from .options import Options

CHARACTERS_PER_TOKEN = 4.0
"""English text under a byte-level tokenizer; the plan does not load one."""
MULTIPLE_CHOICE, TOKENS_A_QUESTION = 817, 75
"""TruthfulQA's questions, and tokens that both targets' choices take, the primer shared."""


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
    whole = _trial(material, options.causal_items, options.seed)
    alone = _trial(material, min(options.map_items, options.causal_items), options.seed)
    # Of all layers ten tenths and the random ones, twice; of each layer as many, run from there on.
    sets = 10 + 10 * -(-options.causal_random // 10)
    passes = (2 * sets + 1) * whole[1] + config.num_hidden_layers * sets / 2 * alone[1]
    nulls = 2 * tokens * options.null_items / max(1, len(material.pairs[MISCONCEPTION])) / 2
    chosen = 0.0
    if options.data != BUILTIN and options.dose_items:
        cuts = 1 + (1 + DOSE_DRAWS) * len(FRACTIONS)
        asked = min(options.limit or MULTIPLE_CHOICE, MULTIPLE_CHOICE)
        chosen = TOKENS_A_QUESTION * (asked + cuts * min(options.dose_items, asked))
    probes = config.num_hidden_layers // options.decode_every if options.decode_every else 0
    # Two matrices of means, one of attributions.
    matrices = sum(len(pairs) for pairs in material.pairs.values()) * neurons * 4 * 3
    # Two operations a weight and token forward, two more to carry the gradient back.
    operations = 2 * weights * (2 * (tokens + nulls) + passes + chosen)
    resampled = (options.permutations + options.bootstraps) * neurons * 3 * len(material.pairs)
    pairs = len(material.pairs[MISCONCEPTION])
    return Plan(
        neurons=neurons,
        texts=len(texts),
        tokens=round(tokens),
        forwards=round(
            len(texts) + (2 * sets + 1) * whole[0] + config.num_hidden_layers * sets * alone[0]
        ),
        backwards=len(texts),
        matrix_bytes=matrices,
        seconds=operations / _speed() + resampled / 1.5e7 + probes * pairs * width / 6e4,
    )


def _trial(material: Material, items: int, seed: int) -> tuple[int, float]:
    """Texts that tenths are silenced on, and their tokens."""
    if not items:
        return 0, 0.0
    pairs, passages = causal_draw(material, items, seed)
    some = [text for drawn in pairs.values() for p in drawn for text in (p.a, p.b)]
    tokens = sum(map(_tokens, some)) + sum(len(p.text) / CHARACTERS_PER_TOKEN for p in passages)
    return len(some) + len(passages), tokens


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
