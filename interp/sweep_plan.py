"""What a sweep would cost, said before it is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..probes.likelihood import layout
from ..progress import Progress, silent
from ..prune.models import OpenedModel
from ..prune.recording import Recording
from .sweep import Job, prepare
from .sweep_items import JOINT, AskedTask, run_unit
from .sweep_options import SweepOptions

SAMPLED = 3
"""Chunks of a task that are laid out to count tokens."""
TIMED = 1500
"""Tokens on which the model's speed is taken."""
STEPS = 16
"""Tokens that are written to see how fast."""


@dataclass(frozen=True)
class TaskPlan:
    """One task (or several that are asked together) at one point."""

    task: str
    items: int
    requests: int
    tokens: int
    """Tokens that are run, common beginnings once; of generated answers the prompts'."""
    forwards: int
    generated: int
    """Tokens that are written at most."""
    seconds: float


@dataclass(frozen=True)
class SweepPlan:
    """The whole sweep."""

    points: int
    tasks: tuple[TaskPlan, ...]

    @property
    def seconds(self) -> float:
        """Of all points, in one process."""
        return self.points * sum(task.seconds for task in self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "schema_version": 1,
            "points": self.points,
            "items": self.points * sum(task.items for task in self.tasks),
            "seconds": round(self.seconds, 1),
            "tasks": [asdict(task) for task in self.tasks],
        }

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows: a line a task, then all of it."""
        header = ("task", "items", "requests", "tokens", "forwards", "written", "s/point", "total")
        rows: list[tuple[str, ...]] = [
            (
                task.task,
                f"{task.items:,}",
                f"{task.requests:,}",
                f"{task.tokens:,}",
                f"{task.forwards:,}",
                f"<= {task.generated:,}" if task.generated else "",
                f"{task.seconds:,.0f}",
                _duration(task.seconds * self.points),
            )
            for task in self.tasks
        ]
        whole = [
            f"{sum(getattr(task, name) for task in self.tasks):,}"
            for name in ("items", "requests", "tokens", "forwards")
        ]
        seconds = sum(task.seconds for task in self.tasks)
        rows.append(
            (f"x {self.points} points", *whole, "", f"{seconds:,.0f}", _duration(self.seconds))
        )
        return header, rows


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes:,.1f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def plan_sweep(
    model: OpenedModel | str,
    options: SweepOptions,
    *,
    recording: Recording | None = None,
    progress: Progress = silent,
) -> SweepPlan:
    """Plan a sweep: the model is opened, some items are laid out, a few run to take its speed.

    Tokens are counted on some of the items. A cut model is no slower here, and no faster: its
    neurons are silenced, not gone. Written answers may end early, so theirs is an upper bound.

    Raises:
        UsageError, ModelError, DataError: what the sweep itself would raise.
    """
    job = prepare(model, options, recording=recording, progress=progress)
    return plan_job(job, progress)


def plan_job(job: Job, progress: Progress = silent) -> SweepPlan:
    """As `plan_sweep`, of a sweep that is ready to run."""
    names = list(dict.fromkeys(unit.task for unit in job.units))
    found = []
    for place, name in enumerate(names):
        found.append(_plan(job, name))
        progress("planning (tasks)", place + 1, len(names))
    return SweepPlan(len(job.points), tuple(found))


def _plan(job: Job, name: str) -> TaskPlan:
    asked = [job.state.tasks[one] for one in name.split(JOINT)]
    chunks = asked[0].chunks
    spread = np.linspace(0, len(chunks) - 1, min(SAMPLED, len(chunks)))
    sampled = [chunks[int(k)] for k in np.unique(spread.round())]
    share = sum(map(len, chunks)) / sum(map(len, sampled))
    generates = asked[0].kind == "generate_until"
    tokens = forwards = 0
    for chunk in sampled:
        one = _prompts(job, asked, chunk) if generates else _laid_out(job, asked, chunk)
        tokens, forwards = tokens + one[0], forwards + one[1]
    written = _most(job, asked) if generates else 0
    speed, step = _speed(job, name, asked, generates)
    seconds = tokens * share / speed
    if generates:
        forwards += round(written / job.options.batch_size / share)
        seconds += written / job.options.batch_size * step
    items = sum(len(task.items) for task in asked)
    return TaskPlan(
        task=name,
        items=items,
        requests=sum(len(item.requests) for task in asked for item in task.items.values()),
        tokens=round(tokens * share),
        forwards=round(forwards * share),
        generated=written,
        seconds=seconds,
    )


def _requests(asked: Sequence[AskedTask], doc_ids: Sequence[int]) -> list[Any]:
    return [r for task in asked for doc_id in doc_ids for r in task.items[doc_id].requests]


def _laid_out(job: Job, asked: Sequence[AskedTask], doc_ids: Sequence[int]) -> tuple[int, int]:
    """Tokens and forward passes of some items."""
    lm, requests = job.state.lm, _requests(asked, doc_ids)
    if asked[0].kind == "loglikelihood_rolling":
        lengths = [len(lm.tok_encode(request.args[0])) for request in requests]
        return sum(lengths), sum(-(-length // lm.max_length) for length in lengths)
    texts = list(dict.fromkeys(lm._text(*request.args) for request in requests))
    found = layout(lm.engine, texts, job.options.max_tokens, share=True, last=False)
    prefixes = {step.prefix for step in found.passes if step.prefix}
    return found.tokens_run, len(found.passes) + len(prefixes)


def _prompts(job: Job, asked: Sequence[AskedTask], doc_ids: Sequence[int]) -> tuple[int, int]:
    requests = _requests(asked, doc_ids)
    return sum(len(job.state.lm.tok_encode(request.args[0])) for request in requests), 0


def _most(job: Job, asked: Sequence[AskedTask]) -> int:
    """Tokens that all items may write."""
    limit = job.options.max_gen_toks or 1 << 40
    return sum(
        min(int(request.args[1].get("max_gen_toks", 256)), limit)
        for task in asked
        for item in task.items.values()
        for request in item.requests
    )


def _speed(job: Job, name: str, asked: Sequence[AskedTask], generates: bool) -> tuple[float, float]:
    """Tokens a second, and seconds that writing one more token takes a batch."""
    intact, lm = job.points[0], job.state.lm
    doc_ids = asked[0].chunks[0]
    if generates:
        few = doc_ids[: job.options.batch_size]
        read, _ = _prompts(job, asked, few)
        before = lm.max_gen_toks
        took = []
        try:
            for steps in (1, 1, 1 + STEPS):  # the first warms up
                lm.max_gen_toks = min(steps, before or steps)
                begin = time.perf_counter()
                lm.generate_until(_requests(asked, few), disable_tqdm=True)
                took.append(time.perf_counter() - begin)
        finally:
            lm.max_gen_toks = before
        return read / max(took[1], 1e-9), max(took[2] - took[1], 0.0) / STEPS
    count = 1
    while count < len(doc_ids) and _laid_out(job, asked, doc_ids[:count])[0] < TIMED:
        count = min(2 * count, len(doc_ids))
    few = doc_ids[:count]
    run_unit(job.state, intact, name, few[:1])  # warms up
    begin = time.perf_counter()
    run_unit(job.state, intact, name, few)
    took = time.perf_counter() - begin
    return _laid_out(job, asked, few)[0] / max(took, 1e-9), 0.0
