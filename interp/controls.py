"""What a verdict stands beside: models that know nothing, other gauges, other explanations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..datasets.pairs import CONTROL, MISCONCEPTION, Pair
from ..probes.contrasts import Contrasts, record_contrasts
from ..probes.hooks import HooksEngine
from ..probes.tokens import Encoder
from ..progress import Progress, silent
from ..prune.expressions import parse_criterion
from ..prune.mlps import find_mlps
from ..prune.models import OpenedModel
from ..prune.nulls import row_shuffled, untrained
from ..prune.scoring import score_mlps
from .causal import EVERY, Effect
from .floors import Answerer
from .localisation import Association, Difference, associate, corrected
from .localiser import Localiser
from .options import Options
from .resamples import Resamples
from .rivals import Overlap
from .stages import Stages
from .verdict import ALPHA, SESOI, Check, Outcome, judge, specificity

GAUGES = 3
NULL_MODELS: dict[str, Callable[[OpenedModel, int], Any]] = {
    "untrained": untrained,
    "row-shuffled": row_shuffled,
}
"""Both give models of the same shape; `prune.nulls` says how."""


@dataclass(frozen=True)
class NullModel:
    """The primary test on a model that knows nothing of what was trained.

    Attributes:
        effect, low, high: corrected; NaN where too faint.
        accuracy: share of questions where the true answer is preferred.
        outcome: the verdict's rule applied to it, with q = p.
    """

    model: str
    n_items: int
    rho: float
    rho_null: float
    effect: float
    low: float
    high: float
    p: float
    attenuation: float
    accuracy: float
    outcome: Outcome


def gauges(criterion: str) -> tuple[str, ...]:
    """The criterion in other parametrisations of the same function."""
    if parse_criterion(criterion).kind == "balanced":
        return tuple(f"gauged:{criterion}:{seed}" for seed in range(GAUGES))
    return (f"balanced({criterion})", *(f"gauged:{criterion}:{seed}" for seed in range(GAUGES)))


def null_models(
    opened: OpenedModel,
    encoder: Encoder,
    pairs: Mapping[str, Sequence[Pair]],
    options: Options,
    stages: Stages,
    *,
    progress: Progress = silent,
) -> list[NullModel]:
    """Run the primary test on an untrained and a row-shuffled model.

    Args:
        opened: the model as it was loaded, whose weights are not touched.
        pairs: misconception and control pairs, of shared questions.
    """
    found = []
    for name, make in NULL_MODELS.items():
        model = None

        def build(make: Callable[[OpenedModel, int], Any] = make) -> Any:
            nonlocal model
            model = make(opened, options.seed) if model is None else model
            return model

        def record(name: str = name, build: Callable[[], Any] = build) -> dict[str, np.ndarray]:
            contrasts = record_contrasts(
                HooksEngine(build()),
                encoder,
                pairs,
                max_tokens=options.max_tokens,
                progress=lambda what, d, t: progress(f"{name} model: {what}", d, t),
            )
            scores = score_mlps(find_mlps(build()), options.criteria[:1])[options.criteria[0]]
            return {
                f"{kind}/{key}": value
                for kind, one in contrasts.items()
                for key, value in one.arrays().items()
            } | {f"score/{k:04d}": layer for k, layer in enumerate(scores)}

        arrays = stages(f"null-{name}", record)
        contrasts = {
            kind: Contrasts.restored(
                [pair.item for pair in members],
                {k.removeprefix(f"{kind}/"): v for k, v in arrays.items() if k.startswith(kind)},
            )
            for kind, members in pairs.items()
        }
        scores = [arrays[k] for k in sorted(arrays) if k.startswith("score/")]
        found.append(_test(name, scores, contrasts, options))
    return found


def _test(
    name: str,
    scores: Sequence[np.ndarray],
    contrasts: Mapping[str, Contrasts],
    options: Options,
) -> NullModel:
    localiser = Localiser({options.criteria[0]: scores}, tenths=False)
    rng = np.random.default_rng([options.seed, 7])
    n = len(contrasts[MISCONCEPTION].items)
    boots = {MISCONCEPTION: Resamples.bootstrap(n, options.bootstraps, rng)}
    boots[CONTROL] = boots[MISCONCEPTION].subset(places(contrasts))
    rows: dict[str, Association] = {}
    resampled = {}
    for kind, draws in boots.items():
        matrix = contrasts[kind].attribution
        flips = Resamples.sign_flips(len(matrix), options.permutations, rng)
        whole = associate(localiser, kind, matrix, "attribution", flips, draws, rng)
        rows[kind], resampled[kind] = whole.associations[0], whole.resampled[:, 0]
    row = rows[MISCONCEPTION]
    row = replace(row, q=row.p)
    against = specificity(row, rows[CONTROL], resampled)
    verdict = judge(row, against)
    margins = contrasts[MISCONCEPTION].loglikelihood
    effect = corrected(row)
    nan = float("nan")
    return NullModel(
        name,
        n,
        row.rho,
        row.rho_null,
        *((nan, nan, nan) if effect is None else effect[:3]),
        row.p,
        row.attenuation,
        float((margins[:, 0] < margins[:, 1]).mean()),
        verdict.outcome,
    )


def places(contrasts: Mapping[str, Contrasts]) -> np.ndarray:
    """Where the control's items stand among the misconception's."""
    known = {item: k for k, item in enumerate(contrasts[MISCONCEPTION].items)}
    return np.array([known[item] for item in contrasts[CONTROL].items])


def checks(
    criterion: str,
    associations: Sequence[Association],
    differences: Sequence[Difference],
    nulls: Sequence[NullModel],
    effects: Sequence[Effect],
    answerers: Sequence[Answerer],
    overlaps: Sequence[Overlap],
) -> list[Check]:
    """Which controls the primary test passed; the first ones are required."""
    rows = {
        row.criterion: row
        for row in associations
        if (row.property, row.function) == (MISCONCEPTION, "attribution")
    }
    primary = rows[criterion]
    found = [
        Check(
            f"{null.model} model",
            True,
            null.outcome not in ("supported", "contradicted"),
            f"{null.outcome}: {_found(null)}, p = {null.p:.3f}",
        )
        for null in nulls
    ]
    found += _orders(criterion, primary, rows)
    for row in differences:
        if row.criterion == criterion and row.function == "attribution" and row.minus != CONTROL:
            found.append(
                Check(
                    f"more than {row.minus}",
                    False,
                    row.high < 0,
                    f"effect minus {row.minus}'s {row.difference:+.2f} "
                    f"[{row.low:+.2f}, {row.high:+.2f}]",
                )
            )
    found += _causal(effects)
    model = next((row for row in answerers if row.name == "model"), None)
    if model is not None:
        chance = next(row for row in answerers if row.name == "chance")
        found.append(
            Check(
                "above its floor",
                False,
                model.mc2_low > chance.mc2,
                f"MC2 {model.mc2:.3f} [{model.mc2_low:.3f}, {model.mc2_high:.3f}], of an answerer "
                f"that knows nothing {chance.mc2:.3f}",
            )
        )
    cut = [row for row in overlaps if row.cut.startswith("lowest")]
    if cut:
        worst = min(cut, key=lambda row: row.more_p)
        found.append(
            Check(
                "no rival job",
                False,
                worst.more_p * len(cut) > ALPHA,
                "; ".join(
                    f"{row.found} of {row.members} {row.rival} neurons in the lowest tenth "
                    f"({row.expected:.1f} expected)"
                    if row.members
                    else f"no {row.rival} neurons"
                    for row in cut
                ),
            )
        )
    return found


def _orders(criterion: str, primary: Association, rows: Mapping[str, Association]) -> list[Check]:
    effect = corrected(primary)
    if effect is None:
        return []
    found = []
    random = [row for name, row in rows.items() if name.startswith("random:")]
    if random and (chance := corrected(random[0])) is not None:
        found.append(
            Check(
                "an order without meaning shows nothing",
                False,
                chance.low <= 0 <= chance.high,
                f"{random[0].criterion}: {chance.value:+.3f} "
                f"[{chance.low:+.3f}, {chance.high:+.3f}]",
            )
        )
    given = (primary.partial - primary.partial_null) / primary.attenuation
    found.append(
        Check(
            "the same given loudness",
            False,
            None
            if abs(effect.value) < SESOI
            else given * effect.value > 0 and abs(given) >= abs(effect.value) / 2,
            f"{given:+.2f} given mean |activation| and output norm, {effect.value:+.2f} without",
        )
    )
    others = {
        name: other.value
        for name in gauges(criterion)
        if name in rows and (other := corrected(rows[name])) is not None
    }
    if others:
        farthest = max(others, key=lambda name: abs(others[name] - effect.value))
        found.append(
            Check(
                "the same in other gauges",
                False,
                abs(others[farthest] - effect.value) < SESOI,
                ", ".join(f"{name} {value:+.2f}" for name, value in others.items())
                + f"; as it is {effect.value:+.2f}",
            )
        )
    return found


def _causal(effects: Sequence[Effect]) -> list[Check]:
    found = []
    for row in effects:
        if (row.layer, row.tenth, row.draw, row.quantity) != (EVERY, 0, -1, MISCONCEPTION):
            continue
        found.append(
            Check(
                f"silencing the lowest tenth ({row.replacing}) helps the truth",
                False,
                bool(row.specific > 0 and row.specific_p < ALPHA),
                f"margin {row.change:+.2f} nats; at equal damage {row.specific:+.2f}, "
                f"z = {row.specific_z:+.1f}, p = {row.specific_p:.3f}"
                + (" (extrapolated)" if row.extrapolated else ""),
            )
        )
    return found


def _found(null: NullModel) -> str:
    if null.effect != null.effect:
        return "effect too faint"
    return f"effect {null.effect:+.2f} [{null.low:+.2f}, {null.high:+.2f}]"
