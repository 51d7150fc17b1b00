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
    in a log a line a minute, and one for a finished job."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        ProgressColumn,
        Task,
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

        def tell(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            since, first = begun.setdefault(what, (now, done))
            if done >= total:
                if what not in told:
                    told.add(what)
                    console.print(f"{what}: {total:,} done", highlight=False)
            elif done > first and now - spoke.setdefault(what, since) >= A_LINE_EVERY:
                spoke[what] = now
                rate = (done - first) / (now - since)
                left = (total - done) / rate
                console.print(
                    f"{what}: {done:,} of {total:,}, {rate:,.0f}/s, {left / 60:.1f} min left",
                    highlight=False,
                )

        yield tell
        return

    class Rate(ProgressColumn):
        """Units a second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    tasks: dict[str, object] = {}
    with bars:

        def draw(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # pyright: ignore

        yield draw
