"""What a sweep's numbers say: every score beside its floor, beside random cuts and beside chance.

Everything is made of the frames of a `SweepResult`; no model is needed.

- **Curves**: score by fraction, 95 % bootstrap over items. The band of random cuts is their range.
- **Paired tests**, item by item (see `sweep_stats`): every cut against the intact model, and
  against random cuts of its size. Of several random cuts an item's rival is the mean over them; the
  test then says that the criterion differs from *these* cuts. Whether it differs from random cuts
  in general is another question: z among the draws, and the p of one more draw, answer it. The
  family of q: all criteria without controls, at all fractions, in the metrics that are tested,
  against both; and the same for p among draws.
- **MMLU against MC2** over the cuts, as the paper correlates them, of every criterion and of every
  random order: where random cuts have such an r, it says nothing about magnitude.
- **At equal perplexity**: what a criterion's cut scores above random cuts that do the same damage.
  Random orders' scores are interpolated along log perplexity, order by order. Intervals resample
  the task's items and the perplexity's; they hold the random orders fixed.
- **Kinds of instructions**: IFEval's share of followed instructions, kind by kind.
- **Generated answers**: length, how many were ended by the model, how many are empty.
- **The paper's numbers**, where the model is one of its three.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from .resamples import benjamini_hochberg
from .sweep_findings import Answers, Instructions, Paired, Score, SweepAnalysis
from .sweep_measures import PART, Cuts, Key, Measure, in_family, measures, yardstick
from .sweep_series import beside, correlations, matched, paper_model
from .sweep_stats import (
    BOOTSTRAPS,
    FLIPS,
    among,
    interval,
    is_binary,
    mcnemar,
    resampled,
    sign_flips,
)

if TYPE_CHECKING:
    from .sweep_result import SweepResult

__all__ = ["SweepAnalysis", "analyse", "floors_of"]

_NAN = float("nan")


def analyse(
    result: SweepResult,
    *,
    floors: Mapping[Key, float] | None = None,
    bootstraps: int = BOOTSTRAPS,
    flips: int = FLIPS,
    seed: int = 0,
) -> SweepAnalysis:
    """Say what a sweep's numbers say; see the module.

    Args:
        floors: scores of answerers that know nothing; by default those of the manifest.
        bootstraps: resamples of the items.
        flips: random signs of a paired test.

    Raises:
        DataError: points of other items.
    """
    every = measures(result)
    found = {key: of for key, of in every.items() if not of.is_part}
    cuts = Cuts.of(result.points)
    known = floors_of(result.manifest) if floors is None else dict(floors)
    draws = {
        key: resampled(of.numbers, of.weights, draws=bootstraps, seed=seed + k)
        for k, (key, of) in enumerate(every.items())
    }
    chosen = [of.key for of in in_family(found)]
    tests = [row for of in found.values() for row in _tests(of, cuts, draws[of.key], flips, seed)]
    scale = yardstick(found)
    scores = tuple(
        row for of in found.values() for row in _scores(of, cuts, draws[of.key], _floor(of, known))
    )
    name = paper_model(result.manifest)
    return SweepAnalysis(
        scores,
        tuple(_corrected(tests, chosen)),
        tuple(correlations(found, cuts, draws, scale, seed)),
        () if scale is None else tuple(matched(found, chosen, cuts, draws, scale)),
        tuple(
            row
            for of in every.values()
            if of.is_part
            for row in _instructions(of, cuts, draws[of.key], _floor(of, known))
        ),
        tuple(_answers(result, cuts, bootstraps, seed)),
        () if name is None else tuple(beside(scores, name)),
        None if scale is None else scale.key,
        name,
    )


def floors_of(manifest: Mapping[str, Any]) -> dict[Key, float]:
    """The floors that a sweep's manifest holds: of each of its `tasks`, `floor` by metric."""
    return {
        (str(task["name"]), metric): float(value)
        for task in manifest.get("tasks", ())
        for metric, value in (task.get("floor") or {}).items()
        if value is not None
    }


def _floor(of: Measure, known: Mapping[Key, float]) -> float:
    """A measure's floor, which may be one of all ways to read the answer; NaN where none is."""
    return known.get(of.key, known.get((of.task, of.metric.partition(",")[0]), _NAN))


def _scores(of: Measure, cuts: Cuts, draws: np.ndarray, floor: float) -> Iterator[Score]:
    shown = of.shown(of.scores())
    low, high = of.shown(np.stack(interval(draws)))
    for k, point in enumerate(of.points):
        edges = float(low[k]), float(high[k])
        where = cuts.where(point)
        yield Score(
            task=of.task,
            metric=of.metric,
            value=float(shown[k]),
            low=edges[0],
            high=edges[1],
            n=of.n,
            floor=floor,
            **where,
        )


