"""The newcomer's log: that what it compares can differ."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import REPOSITORY


@pytest.fixture
def newcomer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import newcomer  # pyright: ignore[reportMissingImports]

    return newcomer


SAID = """\
rho   q      neuron
+0.05 0.71   L14.N802

run directory: runs/a 2026-11-22T10:00:00
"""


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        (["rho   q      neuron", "..."], "1 lines as shown"),
        (["...", "run directory: runs/a 2020-01-01T00:00:00"], "1 lines as shown"),
        (["...", "+0.05 0.73   L14.N802", "..."], "1 lines as shown, 1 of them but for rounding"),
        (["...", "+0.06 0.71 L14.N802", "..."], "1 lines as shown, 1 of them but for rounding"),
        (["...", "+0.05 0.76   L14.N802", "..."], "differs: '+0.05 0.76 L14.N802' was not said"),
        (["...", "-0.05 0.71   L14.N802", "..."], "differs: '-0.05 0.71 L14.N802' was not said"),
        (["...", "+0.05 0.710  L14.N802", "..."], "differs: '+0.05 0.710 L14.N802' was not said"),
        (["...", "+0.05 0.71   L14.N803", "..."], "differs: '+0.05 0.71 L14.N803' was not said"),
        (["rho   p"], "differs: 'rho p' was not said but 'rho q neuron'"),
        (["rho   q      neuron"], "differs: '+0.05 0.71 L14.N802' is said besides"),
        (["...", "run directory: runs/a TIME", "rho"], "differs: 'rho' was not said"),
    ],
)
def test_output_is_compared_with_what_a_page_shows(newcomer, shown, found):
    assert newcomer.compare(shown, SAID) == found


def test_commands_are_read_out_of_a_page(newcomer):
    page = "# A\n\n```console\n$ glulens runs\nnone\n```\n\n```python\nimport glulens\n```\n"
    first, second = newcomer.steps("README.md", page)
    assert (first.written, first.shown) == ("glulens runs", ["none"])
    assert second.written.startswith("python - <<'E'\nimport glulens")
