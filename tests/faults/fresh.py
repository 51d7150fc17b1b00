"""Runs a suite as its command does."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import REPOSITORY


def run(module: str, *words: str) -> tuple[int, str]:
    """A module in a fresh process, whose forks no other test's threads disturb; its stdout."""
    paths = os.pathsep.join([str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout or done.stderr[-3000:]
