"""The rule gives the outcome it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from glulens.interp.localisation import Association
from glulens.interp.verdict import Check, Specificity, format_p, judge, specificity

BASE = Association(
    property="misconception", criterion="ppm", function="attribution", n_items=100, rho=0.0,
    rho_null=0.0, effect=0.0, se=0.01, low=-0.02, high=0.02, p=0.001, attenuation=0.5,
    attenuation_se=0.0, faint=False, partial=0.0, partial_null=0.0, partial_se=0.01, partial_p=0.5,
    share=0.1, share_null=0.1, share_se=0.01, share_p=0.5, q=0.002,
)  # fmt: skip


def association(effect: float, se: float = 0.01, **changes) -> Association:
    low, high = effect - 1.96 * se, effect + 1.96 * se
    return replace(BASE, effect=effect, se=se, low=low, high=high, **changes)


def specific(low: float, high: float) -> Specificity:
    return Specificity((low + high) / 2, (high - low) / 4, low, high, 90)


@pytest.mark.parametrize(
    ("primary", "against", "outcome"),
    [
        (association(-0.10), specific(-0.3, -0.1), "supported"),
        (association(-0.10), specific(-0.3, 0.1), "cannot tell"),
        (association(-0.10), specific(-0.05, 0.1), "no evidence"),
        (association(-0.10), None, "cannot tell"),
        (association(-0.10, q=0.2), specific(-0.3, -0.1), "cannot tell"),
        (association(+0.10), specific(-0.3, -0.1), "contradicted"),
        (association(+0.00), specific(-0.3, 0.1), "no evidence"),
        (association(-0.04), specific(-0.3, 0.2), "cannot tell"),
        (association(+0.00, se=0.05), specific(-0.3, 0.2), "cannot tell"),
        (association(-0.30, faint=True), specific(-0.3, -0.1), "cannot tell"),
        (association(-0.10, attenuation_se=0.4), specific(-0.3, -0.1), "supported"),
        (association(-0.04, attenuation_se=0.4), specific(-0.3, -0.1), "cannot tell"),
        # At the very bounds: an effect of 0.1, a q of 0.05, intervals that end at 0 and at -0.1.
        (association(-0.05), specific(-0.3, -0.1), "supported"),
        (association(+0.05), specific(-0.3, -0.1), "contradicted"),
        (association(-0.10, q=0.05), specific(-0.3, -0.1), "cannot tell"),
        (association(-0.10), specific(-0.3, 0.0), "cannot tell"),
        (association(-0.10), specific(-0.1, 0.1), "cannot tell"),
    ],
)
def test_outcomes(primary, against, outcome):
    verdict = judge(primary, against)
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(outcome)
    assert "n = 100" in verdict.sentence
    assert "p = 0.0010" in verdict.sentence


def test_numbers_are_corrected_for_attenuation():
    verdict = judge(association(-0.10), specific(-0.3, -0.1))
    assert verdict.effect == pytest.approx(-0.2)
    assert verdict.low == pytest.approx((-0.1 - 1.96 * 0.01) / 0.5, rel=1e-4)
    assert verdict.smallest_detectable == pytest.approx(2.80 * 0.01 / 0.5, rel=0.01)


def test_the_comparison_with_the_control_is_paired():
    shared = np.random.default_rng(0).normal(size=400)
    one, other = association(-0.10), association(-0.05, n_items=90, property="control")
    paired = specificity(one, other, {"misconception": shared, "control": shared})
    assert paired is not None
    assert paired.difference == pytest.approx(-0.1)
    assert paired.se == pytest.approx(0, abs=1e-12)
    assert specificity(one, replace(other, faint=True), {}) is None


def test_what_is_not_known_of_the_attenuation_widens_the_interval():
    narrow = judge(association(-0.10), None)
    wide = judge(association(-0.10, attenuation_se=0.2), None)
    assert narrow.low is not None
    assert wide.low is not None
    assert wide.effect == narrow.effect
    assert wide.low < narrow.low
    # Delta method: sqrt(0.01^2 + (0.2 x 0.2)^2) / 0.5.
    assert wide.low == pytest.approx(-0.2 - 1.96 * np.hypot(0.01, 0.04) / 0.5, abs=1e-3)


@pytest.mark.parametrize("effect", [-0.10, 0.10])
def test_a_required_control_that_fails_takes_the_verdict_back(effect):
    def check(required, passed):
        return judge(
            association(effect),
            specific(-0.3, -0.1),
            [Check("untrained model", required, passed, "effect -0.30")],
        )

    said = "supported" if effect < 0 else "contradicted"
    assert check(required=True, passed=True).outcome == said
    assert check(required=True, passed=None).outcome == said
    assert check(required=False, passed=False).outcome == said
    failed = check(required=True, passed=False)
    assert failed.outcome == "cannot tell"
    assert "untrained model" in failed.sentence


def test_a_failed_control_takes_back_a_finding_and_nothing_else():
    failed = [
        Check("untrained model", True, False, "effect -0.30"),
        Check("permuted labels", False, False, "p 0.01"),
    ]
    # Not even beyond the control, and yet a finding: the opposite of the claim.
    upward = judge(association(0.10), specific(-0.05, 0.1), failed)
    assert upward.outcome == "cannot tell"
    assert "a required control failed (untrained model)" in upward.sentence
    # Nothing was found, so there is nothing to take back.
    assert judge(association(-0.10), specific(-0.05, 0.1), failed).outcome == "no evidence"
    assert judge(association(0.00), specific(-0.3, 0.1), failed).outcome == "no evidence"
    assert "control failed" not in judge(association(-0.10, q=0.2), None, failed).sentence


def test_the_sentence_says_why_and_with_what_it_was_compared():
    def said(*given):
        return judge(*given).sentence

    compared = said(association(-0.10), specific(-0.3, -0.1))
    assert "effect -0.20 [-0.24, -0.16] corrected for attenuation 0.50" in compared
    assert "q = 0.0020; minus control -0.20 [-0.30, -0.10]: more so than" in compared
    assert "too faint to compare with: only effects from 0.06" in said(association(-0.10), None)
    assert said(association(0.00), None).endswith("the interval excludes effects of -0.1 or below.")
    particular = said(association(-0.10), specific(-0.05, 0.1))
    assert particular.startswith("no evidence that misconceptions live in low-magnitude neurons in")
    assert particular.endswith("the difference excludes -0.1 or below.")
    assert said(association(0.10), None).endswith("sits in neurons of high magnitude.")
    faint = said(association(-0.30, faint=True), specific(-0.3, -0.1))
    assert "effect -0.300 [-0.320, -0.280]" in faint
    assert "attenuation 0.500 (se 0.000) is below 0.1 or not told from 0" in faint


def test_p_values_are_shown_with_the_digits_they_have():
    shown = {0.0012: "0.0012", 0.01: "0.010", 0.05: "0.050", 0.1: "0.10", 1.0: "1.00"}
    assert {p: format_p(p) for p in shown} == shown
    assert format_p(float("nan")) == "-"


def test_a_verdict_is_of_the_misconceptions_alone():
    for other in ("control", "truth"):  # before and after it in the alphabet
        with pytest.raises(AssertionError):
            judge(association(-0.10, property=other), None)
