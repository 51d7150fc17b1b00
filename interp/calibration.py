"""`glulens calibrate`: the test of `hypothesis` on answers that are known, as a run directory.

plantings.csv     one row an order that was planted, and what was said of it
rates.csv         the same counted: power by strength, false positives with their interval
figures/power.*   power against strength
report.md, report.html
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.pairs import CONTROL, MISCONCEPTION, load_material
from ..datasets.sources import BUILTIN
from ..errors import UsageError
from ..progress import Progress, silent
from ..prune.gauge import rescale
from ..prune.mlps import find_mlps
from ..prune.models import OpenedModel, open_model
from ..prune.scoring import score_mlps
from ..rundir import FIGURES, save_frame, write_manifest, writing
from .calibrate import PLANTED, RANDOM, STRENGTHS, Planting, Rate, calibrate_contrasts, rates
from .content import Picture, Report, Section, Table
from .option_checks import at_least
from .planting import SCORES, planting_factors
from .run_files import write_pages
from .shown import calibration_html, short
from .stages import Stages, worth_keeping
from .unfinished import at_work, folder_of
from .verdict import SESOI
from .versions import occasion, source_entry, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXTS = 8
"""On which the rescaled model is compared with the model."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What `glulens calibrate` takes.

    Attributes:
        data: `builtin`, `hub`, or a folder of official files.
        limit: questions, drawn at random; all if not given.
        criterion: the score whose order is planted; it must see `up` and not `down`.
        plantings: of each kind and strength.
        orders: random orders.
        seed: of every draw.
        permutations, bootstraps: as for the hypothesis.
        max_tokens: padded tokens in a batch.
    """

    data: str = BUILTIN
    limit: int | None = None
    criterion: str = "ppm"
    plantings: int = 40
    orders: int = 200
    seed: int = 0
    permutations: int = 999
    bootstraps: int = 200
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.criterion not in SCORES:
            raise UsageError(
                f"criterion {self.criterion!r}: an order can be planted into {', '.join(SCORES)}, "
                "which see up and not down"
            )
        at_least(
            self, plantings=1, orders=1, seed=0, permutations=100, bootstraps=100, max_tokens=1
        )


@dataclass(frozen=True)
class Calibration:
    """What calibration found.

    Attributes:
        logit_change: largest change of a logit in a model rescaled to hold a planted order, over
            the standard deviation of its logits.
        order_kept: share of neighbours in the planted order that the rescaled model's own scores
            put in that order.
    """

    plantings: tuple[Planting, ...]
    rates: tuple[Rate, ...]
    logit_change: float
    order_kept: float
    manifest: dict[str, Any]
    path: Path | None = None

    def __repr__(self) -> str:
        return short("Calibration", plantings=len(self.plantings), path=self.path)

    def _repr_html_(self) -> str:
        return calibration_html(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "schema_version": 1,
            "rates": [
                {k: None if isinstance(v, float) and v != v else v for k, v in asdict(row).items()}
                for row in self.rates
            ],
            "logit_change": self.logit_change,
            "order_kept": self.order_kept,
            "path": str(self.path) if self.path else None,
        }


def calibrate(
    model: OpenedModel | str,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dtype: Any = "auto",
    device: str = "auto",
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
    **options: Any,
) -> Calibration:
    """Plant magnitude orders by rescaling and see what the hypothesis' test says of them.

    Args:
        model: an opened model, or a name for `open_model`; it must have gated MLPs.
        output: where to write a run directory; nothing is written without it.
        resume, overwrite: as for `hypothesis`.
        options: see `CalibrationOptions`.

    Raises:
        UsageError, ModelError, DataError, RunError, ResourceError: see `errors`.
    """
    from ..probes.contrasts import Contrasts, record_contrasts
    from ..probes.hooks import HooksEngine
    from ..probes.tokens import Encoder

    settings = CalibrationOptions(**options)
    folder = None if output is None else folder_of(output, resume=resume, overwrite=overwrite)
    started = time.time()
    material = load_material(settings.data, limit=settings.limit, seed=settings.seed)
    pairs = {name: material.pairs[name] for name in (MISCONCEPTION, CONTROL)}
    opened = (
        model
        if isinstance(model, OpenedModel)
        else open_model(model, dtype=dtype, device=device, progress=progress)
    )
    config = opened.model.config.get_text_config()
    encoder = Encoder(opened.tokenizer, max_length=getattr(config, "max_position_embeddings", None))
    about = [
        "calibrate",
        opened.source.sha256,
        str(opened.model.dtype),
        [settings.data, settings.limit, settings.seed],
        [dict(entry) for entry in material.provenance],
    ]
    orders, factors = _random_order(opened, settings)  # before hours of work: it may be refused
    engine = HooksEngine(opened.model)
    with at_work(folder, worth_keeping=worth_keeping) if folder else nullcontext():
        stages = Stages(folder, about)

        def make() -> dict[str, np.ndarray]:
            found = record_contrasts(
                engine, encoder, pairs, max_tokens=settings.max_tokens, progress=progress
            )
            return {
                f"{name}/{key}": value
                for name, one in found.items()
                for key, value in one.arrays().items()
            }

        arrays = stages("contrasts", make)
        contrasts = {
            name: Contrasts.restored(
                [pair.item for pair in members],
                {k.removeprefix(f"{name}/"): v for k, v in arrays.items() if k.startswith(name)},
            )
            for name, members in pairs.items()
        }
        found = calibrate_contrasts(
            contrasts,
            engine.widths,
            plantings=settings.plantings,
            orders=settings.orders,
            permutations=settings.permutations,
            bootstraps=settings.bootstraps,
            seed=settings.seed,
            progress=progress,
        )
        texts = [encoder.text(pair.a) for pair in pairs[MISCONCEPTION][:TEXTS]]
        change, kept = _same_function(opened, settings.criterion, orders, factors, texts)
        manifest = {
            **occasion("calibrate", argv, started),
            "options": asdict(settings),
            "model": {
                **source_entry(opened.source),
                "family": config.model_type,
                "dtype": str(opened.model.dtype).removeprefix("torch."),
                "layers": len(engine.widths),
                "neurons": sum(engine.widths),
            },
            "data": list(material.provenance),
            "items": {name: len(members) for name, members in pairs.items()},
            "warnings": [*material.notes, *stages.notes],
            "versions": versions("torch", "transformers", "numpy", "scipy"),
        }
        path = None if output is None else Path(output)
        result = Calibration(tuple(found), tuple(rates(found)), change, kept, manifest, path)
        if path is not None:
            _write(result, path, overwrite=overwrite)
    return result


def _random_order(
    opened: OpenedModel, settings: CalibrationOptions
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A random order of every MLP's neurons, and the factors that plant it.

    Raises:
        UsageError: no order can be planted into this model.
    """
    from ..prune.scoring import weigh

    rng = np.random.default_rng([settings.seed, 10])
    mlps = find_mlps(opened.model)
    orders = [rng.permutation(mlp.width) for mlp in mlps]
    weights = weigh([mlp.layout for mlp in mlps], opened.model.get_parameter)
    return orders, planting_factors(settings.criterion, weights, orders)


