"""What 16 bits let through of a change: against simulation, and on a real model's weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.interp.concentration import concentration
from glulens.interp.localiser import tenth_of
from glulens.interp.rounding import Side, noise_size, rounded_noise, surviving
from glulens.interp.tuning_verdict import judge_change
from glulens.prune.exponents import steps_held, steps_of
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps


@settings(max_examples=25)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.integers(1, 30),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.sampled_from([0, 1]),
    st.booleans(),
)
def test_steps_lead_to_the_next_number(seed, neurons, n, dtype, axis, transposed):
    generator = torch.Generator().manual_seed(seed)
    shape = (neurons, n) if axis == 0 else (n, neurons)
    spread = torch.exp(3 * torch.randn(shape, generator=generator))
    matrix = (torch.randn(shape, generator=generator) * spread * 0.01).to(dtype)
    matrix[0, 0] = 0
    given_ = matrix.T.contiguous().T if transposed else matrix
    found = steps_of(given_, axis)
    assert found is not None
    step, counts = found
    assert counts.shape == (neurons, len(step))
    assert (counts.sum(1) == n).all()
    # A step up in size: the bits count on by one.
    size = matrix.abs()
    bits = size.view(torch.int16)
    up = (bits + 1).view(dtype).double() - size.double()
    for i in (0, neurons // 2, neurons - 1):
        mine = np.sort(np.repeat(step, counts[i]))
        assert np.array_equal(mine, np.sort(up.select(axis, i).numpy()))


def test_weights_that_stayed_are_counted_by_their_steps():
    before = torch.tensor([[1.0, 1.0, 0.25, 0.0]]).bfloat16()
    after = torch.tensor([[1.0, 1.5, 0.25, 0.1]]).bfloat16()
    found = steps_held(before, after)
    assert found is not None
    step, counts, held = found
    assert step[1:] == pytest.approx([2.0**-9, 2.0**-7])
    assert counts.tolist() == [1, 1, 2]
    assert held.tolist() == [0, 1, 1]
    assert steps_held(before, after.half()) is None
    assert steps_held(before.float(), after.float()) is None


def test_finer_numbers_have_nothing_to_control_for():
    assert steps_of(torch.randn(3, 4), 0) is None


@pytest.mark.parametrize("start", ["stored", "finer"])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 1.0, 4.0])
def test_moments_are_those_of_rounded_noise(ratio, start):
    size = 0.02
    step = ratio * size
    rng = np.random.default_rng(0)
    # Where between two stored numbers the weight stood; a stored one is the first of them.
    place = rng.uniform(-0.5, 0.5, 400_000) * (start == "finer")
    rounded = step * np.round(place + rng.normal(0, size, 400_000) / step)
    second, fourth, none = surviving(np.array([step]), size, start)
    assert second[0] == pytest.approx((rounded**2).mean(), rel=0.02)
    assert fourth[0] == pytest.approx((rounded**4).mean(), rel=0.04)
    assert none[0] == pytest.approx((rounded == 0).mean(), abs=0.005)


@given(st.floats(-9, 1), st.integers(0, 1000), st.sampled_from(["stored", "finer"]))
def test_the_noise_that_makes_a_change_is_found(log, seed, start):
    rng = np.random.default_rng(seed)
    step, counts = np.ldexp(1.0, -np.arange(8, 20)), rng.integers(1, 1000, 12).astype(float)
    squares = float(counts @ surviving(step, 10.0**log, start)[0])
    if squares > 1e-300:  # what changes nothing has no size
        found = noise_size(step, counts, squares, start)
        assert float(counts @ surviving(step, found, start)[0]) == pytest.approx(squares, rel=1e-3)


class Stored:
    """Four layers of the real model in bfloat16, and changes that are stored so too."""

    def __init__(self, opened) -> None:
        self.model = copy.deepcopy(opened.model).to(torch.bfloat16)
        self.mlps = find_mlps(self.model)[2:6]
        self.base = Side([mlp.layout for mlp in self.mlps], self.model.get_parameter)
        self.scores = score_mlps(self.mlps, ["pon_io", "ppm"])
        self.weights = [[w.float() for w in mlp.weights if w is not None] for mlp in self.mlps]
        self.tuned: dict[str, torch.Tensor] = {}
        self.norms = [self.size(weights) for weights in self.weights]

    @staticmethod
    def size(gate_up_down) -> np.ndarray:
        gate, up, down = (each.double().square() for each in gate_up_down)
        return (gate.sum(1) + up.sum(1) + down.sum(0)).sqrt().numpy()

    def after(self) -> Side:
        return Side(self.base.layouts, self.tuned.__getitem__)

    def noise(self, scale: float, lowest: float = 1.0):
        """Noise of one size, `lowest` times as large in the lowest tenth: what is left when stored,
        as norms and as squares by matrix; and the share of weights that stayed."""
        # Stored as the base is; `after` then gives this model.
        generator = torch.Generator().manual_seed(0)
        norms, squares, still = [], [], []
        for mlp, weights in enumerate(self.weights):
            low = torch.from_numpy(tenth_of(self.scores["pon_io"][mlp]) == 0)
            factor = torch.where(low, lowest, 1.0)
            delta = []
            for role, w in zip(("gate", "up", "down"), weights, strict=True):
                by = factor[None] if role == "down" else factor[:, None]
                noise = scale * by * torch.randn(w.shape, generator=generator)
                moved = (w + noise).bfloat16()
                self.tuned[self.base.layouts[mlp].slots[role].tensor] = moved
                delta.append(moved.float() - w)
            norms.append(self.size(delta))
            squares.append(
                {
                    role: float(each.double().square().sum())
                    for role, each in zip(("gate", "up", "down"), delta, strict=True)
                }
            )
            still.append(float(np.mean([float((each == 0).float().mean()) for each in delta])))
        return norms, squares, float(np.mean(still))


@pytest.fixture(scope="module")
def stored(smollm) -> Stored:
    return Stored(smollm)


def test_equal_noise_in_16_bits_looks_like_a_finding_until_it_is_controlled_for(stored):
    change, squares, still = stored.noise(1.5e-4)
    rounded = rounded_noise(stored.base, stored.after(), squares)
    assert rounded is not None
    assert {part.start for part in rounded} == {"stored"}
    assert np.mean([part.unchanged for part in rounded]) == pytest.approx(still, abs=0.01)
    assert 0.5 < still < 0.95

    def judged(rounded):
        rows = concentration(
            stored.scores, change, norms=stored.norms, rounded=rounded, permutations=200
        )
        return judge_change(rows, "pon_io")

    naive, controlled = judged(None), judged(rounded)
    assert naive.outcome == "supported"
    assert controlled.outcome == "no evidence"
    row = controlled.absolute
    assert row.if_rounded == pytest.approx(row.rho, abs=0.03)
    assert row.rho < -0.2
    assert "rounded to 16 bits" in controlled.sentence
    # Layers that differ in rho differ alike in what rounding gives: less is left to vary.
    assert row.beyond == pytest.approx(row.rho - row.if_rounded)
    assert row.beyond_high - row.beyond_low < row.high - row.low
    assert np.isnan(naive.absolute.if_rounded)


def test_a_real_concentration_passes_the_control(stored):
    change, squares, _ = stored.noise(1.5e-4, lowest=8.0)
    rounded = rounded_noise(stored.base, stored.after(), squares)
    assert rounded is not None
    rows = concentration(
        stored.scores, change, norms=stored.norms, rounded=rounded, permutations=200
    )
    found = judge_change(rows, "pon_io")
    assert found.absolute.shares[0] > 0.5
    assert found.outcome == "supported"


def test_models_rounded_from_finer_weights_are_told_apart(smollm, stored):
    """Tuned in single precision, then both stored in 16 bits: noise alike seems to have chosen
    high-magnitude neurons."""
    fine = [mlp.weights for mlp in find_mlps(smollm.model)[2:6]]
    generator = torch.Generator().manual_seed(0)
    # The model's own weights lie on a coarse grid; a little dust makes them fine ones.
    base, tuned, change, norms, squares = {}, {}, [], [], []
    for layout, matrices in zip(stored.base.layouts, fine, strict=True):
        delta, size = [], []
        squares.append({})
        for role, w in zip(("gate", "up", "down"), matrices, strict=True):
            assert w is not None
            dusty = w * (1 + 0.01 * torch.randn(w.shape, generator=generator))
            name = layout.slots[role].tensor
            base[name] = dusty.bfloat16()
            tuned[name] = (dusty + 5e-5 * torch.randn(w.shape, generator=generator)).bfloat16()
            size.append(base[name].float())
            delta.append(tuned[name].float() - size[-1])
            squares[-1][role] = float(delta[-1].double().square().sum())
        change.append(stored.size(delta))
        norms.append(stored.size(size))
    before, after = (Side(stored.base.layouts, side.__getitem__) for side in (base, tuned))
    rounded = rounded_noise(before, after, squares)
    assert rounded is not None
    assert {part.start for part in rounded} == {"finer"}

    def judged(rounded):
        return judge_change(
            concentration(stored.scores, change, norms=norms, rounded=rounded, permutations=200),
            "pon_io",
        )

    assert judged(None).outcome == "contradicted"
    controlled = judged(rounded)
    assert controlled.outcome == "no evidence"
    assert controlled.absolute.if_rounded == pytest.approx(controlled.absolute.rho, abs=0.03)


def test_changes_that_all_survive_need_no_control(stored):
    _, squares, still = stored.noise(0.02)
    assert still < 0.05
    assert rounded_noise(stored.base, stored.after(), squares) is None
    # Of some neurons only, as those that a pruned copy kept.
    kept = [np.arange(0, mlp.width, 2) for mlp in stored.mlps]
    half = rounded_noise(stored.base, stored.after(), squares, rows=kept, negligible=0)
    assert half is not None
    assert [len(part.mean) for part in half] == [len(rows) for rows in kept]
    # Their noise is the larger, since they carry the same change.
    assert half[0].mean.sum() == pytest.approx(sum(squares[0].values()), rel=1e-3)
