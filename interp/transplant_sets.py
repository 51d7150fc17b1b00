"""Which sets of neurons are transplanted between a base and a tuned model, and what that costs.

The ten tenths of a criterion's order, the tenth that changed most, all neurons, sets that are
given, and random sets of the same counts. All are taken within every MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..datasets.pairs import Material
from ..errors import UsageError
from ..prune.selection import NeuronSet
from .causal import causal_draw
from .localiser import TENTHS, tenth_of

LOWEST, HIGHEST, MOST_CHANGED, ALL = (
    "lowest tenth", "highest tenth", "most changed tenth", "all neurons",
)  # fmt: skip
CRITERION_TENTHS = (LOWEST, *(f"tenth {k}" for k in range(2, TENTHS)), HIGHEST)
"""What the tenths by the criterion are called, from 1 (the lowest) to 10."""
_RANDOM_STREAM = 7


@dataclass(frozen=True)
class TransplantSet:
    """A set of neurons to be transplanted.

    Attributes:
        like: which random sets have its counts: `LOWEST`, the name of a given set, or empty where
            there are none.
    """

    name: str
    cut: NeuronSet
    like: str
    is_random: bool = False


class TransplantCost(NamedTuple):
    """What `transplant` runs, at most.

    Attributes:
        n_sets: sets, random ones included.
        n_texts: texts that each is tried on.
        forwards: texts run through a model, with the models as they are.
    """

    n_sets: int
    n_texts: int
    forwards: int


def transplant_cost(
    material: Material, *, items: int = 24, random: int = 10, seed: int = 0, given: int = 0
) -> TransplantCost:
    """What `transplant` will run, at most, known before any model is opened.

    Args:
        given: number of further sets.
    """
    pairs, neutral = causal_draw(material, items, seed)
    n_texts = 2 * sum(map(len, pairs.values())) + len(neutral)
    n_sets = TENTHS + 2 + random + given * (1 + random)
    return TransplantCost(n_sets, n_texts, 2 * (n_sets + 1) * n_texts)


def transplant_sets(
    scores: Sequence[np.ndarray],
    changes: Sequence[np.ndarray],
    *,
    random: int = 10,
    seed: int = 0,
    given: Mapping[str, NeuronSet] | None = None,
) -> list[TransplantSet]:
    """The tenths of an order, the most changed tenth, all neurons, given sets, and random ones.

    The most changed tenth and the random sets have the lowest tenth's counts in every MLP; those of
    other tenths differ from them by one where a width is no multiple of ten. A given set of other
    counts gets random sets of its own.

    Args:
        scores, changes: by MLP [neurons].

    Raises:
        UsageError: a given set is of another shape, or has a name that is taken.
    """
    widths = tuple(map(len, scores))
    if tuple(map(len, changes)) != widths:
        raise UsageError("scores and changes are of other shapes; make both from the same model")
    order = [tenth_of(layer) for layer in scores]

    def chosen(indices: Sequence[np.ndarray]) -> NeuronSet:
        return NeuronSet(widths, tuple(indices))

    tenths = [chosen([np.flatnonzero(of == k) for of in order]) for k in range(TENTHS)]
    found = [
        TransplantSet(name, cut, LOWEST)
        for name, cut in zip(CRITERION_TENTHS, tenths, strict=True)
        if len(cut)  # of fewer than ten neurons some tenths are empty
    ]
    counts = tenths[0].counts
    most = [np.argsort(-c, kind="stable")[:n] for c, n in zip(changes, counts, strict=True)]
    found.append(TransplantSet(MOST_CHANGED, chosen(most), LOWEST))
    found.append(TransplantSet(ALL, chosen([np.arange(width) for width in widths]), ""))
    wanted = {LOWEST: ("", counts)}
    taken = {each.name for each in found}
    for name, cut in (given or {}).items():
        cut.check(widths)
        if name in taken or name.startswith("random "):
            raise UsageError(f"a set called {name!r} is made anyway; call the given one otherwise")
        if any(cut.counts == tenth.counts for tenth in tenths):
            found.append(TransplantSet(name, cut, LOWEST))
        elif 0 < len(cut) < sum(widths):
            found.append(TransplantSet(name, cut, name))
            wanted[name] = (f" like {name}", cut.counts)
        else:  # there is just one set of such counts
            found.append(TransplantSet(name, cut, ""))
    for place, (like, (suffix, numbers)) in enumerate(wanted.items()):
        for draw in range(random):
            rng = np.random.default_rng([seed, _RANDOM_STREAM, place, draw])
            drawn = [
                rng.choice(width, n, replace=False)
                for width, n in zip(widths, numbers, strict=True)
            ]
            found.append(TransplantSet(f"random {draw + 1}{suffix}", chosen(drawn), like, True))
    return found
