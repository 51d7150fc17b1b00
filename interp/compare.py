"""Two models side by side: where tuning moved the weights, and whether magnitude says so.

Streams two checkpoints of one architecture tensor by tensor (`prune.differences`), scores every
neuron in both, and asks whether the change is concentrated in neurons of low magnitude
(`concentration`), whether a cut by the tuned model's scores keeps the same neurons as one by the
base's (`kept_alike`), and, on request, what the tuned weights of a tenth do in the base
(`transplant`). Two run directories are compared by the columns that they share.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ResourceError, RunError, UsageError, is_out_of_memory
from ..neuron_keys import NeuronKeys, read_keys
from ..progress import Progress, silent
from ..prune.checkpoint import Checkpoint, Reader, open_checkpoint
from ..prune.differences import Difference, MlpDifference, difference
from ..prune.expressions import evaluate, parse_criterion
from ..prune.pairing import Pairing, is_quantised_source, pair
from ..prune.selection import NeuronSet
from ..rundir import MANIFEST, RunDirectory, check_free, open_run
from .compare_options import CompareOptions, make_compare_options
from .compare_result import CompareResult
from .compare_tables import (
    Scores,
    distribution_frame,
    group_frame,
    is_order_alone,
    layer_frame,
    neuron_frame,
    norm_bins,
    score_frame,
    tensor_frame,
)
from .concentration import concentration
from .kept_alike import carriers, kept_alike, selective
from .rounding import Rounded, Side, rounded_noise
from .tuning_verdict import judge_change
from .versions import occasion, size_entry, source_entry, versions

if TYPE_CHECKING:
    from .transplant import Transplant

__all__ = ["CompareOptions", "CompareResult", "compare"]

FUNCTIONS = ("attr", "dz")
"""Beginnings of a probe run's columns that changes are compared with."""


def compare(
    base: str | Path,
    tuned: str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
    **options: Any,
) -> CompareResult:
    """Compare a model with what tuning made of it, neuron by neuron; or two runs.

    Args:
        base, tuned: names for `open_checkpoint` (an embedded model, a folder, a GGUF file, a hub
            id), or two run directories. A pruned checkpoint is compared with its parent by the
            neurons that it kept.
        output: where to write a run directory; nothing is written without it.
        overwrite: replace a run that is there.
        progress: told how far it is.
        argv: the command line, for the manifest.
        **options: see `CompareOptions`.

    Raises:
        ModelError: the two are not of one architecture and widths (the message has a table of what
            differs), or one of them cannot be read.
        UsageError, DataError, RunError, ResourceError: see `errors`.
    """
    settings = make_compare_options(**options)
    started = time.time()
    if output is not None:
        check_free(Path(output).expanduser(), overwrite=overwrite)
    if are_runs(base, tuned):
        from .compare_runs import compare_runs

        result = compare_runs(open_run(base), open_run(tuned), settings, started, argv)
    else:
        try:
            result = _compare_models(base, tuned, settings, started, argv, progress)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                "out of memory; lower --transplant-items, or leave --transplant out"
                if settings.transplant
                else "out of memory; free some"
            ) from error
    if output is not None:
        from .compare_report import write_run

        result = replace(result, path=Path(output).expanduser())
        write_run(result, Path(output).expanduser(), overwrite=overwrite)
    return result


def are_runs(base: str | Path, tuned: str | Path) -> bool:
    found = [(Path(side).expanduser() / MANIFEST).is_file() for side in (base, tuned)]
    if any(found) and not all(found):
        run, other = (base, tuned) if found[0] else (tuned, base)
        raise UsageError(
            f"{run} is a run directory and {other} is not; give two models, or two runs"
        )
    return all(found)


def _compare_models(
    base: str | Path,
    tuned: str | Path,
    options: CompareOptions,
    started: float,
    argv: Sequence[str] | None,
    progress: Progress,
) -> CompareResult:
    probe = None if options.probe is None else open_run(options.probe)
    sets = {Path(file).stem: NeuronSet.load(file) for file in options.transplant_sets}
    criteria = [parse_criterion(name) for name in options.criteria]
    with ExitStack() as both:
        sides = [
            both.enter_context(open_checkpoint(name, progress=progress)) for name in (base, tuned)
        ]
        pairing = pair(*sides)
        if options.transplant and pairing.pruned_side:
            raise UsageError("--transplant needs models of the same widths; leave it out")
        for chosen in sets.values():
            chosen.check([layout.width for layout in pairing.layouts])
        functions = {} if probe is None else _functions(probe, pairing)
        found = difference(
            *sides,
            gains=any(criterion.needs_gain for criterion in criteria),
            allow_nonfinite=options.allow_nonfinite,
            progress=progress,
        )
        before, after = (
            {
                criterion.name: evaluate(criterion, [getattr(mlp, side) for mlp in found.mlps])
                for criterion in criteria
            }
            for side in ("before", "after")
        )
        quantised = any(is_quantised_source(side.source) for side in sides)
        rounded = None if quantised else _rounded(sides, found, progress)
        result = _ask(found, before, after, functions, rounded, quantised, options, progress)
        manifest = _manifest(sides, found, probe, options, started, argv)
    if options.transplant:
        moved, data = _transplant(base, tuned, found, before, sets, options, progress)
        result = replace(result, transplants=tuple(moved))
        manifest["data"] = data
    manifest["seconds"] = round(time.time() - started, 1)
    return replace(result, manifest=manifest)


