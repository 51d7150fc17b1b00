"""`glulens probe` and `glulens examples`, from the command line to the run directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars
import pytest
from commands import says
from families import make, save_tokenizer

from glulens.errors import DataError, RunError, UsageError
from glulens.interp.probe import probe
from glulens.interp.unfinished import UNFINISHED
from glulens.neuron_keys import read_keys
from glulens.prune.recording import Recording
from glulens.prune.selection import NeuronSet
from glulens.tables import examples_of

CSV = """statement,label,item
The earth is round.,1,a
The earth is flat.,0,a
Cats bark.,0,b
Cats meow.,1,b
"""


def table(run) -> polars.DataFrame:
    return run.neurons()


def test_a_run_holds_what_the_neurons_did(stories, tmp_path):
    (tmp_path / "animals.csv").write_text(CSV)
    run = probe(stories, tmp_path / "run", on=f"truthfulqa,{tmp_path / 'animals.csv'}", limit=8)
    neurons = run.neurons()
    assert neurons.height == 5 * 172
    for name in ("ppm", "dz_truthfulqa", "auroc_truthfulqa", "median_animals_true", "diff_animals",
                 "positive_truthfulqa_false"):  # fmt: skip
        assert neurons[name].null_count() == 0, name
    assert run.manifest["contrasts"]["animals"] == {
        "pairs": 2, "conditions": ["false", "true"], "auroc": "exact",
    }  # fmt: skip
    assert run.manifest["refused"] == []
    for text in ("# What the neurons of", "| truthfulqa | false - true | 8 |", "animals_true"):
        assert text in run.report
    found = examples_of(run.path, 3)
    assert {side: len(some) for side, some in found.items()} == {
        "high": 10, "low": 10, "spread": 10,
    }  # fmt: skip
    values = [one.value for one in found["high"]]
    assert values == sorted(values, reverse=True)
    ends = neurons.select(polars.max_horizontal(polars.col("^max_.*$")))["max_truthfulqa_false"]
    assert values[0] == pytest.approx(ends[3], rel=1e-6)
    file = run.path / run.manifest["histograms"]["animals_true"]
    histogram = np.load(file, mmap_mode="r")
    assert (histogram.sum(1) == neurons["tokens_animals_true"].to_numpy()).all()
    assert not list(tmp_path.glob(f"*{UNFINISHED}"))


def test_all_three_sets_and_every_selection(stories, tmp_path):
    for tokens in ("answer", "last", "all", "prompt"):
        run = probe(stories, tmp_path / tokens, on="truthfulqa,mmlu,ifeval", limit=4, tokens=tokens)
        # Both answers of a pair follow one question: of prompts only instructions differ.
        sets = {"ifeval"} if tokens == "prompt" else {"truthfulqa", "mmlu", "ifeval"}
        assert set(run.manifest["contrasts"]) == sets
        assert len([n for n in run.manifest["warnings"] if "tokens are the same" in n]) == (
            3 - len(sets)
        )
        assert set(run.manifest["conditions"]) == {
            "truthfulqa_true", "truthfulqa_false", "mmlu_right", "mmlu_wrong",
            "ifeval_with", "ifeval_without",
        }  # fmt: skip


def test_a_mask_silences_the_neurons_it_names(stories, tmp_path):
    widths = (172,) * 5
    cut = NeuronSet(widths, tuple(np.arange(3) if k == 2 else np.arange(0) for k in range(5)))
    cut.save(tmp_path / "cut.json")
    run = probe(
        stories, tmp_path / "run", on="truthfulqa", limit=4, mask=str(tmp_path / "cut.json")
    )
    neurons = run.neurons()
    silent = neurons.filter((polars.col("layer") == 2) & (polars.col("neuron") < 3))
    assert silent["rms_truthfulqa_true"].max() == 0
    assert neurons.filter(polars.col("layer") == 1)["rms_truthfulqa_true"].min() > 0  # pyright: ignore


def test_the_commands_speak(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("animals.csv").write_text(CSV + '"<|im_end|> and [nul] \x00",1,c\n,0,c\n')
    out, err = says(
        capsys,
        "probe",
        "smollm2-135m-instruct",
        "--on",
        "animals.csv",
        "-o",
        "run",
        "--json",
        "--no-vocabulary",
    )
    about = json.loads(out)
    assert about["schema_version"] == 1
    assert about["conditions"]["animals_true"]["texts"] == 3
    assert "refused: animals c (false): no token of its own" in err
    out, _ = says(capsys, "examples", "run", "L12.N345", "-k", "2")
    assert "most positive" in out
    assert "most negative" in out
    assert "\x00" not in out
    out, _ = says(capsys, "examples", "run", "L12.N345", "--json")
    assert len(json.loads(out)["examples"]["high"]) == 5
    _, err = says(capsys, "examples", "run", "L12.N1536", code=2)
    assert "not in this run; layers go to 29, neurons to 1535" in err
    _, err = says(capsys, "examples", "run", "12.345", code=2)
    assert "write layer and number" in err
    _, err = says(capsys, "probe", "smollm2-135m-instruct", "--on", "animals.csv", "-o", "run",
                  code=3)  # fmt: skip
    assert "run exists" in err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--on", "truthfull"], 2, "did you mean 'truthfulqa'"),
        (["--on", ""], 2, "give truthfulqa, mmlu, ifeval or a CSV file"),
        (["--on", "nothing.csv"], 3, "nothing.csv"),
        (["--on", "truthfulqa", "--limit", "0"], 2, "at least 1"),
        (["--on", "truthfulqa", "--max-tokens", "0"], 2, "at least 1"),
        (["--on", "truthfulqa", "--examples", "0"], 2, "at least 1"),
        (["--on", "truthfulqa", "--seed", "-1"], 2, "seed -1: at least 0"),
        (["--on", "truthfulqa", "--seed", "4294967296"], 2, "below 4294967296"),
        (["--on", "truthfulqa", "--remote"], 2, "--remote needs nnsight"),
        (["--on", "truthfulqa", "--tokens", "some"], 2, "'answer'"),
        (["--on", "truthfulqa", "--criteria", "nope"], 2, "nope"),
        (["--on", "truthfulqa", "--decode-layers", "a"], 2, "write layers from 0"),
        (["--on", "truthfulqa", "--resume"], 3, "no unfinished"),
        (["--on", "truthfulqa", "--resume", "-o", "x"], 3, "nothing to go on with"),
        (["--on", "truthfulqa", "--mask", "no.json"], 3, "no.json"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    tmp_path, capsys, monkeypatch, options, code, message
):
    monkeypatch.chdir(tmp_path)
    _, err = says(capsys, "probe", "smollm2-135m-instruct", *options, code=code)
    assert message in err
    last = [line for line in err.splitlines() if line.startswith("glulens:")]
    assert len(last) == 1
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.glob(f"**/*{UNFINISHED}"))


def test_two_processes_do_not_work_on_one_run(stories, tmp_path):
    import fcntl

    folder = tmp_path / f"run{UNFINISHED}"
    folder.mkdir()
    with pytest.raises(RunError, match="holds an unfinished run; go on with --resume"):
        probe(stories, tmp_path / "run", on="truthfulqa", limit=2)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(RunError, match="another process is at work"):
        probe(stories, tmp_path / "run", on="truthfulqa", limit=2, overwrite=True)
    os.close(lock)
    assert probe(stories, tmp_path / "run", on="truthfulqa", limit=2, overwrite=True).path.is_dir()


def test_a_finished_run_is_not_gone_on_with(stories, tmp_path):
    probe(stories, tmp_path / "run", on="truthfulqa", limit=2)
    with pytest.raises(RunError, match=r"run is finished: there is nothing to go on with"):
        probe(stories, tmp_path / "run", on="truthfulqa", limit=2, resume=True)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt2"])
def test_other_families_are_probed_by_name_of_their_neurons(tmp_path, family):
    model = make(family, vocab_size=60)
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    (tmp_path / "letters.csv").write_text("text,label\na b c d,1\nc d e f,0\ng h i j,1\nx y z,0\n")
    run = probe(tmp_path / "model", tmp_path / "run", on=str(tmp_path / "letters.csv"))
    neurons = run.neurons()
    assert neurons.height == sum(mlp for mlp in [run.manifest["model"]["neurons"]])
    name = "L1.E2.N3" if family == "qwen3_moe" else "L1.N3"
    keys = read_keys(run)
    row = keys.find(name)
    assert neurons["layer"][row] == 1
    assert neurons["neuron"][row] == 3
    if family == "qwen3_moe":
        assert neurons["expert"][row] == 2
        with pytest.raises(UsageError, match="not in this run"):
            keys.find("L1.N3")
    else:
        with pytest.raises(UsageError, match="no experts"):
            keys.find("L1.E2.N3")


def test_examples_of_another_run_or_damaged_ones_are_an_error(stories, tmp_path):
    run = probe(stories, tmp_path / "run", on="truthfulqa", limit=2)
    table_file = run.path / "examples" / "high.npy"
    table_file.write_bytes(table_file.read_bytes()[:-40])
    with pytest.raises(RunError, match="cannot be read"):
        examples_of(run.path, 0)
    (tmp_path / "other").mkdir()
    with pytest.raises(RunError, match="holds no examples"):
        examples_of(tmp_path / "other", 0)


def test_labels_do_not_name_files_and_names_do_not_collide(stories, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nA red fox.,../../x\nA dog.,b_c\n")
    run = probe(stories, tmp_path / "run", on=str(tmp_path / "a.csv"))
    assert "a_../../x" in run.manifest["conditions"]
    files = sorted(path.name for path in (run.path / "histograms").iterdir())
    assert files == ["0-a_.._.._x.npy", "1-a_b_c.npy"]
    (tmp_path / "a_b.csv").write_text("text,label\nA cat.,c\n")
    with pytest.raises(UsageError, match="both have a condition called a_b_c"):
        probe(stories, tmp_path / "r", on=f"{tmp_path / 'a.csv'},{tmp_path / 'a_b.csv'}")


def test_a_set_of_which_nothing_can_be_encoded_is_refused(stories, tmp_path):
    (tmp_path / "empty.csv").write_text("text,label\n,1\n,0\n")
    with pytest.raises(DataError, match="none of its 2 texts can be encoded"):
        probe(stories, tmp_path / "run", on=str(tmp_path / "empty.csv"))


def test_decoding_writes_probes_with_their_controls(stories, tmp_path):
    run = probe(stories, tmp_path / "run", on="truthfulqa", limit=8, decode=True,
                decode_layers=(3,))  # fmt: skip
    rows = polars.read_csv(run.path / "decoding.csv")
    assert set(rows["what"]) >= {
        "lowest", "highest", "random 0", "all", "pca", "majority", "length", "tf-idf",
        "random model",
    }  # fmt: skip
    assert set(rows["layer"].drop_nulls()) == {3}
    assert rows["selectivity"].is_not_null().any()
    assert "## Linear probes" in run.report


def test_the_recording_ranks_by_activation(stories, tmp_path):
    run = probe(stories, tmp_path / "run", on="truthfulqa", limit=6)
    recording = Recording.load(run.path / "recording.safetensors")
    assert recording.widths == (172,) * 5
    neurons = run.neurons()
    n = [neurons[f"tokens_truthfulqa_{c}"][0] for c in ("true", "false")]
    rms = [neurons[f"rms_truthfulqa_{c}"].to_numpy().astype(float) for c in ("true", "false")]
    pooled = np.sqrt((n[0] * rms[0] ** 2 + n[1] * rms[1] ** 2) / sum(n))
    np.testing.assert_allclose(np.concatenate([m.rms for m in recording.mlps]), pooled, rtol=1e-5)


CHILD = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from stories import open_stories
from glulens.interp.probe import probe
probe(open_stories(Path({data!r})), {run!r}, every=0.0, **{options!r})
"""


def test_a_run_that_was_killed_goes_on_and_ends_the_same(stories, official, tmp_path):
    options = {"on": "truthfulqa", "limit": 20, "tokens": "all", "max_tokens": 64}
    code = CHILD.format(tests=str(Path(__file__).parent), data=str(official / "stories260k"),
                        run=str(tmp_path / "killed"), options=options)  # fmt: skip
    killed = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    folder = tmp_path / f"killed{UNFINISHED}"
    while killed.poll() is None and len(list(folder.glob("state-?.safetensors"))) < 2:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    whole = probe(stories, tmp_path / "whole", **options)
    resumed = probe(stories, tmp_path / "killed", resume=True, **options)
    for name in ("neurons.parquet", "texts.parquet", "samples.npy", "examples/high.npy",
                 "examples/low.npy", "histograms/1-truthfulqa_true.npy"):  # fmt: skip
        assert (whole.path / name).read_bytes() == (resumed.path / name).read_bytes(), name
    assert any(note.startswith("resumed after") for note in resumed.manifest["warnings"])
