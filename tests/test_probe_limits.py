"""`glulens probe` and `glulens examples` where data, places, memory or run directories are odd."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars
import pytest
from commands import says
from families import make, save_tokenizer

from glulens.errors import DataError, ResourceError, RunError, UsageError
from glulens.interp.probe import ProbeOptions, _room, probe, resumable
from glulens.interp.probe_files import contrast_rows
from glulens.interp.unfinished import UNFINISHED, find_unfinished
from glulens.probes.jobs import Job
from glulens.probes.tokens import Encoded
from glulens.rundir import open_run


@pytest.fixture(scope="module")
def letters(tmp_path_factory) -> Path:
    """A random model whose words are letters."""
    folder = tmp_path_factory.mktemp("letters") / "model"
    make("llama", vocab_size=60).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def two(tmp_path, monkeypatch) -> Path:
    """A CSV of two items, in a folder that is also where commands run."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "two.csv"
    file.write_text("text,label,item\na b c,1,x\nd e f,0,x\ng h i j,1,y\nk l m,0,y\n")
    return file


def test_pairs_that_differ_by_rounding_alone_are_dropped(letters, tmp_path):
    rows = ["prompt,text,label,item", "a b c d, e,1,x", "a b c d, f g,0,x"]
    (tmp_path / "same.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "some.csv").write_text("\n".join([*rows, "a b, e,1,y", "a c, e,0,y"]) + "\n")
    run = probe(letters, tmp_path / "run", tokens="prompt",
                on=f"{tmp_path / 'same.csv'},{tmp_path / 'some.csv'}")  # fmt: skip
    assert run.manifest["contrasts"]["some"]["pairs"] == 1
    assert "same" not in run.manifest["contrasts"]
    assert "dz_same" not in run.neurons().columns
    assert run.manifest["warnings"] == [
        "same: its pairs' selected tokens are the same; no contrast",
        "some: 1 of 2 pairs are dropped, their selected tokens are the same",
    ]
    run = probe(letters, tmp_path / "answers", on=str(tmp_path / "some.csv"))
    assert run.manifest["contrasts"]["some"]["pairs"] == 2


def test_a_contrast_of_which_every_pair_is_refused_is_told(letters, tmp_path):
    rows = [f"a b c,1,{k}\n,0,{k}\n" for k in range(6)]
    (tmp_path / "half.csv").write_text("text,label,item\n" + "".join(rows))
    run = probe(letters, tmp_path / "run", on=str(tmp_path / "half.csv"))
    assert "half: no pair is left of 6, texts are refused" in run.manifest["warnings"]
    with pytest.raises(DataError, match="1 of its conditions have texts, two are needed"):
        probe(letters, tmp_path / "r", on=str(tmp_path / "half.csv"), decode=True)


def test_a_contrast_without_a_number_has_no_neuron(letters, two, capsys):
    two.write_text("text,label,item\na b c,[b],x\nd e f,1,x\n")
    out, _ = says(capsys, "probe", str(letters), "--on", "two.csv", "-o", "run")
    assert "two_[b]" in out
    assert "None" not in out
    assert "L0.N0" not in out
    run = open_run("run")
    (row,) = contrast_rows(run.neurons(), run.manifest)
    for name in ("median |d_z|", "share |d_z| > 0.5", "largest |d_z|", "its neuron"):
        assert row[name] is None
    table = polars.DataFrame({"layer": [0, 0], "neuron": [0, 1], "dz_s": [float("inf"), -0.7]})
    about = {"contrasts": {"s": {"pairs": 2, "conditions": ["a", "b"], "auroc": "exact"}}}
    (row,) = contrast_rows(table, about)
    assert row["its neuron"] == "L0.N1"
    assert row["largest |d_z|"] == 0.7


def test_medians_lie_within_the_range(stories, tmp_path):
    neurons = probe(stories, tmp_path / "run", on="ifeval", limit=2, tokens="last").neurons()
    for condition in ("ifeval_with", "ifeval_without"):
        low, middle, high = (neurons[f"{part}_{condition}"] for part in ("min", "median", "max"))
        assert ((low <= middle) & (middle <= high)).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, "2 questions have a text labelled True, 5 are needed"),
        ({"decode_layers": (9,)}, UsageError, "layer 9: the model has 2"),
        ({"criteria": ()}, UsageError, "give --criteria one"),
    ],
)
def test_what_cannot_be_decoded_is_not_recorded(letters, two, monkeypatch, options, error, message):
    def never(*_, **__):
        raise AssertionError("recorded")

    monkeypatch.setattr("glulens.probes.recorder.record_job", never)
    with pytest.raises(error, match=message):
        probe(letters, "run", on="two.csv", decode=True, **options)
    assert [path.name for path in two.parent.iterdir()] == ["two.csv"]


