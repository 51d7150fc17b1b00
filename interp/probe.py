"""Recording what every neuron of a model does on probe sets, as a run directory.

    neurons.parquet         weight scores, statistics of every condition, paired ones of contrasts
    examples/SIDE.npy       the strongest tokens of every neuron, mapped by its row in the table
    texts.parquet           the texts those tokens stand in
    histograms/NAME.npy     activations by bin, uint32 [neurons, 64]
    weights/MATRIX.npy      weights by bin, uint16 [neurons, 24]
    vocabulary/LIST.npy     tokens that every neuron writes and reads (see `probes.vocabulary`)
    samples.npy             activations of random tokens, float32 [tokens, neurons]: a reference
                            for mean and resample ablation
    recording.safetensors   for criteria that look at activations (`glulens score --recording`)
    decoding.csv            linear probes, where asked for

While it is made, what is needed to go on after a kill stands in RUN.unfinished.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..datasets.probe_sets import ProbeSet, load_probe_sets
from ..datasets.sources import BUILTIN
from ..errors import DataError, UsageError
from ..progress import Progress, silent
from ..prune.expressions import parse_criterion
from ..rundir import ROOM, RunDirectory, absolute, check_free, open_run
from .unfinished import at_work, folder_of, holds

if TYPE_CHECKING:
    import numpy as np

    from ..probes.engine import Engine
    from ..probes.jobs import Job, Selection
    from ..probes.recorder import Recorded
    from ..probes.tokens import Encoded, Encoder
    from ..prune.layout import MlpLayout
    from ..prune.models import OpenedModel
    from ..prune.selection import NeuronSet

STATES = "state-?.safetensors"


@dataclass(frozen=True)
class ProbeOptions:
    """What a probe run does; every field is an option of `glulens probe`.

    Attributes:
        on: probe sets, by commas: `truthfulqa`, `mmlu`, `ifeval`, or CSV files.
        data: where the named sets come from: `builtin`, `hub` or a folder.
        limit: items of each set, drawn at random; None for all.
        seed: of every draw.
        tokens: which tokens of a text enter.
        engine: `hooks`, `lens` or `nnsight`.
        remote: through NDIF, with nnsight.
        chat: put prompts through the model's chat template.
        criteria: weight scores to stand beside what neurons do; the first ranks for `decode`.
        examples: how many at either end and across the range of every neuron.
        vocabulary: also list the tokens that every neuron writes and reads.
        max_tokens: padded tokens in a batch.
        mask: a set of neurons (JSON) that is silenced meanwhile.
        decode: also fit linear probes to every set of two conditions.
        decode_layers: to these layers only.
        random_model: give linear probes a randomly initialised model beside this one.
    """

    on: str = "truthfulqa"
    data: str = BUILTIN
    limit: int | None = None
    seed: int = 0
    tokens: Selection = "answer"
    engine: str = "hooks"
    remote: bool = False
    chat: bool = False
    criteria: tuple[str, ...] = ("ppm", "maw", "vow", "pon", "l2")
    examples: int = 10
    vocabulary: bool = True
    max_tokens: int = 1024
    mask: str | None = None
    decode: bool = False
    decode_layers: tuple[int, ...] | None = None
    random_model: bool = True

    def __post_init__(self) -> None:
        from ..probes.engine import ENGINES
        from ..probes.jobs import SELECTIONS

        for value, allowed, what in (
            (self.engine, ENGINES, "engine"),
            (self.tokens, SELECTIONS, "tokens"),
        ):
            if value not in allowed:
                raise UsageError(f"{what} {value!r}; allowed are {', '.join(allowed)}")
        for what, least, value in (
            ("max_tokens", 1, self.max_tokens),
            ("examples", 1, self.examples),
            ("limit", 1, self.limit),
        ):
            if value is not None and value < least:
                raise UsageError(f"{what} {value}: at least {least}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed {self.seed}: at least 0 and below {2**32}")
        for name in self.criteria:
            parse_criterion(name)
        if self.mask and self.engine != "hooks":
            raise UsageError("a mask needs --engine hooks")
        if self.remote and self.engine != "nnsight":
            raise UsageError(f"engine {self.engine!r} runs here only; --remote needs nnsight")


@dataclass(frozen=True)
class Prepared:
    """Probe sets as token ids, with what was refused.

    Attributes:
        sets: the probe sets.
        job: what is recorded. A condition is called SET_CONDITION, a contrast as its set.
        rows: of each text of the job its set and its place there.
        refused: a line about every text that cannot be encoded.
        notes: a line about every set whose pairs could not be used.
    """

    sets: tuple[ProbeSet, ...]
    job: Job
    rows: tuple[tuple[int, int], ...]
    refused: tuple[str, ...]
    notes: tuple[str, ...] = ()


def prepare(sets: Sequence[ProbeSet], encoder: Encoder, options: ProbeOptions) -> Prepared:
    """Encode the texts of probe sets and lay out what is to be recorded.

    Raises:
        DataError: no text of a set can be encoded.
        UsageError: two sets have conditions of one name.
    """
    from ..probes.jobs import Job

    texts, rows, refused, notes = [], [], [], []
    conditions: dict[str, list[int]] = {}
    known: dict[str, str] = {}
    contrasts: dict[str, list[tuple[int, int]]] = {}
    for number, found in enumerate(sets):
        encoded, why = encoder.many([text.text for text in found.texts])
        refused += [
            f"{found.name} {found.texts[k].item} ({found.texts[k].condition}): {line}"
            for k, line in why.items()
        ]
        if len(why) == len(found.texts):
            raise DataError(
                f"{found.name}: none of its {len(why)} texts can be encoded; the first: {why[0]}"
            )
        for condition in found.conditions:
            name = f"{found.name}_{condition}"
            if known.setdefault(name, found.name) != found.name:
                raise UsageError(
                    f"{known[name]} and {found.name} both have a condition called {name}; rename "
                    "a file or a label"
                )
        at: dict[int, int] = {}
        for place, (text, ids) in enumerate(zip(found.texts, encoded, strict=True)):
            if ids is None:
                continue
            at[place] = len(texts)
            conditions.setdefault(f"{found.name}_{text.condition}", []).append(len(texts))
            texts.append(ids)
            rows.append((number, place))
        pairs = [(at[a], at[b]) for a, b in found.pairs if a in at and b in at]
        differ = [pair for pair in pairs if _differ(texts[pair[0]], texts[pair[1]], options.tokens)]
        if differ:
            contrasts[found.name] = differ
        if found.pairs and not pairs:
            notes.append(f"{found.name}: no pair is left of {len(found.pairs)}, texts are refused")
        elif pairs and not differ:
            notes.append(f"{found.name}: its pairs' selected tokens are the same; no contrast")
        elif len(differ) < len(pairs):
            notes.append(
                f"{found.name}: {len(pairs) - len(differ)} of {len(pairs)} pairs are dropped, "
                "their selected tokens are the same"
            )
    job = Job(
        tuple(texts),
        {name: tuple(of) for name, of in conditions.items()},
        {name: tuple(of) for name, of in contrasts.items()},
        tokens=options.tokens,
        examples=options.examples,
        samples=max(256, options.examples),
        all_means=options.decode,
        seed=options.seed,
    )
    return Prepared(tuple(sets), job, tuple(rows), tuple(refused), tuple(notes))


def _differ(a: Encoded, b: Encoded, tokens: Selection) -> bool:
    """Whether what is selected of two texts, in its context, differs in more than rounding."""
    from ..probes.jobs import selected

    spans = [selected(text, tokens) for text in (a, b)]
    return (a.ids[: spans[0][1]], spans[0][0]) != (b.ids[: spans[1][1]], spans[1][0])


def probe(
    model: OpenedModel | str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
    dtype: Any = "auto",
    device: str = "auto",
    device_map: str | None = None,
    every: float = 60.0,
    **options: Any,
) -> RunDirectory:
    """Record a model on probe sets and write a run directory.

    Args:
        model: an opened model, or a name for `open_model`.
        output: the run directory.
        resume: go on with the run that was begun there.
        overwrite: replace what stands there, finished or not.
        progress: told how far it is.
        argv: the command to name in the manifest.
        dtype, device, device_map: see `open_model`.
        every: seconds between two states that a resumed run can go on from.
        options: see `ProbeOptions`.

    Raises:
        UsageError, ModelError, DataError, RunError, ResourceError: see `open_model`, `record_job`.
    """
    from ..probes.engine import check_engine, make_engine
    from ..probes.tokens import Encoder
    from ..prune.histograms import WeightHistograms
    from ..prune.mlps import find_mlps
    from ..prune.models import OpenedModel, open_model
    from ..prune.scoring import score_mlps
    from ..prune.selection import NeuronSet
    from .decode import check_decodable, check_rankable, decode_sets
    from .neurons import score_table
    from .probe_files import write_run
    from .versions import size_entry

    settings = ProbeOptions(**options)
    check_engine(settings.engine, remote=settings.remote)
    path = absolute(output)
    folder = folder_of(path, resume=resume, overwrite=overwrite)
    started = time.time()
    cut = NeuronSet.load(settings.mask) if settings.mask else None
    sets = load_probe_sets(settings.on, settings.data, limit=settings.limit, seed=settings.seed)
    opened = (
        model
        if isinstance(model, OpenedModel)
        else open_model(model, dtype=dtype, device=device, device_map=device_map, progress=progress)
    )
    config = opened.model.config.get_text_config()
    encoder = Encoder(
        opened.tokenizer,
        chat=settings.chat,
        max_length=getattr(config, "max_position_embeddings", None),
    )
    prepared = prepare(sets, encoder, settings)
    mlps = find_mlps(opened.model)
    layouts = [mlp.layout for mlp in mlps]
    size = size_entry(layouts, opened.model.num_parameters())
    if settings.decode:
        prepared = check_decodable(prepared, settings, layouts)
    check_free(path, overwrite=overwrite, room=_room(prepared.job, settings, layouts))
    histograms = WeightHistograms(layouts)
    scores = score_mlps(mlps, settings.criteria, watch=histograms, progress=progress)
    if settings.decode:
        check_rankable(scores, settings)
    with at_work(folder, worth_keeping=lambda folder: any(folder.glob(STATES))):
        # Wrapping for TransformerLens replaces modules, so weights are read before.
        lists, notes = _vocabulary(opened, settings, folder, progress)
        engine = make_engine(opened, settings.engine, remote=settings.remote)
        recorded = _record(
            opened, engine, prepared, settings, cut, folder, resume=resume, every=every,
            progress=progress,
        )  # fmt: skip
        decoded = None
        if settings.decode:
            decoded = decode_sets(opened, prepared, recorded, scores, settings, folder, progress)
        table = score_table([layout.width for layout in layouts], scores, layouts)
        manifest = _manifest(opened, size, prepared, settings, recorded, started, argv)
        manifest["warnings"] += notes
        write_run(
            path, prepared, recorded, table, manifest, opened.tokenizer, decoded, settings.criteria,
            weights=histograms, vocabulary=lists, overwrite=overwrite,
        )  # fmt: skip
        if recorded.means is not None:
            recorded.means[0].close()
    return open_run(path)


def _record(
    opened: OpenedModel,
    engine: Engine,
    prepared: Prepared,
    settings: ProbeOptions,
    cut: NeuronSet | None,
    folder: Path,
    *,
    resume: bool,
    every: float,
    progress: Progress,
) -> Recorded:
    from ..probes.recorder import record_job
    from ..prune.masks import masked

    about = [opened.source.sha256, str(opened.model.dtype), cut and cut.to_json()]
    with masked(opened.model, cut) if cut else nullcontext():
        return record_job(
            engine,
            prepared.job,
            folder=folder,
            resume=resume,
            about=about,
            max_tokens=settings.max_tokens,
            every=every,
            progress=progress,
        )


def _vocabulary(
    opened: OpenedModel, settings: ProbeOptions, folder: Path, progress: Progress
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tokens that neurons write and read, found once however often the run goes on; notes."""
    import numpy as np

    from ..probes.vocabulary import TokenLens
    from ..tables import LISTED
    from .stages import Stages

    if not settings.vocabulary:
        return {}, []
    lens = TokenLens(opened.model, opened.tokenizer)

    def read() -> dict[str, np.ndarray]:
        found = lens.read(progress=progress)
        return {name: table.view(np.uint8) for name, table in found.items()}

    stages = Stages(folder, [opened.source.sha256, str(opened.model.dtype)])
    lists = {name: data.view(LISTED) for name, data in stages("vocabulary", read).items()}
    return lists, [*lens.notes, *stages.notes]


