"""How long work tells how far it is: a callback any room may take, and its face in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]
"""Called as `progress(what, done, total)`; `what` names the job and its unit."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of those who do not want to know."""


@contextmanager
def on_stderr() -> Iterator[Progress]:
    """Progress bars on stderr, one a job; on a dumb terminal or in a log, one line a finished
    job."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        told: set[str] = set()

        def tell(what: str, done: int, total: int) -> None:
            if done >= total and what not in told:
                told.add(what)
                console.print(f"{what}: {total:,} done", highlight=False)

        yield tell
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
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