def test_too_many_texts_to_decode_are_told_before_recording(letters, two, monkeypatch):
    monkeypatch.setattr("glulens.probes.recorder.MATRIX_BYTES", 4 * 48 * 4 - 1)
    with pytest.raises(DataError, match="the means of 4 texts take .* lower --limit"):
        probe(letters, "run", on="two.csv", decode=True)


def test_scores_that_cannot_rank_are_told_before_recording(letters, two, monkeypatch):
    two.write_text("text,label,item\n" + "".join(f"{c} b,1,{c}\n{c} d,0,{c}\n" for c in "abcdefg"))
    monkeypatch.setattr("glulens.prune.scoring.score_mlps",
                        lambda *_, **__: {"ppm": [np.full(24, np.nan)] * 2})  # fmt: skip
    with pytest.raises(DataError, match="layer 0, ppm: scores have NaN"):
        probe(letters, "run", on="two.csv", decode=True, criteria=("ppm",))


def test_experts_are_not_decoded(tmp_path, two):
    make("qwen3_moe", vocab_size=60).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    with pytest.raises(UsageError, match="MLP 1 is an expert"):
        probe(tmp_path / "model", "run", on="two.csv", decode=True)


def test_room_counts_the_files_that_are_made(monkeypatch):
    texts = tuple(Encoded((1, k), 1) for k in range(2, 12))
    pairs = {"p": ((0, 1), (0, 2))}
    layouts: Any = [SimpleNamespace(width=1000)] * 3

    def room(*, decode=False, **options) -> int:
        job = Job(texts, {"a": tuple(range(10))}, pairs, all_means=decode)
        return _room(job, ProbeOptions(decode=decode, **options), layouts)

    row = 4 * 3000
    few, all_once, all_twice = room(), room(decode=True, random_model=False), room(decode=True)
    assert all_once - few == (10 - 3) * row
    assert all_twice - all_once == 10 * row
    monkeypatch.setattr("glulens.probes.recorder.MATRIX_BYTES", 10 * row - 1)
    assert room() == few
    states = room(decode=True) - (few - 3 * row)
    assert room(decode=True) == room(decode=True, random_model=False)
    assert states == 3 * 3 * 3000 * (4 * 64 + 64), "pairs are in states instead"


def test_odd_places_are_one_line(letters, two, capsys):
    Path("taken.unfinished").write_text("mine")
    Path("link.unfinished").symlink_to("nowhere")
    for output, message in (
        (".", "exists; choose another"),
        ("", "exists; choose another"),
        ("/", "exists; choose another"),
        ("o" * 240, "has 240 bytes, a run's at most 200"),
        ("o" * 300, "File name too long"),
        ("~no-such-user-here/run", "is no place for a run"),
        ("taken", "taken.unfinished is in the way"),
        ("link", "link.unfinished is in the way"),
    ):
        args = "probe", str(letters), "--on", "two.csv", "-o", output
        _, err = says(capsys, *args, code=3)
        assert message in err
        if "is in the way" in message:
            says(capsys, *args, "--overwrite", code=3)
            says(capsys, *args, "--resume", code=3)
    assert Path("taken.unfinished").read_text() == "mine"
    for odd in ("o" * 300, "a\0b", "~no-such-user-here", "", "/"):
        assert not resumable(odd)


def test_data_do_not_move_the_cursor(letters, two, capsys):
    red = "\x1b[31mred\nline"
    two.write_text(f'text,label,item\n"a b c",1,"{red}"\n"d e f",0,"{red}"\n,1,"\x1b[2Jboo"\n')
    Path("\x1b[1mc.csv").write_text(two.read_text())
    out, err = says(capsys, "probe", str(letters), "--on", "two.csv,\x1b[1mc.csv", "-o", "run")
    assert "refused: two \\x1b[2Jboo (true)" in err
    shown, _ = says(capsys, "examples", "run", "L0.N1")
    assert "(two true \\x1b[31mred\\nline)" in shown
    for text in (out, err, shown, Path("run/report.md").read_text().split("Made by")[0]):
        assert "\x1b" not in text


