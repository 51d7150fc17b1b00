"""How a hypothesis run is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..datasets.sources import BUILTIN
from ..errors import UsageError
from ..prune.expressions import is_control, parse_criterion
from .option_checks import at_least, only_known

DEFAULT_CRITERIA = ("ppm", "maw", "vow", "pon", "l2", "random:0")


@dataclass(frozen=True)
class Options:
    """The command's options, and what the manifest records."""

    data: str = BUILTIN
    """`builtin`, `hub`, or a folder of official files."""
    limit: int | None = 2000
    """Items per property, drawn at random if there are more; None for all."""
    criteria: tuple[str, ...] = DEFAULT_CRITERIA
    """Weight criteria; the first is the primary one, on which the verdict rests."""
    seed: int = 0
    """Of every draw."""
    engine: str = "hooks"
    """`hooks` or `lens`."""
    chat: bool = False
    """Whether prompts go through the model's chat template."""
    permutations: int = 2000
    """Draws of the item-label null."""
    bootstraps: int = 500
    """Resamples of items for intervals."""
    causal_items: int = 24
    """At most so many items a property when tenths are silenced; 0 leaves that out."""
    causal_random: int = 20
    """Random tenths to compare with, rounded up to whole orders of ten."""
    map_items: int = 4
    """At most so many items a property when the tenths of every layer alone are silenced; 0 leaves
    that out."""
    dose_items: int = 40
    """TruthfulQA questions under growing cuts; 0 leaves that out."""
    null_items: int = 100
    """Questions for each model that knows nothing; 0 leaves them out."""
    decode_every: int = 3
    """Linear probes on every so many layers; 0 leaves them out."""
    umap: bool = True
    """Draw neurons by functional profile; takes half a minute."""
    max_tokens: int = 1024
    """Padded tokens in a batch; lower it when memory is short."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise UsageError(f"limit {self.limit}: at least 2 items are needed")
        if not self.criteria:
            raise UsageError("no criterion given")
        for name in self.criteria:
            if parse_criterion(name).needs_recording:
                raise UsageError(
                    f"criterion {name!r} looks at activations; the hypothesis is about weights: "
                    "give weight criteria"
                )
        if is_control(self.criteria[0]):
            raise UsageError(f"the first criterion carries the verdict; {self.criteria[0]} cannot")
        at_least(
            self,
            seed=0,
            permutations=100,
            bootstraps=100,
            causal_items=0,
            map_items=0,
            causal_random=1,
            dose_items=0,
            null_items=0,
            decode_every=0,
            max_tokens=1,
        )


def make_options(**options: Any) -> Options:
    """`Options`, with an unknown name told apart from a bad value."""
    return Options(**only_known(Options, options))
