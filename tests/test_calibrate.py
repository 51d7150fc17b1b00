"""The test says what was planted, and models that know nothing are told from those that do."""

from __future__ import annotations

import copy
import errno
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from glulens.errors import DataError, ResourceError, RunError, UsageError
from glulens.interp.calibrate import PLANTED, RANDOM, REVERSED, calibrate_contrasts, rates
from glulens.interp.planting import SCORES, planting_factors
from glulens.interp.stages import Stages, worth_keeping
from glulens.prune.gauge import rescale
from glulens.prune.mlps import find_mlps
from glulens.prune.nulls import row_shuffled, untrained
from glulens.prune.scoring import score_mlps, weigh

WIDTHS = (200,) * 5


def contrasts(questions: int = 300, signal: float = 0.15) -> dict[str, Any]:
    """Attributions with shared factors and loud and quiet neurons, and a true part in each."""
    rng = np.random.default_rng(0)
    neurons = sum(WIDTHS)
    spread = np.exp(0.8 * rng.normal(size=neurons))
    factors = 0.5 * rng.normal(size=(3, neurons))

    def made(items: int, signal: float) -> np.ndarray:
        true = signal * np.abs(rng.normal(size=neurons)) * rng.choice([-1, 1], neurons)
        noise = rng.normal(size=(items, neurons)) + rng.normal(size=(items, 3)) @ factors
        return ((noise + true) * spread).astype(np.float32)

    def of(items: int, signal: float) -> SimpleNamespace:
        return SimpleNamespace(
            items=[str(k) for k in range(items)], attribution=made(items, signal)
        )

    return {"misconception": of(questions, signal), "control": of(questions * 3 // 4, signal)}


def test_planted_orders_are_told_and_random_ones_are_not():
    found = calibrate_contrasts(
        contrasts(), WIDTHS, plantings=16, orders=64, permutations=199, bootstraps=100
    )
    by_key = {(row.kind, row.strength): row for row in rates(found)}
    assert by_key[PLANTED, 1.0].supported >= 12
    assert by_key[REVERSED, 1.0].contradicted == 16
    assert by_key[PLANTED, 1.0].contradicted == by_key[REVERSED, 1.0].supported == 0
    assert by_key[RANDOM, 0.0].n == 64
    assert by_key[RANDOM, 0.0].supported + by_key[RANDOM, 0.0].contradicted <= 5
    effects = [by_key[PLANTED, strength].effect for strength in (0.2, 0.5, 1.0)]
    assert effects == sorted(effects, reverse=True), "stronger plantings, stronger effects"
    assert by_key[PLANTED, 0.1].right <= by_key[PLANTED, 1.0].right


def test_where_labels_mean_nothing_nothing_is_found():
    found = calibrate_contrasts(
        contrasts(signal=0.0), WIDTHS, plantings=8, orders=32, permutations=199, bootstraps=100
    )
    assert sum(row.outcome in ("supported", "contradicted") for row in found) <= 2


def test_too_few_questions_are_told():
    with pytest.raises(DataError, match="39 questions"):
        calibrate_contrasts(contrasts(39), WIDTHS)
    with pytest.raises(UsageError, match="at least 1"):
        calibrate_contrasts(contrasts(60), WIDTHS, plantings=0)


@pytest.mark.parametrize("criterion", SCORES)
def test_any_order_can_be_planted_without_changing_the_function(tiny, criterion):
    model = tiny(1).double()
    mlps = find_mlps(model)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(mlp.width) for mlp in mlps]
    weights = weigh([mlp.layout for mlp in mlps], model.get_parameter)
    other = rescale(copy.deepcopy(model), planting_factors(criterion, weights, orders))
    scores = score_mlps(find_mlps(other), [criterion])[criterion]
    for score, order in zip(scores, orders, strict=True):
        np.testing.assert_array_equal(np.argsort(score), np.argsort(order))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, other(ids).logits, rtol=1e-9, atol=1e-9)


def test_what_cannot_be_planted_is_refused(tiny):
    mlps = find_mlps(model := tiny(1))
    weights = weigh([mlp.layout for mlp in mlps], model.get_parameter)
    with pytest.raises(UsageError, match="vow_out"):
        planting_factors("vow_out", weights, [np.arange(mlp.width) for mlp in mlps])


