"""How a comparison is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..datasets.sources import BUILTIN
from ..errors import UsageError
from ..prune.criteria import WEIGHT_CRITERIA
from ..prune.expressions import is_control, parse_criterion
from ..prune.models import DTYPES
from .option_checks import at_least, only_known

DEFAULT_CRITERIA = (*WEIGHT_CRITERIA, "random:0")


@dataclass(frozen=True)
class CompareOptions:
    """The command's options, and what the manifest records."""

    criteria: tuple[str, ...] = DEFAULT_CRITERIA
    """Weight criteria; the first carries the verdict."""
    probe: str | None = None
    """A run directory of either model with functional columns."""
    permutations: int = 1000
    """Draws of the permutation null."""
    transplant: bool = False
    """Put the tuned weights of tenths into the base and the reverse; builds both models."""
    transplant_items: int = 24
    """At most so many items a property on which that is measured."""
    transplant_random: int = 10
    """Random tenths to compare with."""
    transplant_sets: tuple[str, ...] = ()
    """Files of further sets of neurons to transplant."""
    data: str = BUILTIN
    """`builtin`, `hub`, or a folder of official files, for the transplant."""
    dtype: str = "auto"
    """Of the models in memory."""
    device: str = "auto"
    """Where they run."""
    max_tokens: int = 1024
    """Padded tokens in a batch; lower it when memory is short."""
    seed: int = 0
    """Of every draw."""
    allow_nonfinite: bool = False
    """Leave neurons with NaN or infinite weights out instead of stopping."""

    def __post_init__(self) -> None:
        if not self.criteria:
            raise UsageError("no criterion given")
        for name in self.criteria:
            if parse_criterion(name).needs_recording:
                raise UsageError(
                    f"criterion {name!r} looks at activations; two checkpoints are compared by "
                    "their weights: give weight criteria"
                )
        if is_control(self.criteria[0]):
            raise UsageError(f"the first criterion carries the verdict; {self.criteria[0]} cannot")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        if self.transplant_sets and not self.transplant:
            raise UsageError("--transplant-set says what to transplant: give --transplant too")
        at_least(
            self,
            seed=0,
            permutations=100,
            transplant_items=2,
            transplant_random=3,
            max_tokens=1,
        )


def make_compare_options(**options: Any) -> CompareOptions:
    """`CompareOptions`, with an unknown name told apart from a bad value."""
    return CompareOptions(**only_known(CompareOptions, options))
