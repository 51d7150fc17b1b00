"""What a cut saves: time, tokens a second and energy of models side by side.

Everything is measured in turn, A B A B ..., so that a machine that slows down favours nobody; a
model is compared with the first within each round, and an interval is a bootstrap over rounds: it
tells this machine's noise, with few rounds hardly more than their range. Two kinds of work:

fixed length    every row reads `prompt_tokens` and writes `new_tokens`, end of text or not
until the end   instructions are answered until the model ends its text, or at `longest`: a cut
                model that never stops looks slow here, and its answers' lengths say why

Weights are really narrower (see `efficiency_models`), and run in eager Transformers, greedily; a
serving engine has other absolute numbers. Energy is what a counter of the machine says (see
`energy`), never an estimate.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..progress import Progress, silent
from .efficiency_options import EfficiencyOptions, make_efficiency_options
from .shown import efficiency_html, short

if TYPE_CHECKING:
    from ..prune.models import OpenedModel
    from .efficiency_models import Contender, Size
    from .efficiency_runs import Run
    from .energy import Meter

FIXED, UNTIL_END = "fixed length", "until the end"
RESAMPLES = 2000
LEAST = 1.0
"""Seconds that a metered piece of work lasts at least: counters step every few to a hundred
milliseconds."""
SLOW = 2.0
"""Times its rounds' median beyond which a time was disturbed."""
WARM = 4
"""Tokens written before anything counts."""


