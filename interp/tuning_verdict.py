"""Whether tuning changed the neurons of low magnitude: one verdict a measure, from one named rule.

The claim under test: *tuning changed low-magnitude neurons*, that is, a neuron's absolute change
falls with its magnitude before (a negative rho, see `concentration`). SESOI, the smallest rho of
interest, is 0.1. The rule, of one criterion that was named beforehand:

- supported: rho is at most -SESOI, its adjusted p is below 0.05, and the 95 % interval over layers
  is below 0.
- contradicted: rho is at least +SESOI with adjusted p below 0.05 and an interval above 0: the
  change lies in neurons of *high* magnitude.
- no evidence: the interval excludes rho of -SESOI or below. A rho between -SESOI and 0 can be told
  from 0 and still be this: it is smaller than what is of interest.
- cannot tell: everything else; the smallest rho found with 80 % power is given.
- nothing changed: no MLP has a change.

Weights stored in 16 bits lose small changes of large weights (see `rounding`). Where what equal
noise leaves after rounding is known (`if_rounded`), supported and contradicted ask the same of rho
beyond it as of rho itself. What does not pass is *no evidence* if the interval of the rest excludes
-SESOI or below, and *cannot tell* otherwise.

Where a model comes from a quantised file, rounding grows with the largest weight of a block, and
there is no control for it: what would be supported or contradicted is *cannot tell*.

The relative change (over the neuron's own norm) gets the same rule and one outcome more:

- arithmetic: the rule says supported (or contradicted), and of the absolute change it does not.
  Then dividing by norms that differ would do it alone, and nothing says that low-magnitude neurons
  were sought out. Were absolute changes dealt out at random, the absolute rho would be 0 and the
  relative one `if_alike`: so it is the absolute measure that tests this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from ..errors import UsageError
from .concentration import Concentration
from .dealing import Z95
from .verdict import ALPHA, POWER, SESOI, format_p

ChangeOutcome = Literal[
    "supported", "contradicted", "no evidence", "cannot tell", "nothing changed", "arithmetic"
]
CLAIM = "tuning changed low-magnitude neurons"
RELATIVE_CLAIM = "low-magnitude neurons changed more of themselves"
_QUANTISED = (
    "a model comes from a quantised file, whose rounding alone can look like this; compare "
    "unquantised checkpoints"
)


@dataclass(frozen=True)
class ChangeVerdict:
    """What one criterion says about where tuning changed a model.

    Attributes:
        outcome, sentence: of the absolute change; the primary ones.
        relative_outcome, relative_sentence: of the relative change.
        absolute, relative: the rows they rest on.
        smallest_detectable: size of the absolute rho that 4 of 5 such models would show; None where
            nothing changed.
    """

    criterion: str
    outcome: ChangeOutcome
    sentence: str
    relative_outcome: ChangeOutcome
    relative_sentence: str
    absolute: Concentration
    relative: Concentration
    smallest_detectable: float | None
    sesoi: float = SESOI


def judge_change(
    rows: Sequence[Concentration], criterion: str | None = None, *, quantised: bool = False
) -> ChangeVerdict:
    """Apply the rule above.

    Args:
        rows: as `concentration` returns them.
        criterion: the one to judge by; the first of the rows without it.
        quantised: whether either model comes from a quantised file.

    Raises:
        UsageError: there is no such row.
    """
    name = criterion if criterion is not None else rows[0].criterion if rows else ""
    found = {row.measure: row for row in rows if row.criterion == name}
    if len(found) != 2:
        known = ", ".join(dict.fromkeys(row.criterion for row in rows))
        raise UsageError(f"no test of criterion {name!r} to judge by; there are: {known or 'none'}")
    absolute, relative = found["absolute"], found["relative"]
    outcome, of_relative = _outcome(absolute), _outcome(relative)
    if of_relative in ("supported", "contradicted") and outcome != of_relative:
        of_relative = "arithmetic"
    held_back = quantised and outcome in ("supported", "contradicted")
    if held_back:
        outcome = of_relative = "cannot tell"
    changed = outcome != "nothing changed"
    return ChangeVerdict(
        criterion=name,
        outcome=outcome,
        sentence=_sentence(outcome, absolute, _QUANTISED if held_back else ""),
        relative_outcome=of_relative,
        relative_sentence=_relative_sentence(of_relative, relative, held_back),
        absolute=absolute,
        relative=relative,
        smallest_detectable=_smallest(absolute) if changed else None,
    )


def _outcome(row: Concentration) -> ChangeOutcome:
    if not row.n_layers:
        return "nothing changed"
    plain = _plain(row)
    if plain not in ("supported", "contradicted") or row.beyond != row.beyond:
        return plain
    beyond = _rule(row.beyond, row.beyond_low, row.beyond_high, row.q)
    if beyond == plain:
        return plain
    return "no evidence" if beyond == "no evidence" else "cannot tell"


def _plain(row: Concentration) -> ChangeOutcome:
    """What the rule says of rho as it is."""
    return _rule(row.rho, row.low, row.high, row.q)


def _rule(rho: float, low: float, high: float, q: float) -> ChangeOutcome:
    if q < ALPHA and rho <= -SESOI and high < 0:
        return "supported"
    if q < ALPHA and rho >= SESOI and low > 0:
        return "contradicted"
    return "no evidence" if low > -SESOI else "cannot tell"


def _smallest(row: Concentration) -> float:
    return (Z95 + float(stats.norm.ppf(POWER))) * (row.high - row.low) / (2 * Z95)


def _numbers(row: Concentration, of: str) -> str:
    low, high = row.null_shares[0]
    what = "||change||^2" if row.measure == "absolute" else "(||change|| / ||weights||)^2"
    layers = "layer" if row.n_layers == 1 else "layers"
    return (
        f"Within-layer rank correlation of {row.criterion} with the {of} change, "
        f"{row.n_neurons:,} neurons in {row.n_layers} {layers}: rho {row.rho:+.2f} "
        f"[{row.low:+.2f}, {row.high:+.2f}], p = {format_p(row.p)}, q = {format_p(row.q)}; the "
        f"lowest tenth holds {row.shares[0]:.1%} of {what} (dealt out at random "
        f"{low:.1%} to {high:.1%})"
    )


def _why(outcome: ChangeOutcome, row: Concentration) -> str:
    if _plain(row) in ("supported", "contradicted"):
        return (
            "noise of one size on all weights, rounded to 16 bits as they are stored, would give "
            f"{row.if_rounded:+.2f} by itself; beyond that is {row.beyond:+.2f} "
            f"[{row.beyond_low:+.2f}, {row.beyond_high:+.2f}]"
        )
    if outcome == "no evidence":
        return f"the interval excludes rho of {-SESOI:g} or below"
    if row.rho <= -SESOI or row.rho >= SESOI:
        return "the layers disagree, or are too few, to tell it from luck"
    if row.high < 0 and row.q < ALPHA:
        return f"rho is below 0, and its interval reaches both sides of {-SESOI:g}"
    return f"only a rho from {_smallest(row):.2f} on would be found in 4 of 5 such pairs"


def _sentence(outcome: ChangeOutcome, row: Concentration, why_not: str) -> str:
    if outcome == "nothing changed":
        return "nothing changed: no weight of any MLP differs."
    claim, why = {
        "supported": (f"supported: {CLAIM}", "low-magnitude neurons moved further"),
        "contradicted": (
            f"contradicted: that {CLAIM}",
            "the change lies in neurons of high magnitude (a change by one factor everywhere "
            f"would give {row.if_alike:+.2f})",
        ),
        "no evidence": (f"no evidence that {CLAIM}", _why(outcome, row)),
        "cannot tell": (f"cannot tell whether {CLAIM}", why_not or _why(outcome, row)),
    }[outcome]
    return f"{claim}. {_numbers(row, 'absolute')}: {why}."


def _relative_sentence(outcome: ChangeOutcome, row: Concentration, held_back: bool) -> str:
    if outcome == "nothing changed":
        return "nothing changed: no weight of any MLP differs."
    beyond = row.rho - row.if_alike
    context = (
        f"changes dealt out at random would give {row.if_alike:+.2f}, since they are divided by "
        f"norms that differ; {beyond:+.2f} is beyond that"
    )
    claim = {
        "supported": f"supported: {RELATIVE_CLAIM}, and not by arithmetic alone",
        "contradicted": f"contradicted: that {RELATIVE_CLAIM}; those of high magnitude did",
        "no evidence": f"no evidence that {RELATIVE_CLAIM}",
        "cannot tell": f"cannot tell whether {RELATIVE_CLAIM}",
        "arithmetic": (
            f"arithmetic: {RELATIVE_CLAIM}, as dividing by their small norms would make it"
            if row.rho < 0
            else "arithmetic: high-magnitude neurons changed more of themselves, as dividing by "
            "norms that are small there would make it"
        ),
    }[outcome]
    why = f"{_why(outcome, row)}; " if outcome in ("no evidence", "cannot tell") else ""
    if held_back:
        why = f"{_QUANTISED}; "
    return f"{claim}. {_numbers(row, 'relative')}: {why}{context}."
