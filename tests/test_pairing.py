"""Two checkpoints side by side: what belongs to what, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make, save_tokenizer
from safetensors.torch import load_file, save_file

from glulens.errors import ModelError
from glulens.prune.budget import Budget
from glulens.prune.checkpoint import Checkpoint, open_checkpoint
from glulens.prune.differences import difference
from glulens.prune.models import ModelSource
from glulens.prune.pairing import Pairing, is_quantised_source, pair
from glulens.prune.selection import NeuronSet
from glulens.prune.stream import CUT, prune_checkpoint

FAMILIES = ["llama", "phi3", "mixtral", "deepseek_v2", "qwen2_moe", "gpt2", "opt"]


def saved(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> Path:
    make(family, seed, **changes).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """A copy with other tensors."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return target


@contextmanager
def opened(*folders: Path) -> Iterator[list[Checkpoint]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_checkpoint(folder)) for folder in folders]


def paired(base: Path, tuned: Path) -> Pairing:
    with opened(base, tuned) as sides:
        return pair(*sides)


def refused(base: Path, tuned: Path) -> list[str]:
    with pytest.raises(ModelError) as error:
        paired(base, tuned)
    assert error.value.exit_code == 3
    return str(error.value).splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_has_its_partner(tmp_path, family):
    """Those of neurons are in the layouts, the others in the list, none in both or neither."""
    base, tuned = saved(tmp_path / "base", family), saved(tmp_path / "tuned", family, 1)
    with opened(base, tuned) as (one, other):
        found = pair(one, other)
        of_neurons = {s.tensor for m in found.layouts for s in m.slots.values()}
        assert of_neurons.isdisjoint(dict(found.tensors))
        assert of_neurons | dict(found.tensors).keys() == one.entries.keys()
    assert all(name == same for name, same in found.tensors)
    assert found.only == ((), ())
    assert found.pruned_side == ""
    assert all(kept is None for kept in found.kept)
    assert found.vocabulary == (60, 60)


@pytest.mark.parametrize(
    ("family", "changes", "row"),
    [
        ("llama", {"num_hidden_layers": 3}, ["layers", "2", "3"]),
        ("llama", {"hidden_size": 40}, ["hidden size", "32", "40"]),
        ("llama", {"num_attention_heads": 2}, ["attention heads", "4", "2"]),
        ("llama", {"num_key_value_heads": 4}, ["key-value heads", "2", "4"]),
        (
            "llama",
            {"intermediate_size": 40},
            ["MLP width, layer 0 (2 MLPs differ)", "24", "40"],
        ),
        ("mixtral", {"num_local_experts": 2}, ["experts a layer", "4", "2"]),
        ("mistral", {}, ["family", "llama", "mistral"]),
        ("gpt2", {}, ["family", "llama", "gpt2"]),
    ],
)
def test_what_differs_is_in_a_table(tmp_path, family, changes, row):
    first = family if family == "mixtral" else "llama"
    base = saved(tmp_path / "base", first)
    tuned = saved(tmp_path / "tuned", family, **changes)
    lines = refused(base, tuned)
    assert str(base) in lines[0]
    assert "not of one architecture and the same widths" in lines[0]
    assert lines[1].split() == ["base", "tuned"]
    rows = [[cell for cell in line.split("  ") if cell] for line in lines[2:]]
    assert row in [[cell.strip() for cell in cells] for cells in rows]
    # The columns stand under each other.
    assert len({line.index(row[1], len(row[0])) for line in lines if row[0] in line}) == 1
    # The other way round the columns change places.
    turned = refused(tuned, base)
    assert [row[0], row[2], row[1]] in [
        [cell.strip() for cell in line.split("  ") if cell] for line in turned[2:]
    ]


def test_other_tensors_of_unlike_shapes_are_named(tmp_path):
    base = saved(tmp_path / "base")
    name = "model.layers.1.self_attn.q_proj.weight"
    tuned = rewritten(
        base, tmp_path / "tuned", lambda tensors: tensors | {name: torch.zeros(16, 32)}
    )
    lines = refused(base, tuned)
    assert [cell.strip() for cell in lines[2].split("  ") if cell] == [name, "32 x 32", "16 x 32"]


def test_vocabularies_may_differ(tmp_path):
    base, tuned = saved(tmp_path / "base"), saved(tmp_path / "tuned", vocab_size=64)
    assert paired(base, tuned).vocabulary == (60, 64)
    with opened(base, tuned) as sides:
        tensors = {tensor.name: tensor for tensor in difference(*sides).tensors}
    both = [load_file(side / "model.safetensors") for side in (base, tuned)]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        one, other = (side[name][:60].double() for side in both)
        assert tensors[name].n == 60 * 32
        assert tensors[name].squares == pytest.approx(float((one - other).square().sum()), rel=1e-6)


def test_a_tied_head_is_only_in_one(tmp_path):
    base = saved(tmp_path / "base", tie_word_embeddings=True)
    tuned = saved(tmp_path / "tuned")
    assert paired(base, tuned).only == ((), ("lm_head.weight",))
    assert paired(tuned, base).only == (("lm_head.weight",), ())


def test_what_a_wrapper_puts_before_names_does_not_matter(tmp_path):
    base = saved(tmp_path / "base")

    def wrapped(tensors: dict[str, Any]) -> dict[str, Any]:
        return {f"language_model.{n}": t for n, t in tensors.items()}

    tuned = rewritten(base, tmp_path / "tuned", wrapped)
    with opened(base, tuned) as (one, other):
        found = pair(one, other)
        assert all(dict(found.tensors)[n] == f"language_model.{n}" for n in dict(found.tensors))
        assert found.only == ((), ())
        both = difference(one, other)
    assert all(tensor.squares == 0 for tensor in both.tensors)
    assert len(both.tensors) == len(load_file(base / "model.safetensors"))


