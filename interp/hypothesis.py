"""The main job: do misconceptions live in low-magnitude neurons?

Scores every neuron by its weights, records what it does on pairs of texts, attributes the pairs'
log-likelihood difference to it, tests whether the two orders have anything to do with each other,
silences tenths of the neurons, and asks the same of models that know nothing and of answerers whose
scores mean nothing. See `localisation`, `causal`, `floors`, `rivals`, `controls` and `verdict`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.pairs import CONTROL, MISCONCEPTION, PROPERTIES, Material, Pair, load_material
from ..errors import ResourceError, UsageError, is_out_of_memory
from ..progress import Progress, silent
from ..prune.expressions import is_control
from ..prune.histograms import WeightHistograms
from ..prune.mlps import find_mlps
from ..prune.models import DTYPES, OpenedModel, open_model
from ..prune.scoring import score_mlps
from .controls import checks, gauges, null_models, places
from .enrichment import Enrichment, enrichment
from .localisation import Association, Difference, Found, associate, differ
from .localiser import Localiser
from .neurons import neuron_table
from .options import DEFAULT_CRITERIA, Options, make_options
from .resamples import FUNCTIONS, Function, Resamples, benjamini_hochberg, functional
from .result import FAMILY, HypothesisResult
from .stages import Stages, worth_keeping
from .unfinished import at_work, folder_of
from .verdict import Specificity, judge, specificity
from .versions import occasion, size_entry, source_entry, versions

if TYPE_CHECKING:
    import polars

    from ..probes.contrasts import Contrasts

__all__ = ["DEFAULT_CRITERIA", "HypothesisResult", "Options", "hypothesis", "make_options"]

TOGETHER = ((MISCONCEPTION, CONTROL),)
"""Properties that share texts and are recorded in one go."""


def hypothesis(
    model: OpenedModel | str,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
    **options: Any,
) -> HypothesisResult:
    """Test whether misconceptions live in low-magnitude neurons of a model.

    Args:
        model: an opened model, or a name for `open_model`.
        output: where to write a run directory; nothing is written without it.
        resume: go on with the run that was begun there.
        overwrite: replace a run that is there, finished or not.
        dtype, device: for `open_model`.
        progress: told how far it is.
        argv: the command line, for the manifest.
        **options: see `Options`.

    Raises:
        UsageError, ModelError, DataError, RunError, ResourceError: see `errors`.
    """
    settings = make_options(**options)
    folder = None if output is None else folder_of(output, resume=resume, overwrite=overwrite)
    if output is None and resume:
        raise UsageError("there is nothing to go on with where nothing is written; give an output")
    started = time.time()
    material = load_material(settings.data, limit=settings.limit, seed=settings.seed)
    if isinstance(model, str):
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
        model = open_model(model, dtype=dtype, device=device, progress=progress)  # pyright: ignore
    about = [
        model.source.sha256,
        str(model.model.dtype),
        asdict(settings),
        [dict(entry) for entry in material.provenance],
    ]
    # Before an engine wraps the model.
    layouts = [mlp.layout for mlp in find_mlps(model.model)]
    size = size_entry(layouts, model.model.num_parameters())
    with at_work(folder, worth_keeping=worth_keeping) if folder else nullcontext():
        stages = Stages(folder, about)
        try:
            result = _run(model, material, settings, stages, progress)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"out of memory; lower --max-tokens (now {settings.max_tokens}) or --limit"
            ) from error
        manifest = _manifest(model, size, material, settings, stages, result, started, argv)
        result = replace(result, manifest=manifest)
        if output is not None:
            from .report import write_run

            result = replace(result, path=Path(output))
            write_run(result, Path(output), overwrite=overwrite)
    return result


def _run(
    opened: OpenedModel,
    material: Material,
    options: Options,
    stages: Stages,
    progress: Progress,
) -> HypothesisResult:
    from ..probes.engine import make_engine
    from ..probes.tokens import Encoder
    from .experiments import Experiments

    mlps = find_mlps(opened.model)
    gated = all("gate" in mlp.layout.slots for mlp in mlps)
    wanted = dict.fromkeys(options.criteria)
    if gated:
        wanted |= dict.fromkeys(gauges(options.criteria[0]))
    histograms = WeightHistograms([mlp.layout for mlp in mlps])
    everything = score_mlps(mlps, (*wanted, "vow_out"), watch=histograms, progress=progress)
    scores = {name: everything[name] for name in wanted}
    config = opened.model.config.get_text_config()
    encoder = Encoder(
        opened.tokenizer,
        chat=options.chat,
        max_length=getattr(config, "max_position_embeddings", None),
    )
    nulls = []
    shared = _first_questions(material, options.null_items)
    if shared:  # before an engine wraps the model, which a copy would not survive
        nulls = null_models(opened, encoder, shared, options, stages, progress=progress)
    experiments = Experiments(opened, encoder, material, scores, options, stages, progress)
    # Wrapping for TransformerLens replaces modules, so weights are read before.
    engine = make_engine(opened, options.engine)
    contrasts = _record(engine, encoder, material, options, stages, progress)
    tested = _test(scores, everything["vow_out"], contrasts, options, progress)
    effects, items = experiments.silence(engine)
    answerers, doses = experiments.dose(engine)
    decoding = experiments.decode(contrasts)
    found = checks(
        options.criteria[0],
        tested.associations,
        tested.differences,
        nulls,
        effects,
        answerers,
        experiments.overlaps,
    )
    primary = next(
        row
        for row in tested.associations
        if (row.property, row.criterion, row.function)
        == (MISCONCEPTION, options.criteria[0], "attribution")
    )
    return HypothesisResult(
        verdict=judge(primary, tested.specificity, found),
        associations=tested.associations,
        tenths=tested.tenths,
        enrichments=tested.enrichments,
        differences=tested.differences,
        nulls=tuple(nulls),
        effects=tuple(effects),
        items=items,
        answerers=tuple(answerers),
        doses=tuple(doses),
        overlaps=tuple(experiments.overlaps),
        decoding=decoding,
        null_draws=tested.null_draws,
        neurons=neuron_table(engine.widths, scores, contrasts),
        layers=tested.layers,
        properties=tuple(_describe(name, found) for name, found in contrasts.items()),
        manifest={},
        histograms=histograms,
    )


def _first_questions(material: Material, count: int) -> dict[str, list[Pair]]:
    """Some questions' misconception pairs, and the control pairs of the same questions."""
    chosen = material.pairs[MISCONCEPTION][:count]
    known = {pair.item for pair in chosen}
    control = [pair for pair in material.pairs[CONTROL] if pair.item in known]
    return {MISCONCEPTION: list(chosen), CONTROL: control} if len(control) > 1 else {}


