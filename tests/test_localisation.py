"""The statistic against scipy, its null against simulation, its correction against known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from glulens.interp import localisation
from glulens.interp.attenuation import Attenuation, attenuation, systematic_energy
from glulens.interp.enrichment import EVERY, enrichment, hypergeometric
from glulens.interp.localisation import associate, corrected, differ
from glulens.interp.localiser import Localiser, tenth_bounds, tenth_of
from glulens.interp.resamples import Resamples, benjamini_hochberg, functional, two_sided
from glulens.probes.contrasts import rank_contrasts

WIDTHS = (60, 40)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_localiser(rng, *, ties: bool = False):
    scores = [rng.random(width) for width in WIDTHS]
    if ties:
        scores = [np.round(layer, 1) for layer in scores]
    return scores, Localiser({"c": scores})


def test_rank_correlation_is_scipys_averaged_over_layers(rng):
    for ties in (False, True):
        scores, localiser = make_localiser(rng, ties=ties)
        values = rng.random((3, sum(WIDTHS))).astype(np.float32)
        profile = localiser.by_layer(values)
        rho, share = profile.rho, profile.mass[..., 0]
        assert rho.shape == (2, 3, 1)
        for draw in range(3):
            begin = 0
            for layer, width in enumerate(WIDTHS):
                part = values[draw, begin : begin + width]
                begin += width
                assert rho[layer, draw, 0] == pytest.approx(
                    stats.spearmanr(scores[layer], part)[0], abs=1e-6
                )
                lowest = np.argsort(scores[layer], kind="stable")[: width // 10]
                assert share[layer, draw, 0] == pytest.approx(
                    part[lowest].sum() / part.sum(), rel=1e-5
                )


def test_functional_scores_are_their_definitions(rng):
    x = rng.normal(1, 2, (30, 7)).astype(np.float32)
    observed = Resamples.observed(30)
    np.testing.assert_allclose(functional(x, observed, "attribution")[0], abs(x.mean(0)), rtol=1e-5)
    dz = abs(x.mean(0)) / x.std(0, ddof=1)
    np.testing.assert_allclose(functional(x, observed, "dz")[0], dz, rtol=1e-4)
    flips = Resamples.sign_flips(30, 5, rng)
    boots = Resamples.bootstrap(30, 5, rng)
    for draw in range(5):
        flipped = flips.first[draw][:, None] * x
        dz = abs(flipped.mean(0)) / flipped.std(0, ddof=1)
        np.testing.assert_allclose(functional(x, flips, "dz")[draw], dz, rtol=1e-4)
        drawn = np.repeat(x, boots.first[draw].astype(int), axis=0)
        dz = abs(drawn.mean(0)) / drawn.std(0, ddof=1)
        np.testing.assert_allclose(functional(x, boots, "dz")[draw], dz, rtol=1e-4)
    constant = np.full((30, 2), 3, np.float32)
    np.testing.assert_array_equal(functional(constant, observed, "dz"), 0)


@pytest.mark.parametrize("value", [3, 0, -0.5, 0.1, -1e-3])
@pytest.mark.parametrize("items", [1, 2, 30, 800])
def test_what_never_varies_has_no_effect_size(value, items, rng):
    constant = np.full((items, 2), value, np.float32)  # in single precision 0.1 leaves rounding
    for resamples in (Resamples.observed(items), Resamples.bootstrap(items, 20, rng)):
        np.testing.assert_array_equal(functional(constant, resamples, "dz"), 0)


def test_what_hardly_varies_has_a_large_effect_size(rng):
    x = rng.normal(1, 0.02, (800, 30))
    expected = x.mean(0) / x.std(0, ddof=1)
    found = functional(x.astype(np.float32), Resamples.observed(800), "dz")[0]
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_an_effect_size_has_no_unit(rng):
    """A faint neuron's is that of a loud one."""
    x, observed = rng.normal(1, 2, (30, 40)), Resamples.observed(30)
    loud, faint = (functional((f * x).astype(np.float32), observed, "dz") for f in (1e3, 1e-6))
    np.testing.assert_allclose(faint, loud, rtol=1e-4)
    assert loud.min() > 0


def test_two_items_have_an_effect_size():
    x = np.array([[1.0, 4.0, -1.0], [3.0, 5.0, 2.0]], np.float32)
    expected = abs(x.mean(0)) / x.std(0, ddof=1)
    np.testing.assert_allclose(functional(x, Resamples.observed(2), "dz")[0], expected, rtol=1e-5)


