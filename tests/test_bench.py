"""The table beside peers: its arithmetic, and that the command works where the figures do not
matter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules of the benchmarks, which are scripts and no part of the package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench  # pyright: ignore[reportMissingImports]
    import growth  # pyright: ignore[reportMissingImports]
    import peers_rows  # pyright: ignore[reportMissingImports]

    return SimpleNamespace(bench=bench, growth=growth, rows=peers_rows)


def test_ratios_are_of_one_round(scripts):
    side, row = scripts.rows.Side, scripts.rows.Row
    ours, peer = side("glulens", [1.0, 10.0, 2.0], 5e6), side("peer", [3.0, 20.0, 8.0], 2e7)
    found = row("work", "items", ours, peer, side("limit", [1.0, 5.0, 2.0])).faster(4).within(1)
    assert found.ratios() == [3, 2, 4]
    cells = dict(zip(scripts.rows.HEADER, scripts.rows.cells(found), strict=True))
    assert cells["ours is x times as fast [range]"] == "3.00 [2.00, 4.00]"
    assert cells["ours takes x times the limit's time [range]"] == "1.00 [1.00, 2.00]"
    assert (cells["ours"], cells["peer's"]) == ("0.5 items/s", "0.1 items/s")
    assert (cells["peak memory, ours"], cells["limit's"]) == ("5.0 MB", "0.5 items/s")
    assert "at least 4 x: 3.00, missed" in cells["goals"]
    assert "at most 1 x the limit: 1.00, met" in cells["goals"]


def test_rows_survive_their_file(scripts, tmp_path):
    side, row = scripts.rows.Side, scripts.rows.Row
    rows = [
        row("work", "", side("glulens", [0.5], 1e6), None, side("cp", [0.2])).within(2),
        row("other", failed="a | b\nc"),
    ]
    scripts.rows.dump(rows, tmp_path / "rows.json")
    assert scripts.rows.load(tmp_path / "rows.json") == rows
    lines = scripts.rows.table([scripts.rows.cells(r) for r in rows], scripts.rows.HEADER)
    assert {line.count("|") for line in lines.splitlines()} == {len(scripts.rows.HEADER) + 1}


def test_whoever_holds_more_has_the_larger_peak(scripts):
    work = {"little": lambda _: np.ones(10**6).sum(), "much": lambda _: np.ones(10**7).sum()}
    taken, peaks, given = scripts.rows.contest(work, 3)
    assert [len(seconds) for seconds in taken.values()] == [3, 3]
    assert given == {"little": 1e6, "much": 1e7}
    if peaks["much"] is not None:  # Linux alone tells
        assert peaks["much"] - peaks["little"] > 5e7


def test_exponents_and_lines_are_found_again(scripts):
    sizes = np.array([10, 20, 40, 80, 160])
    found = scripts.growth.fit(sizes, 3e-4 * sizes**1.5)
    assert found.exponent == pytest.approx(1.5)
    assert found.error < 1e-9
    line = scripts.growth.fit(sizes, 7 + 0.25 * sizes)
    assert (line.fixed, line.rate) == (pytest.approx(7), pytest.approx(0.25))
    assert line.at(10_000) == pytest.approx(2507)
    assert line.exponent < 1
    flat = scripts.growth.fit(sizes, np.full(5, 9.0))
    assert (flat.exponent, flat.fixed) == (pytest.approx(0), pytest.approx(9))


def test_the_error_of_an_exponent_is_that_of_the_slope(scripts):
    from scipy import stats

    sizes = np.array([10.0, 30, 100, 300, 1000])
    costs = sizes * np.exp([0.1, -0.2, 0.05, 0.2, -0.1])
    known: Any = stats.linregress(np.log(sizes), np.log(costs))
    found = scripts.growth.fit(sizes, costs)
    assert (found.exponent, found.error) == (
        pytest.approx(known.slope),
        pytest.approx(known.stderr),
    )


def test_growth_is_projected_and_what_fails_is_told(scripts, tmp_path, monkeypatch):
    def measure(task: str, size: int, quick: bool) -> dict[str, Any]:
        if task == "weights":
            raise RuntimeError("weights at 32: no room")
        of = 1000 * size if task != "browser" else size
        costs = dict.fromkeys(("seconds", "first paint", "sort", "filter"), 2 + 1e-3 * of)
        return {"size": of, "neurons": of, "bytes": 1e6 + 4 * of, **costs}

    monkeypatch.setattr(scripts.growth, "measure", measure)
    (row,) = scripts.growth.rows(True, tmp_path / "growth.md")
    assert row.failed == "recording, larger models: weights at 32: no room"
    text = (tmp_path / "growth.md").read_text()
    assert "Not measured: recording, larger models: weights at 32: no room" in text
    assert "it was not reached" not in text
    # 16 x 8,192 neurons of the smallest: 1 MB and 4 bytes a neuron; 2 s and 1 ms a neuron.
    assert "| recording, what is kept: peak memory | 1.52 MB |" in text
    assert "| calibration, one halving of eight: seconds | 2.2 min |" in text
    assert "recording, more text" not in text.split("## Projected")[1]


def test_a_section_that_fails_or_lasts_is_told_and_the_next_goes_on(scripts, tmp_path, monkeypatch):
    # The children load the module that stands in for a section from the folder of PYTHONPATH.
    (tmp_path / "broken.py").write_text(
        "import time\n"
        "def rows(quick):\n    raise OSError('no such peer')\n"
        "def slow(quick):\n    time.sleep(600)\n"
    )
    stub = tmp_path / "stub.py"
    stub.write_text(
        f"import sys\nsys.path[:0] = [{str(BENCHMARKS)!r}, {str(tmp_path)!r}]\nimport bench\n"
        "bench.SECTIONS = {'scoring': ('broken', 'rows', 9), 'pruning': ('broken', 'slow', 0)}\n"
        "bench.__file__ = __file__\nbench.head = lambda: []\n"
        "sys.exit(bench.main())\n"
    )
    output = tmp_path / "out" / "results.md"
    command = [sys.executable, str(stub), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    text = output.read_text()
    assert done.returncode == 1, done.stderr
    assert "scoring (the whole section) | not measured: OSError: no such peer" in text
    assert "pruning (the whole section) | not measured: it was stopped after" in text
    assert [path.name for path in output.parent.iterdir()] == ["results.md"]
    assert done.stdout.strip() == text.strip()


def test_the_rows_for_a_gpu_are_the_same_code_on_a_cpu(tmp_path):
    text = quick(tmp_path, "absolute")
    for what in ("record", "multiple choice", "gradient x activation", "score by", "prune the"):
        assert any(what in line and "not measured" not in line for line in text.splitlines()), what


def test_without_cuda_the_results_say_so(scripts, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (row,) = scripts.bench.run_section("absolute", False, Path("unused"))
    assert "missing: no CUDA device" in scripts.rows.cells(row)[1]


@pytest.mark.slow
def test_every_section_runs(official, tmp_path):
    text = quick(tmp_path)
    whole = [line for line in text.splitlines() if "whole section" in line]
    assert not whole
    for what in (
        "optipfair's four", "optipfair, load-prune-save", "TransformerLens, batches",
        "nnsight, batches", "nnsight, prompt by prompt", "lm-eval hf", "Textual's DataTable",
        "textual-fastdatatable",
    ):  # fmt: skip
        assert f"| {what}" in text
    grown = (tmp_path / "growth.md").read_text()
    assert "Not measured" not in grown
    assert "llama-3.1-70b" in grown


def quick(folder: Path, *only: str) -> str:
    """The table of a quick run."""
    output = folder / "results.md"
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "--output", str(output)]
    command += ["--only", *only] if only else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output.read_text()


def test_results_that_are_committed_came_from_a_whole_run():
    found = BENCHMARKS / "results.md"
    if found.exists():
        assert found.read_text().startswith("# Side by side\n\nWritten by `make bench`")
