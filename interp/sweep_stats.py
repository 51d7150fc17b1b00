"""Statistics of a sweep, from arrays alone: paired tests over items, and series against series.

**Items are the unit.** Every cut of a sweep answers the same items, so two cuts are compared item
by item. For right or wrong it is McNemar's test, exact: of the items that only one of the two got
right, is the share one half? For other numbers the signs of the items' differences are flipped at
random, which asks the same of any metric whose null is that a cut's and its rival's answer to an
item could be exchanged (where the rival is the mean of several cuts it could not quite, and the
test is of the mean difference, right for many items). Intervals are percentiles of a bootstrap over
items; the same resampled items serve every cut, so that differences keep their pairing.

**Ratios.** A metric is a sum over a sum: what an item contributes over what it weighs. Weights are
1, but for perplexity by the word (an item weighs its words) and for IFEval by the instruction.

**Series.** Two tasks' scores along growing cuts are correlated as the paper does it (Pearson's r
over the cuts, the intact model among them). All scores go with the amount cut, so beside it stand
Spearman's rho, r with each point left out, r given the fraction and given log perplexity, and how
often two unrelated increasing series of as many points reach such an r (`claims.by_chance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .claims import by_chance, partial

BOOTSTRAPS = 2000
FLIPS = 10_000
_EXACT = 12
"""Items up to which all flips of signs are gone through."""
_CELLS = 1 << 22
"""Random numbers drawn at once."""
_NAN = float("nan")


@dataclass(frozen=True)
class McNemar:
    """Right and wrong answers of two cuts to the same items.

    Attributes:
        gained, lost: items that only the second, only the first got right.
        p: exact, two-sided; 1 where the two differ nowhere.
    """

    gained: int
    lost: int
    p: float


def is_binary(values: np.ndarray) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(values, (0, 1)).all())


def mcnemar(first: np.ndarray, second: np.ndarray) -> McNemar:
    """McNemar's exact test of two rows of zeros and ones [items].

    Raises:
        ValueError: other values, or other shapes.
    """
    if first.shape != second.shape or not (is_binary(first) and is_binary(second)):
        raise ValueError("McNemar's test is of zeros and ones, the same items in both")
    gained, lost = int((second > first).sum()), int((second < first).sum())
    both = gained + lost
    p = float(stats.binomtest(gained, both, 0.5).pvalue) if both else 1.0
    return McNemar(gained, lost, p)


def sign_flips(differences: np.ndarray, *, draws: int = FLIPS, seed: int = 0) -> np.ndarray:
    """p of every row's sum under random signs, two-sided.

    Args:
        differences: [tests, items]; the same draws serve all tests.

    Returns:
        p [tests]: the share of all 2^items signs for few items, otherwise (1 + b) / (1 + draws).
    """
    tests, n = differences.shape
    size = np.abs(differences.sum(1))
    # What differs from the observed by rounding alone reaches it.
    bound = size - 1e-9 * np.maximum(np.abs(differences).sum(1), 1e-300)
    if n <= _EXACT:
        codes = np.arange(1 << n)[:, None] >> np.arange(n)
        signs = (codes & 1) * 2.0 - 1
        return (np.abs(signs @ differences.T) >= bound).mean(0)
    rng = np.random.default_rng([seed, 11])
    reached = np.zeros(tests)
    step = max(1, _CELLS // n)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        signs = rng.integers(0, 2, (count, n), dtype=np.int8) * 2.0 - 1
        reached += (np.abs(signs @ differences.T) >= bound).sum(0)
    return (1 + reached) / (1 + draws)


def resampled(
    numbers: np.ndarray, weights: np.ndarray, *, draws: int = BOOTSTRAPS, seed: int = 0
) -> np.ndarray:
    """Ratios of sums under items drawn with replacement.

    Args:
        numbers: [rows, items], what each item contributes to each row's sum.
        weights: [items], what it weighs.

    Returns:
        [draws, rows]: sum of numbers over sum of weights. The items drawn are the same for all
        rows.
    """
    n = len(weights)
    rng = np.random.default_rng([seed, 12])
    columns = np.concatenate([numbers, weights[None]]).T
    found = np.empty((draws, len(columns[0])))
    step = max(1, _CELLS // n)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = rng.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        found[start : start + count] = times @ columns
    return found[:, :-1] / found[:, -1:]


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 % of draws [draws, ...]."""
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return low, high