def test_resamples_are_what_they_are_called(rng):
    flips, boots = Resamples.sign_flips(40, 500, rng), Resamples.bootstrap(40, 500, rng)
    assert len(flips) == len(boots) == 500
    assert len(Resamples.observed(40)) == 1
    assert set(np.unique(flips.first)) == {-1, 1}
    np.testing.assert_allclose(flips.first.mean(0), 0, atol=5 / np.sqrt(500))
    np.testing.assert_array_equal(flips.second, 1)
    np.testing.assert_array_equal(boots.first.sum(1), 40)
    np.testing.assert_array_equal(boots.second, boots.first)
    # A count is binomial: 40 draws of one item in 40.
    assert boots.first.var() == pytest.approx(1 - 1 / 40, rel=0.05)
    for resamples in (flips, boots):
        np.testing.assert_array_equal(resamples.total, 40)


def test_a_property_that_shares_some_items_sees_the_same_draws_of_them(rng):
    x = rng.normal(1, 1, (20, 5)).astype(np.float32)
    boots, some = Resamples.bootstrap(20, 6, rng), np.array([1, 2, 5, 8, 13])
    part = boots.subset(some)
    for function in ("attribution", "dz"):
        found = functional(x[some], part, function)
        for draw in range(6):
            drawn = np.repeat(x[some], boots.first[draw, some].astype(int), axis=0)
            expected = abs(drawn.mean(0))
            if function == "dz":
                expected = expected / drawn.std(0, ddof=1)
            np.testing.assert_allclose(found[draw], expected, rtol=1e-3)


def correlated_noise(rng, items, localiser_scores):
    """Neurons that share factors and vary more the larger they are: the null's hard case."""
    factors = rng.normal(size=(items, 3))
    layers = []
    for scores in localiser_scores:
        loads = np.random.default_rng(1).normal(size=(3, len(scores)))
        own = rng.normal(size=(items, len(scores)))
        layers.append((factors @ loads + own) * (0.2 + scores))
    return np.concatenate(layers, 1).astype(np.float32)


def test_p_is_uniform_under_the_null_with_shared_factors_where_neuron_permutation_is_not(rng):
    scores, localiser = make_localiser(rng)
    ours, permuted = [], []
    for _ in range(500):
        x = correlated_noise(rng, 20, scores)
        rho = localiser.over(x, Resamples.observed(20), "attribution").rho[0]
        null = localiser.over(x, Resamples.sign_flips(20, 99, rng), "attribution").rho
        ours.append(two_sided(rho, null)[0])
        value = functional(x, Resamples.observed(20), "attribution")
        begin, shuffled = 0, []
        for width in WIDTHS:
            part = value[0, begin : begin + width]
            shuffled.append(np.stack([rng.permutation(part) for _ in range(99)]))
            begin += width
        permutations = localiser.by_layer(np.concatenate(shuffled, 1)).averaged().rho
        permuted.append(two_sided(rho, permutations)[0])
    assert stats.kstest(ours, "uniform").pvalue > 0.01
    assert np.mean(np.array(ours) < 0.05) < 0.08, "5 % + 3 standard errors"
    assert np.mean(np.array(permuted) < 0.05) > 0.3, "permuting neurons rejects a true null"


def test_a_planted_localisation_is_found_with_its_sign(rng):
    scores, localiser = make_localiser(rng)
    noise = correlated_noise(rng, 60, scores)
    for direction in (-1, 1):
        size = np.concatenate([np.exp(direction * 3 * s) for s in scores])
        x = (noise + size * rng.choice([-1, 1], size.shape)).astype(np.float32)
        flips, boots = Resamples.sign_flips(60, 199, rng), Resamples.bootstrap(60, 100, rng)
        whole = associate(localiser, "p", x, "attribution", flips, boots, rng)
        (found,), resampled = whole.associations, whole.resampled
        assert found.effect * direction > 0.1
        assert found.p == pytest.approx(2 / 200)
        assert found.low < found.effect < found.high
        assert (found.share > found.share_null) == (direction < 0)
        assert resampled.shape == (100, 1)


