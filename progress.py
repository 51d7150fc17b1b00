"""How long work tells how far it is: a callback any room may take, and its face in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; `what` names the job and its unit."""

A_LINE_EVERY = 60.0
"""Seconds between two lines about one job where there is no terminal to draw a bar in."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of those who do not want to know."""


@contextmanager
def on_stderr() -> Iterator[Progress]:
    """Progress on stderr, with the rate and the time left: bars, one a job; on a dumb terminal or
    in a log a line a minute, and one for a finished job. A job that falls back has begun again."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        told: set[str] = set()
        begun: dict[str, tuple[float, int]] = {}
        spoke: dict[str, float] = {}
        last: dict[str, int] = {}

        def say(line: str) -> None:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

        def tell(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            if done < last.get(what, done):
                told.discard(what)
                begun.pop(what)
                spoke.pop(what, None)
            last[what] = done
            since, first = begun.setdefault(what, (now, done))
            if done >= total:
                if what not in told:
                    told.add(what)
                    say(f"{what}: {total:,} done")
            elif done > first and now - spoke.setdefault(what, since) >= A_LINE_EVERY:
                spoke[what] = now
                rate = (done - first) / max(now - since, 1e-9)
                left = (total - done) / rate
                say(f"{what}: {done:,} of {total:,}, {rate:,.0f}/s, {left / 60:.1f} min left")

        yield tell
        return

    class Rate(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")

    bars = Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, TaskID] = {}
    reached: dict[str, int] = {}
    with bars:

        def draw(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            elif done < reached[what]:
                bars.reset(tasks[what], total=total)
            reached[what] = done
            bars.update(tasks[what], completed=done, total=total)

        yield draw
