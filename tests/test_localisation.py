"""The statistic against scipy, its null against simulation, its correction against known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from glulens.interp.attenuation import attenuation, systematic_energy
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
