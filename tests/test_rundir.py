"""A run appears whole or not at all, and never in the place of something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars
import pytest

from glulens.errors import ResourceError, RunError
from glulens.rundir import (
    NEURONS,
    absolute,
    check_free,
    find_runs,
    open_run,
    write_manifest,
    writing,
)


def make_run(path: Path, *, started: str = "2026-01-01T00:00:00+00:00", overwrite=False) -> Path:
    with writing(path, overwrite=overwrite) as scratch:
        frame = polars.DataFrame({"layer": [0, 0], "neuron": [0, 1], "ppm": [1.0, 2.0]})
        frame.write_parquet(scratch / NEURONS)
        write_manifest(scratch, {"command": "test", "started": started})
    return path


def test_what_is_written_is_read(tmp_path):
    run = open_run(make_run(tmp_path / "deep" / "run"))
    assert run.neurons().columns == ["layer", "neuron", "ppm"]
    assert list(run.manifest["outputs"]) == [NEURONS]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run"], "no scratch is left"


def test_until_the_end_nothing_is_there_and_a_failure_leaves_nothing(tmp_path):
    path = tmp_path / "run"

    def half() -> None:
        with writing(path) as scratch:
            (scratch / "half").write_text("x")
            assert not path.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    with pytest.raises(KeyboardInterrupt), writing(path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_exit_code_4_and_leaves_nothing(tmp_path):
    with pytest.raises(ResourceError, match="disk filled up") as caught, writing(tmp_path / "run"):
        raise OSError(28, "No space left on device")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_work_begins(tmp_path, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)  # pyright: ignore
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match="a run needs 50 MB"):
        check_free(tmp_path / "run")


def test_nothing_is_replaced_unasked_and_only_runs_are_replaced(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(RunError, match="--overwrite"):
        make_run(run)
    make_run(run, started="2027-01-01T00:00:00+00:00", overwrite=True)
    assert open_run(run).manifest["started"].startswith("2027")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.txt").write_text("years of work")
    with pytest.raises(RunError, match="not a run directory and will not be overwritten"):
        make_run(mine, overwrite=True)
    assert (mine / "chapter.txt").read_text() == "years of work"


def test_a_failed_overwrite_leaves_the_old_run(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), writing(run, overwrite=True):
        raise ZeroDivisionError
    assert open_run(run).neurons().height == 2


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="cannot be written"):
        check_free(tmp_path / "file" / "run")
    for odd, message in (("o" * 201, "201 bytes"), ("字" * 80, "240 bytes"),
                         ("o" * 300, "too long"), ("a\0b", "cannot be written")):  # fmt: skip
        with pytest.raises(RunError, match=message):
            check_free(tmp_path / odd)


def test_a_place_is_absolute_and_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute(".") == absolute("") == tmp_path
    assert absolute("a/../b/") == tmp_path / "b"
    with pytest.raises(RunError, match="is no place for a run"):
        absolute("~no-such-user-here/run")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "has no manifest.json"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("{}", "cannot be read"),
        (json.dumps({"schema_version": 99}), "schema version 99"),
    ],
)
def test_what_is_no_run_says_so(manifest, message, tmp_path):
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match=message) as caught:
        open_run(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="no such run directory"):
        open_run(tmp_path / "nowhere")


def test_damaged_tables_are_told(tmp_path):
    run = make_run(tmp_path / "run")
    whole = (run / NEURONS).read_bytes()
    for damaged in (whole[:40], b"", b"PAR1" + b"\0" * 100 + b"PAR1"):
        (run / NEURONS).write_bytes(damaged)
        with pytest.raises(RunError, match="cannot be read"):
            open_run(run).neurons()
    polars.DataFrame({"layer": [1]}).write_parquet(run / NEURONS)
    with pytest.raises(RunError, match="no column 'neuron'"):
        open_run(run).neurons()
    polars.DataFrame({"layer": ["1"], "neuron": [1]}).write_parquet(run / NEURONS)
    with pytest.raises(RunError, match="column 'layer' does not hold integers"):
        open_run(run).neurons()


def test_runs_are_listed_newest_first_and_others_passed_over(tmp_path):
    make_run(tmp_path / "a", started="2026-01-01T00:00:00+00:00")
    make_run(tmp_path / "b", started="2026-02-01T00:00:00+00:00")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "manifest.json").write_text("{")
    assert [run.path.name for run in find_runs(tmp_path)] == ["b", "a"]


def test_what_was_there_comes_back_when_the_last_step_fails(tmp_path, monkeypatch):
    from pathlib import Path

    from glulens.atomic import appearing

    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_text("old")
    real = Path.rename

    def fails(self, target):
        if ".unfinished-" in self.name:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    monkeypatch.setattr("glulens.atomic._swapped", lambda *_: False)  # as where no system call can
    with pytest.raises(KeyboardInterrupt), appearing(place, replace=True) as scratch:
        (scratch / "new").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert (place / "old").read_text() == "old"
