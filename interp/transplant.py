"""What the tuned weights of some neurons do in the base, and the base's in the tuned model.

Two models of one architecture and the same widths. A set of neurons changes places between them:
row of gate, row of up, column of down, and the entries of the biases of gate and up (a bias of down
is no neuron's and stays). The base with the tuned neurons is the set's transplant *into base*, and
the tuned model with the base's neurons that *into tuned*. One exchange makes both, and takes no
more memory than the set's part of one matrix. Afterwards it is undone, bit for bit.

Sets are the ten tenths of a criterion's order, random sets of the lowest tenth's counts, the tenth
that changed most, all neurons, and what is given. All are taken within every MLP.

Quantities are those of `causal`: each property's margin in nats per item, and damage, the mean
negative log-likelihood per token of neutral text.

**Restored** is change / (donor - host), the part of the way to the donor that the set makes by
itself. It has no meaning where the two models hardly differ, and is NaN where |donor - host| is
below two standard errors over items (bootstrap). The parts of several sets need not add up to that
of their union, and all neurons need not restore everything, because attention, norms and embeddings
stay where they are.

**Against chance.** As in `causal`: z = (change - mean over random sets of the same counts) / their
standard deviation, and p is two-sided, that of one more draw from a normal distribution of which
only those draws are known (t with draws - 1 degrees of freedom). q is Benjamini-Hochberg over all
sets that are not random, all quantities and both directions. The null holds the number of neurons
fixed and not the amount of change: a set in which more has changed moves more of the way there.
`change_share` says how much of the MLPs' change a set holds, and stands beside every row.

Cost: two runs of all texts for every set, and two more for the models as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..datasets.pairs import Material
from ..errors import ModelError, UsageError
from ..probes.engine import Engine, make_engine
from ..probes.likelihood import loglikelihoods
from ..probes.tokens import Encoder
from ..progress import Progress, silent
from ..prune.mlps import Mlp, find_mlps
from ..prune.models import OpenedModel
from ..prune.selection import NeuronSet
from .causal import BOOTSTRAPS, Trial, causal_draw
from .resamples import benjamini_hochberg
from .transplant_sets import TransplantSet, transplant_sets

Direction = Literal["into base", "into tuned"]
DIRECTIONS: tuple[Direction, Direction] = ("into base", "into tuned")
_NAN = float("nan")


@dataclass(frozen=True)
class Transplant:
    """What transplanting one set did to one quantity of its host.

    Attributes:
        direction: which model is the host.
        name: of the set.
        is_random: whether it was drawn without regard to weights.
        n_neurons: how many changed places.
        change_share: of the MLPs' summed squared change, the part that is theirs; NaN where nothing
            changed.
        quantity: a property's margin, or `causal.DAMAGE`.
        host, donor: the quantity of either model as it is.
        change: of the host's, mean over items; low and high its 95 % bootstrap interval.
        restored: see the module.
        z, p: against random sets of the same counts; NaN for a random set itself, for all neurons,
            and with fewer than three random sets.
        random_mean, random_sd: of these random sets; NaN where there are none.
        q: p after correction; NaN where p is.
    """

    direction: Direction
    name: str
    is_random: bool
    n_neurons: int
    change_share: float
    quantity: str
    n_items: int
    host: float
    donor: float
    change: float
    low: float
    high: float
    restored: float
    z: float
    p: float
    random_mean: float
    random_sd: float
    q: float = _NAN


@dataclass(frozen=True)
class Exchanged:
    """Log-likelihoods of a trial's texts; the first axis is the host, base before tuned.

    Attributes:
        intact: float64 [2, texts].
        changed: with each set exchanged, float64 [2, sets, texts].
    """

    intact: np.ndarray
    changed: np.ndarray


def transplant(
    base: OpenedModel,
    tuned: OpenedModel,
    scores: Sequence[np.ndarray],
    material: Material,
    *,
    changes: Sequence[np.ndarray],
    items: int = 24,
    random: int = 10,
    seed: int = 0,
    sets: Mapping[str, NeuronSet] | None = None,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> list[Transplant]:
    """Transplant tenths of the neurons in both directions, and measure what it does.

    Args:
        base, tuned: models of the same widths and dtype. Both are changed meanwhile, and are as
            they were afterwards, whatever happens.
        scores: the base's magnitude by MLP [neurons].
        material: what to measure on; of each property `items` pairs are drawn.
        changes: squared change by MLP [neurons].
        items: pairs of each property; half as many neutral passages.
        random: random sets; fewer than three say nothing of chance.
        seed: of the draws.
        sets: further sets of the base's neurons, by name. Each gets random sets of its own counts.
        max_tokens: padded tokens in a batch.
        progress: told of texts done.

    Returns:
        Rows by direction, quantity and set.

    Raises:
        ModelError: the models differ in widths, dtype or tokens.
        UsageError: a number out of range, or a set or scores of another shape.
        DataError: a text that cannot be encoded.
    """
    if items < 2:
        raise UsageError(f"{items} items: at least 2 are needed to tell how sure a mean is")
    if random < 0:
        raise UsageError(f"{random} random sets: give 0 or more, e.g. 10")
    planned = transplant_sets(scores, changes, random=random, seed=seed, given=sets)
    trial = _trial(base, tuned, material, items, seed)
    found = exchange(base, tuned, trial, planned, max_tokens=max_tokens, progress=progress)
    return transplants(trial, planned, found, changes, seed=seed)


@contextmanager
def exchanged(base: Sequence[Mlp], tuned: Sequence[Mlp], cut: NeuronSet) -> Iterator[None]:
    """Within the block a set's neurons stand in each other's model; then exactly as before.

    Args:
        base, tuned: the MLPs of two models of the same shapes and dtype.

    Raises:
        ModelError: their shapes or dtypes differ.
        UsageError: the set is of another shape.
    """
    check_alike(base, tuned)
    cut.check([mlp.width for mlp in base])
    # Views, the axis of neurons, their places, and what stood there while they are being written.
    moved: list[tuple[Tensor, Tensor, int, Tensor, list[Tensor]]] = []
    try:
        with torch.no_grad():
            for mine, theirs, chosen in zip(base, tuned, cut.indices, strict=True):
                index = torch.from_numpy(chosen.copy())
                for role in mine.layout.slots if len(chosen) else ():
                    one, other = mine.view(role), theirs.view(role)
                    assert one is not None
                    assert other is not None
                    axis = 1 if role == "down" else 0
                    kept = [_taken(one, axis, index), _taken(other, axis, index)]
                    moved.append((one, other, axis, index, kept))
                    _put(one, axis, index, kept[1])
                    _put(other, axis, index, kept[0])
                    kept.clear()
        yield
    finally:
        with torch.no_grad():
            for one, other, axis, index, kept in reversed(moved):
                # Not empty: it was interrupted between the two halves.
                first, second = kept or (_taken(other, axis, index), _taken(one, axis, index))
                _put(one, axis, index, first)
                _put(other, axis, index, second)


def _taken(view: Tensor, axis: int, index: Tensor) -> Tensor:
    return view.index_select(axis, index.to(view.device))


def _put(view: Tensor, axis: int, index: Tensor, values: Tensor) -> None:
    view.index_copy_(axis, index.to(view.device), values.to(view.device))


def check_alike(base: Sequence[Mlp], tuned: Sequence[Mlp]) -> None:
    """Raise `ModelError` unless two models' neurons can change places."""
    if len(base) != len(tuned):
        raise ModelError(
            f"the base has {len(base)} MLPs and the tuned model {len(tuned)}; neurons can change "
            "places between models of one architecture alone"
        )
    for mine, theirs in zip(base, tuned, strict=True):
        for role in sorted({*mine.layout.slots, *theirs.layout.slots}):
            one, other = _described(mine, role), _described(theirs, role)
            if one != other:
                raise ModelError(
                    f"{mine.layout.name}: {role} is {one} in the base and {other} in the tuned "
                    "model; neurons can change places between models of the same widths and dtype "
                    "alone (--dtype float32 opens both alike)"
                )


