"""Would the tests notice? Criteria, selection and statistics with one thing wrong at a time.

    pip install 'glulens[bench]'
    python benchmarks/mutants.py [--sample 80] [--module prune/criteria.py] [--seed 0]

Cosmic Ray makes the mutants (another operator, another number, a loop that never runs ...); each is
given to the tests of its module, in a process forked from one that has imported the libraries, and
never written to disk. A mutant is *killed* when a test fails or takes ten times as long. Mutants
that differ in annotations alone are not counted. Of each module `--sample` mutants are drawn (0:
all). Survivors are printed with the line that was changed; docs/mutants.md judges them.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
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
    "probes/contrasts.py": ["test_contrasts.py", "test_localisation.py"],
    "interp/resamples.py": ["test_localisation.py", "test_sweep_analysis.py"],
    "interp/sweep_stats.py": ["test_sweep_analysis.py"],
    "interp/localisation.py": ["test_localisation.py", "test_verdict.py"],
    "interp/verdict.py": ["test_verdict.py"],
}
"""Modules and the tests that hold them."""
LEFT_OUT = "not smollm2"
"""Tests on the large model take seconds each; what they hold, small ones must notice, too."""
LIBRARIES = ("torch", "numpy", "scipy.stats", "polars", "pytest", "hypothesis", "sklearn", "numba")
PACKAGE = "glulens"


@dataclass(frozen=True)
class Mutant:
    module: str
    operator: str
    occurrence: int
    line: int
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
    same = _meaning(code)
    tree = get_ast_from_path(path)
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        positions = [at for node in ast_nodes(tree) for at in operator.mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            source = mutate_code(code, operator, occurrence)
            if source is not None and _meaning(source) not in {same, None}:
                yield Mutant(module, name.removeprefix("core/"), occurrence, start[0], source)


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


def attempt(module: str, source: str) -> int:
    """Start the tests of a module with that source, in a process of their own; its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        name = f"{PACKAGE}." + module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Mutated(name, REPOSITORY / module, source))
        import pytest

        os.chdir(REPOSITORY)
        options = ["-x", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT]
        code = pytest.main([*options, *(f"tests/{test}" for test in TESTS[module])])
        os._exit(int(code))
    except BaseException:
        os._exit(99)


def judged(
    work: Sequence[Mutant], limits: dict[str, float], jobs: int
) -> Iterator[tuple[int, str]]:
    """Numbers of mutants and what became of them: killed, timeout, survived."""
    waiting, running = list(enumerate(work)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            number, mutant = waiting.pop(0)
            child = attempt(mutant.module, mutant.source)
            running[child] = number, time.monotonic() + limits[mutant.module]
        time.sleep(0.02)
        for child, (number, until) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                yield number, "killed" if os.waitstatus_to_exitcode(status) else "survived"
            elif time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                yield number, "timeout"
            else:
                continue
            del running[child]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--module", action="append", choices=TESTS, help="only this one")
    parser.add_argument("--sample", type=int, default=80, help="mutants of each; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY / "tests"))
    for name in LIBRARIES:
        importlib.import_module(name)
    work: list[Mutant] = []
    limits: dict[str, float] = {}
    for module in asked.module or TESTS:
        found = list(mutants(module))
        start = time.monotonic()
        intact = (REPOSITORY / module).read_text(encoding="utf-8")
        _, status = os.waitpid(attempt(module, intact), 0)
        if status:
            sys.exit(f"{module}: its tests fail without a mutant")
        took = time.monotonic() - start
        limits[module] = 20 + 10 * took
        drawn = found
        if asked.sample and len(found) > asked.sample:
            drawn = random.Random(asked.seed).sample(found, asked.sample)
        print(f"{module}: {len(found)} mutants, {len(drawn)} tried, tests take {took:.0f} s",
              flush=True)  # fmt: skip
        work += drawn
    became = dict(judged(work, limits, asked.jobs))
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
            old = (REPOSITORY / mutant.module).read_text(encoding="utf-8").splitlines()
            new = mutant.source.splitlines()
            change = next((b for a, b in zip(old, new, strict=False) if a != b), "(a line gone)")
            was = old[mutant.line - 1].strip()
            print(f"{mutant.module}:{mutant.line} {mutant.operator}: {was}  ->  {change.strip()}")


if __name__ == "__main__":
    main()
