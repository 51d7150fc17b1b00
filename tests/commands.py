"""Runs a command in this process, as a terminal would."""

from __future__ import annotations

from pathlib import Path

import pytest

from glulens.interp.cli import main


def glulens_says(capsys, *words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def says(capsys, *words: str | Path, code: int = 0) -> tuple[str, str]:
    """stdout and stderr of a command that must end with this exit code."""
    found, out, err = glulens_says(capsys, *words)
    assert found == code, err
    return out, err
