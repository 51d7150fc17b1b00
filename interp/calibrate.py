"""Does the test say what it should? Known answers, planted by rescaling alone.

A magnitude score that sees `up` can be given any order without changing the function (`planting`),
so the truth can be chosen. Items are halved at random. From one half comes an order of neurons by
what they do (the standardised mean attribution, |mean| / sd over items); mixed with noise, so that
its normal scores correlate with that order's by a chosen *strength*, it becomes the order of
magnitude. The other half is tested, and it alone. Three kinds:

- *planted*: magnitude falls with attribution, as the claim says: to be called supported;
- *reversed*: magnitude rises with it: contradicted;
- *random*: an order without meaning: neither. How often either is said is the false-positive rate.

A functional score does not see the gauge (activations times c, gradients over c), so the model runs
once, and hundreds of plantings are tested on what was recorded. That the function does stay, and
that the order does come out, is shown on one rescaled copy of the model.

The strength is a correlation with an *estimate*: half the items know the true order only partly, so
the effect that is truly there is smaller than the strength. Medians of the corrected effect are
given beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from ..datasets.pairs import CONTROL, MISCONCEPTION
from ..errors import DataError, UsageError
from ..progress import Progress, silent
from .localisation import NAN, Association, associate
from .localiser import Localiser
from .resamples import Resamples
from .verdict import Outcome, Verdict, judge, specificity

if TYPE_CHECKING:
    from ..probes.contrasts import Contrasts

STRENGTHS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SPLITS = 8
PLANTED, REVERSED, RANDOM = "planted", "reversed", "random"
WANTED: dict[str, Outcome] = {PLANTED: "supported", REVERSED: "contradicted"}
LEAST = 20
"""Items in a half."""


@dataclass(frozen=True)
class Planting:
    """One order that was planted, and what the test said of it.

    Attributes:
        split: which halving of the items.
        kind: `planted`, `reversed` or `random`.
        strength: correlation of normal scores with the order of the other half; 0 for random.
        effect, low, high: corrected for attenuation; NaN where too faint.
        p: of swapped labels.
        outcome: the verdict.
    """

    split: int
    kind: str
    strength: float
    effect: float
    low: float
    high: float
    p: float
    attenuation: float
    outcome: Outcome


def calibrate_contrasts(
    contrasts: dict[str, Contrasts],
    widths: Sequence[int],
    *,
    plantings: int = 40,
    orders: int = 200,
    permutations: int = 999,
    bootstraps: int = 200,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Planting]:
    """Plant and test on recorded misconception and control contrasts.

    Args:
        contrasts: by property; the control's items are among the misconception's.
        widths: neurons by layer.
        plantings: of each kind and strength.
        orders: random ones.

    Raises:
        DataError: too few items to halve.
        UsageError: no planting asked for.
    """
    if plantings < 1 or orders < 1:
        raise UsageError("at least 1 planting and 1 random order are needed")
    whole, control = contrasts[MISCONCEPTION], contrasts[CONTROL]
    n = len(whole.items)
    if n < 2 * LEAST:
        raise DataError(f"{n} questions; calibration halves them and needs {2 * LEAST}")
    known = {item: k for k, item in enumerate(whole.items)}
    of_control = np.array([known[item] for item in control.items])
    splits = min(SPLITS, plantings)
    found: list[Planting] = []
    for split in range(splits):
        rng = np.random.default_rng([seed, 6, split])
        order = rng.permutation(n)
        one, other = np.sort(order[: n // 2]), np.sort(order[n // 2 :])
        size = _standardised(whole.attribution[one])
        columns: list[tuple[str, float]] = []
        values: list[np.ndarray] = []
        for kind, direction in ((PLANTED, -1), (REVERSED, 1)):
            for strength in STRENGTHS:
                for _ in range(_part(plantings, splits, split)):
                    columns.append((kind, strength))
                    values.append(_mixed(direction * size, strength, widths, rng))
        for _ in range(_part(orders, splits, split)):
            columns.append((RANDOM, 0.0))
            values.append(rng.random(len(size)))
        ends = np.cumsum(widths)[:-1]
        localiser = Localiser(
            {str(k): np.split(value, ends) for k, value in enumerate(values)}, tenths=False
        )
        tested = _test(localiser, whole.attribution, control.attribution, other, of_control,
                       permutations, bootstraps, rng)  # fmt: skip
        for (kind, strength), (row, verdict) in zip(columns, tested, strict=True):
            effect, low, high = (
                NAN if value is None else value
                for value in (verdict.effect, verdict.low, verdict.high)
            )
            found.append(
                Planting(
                    split, kind, strength, effect, low, high, row.p, row.attenuation,
                    verdict.outcome,
                )
            )  # fmt: skip
        progress("planting and testing (halvings of the items)", split + 1, splits)
    return found


def _part(total: int, parts: int, part: int) -> int:
    return total // parts + (part < total % parts)


def _standardised(contrasts: np.ndarray) -> np.ndarray:
    spread = contrasts.std(0, ddof=1)
    mean = np.abs(contrasts.mean(0))
    return np.divide(mean, spread, out=np.zeros_like(mean), where=spread > 0)


def _mixed(
    size: np.ndarray, strength: float, widths: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """Per layer, normal scores that correlate with those of the sizes by the strength."""
    parts = []
    for part in np.split(size, np.cumsum(widths)[:-1]):
        normal = stats.norm.ppf((np.argsort(np.argsort(part, kind="stable")) + 0.5) / len(part))
        noise = rng.standard_normal(len(part))
        parts.append(strength * normal + np.sqrt(1 - strength**2) * noise)
    return np.concatenate(parts)


def _test(
    localiser: Localiser,
    attribution: np.ndarray,
    control: np.ndarray,
    items: np.ndarray,
    of_control: np.ndarray,
    permutations: int,
    bootstraps: int,
    rng: np.random.Generator,
) -> Iterator[tuple[Association, Verdict]]:
    """The verdict of every order, from these items and the control's among them."""
    n = len(items)
    boots = Resamples.bootstrap(n, bootstraps, rng)
    place = {item: k for k, item in enumerate(items)}
    among = np.array([k for k, item in enumerate(of_control) if item in place], int)
    shared = boots.subset(np.array([place[of_control[k]] for k in among], int))
    parts = {
        MISCONCEPTION: (attribution[items], boots),
        CONTROL: (control[among], shared),
    }
    rows, resampled = {}, {}
    for name, (matrix, draws) in parts.items():
        flips = Resamples.sign_flips(len(matrix), permutations, rng)
        found = associate(localiser, name, matrix, "attribution", flips, draws, rng, plantings=2)
        rows[name], resampled[name] = found.associations, found.resampled
    for k, row in enumerate(rows[MISCONCEPTION]):
        # One test, no family: q is p, which favours saying something.
        row = replace(row, q=row.p)
        against = specificity(
            row, rows[CONTROL][k], {name: resampled[name][:, k] for name in parts}
        )
        yield row, judge(row, against)