def among(value: float, draws: Sequence[float]) -> tuple[float, float]:
    """How a value stands among random draws: z, and the p of one more such draw.

    The draws are taken for a sample of a normal distribution (t with len(draws) - 1 degrees of
    freedom, for one more draw). NaN with fewer than three, or where all are equal.
    """
    n = len(draws)
    if n < 3:
        return _NAN, _NAN
    sd = float(np.std(draws, ddof=1))
    if sd == 0:
        return _NAN, _NAN
    z = (value - float(np.mean(draws))) / sd
    return z, float(2 * stats.t.sf(abs(z) / np.sqrt(1 + 1 / n), n - 1))


@dataclass(frozen=True)
class Correlation:
    """Two series along the same cuts; see the module. NaN is what cannot be said.

    Attributes:
        n: points.
        r, p: Pearson's, two-sided (points taken as independent, which they are not).
        low, high: of r, 95 % bootstrap over items of both tasks; NaN without draws.
        rho, rho_p: Spearman's.
        without_low, without_high: smallest and largest r with one point left out.
        given_fraction, given_perplexity: partial r.
        by_chance: share of pairs of unrelated increasing series with at least this |r|.
    """

    n: int
    r: float
    p: float
    low: float
    high: float
    rho: float
    rho_p: float
    without_low: float
    without_high: float
    given_fraction: float
    given_perplexity: float
    by_chance: float


def correlate(
    x: np.ndarray,
    y: np.ndarray,
    fractions: np.ndarray,
    log_perplexity: np.ndarray | None = None,
    *,
    x_draws: np.ndarray | None = None,
    y_draws: np.ndarray | None = None,
    seed: int = 0,
) -> Correlation:
    """Correlate two tasks' scores over the cuts of one criterion.

    Args:
        x, y: scores [points].
        fractions: how much was cut [points].
        log_perplexity: of the same cuts, where it was measured.
        x_draws, y_draws: both scores under resampled items [draws, points].
    """
    n = len(x)
    r, p = _pearson(x, y)
    without = [_pearson(np.delete(x, k), np.delete(y, k))[0] for k in range(n)] if n > 3 else []
    without = [one for one in without if one == one]
    low = high = _NAN
    if x_draws is not None and y_draws is not None and r == r:
        low, high = (float(edge) for edge in interval(_rowwise(x_draws, y_draws)))
    rho, rho_p = _NAN, _NAN
    if r == r:
        ranked = stats.spearmanr(x, y)
        rho, rho_p = float(ranked.statistic), float(ranked.pvalue)  # pyright: ignore
    return Correlation(
        n,
        r,
        p,
        low,
        high,
        rho,
        rho_p,
        min(without, default=_NAN),
        max(without, default=_NAN),
        _given(x, y, fractions),
        _NAN if log_perplexity is None else _given(x, y, log_perplexity),
        by_chance(r, n, seed=seed) if r == r else _NAN,
    )


def _pearson(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    if len(x) < 3 or _is_flat(x) or _is_flat(y):
        return _NAN, _NAN
    found = stats.pearsonr(x, y)
    return float(found.statistic), float(found.pvalue)  # pyright: ignore


def _is_flat(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def _given(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Partial r; NaN where a line on the third series leaves nothing of one of the two."""
    if len(x) < 4 or not np.isfinite(given).all():
        return _NAN
    design = np.column_stack([np.ones(len(given)), given])
    for values in (x, y):
        left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        if np.abs(left).max() <= 1e-9 * max(float(np.abs(values).max()), 1e-300):
            return _NAN
    return partial(x, y, given)


def _rowwise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r of every row; rows without spread are left out."""
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    kept = size > 0
    return (x * y).sum(1)[kept] / size[kept] if kept.any() else np.array([_NAN])


def at_same(
    where: np.ndarray, curve: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A curve's values at given places, by straight lines between its points.

    Args:
        where: places [points].
        curve: places and values [points of the curve], in any order.

    Returns:
        Values [points], and whether each place lies within the curve's reach; beyond it the
        value is that of the nearest end.
    """
    order = np.argsort(curve[0], kind="stable")
    places, values = curve[0][order], curve[1][order]
    inside = (where >= places[0]) & (where <= places[-1])
    return np.interp(where, places, values), inside
