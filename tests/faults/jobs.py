"""The commands under fault, on a trained tiny model, and what must come of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.inject import Spoil, counting
from faults.server import Ended, Server

UNFINISHED = ".unfinished"
_TABLES = {".parquet", ".npy", ".safetensors", ".csv"}
SHORT = ("score", "prune", "probe")
"""Commands that the ordinary suite spoils; the others take seconds each."""


@dataclass
class Job:
    """A command with the place it writes.

    Attributes:
        name: the command.
        words: all of it but where it writes.
        flag: how it is told where.
        resumable: whether it keeps what it needs to go on.
        tables: sha256 by file of what it writes when nothing goes wrong.
        seconds: what it takes then.
        operations: changes of files it makes under its folder then.
    """

    name: str
    words: tuple[str, ...]
    flag: tuple[str, ...] = ("-o",)
    resumable: bool = False
    tables: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    operations: int = 0

    def command(self, out: Path, *more: str) -> list[str]:
        """The words of the command that writes at `out`."""
        return [self.name, *self.words, *self.flag, str(out), *more]


def make_jobs(folder: Path, official: Path | None) -> dict[str, Job]:
    """Models under `folder`, and jobs on them; the sweep needs the official data and lm-eval."""
    model, tuned = make_models(folder, official)
    sets = folder / "sets.csv"
    sets.write_text(
        "text,label,item\n"
        + "".join(f"a b c {chr(97 + k)},1,{k}\nd e {chr(98 + k)} f,0,{k}\n" for k in range(8))
    )
    jobs = [
        Job("score", (str(model), "--criteria", "ppm,random:0")),
        Job("prune", (str(model), "--fraction", "0.3"), flag=()),
        Job(
            "probe",
            (str(model), "--on", str(sets), "--criteria", "ppm", "--examples", "2",
             "--max-tokens", "16"),
            resumable=True,
        ),
        Job("compare", (str(model), str(tuned), "--permutations", "100")),
    ]  # fmt: skip
    if official is not None:
        small = ("--limit", "6", "--criteria", "ppm,random:0", "--permutations", "100", "--no-umap")
        parts = ("--causal-items", "0", "--map-items", "0", "--null-items", "0", "--decode-every",
                 "0")  # fmt: skip
        planted = ("--limit", "40", "--plantings", "2", "--orders", "4")
        jobs += [
            Job("hypothesis", (str(model), *small, *parts), resumable=True),
            Job("calibrate", (str(model), *planted), resumable=True),
        ]
        swept = ("--criteria", "ppm", "--controls", "random:1", "--fractions", "0,0.5", "--limit",
                 "4", "--tasks", "truthfulqa_mc1,lambada_openai", "--data",
                 str(official))  # fmt: skip
        if _has_lm_eval():
            jobs.append(Job("sweep", (str(model), *swept), resumable=True))
    return {job.name: job for job in jobs}


def _has_lm_eval() -> bool:
    import importlib.util

    return importlib.util.find_spec("lm_eval") is not None


def make_models(folder: Path, official: Path | None) -> tuple[Path, Path]:
    """A model and one a little beside it; the trained one where its file is at hand."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    base, tuned = folder / "base", folder / "tuned"
    if official is not None:
        from stories import open_stories
        from tuned_stories import save_stories

        opened: Any = open_stories(official / "stories260k")
        network = opened.model
        save_stories(opened, base)
    else:
        from families import make, save_tokenizer

        network = make("llama", vocab_size=60, num_hidden_layers=3)
        network.save_pretrained(base)
        save_tokenizer(base)
    shutil.copytree(base, tuned)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter) * parameter.abs().mean())
    network.save_pretrained(tuned)
    return base, tuned


def warm(jobs: dict[str, Job], *, short: bool) -> None:
    """Import what commands import, here and once; nothing that begins threads is called."""
    import gc

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from glulens.interp import cli  # noqa: F401

    torch.set_num_threads(1)
    _ = AutoModelForCausalLM.from_pretrained
    model = jobs["score"].words[0]
    AutoConfig.from_pretrained(model)
    AutoTokenizer.from_pretrained(model)
    if not short:
        _warm_others(jobs)
    gc.collect()
    gc.freeze()  # pages that no child's collector touches are never copied


