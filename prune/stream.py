"""Pruning a checkpoint on disk: tensor by tensor, without building the model.

Two readings: one of the MLP weights to score them, one to write what stays. Memory holds one tensor
and its pruned copy. What does not change is copied byte by byte.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import appearing
from ..errors import ResourceError, RunError, UsageError, is_out_of_memory, is_out_of_space
from ..progress import Progress, silent
from ..show_html import Grid, page
from .budget import Budget, choose
from .card import card
from .checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint
from .edits import Edit, kept_indices, padded, plan_edits
from .expressions import parse_criterion
from .recording import Recording
from .selection import NeuronSet, ties_at_the_cut
from .shards import DTYPES, Entry, Write, copied, mapped, plain_dtype, write_shard, written
from .surgery import RECORD

CUT = "glulens_cut.json"
_NOT_COPIED = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".pkl",
    ".pickle", ".joblib", ".ot", ".tflite", ".npz", ".py",
}  # fmt: skip


@dataclass(frozen=True)
class Pruned:
    """What was cut, and where the result lies."""

    path: Path | None
    """None after a dry run."""
    cut: NeuronSet
    kept: tuple[int, ...]
    """Neurons left, by MLP."""
    stored: tuple[int, ...]
    """Neurons as stored, by MLP: more where zero neurons pad uneven widths."""
    parameters: tuple[int, int]
    """Of the whole model, before and after; zero neurons are not counted."""
    ties: int | None
    """Kept neurons with the score of a cut one; None where nothing was scored."""
    bytes: int
    """Of the weights written."""

    def __repr__(self) -> str:
        return (
            f"Pruned({sum(self.cut.widths):,} -> {sum(self.kept):,} neurons, "
            f"{self.parameters[0]:,} -> {self.parameters[1]:,} parameters, "
            f"path={str(self.path) if self.path else None!r})"
        )

    def _repr_html_(self) -> str:
        rows = [
            ("neurons", f"{sum(self.cut.widths):,}", f"{sum(self.kept):,}"),
            ("parameters", *(f"{n:,}" for n in self.parameters)),
        ]
        facts = [f"{self.bytes / 1e6:,.1f} MB of weights"]
        if self.ties is not None:
            facts.append(f"{self.ties:,} kept neurons score like a cut one of their MLP")
        facts.append(f"Checkpoint: {self.path}" if self.path else "Dry run: nothing was written")
        return page("Pruned", Grid(("", "before", "after"), rows), *facts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "schema_version": 1,
            "path": str(self.path) if self.path else None,
            "neurons": [sum(self.cut.widths), sum(self.kept)],
            "parameters": list(self.parameters),
            "widths": list(self.cut.widths),
            "kept": list(self.kept),
            "stored": list(self.stored),
            "ties": self.ties,
            "bytes": self.bytes,
        }


def prune_checkpoint(
    model: str | Path,
    out: str | Path,
    *,
    criterion: str = "ppm",
    budget: Budget | None = None,
    cut: NeuronSet | None = None,
    protected: NeuronSet | None = None,
    recording: Recording | None = None,
    allow_nonfinite: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    argv: Sequence[str] | None = None,
) -> Pruned:
    """Cut neurons from a checkpoint and write the pruned one.

    The result has the same dtype, shards, config and tokenizer and loads with stock
    `from_pretrained`. Where widths differ, narrower MLPs are padded with zero neurons and true
    widths are recorded in the config. It is written beside `out` and renamed: `out` is there whole
    or not at all.

    Args:
        model: see `models.open_model`.
        out: a folder that is not there yet.
        criterion: what neurons are ranked by (see `expressions`).
        budget: how many go.
        cut: these go instead; no criterion is looked at.
        protected: neurons that stay whatever their score.
        recording: for criteria that look at activations.
        allow_nonfinite: neurons with NaN or infinite weights go first instead of being an error.
        overwrite: replace a checkpoint that stands at `out`.
        dry_run: say what would be cut and written; write nothing.
        progress: told how far it is.
        argv: the command line, for the model card.

    Raises:
        UsageError, ModelError, RunError, ResourceError: see `errors`.
    """
    if (budget is None) == (cut is None):
        raise UsageError("give either a budget or the set to cut")
    target = Path(out).expanduser()
    _check_target(target, overwrite)
    if cut is None:
        parse_criterion(criterion)
    elif not len(cut):
        raise UsageError("the set to cut is empty; nothing would go")
    with _out_of_memory(), open_checkpoint(model, progress=progress) as source:
        _check_apart(target, source)
        ties = None
        if cut is None:
            assert budget is not None
            scores = source.score(
                [criterion],
                recording=recording,
                allow_nonfinite=allow_nonfinite,
                progress=progress,
            )[criterion]
            cut = choose(
                source.layouts,
                scores,
                budget,
                protected=protected,
                total_parameters=_true_parameters(source),
            )
            ties = ties_at_the_cut(scores, cut)
        plan = _plan(source, cut)
        after = plan.before - sum(
            gone * layout.parameters_per_neuron
            for gone, layout in zip(cut.counts, source.layouts, strict=True)
        )
        result = Pruned(
            path=None if dry_run else target,
            cut=cut,
            kept=plan.kept,
            stored=plan.stored,
            parameters=(plan.before, after),
            ties=ties,
            bytes=plan.bytes,
        )
        if not dry_run:
            how = f"{criterion}, {budget.describe()}" if budget else "a given set of neurons"
            _write(source, plan, result, target, how, argv, overwrite, progress)
    return result


@dataclass(frozen=True)
class _Plan:
    edits: dict[str, Edit]
    shapes: dict[str, tuple[int, ...]]
    kept: tuple[int, ...]
    stored: tuple[int, ...]
    config_entries: dict[str, int]
    before: int
    bytes: int

    @property
    def padded(self) -> bool:
        return self.kept != self.stored


def _true_parameters(source: Checkpoint) -> int:
    return source.parameters - sum(
        (layout.stored - layout.width) * layout.parameters_per_neuron for layout in source.layouts
    )


def _plan(source: Checkpoint, cut: NeuronSet) -> _Plan:
    kept = kept_indices(source.layouts, cut)
    lists, entries, _ = padded(source.layouts, kept)
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    edits = plan_edits(source.layouts, lists, shapes)
    for name in edits:
        plain_dtype(source.entries[name])
    shapes |= {name: edit.shape(shapes[name]) for name, edit in edits.items()}
    return _Plan(
        edits=edits,
        shapes=shapes,
        kept=tuple(map(len, kept)),
        stored=tuple(map(len, lists)),
        config_entries=entries,
        before=_true_parameters(source),
        bytes=sum(_size(entry, shapes[name]) for name, entry in source.entries.items()),
    )


def _size(entry: Entry, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in its new shape."""
    if shape == entry.shape:
        return entry.size
    return prod(shape) * DTYPES[entry.dtype].itemsize


