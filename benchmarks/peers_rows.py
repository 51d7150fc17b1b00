"""Rows of the table of `bench.py`: how contestants are timed, what is kept, how it is shown."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HEADER = (
    "what", "peer", "ours", "peer's", "ours is x times as fast [range]", "peak memory, ours",
    "peak memory, peer's", "plain limit", "limit's", "ours takes x times the limit's time [range]",
    "goals",
)  # fmt: skip
MET = {True: "met", False: "missed"}
Way = Callable[[int], Any]
"""Does a round's work, given its number; round 0 is not timed."""


@dataclass
class Side:
    """One contestant.

    Attributes:
        name: who.
        costs: seconds for one unit of the row, by round.
        peak: bytes at its highest, above what was there before; None where it cannot be told.
    """

    name: str
    costs: list[float]
    peak: float | None = None


@dataclass
class Row:
    """One line: ours beside a peer, a plain limit, or both, measured in the same rounds.

    Attributes:
        what: the work.
        unit: what the costs are of: "" for the whole work, or answers, items and the like.
        goals: in words, and whether they are met.
        note: what belongs beside the figures.
        failed: why there are none.
    """

    what: str
    unit: str = ""
    ours: Side | None = None
    peer: Side | None = None
    limit: Side | None = None
    goals: list[tuple[str, bool]] = field(default_factory=list)
    note: str = ""
    failed: str = ""

    def ratios(self) -> list[float]:
        """How many times as fast ours is, by round; empty without a peer."""
        return over(self.peer, self.ours)

    def over_limit(self) -> list[float]:
        """How many times the limit's cost ours is, by round; empty without a limit."""
        return over(self.ours, self.limit)

    def faster(self, least: float) -> Row:
        """With a goal for the ratio to the peer."""
        found = median(self.ratios())
        self.goals.append((f"at least {least:g} x: {found:.2f}", found >= least))
        return self

    def within(self, most: float) -> Row:
        """With a goal for the ratio to the limit."""
        found = median(self.over_limit())
        self.goals.append((f"at most {most:g} x the limit: {found:.2f}", found <= most))
        return self

    def below(self, what: str, found: float, most: float) -> Row:
        """With a goal for any other figure."""
        self.goals.append((f"{what} at most {most:g}: {found:.3g}", found <= most))
        return self


def over(one: Side | None, other: Side | None) -> list[float]:
    """Costs of one over those of the other, round by round."""
    if one is None or other is None:
        return []
    return [a / b for a, b in zip(one.costs, other.costs, strict=True)]


def resident(key: str = "VmRSS") -> int | None:
    """Bytes in memory, now (`VmRSS`) or at most (`VmHWM`); None where the kernel does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(text.split(f"{key}:")[1].split()[0])


def peak_of(work: Callable[[], Any]) -> tuple[int | None, Any]:
    """Do it; bytes that it held at most above what was there before, and what it gave."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # the highest is from now on
    except (OSError, AttributeError):
        before = None
    found = work()
    after = resident("VmHWM")
    return (None if before is None or after is None else max(0, after - before)), found


def contest(
    ways: Mapping[str, Way], rounds: int, *, settle: Callable[[], Any] = lambda: None
) -> tuple[dict[str, list[float]], dict[str, int | None], dict[str, Any]]:
    """Everyone does every round; who begins changes from round to round.

    Round 0 warms up, takes the memory and does not count.

    Args:
        settle: waits for the device before a clock is read.

    Returns:
        Seconds by name and round, peak bytes by name, and what each gave in round 0.
    """
    names = list(ways)
    peaks: dict[str, int | None] = {}
    given: dict[str, Any] = {}
    for name in names:
        peaks[name], given[name] = peak_of(lambda name=name: ways[name](0))
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(1, rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            settle()
            begun = time.perf_counter()
            ways[name](number)
            settle()
            taken[name].append(time.perf_counter() - begun)
    return taken, peaks, given


def data_folder() -> Any:
    """The official data: GLULENS_TEST_DATA, `shared/data` beside the checkout, or the hub."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = Path(os.environ.get("GLULENS_TEST_DATA", beside))
    return found if found.is_dir() else "hub"


def dump(rows: Sequence[Row], path: Path) -> None:
    """Write rows for the process that asked for them."""
    path.write_text(json.dumps([asdict(row) for row in rows]))


def load(path: Path) -> list[Row]:
    """Rows that `dump` wrote."""
    found = []
    for raw in json.loads(path.read_text()):
        sides = {key: raw.pop(key) for key in ("ours", "peer", "limit")}
        made = {key: side and Side(**side) for key, side in sides.items()}
        goals = [(str(what), bool(met)) for what, met in raw.pop("goals")]
        found.append(Row(**raw, **made, goals=goals))
    return found


def cost_of(side: Side | None, unit: str) -> str:
    """The median cost, as seconds or as a rate."""
    if side is None:
        return "-"
    middle = median(side.costs)
    if unit:
        return f"{1 / middle:,.1f} {unit}/s"
    return f"{middle:,.2f} s" if middle >= 1 else f"{1e3 * middle:,.1f} ms"


def size_of(side: Side | None) -> str:
    """Its peak memory."""
    if side is None or side.peak is None:
        return "-"
    return f"{side.peak / 1e6:,.0f} MB" if side.peak >= 1e7 else f"{side.peak / 1e6:,.1f} MB"


def spread(ratios: Sequence[float]) -> str:
    """The median ratio and, of several, the range."""
    if not ratios:
        return "-"
    middle = f"{median(ratios):.2f}"
    return f"{middle} [{min(ratios):.2f}, {max(ratios):.2f}]" if len(ratios) > 1 else middle


def cells(row: Row) -> list[str]:
    """One row in words, one a column of `HEADER`."""
    if row.failed:
        return [row.what, f"not measured: {row.failed}", *["-"] * (len(HEADER) - 2)]
    goals = "; ".join(f"{what}, {MET[met]}" for what, met in row.goals)
    return [
        row.what,
        row.peer.name if row.peer else "-",
        cost_of(row.ours, row.unit),
        cost_of(row.peer, row.unit),
        spread(row.ratios()),
        size_of(row.ours),
        size_of(row.peer),
        row.limit.name if row.limit else "-",
        cost_of(row.limit, row.unit),
        spread(row.over_limit()),
        ". ".join(filter(None, (goals, row.note))) or "-",
    ]


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """A Markdown table; what would break a cell is taken out."""
    lines = [header, ["---"] * len(header), *rows]
    clean = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in clean)
