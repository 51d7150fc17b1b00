"""The browser's table beside Textual's DataTable and textual-fastdatatable, by `browser.py`.

textual-fastdatatable wants another polars than glulens, so it lives in an environment of its own,
`.bench/fastdatatable` in the checkout, which is made here by the pip of this interpreter's venv and
whatever index is configured for it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import browser
from peers_rows import Row, Side

ROOT = Path(__file__).resolve().parents[1]
PINNED = ("textual-fastdatatable[polars]==0.19.5", "numpy")
ENVIRONMENT = ROOT / ".bench" / "fastdatatable"
OURS, FAST, TEXTUAL = "glulens", "textual-fastdatatable", "Textual's DataTable"
SMALL, LARGE = 46_080, 2_000_000
ROUNDS = 3
FIGURES = {"first paint": "first paint", "page": "page down", "sort": "sort"}


class Unavailable(Exception):
    """The peer's environment cannot be made; says why."""


def environment() -> Path:
    """The interpreter of textual-fastdatatable's environment, made where it is not there yet.

    Raises:
        Unavailable: it cannot be made.
    """
    python = ENVIRONMENT / "bin" / "python"
    mark, wanted = ENVIRONMENT / "installed", "\n".join(PINNED)
    if python.exists() and mark.exists() and mark.read_text() == wanted:
        return python
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    ENVIRONMENT.parent.mkdir(exist_ok=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", *PINNED]
    for command in ([sys.executable, "-m", "venv", str(ENVIRONMENT)], pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            what = "pip" if "pip" in command else "venv"
            raise Unavailable(f"{what} could not make its environment: {said[-1]}")
    # glulens' own readers, from this checkout, without what glulens needs to be installed.
    links = ENVIRONMENT / "links"
    links.mkdir()
    (links / "glulens").symlink_to(ROOT)
    mark.write_text(wanted)
    return python


def version() -> str:
    """Of textual-fastdatatable, and of the Textual and polars that it runs with.

    Raises:
        Unavailable: it has no environment; none is made here.
    """
    if not (ENVIRONMENT / "installed").exists():
        raise Unavailable("it was not installed")
    code = (
        "from importlib.metadata import version as v; "
        "print(v('textual-fastdatatable'), '(with textual', v('textual') + ', polars', "
        "v('polars') + ')')"
    )
    return subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), "-c", code],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def measure(name: str, run: Path, rounds: int) -> dict[str, float]:
    """Figures of one table over a run, in a process of its own."""
    python, settings = sys.executable, os.environ.copy()
    if name == FAST:
        python = str(environment())
        settings["PYTHONPATH"] = str(ENVIRONMENT / "links")
    command = [python, browser.__file__, "--one", name, str(run), "--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    if done.returncode:
        raise Unavailable((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def rows(quick: bool) -> list[Row]:
    """All rows of the section; `quick` shows tables of hundreds of neurons once."""
    small, large, rounds = (300, 600, 1) if quick else (SMALL, LARGE, ROUNDS)
    found = []
    with tempfile.TemporaryDirectory(prefix="glulens-bench-") as folder:
        for n, peers in ((small, (FAST, TEXTUAL)), (large, (FAST,))):
            path = Path(folder) / str(n)
            browser.make(path, n)
            found += compare(path, n, peers, rounds)
    what = f"{TEXTUAL} at {large:,} rows"
    why = f"it wants every cell as text and takes minutes there; see its rows at {small:,}"
    return [*found, Row(what, failed=why)]


def compare(run: Path, n: int, peers: tuple[str, ...], rounds: int) -> list[Row]:
    """Ours and the peers, in turn; one row a figure and peer, and those that are ours alone."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in (OURS, *peers)}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for name in taken:
            if name in failed:
                continue
            try:
                # One sort and one page of Textual's take as long as all rounds of the others.
                inner = 1 if name == TEXTUAL or rounds == 1 else 5
                taken[name].append(measure(name, run, inner))
            except Unavailable as error:
                if name == OURS:
                    raise
                failed[name] = str(error)
        print(f"browser, {n:,} rows: round {number + 1} of {rounds}", file=sys.stderr)
    found = []
    for figure, words in FIGURES.items():
        for peer in peers:
            what = f"browser, {n:,} rows: {words}"
            if peer in failed:
                found.append(Row(what, failed=f"{peer}: {failed[peer]}"))
                continue
            row = Row(what, "", side(OURS, taken[OURS], figure), side(peer, taken[peer], figure))
            found.append(goal(row, figure))
    what = f"browser, {n:,} rows: filter (the peers have none)"
    row = Row(what, "", side(OURS, taken[OURS], "filter"))
    memory = max(one["memory"] for one in taken[OURS]) / 1e6
    return [*found, goal(row, "filter").below("memory kept in MB", memory, 30)]


def goal(row: Row, figure: str) -> Row:
    """With the goal for a figure's CPU seconds."""
    assert row.ours is not None
    return row.below("CPU seconds", sorted(row.ours.costs)[len(row.ours.costs) // 2],
                     browser.GOALS[figure])  # fmt: skip


def side(name: str, taken: list[dict[str, Any]], figure: str) -> Side:
    return Side(name, [one[figure] for one in taken], max(one["peak"] for one in taken))
