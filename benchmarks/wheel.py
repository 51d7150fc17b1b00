"""Does what we would publish install and run in an empty environment?

    python benchmarks/wheel.py [--python python3.11] [--without-torch python3.12 python3.13]

Builds the sdist and, from it, the wheel; looks that both carry the package's data and nothing
else's; installs the wheel, with the constraints, into an empty environment of every interpreter
named, and runs it there: `glulens demo` and what reads the run it leaves. `--without-torch` leaves
torch and what stands on it out, where no CPU build is at hand, and runs what does without. Extras
are resolved, not installed (`pip install --dry-run`). Ends with 1 if something failed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
EXTRAS = ("eval", "ray", "dev")
NEED_TORCH = ("torch", "accelerate")
DATA = (
    "glulens/datasets/sample/",
    "glulens/interp/paper/",
    "glulens/interp/templates/",
)
FOREIGN = ("glulens/tests", "glulens/benchmarks", "glulens/docs")
WITH_TORCH = (
    "glulens --version",
    "glulens claims",
    "glulens demo -o demo",
    "glulens top demo --by ppm -n 3",
    "glulens show demo L12.N345",
    "glulens runs .",
)
WITHOUT_TORCH = (
    "glulens --version",
    "glulens --help",
    "glulens claims",
    "glulens top demo --by ppm -n 3",
    "glulens show demo L12.N345",
    "glulens runs .",
)


def run(words: Sequence[str], folder: Path) -> tuple[int, str]:
    """Exit code and output of a command, said as it goes."""
    start = time.monotonic()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    said = done.stdout + done.stderr
    shown = " ".join(Path(words[0]).name if k == 0 else word for k, word in enumerate(words))
    state = "ok" if done.returncode == 0 else f"exit {done.returncode}"
    print(f"  {state:<7} {time.monotonic() - start:5.0f} s  {shown[:110]}", flush=True)
    if done.returncode:
        print(said[-2000:], flush=True)
    return done.returncode, said


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist and the wheel made from it."""
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(folder / "clone")], check=True)
    tools = folder / "tools"
    subprocess.run([sys.executable, "-m", "venv", str(tools)], check=True)
    run([str(tools / "bin" / "python"), "-m", "pip", "install", "-q", "build"], folder)
    code, said = run([str(tools / "bin" / "python"), "-m", "build", "clone", "-o", "dist"], folder)
    if code:
        sys.exit(said[-3000:])
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


def lacks(sdist: Path, wheel: Path) -> list[str]:
    """What is missing in the archives, or should not be there."""
    with tarfile.open(sdist) as archive:
        source = archive.getnames()
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    found = [f"the wheel has nothing in {part}" for part in DATA
             if not any(n.startswith(part) and not n.endswith(".py") for n in names)]  # fmt: skip
    found += [f"the wheel has {n}" for n in names if n.startswith(FOREIGN)]
    found += [f"the sdist has no {n}" for n in ("LICENSE", "README.md", "pyproject.toml")
              if not any(name.endswith(f"/{n}") for name in source)]  # fmt: skip
    print(f"  {wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.2f} MB; "
          f"{sdist.name}: {len(source)} entries")  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python", nargs="*", default=[sys.executable])
    parser.add_argument("--without-torch", nargs="*", default=[])
    asked = parser.parse_args()
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="glulens-wheel-") as name:
        folder = Path(name)
        print("build")
        sdist, wheel = build(folder)
        failed += lacks(sdist, wheel)
        constraints = str(folder / "clone" / "constraints.txt")
        for interpreter in [*asked.python, *asked.without_torch]:
            bare = interpreter in asked.without_torch
            about = [interpreter, "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])"]
            version = subprocess.run(about, capture_output=True, text=True).stdout.strip()
            print(f"Python {version}{', without torch' if bare else ''}", flush=True)
            home = folder / version
            code, _ = run([interpreter, "-m", "venv", str(home)], folder)
            pip = [str(home / "bin" / "python"), "-m", "pip", "install", "-q", "-c", constraints]
            # A new pip first: what an old one makes of the constraints is its own affair.
            code |= run([*pip, "-U", "pip"], folder)[0]
            if bare:
                code |= run([*pip, *_rest(wheel)], folder)[0]
                code |= run([*pip, "--no-deps", str(wheel)], folder)[0]
            else:
                code |= run([*pip, str(wheel)], folder)[0]
                for extra in EXTRAS:
                    code |= run([*pip, "--dry-run", f"{wheel}[{extra}]"], folder)[0]
            for command in WITHOUT_TORCH if bare else WITH_TORCH:
                words = command.split()
                code |= run([str(home / "bin" / words[0]), *words[1:]], folder)[0]
            if code:
                failed.append(f"Python {version}")
    print("failed: " + "; ".join(failed) if failed else "all of it holds")
    sys.exit(bool(failed))


def _rest(wheel: Path) -> list[str]:
    """What the wheel requires, but for torch and what stands on it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    wanted = [line.split(": ", 1)[1] for line in lines if line.startswith("Requires-Dist: ")]
    return [w for w in wanted if "extra ==" not in w and not w.startswith(NEED_TORCH)]


if __name__ == "__main__":
    main()