@dataclass(frozen=True)
class Measure:
    """One number of one model, medians over rounds with 95 % intervals.

    Attributes:
        model: place among the models.
        part: `fixed length` or `until the end`.
        batch: rows run together.
        name: `prefill`, `decode`, `rate`, `energy`, `answer`, `length` or `ended`.
        unit: of the value.
        value: median over rounds.
        low, high: of a bootstrap over rounds; NaN for one round.
        ratio: median over rounds of this over the first model's in the same round.
        ratio_low, ratio_high: its interval.
    """

    model: int
    part: str
    batch: int
    name: str
    unit: str
    value: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class EfficiencyResult:
    """What was measured."""

    sizes: tuple[Size, ...]
    measures: tuple[Measure, ...]
    samples: dict[str, list[float]]
    """Values by round, under `model|part|batch|name`."""
    options: EfficiencyOptions
    about: dict[str, Any]
    """Device, threads, versions, energy counters, load."""
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        names = [size.name for size in self.sizes]
        return short("EfficiencyResult", models=names, measures=len(self.measures))

    def _repr_html_(self) -> str:
        return efficiency_html(self)

    def find(self, model: int, part: str, batch: int, name: str) -> Measure | None:
        """One number, or None where it was not measured."""
        for row in self.measures:
            if (row.model, row.part, row.batch, row.name) == (model, part, batch, name):
                return row
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; NaN becomes None."""
        return {
            "schema_version": 1,
            "models": [size.to_json() for size in self.sizes],
            "measures": [
                {k: None if v != v else v for k, v in asdict(row).items()} for row in self.measures
            ],
            "samples": self.samples,
            "options": asdict(self.options),
            "about": self.about,
            "warnings": list(self.warnings),
        }


def efficiency(
    models: str | OpenedModel | Sequence[str | OpenedModel],
    *,
    meter: Meter | None = None,
    progress: Progress = silent,
    **options: Any,
) -> EfficiencyResult:
    """Measure models side by side.

    Args:
        models: names as for `open_model`, or opened models (which keep their dtype and device);
            with `fractions` one, which is cut.
        meter: energy counters; this machine's by default.
        progress: told of runs done.
        options: see `EfficiencyOptions`.

    Raises:
        UsageError, ModelError, DataError, ResourceError: about options, models, data, memory.
    """
    from ..prune.models import OpenedModel
    from .efficiency_models import make_contenders
    from .efficiency_runs import context_of, passages, questions
    from .energy import find_meter

    settings = make_efficiency_options(**options)
    given = [models] if isinstance(models, str | OpenedModel) else list(models)
    texts, prompts = _texts(settings)
    load = os.getloadavg()[0]
    contenders = make_contenders(given, settings, progress)
    whole = settings.prompt_tokens + settings.new_tokens
    for contender in contenders:
        if whole > context_of(contender):
            raise UsageError(
                f"{contender.size.name}: {whole} tokens exceed its context of "
                f"{context_of(contender)}; lower --prompt-tokens or --new-tokens"
            )
    if meter is None:
        meter = find_meter(contenders[0].device)
    asked = [questions(c, prompts, settings.longest) for c in contenders]
    read = {
        (place, batch): passages(c, texts, batch, settings.prompt_tokens)
        for place, c in enumerate(contenders)
        for batch in settings.batches
    }
    samples = _Samples()
    _measure(contenders, read, asked, settings, meter, samples, progress)
    about = _about(contenders, settings, meter, load)
    return EfficiencyResult(
        sizes=tuple(c.size for c in contenders),
        measures=tuple(samples.measures(settings.seed)),
        samples=samples.to_json(),
        options=settings,
        about=about,
        warnings=tuple(_warnings(settings, about, load, samples.to_json())),
    )


def _texts(settings: EfficiencyOptions) -> tuple[list[str], list[str]]:
    from ..datasets.ifeval import load_instructions
    from ..datasets.neutral import load_neutral

    texts = [passage.text for passage in load_neutral().records]
    if not settings.prompts:
        return texts, []
    there = load_instructions(settings.data).records
    if len(there) < settings.prompts:
        raise UsageError(f"--prompts {settings.prompts}: there are {len(there)} instructions")
    return texts, [record.prompt for record in there[: settings.prompts]]


def _measure(
    contenders: Sequence[Contender],
    read: dict[tuple[int, int], Any],
    asked: Sequence[Sequence[Any]],
    settings: EfficiencyOptions,
    meter: Meter,
    samples: _Samples,
    progress: Progress,
) -> None:
    """All rounds. Medians within a round where work is repeated for the meter's sake."""
    from .efficiency_runs import generate, undisturbed
    from .energy import Meter

    off = Meter()
    repeats: dict[tuple[int, int], int] = {}
    for (place, batch), ids in read.items():
        warm = generate(contenders[place], ids, min(WARM, settings.new_tokens), off)
        guess = warm.first + warm.rest / max(warm.tokens - 1, 1) * settings.new_tokens
        repeats[place, batch] = times_over(guess) if meter.measures else 1
    total = settings.rounds * len(contenders) * (len(settings.batches) + settings.prompts)
    done = 0
    for _ in range(settings.rounds):
        with undisturbed():
            for batch in settings.batches:
                for place, contender in enumerate(contenders):
                    runs = [
                        generate(contender, read[place, batch], settings.new_tokens, meter)
                        for _ in range(repeats[place, batch])
                    ]
                    samples.fixed(place, batch, runs)
                    done += 1
                    progress("efficiency (runs)", done, total)
            answers: list[list[Run]] = [[] for _ in contenders]
            for number in range(settings.prompts):
                for place, contender in enumerate(contenders):
                    ids = asked[place][number]
                    run = generate(contender, ids, settings.longest, meter, stop=True)
                    answers[place].append(run)
                    done += 1
                    progress("efficiency (runs)", done, total)
        for place, runs in enumerate(answers):
            samples.until_end(place, runs)


def times_over(seconds: float) -> int:
    """How often work of so many seconds is repeated for a counter's sake."""
    return max(1, math.ceil(LEAST / seconds))


Key = tuple[int, str, int, str]
UNITS = {
    "prefill": "ms", "decode": "ms/token", "rate": "tokens/s", "energy": "J/token",
    "answer": "s/answer", "length": "tokens/answer", "ended": "share",
}  # fmt: skip


