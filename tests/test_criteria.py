"""Scores against a float64 reference, against the peer that defined them, and under controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from glulens.errors import ModelError, UsageError
from glulens.prune.criteria import ACTIVATION_CRITERIA, WEIGHT_CRITERIA
from glulens.prune.expressions import check_criterion, column, evaluate, is_control, parse_criteria
from glulens.prune.mlps import find_mlps
from glulens.prune.recording import Activity, Recording
from glulens.prune.scoring import score_mlps
from glulens.prune.weights import MlpWeights, weigh_matrix

ONE = {
    "maw": lambda w: np.abs(w).max(1),
    "ppm": lambda w: w.max(1) + np.abs(w.min(1)),
    "vow": lambda w: w.var(1, ddof=1),
    "pon": lambda w: np.abs(w).sum(1),
    "l2": lambda w: np.sqrt((w**2).sum(1)),
}


def reference(name: str, gate, up, down, a: Activity | None = None) -> np.ndarray:
    """The table in `criteria`, in float64 and numpy, written once more."""
    g, u, d = (np.asarray(w, np.float64) for w in (gate, up, down))
    if name in ONE:
        parts = ONE[name](g), ONE[name](u)
        return parts[0] * parts[1] if name == "pon" else parts[0] + parts[1]
    if name == "vow_out":
        return np.linalg.norm(d, axis=0)
    if name == "pon_io":
        return np.linalg.norm(np.hstack([g, u]), axis=1) * np.linalg.norm(d, axis=0)
    assert a is not None
    if name == "hybrid":
        parts = [ONE["ppm"](w) for w in (g, u, d.T)]
        return sum(part / part.max() for part in parts) * a.rms
    return {
        "amp": a.mean_abs,
        "wanda": np.abs(d).mean(0) * a.rms,
        "flap": a.variance * (d**2).sum(0),
        "minitron": a.text_rms,
    }[name]


def weighed(gate, up, down, dtype=torch.float32) -> MlpWeights:
    g, u, d = (torch.as_tensor(w).to(dtype) for w in (gate, up, down))
    return MlpWeights((weigh_matrix(g, 0), weigh_matrix(u, 0)), weigh_matrix(d, 1))


def some_activity(rng, neurons: int) -> Activity:
    return Activity(*(rng.random(neurons) + 0.1 for _ in range(5)))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    neurons=st.integers(1, 300),
    hidden=st.integers(2, 400),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 0.0, 0.3, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_scores_equal_the_definition(seed, neurons, hidden, scale, shift, dtype):
    rng = np.random.default_rng(seed)
    shapes = ((neurons, hidden), (neurons, hidden), (hidden, neurons))
    raw = [scale * (rng.standard_normal(shape) + shift) for shape in shapes]
    # The reference sees what the dtype holds: scores are of the stored weights, not of rounding.
    gate, up, down = (torch.from_numpy(w).to(dtype).double().numpy() for w in raw)
    weights = weighed(gate, up, down, dtype)
    activity = some_activity(rng, neurons)
    recording = Recording((activity,), (10,), 1)
    for name in (*WEIGHT_CRITERIA, *ACTIVATION_CRITERIA):
        (found,) = evaluate(name, [weights], recording)
        assert found.dtype == np.float32
        # A variance is compared on the scale of what it is the small difference of.
        slack = 3e-6 * float((gate**2).mean() + (up**2).mean()) if name == "vow" else 0
        np.testing.assert_allclose(
            found, reference(name, gate, up, down, activity), rtol=4e-6, atol=slack
        )


def test_a_mean_that_dwarfs_the_spread_does_not_spoil_the_variance():
    """The one-pass difference of two large sums would leave nothing of it."""
    rng = np.random.default_rng(0)
    rows = (1000 + rng.standard_normal((5, 400))).astype(np.float32)
    found = weigh_matrix(torch.from_numpy(rows), 0).variance
    np.testing.assert_allclose(found, rows.astype(np.float64).var(1, ddof=1), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_views_are_read_as_well_as_matrices(dtype):
    """Halves of fused tensors, stacks, transposes, and steps that no kernel reads directly."""
    whole = torch.randn(3, 40, 70, dtype=torch.float64).to(dtype)
    for view, axis in (
        (whole[1, 5:25], 0),
        (whole[1, :, 3:50], 1),
        (whole[2].T, 0),
        (whole[2].T, 1),
        (whole[0, ::3, ::2], 0),
        (whole[0, ::3, ::2], 1),
    ):
        found = weigh_matrix(view, axis)
        rows = (view if axis == 0 else view.T).double()
        np.testing.assert_allclose(found.squares, rows.square().sum(1), rtol=2e-6)
        np.testing.assert_array_equal(found.low, rows.float().amin(1))
        np.testing.assert_array_equal(found.high, rows.float().amax(1))


@pytest.mark.parametrize(
    ("name", "peer"), [("ppm", "maw"), ("vow", "vow"), ("pon", "pon"), ("l2", "l2")]
)
def test_scores_equal_optipfair_on_smollm2(name, peer, smollm):
    from optipfair.pruning import mlp_glu

    function = getattr(mlp_glu, f"compute_neuron_pair_importance_{peer}")
    mlps = find_mlps(smollm.model)
    assert len(mlps) == 30
    for mlp, scores in zip(mlps, score_mlps(mlps, [name])[name], strict=True):
        gate, up, _ = mlp.weights
        np.testing.assert_allclose(scores, function(gate, up).float().numpy(), rtol=2e-6)


def test_reversed_is_the_opposite_order_and_random_needs_only_its_seed(tiny):
    mlps = find_mlps(tiny())
    names = ["ppm", "reversed:ppm", "random:3", "random:4"]
    found = score_mlps(mlps, names)
    for plain, turned in zip(found["ppm"], found["reversed:ppm"], strict=True):
        np.testing.assert_array_equal(turned, -plain)
    again = score_mlps(mlps, names)
    np.testing.assert_array_equal(found["random:3"], again["random:3"])
    assert not np.array_equal(found["random:3"], found["random:4"])
    assert not np.array_equal(found["random:3"][0], found["random:3"][1]), "layers share no draw"


def test_shuffled_deals_the_same_scores_out_anew(tiny):
    found = score_mlps(find_mlps(tiny()), ["vow", "shuffled:vow:0", "shuffled:vow:1"])
    for plain, one, other in zip(*found.values(), strict=True):
        assert not np.array_equal(plain, one)
        assert not np.array_equal(one, other)
        np.testing.assert_array_equal(np.sort(plain), np.sort(one))


def test_mean_averages_ranks_within_an_mlp(tiny):
    found = score_mlps(find_mlps(tiny()), ["ppm", "vow", "mean(ppm,vow)", "mean(ppm, ppm)"])
    for ppm, vow, both, same in zip(*found.values(), strict=True):
        np.testing.assert_allclose(both, (rankdata(ppm) + rankdata(vow)) / 2)
        np.testing.assert_allclose(same, rankdata(ppm))


@pytest.mark.parametrize("name", [*WEIGHT_CRITERIA, *ACTIVATION_CRITERIA])
def test_balanced_does_not_depend_on_the_gauge(name, tiny):
    """U_i * c and D_:i / c is the same function: a balanced score must not see it. Others do."""
    from glulens.prune.gauge import rescale

    rng = np.random.default_rng(1)
    model = tiny()
    mlps = find_mlps(model)
    activity = [some_activity(rng, 48) for _ in mlps]
    factors = [np.exp(rng.standard_normal(48)) for _ in mlps]
    names = [name, f"balanced({name})"]
    before = score_mlps(mlps, names, recording=Recording(tuple(activity), (9,) * 3, 1))
    rescale(model, factors)
    rescaled = tuple(a.scaled(c) for a, c in zip(activity, factors, strict=True))
    after = score_mlps(mlps, names, recording=Recording(rescaled, (9,) * 3, 1))
    for one, other in zip(before[names[1]], after[names[1]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    # Wanda, FLAP and PON-IO multiply what U carries by what D carries: c falls out by itself.
    if name not in ("pon_io", "wanda", "flap"):
        assert not np.allclose(before[name][0], after[name][0], rtol=0.01)


def test_balanced_fixes_the_norms(tiny):
    """vow_out after balancing is sqrt(||U|| ||D||), by hand."""
    mlps = find_mlps(tiny())
    for mlp, found in zip(mlps, score_mlps(mlps, ["balanced(vow_out)"]).popitem()[1], strict=True):
        _, up, down = (w.double().numpy() for w in mlp.weights if w is not None)
        expected = np.sqrt(np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_folded_is_the_score_of_weights_with_the_gain_in_them(tiny):
    model = tiny()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.post_attention_layernorm.weight.uniform_(0.2, 3)
    found = score_mlps(find_mlps(model), ["folded(ppm)", "balanced(folded(vow))"])
    with torch.no_grad():
        for layer in model.model.layers:
            gain = layer.post_attention_layernorm.weight
            layer.mlp.gate_proj.weight *= gain
            layer.mlp.up_proj.weight *= gain
    plain = score_mlps(find_mlps(model), ["ppm"])["ppm"]
    for one, other in zip(found["folded(ppm)"], plain, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6)


def test_unknown_criterion_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown criterion 'pmp' \(did you mean 'ppm'\?\)"):
        check_criterion("pmp")
    for bad in (
        "random:x", "random:", "reversed:", "reversed:nope", "", "shuffled:ppm", "shuffled:ppm:x",
        "balanced()", "balanced(ppm,vow)", "mean(ppm)", "mean(ppm,", "folded(folded(ppm))", "ppm()",
    ):  # fmt: skip
        with pytest.raises(UsageError):
            check_criterion(bad)


def test_a_list_of_criteria_keeps_its_order_and_drops_repeats():
    assert parse_criteria(" vow, ppm,vow ,random:7") == ("vow", "ppm", "random:7")
    assert parse_criteria("mean(ppm, balanced(vow)),ppm") == ("mean(ppm,balanced(vow))", "ppm")
    with pytest.raises(UsageError, match="no criterion"):
        parse_criteria(" , ")


def test_criteria_that_would_share_a_column_are_refused():
    with pytest.raises(UsageError, match="would share the column 'meanrank_meanrank_ppm_vow"):
        parse_criteria("mean(mean(ppm,vow),pon,l2),mean(mean(ppm,vow,pon),l2)")


def test_names_controls_and_columns():
    assert [is_control(n) for n in ("ppm", "random:0", "reversed:ppm", "shuffled:ppm:0")] == [
        False, True, True, True,
    ]  # fmt: skip
    assert column("random:0") == "random_0"
    assert column("mean(ppm,balanced(vow))") == "meanrank_ppm_balanced_vow"


def test_activation_criteria_ask_for_a_recording_of_this_model(tiny):
    mlps = find_mlps(tiny())
    with pytest.raises(UsageError, match="'wanda' looks at activations: give a recording"):
        score_mlps(mlps, ["wanda"])
    other = Recording((some_activity(np.random.default_rng(0), 7),), (3,), 1)
    with pytest.raises(UsageError, match="the recording is of a model with 1 MLPs and 7 neurons"):
        score_mlps(mlps, ["reversed:wanda"], recording=other)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("matrix", ["gate_proj", "up_proj", "down_proj"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused_by_name_or_ranked_lowest(tiny, bad, matrix, dtype):
    model = tiny().to(dtype)
    weight = getattr(model.model.layers[1].mlp, matrix).weight
    with torch.no_grad():
        weight[5, 5] = bad
    mlps = find_mlps(model)
    with pytest.raises(
        ModelError, match=rf"layer 1: 1 neurons .* model.layers.1.mlp.{matrix}.weight .*first is 5"
    ):
        score_mlps(mlps, ["ppm"])
    whole = tiny().to(dtype)
    kept = np.delete(np.arange(48), 5)
    for name in (
        "ppm", "vow", "balanced(l2)", "random:0", "mean(ppm,vow)", "reversed:mean(l2,vow)",
        "shuffled:vow:1", "hybrid",
    ):  # fmt: skip
        rng = np.random.default_rng(0)
        recording = Recording(tuple(some_activity(rng, 48) for _ in mlps), (9,) * 3, 1)
        found = score_mlps(mlps, [name], recording=recording, allow_nonfinite=True)[name]
        if name in ("ppm", "vow", "balanced(l2)", "random:0"):
            good = score_mlps(find_mlps(whole), [name])[name]
            np.testing.assert_array_equal(found[1][kept], good[1][kept])
        assert np.flatnonzero(np.isneginf(found[1])).tolist() == [5], name
        assert np.isfinite(np.delete(found[1], 5)).all()
        assert np.isfinite(found[0]).all()
