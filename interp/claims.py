"""What the paper's published numbers say by themselves, recomputed and set against chance.

The numbers are those of arXiv 2512.22671 as its author publishes them beside the paper
(`paper/llama32.csv`, see `paper/README.md`): Llama-3.2 1B, 3B and 1B-Instruct, neurons cut by the
criterion that is called `ppm` here, 0 to 60 % of every layer. Nothing is run.

- **MMLU against MC2.** Pearson's r as the paper takes it; Spearman's rho; r with each point left
  out; partial r given the fraction cut, and given log perplexity. Both series go with the amount of
  pruning, so a large r says little: *by chance* is how often two unrelated increasing series of as
  many points (sorted uniform draws) reach as large an |r|.
- **MC2 and the floor.** MC2 of an answerer to whom all answers are equally likely is 0.4484 on the
  paper's first version of TruthfulQA and 0.4641 on the one that lm-evaluation-harness reads.
- **IFEval's gains.** Two proportions of 541 prompts, unpaired: z, and p after Holm over the cuts of
  a model. Item-level answers are not published; paired tests would be sharper.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..errors import UsageError, nearest

PUBLISHED = Path(__file__).parent / "paper" / "llama32.csv"
PROMPTS = 541
"""Of IFEval."""
FLOORS = {"v0": 0.4484, "v1": 0.4641}
"""MC2 where all answers are equally likely; tests recompute them from the official files."""
DRAWS = 100_000
MMLU, MC2 = ("mmlu", "acc"), ("truthfulqa_mc2", "acc")
IFEVAL = ("ifeval", "prompt_level_strict_acc")
PERPLEXITY = ("wikitext", "word_perplexity")
Measure = tuple[str, str]
"""A task and its metric, as lm-evaluation-harness names them."""


@dataclass(frozen=True)
class Series:
    """One measure of one model under growing cuts."""

    fractions: tuple[float, ...]
    values: tuple[float, ...]


@cache
def published() -> Mapping[str, Mapping[Measure, Series]]:
    """The paper's numbers: by model, by measure."""
    found: dict[str, dict[Measure, list[tuple[float, float]]]] = {}
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            measure = row["task"], row["metric"]
            points = found.setdefault(row["model"], {}).setdefault(measure, [])
            points.append((float(row["fraction"]), float(row["value"])))
    return {
        model: {
            measure: Series(tuple(f for f, _ in points), tuple(v for _, v in points))
            for measure, points in measures.items()
        }
        for model, measures in found.items()
    }


@dataclass(frozen=True)
class Correlation:
    """MMLU against MC2 over the cuts of one model; see the module.

    Attributes:
        n: points.
        r, p: Pearson's, two-sided.
        rho, rho_p: Spearman's.
        without: smallest and largest r with one point left out.
        given_fraction, given_perplexity: partial r; NaN where perplexity is not published.
        by_chance: share of unrelated increasing series with at least this |r|.
    """

    model: str
    n: int
    r: float
    p: float
    rho: float
    rho_p: float
    without: tuple[float, float]
    given_fraction: float
    given_perplexity: float
    by_chance: float


@dataclass(frozen=True)
class Distance:
    """MC2 below (-) or above (+) the answerer that knows nothing, before and after the cuts."""

    model: str
    floor: str
    chance: float
    intact: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Gain:
    """IFEval (prompt level, strict) at one cut against the intact model.

    Attributes:
        relative: change as a share of the intact score.
        z, p: of two proportions, unpaired, two-sided; `holm` is p adjusted over the model's cuts.
    """

    model: str
    fraction: float
    intact: float
    value: float
    relative: float
    z: float
    p: float
    holm: float


@dataclass(frozen=True)
class Claims:
    """Everything that the published numbers give."""

    correlations: tuple[Correlation, ...]
    distances: tuple[Distance, ...]
    gains: tuple[Gain, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON; what is not a number is null."""
        found = asdict(self)
        for row in found["correlations"]:
            row["given_perplexity"] = _plain(row["given_perplexity"])
        return {"schema_version": 1, **found}


def _plain(value: float) -> float | None:
    return None if value != value else value


def claims(models: Sequence[str] | None = None, *, seed: int = 0) -> Claims:
    """Recompute what can be from the published numbers alone.

    Args:
        models: as in the file; all by default.
        seed: of the chance of a correlation.

    Raises:
        UsageError: a model that is not in the file.
    """
    data = published()
    for model in models or ():
        if model not in data:
            hint = nearest(model, data) or f"; there are {', '.join(data)}"
            raise UsageError(f"no published numbers for {model!r}{hint}")
    chosen = {model: data[model] for model in models or data}
    return Claims(
        tuple(_correlation(model, found, seed) for model, found in chosen.items()),
        tuple(
            Distance(model, name, floor, mc2[0] - floor, min(mc2[1:]) - floor, max(mc2[1:]) - floor)
            for model, found in chosen.items()
            for mc2 in (found[MC2].values,)
            for name, floor in FLOORS.items()
        ),
        tuple(gain for model, found in chosen.items() for gain in _gains(model, found[IFEVAL])),
    )


def _correlation(model: str, found: Mapping[Measure, Series], seed: int) -> Correlation:
    mmlu, mc2 = (np.array(found[measure].values) for measure in (MMLU, MC2))
    n = len(mmlu)
    r, p = _both(stats.pearsonr(mmlu, mc2))
    rho, rho_p = _both(stats.spearmanr(mmlu, mc2))
    without = [_both(stats.pearsonr(*(np.delete(v, k) for v in (mmlu, mc2))))[0] for k in range(n)]
    perplexity = found.get(PERPLEXITY)
    return Correlation(
        model,
        n,
        r,
        p,
        rho,
        rho_p,
        (min(without), max(without)),
        partial(mmlu, mc2, np.array(found[MMLU].fractions)),
        float("nan") if perplexity is None else partial(mmlu, mc2, np.log(perplexity.values)),
        by_chance(r, n, seed=seed),
    )


def _both(found: Any) -> tuple[float, float]:
    """A correlation of scipy's and its p."""
    return float(found.statistic), float(found.pvalue)


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Pearson's r of what is left of two series once a straight line on a third is taken off."""
    design = np.column_stack([np.ones_like(given, dtype=float), given])
    x, y = (v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in (x, y))
    return _both(stats.pearsonr(x, y))[0]


def by_chance(r: float, n: int, *, draws: int = DRAWS, seed: int = 0) -> float:
    """How often two unrelated increasing series of n points correlate by at least |r|.

    Each is a sample of n uniform numbers, sorted: of all increasing series within a range none is
    likelier than another.
    """
    rng = np.random.default_rng(seed)
    x, y = np.sort(rng.random((2, draws, n)), axis=-1)
    x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
    found = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return float((np.abs(found) >= abs(r)).mean())


def _gains(model: str, ifeval: Series) -> list[Gain]:
    intact, cuts = ifeval.values[0], ifeval.values[1:]

    def error(share: float) -> float:
        return share * (1 - share) / PROMPTS

    z = [(value - intact) / np.sqrt(error(value) + error(intact)) for value in cuts]
    p = [float(2 * stats.norm.sf(abs(one))) for one in z]
    order = np.argsort(p)
    holm = np.empty(len(p))
    holm[order] = np.minimum(
        np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)), 1.0
    )
    return [
        Gain(model, f, intact, v, v / intact - 1, float(one), prob, float(adjusted))
        for f, v, one, prob, adjusted in zip(ifeval.fractions[1:], cuts, z, p, holm, strict=True)
    ]
