"""What silencing tenths of the neurons does: to each property's margin, and to neutral text.

Sets are the ten tenths of a criterion's order, in every layer alone (the map) and in all layers at
once, and random tenths of the same counts: random orders cut into tenths in the same way. Each set
is replaced by the neurons' means on neutral text with position 0 left alone (*mean*: where is
information?), those of all layers also by zeros at every position (*zero*: what does pruning do?).
The two can disagree in sign.

Quantities, each the change against the intact model:

- a property's margin, LL(preferred) - LL(other) in nats per item;
- damage: mean negative log-likelihood per token of neutral text, in nats.

**Against chance.** z = (change - mean over random tenths) / their standard deviation, among sets of
the same layer (or of all layers); p is two-sided, that of one more draw from a normal distribution
of which only those draws are known (t with draws - 1 degrees of freedom).

**Specific effect.** A set that damages the model more moves every margin more. So over random
tenths the change is regressed on the damage, with one slope for all layers and an intercept for
each; the specific effect is what is left of a set's change beyond that line: its effect at equal
damage. Its z is against the residuals of the same layer's random tenths, with the variance of a
prediction. Where a set's damage lies outside that of its random tenths, the line is *extrapolated*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ..datasets.pairs import PROPERTIES, Material, Pair
from ..datasets.records import Passage
from ..probes.ablation import ablate
from ..probes.contrasts import encode_pairs
from ..probes.engine import Engine
from ..probes.tokens import Encoded, Encoder
from ..progress import Progress, silent
from ..prune.selection import NeuronSet
from .localiser import TENTHS, tenth_of

DAMAGE = "damage"
EVERY = -1
"""In place of a layer: all layers at once."""
BOOTSTRAPS = 1000
NEUTRAL_STREAM = 99
"""Of the random draws, whose properties count from 0."""
Replacing = Literal["mean", "zero"]


def causal_draw(
    material: Material, count: int, seed: int
) -> tuple[dict[str, list[Pair]], list[Passage]]:
    """At most `count` pairs of each property, and half as many neutral passages, drawn at random.

    The control is a control of the localisation; it has no margin to lose, and no pairs here.
    """

    def some(total: int, stream: int, count: int) -> list[int]:
        order = np.random.default_rng([seed, 3, stream]).permutation(total)
        return order[:count].tolist()

    pairs = {
        name: [found[i] for i in some(len(found), place, count)]
        for place, (name, found) in enumerate(material.pairs.items())
        if not PROPERTIES[name].is_control
    }
    drawn = some(len(material.neutral), NEUTRAL_STREAM, max(2, count // 2))
    return pairs, [material.neutral[i] for i in drawn]


@dataclass(frozen=True)
class CausalSet:
    """One tenth of a layer's neurons, or of every layer's.

    Attributes:
        layer: from 0; `EVERY` for all.
        tenth: its place in its order, 0 the lowest.
        draw: which random order it is a tenth of; -1 for the criterion's own.
    """

    layer: int
    tenth: int
    draw: int
    cut: NeuronSet

    @property
    def is_random(self) -> bool:
        """Whether its order is without meaning."""
        return self.draw >= 0


def causal_sets(
    scores: Sequence[np.ndarray], layers: Sequence[int], random: int, seed: int
) -> list[CausalSet]:
    """All tenths by the scores, and at least `random` random ones, of each layer named.

    Args:
        scores: per layer [neurons].
        layers: which; `EVERY` stands for all at once.
        random: random tenths; rounded up to whole orders of ten.
    """
    widths = tuple(map(len, scores))
    orders = [[tenth_of(layer) for layer in scores]]
    for draw in range(-(-random // TENTHS)):
        rng = np.random.default_rng(np.random.SeedSequence([seed, 1], spawn_key=(draw,)))
        orders.append([tenth_of(rng.random(width)) for width in widths])
    found = []
    for layer in layers:
        for draw, order in enumerate(orders, -1):
            for tenth in range(TENTHS):
                chosen = tuple(
                    np.flatnonzero(of == tenth) if layer in (EVERY, at) else np.zeros(0, int)
                    for at, of in enumerate(order)
                )
                cut = NeuronSet(widths, chosen)
                if len(cut):  # of fewer than ten neurons some tenths are empty
                    found.append(CausalSet(layer, tenth, draw, cut))
    return found


@dataclass(frozen=True)
class Trial:
    """The texts that every set is tried on.

    Attributes:
        texts: of all pairs (a before b), then the neutral passages.
        spans: where each quantity's texts stand.
        items: names of each quantity's items.
    """

    texts: tuple[Encoded, ...]
    spans: Mapping[str, slice]
    items: Mapping[str, tuple[str, ...]]

    @classmethod
    def make(
        cls, encoder: Encoder, pairs: Mapping[str, Sequence[Pair]], neutral: Sequence[Passage]
    ) -> Trial:
        """Encode pairs and passages."""
        texts: list[Encoded] = []
        spans, items = {}, {}
        for name, members in pairs.items():
            begin = len(texts)
            texts += encode_pairs(encoder, members)
            spans[name] = slice(begin, len(texts))
            items[name] = tuple(pair.item for pair in members)
        begin = len(texts)
        texts += [encoder.passage(passage.text) for passage in neutral]
        spans[DAMAGE] = slice(begin, len(texts))
        items[DAMAGE] = tuple(f"passage-{k}" for k in range(len(neutral)))
        return cls(tuple(texts), spans, items)

    def quantities(self, loglikelihood: np.ndarray) -> dict[str, np.ndarray]:
        """Each quantity's value per item [..., items], from log-likelihoods [..., texts]."""
        found = {}
        for name, span in self.spans.items():
            part = loglikelihood[..., span]
            if name == DAMAGE:
                found[name] = -part / np.array([text.n_answer for text in self.texts[span]])
            else:
                found[name] = PROPERTIES[name].preferred * (part[..., 0::2] - part[..., 1::2])
        return found


