"""What hostile inputs once did, each in the smallest form that did it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars
import pytest
from commands import says

from glulens.datasets import mmlu, neutral, truthfulqa
from glulens.datasets.sources import build, read_parquet
from glulens.errors import DataError, ModelError, UsageError
from glulens.interp.cli_weights import _count
from glulens.interp.sweep_options import parse_layers, parse_limits
from glulens.interp.sweep_points import numbers, orders
from glulens.prune.recording import Recording
from glulens.prune.selection import NeuronSet

MANY = "9" * 5000


@pytest.mark.parametrize(
    "read",
    [
        lambda: _count("9" * 400),
        lambda: parse_layers(MANY),
        lambda: parse_limits((MANY,)),
        lambda: parse_limits((f"mmlu={MANY}",)),
        lambda: orders(("ppm",), (f"random:{MANY}",)),
        lambda: orders(("ppm",), ("random:99999999999",)),
        lambda: numbers("0,1e-300,...,1e300", "--fractions"),
        lambda: numbers("0,1e-9,...,1", "--fractions"),
    ],
)
def test_a_number_too_large_to_mean_anything_is_refused(read):
    with pytest.raises(UsageError) as caught:
        read()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "about",
    [
        {"model": "m"},
        {"model": {"name": "\x1b[2Jm"}},
        {"verdict": []},
        {"model": {"name": "\ud800"}},
        {"started": float("nan")},
    ],
)
def test_runs_lists_whatever_a_manifest_says(about, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(json.dumps({"schema_version": 1, **about}))
    out, _ = says(capsys, "runs", tmp_path)
    assert str(tmp_path / "run") in out
    assert out.replace("\t", "").replace("\n", "").isprintable()
    out, _ = says(capsys, "runs", tmp_path, "--json")
    assert len(json.loads(out, parse_constant=pytest.fail)["runs"]) == 1


@pytest.mark.parametrize("widths", [[2**60], [2**27] * 3, [-1, 5]])
def test_a_set_of_no_possible_model_is_refused(widths, tmp_path):
    path = tmp_path / "set.json"
    held = {"kind": "glulens neuron set", "schema_version": 1, "widths": widths}
    path.write_text(json.dumps({**held, "indices": [[] for _ in widths]}))
    with pytest.raises(DataError, match="widths"):
        NeuronSet.load(path)


@pytest.mark.parametrize(
    "about", ["[]", '{"kind": "glulens recording", "widths": [1e999]}', "[" * 10_000]
)
def test_a_recording_that_says_odd_things_of_itself_is_refused(about, tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    names = ("mean", "mean_abs", "rms", "variance", "text_rms")
    path = tmp_path / "it.safetensors"
    save_file({name: np.ones(2) for name in names}, path, metadata={"about": about})
    with pytest.raises(DataError, match="cannot be read as a recording"):
        Recording.load(path)


@pytest.mark.parametrize(
    ("make", "row"),
    [
        (mmlu._from_hub, {"question": [None], "choices": [["a", "b"]], "answer": [0],
                          "subject": ["s"]}),
        (mmlu._from_hub, {"question": ["q"], "choices": [["a", None]], "answer": [0],
                          "subject": ["s"]}),
        (truthfulqa._from_hub, {"category": ["c"], "question": ["q"], "best_answer": ["b"],
                                "correct_answers": [["a", None]], "incorrect_answers": [["x"]]}),
    ],
)  # fmt: skip
def test_holes_in_a_parquet_table_are_told_with_their_row(make, row, tmp_path):
    path = tmp_path / "rows.parquet"
    polars.DataFrame(row).write_parquet(path)
    with pytest.raises(DataError, match=r"rows\.parquet:1: "):
        build("x", "x", {path: read_parquet(path)}, make)


def test_a_parquet_of_other_columns_is_no_neutral_text(tmp_path, monkeypatch):
    path = tmp_path / "wiki[1].parquet"
    polars.DataFrame({"words": ["a"]}).write_parquet(path)
    monkeypatch.setattr(neutral, "fetch", lambda _: path)
    with pytest.raises(DataError):
        neutral.load_neutral("hub")


def test_a_config_of_a_thousand_million_layers_takes_no_memory():
    from glulens.prune.layout import locate

    shapes = {
        f"model.layers.0.mlp.{name}_proj.weight": shape
        for name, shape in (("gate", (4, 2)), ("up", (4, 2)), ("down", (2, 4)))
    }
    config: Any = SimpleNamespace(model_type="llama", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="layer 1 has no MLP"):
        locate(shapes, config)


def gguf_of(*, tensors: int = 0, values: bytes = b"", count: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, count) + values


def text_of(said: bytes) -> bytes:
    return struct.pack("<Q", len(said)) + said


HOSTILE_GGUF = {
    "tensors": gguf_of(tensors=2**60),
    "values": gguf_of(count=2**60),
    "array": gguf_of(count=1, values=text_of(b"a") + struct.pack("<IIQ", 9, 4, 2**60)),
    "array of nothing": gguf_of(count=1, values=text_of(b"a") + struct.pack("<IIQ", 9, 99, 2**60)),
    "string": gguf_of(count=1, values=text_of(b"a") + struct.pack("<IQ", 8, 2**60)),
    "arrays in arrays": gguf_of(
        count=1, values=text_of(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    ),
    "layers": gguf_of(
        count=1, values=text_of(b"llama.block_count") + struct.pack("<II", 4, 2**31)
    ),
    "version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    "cut": b"GGUF\x03\0",
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_GGUF)
def test_a_gguf_that_announces_more_than_it_holds_is_refused_before_it_is_read(what, tmp_path):
    from glulens.prune.gguf_header import check_gguf

    path = tmp_path / "it.gguf"
    path.write_bytes(HOSTILE_GGUF[what])
    with pytest.raises(ModelError, match="GGUF") as caught:
        check_gguf(path)
    assert "\n" not in str(caught.value)


def test_nested_json_is_refused_where_a_checkpoint_has_it(tmp_path):
    from glulens.prune.checkpoint import open_checkpoint

    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"config\.json"), open_checkpoint(tmp_path):
        pass
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match=r"index\.json"), open_checkpoint(tmp_path):
        pass


@pytest.mark.parametrize("name", ["[" * 300, "a\0b", "\ud800", "../x"])
def test_an_index_may_name_what_no_file_system_takes(name, tmp_path):
    from glulens.prune.checkpoint import open_checkpoint

    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": f"{name}.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json names") as caught, open_checkpoint(tmp_path):
        pass
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("where", ["num_hidden_layers", "text_config"])
def test_a_config_of_too_many_layers_is_refused_before_anything_is_built(where, tmp_path):
    from glulens.prune.models import open_model

    many: Any = 10**9 if where == "num_hidden_layers" else {"num_hidden_layers": 10**9}
    Path(tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", where: many}))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(ModelError, match="1000000000 layers"):
        open_model(tmp_path)


def test_a_sweep_whose_tables_have_other_columns_is_refused(tmp_path):
    from glulens.interp.sweep_files import read_sweep

    run = tmp_path / "run"
    (run / "tables").mkdir(parents=True)
    (run / "manifest.json").write_text(json.dumps({"schema_version": 1, "command": "sweep"}))
    odd = polars.DataFrame({"odd": [1]})
    for name in ("items", "answers"):
        odd.write_parquet(run / f"{name}.parquet")
    for name in ("points", "scores"):
        odd.write_csv(run / "tables" / f"{name}.csv")
    with pytest.raises(DataError, match="its tables cannot be read"):
        read_sweep(run)


def test_a_result_that_came_to_stand_there_meanwhile_is_not_replaced(tmp_path):
    from glulens.errors import RunError
    from glulens.rundir import writing

    def late() -> None:
        with writing(tmp_path / "run") as scratch:
            (scratch / "mine").write_text("mine")
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "theirs").write_text("theirs")

    with pytest.raises(RunError, match="another process put something there meanwhile"):
        late()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_old_result_is_replaced_in_one_step(tmp_path, monkeypatch):
    """So that a kill at any moment leaves one of the two there."""
    import sys

    from glulens.atomic import appearing

    if sys.platform not in ("linux", "darwin"):
        pytest.skip("no system call that swaps names")
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("old")

    def never(*_: object) -> None:
        raise AssertionError("a step of several")

    monkeypatch.setattr(Path, "rename", never)
    with appearing(place, replace=True) as scratch:
        (scratch / "new").write_text("new")
    assert [path.name for path in place.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("said", ["File too large (os error 27)", "No space (os error 28)"])
def test_what_a_library_says_of_the_system_is_a_line(said, tmp_path):
    from glulens.errors import GlulensError
    from glulens.rundir import writing

    class TheirError(Exception):
        pass

    with pytest.raises(GlulensError) as caught, writing(tmp_path / "run"):
        raise TheirError(f"Error while serializing: I/O error: {said}")
    assert caught.value.exit_code == (4 if "28" in said else 3)


@pytest.mark.parametrize(("number", "code"), [(28, 4), (13, 3), (30, 3)])
def test_what_the_system_refuses_anywhere_is_a_line(number, code, tmp_path, capsys, monkeypatch):
    def refuses(*_: object) -> None:
        raise OSError(number, "words", "somewhere")

    monkeypatch.setattr("glulens.rundir.find_runs", refuses)
    _, err = says(capsys, "runs", tmp_path, code=code)
    assert err.startswith("glulens: ")
    assert "somewhere" in err
    assert "Traceback" not in err
