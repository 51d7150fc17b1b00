"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import polars
import pytest
from commands import glulens_says, says

from glulens.rundir import write_manifest, writing


def glulens(
    *words: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "glulens.interp.cli", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )


def test_runs_says_what_a_manifest_lacks_with_a_dash(capsys, tmp_path):
    with writing(tmp_path / "scores") as scratch:
        write_manifest(scratch, {"command": "score", "model": {"name": "mine"}})
    out, _ = says(capsys, "runs", tmp_path)
    assert out == f"{tmp_path / 'scores'}\tscore\t-\tmine\t-\n"


def test_models_that_need_no_hub_are_listed(capsys, tmp_path, monkeypatch):
    from glulens.prune import embedded

    alias = "smollm2-135m-instruct"
    for where, state in ((tmp_path, "cached"), (tmp_path / "no", "fetched when first used")):
        monkeypatch.setattr(embedded, "embedded_folder", lambda _, where=where: where)
        out, _ = says(capsys, "models")
        (line,) = [line for line in out.splitlines() if line.startswith(f"{alias}\t")]
        assert line == f"{alias}\t{embedded.EMBEDDED[alias].about}\t{state}"


def test_what_goes_wrong_outside_of_a_command_is_one_line(capsys, tmp_path, monkeypatch):
    from glulens import rundir

    def fails(error: BaseException) -> None:
        def find(_: Path) -> None:
            raise error

        monkeypatch.setattr(rundir, "find_runs", find)

    fails(MemoryError())
    _, err = says(capsys, "runs", tmp_path, code=4)
    assert err.startswith("glulens: out of memory; free some, or lower --max-tokens or --limit")
    fails(KeyboardInterrupt())
    _, err = says(capsys, "runs", tmp_path, code=130)
    assert err.strip() == "glulens: interrupted; nothing was written"
    fails(RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):  # a fault of ours is not hidden
        says(capsys, "runs", tmp_path)


def test_a_reader_who_has_gone_is_not_told_so(capsys, tmp_path, monkeypatch):
    from glulens import rundir

    def fails(_: Path) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(rundir, "find_runs", fails)
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    code, out, err = glulens_says(capsys, "runs", tmp_path)
    assert (code, out, err) == (1, "", "")
    assert stderr.closed


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_probe_says_how_to_go_on_if_anything_is_kept(
    capsys, tmp_path, monkeypatch, kept
):
    from glulens.interp import probe

    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "probe", stops)
    monkeypatch.setattr(probe, "resumable", lambda _: kept)
    path = tmp_path / "run"
    _, err = says(capsys, "probe", "a-model", "--on", "builtin", "-o", path, code=130)
    goes_on = f"glulens: interrupted; the same command with -o {path} --resume goes on"
    assert err.splitlines()[-1] == (
        goes_on if kept else "glulens: interrupted; nothing was written"
    )


def test_layers_to_decode_are_numbers_and_examples_are_counted(capsys, tmp_path, monkeypatch):
    from glulens.errors import DataError
    from glulens.interp import probe

    given: list[tuple[int, ...]] = []

    def noted(*_: object, decode_layers: tuple[int, ...], **__: object) -> None:
        given.append(decode_layers)
        raise DataError("that is all")

    monkeypatch.setattr(probe, "probe", noted)
    start = ("probe", "a-model", "--on", "builtin", "-o", tmp_path / "run", "--decode-layers")
    says(capsys, *start, "0,8, 15", code=3)
    assert given == [(0, 8, 15)]
    for wrong in ("0,x", "-1", ""):
        _, err = says(capsys, *start, wrong, code=2)
        assert "write layers from 0 by commas, as in 0,8,15" in err
    for words in (("-k", "0"), ("--width", "-1")):
        _, err = says(capsys, "examples", tmp_path, "L0.N0", *words, code=2)
        assert "-k must be at least 1, --width at least 0" in err


