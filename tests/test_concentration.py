"""Where tuning changed a model: the statistic, its null, and planted pairs with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from glulens.errors import UsageError
from glulens.interp.concentration import Concentration, concentration
from glulens.interp.dealing import Layers, deal, two_sided, unit_ranks
from glulens.interp.localiser import tenth_of
from glulens.interp.resamples import benjamini_hochberg
from glulens.interp.tuning_verdict import judge_change
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps


def spearman(one, other) -> float:
    return float(stats.spearmanr(one, other)[0])  # pyright: ignore[reportArgumentType]


def drawn(seed: int, widths=(60, 45, 80), criteria=("ppm", "l2")):
    rng = np.random.default_rng(seed)
    scores = {name: [rng.normal(size=n).astype(np.float32) for n in widths] for name in criteria}
    change = [rng.gamma(2, size=n) for n in widths]
    norms = [rng.uniform(1, 3, size=n) for n in widths]
    return scores, change, norms


def test_rho_is_scipys_averaged_over_layers_and_shares_are_those_of_squares():
    scores, change, norms = drawn(0)
    rows = concentration(scores, change, norms=norms, permutations=50)
    assert [(r.criterion, r.measure) for r in rows[:2]] == [
        ("ppm", "absolute"),
        ("ppm", "relative"),
    ]
    for row in rows:
        measure = change
        if row.measure == "relative":
            measure = [c / n for c, n in zip(change, norms, strict=True)]
        by_layer, shares = [], []
        for score, value in zip(scores[row.criterion], measure, strict=True):
            by_layer.append(spearman(score, value))
            of = tenth_of(score)
            squares = value**2 / (value**2).sum()
            shares.append([squares[of == tenth].sum() for tenth in range(10)])
        assert row.layers == pytest.approx(by_layer)
        assert row.rho == pytest.approx(np.mean(by_layer))
        assert row.shares == pytest.approx(np.mean(shares, 0))
        half = max(stats.sem(by_layer) * stats.t.ppf(0.975, 2), stats.norm.ppf(0.975) * row.null_sd)
        assert (row.low, row.high) == pytest.approx((row.rho - half, row.rho + half))
        assert (row.n_layers, row.n_neurons) == (3, 185)


def test_deals_have_the_spread_that_theory_gives():
    scores, change, norms = drawn(1)
    rows = concentration(scores, change, norms=norms, permutations=4000)
    expected = np.sqrt(sum(1 / (n - 1) for n in (60, 45, 80))) / 3
    for row in rows:
        assert row.null_sd == pytest.approx(expected, rel=0.05)
        normal = 2 * stats.norm.sf(abs(row.rho) / expected)
        assert row.p == pytest.approx(normal, abs=0.04)
    # Both measures and all criteria are dealt alike.
    again = concentration({"ppm": scores["ppm"]}, change, norms=norms, permutations=4000)
    assert [r.p for r in again] == [r.p for r in rows if r.criterion == "ppm"]


def test_p_is_exact_where_all_orders_can_be_counted():
    # Of four neurons two changed, which the score ranks lowest: 2 of the 6 ways are as far from 0.
    rows = concentration(
        {"ppm": [np.arange(4.0)]}, [np.array([1.0, 1, 0, 0])], norms=[np.ones(4)], permutations=6000
    )
    assert rows[0].rho == pytest.approx(spearman(np.arange(4), [1, 1, 0, 0]))
    assert rows[0].p == pytest.approx(1 / 3, abs=0.02)
    assert np.isnan(unit_ranks(np.array([2.0, 2, 2]))).sum() == 0


def test_layers_weigh_alike_and_experts_share_their_layers_weight():
    layers = Layers([0, 1, 1, 2], [True, True, True, False])
    assert layers.weights == pytest.approx([0.5, 0.25, 0.25, 0])
    assert layers.count == 2
    mean = layers.mean(np.array([0.4, 0.1, 0.3, 9.0]), 0.05)
    assert mean == pytest.approx((0.3, 0.3 - 1.959964 * 0.05, 0.3 + 1.959964 * 0.05))
    scores, change, norms = drawn(2)
    plain = concentration(scores, change, norms=norms, permutations=20)[0]
    grouped = concentration(scores, change, norms=norms, layer_of=[0, 0, 1], permutations=20)[0]
    assert grouped.rho == pytest.approx((np.mean(plain.layers[:2]) + plain.layers[2]) / 2)
    with pytest.raises(UsageError, match="2 layer numbers for 3 MLPs"):
        concentration(scores, change, norms=norms, layer_of=[0, 1])


@settings(max_examples=8)
@given(st.integers(0, 2**32 - 1))
def test_only_order_within_mlps_matters(seed):
    scores, change, norms = drawn(seed, widths=(23, 31, 12))
    one = concentration(scores, change, norms=norms, permutations=30, seed=seed)
    # Any rising function of a score; a factor of its own on each layer's changes.
    bent = {
        name: [np.exp(layer.astype(np.float64) + k) for k, layer in enumerate(layers)]
        for name, layers in scores.items()
    }
    louder = [layer * 2.0 ** (3 * k) for k, layer in enumerate(change)]
    other = concentration(bent, louder, norms=norms, permutations=30, seed=seed)
    for a, b in zip(one, other, strict=True):
        assert a.rho == pytest.approx(b.rho)
        assert a.shares == pytest.approx(b.shares)
        assert (a.p, a.q) == (b.p, b.q)
        assert np.array(a.null_shares) == pytest.approx(np.array(b.null_shares), abs=1e-6)
    # A score that ranks the other way has the mirrored correlation.
    mirrored = {name: [-layer for layer in layers] for name, layers in scores.items()}
    for a, b in zip(
        one, concentration(mirrored, change, norms=norms, permutations=30, seed=seed), strict=True
    ):
        assert b.rho == pytest.approx(-a.rho)
        assert (b.low, b.high) == pytest.approx((-a.high, -a.low))
        assert b.p == a.p


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300), st.integers(1, 40))
def test_a_deal_moves_values_and_keeps_them(seed, width, deals):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, width))
    one, two = deal([(values, np.eye(width)), (values[:1], np.eye(width))], deals, rng)
    assert one.shape == (deals, 2, width)
    # With ones on the diagonal the product is the dealt row itself.
    assert np.sort(one, -1) == pytest.approx(np.tile(np.sort(values, -1), (deals, 1, 1)), abs=1e-5)
    assert np.array_equal(one[:, 0], two[:, 0])


def test_deals_in_several_blocks_are_all_there(monkeypatch):
    monkeypatch.setattr("glulens.interp.dealing.BLOCK", 100)
    (found,) = deal([(np.arange(30.0)[None], np.eye(30))], 7, np.random.default_rng(0))
    assert (np.sort(found[:, 0], 1) == np.arange(30)).all()
    assert len(np.unique(found[:, 0], axis=0)) == 7


def test_p_counts_equals_and_is_never_zero():
    null = np.array([-0.5, 0.1, 0.5, 0.2])
    assert two_sided(np.array(0.5), null) == pytest.approx(3 / 5)
    assert two_sided(np.array(-0.9), null) == pytest.approx(1 / 5)


def test_controls_are_in_no_family():
    scores, change, norms = drawn(3, criteria=("ppm", "l2", "random:0", "balanced(ppm)"))
    rows = concentration(scores, change, norms=norms, permutations=99)
    family = [row for row in rows if row.criterion != "random:0"]
    assert [row.q for row in family] == pytest.approx(
        benjamini_hochberg([row.p for row in family]).tolist()
    )
    assert all(np.isnan(row.q) for row in rows if row.criterion == "random:0")


def test_nothing_changed_gives_no_number_and_no_warning(recwarn):
    scores, change, norms = drawn(4)
    rows = concentration(scores, [layer * 0 for layer in change], norms=norms, permutations=20)
    assert all(np.isnan(row.rho) and np.isnan(row.p) and row.n_layers == 0 for row in rows)
    verdict = judge_change(rows)
    assert (verdict.outcome, verdict.relative_outcome) == ("nothing changed", "nothing changed")
    assert verdict.sentence == "nothing changed: no weight of any MLP differs."
    assert verdict.smallest_detectable is None
    # One layer without change is left out of the mean.
    one = concentration(scores, [change[0] * 0, *change[1:]], norms=norms, permutations=20)[0]
    assert np.isnan(one.layers[0])
    assert one.rho == pytest.approx(np.mean(one.layers[1:]))
    assert sum(one.shares) == pytest.approx(1)
    assert one.n_layers == 2
    # All alike orders nothing.
    alike = concentration(scores, norms, norms=norms, permutations=20)[1]
    assert (alike.rho, alike.p, alike.null_sd) == (0, 1, 0)
    assert alike.shares == pytest.approx([0.1] * 10, abs=0.02)
    assert judge_change(concentration(scores, norms, norms=norms)).relative_outcome == "no evidence"
    assert not list(recwarn)


def test_neurons_without_a_number_are_left_out():
    scores, change, norms = drawn(5, widths=(40, 50))
    broken, empty = [layer.copy() for layer in change], [layer.copy() for layer in norms]
    broken[0][3] = np.nan
    empty[1][7] = 0  # was nothing, and is something now: no relative change
    absolute, relative = concentration({"ppm": scores["ppm"]}, broken, norms=empty, permutations=20)
    keep = np.arange(40) != 3
    first = spearman(scores["ppm"][0][keep], change[0][keep])
    assert absolute.layers[0] == pytest.approx(first)
    second = spearman(scores["ppm"][1], change[1])
    assert absolute.layers[1] == pytest.approx(second)
    keep = np.arange(50) != 7
    rest = spearman(scores["ppm"][1][keep], (change[1] / norms[1])[keep])
    assert relative.layers[1] == pytest.approx(rest)
    assert (absolute.n_neurons, relative.n_neurons) == (89, 88)


def test_what_does_not_match_is_refused():
    scores, change, norms = drawn(6)
    with pytest.raises(UsageError, match="'absolute change' and 'ppm' are of other neurons"):
        concentration(scores, change[:2], norms=norms)
    with pytest.raises(UsageError, match="one criterion"):
        concentration({}, change, norms=norms)
    with pytest.raises(UsageError, match=r"'maw' to judge by; there are: ppm, l2"):
        judge_change(concentration(scores, change, norms=norms, permutations=5), "maw")


ROW = Concentration(
    criterion="ppm", measure="absolute", rho=0.0, low=-0.02, high=0.02, null_sd=0.01, p=0.001,
    q=0.002, if_alike=0.5, if_alike_sd=0.01, layers=(), shares=(0.1,) * 10,
    null_shares=((0.09, 0.11),) * 10, n_layers=30, n_neurons=46080,
)  # fmt: skip


def row(rho: float, half: float = 0.02, **changes) -> Concentration:
    return replace(ROW, rho=rho, low=rho - half, high=rho + half, **changes)


@pytest.mark.parametrize(
    ("absolute", "outcome"),
    [
        (row(-0.10), "supported"),
        (row(-0.30, half=0.35), "cannot tell"),  # layers disagree
        (row(-0.30, q=0.06), "cannot tell"),
        (row(-0.07), "no evidence"),
        (row(-0.09), "cannot tell"),
        (row(+0.00), "no evidence"),
        (row(+0.00, half=0.15), "cannot tell"),
        (row(+0.10), "contradicted"),
        (row(+0.10, q=0.06), "no evidence"),
        (row(+0.30, half=0.35), "no evidence"),
        (row(+0.30, half=0.45), "cannot tell"),
    ],
)
def test_outcomes(absolute, outcome):
    verdict = judge_change([absolute, row(-0.3, measure="relative")])
    assert verdict.outcome == outcome
    assert verdict.sentence.startswith(outcome)
    assert "46,080 neurons in 30 layers" in verdict.sentence
    assert verdict.relative_outcome == ("supported" if outcome == "supported" else "arithmetic")
    assert verdict.relative_sentence.startswith(verdict.relative_outcome)


@pytest.mark.parametrize(
    ("absolute", "if_rounded", "outcome"),
    [
        (row(-0.35), -0.33, "no evidence"),  # what rounding does, no more
        (row(-0.35), -0.24, "supported"),
        (row(-0.35), -0.28, "no evidence"),
        (row(-0.35), -0.26, "cannot tell"),
        (row(-0.35), +0.10, "supported"),
        (row(+0.12), +0.10, "no evidence"),
        (row(+0.25), +0.10, "contradicted"),
        (row(+0.00), -0.30, "no evidence"),
    ],
)
def test_a_finding_must_be_more_than_rounding_gives(absolute, if_rounded, outcome):
    beyond = absolute.rho - if_rounded
    given_ = replace(
        absolute,
        if_rounded=if_rounded,
        beyond=beyond,
        beyond_low=beyond - 0.02,
        beyond_high=beyond + 0.02,
    )
    verdict = judge_change([given_, row(-0.3, measure="relative")])
    assert verdict.outcome == outcome
    held = outcome in ("no evidence", "cannot tell") and abs(absolute.rho) >= 0.1
    assert ("rounded to 16 bits" in verdict.sentence) == held


def test_cannot_tell_says_why():
    def said(absolute):
        return judge_change([absolute, row(0.0, measure="relative")]).sentence

    assert "its interval reaches both sides of -0.1" in said(row(-0.09))
    assert "the layers disagree" in said(row(-0.3, half=0.35))
    assert "only a rho from 0.21 on would be found" in said(row(0.0, half=0.15))


def test_the_relative_change_is_judged_beside_what_division_does():
    verdict = judge_change([row(0.0), row(-0.52, measure="relative", if_alike=-0.5)])
    assert verdict.relative_outcome == "arithmetic"
    assert "would give -0.50" in verdict.relative_sentence
    assert "-0.02 is beyond that" in verdict.relative_sentence
    rises = judge_change([row(0.3), row(0.2, measure="relative", if_alike=-0.5)])
    assert rises.relative_outcome == "contradicted"
    # Four of five such pairs: 2.80 standard errors.
    assert verdict.smallest_detectable == pytest.approx(2.80 * 0.02 / 1.96, rel=0.01)


def test_intervals_hold_the_mean_that_layers_vary_about():
    """Five layers, as in the smallest model: neurons alone, and layers that differ besides."""
    rng = np.random.default_rng(0)
    layers = Layers(range(5), np.ones(5, bool))
    for spread in (0.0, 1.0, 5.0):
        sd = 0.034 * 5**0.5
        held = 0
        for _ in range(2000):
            mean = layers.mean(rng.normal(0, sd * np.hypot(1, spread), 5), 0.034)
            held += mean.low <= 0 <= mean.high
        assert held / 2000 >= 0.95 - 2 * np.sqrt(0.05 * 0.95 / 2000)


class Weights:
    """Some MLPs' weights, their scores, and the sizes of changes made to them."""

    def __init__(self, opened, layers: int | None = None) -> None:
        mlps = find_mlps(opened.model)[:layers]
        self.scores = score_mlps(mlps, ["ppm"])
        self.mlps = [[w.detach().float() for w in mlp.weights if w is not None] for mlp in mlps]
        self.sd = [[float(w.std()) for w in weights] for weights in self.mlps]
        self.norms = [self.size(weights) for weights in self.mlps]

    @staticmethod
    def size(gate_up_down) -> np.ndarray:
        gate, up, down = (each.double().square() for each in gate_up_down)
        return (gate.sum(1) + up.sum(1) + down.sum(0)).sqrt().numpy()

    def noise(self, seed: int, scale: float = 0.05, only=None) -> list[np.ndarray]:
        """Normal noise of one size on all weights of a matrix; on some neurons only."""
        g = torch.Generator().manual_seed(seed)
        found = []
        for mlp, weights in enumerate(self.mlps):
            delta = [
                (w + scale * sd * torch.randn(w.shape, generator=g)) - w
                for w, sd in zip(weights, self.sd[mlp], strict=True)
            ]
            size = self.size(delta)
            found.append(size if only is None else np.where(only[mlp], size, 0))
        return found

    def low_rank(self, seed: int, rank: int = 4) -> list[np.ndarray]:
        """A product of two random thin matrices added to each, as LoRA does."""
        g = torch.Generator().manual_seed(seed)
        return [
            self.size(
                torch.randn(len(w), rank, generator=g)
                @ torch.randn(rank, w.shape[1], generator=g)
                * (0.05 * sd)
                for w, sd in zip(weights, self.sd[mlp], strict=True)
            )
            for mlp, weights in enumerate(self.mlps)
        ]

    def tenth(self, which: int) -> list[np.ndarray]:
        return [tenth_of(layer) == which for layer in self.scores["ppm"]]

    def judged(self, change, permutations: int = 300):
        return judge_change(
            concentration(self.scores, change, norms=self.norms, permutations=permutations)
        )


