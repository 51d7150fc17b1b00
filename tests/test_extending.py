"""docs/extending.md runs as it stands and prints what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import glulens
from glulens.errors import UsageError
from glulens.prune.criteria import WEIGHT_CRITERIA
from glulens.prune.expressions import parse_criterion

PAGE = Path(glulens.__file__).parent / "docs" / "extending.md"
MARK = "---- section ----"


def sections() -> list[tuple[str, str]]:
    """Code and what it prints, of every section that has both; what prints nothing is joined on."""
    found: list[tuple[str, str]] = []
    code = ""
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        if kind == "python":
            code += block
        else:
            assert kind == "text", f"a block of {kind} is run by nobody"
            found.append((code, block))
            code = ""
    assert not code, "code at the end has no output beside it"
    return found


def test_the_page_runs_and_prints_what_it_shows(tmp_path):
    blocks = sections()
    assert len(blocks) == 4
    script = tmp_path / "page.py"
    script.write_text(f"print({MARK!r})\n".join(code for code, _ in blocks))
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", script.name],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(f"{MARK}\n") == [shown for _, shown in blocks]


def test_a_criterion_that_is_added_late_is_known_by_its_name(monkeypatch):
    with pytest.raises(UsageError, match="unknown criterion 'mine'"):
        parse_criterion("mine")
    monkeypatch.setitem(WEIGHT_CRITERIA, "mine", lambda w: w.down.norm)
    assert parse_criterion("reversed:mine").parts[0].kind == "plain"
    with pytest.raises(UsageError, match=r"did you mean 'mine'.*allowed are .*, mine, "):
        parse_criterion("mime")
