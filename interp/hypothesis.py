"""The main job: do misconceptions live in low-magnitude neurons?

Scores every neuron by its weights, records what it does on pairs of texts, attributes the pairs'
log-likelihood difference to it, tests whether the two orders have anything to do with each other,
and takes a first causal look. See `localisation`, `causal` and `verdict` for the statistics.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.pairs import CONTROL, MISCONCEPTION, PROPERTIES, Material, Pair, load_material
from ..datasets.records import Passage
from ..datasets.sources import BUILTIN
from ..errors import ResourceError, UsageError, is_out_of_memory
from ..progress import Progress, silent
from ..prune.expressions import is_control, parse_criterion
from ..prune.mlps import find_mlps
from ..prune.models import DTYPES, OpenedModel, open_model
from ..prune.scoring import score_mlps
from ..rundir import check_free
from .causal import Change, causal_look, causal_sets
from .localisation import (
    FUNCTIONS,
    Association,
    Function,
    Localiser,
    Resamples,
    associate,
    benjamini_hochberg,
    functional,
)
from .neurons import neuron_table
from .verdict import Specificity, Verdict, compare, judge
from .versions import occasion, source_entry, versions

if TYPE_CHECKING:
    import polars

    from ..probes.contrasts import Contrasts

DEFAULT_CRITERIA = ("ppm", "maw", "vow", "pon", "l2", "random:0")
NEUTRAL_STREAM = 99
"""Of the random draws in the causal look, whose properties count from 0."""
FAMILY = "criteria (without controls) x properties (without the control) x attribution and d_z"


@dataclass(frozen=True)
class Options:
    """How a hypothesis run is made; the command's options, and what the manifest records."""

    data: str = BUILTIN
    """`builtin`, `hub`, or a folder of official files."""
    limit: int | None = None
    """Items per property, drawn at random; all if not given."""
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
    causal_items: int = 40
    """At most so many items a property in the causal look; 0 leaves it out."""
    causal_random: int = 5
    """Random tenths in the causal look."""
    max_tokens: int = 1024
    """Padded tokens in a batch; lower it when memory is short."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise UsageError(
                f"limit {self.limit}: at least 2 items are needed; leave it out for all"
            )
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
        for name, least in (
            ("seed", 0),
            ("permutations", 100),
            ("bootstraps", 100),
            ("causal_items", 0),
            ("causal_random", 1),
            ("max_tokens", 1),
        ):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {getattr(self, name)}: at least {least} is needed")


@dataclass(frozen=True)
class HypothesisResult:
    """What a run found.

    Attributes:
        verdict: the primary test in words and numbers.
        associations: every criterion against every functional score of every property.
        changes: the causal look.
        neurons: one row a neuron: `layer`, `neuron`, scores, functional columns.
        layers: one row a layer, criterion, property and function: the rank correlation there.
        properties: per property: items, margin, accuracy, answer lengths.
        manifest: what was run on what.
    """

    verdict: Verdict
    associations: tuple[Association, ...]
    changes: tuple[Change, ...]
    neurons: polars.DataFrame
    layers: polars.DataFrame
    properties: tuple[dict[str, Any], ...]
    manifest: dict[str, Any]
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "schema_version": 1,
            "verdict": asdict(self.verdict),
            "family": FAMILY,
            "associations": [_finite(asdict(row)) for row in self.associations],
            "causal": [asdict(row) for row in self.changes],
            "properties": list(self.properties),
            "path": str(self.path) if self.path else None,
        }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}


def hypothesis(
    model: OpenedModel | str,
    *,
    output: str | Path | None = None,
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
        overwrite: replace a run that is there.
        dtype, device: for `open_model`.
        progress: told how far it is.
        argv: the command line, for the manifest.
        **options: see `Options`.

    Raises:
        UsageError, ModelError, DataError, RunError, ResourceError: see `errors`.
    """
    settings = make_options(**options)
    if output is not None:
        check_free(Path(output), overwrite=overwrite)
    started = time.time()
    material = load_material(settings.data, limit=settings.limit, seed=settings.seed)
    if isinstance(model, str):
        if dtype not in DTYPES:
            raise UsageError(f"dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
        model = open_model(model, dtype=dtype, device=device, progress=progress)  # pyright: ignore
    try:
        result = _run(model, material, settings, progress)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory; lower --max-tokens (now {settings.max_tokens}) or --limit"
        ) from error
    manifest = _manifest(model, material, settings, result, started, argv)
    result = replace(result, manifest=manifest)
    if output is None:
        return result
    from .report import write_run

    write_run(result, Path(output), overwrite=overwrite)
    return replace(result, path=Path(output))


def make_options(**options: Any) -> Options:
    """`Options`, with an unknown name told apart from a bad value."""
    allowed = [field.name for field in fields(Options)]
    for name in options:
        if name not in allowed:
            raise UsageError(f"unknown option {name!r}; allowed are {', '.join(allowed)}")
    return Options(**options)


