"""From scores and a budget to a set of neurons."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glulens.errors import UsageError
from glulens.prune.budget import Budget, choose
from glulens.prune.layout import locate
from glulens.prune.selection import NeuronSet


def dense(widths, hidden=8):
    config = SimpleNamespace(model_type="llama", num_hidden_layers=len(widths))
    shapes = {}
    for layer, width in enumerate(widths):
        stem = f"model.layers.{layer}.mlp"
        shapes[f"{stem}.gate_proj.weight"] = (width, hidden)
        shapes[f"{stem}.up_proj.weight"] = (width, hidden)
        shapes[f"{stem}.down_proj.weight"] = (hidden, width)
    return locate(shapes, config)


def mixture(layers=2, experts=3, width=25, shared=2, hidden=8):
    """DeepSeek's: shared experts are one MLP, twice as wide as a routed one."""
    config = SimpleNamespace(
        model_type="deepseek_v3",
        num_hidden_layers=layers,
        moe_intermediate_size=width,
        n_shared_experts=shared,
    )
    shapes = {}
    for layer in range(layers):
        stem = f"model.layers.{layer}.mlp"
        for expert in range(experts):
            for name in ("gate_proj", "up_proj"):
                shapes[f"{stem}.experts.{expert}.{name}.weight"] = (width, hidden)
            shapes[f"{stem}.experts.{expert}.down_proj.weight"] = (hidden, width)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{stem}.shared_experts.{name}.weight"] = (shared * width, hidden)
        shapes[f"{stem}.shared_experts.down_proj.weight"] = (hidden, shared * width)
    return locate(shapes, config)


def scores(layouts, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random(layout.width).astype(np.float32) for layout in layouts]


def test_every_way_to_say_the_same_chooses_the_same():
    layouts = dense((40, 40, 40), hidden=10)
    by = scores(layouts)
    cut = choose(layouts, by, Budget(fraction=0.3))
    assert cut.counts == (12, 12, 12)
    assert cut == choose(layouts, by, Budget(expansion=2.8))
    assert cut == choose(layouts, by, Budget(width=28))
    total = 5000
    assert cut == choose(layouts, by, Budget(parameters=total - 36 * 30), total_parameters=total)
    for mlp, chosen in zip(by, cut.indices, strict=True):
        assert mlp[chosen].max() <= np.delete(mlp, chosen).min()