def test_the_correction_recovers_a_true_effect_that_noise_hides():
    rng = np.random.default_rng(5)
    widths = (600,) * 6
    scores = [rng.random(w) for w in widths]
    localiser = Localiser({"c": scores})
    spread = np.concatenate([np.exp(0.8 * rng.normal(size=600)) * (0.5 + s) for s in scores])

    def planted(correlation):
        parts = []
        for layer in scores:
            normal = stats.norm.ppf((stats.rankdata(layer) - 0.5) / 600)
            score = correlation * normal + np.sqrt(1 - correlation**2) * rng.normal(size=600)
            parts.append(stats.halfnorm.ppf((stats.rankdata(score) - 0.5) / 600))
        return 0.15 * np.concatenate(parts) * rng.choice([-1, 1], 3600)

    mu, unrelated = planted(-0.5) * spread, planted(0) * spread
    truth = (
        localiser.by_layer(abs(mu)[None]).rho - localiser.by_layer(abs(unrelated)[None]).rho
    ).mean()
    for items, seen_below in ((20, 0.35), (200, 0.75)):
        x = (rng.normal(size=(items, 3600)) * spread + mu).astype(np.float32)
        flips, boots = Resamples.sign_flips(items, 200, rng), Resamples.bootstrap(items, 100, rng)
        (found,) = associate(localiser, "p", x, "attribution", flips, boots, rng).associations
        assert found.attenuation < seen_below
        value = corrected(found)
        assert value is not None
        assert abs(found.effect) < seen_below * abs(truth) + 0.03
        assert value[0] == pytest.approx(truth, abs=0.09)


def test_pure_noise_is_called_too_faint_to_locate(rng):
    _, localiser = make_localiser(rng)
    x = rng.normal(size=(40, sum(WIDTHS))).astype(np.float32)
    x -= x.mean(0)  # no systematic part whatever
    assert attenuation(localiser, x, "attribution", rng).value == pytest.approx(0, abs=0.05)


