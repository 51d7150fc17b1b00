"""How time and memory grow with the model and the text, and what that says of larger models.

    .venv/bin/python benchmarks/growth.py [--quick] [--output benchmarks/growth.md]

`make bench` runs it too. Every size runs in a process of its own: peak memory is what is resident
at its highest, above what was there before the work and its input. Sizes and what they stand for
are in `growth_tasks.py`.

**Exponent.** Of cost = a * size^b, least squares of log cost on log size, with the standard error
of the slope. **Constants.** cost = fixed + rate * size, both at least 0, least squares of the
relative errors. **Projection.** The second line at a larger model's size: on paper, on this very
machine, and as if its memory held the weights. Sizes that lie within what was measured are
interpolations, and are marked.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cost import MODELS, Model
from peers_rows import Row, table

TARGETS = ("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b")
OUTPUT = Path(__file__).with_name("growth.md")


@dataclass(frozen=True)
class Task:
    """Something whose cost grows.

    Attributes:
        name: in the table.
        size: what the sizes count.
        sizes: from small to large, what `growth_tasks` is asked for.
        quick: the same for a quick run.
        of: that size of a model; None where it is no matter of the model.
        figures: which figures of the measurement are shown, with their units.
        constant: what does not change meanwhile.
    """

    name: str
    size: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    of: Callable[[Model], float] | None
    figures: dict[str, str]
    constant: str


@dataclass(frozen=True)
class Fit:
    """The exponent with its standard error, and the line's constants."""

    exponent: float
    error: float
    fixed: float
    rate: float

    def at(self, size: float) -> float:
        """The line's value."""
        return self.fixed + self.rate * size


def neurons(model: Model) -> float:
    return model.layers * model.width


def mlp_weights(model: Model) -> float:
    return model.layers * model.mlp


def blocks(model: Model) -> float:
    return model.layers * (model.mlp + model.attention)


BOTH = {"seconds": "s", "bytes": "B"}
TASKS = {
    "scoring": Task(
        "scoring, all weight criteria", "MLP weights", (1, 2, 4, 8, 16), (1, 2, 3, 4), mlp_weights,
        {"seconds": "s"}, "bfloat16, layers of 8,192 neurons, hidden size 2,048",
    ),
    "scores": Task(
        "scoring, what is kept", "neurons", (1, 2, 4, 8, 16), (1, 2, 3, 4), neurons,
        {"bytes": "B"}, "beyond the weights themselves",
    ),
    "texts": Task(
        "recording, more text", "tokens", (12, 25, 50, 100), (1, 2, 3, 4), None,
        BOTH, "SmolLM2-135M-Instruct, float32, TruthfulQA's answers, beginnings shared",
    ),
    "weights": Task(
        "recording, larger models", "weights of the blocks", (256, 512, 1024, 1536),
        (32, 48, 64, 96), blocks,
        {"seconds": "s"}, "4,096 tokens in float32, nothing shared, random Llamas of 4 layers",
    ),
    "kept": Task(
        "recording, what is kept", "neurons", (1, 2, 4, 8, 16), (1, 2, 3, 4), neurons,
        {"bytes": "B"}, "512 tokens, layers of 8,192 neurons, hidden size 64",
    ),
    "hypothesis": Task(
        "hypothesis statistics, one property and score", "neurons", (1, 2, 4, 8, 16), (1, 2, 3, 4),
        neurons, BOTH, "817 questions, 6 criteria, 2,000 permutations, 500 bootstraps; its "
        "contrasts are among the memory",
    ),
    "calibration": Task(
        "calibration, one halving of eight", "neurons", (1, 2, 4, 8), (1, 2, 3, 4), neurons,
        BOTH, "817 questions, 85 orders, 999 permutations, 200 bootstraps; its contrasts are among "
        "the memory",
    ),
    "browser": Task(
        "browser", "neurons", (46_080, 131_072, 458_752, 2_293_760), (200, 400, 800, 1600),
        neurons,
        {"first paint": "s of CPU", "sort": "s of CPU", "filter": "s of CPU", "bytes": "B"},
        "20 columns, ten shown",
    ),
}  # fmt: skip
SAME = {"scores": "scoring"}
"""Tasks whose figures another's processes give."""


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit:
    """Fit both; costs of 0, which are below what can be told, count as one unit of resolution."""
    from scipy.optimize import nnls

    size, cost = np.array(sizes, float), np.maximum(np.array(costs, float), 1e-9)
    x, y = np.log(size), np.log(cost)
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - slope * centred
    error = math.sqrt(float(rest @ rest) / max(len(x) - 2, 1) / float(centred @ centred))
    scaled = np.stack([1 / cost, size / size.max() / cost], 1)
    (fixed, rate), _ = nnls(scaled, np.ones(len(cost)))
    return Fit(slope, error, float(fixed), float(rate / size.max()))


