"""glulens: do the weights of a neuron say what it does?

Ranks every MLP neuron of a language model by its weights, watches what the same neurons do on
facts, instructions and misconceptions, removes them in gate/up pairs, and says with controls and
error bars whether magnitude and function have anything to do with each other.

The names below are loaded when first used, so that `import glulens` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interp.compare import CompareResult as CompareResult
    from .interp.compare import compare as compare
    from .interp.hypothesis import HypothesisResult as HypothesisResult
    from .interp.hypothesis import hypothesis as hypothesis
    from .interp.probe import probe as probe
    from .interp.score import score as score
    from .interp.sweep import SweepResult as SweepResult
    from .interp.sweep import sweep as sweep
    from .prune.models import OpenedModel as OpenedModel
    from .prune.models import open_model as open_model
    from .prune.selection import NeuronSet as NeuronSet
    from .rundir import RunDirectory as RunDirectory
    from .rundir import open_run as open_run

__version__ = "0.1.0"

_HOMES = {
    "CompareResult": ".interp.compare",
    "HypothesisResult": ".interp.hypothesis",
    "NeuronSet": ".prune.selection",
    "OpenedModel": ".prune.models",
    "RunDirectory": ".rundir",
    "SweepResult": ".interp.sweep",
    "compare": ".interp.compare",
    "hypothesis": ".interp.hypothesis",
    "open_model": ".prune.models",
    "open_run": ".rundir",
    "probe": ".interp.probe",
    "score": ".interp.score",
    "sweep": ".interp.sweep",
}

__all__ = [
    "CompareResult",
    "HypothesisResult",
    "NeuronSet",
    "OpenedModel",
    "RunDirectory",
    "SweepResult",
    "__version__",
    "compare",
    "hypothesis",
    "open_model",
    "open_run",
    "probe",
    "score",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
