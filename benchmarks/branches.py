"""Which share of the branches of each room the tests took, after `make coverage`.

    python benchmarks/branches.py [--goal 0.9] [coverage.json]

Reads what `coverage json` wrote. coverage's own table mixes lines and branches; here are branches
alone: of every condition both ways count. Functions that numba compiles are left out, since
coverage cannot see them run. Ends with 1 if a room is below the goal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("found", type=Path, nargs="?", default=Path("coverage.json"))
    parser.add_argument("--goal", type=float, default=0.9)
    asked = parser.parse_args()
    rooms: dict[str, Counter[str]] = {}
    for name, file in json.loads(asked.found.read_text(encoding="utf-8"))["files"].items():
        rooms.setdefault(Path(name).parts[0], Counter()).update(
            {k: v for k, v in file["summary"].items() if isinstance(v, int)}
        )
    rooms["all"] = sum(rooms.values(), Counter())
    print(f"{'room':<8}{'branches':>10}{'taken':>8}{'share':>8}{'lines':>8}{'run':>8}{'share':>8}")
    for name, n in sorted(rooms.items(), key=lambda room: room[0] == "all"):
        branches, lines = n["num_branches"], n["num_statements"]
        print(
            f"{name:<8}{branches:>10}{n['covered_branches']:>8}"
            f"{n['covered_branches'] / branches:>8.1%}"
            f"{lines:>8}{n['covered_lines']:>8}{n['covered_lines'] / lines:>8.1%}"
        )
    below = [name for name, n in rooms.items()
             if n["covered_branches"] < asked.goal * n["num_branches"]]  # fmt: skip
    if below:
        sys.exit(f"below {asked.goal:.0%} of branches: {', '.join(below)}")


if __name__ == "__main__":
    main()
