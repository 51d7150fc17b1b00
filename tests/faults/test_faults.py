"""Faults on commands, each in a process of its own; `make faults` is the same at length."""

from __future__ import annotations

import re

import pytest
from faults.fresh import run


def injected(said: str) -> int:
    """Faults in all, as the table says."""
    found = re.search(r"^\| all \| (\d+) \|", said, re.MULTILINE)
    assert found, said
    return int(found[1])


@pytest.mark.slow  # a minute and a half; `test_found.py` has what was found, case by case
def test_a_few_faults_of_every_kind_do_no_harm():
    code, said = run("faults.suite", "--short")
    assert code == 0, said
    assert injected(said) >= 50


@pytest.mark.slow  # minutes: four hundred faults on seven commands
def test_hundreds_of_faults_do_no_harm():
    code, said = run("faults.suite")
    assert code == 0, said
    assert injected(said) >= 200