@pytest.fixture(scope="module", params=["stories", "smollm"])
def weights(request) -> Weights:
    """Of both trained models; of the larger one the first four layers."""
    layers = 4 if request.param == "smollm" else None
    return Weights(request.getfixturevalue(request.param), layers)


def test_only_the_lowest_tenth_changed(weights):
    verdict = weights.judged(weights.noise(0, only=weights.tenth(0)))
    assert (verdict.outcome, verdict.relative_outcome) == ("supported", "supported")
    # A tenth that changed and nine that did not: -sqrt(3 a (1 - a)) at a = 0.1.
    assert verdict.absolute.rho == pytest.approx(-np.sqrt(0.27), abs=0.02)
    assert verdict.absolute.shares[0] == pytest.approx(1)
    assert verdict.absolute.null_shares[0][1] < 0.2


def test_only_the_highest_tenth_changed(weights):
    verdict = weights.judged(weights.noise(0, only=weights.tenth(9)))
    assert (verdict.outcome, verdict.relative_outcome) == ("contradicted", "contradicted")
    assert verdict.absolute.rho == pytest.approx(np.sqrt(0.27), abs=0.02)
    assert verdict.absolute.shares[9] == pytest.approx(1)


def test_noise_alike_on_every_weight_is_no_evidence_and_its_relative_size_is_arithmetic(weights):
    verdict = weights.judged(weights.noise(1))
    assert verdict.outcome == "no evidence"
    relative = verdict.relative
    assert relative.rho < -0.3  # what one who looks at the relative change alone would report
    assert verdict.relative_outcome == "arithmetic"
    assert abs(relative.rho - relative.if_alike) < 3 * relative.if_alike_sd


