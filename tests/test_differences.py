"""How two checkpoints differ: sums against float64, distributions against scipy, real models."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make, save_tokenizer
from gguf_files import LAYERS, gguf_files
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor

from glulens.errors import ModelError
from glulens.prune.checkpoint import open_checkpoint
from glulens.prune.differences import SAMPLE, Difference, compare_matrix, difference
from glulens.prune.expressions import evaluate
from glulens.prune.mlps import find_mlps
from glulens.prune.models import ModelSource
from glulens.prune.pairing import is_quantised_source
from glulens.prune.shift import QUANTILES, norm_shift, weight_shift

FAMILIES = ["llama", "phi3", "gemma2", "mixtral", "deepseek_v2", "qwen2_moe", "gpt2", "opt"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def saved(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def compared(base: Path, tuned: Path, **options: Any) -> Difference:
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        return difference(one, other, **options)


def altered(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other values in some tensors; dots in names are `__`."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    for name, change in changes.items():
        change(tensors[name.replace("__", ".")])
    save_file(tensors, file, metadata={"format": "pt"})
    return target


# Two matrices


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("laid", ["plain", "turned", "strided"])
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**32 - 1),
    neurons=st.sampled_from([1, 2, 15, 17, 70, 255, 257, 300]),
    n=st.sampled_from([1, 3, 63, 64, 65, 127, 128, 131, 256, 257, 600]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    scale=st.sampled_from([0.0, 1e-3, 0.1, 3.0, 1e3]),
)
@example(seed=0, neurons=300, n=600, dtypes=(torch.bfloat16, torch.bfloat16), scale=0.1)
@example(seed=0, neurons=300, n=600, dtypes=(torch.bfloat16, torch.float32), scale=0.1)
def test_sums_of_two_matrices(axis, laid, seed, neurons, n, dtypes, scale):
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(neurons, n, generator=generator)
    after = before + scale * torch.randn(neurons, n, generator=generator)
    pair = []
    for matrix, dtype in zip((before, after), dtypes, strict=True):
        stored = matrix.to(dtype) if axis == 0 else matrix.T.to(dtype).contiguous()
        if laid == "turned":
            stored = stored.T.contiguous().T
        elif laid == "strided":
            stored = torch.stack([stored, stored * 0], -1)[..., 0]
        pair.append(stored)
    found = compare_matrix(pair[0], pair[1], axis)
    a, b = (m.float().double().numpy() if axis == 0 else m.float().double().numpy().T for m in pair)
    assert found.n == n
    # Each float32 operation rounds by 6e-8 of the numbers it adds up.
    np.testing.assert_allclose(found.squares, ((a - b) ** 2).sum(1), rtol=3e-6, atol=0)
    lengths = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    np.testing.assert_allclose(found.dot, (a * b).sum(1), rtol=0, atol=3e-6 * lengths.max())
    cosine = (a * b).sum(1) / lengths
    np.testing.assert_allclose(found.cosine, cosine, rtol=0, atol=3e-6)
    for side, rows in ((found.before, a), (found.after, b)):
        assert (side.low == rows.min(1)).all()
        assert (side.high == rows.max(1)).all()
        size, squares = np.abs(rows).sum(1), (rows**2).sum(1)
        np.testing.assert_allclose(side.absolute, size, rtol=1e-6)
        np.testing.assert_allclose(side.squares, squares, rtol=1e-6)
        # These two cancel: what they are off by is in proportion to what is added up.
        assert (np.abs(side.total - rows.sum(1)) <= 1e-6 * size).all()
        assert (np.abs(side.deviation - rows.var(1) * n) <= 3e-6 * squares).all()
    back = compare_matrix(pair[1], pair[0], axis)
    assert (back.squares == found.squares).all()
    assert (back.dot == found.dot).all()
    assert (back.cosine == found.cosine).all()
    for one, other in ((back.before, found.after), (back.after, found.before)):
        for sums in ("low", "high", "total", "absolute", "squares", "deviation"):
            assert (getattr(one, sums) == getattr(other, sums)).all()
    same = compare_matrix(pair[0], pair[0].clone(), axis)
    assert (same.squares == 0).all()
    assert (same.cosine == 1).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_cosine_keeps_its_digits_where_vectors_nearly_agree(axis):
    """1 - cosine of 5e-9: the product of two float32 norms would leave nothing of it."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(40, 500, generator=generator)
    after = before + 1e-4 * torch.randn(40, 500, generator=generator)
    a, b = before.double(), after.double()
    unit_a, unit_b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    expected = (unit_a - unit_b).square().sum(1) / 2
    pair = (before, after) if axis == 0 else (before.T.contiguous(), after.T.contiguous())
    found = 1 - compare_matrix(*pair, axis).cosine
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3)