def _record(
    engine: Any,
    encoder: Any,
    material: Material,
    options: Options,
    stages: Stages,
    progress: Progress,
) -> dict[str, Contrasts]:
    from ..probes.contrasts import Contrasts, record_contrasts

    alone = [name for name in material.pairs if not any(name in some for some in TOGETHER)]
    found: dict[str, Contrasts] = {}
    for group in (*TOGETHER, *((name,) for name in alone)):
        pairs = {name: material.pairs[name] for name in group}

        def make(pairs: Any = pairs) -> dict[str, np.ndarray]:
            recorded = record_contrasts(
                engine, encoder, pairs, max_tokens=options.max_tokens, progress=progress
            )
            return {
                f"{name}/{key}": value
                for name, one in recorded.items()
                for key, value in one.arrays().items()
            }

        arrays = stages("contrasts-" + "-".join(group), make)
        for name, members in pairs.items():
            start = f"{name}/"
            part = {k.removeprefix(start): v for k, v in arrays.items() if k.startswith(start)}
            found[name] = Contrasts.restored([pair.item for pair in members], part)
    return {name: found[name] for name in material.pairs}


class _Tested:
    """Everything that comes of the recorded contrasts."""

    def __init__(self) -> None:
        self.associations: tuple[Association, ...] = ()
        self.tenths: tuple[Any, ...] = ()
        self.enrichments: tuple[Enrichment, ...] = ()
        self.differences: tuple[Difference, ...] = ()
        self.specificity: Specificity | None = None
        self.null_draws = np.zeros(0)
        self.layers: polars.DataFrame


def _test(
    scores: dict[str, list[np.ndarray]],
    output_norms: Sequence[np.ndarray],
    contrasts: dict[str, Contrasts],
    options: Options,
    progress: Progress,
) -> _Tested:
    import polars

    primary = options.criteria[0]
    widths = [len(layer) for layer in scores[primary]]
    ends = np.cumsum(widths)[:-1]
    boots: dict[str, Resamples] = {}
    all_found: dict[tuple[str, Function], Found] = {}
    enrichments: list[Enrichment] = []
    layers: list[dict[str, Any]] = []
    for place, (name, found) in enumerate(contrasts.items()):
        n = len(found.items)
        rng = np.random.default_rng([options.seed, 4, place])
        loud = np.split(np.nan_to_num(found.activation.mean_abs), ends)
        localiser = Localiser(scores, (loud, output_norms))
        flips = Resamples.sign_flips(n, options.permutations, rng)
        if name == CONTROL:
            # The control's items are some of the misconceptions': resampled together with them.
            boots[name] = boots[MISCONCEPTION].subset(places(contrasts))
        else:
            boots[name] = Resamples.bootstrap(n, options.bootstraps, rng)
        for function in FUNCTIONS:
            matrix = _matrix(found, function)
            all_found[name, function] = associate(
                localiser, name, matrix, function, flips, boots[name], rng, progress=progress
            )
            values = functional(matrix, Resamples.observed(n), function)
            layers += _layer_rows(localiser, name, function, values)
            enrichments += enrichment(
                name, primary, function, scores[primary], np.split(values[0], ends)
            )
    result = _Tested()
    result.associations = tuple(
        _adjust(
            [row for whole in all_found.values() for row in whole.associations], options.criteria
        )
    )
    result.tenths = tuple(row for whole in all_found.values() for row in whole.tenths)
    result.enrichments = tuple(enrichments)
    result.differences = tuple(_differences(all_found, result.associations))
    at = list(scores).index(primary)
    result.null_draws = all_found[MISCONCEPTION, "attribution"].null[:, at]
    rows = {
        row.property: row
        for row in result.associations
        if row.function == "attribution" and row.criterion == primary
    }
    result.specificity = specificity(
        rows[MISCONCEPTION],
        rows[CONTROL],
        {n: all_found[n, "attribution"].resampled[:, at] for n in (MISCONCEPTION, CONTROL)},
    )
    result.layers = polars.DataFrame(layers)
    return result


