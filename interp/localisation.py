"""Where in the order of magnitude a function lives: effect, null, interval, correction.

**Statistic.** For a weight score w and a functional score f of every neuron (the absolute mean
attribution, |d_z|, or |AUROC - 1/2|), Spearman's rank correlation within layers, averaged; and
those that `localiser` lists beside it.

**Null: labels permuted within an item.** Were the two texts of every pair exchangeable, swapping
them would change nothing; a swap turns the item's contrast x_i into -x_i for all neurons at once.
So under the null the functional scores come from (1/n) sum s_i x_i with random signs s, which keeps
the covariance between neurons. The null's mean is not 0: neurons with larger weights vary more, so
noise alone correlates with magnitude. The *effect* is the statistic minus that mean. p: see
`resamples.two_sided`.

**Interval.** Its standard error has two parts: of items (resampled with replacement), and of
neurons (what rho does between orders without meaning, `Localiser.chance`); the interval is effect
+- 1.96 se. Percentiles of the resampled statistic are not used: |mean| of a resample carries the
noise twice, which draws them towards the null (benchmarks/interval_coverage.py shows it). AUROC is
resampled with the ranks as they are.

**Correction.** Effects are divided by their attenuation (see there), whose own standard error
enters by the delta method. Where the labels leave too little to locate - an attenuation below
`FAINT`, or less than two standard errors from 0 - nothing is corrected. That is judged for all
criteria together, since it is about the property and its items.

Cost: B x neurons sorts. Memory: chunks of resamples x neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from ..progress import Progress, silent
from .attenuation import attenuation
from .localiser import TENTHS, Localiser, Profile
from .resamples import Function, Resamples, two_sided

FAINT = 0.1
Z95 = float(stats.norm.ppf(0.975))
NAN = float("nan")


@dataclass(frozen=True)
class Association:
    """One criterion against one functional score of one property."""

    property: str
    criterion: str
    function: Function
    n_items: int
    rho: float
    rho_null: float
    """Mean of the statistic under the null."""
    effect: float
    """rho - rho_null."""
    se: float
    """Of items and neurons together."""
    low: float
    high: float
    """95 % interval of the effect."""
    p: float
    attenuation: float
    """Effect seen per unit of true rank correlation at this number of items."""
    attenuation_se: float
    faint: bool
    """Whether the property's labels leave too little to locate; then nothing is corrected."""
    partial: float
    """rho given mean |activation| and output norm; equal to rho where no covariate was given."""
    partial_null: float
    partial_se: float
    partial_p: float
    share: float
    """Share of the functional score that the lowest tenth holds."""
    share_null: float
    share_se: float
    share_p: float
    q: float = NAN
    """p after Benjamini-Hochberg over the family; NaN for what is in none (controls)."""
    share_q: float = NAN


class Corrected(NamedTuple):
    """An effect corrected for attenuation, with its 95 % interval."""

    value: float
    low: float
    high: float
    se: float


def corrected(row: Association) -> Corrected | None:
    """Effect and interval corrected for attenuation; None where the labels' trace is too faint."""
    if row.faint or row.attenuation < FAINT / 2:
        return None
    value = row.effect / row.attenuation
    se = float(np.hypot(row.se, value * row.attenuation_se)) / row.attenuation
    return Corrected(value, value - Z95 * se, value + Z95 * se, se)


@dataclass(frozen=True)
class TenthRow:
    """What one tenth of a criterion's order holds of one functional score of one property.

    Attributes:
        tenth: 0 is the lowest.
        mass: share of the functional score; 0.1 were it spread evenly.
        top: share of the top 1 % functional neurons.
        mass_null, top_null: their means with labels swapped within items.
        mass_p, top_p: two-sided, from that null.
    """

    property: str
    criterion: str
    function: Function
    tenth: int
    mass: float
    mass_null: float
    mass_p: float
    top: float
    top_null: float
    top_p: float


@dataclass(frozen=True)
class Difference:
    """The corrected effect of one property minus another's, by one criterion."""

    property: str
    minus: str
    criterion: str
    function: Function
    difference: float
    se: float
    low: float
    high: float
    paired: bool
    """Whether they share items, which were then resampled together."""
    n_other: int


@dataclass(frozen=True)
class Found:
    """All that one functional score of one property tells.

    Attributes:
        associations: one a criterion.
        tenths: one a criterion and tenth.
        resampled: effects under resampled items [bootstraps, criteria].
        null: effects under swapped labels [permutations, criteria].
    """

    associations: tuple[Association, ...]
    tenths: tuple[TenthRow, ...]
    resampled: np.ndarray
    null: np.ndarray