def _run(
    opened: OpenedModel, material: Material, options: Options, progress: Progress
) -> HypothesisResult:
    from ..probes.contrasts import record_contrasts
    from ..probes.engine import make_engine
    from ..probes.tokens import Encoder

    scores = score_mlps(find_mlps(opened.model), options.criteria, progress=progress)
    # Wrapping for TransformerLens replaces modules, so weights are read before.
    engine = make_engine(opened, options.engine)
    config = opened.model.config.get_text_config()
    encoder = Encoder(
        opened.tokenizer,
        chat=options.chat,
        max_length=getattr(config, "max_position_embeddings", None),
    )
    contrasts = record_contrasts(
        engine, encoder, material.pairs, max_tokens=options.max_tokens, progress=progress
    )
    localiser = Localiser(scores)
    associations, specificity = _test(localiser, contrasts, options, progress)
    changes: list[Change] = []
    if options.causal_items:
        pairs, passages = causal_draw(material, options)
        changes = causal_look(
            engine,
            encoder,
            pairs,
            passages,
            causal_sets(scores, options.criteria[0], options.causal_random, options.seed),
            seed=options.seed,
            max_tokens=options.max_tokens,
            progress=progress,
        )
    primary = next(
        row
        for row in associations
        if (row.property, row.criterion, row.function)
        == (MISCONCEPTION, options.criteria[0], "attribution")
    )
    return HypothesisResult(
        verdict=judge(primary, specificity),
        associations=tuple(associations),
        changes=tuple(changes),
        neurons=neuron_table(engine.widths, scores, contrasts),
        layers=_layer_table(localiser, contrasts),
        properties=tuple(_describe(name, found) for name, found in contrasts.items()),
        manifest={},
    )


def causal_draw(
    material: Material, options: Options
) -> tuple[dict[str, list[Pair]], list[Passage]]:
    """The pairs, by property, and the neutral passages of the causal look, each drawn at random."""

    def some(total: int, stream: int, count: int) -> list[int]:
        order = np.random.default_rng([options.seed, 3, stream]).permutation(total)
        return order[:count].tolist()

    # The control is a control of the localisation; it has no margin to lose.
    pairs = {
        name: [found[i] for i in some(len(found), place, options.causal_items)]
        for place, (name, found) in enumerate(material.pairs.items())
        if not PROPERTIES[name].is_control
    }
    drawn = some(len(material.neutral), NEUTRAL_STREAM, max(2, options.causal_items // 2))
    return pairs, [material.neutral[i] for i in drawn]


def _test(
    localiser: Localiser,
    contrasts: dict[str, Contrasts],
    options: Options,
    progress: Progress,
) -> tuple[list[Association], Specificity | None]:
    associations: list[Association] = []
    effects: dict[str, np.ndarray] = {}
    boots = {}
    for place, (name, found) in enumerate(contrasts.items()):
        n = len(found.items)
        rng = np.random.default_rng([options.seed, 4, place])
        flips = Resamples.sign_flips(n, options.permutations, rng)
        if name == CONTROL:
            # The control's items are some of the misconceptions': resampled together with them.
            places = {item: k for k, item in enumerate(contrasts[MISCONCEPTION].items)}
            boots[name] = boots[MISCONCEPTION].subset(np.array([places[i] for i in found.items]))
        else:
            boots[name] = Resamples.bootstrap(n, options.bootstraps, rng)
        for function in FUNCTIONS:
            rows, resampled = associate(
                localiser,
                name,
                _matrix(found, function),
                function,
                flips,
                boots[name],
                rng,
                progress=progress,
            )
            associations += rows
            if function == "attribution":
                effects[name] = resampled[:, 0]
    associations = _adjust(associations)
    first = {
        row.property: row
        for row in associations
        if row.function == "attribution" and row.criterion == options.criteria[0]
    }
    return associations, compare(first[MISCONCEPTION], first[CONTROL], effects)


def _matrix(found: Contrasts, function: Function) -> np.ndarray:
    """The item contrasts that a functional score is made of."""
    return found.attribution if function == "attribution" else found.difference


def _adjust(rows: list[Association]) -> list[Association]:
    """Benjamini-Hochberg over the family; the correlations and the shares are one family each."""
    family = [
        k
        for k, row in enumerate(rows)
        if not is_control(row.criterion) and not PROPERTIES[row.property].is_control
    ]
    q = benjamini_hochberg([rows[k].p for k in family])
    share_q = benjamini_hochberg([rows[k].share_p for k in family])
    adjusted = {k: (float(q[j]), float(share_q[j])) for j, k in enumerate(family)}
    return [
        replace(row, q=adjusted[k][0], share_q=adjusted[k][1]) if k in adjusted else row
        for k, row in enumerate(rows)
    ]


def _layer_table(localiser: Localiser, contrasts: dict[str, Contrasts]) -> polars.DataFrame:
    import polars

    rows = []
    for name, found in contrasts.items():
        for function in FUNCTIONS:
            matrix = _matrix(found, function)
            values = functional(matrix, Resamples.observed(len(matrix)), function)
            rho, share = localiser.by_layer(values)
            rows += [
                {
                    "property": name,
                    "function": function,
                    "criterion": criterion,
                    "layer": layer,
                    "rho": float(rho[layer, 0, k]),
                    "lowest_tenth_share": float(share[layer, 0, k]),
                }
                for k, criterion in enumerate(localiser.criteria)
                for layer in range(len(localiser.widths))
            ]
    return polars.DataFrame(rows)


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
    material: Material,
    options: Options,
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
            "hidden": config.hidden_size,
        },
        "data": list(material.provenance),
        "items": {name: len(pairs) for name, pairs in material.pairs.items()},
        "tests": {"family": FAMILY, "correction": "Benjamini-Hochberg"},
        "warnings": list(material.notes),
        "versions": versions("torch", "transformers", "numpy", "scipy", "polars"),
    }