def test_help_is_light():
    """What it costs in CPU time is measured in benchmarks/start_up.py, not in a timed test."""
    code = (
        "import sys\nfrom glulens.interp.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'polars', 'matplotlib', 'textual', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["hypothesis"], 2, "Missing argument 'MODEL'"),
        (["hypothesis", "nowhere-model"], 3, "unknown model 'nowhere-model'; allowed are"),
        (["hypothesis", "./nowhere"], 3, "no such file or folder: ./nowhere"),
        (["hypothesis", "smollm2-135m-instruct", "--data", "nowhere"], 3, "no such data folder"),
        (["hypothesis", "smollm2-135m-instruct", "--limit", "0"], 2, "limit 0"),
        (["hypothesis", "smollm2-135m-instruct", "--limit", "many"], 2, "not a valid int"),
        (["hypothesis", "smollm2-135m-instruct", "--criteria", "pmp"], 2, "did you mean 'ppm'?"),
        (["demo", "--criteria", "random:0"], 2, "carries the verdict"),
        (["demo", "--criteria", "wanda"], 2, "looks at activations"),
        (["hypothesis", "smollm2-135m-instruct", "--permutations", "9"], 2, "at least 100"),
        (["hypothesis", "smollm2-135m-instruct", "--lmit", "4"], 2, "--limit"),
        (["nothing"], 2, "No such command 'nothing'"),
        (["browse", "nowhere"], 3, "no such run directory"),
        (["runs", "nowhere"], 3, "no such folder"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_the_documented_code(words, code, said, tmp_path):
    done = glulens(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("glulens: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == [], "no half-written run"


def test_bad_data_is_one_line_and_no_run(tmp_path, official):
    data = tmp_path / "data"
    data.mkdir()
    text = (official / "truthfulqa/v1/TruthfulQA.csv").read_text(encoding="utf-8-sig")
    (data / "TruthfulQA.csv").write_text(text.replace("Best Answer", "Best", 1))
    done = glulens("hypothesis", "smollm2-135m-instruct", "--data", "data", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "data/TruthfulQA.csv:1: column 'Best Answer' is missing" in done.stderr
    (data / "TruthfulQA.csv").write_text(text.splitlines()[0] + "\n")
    done = glulens("hypothesis", "smollm2-135m-instruct", "--data", "data", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "no rows" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_truncated_gguf_is_one_line_and_no_run(tmp_path):
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\x10" * 3000)
    for words in ((), ("--dry-run",)):
        done = glulens("hypothesis", "cut.gguf", *words, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert "cut.gguf cannot be read as a model" in done.stderr
        assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["cut.gguf"]


def test_a_place_that_is_taken_is_refused_before_any_work(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("x")
    done = glulens("demo", "-o", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    done = glulens("demo", "-o", "run", "--overwrite", cwd=tmp_path)
    assert done.returncode == 3
    assert "not a run directory" in done.stderr


def test_dry_run_says_what_it_would_cost_and_does_nothing(tmp_path, smollm):
    done = glulens("demo", "--limit", "10", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "neurons (rows of neurons.parquet): 46,080" in done.stdout
    assert "forwards:" in done.stdout
    done = glulens("demo", "--limit", "10", "--dry-run", "--json", cwd=tmp_path)
    plan = json.loads(done.stdout)
    assert plan["schema_version"] == 1
    assert plan["texts"] == plan["backwards"] == 70
    assert list(tmp_path.iterdir()) == []


def test_a_small_run_from_start_to_end(tmp_path, smollm):
    words = (
        "demo",
        "--limit",
        "4",
        "--causal-items",
        "1",
        "--map-items",  # the map of single layers and UMAP are drawn in test_hypothesis
        "0",
        "--no-umap",
        "--decode-every",  # linear probes have tests of their own, too
        "0",
        "--permutations",
        "100",
        "-o",
        "run",
        "--json",
        "--criteria",
        "ppm,vow,reversed:ppm",
    )
    done = glulens(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schema_version"] == 1
    assert found["verdict"]["outcome"] in (
        "supported",
        "contradicted",
        "no evidence",
        "cannot tell",
    )
    assert found["path"] == "run"
    assert "run directory: run" in done.stderr
    frame = polars.read_parquet(tmp_path / "run" / "neurons.parquet")
    assert frame.height == 46_080
    assert {"layer", "neuron", "ppm", "vow", "reversed_ppm"} <= set(frame.columns)
    listed = glulens("runs", ".", "--json", cwd=tmp_path)
    assert json.loads(listed.stdout)["runs"][0]["model"] == "smollm2-135m-instruct"
    refused = glulens("browse", "run", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "browse needs a terminal" in refused.stderr
