"""What every manifest says: how and when a run was made, on which model, with what."""

from __future__ import annotations

import datetime
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..prune.layout import MlpLayout
    from ..prune.models import ModelSource


def versions(*libraries: str) -> dict[str, str]:
    """Versions of glulens, Python and some libraries, for a manifest."""
    from .. import __version__

    return {
        "glulens": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in libraries},
    }


def occasion(command: str, argv: Sequence[str] | None, started: float) -> dict[str, Any]:
    """The head of a manifest: a finished run of a command that began at `started` (Unix time)."""
    return {
        "command": command,
        "status": "complete",
        "argv": list(sys.argv if argv is None else argv),
        "started": datetime.datetime.fromtimestamp(started, datetime.UTC).isoformat(
            timespec="seconds"
        ),
        "seconds": round(time.time() - started, 1),
    }


def source_entry(source: ModelSource) -> dict[str, Any]:
    """Which model it was."""
    return {
        "name": source.name,
        "kind": source.kind,
        "revision": source.revision,
        "sha256": source.sha256,
    }


def size_entry(layouts: Sequence[MlpLayout], parameters: int) -> dict[str, int]:
    """How large a model is: the residual stream, numbers in all, and numbers that go with a neuron
    (of the first MLP; MLPs of one model are made alike)."""
    return {
        "hidden": layouts[0].hidden,
        "parameters": parameters,
        "parameters_per_neuron": layouts[0].parameters_per_neuron,
    }