def _described(mlp: Mlp, role: str) -> str:
    view = mlp.view(role)
    if view is None:
        return "missing"
    return f"{' x '.join(map(str, view.shape))} {str(view.dtype).removeprefix('torch.')}"


def exchange(
    base: OpenedModel,
    tuned: OpenedModel,
    trial: Trial,
    sets: Sequence[TransplantSet],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> Exchanged:
    """Log-likelihoods of the trial's texts under both models, as they are and with each set
    exchanged."""
    neurons = find_mlps(base.model), find_mlps(tuned.model)
    check_alike(*neurons)
    engines = make_engine(base), make_engine(tuned)
    n = len(trial.texts)
    total = 2 * (len(sets) + 1) * n

    def run(engine: Engine, before: int) -> np.ndarray:
        def tell(_: str, done: int, __: int) -> None:
            progress("transplanting (texts)", before + done, total)

        return loglikelihoods(engine, trial.texts, max_tokens=max_tokens, progress=tell)

    def both(number: int) -> np.ndarray:
        return np.stack([run(engine, (2 * number + k) * n) for k, engine in enumerate(engines)])

    intact = both(0)
    changed = np.empty((2, len(sets), n))
    for number, each in enumerate(sets):
        with exchanged(*neurons, each.cut):
            changed[:, number] = both(number + 1)
    return Exchanged(intact, changed)


def transplants(
    trial: Trial,
    sets: Sequence[TransplantSet],
    found: Exchanged,
    changes: Sequence[np.ndarray],
    *,
    seed: int = 0,
) -> list[Transplant]:
    """Every set's effect on every quantity, in both directions.

    Args:
        found: as `exchange` returns it.
        changes: squared change by MLP [neurons].
    """
    shares = [_share(each.cut, changes) for each in sets]
    rows: list[Transplant] = []
    for at, direction in enumerate(DIRECTIONS):
        hosts, donors = (trial.quantities(found.intact[k]) for k in (at, 1 - at))
        values = trial.quantities(found.changed[at])
        for place, name in enumerate(sorted(hosts)):
            host, donor = hosts[name], donors[name]
            # The same resampled items for every set and direction: intervals can be compared.
            n = len(host)
            rng = np.random.default_rng([seed, 2, place])
            weights = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAPS) / n
            each_item = values[name] - host
            spread = each_item @ weights.T
            low, high = np.quantile(spread, [0.025, 0.975], axis=1)
            change = each_item.mean(1)
            gap = float((donor - host).mean())
            known = abs(gap) >= 2 * (weights @ (donor - host)).std() and gap != 0
            against = _against_random(sets, change)
            rows += [
                Transplant(
                    direction=direction,
                    name=each.name,
                    is_random=each.is_random,
                    n_neurons=len(each.cut),
                    change_share=shares[k],
                    quantity=name,
                    n_items=n,
                    host=float(host.mean()),
                    donor=float(donor.mean()),
                    change=float(change[k]),
                    low=float(low[k]),
                    high=float(high[k]),
                    restored=float(change[k]) / gap if known else _NAN,
                    **against[k],
                )
                for k, each in enumerate(sets)
            ]
    tested = [k for k, row in enumerate(rows) if not np.isnan(row.p)]
    for k, q in zip(tested, benjamini_hochberg([rows[k].p for k in tested]), strict=True):
        rows[k] = replace(rows[k], q=float(q))
    return rows


