"""What commands that write runs have in common: where to, how to go on, and how to show results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ..errors import GlulensError, UnfinishedError, is_out_of_memory

RUNS = Path("runs")
STAGES = "*.stage.safetensors"


@contextmanager
def saying_how_to_go_on(output: Path) -> Iterator[None]:
    """When the work stops early and something is kept, say which command goes on."""
    from .unfinished import holds

    try:
        yield
    except KeyboardInterrupt:
        if not holds(output, STAGES):
            raise
        click.echo(
            f"glulens: interrupted; the same command with -o {output} --resume goes on", err=True
        )
        sys.exit(130)
    except (GlulensError, MemoryError, RuntimeError, OSError) as error:
        known = isinstance(error, GlulensError) or is_out_of_memory(error)
        if known and not isinstance(error, UnfinishedError) and holds(output, STAGES):
            click.echo(
                f"what is done stays: the same command with -o {output} --resume goes on", err=True
            )
        raise


def stem(model: str) -> str:
    """A model's name without its folders and revision."""
    return Path(model).name.split("@")[0] or "model"


def place_of(command: str, model: str, output: Path | None, resume: bool) -> Path:
    """Where a run is written: as told, or a name that is free; the unfinished one to go on with."""
    from ..rundir import unused
    from .unfinished import find_unfinished

    if output is not None:
        return output
    name = f"{command}-{stem(model)}"
    return find_unfinished(RUNS, name) if resume else unused(RUNS / name)


def show(content: Any) -> None:
    """Print tables and text of rich's, as wide as the terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # in a file or a pipe nothing needs folding
    console.print(content)
