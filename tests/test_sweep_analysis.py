"""What a sweep's frames say: tests against exact ones, planted effects, the paper's own numbers."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import polars
import pytest
from scipy import stats
from swept import KINDS, swept

from glulens.errors import DataError
from glulens.interp import claims as paper
from glulens.interp import sweep_stats
from glulens.interp.resamples import benjamini_hochberg
from glulens.interp.sweep_analysis import analyse
from glulens.interp.sweep_measures import in_family, measures
from glulens.interp.sweep_report import sentences, shown, terminal, write_report
from glulens.interp.sweep_result import SweepResult
from glulens.interp.sweep_rows import curve_rows, matched_rows, paired_rows
from glulens.interp.sweep_stats import (
    among,
    at_same,
    correlate,
    interval,
    mcnemar,
    resampled,
    sign_flips,
)

FAST: dict[str, Any] = {"bootstraps": 400, "flips": 1000}


# Tests of items


def test_mcnemar_is_the_binomial_of_items_that_differ():
    first = np.array([0] * 8 + [1] * 1 + [1] * 20 + [0] * 5)
    second = np.array([1] * 8 + [0] * 1 + [1] * 20 + [0] * 5)
    found = mcnemar(first, second)
    assert (found.gained, found.lost) == (8, 1)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)  # 0 or 1 of 9 coins, both tails
    assert mcnemar(second, first).p == found.p
    assert mcnemar(first, first).p == 1
    for other in (first * 0.5, first[:-1]):
        for pair in ((other, second), (second, other)):
            with pytest.raises(ValueError, match="zeros and ones"):
                mcnemar(*pair)


def test_sign_flips_go_through_all_signs_of_few_items():
    d = np.array([[0.3, -0.1, 0.25, 0.4, 0.05, -0.3, 0.6], [1, -1, 1, -1, 1, -1, 0.0]])
    flips = np.array(list(itertools.product((-1, 1), repeat=7)))
    exact = [(np.abs(flips @ row) >= abs(row.sum()) - 1e-12).mean() for row in d]
    assert sign_flips(d) == pytest.approx(exact)
    assert sign_flips(np.zeros((1, 50))) == 1


def test_up_to_twelve_items_the_share_of_signs_is_exact():
    d = np.random.default_rng(3).normal(0.3, 1, (2, 12))
    flips = np.array(list(itertools.product((-1, 1), repeat=12)))
    exact = [(np.abs(flips @ row) >= abs(row.sum()) - 1e-12).mean() for row in d]
    assert sign_flips(d) == pytest.approx(exact, abs=1e-12)


def test_random_signs_never_give_a_p_of_0_and_depend_on_the_seed_alone():
    assert sign_flips(np.ones((1, 60)), draws=999) == pytest.approx(1 / 1000)
    d = np.random.default_rng(4).normal(0.2, 1, (3, 60))
    np.testing.assert_array_equal(sign_flips(d, draws=500), sign_flips(d, draws=500, seed=0))
    assert (sign_flips(d, draws=500) != sign_flips(d, draws=500, seed=1)).any()
    # The same draws serve all tests: p is each row's own, whatever stands beside it.
    assert sign_flips(d[1:2], draws=500) == sign_flips(d, draws=500)[1]


def test_many_items_are_drawn_in_parts_to_the_same_end(monkeypatch):
    rng = np.random.default_rng(5)
    d = rng.normal(0.2, 1, (2, 50))
    weights = rng.integers(1, 9, 50).astype(float)
    numbers = np.stack([3 * weights, d[0] * weights])
    once = sign_flips(d, draws=4000), resampled(numbers, weights, draws=1999)
    monkeypatch.setattr(sweep_stats, "_CELLS", 50 * 300)
    parts = sign_flips(d, draws=4000), resampled(numbers, weights, draws=1999)
    assert parts[0] == pytest.approx(once[0], abs=0.03)
    assert sign_flips(np.zeros((1, 50)), draws=1001) == 1
    assert parts[1].shape == (1999, 2)
    assert parts[1][:, 0] == pytest.approx(3)
    assert parts[1].mean(0) == pytest.approx(once[1].mean(0), abs=0.02)
    assert parts[1].std(0) == pytest.approx(once[1].std(0), rel=0.1)
    assert len(np.unique(parts[1][:, 1])) == 1999, "every draw is its own"


def test_every_item_is_as_likely_to_be_drawn():
    found = resampled(np.eye(20), np.ones(20), draws=4000)
    assert found.sum(1) == pytest.approx(1)
    # 5 standard errors of the mean of 4000 binomial counts over 20
    assert found.mean(0) == pytest.approx(1 / 20, abs=5 * np.sqrt(0.95 / 4000) / 20)
    assert found.std(0) == pytest.approx(np.sqrt(0.95) / 20, rel=0.1)


def test_an_interval_leaves_out_a_fortieth_on_either_side():
    draws = np.arange(1001.0)[:, None] * [1, -2]
    low, high = interval(np.random.default_rng(6).permutation(draws))
    assert low.tolist() == [25, -1950]
    assert high.tolist() == [975, -50]


def test_sign_flips_of_right_and_wrong_agree_with_mcnemar():
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 400)) < [[0.4], [0.46]]).astype(float)
    found = sign_flips((second - first)[None], draws=40_000)[0]
    assert found == pytest.approx(mcnemar(first, second).p, abs=0.01)


def test_sign_flips_keep_their_level_under_the_null():
    rng = np.random.default_rng(1)
    p = sign_flips(rng.standard_t(3, (1000, 40)), draws=999)
    assert p.min() >= 1 / 1000
    # 4 standard errors of a share of 1000 tests
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 1000))


def test_resampled_ratios_have_the_spread_of_their_items():
    rng = np.random.default_rng(2)
    weights = rng.integers(1, 9, 300).astype(float)
    values = rng.normal(2, 1, 300)
    numbers = np.stack([values * weights, values * weights + 0.5 * weights])
    found = resampled(numbers, weights, draws=4000)
    # Rows are resampled together, and a constant gap stays one.
    assert found[:, 1] - found[:, 0] == pytest.approx(0.5)
    score = numbers[0].sum() / weights.sum()
    parts = (values - score) * weights * 300 / weights.sum()
    assert found[:, 0].std() == pytest.approx(parts.std() / np.sqrt(300), rel=0.08)
    low, high = interval(found)
    assert low[0] < score < high[0]


def test_one_more_draw_is_a_prediction_from_t():
    z, p = among(5.0, [1.0, 2.0, 3.0])
    assert z == 3
    assert p == pytest.approx(2 * stats.t.sf(3 / np.sqrt(1 + 1 / 3), 2))
    for draws in ([1.0, 2.0], [2.0, 2.0, 2.0]):
        assert np.isnan(among(5.0, draws)).all()


# Series


@pytest.mark.parametrize("model", ["Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.2-1B-Instruct"])
def test_published_series_correlate_as_the_claims_say(model):
    """The paper's own numbers, through the sweep's code and through that of `glulens claims`."""
    data = paper.published()[model]
    (want,) = paper.claims([model]).correlations
    mmlu, mc2 = data[paper.MMLU], data[paper.MC2]
    scale = data.get(paper.PERPLEXITY)
    found = correlate(
        np.array(mmlu.values),
        np.array(mc2.values),
        np.array(mmlu.fractions),
        None if scale is None else np.log(scale.values),
    )
    for name in ("n", "r", "p", "rho", "rho_p", "given_fraction", "by_chance"):
        assert getattr(found, name) == pytest.approx(getattr(want, name)), name
    if found.n > 3:
        assert (found.without_low, found.without_high) == pytest.approx(want.without)
    assert found.given_perplexity == pytest.approx(want.given_perplexity, nan_ok=True)
    assert np.isnan(found.low)


def test_flat_and_short_series_have_no_correlation():
    x, fractions = np.arange(5.0), np.arange(5.0) / 10
    flat = correlate(x, np.full(5, 0.3), fractions)
    assert np.isnan([flat.r, flat.p, flat.rho, flat.by_chance, flat.given_fraction]).all()
    line = correlate(x, 2 - 3 * x, fractions)
    assert line.r == pytest.approx(-1)
    assert np.isnan(line.given_fraction)  # a line on the fraction leaves nothing
    short = correlate(x[:2], x[:2], fractions[:2])
    assert np.isnan(short.r)


def test_a_curve_is_read_between_its_points_and_not_beyond():
    values, inside = at_same(np.array([1.5, 4.0]), (np.array([2.0, 1.0]), np.array([10.0, 20.0])))
    assert values[0] == 15
    assert inside.tolist() == [True, False]
    curve = np.array([3.0, 1.0, 2.0]), np.array([30.0, 10.0, 25.0])
    values, inside = at_same(np.array([0.5, 1.0, 1.5, 2.5, 3.0, 3.5]), curve)
    assert values.tolist() == [10, 10, 17.5, 27.5, 30, 30]
    assert inside.tolist() == [False, True, True, True, True, False]


def test_series_under_resampled_items_give_r_its_interval():
    rng = np.random.default_rng(7)
    fractions = np.arange(6) / 10
    x, y = fractions + 0.1 * rng.normal(size=6), 3 * fractions + 0.4 * rng.normal(size=6)
    draws = [one + 0.1 * rng.normal(size=(300, 6)) for one in (x, y)]
    draws[1][7] = 0.25  # no item that tells cuts apart was drawn: no r
    found = correlate(x, y, fractions, x_draws=draws[0], y_draws=draws[1])
    rs = [np.corrcoef(a, b)[0, 1] for k, (a, b) in enumerate(zip(*draws, strict=True)) if k != 7]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(rs, [0.025, 0.975])))
    without = [np.corrcoef(np.delete(x, k), np.delete(y, k))[0, 1] for k in range(6)]
    assert (found.without_low, found.without_high) == pytest.approx((min(without), max(without)))
    for only in (
        correlate(x, y, fractions, x_draws=draws[0]),
        correlate(x, y, fractions, y_draws=draws[1]),
    ):
        assert np.isnan([only.low, only.high]).all()
        assert only.r == found.r
    without_r = correlate(x, np.full(6, 0.3), fractions, x_draws=draws[0], y_draws=draws[1])
    assert np.isnan([without_r.r, without_r.low, without_r.high]).all()
    flat = np.full((300, 6), 0.5)
    none = correlate(x, y, fractions, x_draws=draws[0], y_draws=flat)
    assert np.isnan([none.low, none.high]).all()


def test_three_points_have_an_r_and_nothing_that_needs_four():
    x, y, fractions = np.array([1.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0]), np.array([0, 0.2, 0.3])
    found = correlate(x, y, fractions, np.array([1.0, 3.0, 2.0]))
    assert found.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    lacking = [found.without_low, found.without_high, found.given_fraction, found.given_perplexity]
    assert np.isnan(lacking).all()
    four = correlate(np.append(x, 3), np.append(y, 1), np.append(fractions, 0.7))
    assert -1 <= four.without_low < four.without_high <= 1
    assert -1 <= four.given_fraction <= 1


def test_a_point_that_is_all_there_is_to_a_series_is_not_left_out():
    """Without it the rest is flat and has no r; the others still have theirs."""
    x, y = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([2.0, 1.0, 1.0, 1.0, 1.0])
    found = correlate(x, y, np.arange(5) / 10)
    without = [np.corrcoef(np.delete(x, k), np.delete(y, k))[0, 1] for k in range(1, 5)]
    assert (found.without_low, found.without_high) == pytest.approx((min(without), max(without)))


def test_a_perplexity_that_is_not_a_number_is_not_given():
    x, y = np.array([1.0, 2.0, 4.0, 3.0, 6.0]), np.array([2.0, 1.0, 5.0, 4.0, 4.5])
    scale = np.array([1.0, 2.0, 2.5, np.inf, 4.0])
    found = correlate(x, y, np.array([0, 0.1, 0.2, 0.4, 0.5]), scale)
    assert np.isnan(found.given_perplexity)
    assert -1 <= found.given_fraction <= 1


# A whole sweep


@pytest.fixture(scope="module")
def hurt() -> SweepResult:
    """ppm does as much damage as random cuts do, vow much more."""
    return swept(harm={"ppm": 1.0, "vow": 2.0, "reversed": 2.5}, draws=5)


@pytest.fixture(scope="module")
def analysis(hurt):
    return analyse(hurt, **FAST)


def test_scores_are_the_harness_own(hurt, analysis):
    scores = {(r.point, r.task, r.metric): r for r in analysis.scores}
    items = hurt.items.filter(point=3)
    mmlu = items.filter(task="mmlu")["value"]
    assert scores[3, "mmlu", "acc"].value == mmlu.mean()
    wiki = items.filter(task="wikitext")
    total = (wiki["value"] * wiki["weight"]).sum() / wiki["weight"].sum()
    row = scores[3, "wikitext", "word_perplexity"]
    assert row.value == pytest.approx(np.exp(-total))
    assert row.low < row.value < row.high
    assert scores[0, "truthfulqa_mc2", "acc"].floor == 0.4641
    assert np.isnan(row.floor)


def test_the_family_is_criteria_in_tested_metrics_and_q_is_bh(hurt, analysis):
    family = [row for row in analysis.tests if row.q == row.q]
    # 2 criteria x 6 fractions x (MC2, MMLU, LAMBADA twice, WikiText, IFEval) x 2 rivals
    assert len(family) == 2 * 6 * 6 * 2
    assert {row.criterion for row in family} == {"ppm", "vow"}
    keys = [of.key for of in in_family(measures(hurt))]
    assert {(row.task, row.metric) for row in family} == set(keys)
    assert ("ifeval", "inst_level_strict_acc") not in keys
    assert [row.q for row in family] == pytest.approx(benjamini_hochberg([r.p for r in family]))
    among_draws = [row for row in family if row.p_draws == row.p_draws]
    assert {row.against for row in among_draws} == {"random"}
    assert [row.q_draws for row in among_draws] == pytest.approx(
        benjamini_hochberg([row.p_draws for row in among_draws])
    )
    # Random cuts are compared with the intact model, without q, and never with themselves.
    own = [row for row in analysis.tests if row.control == "random"]
    assert own
    assert {row.against for row in own} == {"intact"}
    assert all(np.isnan(row.q) for row in own)


def test_a_criterion_that_hurts_is_told_from_random_cuts_and_one_that_does_not_is_not(analysis):
    first, second, *_ = sentences(analysis)
    better, worse, same = _counts(second)
    assert second.startswith("vow: of 36")
    # MC2 rises with damage in these data: harm counts as better there, as worse elsewhere.
    assert worse >= 25
    assert better >= 5
    assert same <= 5
    assert first.startswith("ppm: of 36")
    assert _counts(first)[2] >= 33


def test_what_items_say_and_few_draws_do_not_is_not_hidden(analysis):
    undecided = [replace(row, q_draws=0.5) for row in analysis.tests]
    said = sentences(replace(analysis, tests=undecided))[1]
    assert _counts(said)[:2] == [0, 0]
    by_items = sum(r.q < 0.05 for r in undecided if (r.against, r.criterion) == ("random", "vow"))
    assert f"over items alone {by_items} differ" in said


def _counts(sentence: str) -> list[int]:
    words = sentence.split()
    return [int(words[words.index(f"{name}") - 1]) for name in ("better,", "worse,", "not")]


def test_right_and_wrong_take_mcnemar_where_there_is_one_rival():
    found = analyse(swept(criteria=("ppm",), draws=1, items=60, fractions=(0.2, 0.4)), **FAST)
    rows = [row for row in found.tests if row.task == "mmlu" and row.criterion == "ppm"]
    assert {row.test for row in rows} == {"McNemar"}
    for row in rows:
        assert row.gained is not None
        assert row.lost is not None
        assert row.difference == pytest.approx((row.gained - row.lost) / row.n)
        assert np.isnan(row.z)
    mc2 = [row for row in found.tests if row.task == "truthfulqa_mc2"]
    assert {row.test for row in mc2} == {"sign flips"}
    assert {row.gained for row in mc2} == {None}


def test_perplexities_are_compared_by_their_logarithms(analysis):
    rows = [
        r for r in analysis.tests if (r.task, r.against) == ("wikitext", "random") and r.q == r.q
    ]
    for row in rows:
        assert row.difference == pytest.approx(np.log(row.value / row.rival))
        assert row.low <= row.difference <= row.high


def test_cuts_of_equal_perplexity_score_alike_where_damage_is_all_there_is(analysis):
    rows = [r for r in analysis.matched if r.criterion == "vow" and r.task == "mmlu"]
    known = [row for row in rows if row.difference == row.difference]
    assert [row.fraction for row in known] == [0.1, 0.2]  # twice the damage: 20 % and 40 %
    for row in known:
        assert row.low <= 0 <= row.high
        assert row.random_fraction == pytest.approx(2 * row.fraction, abs=0.06)
        plain = next(
            t for t in analysis.tests
            if (t.task, t.against, t.point) == ("mmlu", "random", row.point)
        )  # fmt: skip
        assert plain.high < 0
    beyond = matched_rows(analysis)[1][-1]
    assert beyond[5] == "none so damaged"
    assert not any(row.task == "wikitext" for row in analysis.matched)


def test_what_a_criterion_spares_beyond_damage_shows_at_equal_perplexity():
    """ppm is made to keep MMLU as it was, at the damage that it does."""
    result = swept(criteria=("ppm",), harm={"ppm": 1.5}, draws=3)
    spared = result.points.filter(criterion="ppm")["point"]
    intact = result.items.filter(task="mmlu", point=0).select("doc_id", kept="value")
    items = result.items.join(intact, on="doc_id", how="left", maintain_order="left").with_columns(
        value=polars.when(
            (polars.col("task") == "mmlu") & polars.col("point").is_in(spared.implode())
        )
        .then("kept")
        .otherwise("value")
    )
    found = analyse(replace(result, items=items.drop("kept")), **FAST)
    rows = [r for r in found.matched if (r.task, r.criterion) == ("mmlu", "ppm")]
    known = [row for row in rows if row.difference == row.difference]
    assert len(known) >= 3
    assert all(row.low > 0 for row in known)


def test_every_random_order_is_a_series_of_its_own(analysis):
    assert [(row.criterion, row.control) for row in analysis.correlations] == [
        ("ppm", None),
        ("vow", None),
        *((f"random:{k}", "random") for k in range(5)),
        ("reversed:ppm", "reversed"),
        ("reversed:vow", "reversed"),
    ]
    for row in analysis.correlations:
        assert row.found.n == 7
        assert row.found.r < -0.9
        assert row.found.low <= row.found.r <= row.found.high


def test_instructions_and_answers_are_told_kind_by_kind(hurt, analysis):
    assert {row.kind for row in analysis.instructions} == set(KINDS)
    row = next(r for r in analysis.instructions if (r.point, r.kind) == (2, KINDS[1]))
    part = hurt.items.filter(point=2, metric=f"inst_level_strict_acc:{KINDS[1]}")["value"]
    assert row.value == pytest.approx(part.mean())
    assert row.instructions == len(part)
    assert not any(":" in row.metric for row in analysis.scores)
    said = next(row for row in analysis.answers if row.point == 4)
    own = hurt.answers.filter(point=4)
    assert said.tokens == pytest.approx(own["answer_tokens"].mean())
    assert said.ended == pytest.approx(own["ended"].mean())
    assert said.empty == 0


def test_the_papers_numbers_stand_beside_ours():
    found = analyse(swept(model="meta-llama/Llama-3.2-1B", draws=2, items=30), **FAST)
    assert found.paper_model == "Llama-3.2-1B"
    row = next(r for r in found.paper if (r.task, r.fraction) == ("truthfulqa_mc2", 0.4))
    published = paper.published()["Llama-3.2-1B"][paper.MC2]
    assert row.paper == published.values[published.fractions.index(0.4)]
    ours = next(
        r for r in found.scores
        if (r.task, r.criterion, r.fraction) == ("truthfulqa_mc2", "ppm", 0.4)
    )  # fmt: skip
    assert row.ours == ours.value
    assert row.random_low <= row.random_high
    assert analyse(swept(draws=0, items=10, tasks=("mmlu",)), **FAST).paper == ()


def test_points_of_other_items_are_refused(hurt):
    lost = hurt.items.filter(~((polars.col("point") == 2) & (polars.col("doc_id") == 5)))
    with pytest.raises(DataError, match="points 0 and 2 have other items"):
        analyse(replace(hurt, items=lost), **FAST)
    gone = hurt.items.filter(~((polars.col("point") == 2) & (polars.col("task") == "mmlu")))
    with pytest.raises(DataError, match="mmlu: point 2 has no items"):
        analyse(replace(hurt, items=gone), **FAST)


def test_the_order_of_rows_changes_nothing(hurt, analysis):
    mixed = replace(hurt, items=hurt.items.sample(fraction=1, shuffle=True, seed=1))
    keys = ("point", "task", "metric", "against", "p", "q", "low")
    found = {tuple(getattr(r, k) for k in keys[:4]): r for r in analyse(mixed, **FAST).tests}
    for row in analysis.tests:
        other = found[row.point, row.task, row.metric, row.against]
        assert other.difference == pytest.approx(row.difference)
        assert other.gained == row.gained


# What is said


def test_the_report_says_what_was_found(hurt, tmp_path):
    found = write_report(hurt, tmp_path, analyse(hurt, **FAST))
    text = (tmp_path / "report.md").read_text()
    for said in sentences(found):
        assert said in text
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    for name in ("curves", "correlation", "matched", "ifeval", "instructions"):
        assert f"figures/{name}.png" in text
        assert (tmp_path / "figures" / f"{name}.svg").stat().st_size > 1000
        assert polars.read_csv(tmp_path / "figures" / f"{name}.csv").height
    for name, frame in found.tables().items():
        assert polars.read_csv(tmp_path / "tables" / f"{name}.csv").height == frame.height
    json.dumps(found.to_json(), allow_nan=False)


def test_tables_fit_a_terminal_and_say_random_beside_criteria(hurt, analysis):
    from rich.console import Console

    header, rows = curve_rows(analysis, shown(hurt), full=False)
    assert header[-1] == "floor"
    mmlu = [row for row in rows if row[0] == "MMLU"]
    assert [row[1] for row in mmlu] == [
        "ppm", "vow", "random, low", "random, high", "reversed:ppm", "reversed:vow",
    ]  # fmt: skip
    assert mmlu[0][-1] == "0.250"
    assert "*" in "".join(mmlu[1])
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(terminal(hurt, analysis))
    text = console.export_text()
    assert "…" not in text
    assert sentences(analysis)[0] in " ".join(text.split())  # folded at the terminal's width


@pytest.mark.parametrize("draws", [0, 1])
def test_small_sweeps_have_a_report_too(draws, tmp_path):
    result = swept(
        criteria=("ppm",), draws=draws, is_reversed=False, tasks=("mmlu",), items=15,
        fractions=(0.5,),
    )  # fmt: skip
    found = write_report(result, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert ("no random cuts to compare with" in text) == (draws == 0)
    assert not found.correlations
    assert paired_rows(found, "random")[1] == [] if draws == 0 else len(found.tests) == 3


def test_a_sweep_of_nothing_but_the_intact_model_is_told(tmp_path):
    result = swept(criteria=(), draws=0, is_reversed=False, tasks=("mmlu",), items=15)
    write_report(result, tmp_path)
    assert "Nothing was cut." in (tmp_path / "report.md").read_text()