def test_the_cosine_at_its_ends():
    before = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [1.0, 2.0], [1.0, 0.0], [1.0, 2.0]])
    after = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [-1.0, -2.0], [0.0, 3.0], [2.0, 4.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compare_matrix(before, after, 0).cosine
    np.testing.assert_allclose(found, [1, np.nan, np.nan, -1, 0, 1], atol=1e-7)


def test_matrices_of_unlike_shapes_and_packed_ones_are_refused():
    with pytest.raises(ModelError, match="shapes"):
        compare_matrix(torch.zeros(2, 3), torch.zeros(3, 2), 0)
    with pytest.raises(ModelError, match="packed"):
        compare_matrix(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int8), 0)


# Two checkpoints


@pytest.mark.parametrize("family", FAMILIES)
def test_every_neuron_and_every_tensor(tmp_path, family):
    """Separate, fused, transposed matrices and experts, against the live models' weights."""
    models = [make(family, seed) for seed in (0, 1)]
    base, tuned = (saved(tmp_path / str(i), model) for i, model in enumerate(models))
    found = compared(base, tuned)
    sides = [find_mlps(model) for model in models]
    assert len(found.mlps) == len(sides[0])
    for mlp, one, other in zip(found.mlps, *sides, strict=True):
        squares, of_base, total = 0.0, 0.0, 0.0
        for role, a, b in zip(("gate", "up", "down"), one.weights, other.weights, strict=True):
            if a is None or b is None:
                assert role not in mlp.matrices
                continue
            axis = 0 if role == "down" else 1
            change = (b.double() - a.double()).square().sum(axis).numpy()
            np.testing.assert_allclose(mlp.matrices[role].squares, change, rtol=3e-6)
            squares, of_base = squares + change, of_base + a.double().square().sum(axis).numpy()
            total += change.sum()
        np.testing.assert_allclose(mlp.absolute, np.sqrt(squares), rtol=3e-6)
        np.testing.assert_allclose(mlp.relative, np.sqrt(squares / of_base), rtol=3e-6)
        np.testing.assert_allclose(mlp.share, squares / total, rtol=3e-6)
        assert mlp.rows.tolist() == list(range(one.width))
    both = [load_file(side / "model.safetensors") for side in (base, tuned)]
    assert sum(t.n for t in found.tensors) == sum(t.numel() for t in both[0].values())
    by_name: dict[str, float] = {}
    for tensor in found.tensors:
        by_name[tensor.name] = by_name.get(tensor.name, 0) + tensor.squares
        assert (tensor.distribution is None) == (both[0][tensor.name].ndim < 2)
        assert tensor.before + tensor.after - 2 * tensor.dot == pytest.approx(
            tensor.squares, rel=1e-5
        )
    assert by_name.keys() == both[0].keys()
    for name, squares in by_name.items():
        expected = (both[1][name].double() - both[0][name].double()).square().sum()
        assert squares == pytest.approx(float(expected), rel=3e-6)


