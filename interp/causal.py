"""A first causal look: silence a tenth of the neurons and see what is lost.

Zero ablation of a set equals pruning it (the projections have no bias that would differ), so this
answers what *pruning* does, not where information is. The lowest and the highest tenth by a
criterion are silenced in every layer, and random tenths with the same counts per layer beside them.
Reported are

- for every property the change of the margin, LL(preferred) - LL(other) in nats per item, and
- damage: the change of the mean negative log-likelihood per token of neutral text, in nats.

A handful of random sets shows the range of what any tenth does; it cannot give a p-value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.pairs import PROPERTIES, Pair
from ..datasets.records import Passage
from ..probes.contrasts import encode_pairs
from ..probes.engine import Engine, silencer
from ..probes.likelihood import loglikelihoods
from ..probes.tokens import Encoder
from ..progress import Progress, silent
from ..prune.selection import NeuronSet, lowest
from .localisation import TENTH

DAMAGE = "damage"


@dataclass(frozen=True)
class Change:
    """What silencing one set did to one quantity."""

    set: str
    kind: str
    """`lowest`, `highest` or `random`."""
    n_neurons: int
    quantity: str
    """A property's name (its margin) or `damage`."""
    n_items: int
    intact: float
    change: float
    low: float
    high: float
    """95 % bootstrap interval of the change over items."""


def causal_sets(
    scores: Mapping[str, Sequence[np.ndarray]], criterion: str, n_random: int, seed: int
) -> dict[str, tuple[str, NeuronSet]]:
    """The tenths to silence, by name, with their kind."""
    by = scores[criterion]
    sets = {
        f"lowest tenth by {criterion}": ("lowest", lowest(by, fraction=TENTH)),
        f"highest tenth by {criterion}": ("highest", lowest([-s for s in by], fraction=TENTH)),
    }
    streams = np.random.SeedSequence([seed, 1]).spawn(n_random)
    for k, stream in enumerate(streams):
        rng = np.random.default_rng(stream)
        order = [rng.random(len(layer)) for layer in by]
        sets[f"random tenth {k}"] = ("random", lowest(order, fraction=TENTH))
    return sets


def causal_look(
    engine: Engine,
    encoder: Encoder,
    pairs: Mapping[str, Sequence[Pair]],
    neutral: Sequence[Passage],
    sets: Mapping[str, tuple[str, NeuronSet]],
    *,
    seed: int,
    bootstraps: int = 1000,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> list[Change]:
    """Silence every set and measure margins and damage against the intact model."""
    texts, spans = [], {}
    for name, members in pairs.items():
        begin = len(texts)
        texts += encode_pairs(encoder, members)
        spans[name] = slice(begin, len(texts))
    begin = len(texts)
    texts += [encoder.passage(passage.text) for passage in neutral]
    spans[DAMAGE] = slice(begin, len(texts))
    tokens = np.array([text.n_answer for text in texts[begin:]])
    total = len(texts) * (len(sets) + 1)
    done = 0

    def measure(cut: NeuronSet | None) -> dict[str, np.ndarray]:
        nonlocal done
        ll = loglikelihoods(
            engine,
            texts,
            intervene=None if cut is None else silencer(cut),
            max_tokens=max_tokens,
            progress=lambda _, d, t: progress("silencing tenths (texts)", done + d, total),
        )
        done += len(texts)
        found = {
            name: PROPERTIES[name].preferred * (ll[span][0::2] - ll[span][1::2])
            for name, span in spans.items()
            if name != DAMAGE
        }
        return found | {DAMAGE: -ll[spans[DAMAGE]] / tokens}

    intact = measure(None)
    changes = []
    for name, (kind, cut) in sets.items():
        for quantity, values in measure(cut).items():
            delta = values - intact[quantity]
            # The same resampled items for every set: their intervals can be compared.
            rng = np.random.default_rng([seed, 2, sorted(intact).index(quantity)])
            drawn = rng.integers(0, len(delta), (bootstraps, len(delta)))
            low, high = np.quantile(delta[drawn].mean(1), [0.025, 0.975])
            changes.append(
                Change(
                    set=name,
                    kind=kind,
                    n_neurons=len(cut),
                    quantity=quantity,
                    n_items=len(delta),
                    intact=float(intact[quantity].mean()),
                    change=float(delta.mean()),
                    low=float(low),
                    high=float(high),
                )
            )
    return changes
