"""Two run directories side by side: what their tables share, and how far it moved."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars

from ..errors import RunError, UsageError
from ..neuron_keys import COLUMNS, NeuronKeys
from ..prune.expressions import column
from ..prune.shift import norm_shift
from ..rundir import RunDirectory
from .compare_options import CompareOptions
from .compare_result import CompareResult
from .compare_tables import Scores, paired_columns, score_frame, shift_row
from .kept_alike import kept_alike
from .versions import occasion, versions


def compare_runs(
    base: RunDirectory,
    tuned: RunDirectory,
    options: CompareOptions,
    started: float,
    argv: Sequence[str] | None,
) -> CompareResult:
    """Compare the columns that two runs share.

    Runs hold scores and no weights: where the change lies cannot be asked, and there is no verdict.

    Raises:
        RunError: the runs are of other neurons (the message has a table), or share no column.
        UsageError: options that need the models.
    """
    if options.transplant or options.probe is not None:
        flag = "--transplant" if options.transplant else "--probe"
        raise UsageError(f"{flag} needs the models; give two models, not two runs")
    frames = [run.neurons() for run in (base, tuned)]
    keys = [NeuronKeys(frame) for frame in frames]
    _check_alike(base, tuned, keys)
    names = [
        name
        for name, kind in frames[0].schema.items()
        if name not in COLUMNS
        and kind.is_numeric()
        and name in frames[1].columns
        and frames[1].schema[name].is_numeric()
    ]
    if not names:
        raise RunError(
            f"{base.path} and {tuned.path} have no column in common; make both with the same "
            "command and criteria"
        )
    sides: list[dict[str, list[np.ndarray]]] = [
        {name: _by_mlp(frame[name], of) for name in names}
        for frame, of in zip(frames, keys, strict=True)
    ]
    before, after = sides
    cut_by = [name for name in names if name in _criteria(base) & _criteria(tuned)]
    columns: dict[str, Any] = {}
    for name in names:
        columns |= paired_columns(name, before[name], after[name])
    shared = [name for name in COLUMNS if name in frames[0].columns]
    table = frames[0].select(shared)
    if keys[0].stored is not None:
        table = table[keys[0].stored]
    return CompareResult(
        kind="runs",
        verdict=None,
        concentrations=(),
        kept_alike=tuple(
            kept_alike({n: before[n] for n in cut_by}, {n: after[n] for n in cut_by})
            if cut_by
            else ()
        ),
        carriers=(),
        selective=(),
        transplants=(),
        neurons=table.with_columns(**{k: polars.Series(v) for k, v in columns.items()}),
        layers=_layers(keys[0], before, after),
        tensors=polars.DataFrame(),
        groups=polars.DataFrame(),
        distributions=polars.DataFrame(),
        scores=score_frame(before, after),
        norms=polars.DataFrame(),
        manifest=_manifest(base, tuned, keys[0], options, started, argv),
    )


def _check_alike(base: RunDirectory, tuned: RunDirectory, keys: Sequence[NeuronKeys]) -> None:
    if keys[0].widths == keys[1].widths and len(keys[0]) == len(keys[1]):
        same = np.array_equal(keys[0].neuron, keys[1].neuron)
        if same and np.array_equal(keys[0].layer, keys[1].layer):
            return
    rows = [
        (what, *(f"{of(one):,}" for one in keys))
        for what, of in (
            ("neurons", len),
            ("MLPs", lambda k: len(k.mlps)),
            ("layers", lambda k: len({mlp.layer for mlp in k.mlps})),
            ("widest MLP", lambda k: max(k.widths, default=0)),
            ("narrowest MLP", lambda k: min(k.widths, default=0)),
        )
    ]
    rows = [row for row in rows if row[1] != row[2]] or [("indices", "some", "others")]
    rows = [("", "base", "tuned"), *rows]
    wide = [max(len(row[at]) for row in rows) for at in range(2)]
    lines = [f"  {a:{wide[0]}}  {b:{wide[1]}}  {c}" for a, b, c in rows]
    head = (
        f"{base.path} and {tuned.path} are not of the same neurons; give two runs of models of the "
        "same widths"
    )
    raise RunError("\n".join([head, *lines]))


def _by_mlp(values: polars.Series, keys: NeuronKeys) -> list[np.ndarray]:
    array = values.cast(polars.Float64, strict=False).to_numpy()
    if keys.stored is not None:
        array = array[keys.stored]
    return [array[mlp.start : mlp.stop] for mlp in keys.mlps]


def _criteria(run: RunDirectory) -> set[str]:
    """Columns by which a run's neurons could be cut."""
    options = run.manifest.get("options")
    names = options.get("criteria") if isinstance(options, dict) else None
    return {column(name) for name in names or () if isinstance(name, str)}


def _layers(keys: NeuronKeys, before: Scores, after: Scores) -> polars.DataFrame:
    """One row an MLP and shared column: the distance between its distributions."""
    rows = []
    for name in before:
        for mlp, a, b in zip(keys.mlps, before[name], after[name], strict=True):
            there = np.isfinite(a) & np.isfinite(b)
            if there.any():
                rows.append(
                    {
                        "column": name,
                        "layer": mlp.layer,
                        "part": mlp.part,
                        "expert": mlp.expert,
                        **shift_row(norm_shift(a[there], b[there])),
                    }
                )
    return polars.DataFrame(rows, infer_schema_length=None)


def _manifest(
    base: RunDirectory,
    tuned: RunDirectory,
    keys: NeuronKeys,
    options: CompareOptions,
    started: float,
    argv: Sequence[str] | None,
) -> dict[str, Any]:
    about = [run.manifest.get("model") for run in (base, tuned)]
    models = [entry if isinstance(entry, dict) else {} for entry in about]
    said = []
    families = [entry.get("family") for entry in models]
    if families[0] != families[1]:
        said.append(f"the runs are of models of the families {families[0]} and {families[1]}")
    found = {
        **occasion("compare", argv, started),
        "options": {**asdict(options), "criteria": list(options.criteria)},
        "model": models[0],
        "tuned": models[1],
        "runs": [
            {"path": str(run.path), "command": run.manifest.get("command")} for run in (base, tuned)
        ],
        "warnings": said,
        "versions": versions("numpy", "scipy", "polars"),
    }
    found["seconds"] = round(time.time() - started, 1)
    return found
