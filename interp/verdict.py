"""One verdict in words, from one named rule, and the controls beside it.

The claim under test: *misconceptions live in low-magnitude neurons*, that is, the absolute
attribution of a neuron to false-minus-true answers falls with its magnitude (a negative effect, see
`localisation`), and does so more than in a contrast between two true answers. Effects and intervals
are those corrected for attenuation; SESOI, the smallest effect of interest, is 0.1.

- supported: the effect is at most -SESOI, its adjusted p is below 0.05, the effect minus the
  control's has a 95 % interval below 0, and no control that is *required* (see `Check`) failed.
- contradicted: the effect is at least +SESOI with adjusted p below 0.05, and no required control
  failed: attribution sits in neurons of *high* magnitude.
- no evidence: the 95 % interval of the effect, or of the effect minus the control's, excludes
  effects as negative as -SESOI.
- cannot tell: everything else; the smallest effect found with 80 % power is given.

Where the control's labels are too faint to correct its effect there is nothing to compare with, and
nothing is called supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from ..datasets.pairs import MISCONCEPTION
from .localisation import FAINT, Z95, Association, corrected, differ

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
class Check:
    """One control of a verdict.

    Attributes:
        required: whether "supported" and "contradicted" need it.
        passed: None where it was not made, or cannot say.
        found: what was seen, in words.
    """

    name: str
    required: bool
    passed: bool | None
    found: str


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
    checks: tuple[Check, ...] = ()


def specificity(
    misconception: Association, control: Association, resampled: Mapping[str, np.ndarray]
) -> Specificity | None:
    """The misconception's effect minus the control's; None where either cannot be corrected.

    Args:
        resampled: effects [bootstraps] by property, from the same draws of items.
    """
    found = differ(misconception, control, resampled, paired=True)
    if found is None:
        return None
    return Specificity(found.difference, found.se, found.low, found.high, control.n_items)


def judge(
    primary: Association, against: Specificity | None, checks: Sequence[Check] = ()
) -> Verdict:
    """Apply the rule above to the primary association (misconception, attribution)."""
    assert primary.property == MISCONCEPTION
    head = (
        f"Within-layer rank correlation of {primary.criterion} with |attribution|, "
        f"n = {primary.n_items} questions: "
    )
    tests = f"p = {format_p(primary.p)}, q = {format_p(primary.q)}"
    outcome: Outcome
    smallest = None
    found = corrected(primary)
    failed = [check.name for check in checks if check.required and check.passed is False]
    if found is None:
        effect = low = high = None
        outcome = "cannot tell"
        claim = f"cannot tell whether {CLAIM}"
        body = (
            f"{head}effect {primary.effect:+.3f} [{primary.low:+.3f}, {primary.high:+.3f}], "
            f"{tests}; attenuation {primary.attenuation:.3f} (se {primary.attenuation_se:.3f}) is "
            f"below {FAINT:g} or not told from 0: at this number of items the labels leave no "
            "trace that could be located."
        )
    else:
        effect, low, high, se = found
        smallest = (Z95 + float(stats.norm.ppf(POWER))) * se
        significant = primary.q < ALPHA
        beyond = against is not None and against.high < 0
        if significant and abs(effect) >= SESOI and (effect > 0 or beyond) and failed:
            outcome, claim = "cannot tell", f"cannot tell whether {CLAIM}"
            why = f"the effect is there, but a required control failed ({', '.join(failed)})"
        elif significant and effect <= -SESOI and beyond:
            outcome, claim = "supported", f"supported: {CLAIM}"
            why = "more so than in the contrast between two true answers"
        elif significant and effect >= SESOI:
            outcome, claim = "contradicted", f"contradicted: that {CLAIM}"
            why = "the attribution sits in neurons of high magnitude"
        elif low > -SESOI:
            outcome, claim = "no evidence", f"no evidence that {CLAIM}"
            why = f"the interval excludes effects of {-SESOI:g} or below"
        elif against is not None and against.low > -SESOI:
            outcome, claim = "no evidence", f"no evidence that {CLAIM} in particular"
            why = f"two true answers show it too, the difference excludes {-SESOI:g} or below"
        else:
            outcome, claim = "cannot tell", f"cannot tell whether {CLAIM}"
            why = f"only effects from {smallest:.2f} on would be found in 4 of 5 such runs"
        compared = "; the control's contrast is too faint to compare with"
        if against is not None:
            compared = (
                "; minus control "
                f"{against.difference:+.2f} [{against.low:+.2f}, {against.high:+.2f}]"
            )
        body = (
            f"{head}effect {effect:+.2f} [{low:+.2f}, {high:+.2f}] corrected for attenuation "
            f"{primary.attenuation:.2f}, {tests}{compared}: {why}."
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
        specificity=against,
        checks=tuple(checks),
    )


def format_p(p: float) -> str:
    """A p-value with as many digits as it has meaning."""
    return "-" if p != p else f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