def measure(task: str, size: int, quick: bool) -> dict[str, Any]:
    """One size, in a process of its own."""
    if task == "browser":
        return of_browser(size, quick)
    if quick and (task, size) != ("scoring", 1):  # one goes the usual way, to see that it works
        import growth_tasks

        return growth_tasks.TASKS[task](size, quick)
    script = Path(__file__).with_name("growth_tasks.py")
    command = [sys.executable, str(script), task, str(size), *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise RuntimeError(f"{task} at {size}: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def of_browser(size: int, quick: bool) -> dict[str, Any]:
    """The browser's figures, by `browser.py`."""
    import browser
    from peers_browser import OURS
    from peers_browser import measure as of_table

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        browser.make(run, size)
        found = of_table(OURS, run, 1 if quick else 5)
    return {**found, "size": size, "bytes": found["peak"]}


def show(value: float, unit: str) -> str:
    """A figure with its unit."""
    if unit == "B":
        for least, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if value >= least:
                return f"{value / least:,.3g} {name}"
        return f"{value:,.3g} B"
    tail = unit.removeprefix("s")
    if value >= 7200:
        return f"{value / 3600:,.1f} h{tail}"
    if value >= 120:
        return f"{value / 60:,.1f} min{tail}"
    return f"{value:,.3g} s{tail}" if value >= 1 else f"{1e3 * value:,.3g} ms{tail}"


def of_one(rate: float, unit: str) -> str:
    """What one more of a size costs."""
    if unit == "B":
        return f"{rate:,.3g} B"
    return f"{1e9 * rate:,.3g} n{unit}" if rate < 1e-6 else f"{1e6 * rate:,.3g} u{unit}"


class Tables:
    """The measured figures, the fits and the projections, as they come in."""

    def __init__(self) -> None:
        self.measured: list[list[str]] = []
        self.fits: list[list[str]] = []
        self.projected: list[list[str]] = []

    def add(self, task: Task, found: Sequence[dict[str, Any]]) -> None:
        """One task at all its sizes."""
        sizes = [one["size"] for one in found]
        for figure, unit in task.figures.items():
            costs = [one[figure] for one in found]
            name = f"{task.name}: {'peak memory' if figure == 'bytes' else figure}"
            each = [f"{s:,}: {show(c, unit)}" for s, c in zip(sizes, costs, strict=True)]
            self.measured.append([name, task.size, "; ".join(each)])
            line = fit(sizes, costs)
            self.fits.append(
                [
                    name, f"{line.exponent:.2f} +- {line.error:.2f}", show(line.fixed, unit),
                    of_one(line.rate, unit), task.constant,
                ]
            )  # fmt: skip
            if task.of is None:
                continue
            cells = []
            for target in TARGETS:
                size = task.of(MODELS[target])
                inside = min(sizes) <= size <= max(sizes)
                cells.append(f"{show(line.at(size), unit)}{' *' * inside}")
            self.projected.append([name, *cells])

    def text(self, failed: Sequence[str], quick: bool) -> str:
        """The page."""
        shapes = [
            [name, *(f"{n:,.0f}" for n in (m.layers, m.hidden, m.width, neurons(m), blocks(m)))]
            for name in TARGETS
            for m in (MODELS[name],)
        ]
        title = "# Growth" + (" (a quick run at tiny sizes: figures mean nothing)" * quick)
        parts = [
            title,
            f"Written by `benchmarks/growth.py`, which `make bench` runs, on {os.cpu_count()} "
            "cores; what it ran on stands in results.md. How to read it: "
            "[docs/benchmarks.md](../docs/benchmarks.md).",
            "## Measured",
            table(self.measured, ("what", "size in", "at each size")),
            "## Fitted",
            "cost = a x size^exponent (with its standard error), and the line cost = fixed + rate "
            "x size.",
            table(self.fits, ("what", "exponent", "fixed", "rate, for one more", "held constant")),
            "## Projected",
            "On paper: the line at the size of a larger model, on this machine and as if it held "
            "the weights. * within the sizes measured.",
            table(shapes, ("model", "layers", "hidden", "neurons a layer", "neurons",
                           "weights of the blocks")),
            table(self.projected, ("what", *TARGETS)),
            *(f"Not measured: {why}" for why in failed),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"


def rows(quick: bool, output: Path) -> list[Row]:
    """Measure everything and write the page; a row that says which tasks failed, if any did."""
    from bench import BROKEN, write

    begun = time.perf_counter()
    tables, failed, done = Tables(), [], {}
    sought: list[str] = []
    for name, task in TASKS.items():
        sought.append(name)
        sizes = task.quick if quick else task.sizes
        try:
            source = SAME.get(name, name)
            if source not in done:
                done[source] = [measure(source, size, quick) for size in sizes]
            found = done[source]
            if name in SAME:
                found = [{**one, "size": one["neurons"]} for one in found]
            tables.add(task, found)
        except Exception as error:  # whatever it is, the other tasks go on
            failed.append(f"{task.name}: {error or type(error).__name__}")
        # Kept as it comes in: a run that is stopped leaves what it had.
        later = [f"{one.name}: it was not reached" for one in [*TASKS.values()][len(sought) :]]
        write(output, tables.text([*failed, *later], quick))
        print(f"growth: {name}, {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    return [Row(f"growth {BROKEN}", failed="; ".join(failed))] if failed else []


if __name__ == "__main__":
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    read.add_argument("--output", type=Path, default=OUTPUT)
    given = read.parse_args()
    if given.quick and given.output == OUTPUT:
        read.error("--quick does not write the committed page: give --output")
    raise SystemExit(1 if rows(given.quick, given.output) else 0)