def _share(cut: NeuronSet, changes: Sequence[np.ndarray]) -> float:
    total = sum(float(np.nansum(layer)) for layer in changes)
    part = sum(
        float(np.nansum(layer[chosen])) for layer, chosen in zip(changes, cut.indices, strict=True)
    )
    return part / total if total > 0 else _NAN


def _against_random(sets: Sequence[TransplantSet], change: np.ndarray) -> list[dict[str, Any]]:
    """Every set's change against the random sets of the same counts; see the module."""
    found = []
    for k, each in enumerate(sets):
        drawn = change[[j for j, other in enumerate(sets) if other.is_random
                        and other.like == each.like]]  # fmt: skip
        row = {"z": _NAN, "p": _NAN, "random_mean": _NAN, "random_sd": _NAN}
        n = len(drawn)
        if each.like and n >= 3:
            mean, sd = float(drawn.mean()), float(drawn.std(ddof=1))
            row |= {"random_mean": mean, "random_sd": sd}
            if not each.is_random and sd > 0:
                z = (float(change[k]) - mean) / sd
                p = 2 * float(stats.t.sf(abs(z) / np.sqrt(1 + 1 / n), n - 1))
                row |= {"z": z, "p": p}
        found.append(row)
    return found


def _trial(
    base: OpenedModel, tuned: OpenedModel, material: Material, items: int, seed: int
) -> Trial:
    """The texts, if both models read the same tokens in them."""
    pairs, neutral = causal_draw(material, items, seed)
    mine, theirs = (
        Trial.make(
            Encoder(
                opened.tokenizer,
                max_length=getattr(
                    opened.model.config.get_text_config(), "max_position_embeddings", None
                ),
            ),
            pairs,
            neutral,
        )
        for opened in (base, tuned)
    )
    if mine.texts != theirs.texts:
        differ = sum(a != b for a, b in zip(mine.texts, theirs.texts, strict=True))
        raise ModelError(
            f"the tokenizers of base and tuned model disagree on {differ} of {len(mine.texts)} "
            "texts; log-likelihoods of other tokens cannot be compared, give both folders the "
            "same tokenizer"
        )
    return mine
