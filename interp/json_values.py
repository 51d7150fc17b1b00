"""Values as JSON can say them."""

from __future__ import annotations

from typing import Any


def finite(value: Any) -> Any:
    """The same with None in place of what JSON has no word for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