@contextmanager
def _out_of_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            "not enough memory for one tensor and its pruned copy; free some, nothing was written"
        ) from error


def _check_target(target: Path, overwrite: bool) -> None:
    """Raise `RunError` where nothing may be written, before any work is done."""
    try:
        there = target.exists() or target.is_symlink()
        if not there:
            parent = target.absolute().parent
            while not parent.exists():
                parent = parent.parent
            if not parent.is_dir() or not os.access(parent, os.W_OK):
                raise RunError(f"{parent} cannot be written; choose another place")
            return
        if not overwrite:
            raise RunError(f"{target} exists; choose another place, or give --overwrite")
        if not _is_checkpoint(target):
            raise RunError(
                f"{target} is not a checkpoint (or holds other folders too) and will not be "
                "overwritten"
            )
    except OSError as error:
        raise RunError(f"{target} cannot be written ({error.strerror or error})") from error


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder is empty, or a checkpoint without anything of the user's in it."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not any(folder.iterdir()) or (folder / CUT).is_file():
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (
        isinstance(config, dict)
        and "model_type" in config
        and any(folder.glob("*.safetensors"))
        and not any(path.is_dir() for path in folder.iterdir())
    )


def _check_apart(target: Path, source: Checkpoint) -> None:
    """Raise `UsageError` where writing would replace the model or what holds it."""
    target = target.resolve()
    place = source.source.path.resolve()
    if source.source.kind != "gguf" and place in target.parents:
        raise UsageError(f"{target} is inside the model; write somewhere else")
    if target == place or target in place.parents:
        raise UsageError(f"{target} is or holds the model itself; write somewhere else")