def test_masks_are_no_weights_and_packed_weights_are_refused(tmp_path):
    base = saved(tmp_path / "base", "gpt2")
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)}
    tuned = rewritten(base, tmp_path / "masked", lambda tensors: tensors | mask)
    assert paired(base, tuned).only == ((), ())
    name = "transformer.h.0.attn.c_attn.weight"
    packed = rewritten(
        base, tmp_path / "packed", lambda tensors: tensors | {name: tensors[name].to(torch.int8)}
    )
    assert name in refused(base, packed)[0]


# Pruned copies


@pytest.mark.parametrize("family", ["llama", "phi3", "deepseek_v2", "gpt2"])
def test_a_pruned_model_is_its_parent_at_the_places_it_kept(tmp_path, family):
    base = saved(tmp_path / "base", family)
    criterion = "l2" if family != "gpt2" else "vow_out"
    pruned = tmp_path / "pruned"
    done = prune_checkpoint(base, pruned, criterion=criterion, budget=Budget(fraction=0.3))
    kept = done.cut.complement().indices
    for sides, which in (((base, pruned), "tuned"), ((pruned, base), "base")):
        with opened(*sides) as both:
            found = difference(*both)
        assert found.pairing.pruned_side == which
        for mlp, rows in zip(found.mlps, kept, strict=True):
            assert mlp.rows.tolist() == rows.tolist()
            assert (mlp.squares == 0).all()
            assert (mlp.before.down.squares == mlp.after.down.squares).all()
            assert len(mlp.squares) == len(rows)
        assert all(tensor.squares == 0 for tensor in found.tensors)


def test_uneven_pruning_is_matched_by_true_widths(tmp_path):
    base = saved(tmp_path / "base")
    cut = NeuronSet((24, 24), (np.array([0, 5, 23]), np.arange(10)))
    done = prune_checkpoint(base, tmp_path / "pruned", cut=cut)
    assert done.stored == (21, 21)
    with opened(base, tmp_path / "pruned") as sides:
        found = difference(*sides)
    assert [len(mlp.rows) for mlp in found.mlps] == [21, 14]
    assert found.mlps[1].rows.tolist() == list(range(10, 24))
    assert all((mlp.squares == 0).all() for mlp in found.mlps)


def test_a_cut_off_by_one_would_be_seen(tmp_path):
    """The same record with other neurons in it: nothing is equal any more."""
    base = saved(tmp_path / "base")
    cut = NeuronSet((24, 24), (np.arange(3), np.arange(3)))
    prune_checkpoint(base, tmp_path / "pruned", cut=cut)
    NeuronSet((24, 24), (np.arange(1, 4), np.arange(3))).save(tmp_path / "pruned" / CUT)
    with opened(base, tmp_path / "pruned") as sides:
        found = difference(*sides)
    assert found.mlps[0].squares[0] > 0  # parent's 0 against what is its 3
    assert (found.mlps[0].squares[1:] == 0).all()


def test_several_prunings_in_a_row_do_not_compose(tmp_path):
    base = saved(tmp_path / "base")
    once, twice = tmp_path / "once", tmp_path / "twice"
    prune_checkpoint(base, once, budget=Budget(fraction=0.2))
    prune_checkpoint(once, twice, budget=Budget(fraction=0.2))
    assert paired(once, twice).pruned_side == "tuned"
    assert paired(twice, once).pruned_side == "base"
    for sides in ((base, twice), (twice, base)):
        said = refused(*sides)[0]
        assert "2 x 20" in said
        assert "2 x 24" in said
        assert "several prunings in a row" in said


def test_equal_widths_of_different_neurons_are_refused(tmp_path):
    base = saved(tmp_path / "base")
    low, high = tmp_path / "low", tmp_path / "high"
    prune_checkpoint(base, low, budget=Budget(fraction=0.2))
    prune_checkpoint(base, high, criterion="reversed:ppm", budget=Budget(fraction=0.2))
    assert "pruned of different neurons" in refused(low, high)[0]
    assert paired(low, low).pruned_side == ""


def test_a_cut_of_another_model_is_refused(tmp_path):
    base = saved(tmp_path / "base")
    tuned = saved(tmp_path / "tuned", intermediate_size=20)
    NeuronSet((24, 24), (np.arange(3), np.arange(3))).save(tuned / CUT)
    assert "it is not of this checkpoint" in refused(base, tuned)[0]
    (tuned / CUT).write_text("{}")
    assert "cannot be read as a set of neurons" in refused(base, tuned)[0]
    (tuned / CUT).unlink()
    assert "MLP width, layer 0 (2 MLPs differ)" in refused(base, tuned)[2]


def test_what_is_quantised(tmp_path):
    folder = saved(tmp_path / "base")
    assert not is_quantised_source(ModelSource("base", "folder", folder))
    assert is_quantised_source(ModelSource("smollm2-135m-instruct", "embedded", folder))


def test_the_table_is_cut_short(tmp_path):
    base = saved(tmp_path / "base", num_hidden_layers=8)

    def narrow(tensors: dict[str, Any]) -> dict[str, Any]:
        return {n: t[:, :8].clone() if "self_attn" in n else t for n, t in tensors.items()}

    lines = refused(base, rewritten(base, tmp_path / "tuned", narrow))
    assert len(lines) == 2 + 12 + 1
    assert lines[-1].strip() == "and 20 more"