def _differences(
    found: dict[tuple[str, Function], Found], rows: Sequence[Association]
) -> list[Difference]:
    """Misconception minus each other property, by every criterion."""
    by_key = {(row.property, row.function, row.criterion): row for row in rows}
    result = []
    for (name, function), other in found.items():
        if name == MISCONCEPTION:
            continue
        whole = found[MISCONCEPTION, function]
        for k, row in enumerate(whole.associations):
            key = function, row.criterion
            draws = {MISCONCEPTION: whole.resampled[:, k], name: other.resampled[:, k]}
            difference = differ(
                by_key[MISCONCEPTION, *key], by_key[name, *key], draws, paired=name == CONTROL
            )
            if difference is not None:
                result.append(difference)
    return result


def _matrix(found: Contrasts, function: Function) -> np.ndarray:
    """The item contrasts that a functional score is made of."""
    if function == "attribution":
        return found.attribution
    return found.difference if function == "dz" else found.ranks


def _adjust(rows: list[Association], criteria: Sequence[str]) -> list[Association]:
    """Benjamini-Hochberg over the family; the correlations and the shares are one family each."""
    family = [
        k
        for k, row in enumerate(rows)
        if row.criterion in criteria
        and not is_control(row.criterion)
        and not PROPERTIES[row.property].is_control
    ]
    q = benjamini_hochberg([rows[k].p for k in family])
    share_q = benjamini_hochberg([rows[k].share_p for k in family])
    adjusted = {k: (float(q[j]), float(share_q[j])) for j, k in enumerate(family)}
    return [
        replace(row, q=adjusted[k][0], share_q=adjusted[k][1]) if k in adjusted else row
        for k, row in enumerate(rows)
    ]


def _layer_rows(
    localiser: Localiser, name: str, function: Function, values: np.ndarray
) -> list[dict[str, Any]]:
    profile = localiser.by_layer(values)
    return [
        {
            "property": name,
            "function": function,
            "criterion": criterion,
            "layer": layer,
            "rho": float(profile.rho[layer, 0, k]),
            "partial": float(profile.partial[layer, 0, k]),
            **{f"mass_{t}": float(profile.mass[layer, 0, k, t]) for t in range(10)},
        }
        for k, criterion in enumerate(localiser.criteria)
        for layer in range(len(localiser.widths))
    ]


def _describe(name: str, found: Contrasts) -> dict[str, Any]:
    margin = PROPERTIES[name].preferred * (found.loglikelihood[:, 0] - found.loglikelihood[:, 1])
    a, b = found.answer_tokens.mean(0)
    return {
        "property": name,
        "contrast": PROPERTIES[name].contrast,
        "items": len(found.items),
        "margin": float(margin.mean()),
        "preferred_share": float((margin > 0).mean()),
        "answer_tokens_a": float(a),
        "answer_tokens_b": float(b),
    }


def _manifest(
    opened: OpenedModel,
    size: dict[str, int],
    material: Material,
    options: Options,
    stages: Stages,
    result: HypothesisResult,
    started: float,
    argv: Sequence[str] | None,
) -> dict[str, Any]:
    config = opened.model.config.get_text_config()
    layers = result.neurons["layer"].n_unique()
    return {
        **occasion("hypothesis", argv, started),
        "options": {**asdict(options), "criteria": list(options.criteria)},
        "model": {
            **source_entry(opened.source),
            "family": config.model_type,
            "dtype": str(opened.model.dtype).removeprefix("torch."),
            "device": str(opened.device),
            "layers": layers,
            "neurons": result.neurons.height,
            **size,
        },
        "data": list(material.provenance),
        "items": {name: len(pairs) for name, pairs in material.pairs.items()},
        "tests": {"family": FAMILY, "correction": "Benjamini-Hochberg"},
        "warnings": [*material.notes, *stages.notes],
        "resumed": list(stages.reused),
        "versions": versions("torch", "transformers", "numpy", "scipy", "polars"),
    }