def _write(
    source: Checkpoint,
    plan: _Plan,
    result: Pruned,
    target: Path,
    how: str,
    argv: Sequence[str] | None,
    overwrite: bool,
    progress: Progress,
) -> None:
    try:
        parent = target.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < plan.bytes:
            raise ResourceError(
                f"{free / 1e6:,.0f} MB are free at {parent}, the pruned weights take "
                f"{plan.bytes / 1e6:,.0f} MB; free some or write somewhere else"
            )
        with appearing(target, replace=overwrite) as scratch:
            _copy_rest(source.folder, scratch)
            _write_weights(source, plan, scratch, progress)
            _write_config(source, plan, scratch)
            result.cut.save(scratch / CUT)
            _write_card(source, result, how, argv, scratch)
    except OSError as error:
        if is_out_of_memory(error):
            raise
        if is_out_of_space(error):
            raise ResourceError(
                f"the disk filled up while {target} was written; nothing was kept; free some or "
                "write somewhere else"
            ) from error
        raise RunError(f"{target} cannot be written ({error.strerror or error})") from error


def _copy_rest(folder: Path, scratch: Path) -> None:
    """Tokenizer, generation settings, licence: all but weights, adapters of them, and code."""
    for file in sorted(folder.iterdir()):
        weights = file.suffix.lower() in _NOT_COPIED or file.name.endswith(".index.json")
        other = file.name.startswith(("glulens", "adapter_", "."))
        if file.is_file() and not weights and not other:
            shutil.copyfile(file, scratch / file.name)
    templates = folder / "additional_chat_templates"
    for file in sorted(templates.glob("*.jinja")) if templates.is_dir() else ():
        (scratch / templates.name).mkdir(exist_ok=True)
        shutil.copyfile(file, scratch / templates.name / file.name)


def _write_weights(source: Checkpoint, plan: _Plan, scratch: Path, progress: Progress) -> None:
    done, total = 0, len(source.entries)

    def told() -> None:
        nonlocal done
        done += 1
        progress("writing tensors", done, total)

    def body(entry: Entry) -> Write:
        edit = plan.edits.get(entry.name)
        if edit is None:
            return copied(source.folder, entry)
        return written(edit.apply(mapped(source.folder, entry)))

    for shard in source.shards.values():
        in_order = sorted(shard.entries.values(), key=lambda entry: entry.start)
        write_shard(
            scratch / shard.path.name,
            [
                (e.name, e.dtype, plan.shapes[e.name], _size(e, plan.shapes[e.name]))
                for e in in_order
            ],
            {entry.name: lambda entry=entry: body(entry) for entry in in_order},
            shard.metadata,
            told,
        )
    if SINGLE not in source.shards:
        index = {
            "metadata": {"total_size": plan.bytes},
            "weight_map": {name: entry.shard for name, entry in sorted(source.entries.items())},
        }
        _write_json(scratch / INDEX, index)


def _write_config(source: Checkpoint, plan: _Plan, scratch: Path) -> None:
    config: dict[str, Any] = json.loads(json.dumps(source.raw_config))
    config.pop(RECORD, None)
    nested = config.get("text_config")
    text = nested if isinstance(nested, dict) else config
    text.update(plan.config_entries)
    if plan.padded:
        config[RECORD] = {"widths": list(plan.kept)}
    _write_json(scratch / "config.json", config)


def _write_card(
    source: Checkpoint, result: Pruned, how: str, argv: Sequence[str] | None, scratch: Path
) -> None:
    from .. import __version__

    readme = scratch / "README.md"
    as_is: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
    original = readme.read_text(**as_is) if readme.is_file() else None
    text = card(
        original,
        source=source.source.name,
        revision=source.source.revision,
        how=how,
        command=shlex.join(argv) if argv else "glulens.prune.prune_checkpoint",
        layouts=source.layouts,
        kept=result.kept,
        stored=result.stored,
        parameters=result.parameters,
        ties=result.ties,
        version=__version__,
    )
    readme.write_text(text, **as_is)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def keep_only(keep: NeuronSet) -> NeuronSet:
    """The set to cut so that only these neurons stay."""
    if not all(keep.counts):
        empty = int(np.flatnonzero(np.array(keep.counts) == 0)[0])
        raise UsageError(f"MLP {empty}: the set keeps none of its neurons; keep at least one")
    return keep.complement()
