"""Histograms of weights: every weight is in one bin, and it is the right one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import make, save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from glulens.interp.score import score_run
from glulens.prune.histograms import WeightHistograms, bin_width, count_weights
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps
from glulens.prune.weights import weigh_matrix
from glulens.tables import BIN_WIDTH, WEIGHT_BINS, weight_histograms


def counted(matrix: torch.Tensor, axis: int, width: float) -> np.ndarray:
    out = np.zeros((matrix.shape[axis], WEIGHT_BINS), np.uint16)
    count_weights(matrix, axis, width, out)
    return out


def expected(rows: np.ndarray, width: float) -> np.ndarray:
    """By numpy, in float64, with the outermost bins opened."""
    edges = width * (np.arange(1, WEIGHT_BINS) - WEIGHT_BINS // 2)
    rows = rows.astype(np.float64)
    place = np.where(np.isnan(rows), WEIGHT_BINS, np.searchsorted(edges, rows, side="right"))
    return np.stack([np.bincount(row, minlength=WEIGHT_BINS + 1)[:WEIGHT_BINS] for row in place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("laid", ["plain", "turned", "strided"])
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    neurons=st.integers(1, 70),
    n=st.sampled_from([1, 3, 63, 64, 65, 256, 257, 600]),
)
def test_every_weight_is_in_its_bin(dtype, axis, laid, seed, neurons, n):
    generator = torch.Generator().manual_seed(seed)
    width = 0.375
    matrix = torch.randn(neurons, n, generator=generator).to(dtype)
    # Dividing by the width rounds: nothing may lie so near to an edge that it matters where.
    place = matrix.float() / width
    matrix[(place - place.round()).abs() < 1e-5] = 0.1
    matrix[torch.rand(neurons, n, generator=generator) < 0.02] = torch.nan
    matrix[torch.rand(neurons, n, generator=generator) < 0.02] = torch.inf
    matrix[torch.rand(neurons, n, generator=generator) < 0.02] = -torch.inf
    rows = matrix.float().numpy()
    stored = matrix if axis == 0 else matrix.T.contiguous()
    if laid == "turned":
        stored = stored.T.contiguous().T
    elif laid == "strided":
        stored = torch.stack([stored, stored * 0], -1)[..., 0]
    found = counted(stored, axis, width)
    assert (found == expected(rows, width)).all()
    assert (found.sum(1) == (~np.isnan(rows)).sum(1)).all()


def test_an_edge_belongs_to_the_bin_above_it():
    row = torch.arange(-13.0, 14.0)[None]
    assert counted(row, 0, 1.0)[0].tolist() == [2, *[1] * 22, 3]


def test_the_scale_is_the_matrix_root_mean_square_and_no_infinity_spoils_it():
    matrix = torch.randn(40, 100, generator=torch.Generator().manual_seed(0)) * 3
    rms = float(matrix.double().square().mean().sqrt())
    assert bin_width(weigh_matrix(matrix, 0)) == pytest.approx(BIN_WIDTH * rms, rel=1e-6)
    with_inf = torch.cat([matrix, torch.full((1, 100), torch.inf)])
    assert bin_width(weigh_matrix(with_inf, 0)) == pytest.approx(BIN_WIDTH * rms, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, -3e38])
def test_matrices_of_one_value_are_counted_too(value):
    matrix = torch.full((2, 5), value)
    found = counted(matrix, 0, bin_width(weigh_matrix(matrix, 0)))
    assert found.sum(1).tolist() == [5, 5]
    assert (found > 0).sum() == 2


def test_a_count_stops_at_what_two_bytes_hold():
    assert counted(torch.zeros(1, 70_000), 0, 1.0)[0, WEIGHT_BINS // 2] == 65_535
    assert counted(torch.zeros(70_000, 1), 1, 1.0)[0, WEIGHT_BINS // 2] == 65_535


@pytest.mark.parametrize("family", ["llama", "phi3", "deepseek_v2", "gpt2"])
def test_a_checkpoint_and_its_model_have_the_same_histograms(tmp_path, family):
    """Separate and fused matrices, experts, and MLPs without a gate."""
    model = make(family)
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    run = score_run(tmp_path / "model", tmp_path / "run", ["ppm"])
    mlps = find_mlps(model)
    live = WeightHistograms([mlp.layout for mlp in mlps])
    score_mlps(mlps, ["ppm"], watch=live)
    stored = {p.stem: np.load(p) for p in (run.path / "weights").iterdir() if p.stem != "bins"}
    assert stored.keys() == live.arrays().keys()
    for matrix, counts in live.arrays().items():
        assert (stored[matrix] == counts).all()
    assert f"weights/{'up' if family == 'gpt2' else 'gate'}.npy" in run.manifest["outputs"]

    neurons = run.neurons()
    assert neurons.height == sum(mlp.width for mlp in mlps)
    first = 0
    for mlp in mlps:
        gate, up, down = mlp.weights
        row = first + mlp.width - 1
        found = weight_histograms(run.path, row)
        assert neurons.row(row, named=True)["layer"] == mlp.layout.layer
        for name, matrix in (("gate", gate), ("up", up), ("down", down.T)):
            if matrix is None:
                assert name not in found
                continue
            values = matrix.double()
            width = BIN_WIDTH * float(values.square().mean().sqrt())
            steps = np.arange(1, WEIGHT_BINS) - WEIGHT_BINS // 2
            np.testing.assert_allclose(found[name].edges, width * steps, rtol=1e-6)
            # Of the last neuron: the bins as numpy counts them, in the arithmetic of the kernels.
            place = values[-1].float().numpy() * np.float32(1 / width) + np.float32(12)
            wanted = np.bincount(np.clip(place, 0, 23).astype(int), minlength=24)
            assert np.abs(found[name].counts.astype(int) - wanted).sum() <= 2
        first += mlp.width