def test_a_random_gauge_is_that_of_a_rescaled_model(tiny):
    mlps = find_mlps(model := tiny(2).double())
    name = "gauged:ppm:3"
    scores = score_mlps(mlps, [name, "ppm", "gauged:ppm:4", "pon_io", "gauged:pon_io:3"])
    factors = []
    for index, mlp in enumerate(mlps):
        rng = np.random.default_rng(np.random.SeedSequence(3, spawn_key=(index,)))
        factors.append(np.exp(rng.normal(0, np.log(2), mlp.width)))
    other = score_mlps(find_mlps(rescale(copy.deepcopy(model), factors)), ["ppm"])["ppm"]
    for ours, theirs in zip(scores[name], other, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (scores[name][0] != scores["gauged:ppm:4"][0]).any()


def test_models_that_know_nothing_have_the_same_shape_and_leave_the_model_alone(stories):
    before = {name: p.clone() for name, p in stories.model.named_parameters()}
    shuffled, fresh = row_shuffled(stories, 1), untrained(stories, 1)
    for mlp, other in zip(find_mlps(stories.model), find_mlps(shuffled), strict=True):
        for ours, theirs, axis in zip(mlp.weights, other.weights, (1, 1, 0), strict=True):
            assert ours is not None
            assert theirs is not None
            assert not torch.equal(ours, theirs)
            # The same neurons' weights, in another order.
            largest = [torch.sort(weight.amax(axis)).values for weight in (ours, theirs)]
            assert torch.equal(*largest)
    for model in (shuffled, fresh):
        shapes = {name: p.shape for name, p in model.named_parameters()}
        assert shapes == {name: p.shape for name, p in before.items()}
    assert all(torch.equal(p, before[name]) for name, p in stories.model.named_parameters())
    kept = "model.embed_tokens.weight"
    assert torch.equal(dict(shuffled.named_parameters())[kept], before[kept])
    assert not torch.equal(dict(fresh.named_parameters())[kept], before[kept])
    state = torch.random.get_rng_state()
    again = untrained(stories, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(dict(again.named_parameters())[kept], dict(fresh.named_parameters())[kept])


def test_stages_are_found_again_and_damaged_ones_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(0, np.int32)}

    def run(about="run"):
        stages = Stages(tmp_path, {"about": about})
        found = stages("first", make)
        np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(2, 3))
        assert found["b"].shape == (0,)
        return stages

    assert not worth_keeping(tmp_path)
    assert run().reused == []
    assert worth_keeping(tmp_path)
    assert run().reused == ["first"]
    assert len(made) == 1
    assert run("another").reused == [], "another run's stage is not taken"
    file = next(tmp_path.glob("*.stage.safetensors"))
    whole = bytearray(file.read_bytes())
    whole[-5] ^= 1
    file.write_bytes(whole)
    damaged = run("another")
    assert damaged.reused == []
    assert "first.stage.safetensors was damaged" in damaged.notes[0]
    file.write_bytes(bytes(whole)[:40])
    assert run("another").notes
    assert run("another").reused == ["first"]
    assert Stages(None, "run")("first", make)["a"].size == 6


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "full"), ResourceError, "the disk filled up while a stage was kept"),
        (SafetensorError("I/O error: (os error 28)"), ResourceError, "go on with --resume"),
        (PermissionError(errno.EACCES, "Permission denied"), RunError, "cannot be written .Perm"),
        (ValueError("something else"), ValueError, "something else"),
    ],
)
def test_a_stage_that_cannot_be_kept_leaves_nothing_behind(
    tmp_path, monkeypatch, error, kind, said
):
    import safetensors.numpy

    def fails(arrays: Any, path: Any, **_: Any) -> None:
        path.write_bytes(b"half a file")
        raise error

    Stages(tmp_path, "run")("first", lambda: {"a": np.zeros(3)})
    before = [p.name for p in tmp_path.iterdir()]
    monkeypatch.setattr(safetensors.numpy, "save_file", fails)
    with pytest.raises(kind, match=said):
        Stages(tmp_path, "run")("second", lambda: {"a": np.zeros(3)})
    assert [p.name for p in tmp_path.iterdir()] == before
