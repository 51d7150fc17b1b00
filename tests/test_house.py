"""The walls: which room may use which, what is light, what must not be there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from browsing import dense, run_of
from conftest import REPOSITORY

# Arrows point one way: a room may import these rooms and the modules at the root.
MAY_USE = {
    "prune": set(),
    "datasets": set(),
    "probes": {"prune", "datasets"},
    "interp": {"prune", "datasets", "probes", "tui"},
    "tui": {"prune"},
}
# interp uses tui in one place: the commands that look at a run's neurons.
ONLY_FROM = {("interp", "tui"): {"cli_browse.py"}}
# tui writes and reads the sets that prune cuts, and uses nothing else of it.
ONLY_THESE = {("tui", "prune"): {"glulens.prune.selection"}}
HEAVY = {"torch", "transformers", "transformer_lens", "nnsight", "sklearn", "datasets"}


def imports(file: Path) -> list[tuple[str, bool]]:
    """Absolute names of everything a file imports, with whether it is at the module's top."""
    package = ("glulens", *file.relative_to(REPOSITORY).parts[:-1])
    tree = ast.parse(file.read_text())
    top = set(
        ast.walk(
            ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        )
    )
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *([node.module] if node.module else [])))
            found += [(f"{name}.{alias.name}", node in top) for alias in node.names]
    return found


ROOMS = {room: sorted((REPOSITORY / room).glob("*.py")) for room in MAY_USE}


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_arrows_point_one_way(room):
    assert ROOMS[room], f"{room}/ is empty"
    for file in ROOMS[room]:
        for name, _ in imports(file):
            parts = name.split(".")
            if parts[0] != "glulens" or len(parts) < 2 or parts[1] == room:
                continue
            if parts[1] in MAY_USE:
                assert parts[1] in MAY_USE[room], f"{file.name} in {room}/ imports {name}"
                only = ONLY_FROM.get((room, parts[1]))
                assert only is None or file.name in only, f"{file.name} imports {name}"
                these = ONLY_THESE.get((room, parts[1]))
                assert these is None or ".".join(parts[:3]) in these, f"{file.name} imports {name}"


def test_imports_inside_the_package_are_relative():
    for file in [*REPOSITORY.glob("*.py"), *(f for files in ROOMS.values() for f in files)]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
            assert not any(name.split(".")[0] == "glulens" for name in names), file


def test_the_browser_never_imports_torch():
    for file in ROOMS["tui"]:
        assert not {name.split(".")[0] for name, _ in imports(file)} & HEAVY, file
    loaded = modules_after("import glulens.tui.app, glulens.tui.columns")
    assert not loaded & HEAVY


# What the browser shows without drawing it: for scripts, and for tests without a terminal.
HEADLESS = ("columns", "cutting", "facts", "filters", "plain", "sets", "state")


def test_the_browsers_parts_without_a_screen_load_no_textual():
    for name in HEADLESS:
        file = REPOSITORY / "tui" / f"{name}.py"
        assert "textual" not in {n.split(".")[0] for n, _ in imports(file)}, file
    loaded = modules_after("import " + ", ".join(f"glulens.tui.{name}" for name in HEADLESS))
    assert not loaded & {*HEAVY, "textual", "scipy", "numba", "matplotlib"}


def test_listing_neurons_loads_neither_textual_nor_torch(tmp_path):
    run = run_of(tmp_path / "run", dense())
    for words in (["top", str(run), "--where", "ppm > pct(ppm, 50)"], ["show", str(run), "L1.N2"]):
        loaded = modules_after(
            "import contextlib, io\n"
            "from glulens.interp.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
            f"    main({words!r})"
        )
        assert not loaded & {*HEAVY, "textual", "numba", "matplotlib"}


def test_datasets_is_no_regular_package():
    assert not (REPOSITORY / "datasets" / "__init__.py").exists()


def test_data_is_never_run():
    for files in ROOMS.values():
        for file in files:
            names = {name.split(".")[0] for name, _ in imports(file)}
            assert not names & {"pickle", "marshal", "shelve", "dill", "joblib"}, file
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in {"eval", "exec", "compile"}, file
                if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                    assert isinstance(node.value, ast.Constant), file
                    assert node.value.value is False, file


def modules_after(code: str) -> set[str]:
    run = f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)}


def test_importing_glulens_is_light():
    assert not modules_after("import glulens") & {*HEAVY, "polars", "numpy", "matplotlib", "rich"}


def test_every_public_name_is_there():
    import glulens

    for name in glulens.__all__:
        assert getattr(glulens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = glulens.nothing  # pyright: ignore
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert glulens.__version__ == project["version"]


def test_packages_are_all_listed():
    listed = set(
        tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    folders = {
        f"glulens.{f.parent.relative_to(REPOSITORY)}" for files in ROOMS.values() for f in files
    }
    data = {f"glulens.{name}" for name in ("datasets.sample", "interp.paper", "interp.templates")}
    assert listed == {"glulens", *data, *folders}


def test_modules_are_small_enough_to_read_at_once():
    long = {
        str(file.relative_to(REPOSITORY)): lines
        for files in ROOMS.values()
        for file in files
        if (lines := len(file.read_text().splitlines())) > 500
    }
    assert not long
