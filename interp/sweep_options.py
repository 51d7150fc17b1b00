"""How a sweep is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..datasets.sources import BUILTIN, HUB
from ..errors import UsageError
from ..prune.compensation import METHODS
from ..prune.models import DTYPES
from .option_checks import at_least, only_known
from .sweep_points import DIGITS, numbers, orders

DEFAULT_FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DEFAULT_TASKS = ("truthfulqa_mc1", "truthfulqa_mc2", "mmlu", "lambada_openai", "wikitext")
PICKS = ("random", "first")
BOS = ("auto", "true", "false")


@dataclass(frozen=True)
class SweepOptions:
    """The command's options, and what the manifest records."""

    criteria: tuple[str, ...] = ("ppm",)
    """What cuts go by; the first is what a report shows first."""
    controls: tuple[str, ...] = ("random:5", "reversed")
    """`random:N`, `reversed`; none for an empty list."""
    fractions: tuple[float, ...] = ()
    """Of every MLP's neurons; 0 is the intact model, which is evaluated anyway."""
    ratios: tuple[float, ...] = ()
    """Kept width over hidden size, instead of fractions."""
    tasks: tuple[str, ...] = DEFAULT_TASKS
    """Tasks of lm-eval."""
    data: str = HUB
    """A folder of official files, or `hub`: what lm-eval itself loads."""
    limit: int | None = None
    """Items a task, of MMLU a subject; None for all."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """The same for some tasks alone."""
    pick: str = "random"
    """Which items where there is a limit: drawn at random, or the first, as lm-eval takes."""
    num_fewshot: int | None = None
    """Examples before a question; None leaves it to the task."""
    chat: bool = False
    """Put prompts through the model's chat template."""
    add_bos: str = "auto"
    """A beginning-of-text token: what the tokenizer does, always, or never."""
    keep_layers: tuple[int, ...] = ()
    """Layers that stay whole."""
    compensate: str = "none"
    """`lsq` (least squares), `flap` (bias): what makes up for the neurons that go."""
    max_tokens: int = 1024
    """Padded tokens in a batch; lower it when memory is short."""
    batch_size: int = 8
    """Texts that are written side by side, where answers are generated."""
    max_gen_toks: int | None = None
    """Most tokens of a generated answer, whatever a task asks for."""
    dtype: str = "auto"
    """Of the model in memory."""
    device: str = "auto"
    """Where it runs."""
    seed: int = 0
    """Of every draw: items, and the first random order."""

    def __post_init__(self) -> None:
        orders(self.criteria, self.controls, self.seed)
        if self.fractions and self.ratios:
            raise UsageError("give either --fractions or --ratios")
        if not self.fractions and not self.ratios:
            object.__setattr__(self, "fractions", DEFAULT_FRACTIONS)
        for fraction in self.fractions:
            if not 0 <= fraction < 1:
                raise UsageError(
                    f"fraction {fraction:g} is outside 0 <= fraction < 1, e.g. 0.1 for a tenth"
                )
        if min(self.ratios, default=1) <= 0:
            raise UsageError(f"ratio {min(self.ratios):g}: a number above 0 is needed, e.g. 3.6")
        if not self.tasks:
            raise UsageError("no task given")
        if self.data == BUILTIN:
            raise UsageError("the built-in sample has no benchmarks; give --data FOLDER, or hub")
        for name, allowed in (
            ("pick", PICKS),
            ("compensate", METHODS),
            ("add_bos", BOS),
            ("dtype", DTYPES),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name.replace('_', '-')} {getattr(self, name)!r}; allowed are "
                    f"{', '.join(allowed)}"
                )
        at_least(
            self,
            seed=0,
            limit=1,
            num_fewshot=0,
            max_tokens=1,
            batch_size=1,
            max_gen_toks=1,
        )
        for name, value in self.limits.items():
            if name not in self.tasks:
                raise UsageError(f"--limit {name}={value}: {name} is none of the tasks")
            if value < 1:
                raise UsageError(f"--limit {name}={value}: at least 1 is needed")

    def limit_of(self, task: str) -> int | None:
        """Items of a task's leaves."""
        return self.limits.get(task, self.limit)


def make_sweep_options(**options: Any) -> SweepOptions:
    """`SweepOptions`, with an unknown name told apart from a bad value; lists become tuples, and
    text such as `0,0.1,...,0.6` numbers."""
    for name, value in only_known(SweepOptions, options).items():
        if name in ("fractions", "ratios") and isinstance(value, str):
            options[name] = numbers(value, name)
        elif name in ("criteria", "controls", "tasks") and isinstance(value, str):
            options[name] = split_names(value)
        elif isinstance(value, list | tuple):
            options[name] = tuple(value)
    return SweepOptions(**options)


def split_names(text: str) -> tuple[str, ...]:
    """Names in a comma-separated list, none twice."""
    from ..prune.expressions import split

    return tuple(dict.fromkeys(split(text)))


def parse_layers(text: str) -> tuple[int, ...]:
    """`0,1` as numbers of layers.

    Raises:
        UsageError: something is no number.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < DIGITS for part in parts):
        raise UsageError(f"--keep-layers {text[:80]!r}: give layers by number, as in 0,1")
    return tuple(dict.fromkeys(map(int, parts)))


def parse_limits(given: tuple[str, ...]) -> dict[str, Any]:
    """`--limit 100 --limit mmlu=5` as the options `limit` and `limits`.

    Raises:
        UsageError: something else.
    """
    found: dict[str, Any] = {"limit": None, "limits": {}}
    for part in (p for text in given for p in text.split(",")):
        name, equals, count = part.rpartition("=")
        count = count.strip()
        if not count.isdecimal() or len(count) >= DIGITS or (equals and not name.strip()):
            raise UsageError(f"--limit {part[:80]!r}: give a number, or TASK=NUMBER")
        if equals:
            found["limits"][name.strip()] = int(count)
        else:
            found["limit"] = int(count)
    return found
