"""How far work is, on a terminal and in a log; and how errors are told apart."""

from __future__ import annotations

import errno

import pytest

import glulens.progress
from glulens.errors import is_out_of_memory, visible
from glulens.progress import on_stderr


def test_a_job_that_begins_again_is_told_again(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(glulens.progress.time, "monotonic", lambda: clock[0])
    with on_stderr() as tell:
        for pace in (1, 100):
            for done in range(0, 1001, 100):
                tell("probing (layers)", done, 1000)
                clock[0] += pace * 1.0
    err = capsys.readouterr().err
    assert err.count("probing (layers): 1,000 done") == 2
    rates = [line.split(", ")[1] for line in err.splitlines() if "min left" in line]
    assert rates, "the slow round takes minutes"
    assert set(rates) == {"1/s"}


def test_names_are_no_markup_and_lines_are_not_folded(capsys):
    what = "[bold]a[/bold] [b] " + "long " * 40 + "(x)"
    with on_stderr() as tell:
        tell(what, 1, 1)
    assert capsys.readouterr().err == f"{what}: 1 done\n"


def test_bars_draw_names_as_they_are_and_begin_again(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with on_stderr() as draw:
        for done, total in ((1, 2), (2, 2), (1, 3), (3, 3)):
            draw("[red]a[/red] (x)", done, total)
    err = capsys.readouterr().err
    assert "[red]a[/red] (x)" in err
    assert "3/3" in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
    ],
)
def test_memory_that_ran_out_is_known(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file", "out of memory.csv"),
        ValueError("out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_what_moves_the_cursor_is_spelled_out():
    assert visible("a\x1b[2J\nb\u202e é字") == r"a\x1b[2J\nb\u202e é字"
