"""The engines see the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from glulens.errors import ModelError, UsageError
from glulens.probes.engine import make_engine, silencer
from glulens.probes.hooks import HooksEngine
from glulens.prune.masks import masked
from glulens.prune.selection import NeuronSet
from glulens.prune.surgery import resize

IDS = torch.tensor([[5, 17, 80, 3, 42, 9, 11], [7, 7, 1, 0, 99, 23, 2]])
KEEP = torch.tensor([2, 5, 9, 12])
POSITIONS = torch.arange(7).repeat(2)


def record(engine, ids=IDS, keep=None):
    seen = []
    with torch.inference_mode():
        logits = engine.forward(
            ids,
            keep=keep,
            visit=lambda mlp, a, places: seen.append((mlp, a.view(*ids.shape, -1))),
        )
    assert [layer for layer, _ in seen] == list(range(len(engine.widths)))
    return [a for _, a in seen], logits


def logits(engine, visit=None) -> torch.Tensor:
    found = engine.forward(IDS, keep=KEEP, visit=visit)
    assert found is not None
    return found


def engines(model):
    pytest.importorskip("transformer_lens")
    from glulens.probes.lens import LensEngine

    return HooksEngine(model), LensEngine(copy.deepcopy(model))


def test_engines_agree_on_a_random_model(tiny):
    hooks, lens = engines(tiny())
    torch.testing.assert_close(record(hooks)[0], record(lens)[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(hooks), logits(lens), atol=1e-4, rtol=0)
    assert logits(hooks).shape == (4, 100)


def test_engines_agree_on_smollm2_and_under_replacement(smollm):
    hooks, lens = engines(smollm.model)
    ids = torch.tensor([smollm.tokenizer("Goldfish can remember things for months.")["input_ids"]])
    cut = NeuronSet(hooks.widths, tuple(torch.arange(0, 1536, 7).numpy() for _ in hooks.widths))
    positions = torch.arange(ids.shape[1])
    for intervene in (None, silencer(cut), silencer(cut, spare_first=True)):
        visit = intervene and intervene(positions)
        with torch.inference_mode():
            keep = torch.arange(ids.shape[1])
            ours = hooks.forward(ids, keep=keep, visit=visit)
            theirs = lens.forward(ids, keep=keep, visit=visit)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    ours, theirs = record(hooks, ids)[0], record(lens, ids)[0]
    largest = max(a.abs().max() for a in ours)
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) < 1e-4 * largest
    for layer in (0, 15, 29):
        torch.testing.assert_close(ours[layer][:, 1:], theirs[layer][:, 1:], atol=1e-4, rtol=0)


def test_the_activation_is_what_the_definition_says(tiny):
    model = tiny()
    inputs = []
    handle = model.model.layers[1].mlp.gate_proj.register_forward_pre_hook(
        lambda module, args: inputs.append(args[0])
    )
    activations, _ = record(HooksEngine(model))
    handle.remove()
    mlp = model.model.layers[1].mlp
    expected = torch.nn.functional.silu(mlp.gate_proj(inputs[0])) * mlp.up_proj(inputs[0])
    torch.testing.assert_close(activations[1], expected)


def test_silencing_through_an_engine_is_masking_and_leaves_no_hook(tiny):
    model = tiny()
    engine = HooksEngine(model)
    cut = NeuronSet(engine.widths, tuple(torch.tensor([1, 5]).numpy() for _ in engine.widths))
    intact = logits(engine)
    with masked(model, cut):
        expected = logits(engine)
    torch.testing.assert_close(logits(engine, silencer(cut)(POSITIONS)), expected)
    assert torch.equal(logits(engine), intact)
    assert not torch.equal(intact, expected)


def test_a_pruned_model_of_uneven_width_is_watched(tiny):
    model = tiny()
    resize(model, NeuronSet((48,) * 3, tuple(torch.arange(n).numpy() for n in (0, 10, 30))))
    engine = HooksEngine(model)
    assert engine.widths == (48, 38, 18)
    assert [a.shape[-1] for a in record(engine)[0]] == [48, 38, 18]


def test_padding_on_the_right_changes_nothing(tiny):
    engine = HooksEngine(tiny())
    alone, _ = record(engine, IDS[:1, :4])
    padded, _ = record(engine, IDS[:1])
    torch.testing.assert_close([a[:, :4] for a in padded], alone, atol=1e-6, rtol=1e-5)


def test_an_unknown_engine_lists_those_there_are(smollm):
    with pytest.raises(UsageError, match="allowed are hooks, lens, nnsight"):
        make_engine(smollm, "hook")


def test_a_mixture_of_experts_is_refused_by_what_cannot_watch_it():
    pytest.importorskip("transformer_lens")
    from families import make

    from glulens.datasets.pairs import load_material
    from glulens.probes.contrasts import record_contrasts
    from glulens.probes.lens import LensEngine

    pairs = load_material(limit=2).pairs
    with pytest.raises(ModelError, match="can be scored, pruned, masked and recorded"):
        record_contrasts(HooksEngine(make("mixtral")), None, pairs)  # pyright: ignore
    with pytest.raises(ModelError, match="use --engine hooks"):
        LensEngine(make("mixtral"))