@given(
    parameters=st.integers(2000, 8000),
    widths=st.lists(st.integers(2, 40), min_size=1, max_size=4),
)
def test_a_parameter_budget_is_kept_and_not_undershot_by_a_step(parameters, widths):
    layouts = dense(widths)
    total = 24 * sum(widths) + 3000
    by = scores(layouts)
    if parameters >= total or parameters < 24 * len(widths) + 3000:
        with pytest.raises(UsageError, match="parameters"):
            choose(layouts, by, Budget(parameters=parameters), total_parameters=total)
        return
    try:
        cut = choose(layouts, by, Budget(parameters=parameters), total_parameters=total)
    except UsageError:
        # Every MLP keeps a neuron at the very least; rounding may keep some more.
        assert parameters < 24 * sum(-(-w // max(widths)) + 1 for w in widths) + 3000
        return
    left = total - 24 * len(cut)
    assert left <= parameters
    # One step less of the widest MLP (at most one neuron of each) would be too much.
    assert left + 24 * len(widths) > parameters


def test_a_divisor_rounds_kept_widths_to_the_nearest_multiple_and_never_to_0():
    layouts = dense((100, 100))
    by = scores(layouts)

    def kept(**budget):
        return choose(layouts, by, Budget(**budget)).complement().counts[0]

    assert kept(fraction=0.29, divisor=8) == 72  # of 71
    assert kept(fraction=0.25, divisor=8) == 72  # of 75
    assert kept(fraction=0.24, divisor=8) == 80  # of 76, halfway
    assert kept(fraction=0.99, divisor=64) == 64  # of 1
    assert kept(fraction=0.05, divisor=60) == 60  # of 95: 120 would be more than there are
    total = 48 * 100
    left = choose(layouts, by, Budget(parameters=48 * 79, divisor=16), total_parameters=total)
    assert left.complement().counts == (64, 64)  # 80 would be nearer, and too many
    with pytest.raises(UsageError, match="no neuron would go"):
        kept(fraction=0.01, divisor=100)


def test_layers_can_have_fractions_of_their_own():
    layouts = dense((10, 10, 10))
    cut = choose(layouts, scores(layouts), Budget(fraction=0.5, layers={0: 0.0, 2: 0.2}))
    assert cut.counts == (0, 5, 2)
    assert choose(layouts, scores(layouts), Budget(layers={1: 0.3})).counts == (0, 3, 0)
    with pytest.raises(UsageError, match=r"layer 7: the model's layers are 0\.\.2"):
        choose(layouts, scores(layouts), Budget(fraction=0.5, layers={7: 0.0}))


@given(seed=st.integers(0, 1000), size=st.integers(0, 14))
def test_protected_neurons_stay_and_others_go_in_their_place(seed, size):
    layouts = dense((20, 20))
    by = scores(layouts, seed)
    rng = np.random.default_rng(seed)
    safe = NeuronSet((20, 20), tuple(rng.choice(20, size, replace=False) for _ in layouts))
    cut = choose(layouts, by, Budget(fraction=0.3), protected=safe)
    assert cut.counts == (6, 6)
    assert not len(cut & safe)
    for mlp, chosen, kept in zip(by, cut.indices, (cut | safe).complement().indices, strict=True):
        assert not len(kept) or mlp[chosen].max() <= mlp[kept].min()


def test_too_many_protected_are_refused():
    layouts = dense((20,))
    safe = NeuronSet((20,), (np.arange(15),))
    with pytest.raises(UsageError, match="layer 0: 15 neurons are protected where 14 may stay"):
        choose(layouts, scores(layouts), Budget(fraction=0.3), protected=safe)


def test_pooled_ranks_take_more_where_scores_are_lower():
    layouts = dense((100, 100, 100))
    rng = np.random.default_rng(0)
    # The same spread, but one layer has a long lower tail: standardised, it loses most.
    by = [rng.normal(size=100), 5 + 3 * rng.normal(size=100), -(rng.exponential(size=100) ** 2)]
    cut = choose(layouts, by, Budget(fraction=0.1, pooled=True))
    assert len(cut) == 30
    standard = [(s - s.mean()) / s.std() for s in by]
    threshold = np.sort(np.concatenate(standard))[30]
    assert cut.counts == tuple(int((s < threshold).sum()) for s in standard)
    assert len(set(cut.counts)) > 1


def test_pooled_ranks_never_empty_a_layer():
    layouts = dense((4, 100))
    by = [np.array([-1e6, -1e6, -1e6, 3e6]), np.zeros(100)]
    cut = choose(layouts, by, Budget(fraction=0.9, pooled=True))
    assert all(cut.complement().counts)


def test_experts_of_a_layer_keep_one_width_and_shared_ones_their_multiple():
    layouts = mixture()
    assert [layout.name for layout in layouts[:4]] == [
        "layer 0 expert 0", "layer 0 expert 1", "layer 0 expert 2", "layer 0 shared expert",
    ]  # fmt: skip
    by = scores(layouts)
    for budget in (Budget(fraction=0.1), Budget(width=23), Budget(expansion=23 / 8)):
        kept = choose(layouts, by, budget).complement().counts
        assert kept == (23, 23, 23, 46) * 2
    pooled = choose(layouts, by, Budget(fraction=0.3, pooled=True)).counts
    assert len(set(pooled[:3])) == len(set(pooled[4:7])) == 1
    uniform = sum(choose(layouts, by, Budget(fraction=0.3)).counts)
    assert abs(sum(pooled) - uniform) <= 2
    assert choose(layouts, by, Budget(fraction=0.1, divisor=8)).complement().counts == (
        24, 24, 24, 48,
    ) * 2  # fmt: skip


@given(
    seed=st.integers(0, 100),
    parameters=st.integers(4000, 9000),
    pooled=st.booleans(),
    divisor=st.sampled_from([1, 4, 16]),
    own=st.booleans(),
)
def test_a_parameter_budget_holds_whatever_else_is_asked(seed, parameters, pooled, divisor, own):
    layouts = mixture()
    total = 24 * sum(layout.width for layout in layouts) + 3000
    layers = {0: 0.0} if own and not pooled else {}
    budget = Budget(parameters=parameters, pooled=pooled, divisor=divisor, layers=layers)
    try:
        cut = choose(layouts, scores(layouts, seed), budget, total_parameters=total)
    except UsageError:
        return  # refused with a reason is fine, exceeded is not
    assert total - 24 * len(cut) <= parameters


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, float("nan")])
def test_fractions_that_cut_nothing_or_all_are_refused(fraction):
    with pytest.raises(UsageError, match="outside 0 < fraction < 1, e.g. 0.1 for a tenth"):
        Budget(fraction=fraction)


def test_budgets_that_say_too_much_or_nothing_are_refused():
    for bad in ({}, {"fraction": 0.1, "width": 4}):
        with pytest.raises(UsageError, match="give exactly one of fraction, expansion, width"):
            Budget(**bad)
    for name, others in (("width", {}), ("parameters", {}), ("divisor", {"fraction": 0.1})):
        settings: dict[str, Any] = {name: 0, **others}
        with pytest.raises(UsageError, match=f"{name} 0: at least 1 is needed"):
            Budget(**settings)
    with pytest.raises(UsageError, match="leave layers out"):
        Budget(fraction=0.1, pooled=True, layers={0: 0.0})


def test_budgets_above_the_models_own_are_refused():
    layouts = dense((40,), hidden=10)
    by = scores(layouts)
    with pytest.raises(UsageError, match="give at most 4"):
        choose(layouts, by, Budget(expansion=4.5))
    with pytest.raises(UsageError, match="no neuron would go"):
        choose(layouts, by, Budget(expansion=4.0))
    with pytest.raises(UsageError, match="width 41: layer 0 has 40 neurons"):
        choose(layouts, by, Budget(width=41))
    with pytest.raises(UsageError, match="the model has 5,000"):
        choose(layouts, by, Budget(parameters=6000), total_parameters=5000)
