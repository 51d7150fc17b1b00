"""Hostile inputs to every parser; `make fuzz` is the same at length."""

from __future__ import annotations

import re
import signal

import pytest
from faults import fuzz
from faults.fresh import run
from faults.parsers import Parser


def cases(said: str) -> dict[str, int]:
    """Cases by parser, as the table says; `all` among them."""
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \| [\d,]+ \| [\d,]+ \|", said, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in rows}


def never(_: object) -> None:
    while True:
        pass


def greedy(_: object) -> object:
    return bytearray(2**62)


def torn(case: object) -> object:
    if "(" in str(case):
        raise IndexError("a bug")
    return case


@pytest.mark.parametrize(
    ("read", "place"),
    [(never, "TooLong in"), (greedy, "MemoryError in"), (torn, "IndexError in")],
)
def test_the_fuzzer_knows_a_crash_when_it_sees_one(read, place):
    before = signal.signal(signal.SIGPROF, fuzz._too_long)
    try:
        parser = Parser("made for this", 10, lambda draw: "a(b", read)
        assert fuzz.try_case(parser, "a(b") is None
        assert fuzz.where(fuzz._last()).startswith(place)
        if read is torn:
            assert fuzz.smaller(parser, "a(b" * 50, fuzz.where(fuzz._last())) == "("
            assert fuzz.try_case(parser, "ab") == "read"
    finally:
        signal.signal(signal.SIGPROF, before)


def test_a_few_thousand_cases_do_no_harm():
    code, said = run("faults.fuzz", "--cases", "8000")
    assert code == 0, said
    assert cases(said)["all"] >= 8000


@pytest.mark.slow  # ten minutes of CPU
def test_a_million_cases_do_no_harm():
    code, said = run("faults.fuzz")
    assert code == 0, said
    found = cases(said)
    assert found.pop("all") >= 1_000_000
    assert min(found.values()) >= 10_000, found