@pytest.fixture(scope="module")
def small_run(letters, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    (folder / "two.csv").write_text("text,label,item\na b c,1,x\nd e f,0,x\n")
    return probe(letters, folder / "run", on=str(folder / "two.csv")).path


def _texts(run: Path, change) -> None:
    change(polars.read_parquet(run / "texts.parquet")).write_parquet(run / "texts.parquet")


def _neurons(run: Path, change) -> None:
    change(polars.read_parquet(run / "neurons.parquet")).write_parquet(run / "neurons.parquet")


def _tokens(text):
    return lambda run: _texts(
        run, lambda t: t.with_columns(tokens=polars.lit(text, dtype=polars.String))
    )


def _high(change):
    def damage(run: Path) -> None:
        np.save(run / "examples" / "high.npy", change(np.load(run / "examples" / "high.npy")))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: _texts(run, lambda t: t.drop("tokens")),
        lambda run: _texts(run, lambda t: t.drop("set")),
        lambda run: _texts(run, lambda t: t.head(0)),
        _tokens(None),
        _tokens("[1, 2, 3]"),
        _tokens("[" * 100_000),
        _tokens('{"a": 1}'),
        _high(lambda t: t[:, :, None]),
        _high(lambda t: t[:, 0]),
        _high(lambda t: t["value"]),
        lambda run: (run / "examples" / "high.npy").write_bytes(b""),
        lambda run: _neurons(run, lambda n: n.cast({"layer": polars.String})),
        lambda run: _neurons(run, lambda n: n.with_columns(expert=polars.lit("x"))),
        lambda run: _neurons(run, lambda n: n.head(0)),
        lambda run: (run / "manifest.json").write_text("[" * 100_000),
        lambda run: (run / "manifest.json").write_text("[1]"),
    ],
)
def test_odd_runs_are_one_line(small_run, tmp_path, capsys, damage):
    shutil.copytree(small_run, tmp_path / "run")
    damage(tmp_path / "run")
    _, err = says(capsys, "examples", str(tmp_path / "run"), "L0.N1", code=3)
    assert err.startswith("glulens: ")
    assert err.count("\n") == 1


def test_what_is_not_a_number_is_null_in_json(small_run, tmp_path, capsys):
    shutil.copytree(small_run, tmp_path / "run")
    file = tmp_path / "run" / "examples" / "high.npy"
    high = np.load(file)
    high["value"][:] = np.nan
    np.save(file, high)
    out, _ = says(capsys, "examples", str(tmp_path / "run"), "L0.N1", "--json")
    assert json.loads(out)["examples"]["high"][0]["value"] is None


@pytest.mark.parametrize("error", [ResourceError("out of memory on a row"), MemoryError()])
def test_after_memory_ran_out_the_way_on_is_the_same_command(
    letters, two, capsys, monkeypatch, error
):
    def ends(*_, folder, **__):
        (folder / "state-0.safetensors").touch()
        raise error

    monkeypatch.setattr("glulens.probes.recorder.record_job", ends)
    args = "probe", str(letters), "--on", "two.csv", "-o", "run"
    for more in ((), ("--resume",)):
        _, err = says(capsys, *args, *more, code=4)
        assert "the same command with -o run --resume goes on once more memory is free" in err
        assert "with other options a run begins anew (--overwrite)" in err
        assert "lower --max-tokens" not in err


def test_the_run_to_go_on_with_is_of_the_model_asked_for(tmp_path):
    with pytest.raises(RunError, match="no unfinished"):
        find_unfinished(tmp_path / "nowhere", "probe-a")
    for name in (
        "probe-a-b-20250101-000000",
        "probe-a-20250101-000000x",
        "probe-a-20250101-000009",
    ):
        (tmp_path / f"{name}{UNFINISHED}").mkdir()
    (tmp_path / f"probe-a-20250101-000009{UNFINISHED}").rmdir()
    (tmp_path / f"probe-a-20250101-000009{UNFINISHED}").touch()
    with pytest.raises(RunError, match="no unfinished probe-a run"):
        find_unfinished(tmp_path, "probe-a")
    (tmp_path / f"probe-a-20250101-000001-2{UNFINISHED}").mkdir()
    assert find_unfinished(tmp_path, "probe-a").name == "probe-a-20250101-000001-2"
