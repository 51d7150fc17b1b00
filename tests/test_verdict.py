"""The rule gives the outcome it promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from glulens.interp.localisation import Association
from glulens.interp.verdict import Check, Specificity, judge, specificity

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
