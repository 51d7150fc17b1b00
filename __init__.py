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
    from .interp.calibration import Calibration as Calibration
    from .interp.calibration import calibrate as calibrate
    from .interp.compare import CompareResult as CompareResult
    from .interp.compare import compare as compare
    from .interp.efficiency import EfficiencyResult as EfficiencyResult
    from .interp.efficiency import efficiency as efficiency
    from .interp.hypothesis import HypothesisResult as HypothesisResult
    from .interp.hypothesis import hypothesis as hypothesis
    from .interp.probe import probe as probe
    from .interp.score import score as score
    from .interp.sweep import SweepResult as SweepResult
    from .interp.sweep import sweep as sweep
    from .prune.budget import Budget as Budget
    from .prune.models import OpenedModel as OpenedModel
    from .prune.models import open_model as open_model
    from .prune.selection import NeuronSet as NeuronSet
    from .prune.stream import Pruned as Pruned
    from .prune.stream import prune_checkpoint as prune_checkpoint
    from .rundir import RunDirectory as RunDirectory
    from .rundir import open_run as open_run

__version__ = "0.1.0"

_HOMES = {
    "Budget": ".prune.budget",
    "Calibration": ".interp.calibration",
    "CompareResult": ".interp.compare",
    "EfficiencyResult": ".interp.efficiency",
    "HypothesisResult": ".interp.hypothesis",
    "NeuronSet": ".prune.selection",
    "OpenedModel": ".prune.models",
    "Pruned": ".prune.stream",
    "RunDirectory": ".rundir",
    "SweepResult": ".interp.sweep",
    "calibrate": ".interp.calibration",
    "compare": ".interp.compare",
    "efficiency": ".interp.efficiency",
    "hypothesis": ".interp.hypothesis",
    "open_model": ".prune.models",
    "open_run": ".rundir",
    "probe": ".interp.probe",
    "prune_checkpoint": ".prune.stream",
    "score": ".interp.score",
    "sweep": ".interp.sweep",
}

__all__ = [
    "Budget",
    "Calibration",
    "CompareResult",
    "EfficiencyResult",
    "HypothesisResult",
    "NeuronSet",
    "OpenedModel",
    "Pruned",
    "RunDirectory",
    "SweepResult",
    "__version__",
    "calibrate",
    "compare",
    "efficiency",
    "hypothesis",
    "open_model",
    "open_run",
    "probe",
    "prune_checkpoint",
    "score",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