def test_groups_and_layers(tmp_path):
    base = saved(tmp_path / "base", make("qwen2_moe"))
    found = {(t.name, t.group): t.layer for t in compared(base, base).tensors}
    at = "model.layers.0.mlp"
    assert found["model.embed_tokens.weight", "embedding"] is None
    assert found["lm_head.weight", "head"] is None
    assert found["model.norm.weight", "norm"] is None
    assert found["model.layers.1.post_attention_layernorm.weight", "norm"] == 1
    assert found["model.layers.1.self_attn.q_proj.weight", "attention"] == 1
    assert found["model.layers.1.self_attn.q_proj.bias", "bias"] == 1
    assert found["model.layers.1.mlp.gate_proj.weight", "gate"] == 1
    assert found[f"{at}.shared_expert.down_proj.weight", "down"] == 0
    assert found[f"{at}.gate.weight", "other"] == 0  # the router


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral", "gpt2"])
def test_exchanging_the_models_mirrors_all_and_one_alone_is_all_zero(tmp_path, family):
    base, tuned = (saved(tmp_path / str(seed), make(family, seed)) for seed in (0, 1))
    there, back = compared(base, tuned, gains=True), compared(tuned, base, gains=True)
    for one, other in zip(there.mlps, back.mlps, strict=True):
        assert (one.squares == other.squares).all()
        assert (one.share == other.share).all()
        for role, matrix in one.matrices.items():
            assert (matrix.before.squares == other.matrices[role].after.squares).all()
            assert (matrix.cosine == other.matrices[role].cosine).all()
        for a, b in zip(one.before.folded or (), other.after.folded or (), strict=True):
            assert (a.squares == b.squares).all()
    for a, b in zip(there.tensors, back.tensors, strict=True):
        assert (a.squares, a.before, a.dot) == (b.squares, b.after, b.dot)
        if a.distribution is not None:
            assert b.distribution is not None
            assert a.distribution.wasserstein == b.distribution.wasserstein > 0
            assert a.distribution.ks == b.distribution.ks > 0
            assert a.distribution.quantiles == b.distribution.quantiles[::-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = compared(base, base)
        for mlp in alone.mlps:
            for values in (mlp.squares, mlp.absolute, mlp.relative, mlp.share):
                assert (values == 0).all()
            assert all((matrix.cosine == 1).all() for matrix in mlp.matrices.values())
        for tensor in alone.tensors:
            assert tensor.squares == 0
            assert tensor.before == tensor.after
            for shift in (tensor.distribution, tensor.norms):
                assert shift is None or (shift.wasserstein, shift.ks) == (0, 0)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "mixtral"])
def test_both_sides_score_as_they_do_alone(tmp_path, family):
    """Of each model with its own norm folded in."""
    base, tuned = (saved(tmp_path / str(seed), make(family, seed)) for seed in (0, 1))
    found = compared(base, tuned, gains=True)
    names = ["ppm", "maw", "vow", "l2", "pon_io", "balanced(ppm)", "folded(ppm)", "random:3"]
    for folder, side in ((base, "before"), (tuned, "after")):
        with open_checkpoint(folder) as checkpoint:
            alone = checkpoint.score(names)
        for name in names:
            scores = evaluate(name, [getattr(mlp, side) for mlp in found.mlps])
            for one, other in zip(scores, alone[name], strict=True):
                np.testing.assert_allclose(one, other, rtol=2e-6)
    assert compared(base, tuned).mlps[0].before.folded is None


