"""Scores against a float64 reference, against the peer that defined them, and under controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.errors import ModelError, UsageError
from glulens.prune.criteria import WEIGHT_CRITERIA, check_criterion, parse_criteria, score_layers
from glulens.prune.glu import glu_layers


def reference(name: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The table in the module, in float64 and numpy."""
    one = {
        "maw": lambda w: np.abs(w).max(1),
        "ppm": lambda w: w.max(1) + np.abs(w.min(1)),
        "vow": lambda w: w.var(1, ddof=1),
        "pon": lambda w: np.abs(w).sum(1),
        "l2": lambda w: np.sqrt((w**2).sum(1)),
    }[name]
    g, u = one(gate.astype(np.float64)), one(up.astype(np.float64))
    return g * u if name == "pon" else g + u


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(WEIGHT_CRITERIA)),
    seed=st.integers(0, 2**32 - 1),
    neurons=st.integers(1, 40),
    hidden=st.integers(2, 40),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_scores_equal_the_definition(name, seed, neurons, hidden, scale):
    rng = np.random.default_rng(seed)
    gate, up = (scale * rng.standard_normal((neurons, hidden)).astype(np.float32) for _ in "gu")
    found = WEIGHT_CRITERIA[name](
        torch.from_numpy(gate), torch.from_numpy(up), torch.empty(hidden, neurons)
    )
    np.testing.assert_allclose(found.numpy(), reference(name, gate, up), rtol=2e-6)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("ppm", "compute_neuron_pair_importance_maw"),
        ("vow", "compute_neuron_pair_importance_vow"),
        ("pon", "compute_neuron_pair_importance_pon"),
        ("l2", "compute_neuron_pair_importance_l2"),
    ],
)
def test_scores_equal_optipfair_on_smollm2(name, peer, smollm):
    from optipfair.pruning import mlp_glu

    function = getattr(mlp_glu, peer)
    layers = glu_layers(smollm.model)
    assert len(layers) == 30
    for layer, scores in zip(layers, score_layers(layers, name), strict=True):
        theirs = function(layer.gate.weight, layer.up.weight)
        np.testing.assert_allclose(scores, theirs.float().numpy(), rtol=1e-6)


def test_bf16_weights_are_ranked_by_their_values_not_by_rounding(tiny):
    layers = glu_layers(tiny().bfloat16())
    for name in WEIGHT_CRITERIA:
        for layer, scores in zip(layers, score_layers(layers, name), strict=True):
            gate, up, _ = (weight.float().numpy() for weight in layer.weights)
            np.testing.assert_allclose(scores, reference(name, gate, up), rtol=2e-6)


def test_reversed_is_the_opposite_order_and_random_needs_only_its_seed(tiny):
    layers = glu_layers(tiny())
    for plain, turned in zip(
        score_layers(layers, "ppm"), score_layers(layers, "reversed:ppm"), strict=True
    ):
        np.testing.assert_array_equal(turned, -plain)
    first, again, other = (score_layers(layers, f"random:{seed}") for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1]), "layers must not share a draw"


def test_unknown_criterion_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown criterion 'pmp' \(did you mean 'ppm'\?\)"):
        check_criterion("pmp")
    for bad in ("random:x", "random:", "reversed:", "reversed:nope", ""):
        with pytest.raises(UsageError):
            check_criterion(bad)


def test_a_list_of_criteria_keeps_its_order_and_drops_repeats():
    assert parse_criteria(" vow, ppm,vow ,random:7") == ("vow", "ppm", "random:7")
    with pytest.raises(UsageError, match="no criterion"):
        parse_criteria(" , ")


def test_weights_that_are_not_finite_are_refused_by_layer(tiny):
    model = tiny()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[5, 5] = float("nan")
    with pytest.raises(ModelError, match="layer 1: 1 neurons"):
        score_layers(glu_layers(model), "ppm")
