"""What the options of every job are checked for alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import UsageError


def at_least(options: Any, **least: int) -> None:
    """Raise `UsageError` where an option is smaller than it may be; None passes."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value}: at least {smallest} is needed")


def only_known(kind: type, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, if all are fields of a dataclass; otherwise `UsageError`."""
    allowed = [field.name for field in fields(kind)]
    for name in options:
        if name not in allowed:
            raise UsageError(f"unknown option {name!r}; allowed are {', '.join(allowed)}")
    return options