@dataclass(frozen=True)
class Rate:
    """How often one kind of planting was called what.

    Attributes:
        right: share called what was planted; for random orders, called neither.
        low, high: its 95 % interval (Clopper and Pearson).
        rejected: share with p below 0.05.
        effect: median of the corrected effects.
    """

    kind: str
    strength: float
    n: int
    supported: int
    contradicted: int
    no_evidence: int
    cannot_tell: int
    right: float
    low: float
    high: float
    rejected: float
    effect: float


def rates(plantings: Sequence[Planting]) -> list[Rate]:
    """Plantings counted by kind and strength."""
    found = []
    for kind, strength in dict.fromkeys((row.kind, row.strength) for row in plantings):
        rows = [row for row in plantings if (row.kind, row.strength) == (kind, strength)]
        said = {
            outcome: sum(row.outcome == outcome for row in rows)
            for outcome in ("supported", "contradicted", "no evidence", "cannot tell")
        }
        wrong = said["supported"] + said["contradicted"]
        right = len(rows) - wrong if kind == RANDOM else said[WANTED[kind]]
        interval = stats.binomtest(right, len(rows)).proportion_ci(method="exact")
        effects = np.array([row.effect for row in rows])
        found.append(
            Rate(
                kind,
                strength,
                len(rows),
                said["supported"],
                said["contradicted"],
                said["no evidence"],
                said["cannot tell"],
                right / len(rows),
                float(interval.low),
                float(interval.high),
                float(np.mean([row.p < 0.05 for row in rows])),
                float(np.nanmedian(effects)) if np.isfinite(effects).any() else float("nan"),
            )
        )
    return found