def _tests(of: Measure, cuts: Cuts, draws: np.ndarray, flips: int, seed: int) -> list[Paired]:
    """All cuts of one measure against the intact model and against random cuts of their size."""
    pairs: list[tuple[int, str, list[int]]] = []
    for point in of.points:
        if point == cuts.intact:
            continue
        if cuts.intact is not None:
            pairs.append((point, "intact", [cuts.intact]))
        rivals = cuts.random(cuts.fraction(point))
        if rivals and cuts.control(point) != "random":
            pairs.append((point, "random", rivals))
    if not pairs:
        return []
    parts, scores = of.contributions(), of.scores()
    places = [(of.row(point), [of.row(r) for r in rivals]) for point, _, rivals in pairs]
    differences = np.stack([parts[own] - parts[rivals].mean(0) for own, rivals in places])
    flipped = sign_flips(differences, draws=flips, seed=seed)
    rows = []
    for (point, against, rivals), (own, others), p, part in zip(
        pairs, places, flipped, differences, strict=True
    ):
        low, high = interval(draws[:, own] - draws[:, others].mean(1))
        z = p_draws = _NAN
        if against == "random":
            z, p_draws = among(float(scores[own]), [float(scores[r]) for r in others])
        is_exact = len(rivals) == 1 and is_binary(of.numbers[[own, *others]])
        exact = mcnemar(of.numbers[others[0]], of.numbers[own]) if is_exact else None
        finite = bool(np.isfinite(part).all())
        value, rival = of.shown(np.array([scores[own], scores[others].mean()]))
        rows.append(
            Paired(
                task=of.task,
                metric=of.metric,
                against=against,
                n=of.n,
                value=float(value),
                rival=float(rival),
                difference=float(scores[own] - scores[others].mean()),
                low=float(low),
                high=float(high),
                test="sign flips" if exact is None else "McNemar",
                gained=None if exact is None else exact.gained,
                lost=None if exact is None else exact.lost,
                p=exact.p if exact is not None else float(p) if finite else _NAN,
                draws=len(rivals) if against == "random" else 0,
                z=z,
                p_draws=p_draws,
                **cuts.where(point),
            )
        )
    return rows


def _corrected(rows: Sequence[Paired], chosen: Sequence[Key]) -> list[Paired]:
    """With q over each of the two families."""

    def adjusted(name: str) -> dict[int, float]:
        family = [
            k
            for k, row in enumerate(rows)
            if row.control is None
            and (row.task, row.metric) in chosen
            and getattr(row, name) == getattr(row, name)
        ]
        q = benjamini_hochberg([getattr(rows[k], name) for k in family])
        return dict(zip(family, map(float, q), strict=True))

    q, q_draws = adjusted("p"), adjusted("p_draws")
    return [
        replace(row, q=q.get(k, _NAN), q_draws=q_draws.get(k, _NAN)) for k, row in enumerate(rows)
    ]


def _instructions(
    of: Measure, cuts: Cuts, draws: np.ndarray, floor: float
) -> Iterator[Instructions]:
    metric, _, kind = of.metric.partition(PART)
    low, high = interval(draws)
    for k, value in enumerate(of.scores()):
        yield Instructions(
            task=of.task,
            metric=metric,
            kind=kind,
            value=float(value),
            low=float(low[k]),
            high=float(high[k]),
            instructions=int(of.weights.sum()),
            n=of.n,
            floor=floor,
            **cuts.where(of.points[k]),
        )


def _answers(result: SweepResult, cuts: Cuts, bootstraps: int, seed: int) -> Iterator[Answers]:
    if result.answers is None or "answer_tokens" not in result.answers.columns:
        return
    generated = result.answers.filter(polars.col("answer_tokens").is_not_null())
    for key, frame in generated.group_by("point", "task", maintain_order=True):
        point, task = key
        number = int(str(point))
        tokens = frame.sort("doc_id")["answer_tokens"].to_numpy().astype(np.float64)
        ones = np.ones(len(tokens))
        low, high = interval(resampled(tokens[None], ones, draws=bootstraps, seed=seed)[:, 0])
        texts = frame["text"].fill_null("")
        yield Answers(
            task=str(task),
            n=len(tokens),
            tokens=float(tokens.mean()),
            low=float(low),
            high=float(high),
            median=float(np.median(tokens)),
            characters=float(np.mean(frame["answer_characters"].to_numpy())),
            ended=float(np.mean(frame["ended"].to_numpy())),
            empty=float(np.mean([not text.strip() for text in texts])),
            **cuts.where(number),
        )
