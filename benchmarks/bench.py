"""Everything beside its peers and its plain limit, in one table.

    .venv/bin/python benchmarks/bench.py [--only SECTION ...] [--quick] [--output FILE]

`make bench` runs all of it and writes `benchmarks/results.md` and `benchmarks/growth.md`. Sections
run one after the other, each in a process of its own under a time limit; one that fails leaves a
row that says why, and the others go on. No section begins or goes on after 30 minutes.

    scoring    all weight criteria beside optipfair's, and a sum of each matrix
    pruning    a checkpoint of 2 GB beside optipfair (load, prune, save) and `cp -r`
    recording  every neuron's activations beside TransformerLens, nnsight and a bare forward
    choices    TruthfulQA MC2 and MMLU beside lm-evaluation-harness' `hf` and the same forwards
    browser    the table beside textual-fastdatatable and Textual's DataTable
    growth     time and memory at growing sizes, and what they say of larger models (growth.py)
    absolute   on a CUDA device alone: times at Llama-3.2-1B's shape in bfloat16

With `--only` or `--quick` (tiny sizes: does it run at all?) the committed files are left alone;
the table is printed, and written where `--output` says. docs/benchmarks.md says how it is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from peers_rows import HEADER, Row, cells, dump, load, table

ROOT = Path(__file__).resolve().parents[1]
RESULTS, GROWTH = ROOT / "benchmarks" / "results.md", "growth.md"
SECTIONS = {
    # module, function, minutes at most
    "scoring": ("peers_weights", "scoring", 4),
    "pruning": ("peers_weights", "pruning", 7),
    "recording": ("peers_recording", "rows", 9),
    "choices": ("peers_choices", "rows", 12),
    "browser": ("peers_browser", "rows", 6),
    "growth": ("growth", "rows", 9),
    "absolute": ("peers_absolute", "rows", 8),
}
MINUTES = 30.0
BROKEN = "(the whole section)"
"""Ends the name of a row that stands for work that failed."""
PACKAGES = (
    "torch", "transformers", "numpy", "numba", "polars", "textual",
    "optipfair", "transformer-lens", "nnsight", "lm_eval",
)  # fmt: skip


def run_section(name: str, quick: bool, growth: Path) -> list[Row]:
    """Measure one section in this process."""
    module, function, _ = SECTIONS[name]
    work = getattr(importlib.import_module(module), function)
    return work(quick, growth) if name == "growth" else work(quick)


def measure(
    name: str, quick: bool, growth: Path, folder: Path, seconds: float
) -> tuple[list[Row], float]:
    """Measure one section in a process of its own: its rows, and the seconds that it took."""
    kept, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, __file__, "--section", name, "--rows", str(kept)]
    command += ["--growth", str(growth), *(["--quick"] if quick else [])]
    # What a section that is stopped leaves behind goes with the folder.
    settings = os.environ | {"TOKENIZERS_PARALLELISM": "false", "TMPDIR": str(folder)}
    if name != "absolute":  # peers and ours stand beside each other on the CPU
        settings["CUDA_VISIBLE_DEVICES"] = ""
    begun = time.perf_counter()
    why = ""
    with log.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=settings, start_new_session=True
        )
        try:
            child.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            why = f"it was stopped after {seconds / 60:.1f} minutes"
        finally:
            if child.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # its own children with it
                child.wait()
    taken = time.perf_counter() - begun
    if not why and child.returncode == 0 and kept.exists():
        return load(kept), taken
    said = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    print("\n".join(said[-20:]), file=sys.stderr)
    why = why or (said[-1] if said else f"it ended with status {child.returncode}")
    return [Row(f"{name} {BROKEN}", failed=why[:300])], taken


def head() -> list[tuple[str, str]]:
    """What it ran on, and with what."""
    found, names = {}, (*PACKAGES, "textual-fastdatatable")
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    with contextlib.suppress(Exception):  # where it cannot be installed its rows say so
        from peers_browser import version

        found["textual-fastdatatable"] = version().removeprefix("textual-fastdatatable ")
    return [
        ("processor", processor()),
        ("cores", f"{cores()}"),
        ("memory", memory()),
        ("system", system()),
        ("GPU", gpu()),
        ("Python", platform.python_version()),
        *((name, found.get(name, "not installed")) for name in names),
        ("glulens", commit()),
    ]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def memory() -> str:
    """Of the machine."""
    with contextlib.suppress(OSError):
        return f"{1024 * int(Path('/proc/meminfo').read_text().split()[1]) / 1e9:.0f} GB"
    return "unknown"


def system() -> str:
    """The distribution and its kernel."""
    name = platform.system()
    with contextlib.suppress(OSError):
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    return f"{name}, {platform.machine()}, kernel {platform.release().partition('-')[0]}"


def said(*command: str) -> str:
    """What a command prints; nothing where it fails or is not there."""
    with contextlib.suppress(OSError):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""


def gpu() -> str:
    """The names of its GPUs."""
    names = said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    return ", ".join(names) or "none"


def commit() -> str:
    """Which state of the repository this is."""
    at = said("git", "rev-parse", "--short=12", "HEAD") or "unknown commit"
    written = ":!benchmarks/results.md", ":!benchmarks/growth.md"
    changed = said("git", "status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return at + (" with changes that are not committed" if changed else "")


def page(
    rows: Sequence[Row], about: Sequence[tuple[str, str]], taken: dict[str, float], quick: bool
) -> str:
    """The whole results file."""
    title = "# Side by side" + (" (a quick run at tiny sizes: figures mean nothing)" * quick)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in taken.items())
    return "\n\n".join(
        (
            title,
            "Written by `make bench`, not by hand. What is measured and how: "
            "[docs/benchmarks.md](../docs/benchmarks.md). Times are medians over rounds, ratios "
            "medians of the ratios within one round with the least and the largest; peak memory is "
            "above what was there before the work.",
            table([cells(row) for row in rows], HEADER),
            f"Sections: {times}.",
            "## Machine and versions",
            table(about, ("", "")),
        )
    ) + "\n"  # fmt: skip


def write(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def chosen(only: Sequence[str] | None) -> Iterator[str]:
    """Sections in order."""
    return (name for name in SECTIONS if not only or name in only)


def main() -> int:
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION",
                      help=", ".join(SECTIONS))  # fmt: skip
    read.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    read.add_argument("--output", type=Path, help="where the table goes, growth.md beside it")
    read.add_argument("--minutes", type=float, default=MINUTES, help="at most, for everything")
    read.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    read.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    read.add_argument("--growth", type=Path, help=argparse.SUPPRESS)
    given = read.parse_args()
    if given.section:
        dump(run_section(given.section, given.quick, given.growth), given.rows)
        return 0
    begun, date = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    load_before = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    output = given.output or (None if given.only or given.quick else RESULTS)
    rows: list[Row] = []
    taken: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="glulens-bench-") as scratch:
        folder = Path(scratch)
        growth = output.with_name(GROWTH) if output else folder / GROWTH
        for name in chosen(given.only):
            left = 60 * given.minutes - (time.perf_counter() - begun)
            if left < 1:
                why = f"{given.minutes:g} minutes were over before it began"
                rows.append(Row(f"{name} {BROKEN}", failed=why))
                continue
            print(f"{name} ...", file=sys.stderr, flush=True)
            # A quick run asks whether things work, however busy the machine is.
            most = left if given.quick else min(60 * SECTIONS[name][2], left)
            found, taken[name] = measure(name, given.quick, growth, folder, most)
            rows += found
            print(f"{name}: {taken[name]:.0f} s", file=sys.stderr, flush=True)
        if output is None and growth.exists():
            print(growth.read_text(encoding="utf-8"))
    about = [
        ("date", date.strftime("%Y-%m-%d %H:%M UTC")),
        ("load averages at the start", load_before),
        ("wall time", f"{(time.perf_counter() - begun) / 60:.1f} minutes"),
        *head(),
    ]
    text = page(rows, about, taken, given.quick)
    print(text)
    if output:
        write(output, text)
    # A peer that cannot be installed or a GPU that is not there is told, and is no failure.
    broken = [row for row in rows if row.failed and row.what.endswith(BROKEN)]
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