def _same_function(
    opened: OpenedModel,
    criterion: str,
    orders: Sequence[np.ndarray],
    factors: Sequence[np.ndarray],
    texts: Sequence[Any],
) -> tuple[float, float]:
    """Rescale a copy to these orders: how far logits move, and whether the orders come out."""
    import torch

    other = copy.deepcopy(opened.model)
    rescale(other, factors)
    largest = 0.0
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([text.ids], device=opened.device)
            before, after = (model(ids).logits.float() for model in (opened.model, other))
            largest = max(largest, float((after - before).abs().max() / before.std()))
    scores = score_mlps(find_mlps(other), [criterion])[criterion]
    steps = [
        np.diff(score[np.argsort(order)]) > 0 for score, order in zip(scores, orders, strict=True)
    ]
    return largest, float(np.concatenate(steps).mean())


def rate_rows(result: Calibration) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Rates in words."""
    header = ("planted", "strength", "n", "supported", "contradicted", "no evidence",
              "cannot tell", "right [95 %]", "p < 0.05", "median effect")  # fmt: skip
    return header, [
        (
            row.kind,
            f"{row.strength:.1f}" if row.kind != RANDOM else "-",
            str(row.n),
            str(row.supported),
            str(row.contradicted),
            str(row.no_evidence),
            str(row.cannot_tell),
            f"{row.right:.1%} [{row.low:.1%}, {row.high:.1%}]",
            f"{row.rejected:.1%}",
            f"{row.effect:+.2f}",
        )
        for row in result.rates
    ]


def summary(result: Calibration) -> str:
    """The three numbers that matter."""
    random = next(row for row in result.rates if row.kind == RANDOM)
    wrong = random.supported + random.contradicted
    strongest = {row.kind: row for row in result.rates if row.strength == max(STRENGTHS)}
    said = ", ".join(
        f"{kind} {row.right:.1%} (effect {row.effect:+.2f})" for kind, row in strongest.items()
    )
    return (
        f"Of {random.n} random orders {wrong} were called supported or contradicted: "
        f"{wrong / random.n:.1%} [{1 - random.high:.1%}, {1 - random.low:.1%}]. Called right at "
        f"strength 1: {said}."
    )


def _report(result: Calibration) -> Report:
    model, options = result.manifest["model"], result.manifest["options"]
    about = (
        f"Model `{model['name']}`, {model['neurons']:,} neurons, "
        f"{result.manifest['items'][MISCONCEPTION]} questions, criterion "
        f"`{options['criterion']}`, {result.manifest['started']}, seed {options['seed']}."
    )
    return Report(
        "Does the test say what was planted?",
        summary(result),
        about,
        [
            Section(
                "What was planted",
                [
                    "The order of magnitude is planted by rescaling `up` against `down`, which "
                    "leaves the function as it is. From a random half of the questions comes the "
                    "order of neurons by standardised mean attribution; the other half is tested. "
                    "*planted*: magnitude falls with attribution; *reversed*: it rises; *random*: "
                    "no relation. Strength: the correlation of normal scores with that order, "
                    "which half the questions know only in part, so that the effect that is there "
                    "is smaller. One test each, no family: q = p. Smallest effect of interest: "
                    f"{SESOI:g}.",
                    Table(*rate_rows(result), source="rates.csv"),
                    Picture("power", "Share of plantings that were called what they are"),
                    f"A copy of the model rescaled to a random order: largest change of a logit "
                    f"{result.logit_change:.1e} standard deviations of its logits; "
                    f"{result.order_kept:.2%} of neighbours in the order stand in it by the "
                    "copy's own scores.",
                    "p alone is the p of swapped labels: on random orders it may reject more often "
                    "than 5 %, since labels do mean something and only the order does not. The "
                    "verdict also asks for an effect that matters and an interval that counts "
                    "chance over orders.",
                ],
            )
        ],
    )


def power_figure(result: Calibration) -> Figure:
    """Power against strength, with intervals, and the false-positive rate."""
    from .figures import new, plain

    figure = new(6, 3.2)
    axis = figure.subplots()
    for kind, colour, marker in ((PLANTED, "#D55E00", "o"), ("reversed", "#0072B2", "s")):
        rows = [row for row in result.rates if row.kind == kind]
        axis.errorbar(
            [row.strength for row in rows],
            [row.right for row in rows],
            yerr=[
                [row.right - row.low for row in rows],
                [row.high - row.right for row in rows],
            ],
            color=colour,
            marker=marker,
            ms=5,
            lw=1.2,
            label={PLANTED: "planted: called supported"}.get(kind, "reversed: called contradicted"),
        )
    random = next(row for row in result.rates if row.kind == RANDOM)
    axis.errorbar([0], [1 - random.right], yerr=[[random.high - random.right],
                  [random.right - random.low]], color="#7F7F7F", marker="D", ms=5,
                  label="random: called either")  # fmt: skip
    axis.axhline(0.95, color="black", lw=0.6, ls=":")
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("strength of what was planted")
    axis.set_ylabel("share of plantings")
    axis.legend(frameon=False, fontsize=8)
    plain(axis)
    return figure


def _write(result: Calibration, path: Path, *, overwrite: bool) -> None:
    import polars

    whole = _report(result)
    with writing(path, overwrite=overwrite) as scratch:
        for name, rows in (("plantings", result.plantings), ("rates", result.rates)):
            frame = polars.DataFrame([asdict(row) for row in rows], infer_schema_length=None)
            save_frame(scratch / f"{name}.csv", frame)
        (scratch / FIGURES).mkdir()
        figure = power_figure(result)
        figure.savefig(scratch / FIGURES / "power.png", dpi=130)
        figure.savefig(scratch / FIGURES / "power.svg", metadata={"Date": None})
        rows = [asdict(row) for row in result.rates]
        save_frame(scratch / FIGURES / "power.csv", polars.DataFrame(rows))
        write_pages(scratch, whole)
        write_manifest(scratch, {**result.manifest, "rates": result.to_json()["rates"]})