def _warm_others(jobs: dict[str, Job]) -> None:
    import glulens.interp.calibration
    import glulens.interp.compare
    import glulens.interp.hypothesis
    import glulens.interp.report
    import glulens.prune.pair_kernels  # noqa: F401
    from glulens.interp import compare_report, figures

    def nothing(drawn: object, folder: Path, *_: object) -> list[str]:
        folder.mkdir(exist_ok=True)
        return []

    # Figures take longer than all else, and have tests of their own.
    figures.save_figures = compare_report.save_figures = nothing  # pyright: ignore
    if "sweep" in jobs:
        from glulens.interp import sweep_files, sweep_items
        from glulens.interp.harness_tasks import local_tasks

        words = jobs["sweep"].words
        local_tasks(words[words.index("--tasks") + 1].split(","), words[words.index("--data") + 1])
        sweep_files._report = lambda *_: None
        sweep_items.CHUNK = dict.fromkeys(sweep_items.CHUNK, 2)


def measure(server: Server, job: Job, folder: Path) -> None:
    """Run a job that nothing disturbs, and take down what comes of it."""
    place = folder / f"whole-{job.name}"
    place.mkdir()
    out, told = place / "out", folder / f"{job.name}.operations"
    found = server.run(job.command(out), where=place, spoil=counting(place, told))
    if found.code != 0:
        raise SystemExit(f"{job.name} fails without a fault: {found.err}")
    job.tables, job.seconds = tables_of(out), found.seconds
    job.operations = told.stat().st_size
    shutil.rmtree(place)


def tables_of(out: Path) -> dict[str, str]:
    """sha256 by name of what must not depend on when or how often a command was begun."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in _TABLES
    }


def digest(folder: Path) -> dict[str, str]:
    """sha256 by name of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flaw(out: Path, job: Job, *, exact: bool = True) -> str:
    """What is wrong with what stands at `out`; nothing where it is whole or not there at all.

    Args:
        exact: whether tables must be the same bytes as without a fault, not only there.
    """
    if not out.exists():
        return ""
    manifest = out / "manifest.json"
    if job.name != "prune":
        if not manifest.is_file():
            return "a run without a manifest"
        try:
            named = json.loads(manifest.read_text(encoding="utf-8"))["outputs"]
        except (ValueError, KeyError) as error:
            return f"a manifest that cannot be read: {error}"
        there = digest(out)
        there.pop("manifest.json")
        if {name: about["sha256"] for name, about in named.items()} != there:
            return "files are not those that the manifest names"
    found = tables_of(out)
    if not exact:
        return "" if found.keys() == job.tables.keys() else "tables are missing"
    differing = [
        name for name in {**found, **job.tables} if found.get(name) != job.tables.get(name)
    ]
    return f"other tables than without the fault: {', '.join(differing)}" if differing else ""


def said_badly(ended: Ended, allowed: Sequence[int]) -> str:
    """What is wrong with how a command ended; nothing where it is as documented."""
    if ended.code not in allowed:
        return f"exit code {ended.code}, not one of {list(allowed)}: {ended.err[-600:]}"
    if "Traceback" in ended.err:
        return f"a traceback: {ended.err[-900:]}"
    lines = [line for line in ended.err.splitlines() if line.startswith("glulens: ")]
    if (len(lines) == 1) != (ended.code != 0):
        return f"{len(lines)} lines for exit code {ended.code}: {ended.err[-600:]}"
    return ""


def goes_on(server: Server, job: Job, out: Path, spoil: Spoil | None = None) -> Ended:
    """The next call of the same command: it goes on where there is something to go on with, and
    takes what is there already for the end."""
    if out.exists():
        return Ended(0, False, "", "", 0.0)
    more = ("--resume",) if out.with_name(out.name + UNFINISHED).is_dir() else ()
    return server.run(job.command(out, *more), where=out.parent, spoil=spoil)
