"""How an efficiency measurement is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..datasets.sources import BUILTIN
from ..errors import UsageError
from ..prune.compensation import METHODS
from ..prune.expressions import parse_criterion
from ..prune.models import DTYPES
from .option_checks import at_least, only_known


@dataclass(frozen=True)
class EfficiencyOptions:
    """The command's options."""

    fractions: tuple[float, ...] = ()
    """Cuts of one model, 0 for the intact one; empty where several models are given."""
    criterion: str = "ppm"
    """What chooses the neurons that go."""
    compensate: str = "none"
    """`none`, `lsq` or `flap` (see prune/compensation.py), calibrated on the built-in text."""
    prompt_tokens: int = 128
    """Tokens read before the first one is written, at fixed length."""
    new_tokens: int = 64
    """Tokens written by every row at fixed length, end of text or not."""
    batches: tuple[int, ...] = (1, 8)
    """Rows that are run together."""
    rounds: int = 5
    """Times that everything is measured, in turn."""
    prompts: int = 4
    """Instructions answered until end of text; 0 leaves that out."""
    longest: int = 128
    """Tokens after which an answer is cut off."""
    data: str = BUILTIN
    """Where instructions come from: `builtin`, `hub`, or a folder of official files."""
    chat: bool = True
    """Whether they go through the chat template of a model that has one."""
    dtype: str = "auto"
    """Of the models in memory."""
    device: str = "auto"
    """Where they run."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        parse_criterion(self.criterion)
        if parse_criterion(self.criterion).needs_recording:
            raise UsageError(
                f"criterion {self.criterion!r} looks at activations; give a weight criterion, or "
                "prune first and measure the checkpoint"
            )
        if self.compensate not in METHODS:
            raise UsageError(f"compensate {self.compensate!r}; allowed are {', '.join(METHODS)}")
        if self.compensate != "none" and not any(self.fractions):
            raise UsageError("--compensate is of cuts: give --fractions too, as in 0,0.5")
        for fraction in self.fractions:
            if not 0 <= fraction < 1:
                raise UsageError(f"fraction {fraction}: 0 <= fraction < 1, as in 0,0.5")
        if len(set(self.fractions)) != len(self.fractions):
            raise UsageError("a fraction is given twice")
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        if not self.batches or min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise UsageError(f"batch {self.batches}: sizes of 1 or more, none twice, as in 1,8")
        at_least(
            self,
            prompt_tokens=1,
            new_tokens=2,
            rounds=1,
            prompts=0,
            longest=2,
            seed=0,
        )


def make_efficiency_options(**options: Any) -> EfficiencyOptions:
    """`EfficiencyOptions`, with an unknown name told apart from a bad value."""
    return EfficiencyOptions(**only_known(EfficiencyOptions, options))