class _Samples:
    """Values by round."""

    def __init__(self) -> None:
        self._values: dict[Key, list[float]] = {}

    def _add(self, place: int, part: str, batch: int, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None:
                self._values.setdefault((place, part, batch, name), []).append(value)

    def fixed(self, place: int, batch: int, runs: Sequence[Run]) -> None:
        """One round's runs of a model at fixed length."""
        tokens = runs[0].tokens
        self._add(
            place,
            FIXED,
            batch,
            prefill=1000 * median(run.first for run in runs),
            decode=1000 * median(run.rest for run in runs) / (tokens - 1),
            rate=batch * tokens / median(run.seconds for run in runs),
            energy=_per_token(runs, batch),
        )

    def until_end(self, place: int, runs: Sequence[Run]) -> None:
        """One round's answers of a model."""
        if not runs:
            return
        tokens = sum(run.tokens for run in runs)
        self._add(
            place,
            UNTIL_END,
            1,
            answer=sum(run.seconds for run in runs) / len(runs),
            length=tokens / len(runs),
            ended=sum(run.ended for run in runs) / len(runs),
            rate=tokens / sum(run.seconds for run in runs),
            energy=_per_token(runs, 1),
        )

    def measures(self, seed: int) -> list[Measure]:
        """Medians, ratios to the first model and their intervals."""
        found = []
        for (place, part, batch, name), values in self._values.items():
            first = self._values.get((0, part, batch, name), [])
            ratios = (
                [a / b if b else float("nan") for a, b in zip(values, first, strict=True)]
                if len(first) == len(values)
                else []
            )
            found.append(
                Measure(
                    place, part, batch, name, UNITS[name],
                    *interval(values, seed), *interval(ratios, seed),
                )
            )  # fmt: skip
        return found

    def to_json(self) -> dict[str, list[float]]:
        """By name."""
        return {"|".join(map(str, key)): values for key, values in self._values.items()}


def _per_token(runs: Sequence[Run], batch: int) -> float | None:
    """Joules a token written, prefill included; None where a run could not be metered."""
    joules = [run.joules for run in runs if run.joules is not None]
    if len(joules) < len(runs):
        return None
    return sum(joules) / (batch * sum(run.tokens for run in runs))


def interval(values: Sequence[float], seed: int) -> tuple[float, float, float]:
    """Median with the 95 % percentile interval of a bootstrap over rounds."""
    if not values:
        return float("nan"), float("nan"), float("nan")
    rows = np.asarray(values, float)
    middle = float(np.median(rows))
    if len(rows) < 2:
        return middle, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = np.median(rows[rng.integers(0, len(rows), (RESAMPLES, len(rows)))], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return middle, float(low), float(high)


def _about(
    contenders: Sequence[Contender], settings: EfficiencyOptions, meter: Meter, load: float
) -> dict[str, Any]:
    import torch

    from .versions import versions

    first = contenders[0]
    device = str(first.device)
    if first.device.type == "cuda":
        device = f"{device} ({torch.cuda.get_device_name(first.device)})"
    return {
        "device": device,
        "dtypes": sorted({str(c.model.dtype).removeprefix("torch.") for c in contenders}),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "energy": meter.describe(),
        "measures_energy": meter.measures,
        "chat": [c.chat for c in contenders],
        "rounds": settings.rounds,
        "versions": versions("torch", "transformers"),
    }


def _warnings(
    settings: EfficiencyOptions, about: dict[str, Any], load: float, samples: dict[str, list[float]]
) -> list[str]:
    found = []
    if about["device"] == "cpu" and load > 0.5:
        found.append(
            f"the load was {load:.1f} on {about['cores']} cores before the first run: other work "
            "was going on, and times are of a shared machine"
        )
    timed = [v for key, v in samples.items() if key.endswith(("|prefill", "|decode", "|answer"))]
    late = sum(value > SLOW * median(values) for values in timed for value in values)
    if late:
        found.append(
            f"{late} of {sum(map(len, timed))} times are over {SLOW:g} times the median of their "
            "rounds: something held the machine up"
        )
    if settings.rounds < 5:
        found.append(f"{settings.rounds} rounds tell little of the noise; 5 or more do")
    return found
