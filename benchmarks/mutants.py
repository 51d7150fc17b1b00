"""Would the tests notice? Criteria, selection and statistics with one thing wrong at a time.

    pip install 'glulens[bench]'
    python benchmarks/mutants.py [--sample 80] [--module prune/criteria.py] [--seed 0]

Cosmic Ray makes the mutants (another operator, another number, a loop that never runs ...); each is
given to the tests of its module, in a process forked from one that has imported the libraries, and
never written to disk. A mutant is *killed* when a test fails, and a *timeout* when they take more
than 20 seconds and ten times what they cost without it. Left out are mutants that differ from the
code or from another mutant in annotations alone, and those that put an operator of bits where one
of arithmetic stood: with floating-point numbers that fails wherever it is run, and any test would
see it. Of each module `--sample` mutants are drawn (0: all). Survivors are printed with the line
that was changed; docs/mutants.md judges them.

Whatever the tests leave behind (numba's cache, temporary folders) is kept away from the repository:
numba's cache knows a function by its file and its instructions, not by its constants nor by what it
calls, so that a mutant of compiled code must neither read nor write the cache of the code as it is.
hypothesis tries the same examples every time: a mutant is not killed by luck or by what killed the
one before.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS = {
    "prune/criteria.py": ["test_criteria.py"],
    "prune/selection.py": ["test_selection.py", "test_budget.py", "test_cutting.py"],
    "probes/contrasts.py": ["test_contrasts.py"],
    "interp/resamples.py": ["test_localisation.py"],
    "interp/sweep_stats.py": ["test_sweep_analysis.py"],
    "interp/localisation.py": ["test_localisation.py", "test_verdict.py"],
    "interp/verdict.py": ["test_verdict.py"],
}
"""Modules and the tests that hold them."""
LEFT_OUT = "not smollm2 and not exact_ablation and not uniform_under and not chance_over"
"""Tests on the large model and long simulations: what they hold, small tests must notice, too."""
LIBRARIES = (
    "torch", "numpy", "scipy.stats", "polars", "pytest", "hypothesis", "sklearn", "numba",
    "transformers",
)  # fmt: skip
PACKAGE = "glulens"
ROUND = 0.02
"""Seconds between two looks. Limits are counted in looks: a process that is stopped spends none."""
MEMORY = 6 << 30
"""Bytes that the tests of a mutant may take; beyond, they fail and the machine goes on."""
TRIVIAL = re.compile(r"BinaryOperator_(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(.Shift|Bit(Or|And|Xor))$")
"""Operators of bits for operators of arithmetic."""


@dataclass(frozen=True)
class Mutant:
    module: str
    operator: str
    occurrence: int
    source: str


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source than the file's."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def exec_module(self, module: Any) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def mutants(module: str) -> Iterator[Mutant]:
    """All mutants of a module that differ in what they do, not in annotations alone."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    path = REPOSITORY / module
    code = path.read_text(encoding="utf-8")
    known = {_meaning(code), None}
    tree = get_ast_from_path(path)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or TRIVIAL.search(name):
            continue
        operator = kind()
        positions = [at for node in ast_nodes(tree) for at in operator.mutation_positions(node)]
        for occurrence in range(len(positions)):
            source = mutate_code(code, operator, occurrence)
            meaning = None if source is None else _meaning(source)
            if source is not None and meaning not in known:
                known.add(meaning)
                yield Mutant(module, name.removeprefix("core/"), occurrence, source)


