"""Pruning a checkpoint on disk: what is written, what is refused, and that nothing is half done."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars
import pytest
import torch
from commands import glulens_says
from families import IDS, make, save_tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import glulens
from glulens.errors import ModelError, ResourceError, RunError, UsageError
from glulens.prune import stream
from glulens.prune.budget import Budget
from glulens.prune.checkpoint import INDEX, open_checkpoint
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import NeuronSet, lowest
from glulens.prune.stream import prune_checkpoint

TENTH = Budget(fraction=0.1)


@pytest.fixture
def saved(tmp_path) -> Path:
    """A small sharded Llama with all that comes with a checkpoint."""
    folder = tmp_path / "model"
    make("llama").save_pretrained(folder, max_shard_size="12KB")
    save_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (folder / "LICENSE").write_text("Do as you like.\n")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "original").mkdir()
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written


def test_a_checkpoint_comes_out_with_all_that_belongs_to_it(saved, tmp_path):
    out = tmp_path / "out"
    done = prune_checkpoint(saved, out, budget=Budget(fraction=0.25), argv=["glulens", "prune"])
    assert done.path == out
    assert done.kept == done.stored == (18, 18)
    names = {p.name for p in saved.iterdir()}
    assert {p.name for p in out.iterdir()} == names - {
        "modeling_evil.py", "pytorch_model.bin", "original",
    } | {"glulens_cut.json"}  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config == json.loads((saved / "config.json").read_text()) | {"intermediate_size": 18}
    assert NeuronSet.load(out / "glulens_cut.json") == done.cut
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# A model\n")
    for said in ("## Pruned with glulens", "2 x 24 -> 2 x 18", "ppm, fraction 0.25", "25.0% cut"):
        assert said in card
    assert [p.name for p in shards(out)] == [p.name for p in shards(saved)]
    assert oct(out.stat().st_mode)[-3:] == "755"
    total = json.loads((out / INDEX).read_text())["metadata"]["total_size"]
    assert total == done.bytes == sum(t.nbytes for p in shards(out) for t in load_file(p).values())
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(out).parameters())
    before = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(saved).parameters())
    assert done.parameters == (before, parameters)


def test_what_is_not_cut_is_the_same_bytes_and_the_rest_are_the_chosen_rows(saved, tmp_path):
    done = prune_checkpoint(saved, tmp_path / "out", budget=TENTH)
    kept = done.cut.complement().indices
    for before, after in zip(shards(saved), shards(tmp_path / "out"), strict=True):
        old, new = load_file(before), load_file(after)
        assert list(old) == list(new)
        for name, tensor in old.items():
            if ".mlp." in name:
                index = torch.from_numpy(kept[int(name.split(".")[2])].copy())
                tensor = tensor.index_select(int("down" in name), index)
            assert torch.equal(tensor, new[name]), name


def test_streamed_scores_are_the_live_ones(saved):
    live = score_mlps(find_mlps(AutoModelForCausalLM.from_pretrained(saved)), ["ppm", "pon_io"])
    with open_checkpoint(saved) as checkpoint:
        streamed = checkpoint.score(["ppm", "pon_io"])
    for name, scores in live.items():
        for one, other in zip(scores, streamed[name], strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "peer"), [("ppm", "maw"), ("vow", "vow"), ("pon", "pon"), ("l2", "l2")]
)
def test_kept_neurons_are_optipfairs_on_smollm2(name, peer, smollm):
    """From 10 to 60 %, apart from ties: there optipfair keeps what torch.topk returns first."""
    from optipfair.pruning import mlp_glu

    function = getattr(mlp_glu, f"compute_neuron_pair_importance_{peer}")
    mlps = find_mlps(smollm.model)
    ours = score_mlps(mlps, [name])[name]
    for percent in (10, 20, 30, 40, 50, 60):
        kept = lowest(ours, percent / 100).complement()
        differing = tied = 0
        for mlp, mine in zip(mlps, kept.indices, strict=True):
            gate, up, _ = mlp.weights
            assert gate is not None
            theirs = function(gate, up)
            count = 1536 - int(percent / 100 * 1536)
            chosen = torch.topk(theirs, count).indices.sort().values.numpy()
            assert len(chosen) == len(mine)
            odd = np.setxor1d(chosen, mine)
            # A neuron that only one of us keeps scores like the last one kept, up to the last
            # place: float32 sums in another order differ there.
            threshold = float(theirs[chosen].min())
            np.testing.assert_allclose(theirs[odd], threshold, rtol=1e-6)
            differing += len(odd)
            tied += int((theirs == threshold).sum()) - 1
        print(f"{name} {percent} %: {differing} differ, {tied} tied at the cut")  # noqa: T201
        assert differing <= 2 * tied


def test_protected_neurons_sets_and_the_command_line_meet(saved, tmp_path, capsys):
    safe = NeuronSet((24, 24), (np.arange(12), np.arange(12)))
    safe.save(tmp_path / "safe.json")
    words = ["prune", saved, tmp_path / "a", "--fraction", "0.25", "--protect"]
    code, out, _ = glulens_says(capsys, *words, tmp_path / "safe.json", "--json")
    assert code == 0
    assert json.loads(out)["kept"] == [18, 18]
    cut = NeuronSet.load(tmp_path / "a" / "glulens_cut.json")
    assert not len(cut & safe)
    code, _, _ = glulens_says(
        capsys, "prune", saved, tmp_path / "b", "--cut-set", tmp_path / "a" / "glulens_cut.json"
    )
    assert code == 0
    cut.complement().save(tmp_path / "keep.json")
    code, _, _ = glulens_says(
        capsys, "prune", saved, tmp_path / "c", "--keep-set", tmp_path / "keep.json"
    )
    assert code == 0
    for shard in shards(tmp_path / "a"):
        for other in ("b", "c"):
            assert shard.read_bytes() == (tmp_path / other / shard.name).read_bytes()


def test_layer_fractions_divisors_and_global_ranks_on_the_command_line(saved, tmp_path, capsys):
    def kept(*words: str) -> list[int]:
        code, out, err = glulens_says(
            capsys, "prune", saved, tmp_path / "no", "--dry-run", "--json", *words
        )
        assert code == 0, err
        assert not (tmp_path / "no").exists()
        return json.loads(out)["kept"]

    assert kept("--fraction", "0.5", "--layer-fraction", "0=0") == [24, 12]
    assert kept("--fraction", "0.5", "--layer-fraction", "0-1=0.25") == [18, 18]
    assert kept("--fraction", "0.4", "--divisor", "8") == [16, 16]
    assert kept("--width", "7") == [7, 7]
    assert kept("--expansion", "0.5") == [16, 16]
    assert sum(kept("--fraction", "0.5", "--global")) == 24
    code, out, err = glulens_says(
        capsys, "prune", saved, tmp_path / "no", "--dry-run", "--json", "--parameters", "11.5k"
    )
    assert code == 0, err
    assert 11_500 - 2 * 96 < json.loads(out)["parameters"][1] <= 11_500


def test_overwriting_must_be_said_and_only_checkpoints_are_overwritten(saved, tmp_path):
    out = tmp_path / "out"
    prune_checkpoint(saved, out, budget=TENTH)
    with pytest.raises(RunError, match="out exists; choose another place, or give --overwrite"):
        prune_checkpoint(saved, out, budget=TENTH)
    prune_checkpoint(saved, out, budget=Budget(fraction=0.5), overwrite=True)
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 12
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("years of work")
    with pytest.raises(RunError, match="is not a checkpoint .*will not be overwritten"):
        prune_checkpoint(saved, other, budget=TENTH, overwrite=True)
    assert left_in(other) == ["chapter1.tex"]
    assert left_in(tmp_path) == ["model", "out", "thesis"]


@pytest.mark.parametrize("where", ["model", "model/inside", "."])
def test_a_model_is_never_pruned_in_place(saved, tmp_path, where):
    before = {path.name: path.stat().st_mtime_ns for path in saved.iterdir()}
    with pytest.raises((UsageError, RunError)):
        prune_checkpoint(saved, tmp_path / where, budget=TENTH, overwrite=True)
    assert {path.name: path.stat().st_mtime_ns for path in saved.iterdir()} == before


@pytest.mark.slow  # writes and reads half a gigabyte
def test_a_gguf_file_can_be_pruned_too(smollm, tmp_path):
    from test_models import fetched_gguf

    done = prune_checkpoint(fetched_gguf(tmp_path), tmp_path / "out", budget=Budget(fraction=0.5))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = smollm.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    from glulens.prune.masks import masked

    with torch.no_grad(), masked(smollm.model, done.cut):
        torch.testing.assert_close(model(ids).logits, smollm.model(ids).logits, atol=1e-3, rtol=0)


def test_only_what_is_surely_a_checkpoint_is_overwritten(saved, tmp_path):
    """A config.json alone makes no checkpoint, and folders in one may be anyone's."""
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "config.json").write_text('{"name": "my web app"}')
    with_folder = tmp_path / "with_folder"
    shutil.copytree(saved, with_folder)
    file = tmp_path / "file"
    file.write_text("x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for target in (project, with_folder, file, link, file / "inside"):
        for dry in (True, False):
            with pytest.raises(RunError):
                prune_checkpoint(saved, target, budget=TENTH, overwrite=True, dry_run=dry)
    assert (project / "src").is_dir()
    assert (with_folder / "original").is_dir()
    shutil.rmtree(with_folder / "original")
    assert prune_checkpoint(saved, with_folder, budget=TENTH, overwrite=True).path == with_folder


def test_a_gguf_file_is_not_overwritten_by_its_own_pruning(saved, tmp_path, monkeypatch):
    from glulens.prune import checkpoint

    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")
    tokenizer = SimpleNamespace(save_pretrained=save_tokenizer)
    monkeypatch.setattr(checkpoint, "load_gguf", lambda path: (make("llama"), tokenizer))
    with pytest.raises((UsageError, RunError)):
        prune_checkpoint(folder / "model.gguf", folder, budget=TENTH, overwrite=True)
    prune_checkpoint(folder / "model.gguf", folder / "out", budget=TENTH)
    (folder / "glulens_cut.json").write_text("{}")  # would pass for a checkpoint
    with pytest.raises(UsageError, match="is or holds the model itself"):
        prune_checkpoint(folder / "model.gguf", folder, budget=TENTH, overwrite=True)
    assert (folder / "model.gguf").read_bytes() == b"GGUF"


def test_the_single_file_comes_first_as_in_transformers(saved, tmp_path):
    other = make("llama", seed=5)
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", saved)
    done = prune_checkpoint(saved, tmp_path / "out", budget=TENTH)
    assert not (tmp_path / "out" / INDEX).exists()
    from glulens.prune.masks import masked

    stock = AutoModelForCausalLM.from_pretrained(saved)
    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad(), masked(stock, done.cut):
        torch.testing.assert_close(pruned(IDS).logits, stock(IDS).logits, atol=1e-5, rtol=1e-5)


def test_what_lies_about_is_sorted(saved, tmp_path):
    (saved / "README.md").write_bytes("# Modèle".encode("latin-1"))
    (saved / "adapter_config.json").write_text("{}")
    (saved / "weights.pickle").write_bytes(b"x")
    (saved / "additional_chat_templates").mkdir()
    (saved / "additional_chat_templates" / "tool_use.jinja").write_text("{{ x }}")
    prune_checkpoint(saved, tmp_path / "out", budget=TENTH)
    names = left_in(tmp_path / "out")
    assert not {"adapter_config.json", "weights.pickle"} & set(names)
    assert left_in(tmp_path / "out" / "additional_chat_templates") == ["tool_use.jinja"]
    assert (tmp_path / "out" / "README.md").read_bytes().startswith("# Modèle".encode("latin-1"))


def test_a_home_folder_is_expanded(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(saved)
    assert prune_checkpoint("~/model", "~/out", budget=TENTH).path == tmp_path / "out"
    assert (tmp_path / "out" / "config.json").is_file()
    assert not (saved / "~").exists()


def test_old_buffers_are_no_parameters(tmp_path):
    make("gpt2").save_pretrained(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(load_file(file) | {"transformer.h.0.attn.bias": torch.ones(64, 64)}, file)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.parameters == sum(p.numel() for p in make("gpt2").parameters())


# What a kill or a full disk leaves


@pytest.fixture(scope="module")
def heavy(tmp_path_factory) -> Path:
    """Large enough (100 MB) that writing takes a while."""
    folder = tmp_path_factory.mktemp("heavy") / "model"
    make("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=8).save_pretrained(
        folder, max_shard_size="30MB"
    )
    return folder


def test_killed_at_twenty_random_moments_there_is_a_whole_checkpoint_or_none(heavy, tmp_path):
    whole = tmp_path / "whole"
    prune_checkpoint(heavy, whole, budget=Budget(fraction=0.3), argv=["glulens", "prune"])
    AutoModelForCausalLM.from_pretrained(whole)
    work = tmp_path / "work"
    work.mkdir()
    script = Path(__file__).with_name("kill_while_writing.py")
    done = subprocess.run(
        [sys.executable, script, heavy, whole, work, "0"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    states = done.stdout.split("\n")[:-1]
    assert len(states) == 20
    assert set(states) <= {"absent", "whole"}
    assert "absent" in states, "no kill came before the end: the test shows nothing"


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_disk_that_fills_up_leaves_nothing(saved, tmp_path, monkeypatch, capsys, after):
    calls = 0
    real = stream.write_shard

    def full(*args):
        nonlocal calls
        calls += 1
        if calls > after:
            args[0].write_bytes(b"half a sh")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    monkeypatch.setattr(stream, "write_shard", full)
    code, out, err = glulens_says(capsys, "prune", saved, tmp_path / "out", "--fraction", "0.1")
    assert (code, out) == (4, "")
    assert "the disk filled up while" in err
    assert left_in(tmp_path) == ["model"]


def test_too_little_room_is_seen_before_anything_is_written(saved, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match="0 MB are free at .*, the pruned weights take"):
        prune_checkpoint(saved, tmp_path / "out", budget=TENTH)
    assert left_in(tmp_path) == ["model"]


def test_an_old_checkpoint_survives_a_failed_overwrite(saved, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prune_checkpoint(saved, out, budget=TENTH)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def fails(*args):
        raise OSError(errno.EIO, "bad block")

    monkeypatch.setattr(stream, "_write_config", fails)
    with pytest.raises(RunError, match="cannot be written"):
        prune_checkpoint(saved, out, budget=Budget(fraction=0.5), overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert left_in(tmp_path) == ["model", "out"]


# Bad input


def truncated(folder: Path) -> str:
    shard = shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    return f"{shard.name} is truncated or damaged"


def garbled(folder: Path) -> str:
    shard = shards(folder)[0]
    data = bytearray(shard.read_bytes())
    data[8:40] = b"\xff" * 32
    shard.write_bytes(data)
    return f"{shard.name} is truncated or damaged"


def empty(folder: Path) -> str:
    shards(folder)[0].write_bytes(b"")
    return "is truncated or damaged"


def missing_shard(folder: Path) -> str:
    shard = shards(folder)[2]
    shard.unlink()
    return f"{INDEX} names {shard.name}, which is missing"


def index_outside(folder: Path) -> str:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["x"] = "../../etc/passwd.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    return "which is no .safetensors file beside it"


def bad_index(folder: Path) -> str:
    (folder / INDEX).write_text("{")
    return f"{INDEX} cannot be read"


def no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "has no config.json; give a folder saved by Transformers"


def bad_config(folder: Path) -> str:
    (folder / "config.json").write_text("[]")
    return "config.json cannot be read"


def pickled(folder: Path) -> str:
    for shard in shards(folder):
        shard.unlink()
    (folder / INDEX).unlink()
    return "holds pickled weights (pytorch_model.bin), which can run code when opened"


def quantised(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return "is quantised (gptq); give the checkpoint in bfloat16"


def with_tensor(folder: Path, part: str, change) -> str:
    for shard in shards(folder):
        tensors = load_file(shard)
        for name in tensors:
            if part in name:
                tensors[name] = change(tensors[name])
                save_file(tensors, shard, metadata={"format": "pt"})
                return name
    raise AssertionError(part)


def not_a_number(folder: Path) -> str:
    def change(tensor):
        tensor[5, 7] = float("nan")
        return tensor

    name = with_tensor(folder, "layers.1.mlp.up_proj", change)
    return f"layer 1: 1 neurons have NaN or infinite weights in {name} (the first is 5)"


def infinite(folder: Path) -> str:
    def change(tensor):
        tensor[7, 3] = -float("inf")
        return tensor

    name = with_tensor(folder, "layers.0.mlp.down_proj", change)
    return f"layer 0: 1 neurons have NaN or infinite weights in {name} (the first is 3)"


def integers(folder: Path) -> str:
    name = with_tensor(folder, "layers.0.mlp.gate_proj", lambda t: t.to(torch.int8))
    return f"{name} is stored as I8: quantised weights cannot be scored or cut"


def disagreeing(folder: Path) -> str:
    with_tensor(folder, "layers.0.mlp.gate_proj", lambda t: t[:-1].contiguous())
    return "disagree on the number of neurons"


def a_matrix_gone(folder: Path) -> str:
    for shard in shards(folder):
        tensors = load_file(shard)
        kept = {n: t for n, t in tensors.items() if "layers.1.mlp.gate_proj" not in n}
        save_file(kept, shard, metadata={"format": "pt"})
    return "layer 1: no gate matrix; supported are llama, mistral"


def bad_record(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["glulens"] = {"widths": [24, "many"]}
    (folder / "config.json").write_text(json.dumps(config))
    return "take the entry 'glulens' out of config.json"


def renamed(folder: Path) -> str:
    for shard in shards(folder)[1:]:
        shard.unlink()
    (folder / INDEX).unlink()
    shards(folder)[0].rename(folder / "weights.safetensors")
    return "has weights.safetensors but neither model.safetensors nor"


def a_layer_gone(folder: Path) -> str:
    for shard in shards(folder):
        tensors = load_file(shard)
        kept = {n: t for n, t in tensors.items() if "layers.1." not in n}
        save_file(kept, shard, metadata={"format": "pt"})
    return "layer 1 has no MLP in the weights (1 of 2 layers have); the checkpoint is incomplete"


DAMAGE = [
    renamed, a_layer_gone,
    truncated, garbled, empty, missing_shard, index_outside, bad_index, no_config, bad_config,
    pickled, quantised, not_a_number, infinite, integers, disagreeing, a_matrix_gone, bad_record,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
@pytest.mark.parametrize("command", ["prune", "score"])
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_written(
    damage, command, saved, tmp_path, capsys
):
    said = damage(saved)
    out = tmp_path / "out"
    words = [saved, out, "--fraction", "0.1"] if command == "prune" else [saved, "-o", out]
    code, stdout, err = glulens_says(capsys, command, *words)
    assert code == 3, err
    assert said in err
    assert stdout == ""
    assert err.startswith("glulens: ") or "\nglulens: " in err  # progress may come before
    assert err.splitlines()[-1].startswith("glulens: ")
    assert left_in(tmp_path) == ["model"]


@pytest.mark.parametrize("damage", [not_a_number, infinite], ids=lambda d: d.__name__)
def test_nonfinite_weights_go_first_when_that_is_allowed(damage, saved, tmp_path, capsys):
    damage(saved)
    out = tmp_path / "out"
    code, _, err = glulens_says(
        capsys, "prune", saved, out, "--fraction", "0.1", "--allow-nonfinite"
    )
    assert code == 0, err
    assert all(torch.isfinite(t).all() for p in shards(out) for t in load_file(p).values())
    code, stdout, _ = glulens_says(
        capsys, "score", saved, "-o", tmp_path / "run", "--allow-nonfinite", "--json"
    )
    assert code == 0
    assert "Infinity" not in stdout
    assert json.loads(stdout)["criteria"][0]["minimum"] is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--fraction", "0"], 2, "fraction 0.0 is outside 0 < fraction < 1, e.g. 0.1 for a tenth"),
        (["--fraction", "1"], 2, "fraction 1.0 is outside"),
        (["--fraction", "1.5"], 2, "fraction 1.5 is outside"),
        (["--fraction", "nan"], 2, "fraction nan is outside"),
        (["--fraction", "0.001"], 2, "no neuron would go; ask for a larger cut"),
        (["--expansion", "4"], 2, "asks for 128 neurons where the layer has 24; give at most 0.75"),
        (["--expansion", "-1"], 2, "a number above 0"),
        (["--width", "25"], 2, "width 25: layer 0 has 24 neurons; give at most that"),
        (["--width", "0"], 2, "width 0: at least 1 is needed"),
        (["--parameters", "many"], 2, "write a number, as in 120000000, 120M or 1.2B"),
        (["--parameters", "1B"], 2, "give fewer"),
        (["--parameters", "5"], 2, "give at least that"),
        ([], 2, "give exactly one of fraction, expansion, width, parameters (given: none)"),
        (["--fraction", "0.1", "--width", "3"], 2, "give exactly one of"),
        (["--fraction", "0.1", "--criterion", "pmm"], 2, "criterion 'pmm' (did you mean 'ppm'?)"),
        (["--fraction", "0.1", "--criterion", "wanda"], 2, "give a recording (--recording FILE"),
        (["--fraction", "0.1", "--recording", "no"], 3, "no cannot be read as a recording"),
        (["--fraction", "0.1", "--layer-fraction", "0:0"], 2, "as in 0=0"),
        (["--fraction", "0.1", "--layer-fraction", "9=0"], 2, "the model's layers are 0..1"),
        (["--fraction", "0.1", "--divisor", "0"], 2, "divisor 0: at least 1 is needed"),
        (["--fraction", "0.1", "--global", "--layer-fraction", "0=0"], 2, "leave layers out"),
        (["--cut-set", "no.json"], 3, "no.json cannot be read as a set of neurons"),
        (["--cut-set", "no.json", "--fraction", "0.1"], 2, "give one, and no budget"),
        (["--in-place"], 2, "No such option"),
        (["--fraction", "0.1", "--layer-fraction", "0-99999999999=0.1"], 2, "below 10000"),
        (["--fraction", "0.1", "--criterion", "reversed:" * 3000 + "ppm"], 2, "200 characters"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_the_documented_code(words, code, said, saved, tmp_path, capsys):
    found, stdout, err = glulens_says(capsys, "prune", saved, tmp_path / "out", *words)
    assert (found, stdout) == (code, ""), err
    assert said in err.splitlines()[-1]
    assert left_in(tmp_path) == ["model"]


def test_a_set_of_another_model_is_refused(saved, tmp_path):
    for cut, said in (
        (NeuronSet((24,), (np.arange(3),)), "the set is of a model with widths 1 x 24"),
        (NeuronSet((24, 24), (np.arange(24), np.arange(2))), "layer 0: all neurons would go"),
    ):
        with pytest.raises(UsageError, match=said):
            prune_checkpoint(saved, tmp_path / "out", cut=cut)
    none = NeuronSet((24, 24), (np.array([], int),) * 2)
    with pytest.raises(UsageError, match="the set to cut is empty"):
        prune_checkpoint(saved, tmp_path / "out", cut=none)
    with pytest.raises(UsageError, match="either a budget or the set"):
        prune_checkpoint(saved, tmp_path / "out")
    with pytest.raises(ModelError, match="no such file or folder"):
        prune_checkpoint("./nowhere", tmp_path / "out", budget=TENTH)


# Scores as a run


def test_score_writes_a_run_that_can_be_read(saved, tmp_path, capsys):
    run = tmp_path / "run"
    code, out, err = glulens_says(
        capsys, "score", saved, "-o", run, "--criteria", "ppm,balanced(vow),random:1"
    )
    assert code == 0, err
    assert "balanced(vow)" in out
    table = glulens.open_run(run).neurons()
    assert table.columns == ["layer", "neuron", "ppm", "balanced_vow", "random_1"]
    assert table.height == 48
    opened = AutoModelForCausalLM.from_pretrained(saved)
    live = score_mlps(find_mlps(opened), ["balanced(vow)"])["balanced(vow)"]
    np.testing.assert_array_equal(table["balanced_vow"], np.concatenate(live))
    manifest = glulens.open_run(run).manifest
    assert manifest["command"] == "score"
    assert manifest["model"]["neurons"] == 48
    assert "Weight scores of" in (run / "report.md").read_text()
    assert glulens_says(capsys, "score", saved, "-o", run)[0] == 3  # it exists


def test_experts_are_told_apart_in_the_table(tmp_path):
    make("deepseek_v3").save_pretrained(tmp_path / "model")
    table = glulens.score(tmp_path / "model", ["ppm"])
    keys = table.select("layer", "part", "expert", "neuron")
    assert keys.n_unique() == table.height
    found = table.group_by("layer", "part", "expert").len().sort("layer", "part", "expert")
    assert found.filter(polars.col("part") == "expert")["len"].to_list() == [20] * 4
    assert found.filter(polars.col("part") == "shared")["len"].to_list() == [40]
    assert found.filter(polars.col("part") == "dense")["len"].to_list() == [24]
    assert IDS.shape == (1, 12)


def test_shards_need_not_be_aligned(saved, tmp_path):
    """A file may begin its data anywhere; reading must not count on it."""
    for shard in shards(saved):
        data = shard.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].rstrip(b" ")
        header += b" " * ((3 - len(header)) % 8)  # to an odd start
        shard.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    done = prune_checkpoint(saved, tmp_path / "out", budget=TENTH)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert tuple(mlp.width for mlp in find_mlps(again)) == done.kept