def _room(job: Job, settings: ProbeOptions, layouts: Sequence[MlpLayout]) -> int:
    """Bytes on disk while a run is made: its files, two states of like size, and the means."""
    from ..probes.moments import BINS
    from ..probes.recorder import MATRIX_BYTES

    neurons = sum(layout.width for layout in layouts)
    moments = neurons * (4 * BINS + 64)
    tables = len(job.conditions) * moments + neurons * 36 * job.examples
    tables += neurons * (144 + 192 * settings.vocabulary)  # weights by bin, lists of tokens
    rows = len({t for pairs in job.contrasts.values() for pair in pairs for t in pair})
    means = 4 * neurons * (len(job.texts) if job.all_means else rows)
    if means > MATRIX_BYTES:  # then there is no such file, and states hold streams of pairs
        means, tables = 0, tables + 3 * moments * len(job.contrasts)
    if settings.decode and settings.random_model:
        means *= 2
    return ROOM + 3 * (tables + 4 * neurons * job.samples) + means


def resumable(output: str | Path) -> bool:
    """Whether a run that was begun at `output` can be gone on with."""
    return holds(output, STATES)


def _manifest(
    opened: OpenedModel,
    size: dict[str, int],
    prepared: Prepared,
    settings: ProbeOptions,
    recorded: Recorded,
    started: float,
    argv: Sequence[str] | None,
) -> dict[str, Any]:
    from .versions import occasion, source_entry, versions

    config = opened.model.config.get_text_config()
    given, run, chosen = recorded.tokens
    libraries = ["torch", "transformers", "numpy", "polars", "numba"]
    libraries += {"lens": ["transformer-lens"], "nnsight": ["nnsight"]}.get(settings.engine, [])
    libraries += ["scikit-learn"] if settings.decode else []
    return {
        **occasion("probe", argv, started),
        "options": asdict(settings),
        "model": {
            **source_entry(opened.source),
            "family": config.model_type,
            "dtype": str(opened.model.dtype).removeprefix("torch."),
            "device": str(opened.device),
            "mlps": len(recorded.widths),
            "neurons": sum(recorded.widths),
            **size,
        },
        "data": [dict(found.provenance) for found in prepared.sets],
        "tokens": {"texts": given, "computed": run, "selected": chosen},
        "conditions": {
            name: {"texts": len(texts), "tokens": recorded.conditions[name].n_tokens}
            for name, texts in prepared.job.conditions.items()
        },
        "contrasts": {
            name: {
                "pairs": len(pairs),
                "conditions": list(_contrast(prepared.sets, name)),
                "auroc": "exact" if recorded.contrasts[name].exact else "histogram",
            }
            for name, pairs in prepared.job.contrasts.items()
        },
        "refused": list(prepared.refused),
        "warnings": [
            *(f"{found.name}: {note}" for found in prepared.sets for note in found.notes),
            *prepared.notes,
            *recorded.notes,
        ],
        "versions": versions(*libraries),
    }


def _contrast(sets: Sequence[ProbeSet], name: str) -> tuple[str, str]:
    return next(found.contrast for found in sets if found.name == name) or ("", "")


def text_rows(prepared: Prepared, tokenizer: Any) -> list[dict[str, Any]]:
    """One row a text of the job, for `texts.parquet`."""
    rows = []
    known: dict[int, str] = {}
    for (number, place), ids in zip(prepared.rows, prepared.job.texts, strict=True):
        text = prepared.sets[number].texts[place]
        for k in ids.ids:
            if k not in known:
                known[k] = tokenizer.decode([k])
        rows.append(
            {
                "set": prepared.sets[number].name,
                "item": text.item,
                "condition": text.condition,
                "answer_from": ids.start,
                "tokens": json.dumps([known[k] for k in ids.ids]),
            }
        )
    return rows
