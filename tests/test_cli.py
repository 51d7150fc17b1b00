"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars
import pytest
from commands import says

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
        "2",
        "--map-items",  # the map of single layers and UMAP are drawn in test_hypothesis
        "0",
        "--no-umap",
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