def _ask(
    found: Difference,
    before: Scores,
    after: Scores,
    functions: Scores,
    rounded: Sequence[Rounded] | None,
    quantised: bool,
    options: CompareOptions,
    progress: Progress,
) -> CompareResult:
    """Every question about weights that have been read."""
    first = options.criteria[0]
    absolute = [mlp.absolute for mlp in found.mlps]
    layers = [mlp.layout.layer for mlp in found.mlps]
    rows = concentration(
        before,
        absolute,
        norms=[_norm(mlp) for mlp in found.mlps],
        layer_of=layers,
        rounded=rounded,
        permutations=options.permutations,
        seed=options.seed,
        progress=progress,
    )
    tensors = tensor_frame(found)
    return CompareResult(
        kind="models",
        verdict=judge_change(rows, first, quantised=quantised),
        concentrations=tuple(rows),
        kept_alike=tuple(kept_alike(_by_weights(before), _by_weights(after))),
        carriers=tuple(
            carriers(
                before[first],
                [mlp.squares for mlp in found.mlps],
                [mlp.layout for mlp in found.mlps],
                [mlp.rows for mlp in found.mlps],
            )
        ),
        selective=tuple(
            selective(
                absolute,
                functions,
                covariate=before[first],
                layer_of=layers,
                permutations=options.permutations,
                seed=options.seed,
            )
            if functions
            else ()
        ),
        transplants=(),
        neurons=neuron_frame(found.mlps, before, after),
        layers=layer_frame(found, before[first], [r for r in rows if r.criterion == first]),
        tensors=tensors,
        groups=group_frame(tensors),
        distributions=distribution_frame(found),
        scores=score_frame(before, after),
        norms=norm_bins(found),
        manifest={},
    )


def _rounded(
    sides: Sequence[Checkpoint], found: Difference, progress: Progress
) -> list[Rounded] | None:
    """What storage in 16 bits alone would make of a change of this size (see `rounding`)."""
    if found.pairing.pruned_side == "base":  # steps are counted in the base, which is not whole
        return None
    base, tuned = (Side(side.layouts, Reader(side)) for side in sides)
    return rounded_noise(
        base,
        tuned,
        [
            {role: float(matrix.squares.sum()) for role, matrix in mlp.matrices.items()}
            for mlp in found.mlps
        ],
        rows=[mlp.rows for mlp in found.mlps] if found.pairing.pruned_side else (),
        progress=progress,
    )


def _by_weights(scores: Scores) -> dict[str, Sequence[np.ndarray]]:
    """Without orders that are random, and the same in both models."""
    return {name: of for name, of in scores.items() if not is_order_alone(name)}


def _norm(mlp: MlpDifference) -> np.ndarray:
    """Norm of each neuron's weights before, over all its matrices [neurons]."""
    return np.sqrt(np.sum([matrix.before.squares for matrix in mlp.matrices.values()], axis=0))


def _functions(probe: RunDirectory, pairing: Pairing) -> dict[str, list[np.ndarray]]:
    """|attribution| and |d_z| of a probe run's properties, by the MLPs that are compared.

    Raises:
        RunError: a run of other neurons, or one that says nothing of functions.
    """
    keys: NeuronKeys = read_keys(probe)
    parents = _parent(pairing)
    widths = [layout.width for layout in parents]
    kept = [
        width if some is None else len(some)
        for width, some in zip(widths, pairing.kept, strict=True)
    ]
    if len(keys) != sum(keys.widths) or list(keys.widths) not in (widths, kept):
        raise RunError(
            f"{probe.path} is of {len(keys):,} neurons in {len(keys.mlps)} MLPs, these models have "
            f"{sum(widths):,} in {len(widths)}; give a probe run of the base or the tuned model"
        )
    schema = probe.schema()
    names = [
        name
        for name, kind in schema.items()
        if name.split("_")[0] in FUNCTIONS and "_" in name and kind.is_numeric()
    ]
    if not names:
        raise RunError(
            f"{probe.path} has no columns attr_PROPERTY or dz_PROPERTY; make a run with "
            "`glulens hypothesis` or `glulens probe`"
        )
    frame = probe.neurons(names)
    found = {}
    for name in names:
        values = np.abs(frame[name].to_numpy().astype(np.float64))
        if keys.stored is not None:
            values = values[keys.stored]
        parts = np.split(values, np.cumsum(keys.widths)[:-1])
        found[name] = [
            part if some is None or len(part) == len(some) else part[some]
            for part, some in zip(parts, pairing.kept, strict=True)
        ]
    return found


