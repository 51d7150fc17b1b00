"""One verdict in words, from one named rule.

The claim under test: *misconceptions live in low-magnitude neurons*, that is, the absolute
attribution of a neuron to false-minus-true answers falls with its magnitude (a negative effect, see
`localisation`), and does so more than in a contrast between two true answers. Effects and intervals
are those corrected for attenuation; SESOI, the smallest effect of interest, is 0.1.

- supported: the effect is at most -SESOI, its adjusted p is below 0.05, and the effect minus the
  control's has a 95 % interval below 0.
- contradicted: the effect is at least +SESOI with adjusted p below 0.05: attribution sits in
  neurons of *high* magnitude.
- no evidence: the 95 % interval of the effect, or of the effect minus the control's, excludes
  effects as negative as -SESOI.
- cannot tell: everything else; the smallest effect found with 80 % power is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ..datasets.pairs import CONTROL, MISCONCEPTION
from .localisation import FAINT, Z95, Association, corrected

SESOI = 0.1
ALPHA = 0.05
POWER = 0.8
Outcome = Literal["supported", "contradicted", "no evidence", "cannot tell"]
CLAIM = "misconceptions live in low-magnitude neurons"


@dataclass(frozen=True)
class Specificity:
    """The corrected misconception effect minus the control's, items resampled together."""

    difference: float
    se: float
    low: float
    high: float
    n_control: int


@dataclass(frozen=True)
class Verdict:
    """What the primary test says about the claim; effects are corrected for attenuation."""

    outcome: Outcome
    sentence: str
    criterion: str
    effect: float | None
    low: float | None
    high: float | None
    p: float
    q: float
    n_items: int
    attenuation: float
    sesoi: float
    smallest_detectable: float | None
    specificity: Specificity | None


def compare(
    misconception: Association, control: Association, resampled: Mapping[str, np.ndarray]
) -> Specificity | None:
    """The difference of two corrected effects; None where either cannot be corrected.

    Args:
        resampled: effects [bootstraps] by property, from the same draws of items.
    """
    one, other = corrected(misconception), corrected(control)
    if one is None or other is None:
        return None
    spread = (
        resampled[MISCONCEPTION] / misconception.attenuation
        - resampled[CONTROL] / control.attenuation
    )
    difference, se = one[0] - other[0], float(spread.std(ddof=1))
    return Specificity(
        difference, se, difference - Z95 * se, difference + Z95 * se, control.n_items
    )


def judge(primary: Association, specificity: Specificity | None) -> Verdict:
    """Apply the rule above to the primary association (misconception, attribution)."""
    head = (
        f"Within-layer rank correlation of {primary.criterion} with |attribution|, "
        f"n = {primary.n_items} questions: "
    )
    tests = f"p = {format_p(primary.p)}, q = {format_p(primary.q)}"
    outcome: Outcome
    smallest = None
    found = corrected(primary)
    if found is None:
        effect = low = high = None
        outcome = "cannot tell"
        claim = f"cannot tell whether {CLAIM}"
        body = (
            f"{head}effect {primary.effect:+.3f} [{primary.low:+.3f}, {primary.high:+.3f}], "
            f"{tests}; attenuation {primary.attenuation:.3f} is below {FAINT:g}: at this number of "
            "items the labels leave no trace that could be located."
        )
    else:
        effect, low, high = found
        smallest = (Z95 + float(stats.norm.ppf(POWER))) * primary.se / primary.attenuation
        significant = primary.q < ALPHA
        if significant and effect <= -SESOI and specificity is not None and specificity.high < 0:
            outcome, claim = "supported", f"supported: {CLAIM}"
            why = "more so than in the contrast between two true answers"
        elif significant and effect >= SESOI:
            outcome, claim = "contradicted", f"contradicted: that {CLAIM}"
            why = "the attribution sits in neurons of high magnitude"
        elif low > -SESOI:
            outcome, claim = "no evidence", f"no evidence that {CLAIM}"
            why = f"the interval excludes effects of {-SESOI:g} or below"
        elif specificity is not None and specificity.low > -SESOI:
            outcome, claim = "no evidence", f"no evidence that {CLAIM} in particular"
            why = f"two true answers show it too, the difference excludes {-SESOI:g} or below"
        else:
            outcome, claim = "cannot tell", f"cannot tell whether {CLAIM}"
            why = f"only effects from {smallest:.2f} on would be found in 4 of 5 such runs"
        against = (
            "; minus control "
            f"{specificity.difference:+.2f} [{specificity.low:+.2f}, {specificity.high:+.2f}]"
            if specificity is not None
            else "; the control's contrast is too faint to compare with"
        )
        body = (
            f"{head}effect {effect:+.2f} [{low:+.2f}, {high:+.2f}] corrected for attenuation "
            f"{primary.attenuation:.2f}, {tests}{against}: {why}."
        )
    return Verdict(
        outcome=outcome,
        sentence=f"{claim}. {body}",
        criterion=primary.criterion,
        effect=effect,
        low=low,
        high=high,
        p=primary.p,
        q=primary.q,
        n_items=primary.n_items,
        attenuation=primary.attenuation,
        sesoi=SESOI,
        smallest_detectable=smallest,
        specificity=specificity,
    )


def format_p(p: float) -> str:
    """A p-value with as many digits as it has meaning."""
    return "-" if p != p else f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