def test_energy_is_unbiased(rng):
    mu = np.array([0.0, 0.5, -2.0])
    found = np.mean([systematic_energy(rng.normal(mu, 1, (10, 3))) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(found, mu**2, atol=0.06)


def test_constant_scores_order_nothing():
    localiser = Localiser({"c": [np.ones(30)]})
    rho = localiser.by_layer(np.random.default_rng(0).random((2, 30)).astype(np.float32)).rho
    np.testing.assert_array_equal(rho, 0)


def test_two_sided_p_counts_the_observed_itself():
    null = np.arange(99, dtype=float)[:, None]
    assert two_sided(np.array([1000.0]), null)[0] == pytest.approx(2 / 100)
    assert two_sided(np.array([-1.0]), null)[0] == pytest.approx(2 / 100)
    assert two_sided(np.array([49.0]), null)[0] == 1
    # Draws that equal the observed count on both sides.
    assert two_sided(np.array([97.0]), null)[0] == pytest.approx(2 * 3 / 100)
    assert two_sided(np.array([1.0]), null)[0] == pytest.approx(2 * 3 / 100)
    assert two_sided(np.array([0.5]), null)[0] == pytest.approx(2 * 2 / 100)


def test_benjamini_hochberg_by_hand():
    p = [0.01, 0.04, 0.03, 0.5]
    np.testing.assert_allclose(benjamini_hochberg(p), [0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]).size == 0


def test_auroc_is_scikit_learns_and_swapped_labels_give_that_of_swapped_labels(rng):
    from sklearn.metrics import roc_auc_score

    n = 25
    a, b = rng.normal(0.4, 1, (n, 6)).round(1), rng.normal(0, 1, (n, 6)).round(1)
    contrasts = rank_contrasts(a, b)
    labels = np.repeat([1, 0], n)
    for draw in (np.ones(n, bool), rng.random(n) < 0.5):
        signs = np.where(draw, 1, -1)
        first, second = np.where(draw[:, None], a, b), np.where(draw[:, None], b, a)
        for k in range(6):
            area = roc_auc_score(labels, np.concatenate([first[:, k], second[:, k]]))
            assert (signs @ contrasts[:, k]) / n == pytest.approx(area - 0.5, abs=1e-6)


def test_partial_is_the_correlation_of_what_regression_leaves(rng):
    width = 80
    loud = rng.random(width)
    other = rng.random(width)
    score = loud + 0.3 * rng.random(width)
    value = (loud + 0.3 * rng.random(width) + 0.5 * other)[None].astype(np.float32)
    localiser = Localiser({"c": [score]}, [[loud], [other]])

    def left(x):
        ranks = [stats.rankdata(part) for part in (loud, other)]
        design = np.stack([np.ones(width), *ranks], 1)
        y = stats.rankdata(x)
        return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]

    expected = stats.pearsonr(left(score), left(value[0]))[0]
    profile = localiser.by_layer(value)
    assert profile.partial[0, 0, 0] == pytest.approx(expected, abs=1e-5)
    assert abs(profile.partial[0, 0, 0]) < profile.rho[0, 0, 0], "loudness made the rest"
    alone = Localiser({"c": [score]}).by_layer(value)
    assert alone.partial[0, 0, 0] == pytest.approx(alone.rho[0, 0, 0])


def test_tenths_and_top_neurons_are_counted(rng):
    scores = [rng.random(width) for width in (205, 100)]
    localiser = Localiser({"c": scores})
    value = rng.random((2, 305)).astype(np.float32)
    profile = localiser.by_layer(value)
    begin = 0
    for layer, score in enumerate(scores):
        part = value[1, begin : begin + len(score)]
        begin += len(score)
        order = np.argsort(score)
        bounds = tenth_bounds(len(score))
        top = set(np.argsort(part)[-round(len(score) / 100) :])
        for tenth in range(10):
            chosen = order[bounds[tenth] : bounds[tenth + 1]]
            np.testing.assert_array_equal(np.sort(chosen), np.flatnonzero(tenth_of(score) == tenth))
            assert profile.mass[layer, 1, 0, tenth] == pytest.approx(
                part[chosen].sum() / part.sum(), rel=1e-5
            )
            assert profile.top[layer, 1, 0, tenth] == pytest.approx(
                len(top & set(chosen)) / len(top)
            )
    assert profile.mass.sum(-1) == pytest.approx(1, abs=1e-5)


def test_tenths_of_a_few_neurons_still_have_a_lowest():
    np.testing.assert_array_equal(tenth_of(np.array([3.0, 1.0, 2.0])), [9, 0, 6])
    for width in (1, 2, 9, 10, 11, 1536):
        bounds = tenth_bounds(width)
        assert bounds[0] == 0
        assert bounds[-1] == width
        assert (np.diff(bounds) >= 0).all()
        assert bounds[1] >= 1


def test_chance_over_orders_is_what_simulation_gives(rng):
    values = rng.random((1, sum(WIDTHS))).astype(np.float32)
    found = [
        Localiser({"c": [rng.random(w) for w in WIDTHS]}, tenths=False).by_layer(values).rho.mean()
        for _ in range(1500)
    ]
    assert np.std(found) == pytest.approx(make_localiser(rng)[1].chance, rel=0.08)


def test_enrichment_is_hypergeometric_within_layers_and_simulated_over_them(rng):
    scores = [rng.random(200), rng.random(300)]
    values = [score.max() - score for score in scores]  # the top ones are the lowest
    rows = enrichment("p", "c", "attribution", scores, values)
    by = {(row.layer, row.tenth): row for row in rows}
    assert by[0, 0].found == 2
    assert by[1, 0].found == 3
    assert by[0, 0].more_p == pytest.approx(stats.hypergeom.sf(1, 200, 20, 2))
    assert by[EVERY, 0].found == 5
    assert by[EVERY, 0].expected == pytest.approx(0.5)
    assert by[EVERY, 9].found == 0
    none = (180 * 179) / (200 * 199) * (270 * 269 * 268) / (300 * 299 * 298)
    assert by[EVERY, 9].fewer_p == pytest.approx(none)
    assert by[EVERY, 9].more_p == pytest.approx(1)
    drawn = rng.hypergeometric(20, 180, 2, 20000) + rng.hypergeometric(30, 270, 3, 20000)
    spread = np.convolve(hypergeometric(200, 20, 2), hypergeometric(300, 30, 3))
    np.testing.assert_allclose(np.bincount(drawn, minlength=6) / 20000, spread, atol=0.01)


def test_differences_carry_both_properties_errors(rng):
    scores, localiser = make_localiser(rng)
    noise = correlated_noise(rng, 80, scores)
    size = np.concatenate([np.exp(-3 * s) for s in scores])
    x = (noise + size * rng.choice([-1, 1], size.shape)).astype(np.float32)
    rows, draws = {}, {}
    boots = Resamples.bootstrap(80, 100, rng)
    for name, matrix in (("one", x), ("other", -x)):
        flips = Resamples.sign_flips(80, 100, rng)
        whole = associate(localiser, name, matrix, "attribution", flips, boots, rng)
        rows[name], draws[name] = whole.associations[0], whole.resampled[:, 0]
    same = differ(rows["one"], rows["other"], draws, paired=True)
    assert same is not None
    assert same.difference == pytest.approx(0, abs=0.1)
    assert same.low < 0 < same.high
    assert same.se > corrected(rows["one"]).se / 2  # pyright: ignore[reportOptionalMemberAccess]


def associated(rng, *, tenths=True, progress=None):
    """Two criteria and a covariate; the association, and the profiles it was made of."""
    scores = [rng.random(width) for width in WIDTHS]
    other = [layer + rng.random(len(layer)) for layer in scores]
    loud = [rng.random(width) for width in WIDTHS]
    localiser = Localiser({"one": scores, "two": other}, [loud], tenths=tenths)
    size = np.concatenate([np.exp(-2 * s) for s in scores])
    x = correlated_noise(rng, 30, scores) + 0.3 * size * rng.choice([-1, 1], size.shape)
    x = x.astype(np.float32)
    flips, boots = Resamples.sign_flips(30, 40, rng), Resamples.bootstrap(30, 50, rng)
    more = {} if progress is None else {"progress": progress}
    found = associate(localiser, "p", x, "dz", flips, boots, rng, plantings=2, **more)
    seen, null, boot = (localiser.over(x, r, "dz") for r in (Resamples.observed(30), flips, boots))
    return localiser, found, seen, null, boot


def test_every_number_of_an_association_is_its_definition(rng):
    localiser, found, seen, null, boot = associated(rng)
    parts = [profile.mass[:, :, 0] for profile in (seen, null, boot)]
    assert [row.criterion for row in found.associations] == ["one", "two"]
    for k, row in enumerate(found.associations):
        assert (row.property, row.function, row.n_items) == ("p", "dz", 30)
        assert row.rho == pytest.approx(seen.rho[0, k])
        assert row.rho_null == pytest.approx(null.rho[:, k].mean(), abs=1e-6)
        assert row.effect == pytest.approx(row.rho - row.rho_null)
        assert row.se == pytest.approx(np.hypot(boot.rho[:, k].std(ddof=1), localiser.chance))
        assert row.low == pytest.approx(row.effect - 1.959964 * row.se, abs=1e-6)
        assert row.high == pytest.approx(row.effect + 1.959964 * row.se, abs=1e-6)
        assert row.p == two_sided(seen.rho[0, k], null.rho[:, k])
        assert row.partial == pytest.approx(seen.partial[0, k])
        assert row.partial_null == pytest.approx(null.partial[:, k].mean(), abs=1e-6)
        assert row.partial_se == pytest.approx(
            np.hypot(boot.partial[:, k].std(ddof=1), localiser.chance)
        )
        assert row.partial_p == two_sided(seen.partial[0, k], null.partial[:, k])
        assert row.share == pytest.approx(parts[0][0, k])
        assert row.share_null == pytest.approx(parts[1][:, k].mean())
        assert row.share_se == pytest.approx(parts[2][:, k].std(ddof=1))
        assert row.share_p == two_sided(parts[0][0, k], parts[1][:, k])
    np.testing.assert_allclose(found.resampled, boot.rho - null.rho.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.null, null.rho - null.rho.mean(0), atol=1e-6)


def test_every_tenth_has_its_share_beside_that_of_swapped_labels(rng):
    _, found, seen, null, _ = associated(rng)
    assert [(row.criterion, row.tenth) for row in found.tenths] == [
        (name, tenth) for name in ("one", "two") for tenth in range(10)
    ]
    for row in found.tenths:
        place = ("one", "two").index(row.criterion), row.tenth
        assert (row.property, row.function) == ("p", "dz")
        for name in ("mass", "top"):
            one, others = getattr(seen, name)[0][place], getattr(null, name)[:, *place]
            assert getattr(row, name) == pytest.approx(one)
            assert getattr(row, f"{name}_null") == pytest.approx(others.mean(), abs=1e-6)
            assert getattr(row, f"{name}_p") == two_sided(one, others)


def test_without_tenths_there_are_no_shares(rng):
    found = associated(rng, tenths=False)[1]
    assert found.tenths == ()
    for row in found.associations:
        shares = [row.share, row.share_null, row.share_se, row.share_p]
        assert np.isnan(shares).all()
        assert 0 < row.p <= 1


def test_progress_goes_over_all_resamples_once(rng):
    told = []
    associated(rng, progress=lambda *said: told.append(said))
    assert {(what, total) for what, _, total in told} == {("p by dz (resamples)", 90)}
    done = [number for _, number, _ in told]
    assert done == sorted(done)
    assert {40, 90} <= set(done)
    assert done[-1] == 90


@pytest.mark.parametrize(
    ("values", "errors", "faint"),
    [
        ((0.2, 0.2), (0.05, 0.05), False),
        ((0.2, 0.2), (0.15, 0.15), True),  # less than two standard errors from 0
        ((0.09, 0.09), (0.01, 0.01), True),
        ((0.1, 0.1), (0.05, 0.05), False),
        ((0.02, 0.3), (0.05, 0.05), False),  # of all criteria together
        ((0.01, 0.17), (0.05, 0.05), True),
        ((0.5, 0.5), (np.nan, np.nan), True),  # too few items to know
    ],
)
def test_labels_are_too_faint_where_attenuation_is_small_or_not_told_from_0(
    rng, monkeypatch, values, errors, faint
):
    known = Attenuation(np.array(values), np.array(errors))
    monkeypatch.setattr(localisation, "attenuation", lambda *_, **__: known)
    rows = associated(rng)[1].associations
    assert {row.faint for row in rows} == {faint}
    assert [row.attenuation for row in rows] == list(values)
    np.testing.assert_array_equal([row.attenuation_se for row in rows], errors)
    # One criterion's own attenuation may be too small to divide by.
    divided = [corrected(row) is not None for row in rows]
    assert divided == [not faint and value >= 0.05 for value in values]


def test_a_correction_divides_by_the_attenuation_and_carries_its_error(rng):
    row = replace(
        associated(rng)[1].associations[0],
        effect=-0.2, se=0.03, attenuation=0.4, attenuation_se=0.1, faint=False,
    )  # fmt: skip
    found = corrected(row)
    assert found is not None
    assert found.value == pytest.approx(-0.5)
    assert found.se == pytest.approx(np.hypot(0.03, 0.5 * 0.1) / 0.4)
    assert found.low == pytest.approx(-0.5 - 1.959964 * found.se)
    assert found.high == pytest.approx(-0.5 + 1.959964 * found.se)
    assert corrected(replace(row, attenuation=0.05)) is not None
    assert corrected(replace(row, attenuation=0.049)) is None


def test_a_difference_adds_up_items_neurons_and_both_attenuations(rng):
    row = associated(rng)[1].associations[0]
    one = replace(
        row, property="one", effect=-0.2, se=0.05, attenuation=0.4, attenuation_se=0.1,
        faint=False, n_items=30,
    )  # fmt: skip
    other = replace(
        one, property="other", effect=0.06, se=0.07, attenuation=0.6, attenuation_se=0.2, n_items=25
    )
    a, b = 0.03 * rng.normal(size=200), 0.04 * rng.normal(size=200)
    found = differ(one, other, {"one": a, "other": b}, paired=False)
    assert found is not None
    items = (a / 0.4 - b / 0.6).var(ddof=1)
    neurons = (0.05**2 - a.var(ddof=1)) / 0.4**2 + (0.07**2 - b.var(ddof=1)) / 0.6**2
    scale = (-0.5 * 0.1 / 0.4) ** 2 + (0.1 * 0.2 / 0.6) ** 2
    assert found.difference == pytest.approx(-0.6)
    assert found.se == pytest.approx(np.sqrt(items + neurons + scale))
    assert found.low == pytest.approx(-0.6 - 1.959964 * found.se)
    assert found.high == pytest.approx(-0.6 + 1.959964 * found.se)
    assert (found.property, found.minus, found.n_other, found.paired) == ("one", "other", 25, False)
    # Draws that spread more than the whole error leave nothing to neurons, not less than nothing.
    wide = differ(one, other, {"one": 9 * a, "other": b}, paired=False)
    assert wide is not None
    left = (0.07**2 - b.var(ddof=1)) / 0.6**2
    assert wide.se == pytest.approx(np.sqrt((9 * a / 0.4 - b / 0.6).var(ddof=1) + left + scale))
    for pair in ((replace(one, faint=True), other), (one, replace(other, faint=True))):
        assert differ(*pair, {}, paired=True) is None