def _transplant(
    base: str | Path,
    tuned: str | Path,
    found: Difference,
    before: Scores,
    sets: dict[str, NeuronSet],
    options: CompareOptions,
    progress: Progress,
) -> tuple[list[Transplant], list[dict[str, Any]]]:
    from ..datasets.pairs import load_material
    from ..prune.models import open_model
    from .transplant import transplant

    material = load_material(options.data, seed=options.seed)
    dtype: Any = options.dtype
    first, second = (
        open_model(name, dtype=dtype, device=options.device, progress=progress)
        for name in (base, tuned)
    )
    rows = transplant(
        first,
        second,
        before[options.criteria[0]],
        material,
        items=options.transplant_items,
        random=options.transplant_random,
        seed=options.seed,
        sets=sets,
        changes=[mlp.squares for mlp in found.mlps],
        max_tokens=options.max_tokens,
        progress=progress,
    )
    return rows, [dict(entry) for entry in material.provenance]


def _manifest(
    sides: Sequence[Checkpoint],
    found: Difference,
    probe: RunDirectory | None,
    options: CompareOptions,
    started: float,
    argv: Sequence[str] | None,
) -> dict[str, Any]:
    base, tuned = map(_model_entry, sides)
    entry = {**base, "layers": found.mlps[-1].layout.layer + 1, "mlps": len(found.mlps)}
    entry["neurons"] = sum(len(mlp.rows) for mlp in found.mlps)
    return {
        **occasion("compare", argv, started),
        "options": {**asdict(options), "criteria": list(options.criteria)},
        "model": entry,
        "tuned": tuned,
        "pruned_side": found.pairing.pruned_side,
        "probe": None if probe is None else str(probe.path),
        "tests": {
            "family": "criteria (without controls) x absolute and relative change",
            "correction": "Benjamini-Hochberg",
        },
        "warnings": warnings(sides, found, probe),
        "versions": versions("torch", "transformers", "numpy", "scipy", "polars", "numba"),
    }


def _dtypes(side: Checkpoint) -> list[str]:
    slots = {slot.tensor for layout in side.layouts for slot in layout.slots.values()}
    return sorted({side.entries[name].dtype for name in slots})


def _model_entry(side: Checkpoint) -> dict[str, Any]:
    return {
        **source_entry(side.source),
        "family": side.config.model_type,
        "dtype": ", ".join(_dtypes(side)),
        "quantised": is_quantised_source(side.source),
        **size_entry(side.layouts, side.parameters),
    }


def warnings(
    sides: Sequence[Checkpoint], found: Difference, probe: RunDirectory | None
) -> list[str]:
    """What a reader of the comparison should know of its sources."""
    pairing, said = found.pairing, []
    dtypes = [", ".join(_dtypes(side)) for side in sides]
    for name, side in zip(("base", "tuned"), sides, strict=True):
        if is_quantised_source(side.source):
            said.append(
                f"the {name} model ({side.source.name}) comes from a quantised GGUF: every weight "
                "is rounded to the grid of its block. That blurs maw and ppm, which are made of "
                "single extreme weights, so that nothing averages their rounding out. Unless the "
                "other model was made from these very weights, part of the change is rounding, "
                "which grows with a block's largest weight: rounding alone looks like a change of "
                "neurons of high magnitude, and the verdict is then not about tuning"
            )
    if dtypes[0] != dtypes[1]:
        said.append(
            f"the base is stored as {dtypes[0]}, the tuned model as {dtypes[1]}: part of the "
            "change is rounding (in bfloat16 up to 1/256 of a weight)"
        )
    rows = pairing.vocabulary
    if rows[0] != rows[1]:
        said.append(
            f"the vocabularies have {rows[0]:,} and {rows[1]:,} rows; the first {min(rows):,} are "
            "compared"
        )
    for name, only in zip(("base", "tuned model"), pairing.only, strict=True):
        if only:
            shown = ", ".join(only[:3]) + (", ..." if len(only) > 3 else "")
            said.append(f"{len(only)} tensors are only in the {name}: {shown}")
    if pairing.pruned_side:
        cut = sum(layout.width for layout in _parent(pairing)) - sum(
            len(mlp.rows) for mlp in found.mlps
        )
        said.append(
            f"the {pairing.pruned_side} model is a pruned copy: {cut:,} neurons that were cut have "
            "no row; `neuron` is the index in the unpruned model"
        )
    lost = sum(int((~np.isfinite(mlp.squares)).sum()) for mlp in found.mlps)
    if lost:
        said.append(f"{lost:,} neurons have weights that are not finite and enter no test")
    if probe is not None:
        known = {side.source.sha256 for side in sides}
        about = probe.manifest.get("model")
        if not isinstance(about, dict) or about.get("sha256") not in known:
            said.append(f"the probe run {probe.path} is of neither model's weights")
    return said


def _parent(pairing: Pairing) -> Sequence[Any]:
    return pairing.tuned_layouts if pairing.pruned_side == "base" else pairing.layouts
