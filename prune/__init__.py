"""What neurons weigh, and removing them.

The names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget import Budget as Budget
    from .budget import choose as choose
    from .gauge import rescale as rescale
    from .masks import masked as masked
    from .mlps import find_mlps as find_mlps
    from .recording import Recording as Recording
    from .scoring import score_mlps as score_mlps
    from .selection import NeuronSet as NeuronSet
    from .selection import lowest as lowest
    from .stream import prune_checkpoint as prune_checkpoint
    from .surgery import pad as pad
    from .surgery import resize as resize
    from .surgery import trim as trim

_HOMES = {
    "Budget": "budget",
    "NeuronSet": "selection",
    "Recording": "recording",
    "choose": "budget",
    "find_mlps": "mlps",
    "lowest": "selection",
    "masked": "masks",
    "pad": "surgery",
    "prune_checkpoint": "stream",
    "rescale": "gauge",
    "resize": "surgery",
    "score_mlps": "scoring",
    "trim": "surgery",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