def silence(
    engine: Engine,
    trial: Trial,
    sets: Sequence[CausalSet],
    replacing: Replacing,
    reference: Sequence[np.ndarray],
    *,
    max_tokens: int = 1024,
    progress: Progress = silent,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihoods of the trial's texts, intact [texts] and under each set [sets, texts].

    Args:
        reference: per MLP the mean activation on neutral text [neurons].
    """
    found = ablate(
        engine,
        trial.texts,
        [each.cut for each in sets],
        replacement=replacing,
        reference=reference if replacing == "mean" else None,
        spare_first=replacing == "mean",
        max_tokens=max_tokens,
        progress=lambda _, d, t: progress(f"silencing by {replacing} (sets x texts)", d, t),
    )
    return found.intact, found.loglikelihood


@dataclass(frozen=True)
class Effect:
    """What silencing one tenth did to one quantity.

    Attributes:
        replacing: `mean` or `zero`.
        layer, tenth, draw: see `CausalSet`.
        change: against the intact model, mean over items; low and high its 95 % bootstrap interval.
        z, p: against random tenths; NaN for a random tenth itself, or with fewer than three.
        specific, specific_z, specific_p: beyond what its damage explains; NaN for damage itself.
        extrapolated: whether its damage lies outside that of its random tenths.
    """

    replacing: Replacing
    layer: int
    tenth: int
    draw: int
    n_neurons: int
    quantity: str
    n_items: int
    intact: float
    change: float
    low: float
    high: float
    random_mean: float
    random_sd: float
    z: float
    p: float
    specific: float
    specific_z: float
    specific_p: float
    extrapolated: bool


def effects(
    trial: Trial,
    sets: Sequence[CausalSet],
    replacing: Replacing,
    intact: np.ndarray,
    changed: np.ndarray,
    *,
    seed: int = 0,
) -> list[Effect]:
    """Every set's effect on every quantity.

    Sets of all layers and of single layers are regressed apart, since a tenth of one layer and of
    all differ in damage by orders of magnitude.

    Args:
        intact, changed: as `silence` returns them.
    """
    before, after = trial.quantities(intact), trial.quantities(changed)
    change = {name: (after[name] - before[name]).mean(1) for name in before}
    rows: list[Effect] = []
    for every in (True, False):
        members = [k for k, each in enumerate(sets) if (each.layer == EVERY) == every]
        if not members:
            continue
        for name in before:
            some = [sets[k] for k in members]
            line = _against_random(some, change[name][members], change[DAMAGE][members])
            # The same resampled items for every set: their intervals can be compared.
            n = len(before[name])
            rng = np.random.default_rng([seed, 2, sorted(before).index(name)])
            weights = rng.multinomial(n, np.full(n, 1 / n), BOOTSTRAPS) / n
            spread = (after[name][members] - before[name]) @ weights.T
            low, high = np.quantile(spread, [0.025, 0.975], axis=1)
            for at, k in enumerate(members):
                each = sets[k]
                specific = {
                    key: float("nan") if name == DAMAGE else float(line[key][at])
                    for key in ("specific", "specific_z", "specific_p")
                }
                rows.append(
                    Effect(
                        replacing,
                        each.layer,
                        each.tenth,
                        each.draw,
                        len(each.cut),
                        name,
                        n,
                        float(before[name].mean()),
                        float(change[name][k]),
                        float(low[at]),
                        float(high[at]),
                        float(line["mean"][at]),
                        float(line["sd"][at]),
                        float(line["z"][at]),
                        float(line["p"][at]),
                        **specific,
                        extrapolated=bool(line["extrapolated"][at]),
                    )
                )
    return rows


def _against_random(
    sets: Sequence[CausalSet], change: np.ndarray, damage: np.ndarray
) -> dict[str, np.ndarray]:
    """Every set's change against the random tenths of its layer; see the module."""
    layers = np.array([each.layer for each in sets])
    random = np.array([each.is_random for each in sets])
    names = ("mean", "sd", "z", "p", "specific", "specific_z", "specific_p")
    found = {name: np.full(len(sets), np.nan) for name in names}
    found["extrapolated"] = np.zeros(len(sets), bool)
    centred = {name: np.full(len(sets), np.nan) for name in ("change", "damage")}
    for layer in np.unique(layers):
        here, drawn = layers == layer, (layers == layer) & random
        if drawn.sum() < 3:
            continue
        mean, sd = change[drawn].mean(), change[drawn].std(ddof=1)
        found["mean"][here], found["sd"][here] = mean, sd
        centred["change"][here] = change[here] - mean
        centred["damage"][here] = damage[here] - damage[drawn].mean()
        found["extrapolated"][here] = (damage[here] < damage[drawn].min()) | (
            damage[here] > damage[drawn].max()
        )
    x, y = centred["damage"], centred["change"]
    usable = random & ~np.isnan(x)
    squares = np.square(x[usable]).sum()
    slope = float(x[usable] @ y[usable] / squares) if squares > 0 else 0.0
    beyond = y - slope * x
    for layer in np.unique(layers[usable]):
        here, drawn = (layers == layer) & ~random, (layers == layer) & random
        count = drawn.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            z = y[here] / found["sd"][here]
            found["z"][here] = z
            found["p"][here] = 2 * stats.t.sf(np.abs(z) / np.sqrt(1 + 1 / count), count - 1)
            # One slope for all layers costs each of them its part of a degree of freedom.
            free = count - 1 - count / usable.sum()
            sd = np.sqrt(np.square(beyond[drawn]).sum() / free)
            wide = sd * np.sqrt(1 + 1 / count + (np.square(x[here]) / squares if squares else 0))
            found["specific"][here] = beyond[here]
            found["specific_z"][here] = beyond[here] / wide
            found["specific_p"][here] = 2 * stats.t.sf(np.abs(found["specific_z"][here]), free)
    return found