def associate(
    localiser: Localiser,
    name: str,
    contrasts: np.ndarray,
    function: Function,
    flips: Resamples,
    boots: Resamples,
    rng: np.random.Generator,
    *,
    plantings: int | None = None,
    progress: Progress = silent,
) -> Found:
    """Test every criterion against one functional score of one property.

    Args:
        contrasts: [items, neurons], what `resamples.functional` takes.
        flips, boots: labels swapped, and items drawn again.
        plantings: orders planted for the attenuation, in each direction; see there.
    """
    n = len(contrasts)
    seen = localiser.over(contrasts, Resamples.observed(n), function)
    what = f"{name} by {function} (resamples)"
    count = len(flips) + len(boots)
    null = localiser.over(
        contrasts, flips, function, progress=lambda _, d, t: progress(what, d, count)
    )
    boot = localiser.over(
        contrasts, boots, function, progress=lambda _, d, t: progress(what, len(flips) + d, count)
    )
    faded = attenuation(localiser, contrasts, function, rng, plantings=plantings)
    usual, error = faded.value.mean(), faded.se.mean()
    faint = not (usual >= FAINT and usual >= 2 * error)  # also where items are too few for an error
    p, partial_p = two_sided(seen.rho[0], null.rho), two_sided(seen.partial[0], null.partial)
    if localiser.tenths:
        lowest = [part.mass[:, :, 0] for part in (seen, null, boot)]
    else:
        lowest = [np.full(part.rho.shape, NAN) for part in (seen, null, boot)]
    share_p = two_sided(lowest[0][0], lowest[1])
    centre, rows = null.rho.mean(0), []
    for k, criterion in enumerate(localiser.criteria):
        effect = float(seen.rho[0, k] - centre[k])
        se = float(np.hypot(boot.rho[:, k].std(ddof=1), localiser.chance))
        rows.append(
            Association(
                property=name,
                criterion=criterion,
                function=function,
                n_items=n,
                rho=float(seen.rho[0, k]),
                rho_null=float(centre[k]),
                effect=effect,
                se=se,
                low=effect - Z95 * se,
                high=effect + Z95 * se,
                p=float(p[k]),
                attenuation=float(faded.value[k]),
                attenuation_se=float(faded.se[k]),
                faint=faint,
                partial=float(seen.partial[0, k]),
                partial_null=float(null.partial[:, k].mean()),
                partial_se=float(np.hypot(boot.partial[:, k].std(ddof=1), localiser.chance)),
                partial_p=float(partial_p[k]),
                share=float(lowest[0][0, k]),
                share_null=float(lowest[1][:, k].mean()),
                share_se=float(lowest[2][:, k].std(ddof=1)),
                share_p=float(share_p[k]) if localiser.tenths else NAN,
            )
        )
    tenths = tuple(_tenths(localiser, name, function, seen, null)) if localiser.tenths else ()
    return Found(tuple(rows), tenths, boot.rho - centre, null.rho - centre)


def _tenths(
    localiser: Localiser, name: str, function: Function, seen: Profile, null: Profile
) -> Iterable[TenthRow]:
    mass_p, top_p = two_sided(seen.mass[0], null.mass), two_sided(seen.top[0], null.top)
    mass_null, top_null = null.mass.mean(0), null.top.mean(0)
    for k, criterion in enumerate(localiser.criteria):
        for tenth in range(TENTHS):
            place = k, tenth
            yield TenthRow(
                property=name,
                criterion=criterion,
                function=function,
                tenth=tenth,
                mass=float(seen.mass[0][place]),
                mass_null=float(mass_null[place]),
                mass_p=float(mass_p[place]),
                top=float(seen.top[0][place]),
                top_null=float(top_null[place]),
                top_p=float(top_p[place]),
            )


def differ(
    one: Association, other: Association, resampled: Mapping[str, np.ndarray], *, paired: bool
) -> Difference | None:
    """One property's corrected effect minus another's; None where either cannot be corrected.

    Args:
        resampled: effects [bootstraps] by property; from the same draws of items where `paired`,
            from independent ones otherwise.
    """
    first, second = corrected(one), corrected(other)
    if first is None or second is None:
        return None
    spread = resampled[one.property] / one.attenuation - resampled[other.property] / (
        other.attenuation
    )
    # The order of neurons is one for both: what chance does to it cancels as far as the two
    # functional scores agree. It is counted in full, on the safe side.
    chance = [
        np.sqrt(max(row.se**2 - resampled[row.property].var(ddof=1), 0)) / row.attenuation
        for row in (one, other)
    ]
    scale = [
        found.value * row.attenuation_se / row.attenuation
        for found, row in ((first, one), (second, other))
    ]
    se = float(np.sqrt(spread.var(ddof=1) + np.square([*chance, *scale]).sum()))
    value = first.value - second.value
    return Difference(
        one.property,
        other.property,
        one.criterion,
        one.function,
        value,
        se,
        value - Z95 * se,
        value + Z95 * se,
        paired,
        other.n_items,
    )