@pytest.mark.parametrize("kind", ["noise", "low_rank"])
def test_change_that_chooses_no_neuron_is_never_called_one_that_does(weights, kind):
    outcomes = [weights.judged(getattr(weights, kind)(seed), 99).outcome for seed in range(4)]
    if len(weights.norms[0]) > 1000:
        assert outcomes == ["no evidence"] * 4
    else:
        # 860 neurons in five layers: an interval by t with four degrees of freedom is often as wide
        # as the effect of interest.
        assert set(outcomes) <= {"no evidence", "cannot tell"}


def test_one_factor_on_every_weight_moves_large_neurons_more_and_none_relatively(weights):
    verdict = weights.judged([norm * 0.01 for norm in weights.norms])
    assert (verdict.outcome, verdict.relative_outcome) == ("contradicted", "no evidence")
    absolute = verdict.absolute
    assert absolute.if_alike == pytest.approx(absolute.rho)
    # On the weights themselves, in single precision, rounding is all that differs.
    rounded = [weights.size([w * 1.01 - w for w in matrices]) for matrices in weights.mlps]
    again = weights.judged(rounded)
    assert (again.outcome, again.relative_outcome) == ("contradicted", "no evidence")


def test_random_tenths_are_rarely_flagged(stories):
    """200 plantings in neurons chosen at random: 5 % + 2 standard errors at most."""
    weights = Weights(stories)
    rng = np.random.default_rng(0)
    runs, flagged, small = 200, 0, 0
    for seed in range(runs):
        chosen = [tenth_of(rng.random(len(layer))) == 0 for layer in weights.norms]
        change = weights.noise(seed, only=chosen)
        verdict = weights.judged(change, permutations=199)
        flagged += verdict.outcome in ("supported", "contradicted")
        small += verdict.absolute.p <= 0.05
    allowed = runs * (0.05 + 2 * np.sqrt(0.05 * 0.95 / runs))
    assert flagged <= allowed
    assert small <= allowed
    assert small > 0  # the test is not merely silent


def test_a_trend_across_layers_alone_is_no_finding(stories):
    """Layers of larger weights that changed less: what pooling over layers would call a finding."""
    weights = Weights(stories)
    loud = np.argsort(np.argsort([layer.mean() for layer in weights.scores["ppm"]]))
    change = [layer / (1 + k) for layer, k in zip(weights.noise(2), loud, strict=True)]
    verdict = weights.judged(change)
    assert verdict.outcome in ("no evidence", "cannot tell")
    assert verdict.absolute.p > 0.05
    scores, changes = np.concatenate(weights.scores["ppm"]), np.concatenate(change)
    pooled = spearman(scores, changes)
    assert pooled < -0.1
    assert pooled * np.sqrt(len(scores) - 1) < -stats.norm.isf(0.0005)