def test_a_neuron_that_was_zero_has_no_relative_change(tmp_path):
    at = "model__layers__0__mlp"
    names = [f"{at}__{role}_proj__weight" for role in ("gate", "up", "down")]

    def zero(tensor: Tensor) -> None:
        (tensor if tensor.shape[0] == 24 else tensor.T)[:2] = 0

    model = saved(tmp_path / "model", make("llama"))
    base = altered(model, tmp_path / "base", **dict.fromkeys(names, zero))
    tuned = altered(base, tmp_path / "tuned", **{names[1]: lambda up: up[1].fill_(0.5)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mlp = compared(base, tuned).mlps[0]
        assert mlp.absolute[:3].tolist() == pytest.approx([0, np.sqrt(32 / 4), 0])
        assert mlp.relative[0] == mlp.relative[2] == 0
        assert np.isnan(mlp.relative[1])
        assert mlp.share[:3].tolist() == [0, 1, 0]
        assert mlp.matrices["up"].cosine[0] == 1
        assert np.isnan(mlp.matrices["up"].cosine[1])


@pytest.mark.parametrize(("value", "side"), [(np.nan, "tuned"), (np.inf, "base")])
def test_weights_that_are_not_finite(tmp_path, value, side):
    whole = saved(tmp_path / "whole", make("llama"))
    other = altered(whole, tmp_path / "other", model__norm__weight=lambda t: t.mul_(2))

    def spoil(tensor: Tensor) -> None:
        tensor[3, 5] = value

    def sides(damaged: Path) -> tuple[Path, Path]:
        return (other, damaged) if side == "tuned" else (damaged, other)

    name = "model.layers.1.mlp.down_proj.weight"
    damaged = altered(whole, tmp_path / "neuron", **{name.replace(".", "__"): spoil})
    with pytest.raises(ModelError) as error:
        compared(*sides(damaged))
    said = str(error.value)
    assert f"{damaged} ({side}), layer 1: 1 neurons have NaN or infinite weights in {name}" in said
    assert "(the first is 5)" in said
    assert "--allow-nonfinite" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = compared(*sides(damaged), allow_nonfinite=True)
        mlp = found.mlps[1]
        bad = np.arange(24) == 5
        for values in (mlp.absolute, mlp.relative, mlp.share, mlp.matrices["down"].cosine):
            assert (np.isnan(values) == bad).all()
        assert (mlp.squares[~bad] == 0).all()
        weights = mlp.after if side == "tuned" else mlp.before
        assert (weights.finite == ~bad).all()
        assert all(np.isfinite(t.squares) for t in found.tensors)
    for name, where in (
        ("model.layers.0.self_attn.k_proj.weight", "attention: 1 rows"),
        ("model.embed_tokens.weight", "embedding: 1 rows"),
    ):
        damaged = altered(whole, tmp_path / name, **{name.replace(".", "__"): spoil})
        with pytest.raises(ModelError) as error:
            compared(*sides(damaged))
        assert f"({side}), {where} have NaN or infinite weights in {name}" in str(error.value)
        assert "(the first is 3)" in str(error.value)
        assert np.isfinite(compared(*sides(damaged), allow_nonfinite=True).tensors[-1].squares)


# Distributions


def expected_shift(one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    one, other = one.astype(np.float64), other.astype(np.float64)
    both = np.concatenate([one, other])
    return {
        "wasserstein": stats.wasserstein_distance(one, other),
        "ks": max(abs(stats.ecdf(one).cdf.evaluate(both) - stats.ecdf(other).cdf.evaluate(both))),
        "kurtosis": (stats.kurtosis(one), stats.kurtosis(other)),
        "sd": (one.std(), other.std()),
        "quantiles": (np.quantile(one, QUANTILES), np.quantile(other, QUANTILES)),
    }


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    kind=st.sampled_from(["normal", "ties", "far", "tiny"]),
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shifts_agree_with_scipy(dtype, seed, sizes, kind):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=sizes[0]), rng.standard_t(4, size=sizes[1]) + 0.2
    if kind == "ties":
        one, other = one.round(), other.round()
    elif kind == "far":
        other = other + 50
    elif kind == "tiny":
        one, other = one * 1e-12, other * 1e-12
    one, other = one.astype(dtype), other.astype(dtype)
    expected = expected_shift(one, other)
    found = (norm_shift if dtype is np.float64 else weight_shift)(one.copy(), other.copy())
    assert found.n == len(one)
    scale = max(np.abs(one).max(), np.abs(other).max())
    for name, value in expected.items():
        got = np.array(getattr(found, name))
        if name == "kurtosis":
            flat = [len(np.unique(sample)) == 1 for sample in (one, other)]
            assert np.isnan(got).tolist() == flat
            wanted = np.where(flat, np.nan, value)
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
        else:
            atol = 1e-9 if name == "ks" else 2e-6 * scale
            np.testing.assert_allclose(got, value, rtol=1e-5, atol=atol)


def test_shifts_of_nothing_and_of_what_is_not_finite():
    one, other = np.array([1.0, np.nan, 3.0]), np.array([np.inf, 2.0])
    found = norm_shift(one, other)
    assert (found.n, found.wasserstein, found.ks) == (2, 1, 0.5)
    assert np.isnan(one[1])  # the caller's own
    assert np.isnan(norm_shift(np.array([]), np.array([1.0])).ks)


def test_the_same_places_of_both_are_looked_at(tmp_path):
    """A tensor larger than the sample, moved by 1 everywhere: the distance is 1 and not near it."""
    sizes = {"vocab_size": 5000, "intermediate_size": 3000}
    base = saved(tmp_path / "base", make("llama", **sizes))
    names = ["model__embed_tokens__weight", "model__layers__0__mlp__down_proj__weight"]
    for name in names:
        file = load_file(base / "model.safetensors")[name.replace("__", ".")]
        assert file.numel() > SAMPLE
    tuned = altered(base, tmp_path / "tuned", **dict.fromkeys(names, lambda t: t.add_(1)))
    found = {t.name: t.distribution for t in compared(base, tuned).tensors}
    for name in names:
        shift = found[name.replace("__", ".")]
        assert shift is not None
        assert shift.wasserstein == pytest.approx(1, abs=1e-6)
        assert 0.9 * SAMPLE < shift.n <= SAMPLE
        assert shift.ks > 0.9


def test_samples_are_taken_alike_of_fused_and_of_separate_matrices(tmp_path):
    """At most `SAMPLE` of a tensor, experts and all."""
    base = saved(tmp_path / "base", make("mixtral", intermediate_size=3000))
    for tensor in compared(base, base).tensors:
        if tensor.distribution is not None:
            assert min(tensor.n, 0.9 * SAMPLE) <= tensor.distribution.n <= SAMPLE


# GGUF


@pytest.fixture(scope="module")
def quantised(smollm, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Two layers of a real model as safetensors, as GGUF in F32, and as GGUF in Q8_0."""
    return gguf_files(smollm, tmp_path_factory.mktemp("gguf"))


def test_a_gguf_in_float32_is_the_same_model(quantised):
    base, exact, _ = quantised
    assert not is_quantised_source(ModelSource(str(exact), "gguf", exact))
    found = compared(base, exact)
    assert len(found.tensors) == 9 * LAYERS + 2
    assert all(tensor.squares == 0 for tensor in found.tensors)
    assert all((mlp.squares == 0).all() for mlp in found.mlps)


def test_a_quantised_gguf_differs_by_its_steps(quantised):
    """Q8_0: blocks of 32 weights, each a step times -127 to 127."""
    base, _, coarse = quantised
    assert is_quantised_source(ModelSource(str(coarse), "gguf", coarse))
    with open_checkpoint(base) as one, open_checkpoint(coarse) as other:
        found = difference(one, other)
        raw = load_file(other.folder / "model.safetensors")
    plain = load_file(base / "model.safetensors")
    expected: dict[str, tuple[Tensor, Tensor]] = {}
    for name, before in plain.items():
        change = raw[name].double() - before.double()
        if before.ndim == 1:
            assert not change.any()
            continue
        blocks = before.double().view(len(before), -1, 32)
        step = blocks.abs().amax(2, keepdim=True) / 127
        # Half a step; and the step itself is rounded to float16, for as many steps as there are.
        rounded = (step.half().double() - step).abs()
        bound = step / 2 + (blocks.abs() / step.clamp_min(1e-30) + 0.5) * rounded
        assert (change.view_as(blocks).abs() <= bound * (1 + 1e-4)).all()
        # Uniform within a step, but for the largest of the block, which is met.
        spread = (step**2 / 12 * 31 / 32).expand_as(blocks).reshape(before.shape)
        expected[name] = spread, before.double().square()
    for mlp in found.mlps:
        spread = before = torch.zeros(mlp.layout.width, dtype=torch.float64)
        for role in ("gate", "up", "down"):
            axis = 0 if role == "down" else 1
            of_role = expected[mlp.layout.slots[role].tensor]
            spread, before = spread + of_role[0].sum(axis), before + of_role[1].sum(axis)
        ratio = mlp.relative / torch.sqrt(spread / before).numpy()
        assert np.median(ratio) == pytest.approx(1, abs=0.02)
        assert ((ratio > 0.9) & (ratio < 1.1)).all()
        assert 0.002 < np.median(mlp.relative) < 0.02
    for tensor in found.tensors:
        if tensor.group in ("attention", "embedding"):
            spread = float(expected[tensor.name][0].sum())
            assert tensor.squares / spread == pytest.approx(1, abs=0.02)
