"""The real program in a real terminal, driven as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browsing import dense, run_of

from glulens.prune.selection import NeuronSet, cut_count
from glulens.rundir import open_run

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
PATIENCE = 30  # seconds until something must be on the screen


class Terminal:
    """A shell in a tmux session of its own server."""

    def __init__(self, folder: Path, columns: int, lines: int, **environment: str) -> None:
        self._socket = folder / "tmux"
        self._call("-f", "/dev/null", "new-session", "-d", "-s", "t", "-x", str(columns), "-y",
                   str(lines), "-c", str(folder), "sh", environment=environment)  # fmt: skip

    def _call(self, *words: str, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-S", str(self._socket), *words],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PS1": "$ ", **(environment or {})},
        )
        return done.stdout

    def type(self, text: str) -> None:
        self._call("send-keys", "-t", "t", "-l", text)

    def press(self, *keys: str) -> None:
        for key in keys:
            self._call("send-keys", "-t", "t", key)

    def screen(self) -> str:
        return self._call("capture-pane", "-t", "t", "-p")

    def wait(self, *texts: str) -> str:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            found = self.screen()
            if all(text in found for text in texts):
                return found
            time.sleep(0.05)
        raise AssertionError(f"{texts} did not come up:\n{self.screen()}")

    def close(self) -> None:
        subprocess.run(["tmux", "-S", str(self._socket), "kill-server"], capture_output=True)


@pytest.fixture
def terminals(tmp_path) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def browse(terminals, folder: Path, words: str, size=(120, 32), **environment: str) -> Terminal:
    terminal = Terminal(folder, *size, **environment)
    terminals.append(terminal)
    # The package is where the tests found it, whatever folder the shell stands in.
    terminal.type(f"{sys.executable} -m glulens browse {words}")
    terminal.press("Enter")
    return terminal


def a_session(terminals, folder: Path, run: str) -> None:
    """Rank, filter, mark, open a neuron, move the slider, write the set, leave; the screen and the
    files must say what the table of the run says."""
    found = open_run(folder / run)
    table = found.neurons()
    ppm, layer = table["ppm"].to_numpy(), table["layer"].to_numpy()
    n, layers = len(ppm), int(layer.max()) + 1
    width = n // layers
    terminal = browse(terminals, folder, f"{run} --print > marked.txt; echo ended $?")
    model = found.manifest["model"]["name"]
    terminal.wait("2 rank", f"{run}: {model}", f"{n:,} of {n:,} neurons · ppm ▲")
    terminal.press("r")
    terminal.wait("ppm ▼")
    first = f"L{np.argmax(ppm) // width}.N{np.argmax(ppm) % width}"
    assert first in terminal.screen().splitlines()[3]
    limit = np.round(np.median(ppm[layer == 1]), 2)
    terminal.press("/")
    terminal.wait("where")
    terminal.type(f"layer == 1 and ppm > {limit:.2f}")
    inside = int(((layer == 1) & (ppm > np.float32(limit))).sum())
    terminal.wait(f"{inside} of {n:,}")
    terminal.press("Enter")
    terminal.wait(f"{inside} of {n:,} neurons", f"where layer == 1 and ppm > {limit:.2f}")
    terminal.press("Space")
    terminal.wait("1 marked")
    terminal.press("Enter")
    terminal.wait(f"one of {width:,} in layer 1", "attribution")
    cut = cut_count(width, 0.1)
    terminal.press("5")
    terminal.wait(f"{cut * layers:,} of {n:,} neurons")
    terminal.press("Right", "Right")
    terminal.wait(f"{(cut + 2) * layers:,} of {n:,} neurons")
    terminal.press("w")
    terminal.wait("write the neurons that leave to")
    terminal.press("C-u")
    terminal.type("lowest.json")
    terminal.press("Enter")
    terminal.wait("written to lowest.json")
    written = NeuronSet.load(folder / "lowest.json")
    assert written.counts == (cut + 2,) * layers
    lowest = np.argsort(ppm[:width], kind="stable")[: cut + 2]
    assert set(written.indices[0]) == set(lowest.tolist())
    terminal.press("q")
    terminal.wait("ended 0")
    (marked,) = (folder / "marked.txt").read_text().split()
    best = np.argmax(np.where(layer == 1, ppm, -np.inf))
    assert marked == f"L1.N{best % width}"


def test_a_session_from_the_ranking_to_a_written_set(tmp_path, terminals):
    run_of(tmp_path / "run", dense(), model={"name": "tiny", "hidden": 16})
    a_session(terminals, tmp_path, "run")


@pytest.mark.slow
def test_the_same_session_on_the_demos_run(tmp_path, terminals):
    command = [sys.executable, "-m", "glulens", "demo", "-o", "demo"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    a_session(terminals, tmp_path, "demo")


def test_what_is_typed_ahead_is_not_lost(tmp_path, terminals):
    run_of(tmp_path / "run", dense(), model={"name": "tiny", "hidden": 16})
    terminal = browse(terminals, tmp_path, "run --print > marked.txt; echo ended $?")
    terminal.wait("120 of 120 neurons")
    terminal.type("/layer == 1\r:L1.N7\r q")
    terminal.wait("ended 0")
    assert (tmp_path / "marked.txt").read_text() == "L1.N7\n"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "screen"}])
def test_a_small_terminal_with_few_colours_is_enough(tmp_path, terminals, environment):
    run_of(tmp_path / "run", dense(), model={"name": "tiny", "hidden": 16})
    terminal = browse(terminals, tmp_path, "run; echo ended $?", (80, 24), **environment)
    terminal.wait("2 rank", ">", "120 of 120 neurons")
    terminal.press("1")
    terminal.wait("1 atlas", "layer 2")
    terminal.press("q")
    screen = terminal.wait("ended 0")
    assert "atlas" not in screen  # the screen before is back


def test_without_a_terminal_one_line_and_exit_code_2(tmp_path):
    run_of(tmp_path / "run", dense())
    done = subprocess.run(
        [sys.executable, "-m", "glulens", "browse", "run"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "browse needs a terminal" in done.stderr


def test_keys_can_be_changed_in_a_file(tmp_path, terminals):
    run_of(tmp_path / "run", dense(), model={"name": "tiny", "hidden": 16})
    (tmp_path / "keys.toml").write_text('[keys]\nreverse = "g"\nquit = "k"\n')
    terminal = browse(terminals, tmp_path, "run --keys keys.toml; echo ended $?")
    terminal.wait("ppm ▲")
    terminal.press("g")
    terminal.wait("ppm ▼")
    terminal.press("k")
    terminal.wait("ended 0")