def _meaning(source: str) -> str | None:
    """What is left of a source without annotations; None if it is none."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def attempt(module: str, source: str, scratch: Path) -> int:
    """Start the tests of a module with that source, in a process of their own; its id.

    Args:
        scratch: a folder that all attempts share. What only this one needs is in a folder there by
            the number of its process.
    """
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        own = scratch / str(os.getpid())
        own.mkdir()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        name = f"{PACKAGE}." + module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Mutated(name, REPOSITORY / module, source))
        import numba
        import pytest

        cache = str((own if "numba" in source else scratch) / "numba")
        os.environ["NUMBA_CACHE_DIR"] = cache  # for processes that tests start
        numba.config.CACHE_DIR = cache  # pyright: ignore[reportAttributeAccessIssue]
        os.chdir(REPOSITORY)
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={own / 'tests'}"]
        options += ["-k", LEFT_OUT, "--hypothesis-profile=mutants"]
        code = pytest.main([*options, *(f"tests/{test}" for test in TESTS[module])])
        os._exit(int(code))
    except BaseException:
        os._exit(99)


def judged(
    work: Sequence[Mutant], limits: dict[str, float], jobs: int, scratch: Path
) -> Iterator[tuple[int, str]]:
    """Numbers of mutants and what became of them: killed, timeout, survived."""
    waiting, running = list(enumerate(work)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, mutant = waiting.pop(0)
            child = attempt(mutant.module, mutant.source, scratch)
            running[child] = number, limits[mutant.module]
        time.sleep(ROUND)
        for child, (number, left) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                yield number, "killed" if os.waitstatus_to_exitcode(status) else "survived"
            elif left > 0:
                running[child] = number, left - ROUND
                continue
            else:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield number, "timeout"
            del running[child]
            shutil.rmtree(scratch / str(child), ignore_errors=True)


def first_change(mutant: Mutant) -> tuple[int, str, str]:
    """Number of the first line that differs, and what it was and is."""
    old = (REPOSITORY / mutant.module).read_text(encoding="utf-8").splitlines()
    new = mutant.source.splitlines()
    at = next(k for k, line in enumerate(old) if k >= len(new) or line != new[k])
    gone = len(new) < len(old) or not new[at].strip()
    return at + 1, old[at].strip(), "(gone)" if gone else new[at].strip()


def run(asked: argparse.Namespace, scratch: Path) -> tuple[list[Mutant], dict[int, str]]:
    """The mutants that were drawn, and by number what became of each."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(scratch / "hypothesis")
    sys.path.insert(0, str(REPOSITORY / "tests"))
    for name in LIBRARIES:
        importlib.import_module(name)
    from hypothesis import Phase, settings

    settings.register_profile(
        "mutants",
        deadline=None,
        derandomize=True,
        phases=(Phase.explicit, Phase.generate),  # smaller examples would tell nothing more
    )
    work: list[Mutant] = []
    limits: dict[str, float] = {}
    for module in asked.module or TESTS:
        intact = attempt(module, (REPOSITORY / module).read_text(encoding="utf-8"), scratch)
        found = list(mutants(module))
        _, status, usage = os.wait4(intact, 0)
        if status:
            sys.exit(f"{module}: its tests fail without a mutant")
        took = usage.ru_utime + usage.ru_stime
        limits[module] = 20 + 10 * took
        drawn = found
        if asked.sample and len(found) > asked.sample:
            drawn = random.Random(asked.seed).sample(found, asked.sample)
        print(f"{module}: {len(found)} mutants, {len(drawn)} tried, tests cost {took:.0f} s",
              flush=True)  # fmt: skip
        work += drawn
    became: dict[int, str] = {}
    for number, what in judged(work, limits, asked.jobs, scratch):
        became[number] = what
        print(f"{len(became)} of {len(work)}", end="\r", file=sys.stderr)
    return work, became


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", action="append", choices=TESTS, help="only this one")
    parser.add_argument("--sample", type=int, default=80, help="mutants of each; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as scratch:
        work, became = run(asked, Path(scratch))
    counts: dict[str, Counter[str]] = {}
    for number, mutant in enumerate(work):
        counts.setdefault(mutant.module, Counter())[became[number]] += 1
    print(f"\n{'module':<26}{'tried':>8}{'killed':>8}{'timeout':>9}{'survived':>10}{'score':>8}")
    for module, count in counts.items():
        tried = count.total()
        score = 1 - count["survived"] / tried
        print(f"{module:<26}{tried:>8}{count['killed']:>8}{count['timeout']:>9}"
              f"{count['survived']:>10}{score:>8.1%}")  # fmt: skip
    print("\nSurvivors")
    for number, mutant in enumerate(work):
        if became[number] == "survived":
            line, was, now = first_change(mutant)
            print(f"{mutant.module}:{line} {mutant.operator}: {was}  ->  {now}")


if __name__ == "__main__":
    main()
