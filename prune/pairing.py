"""Two checkpoints side by side: whether they can be compared, and which tensor belongs to which."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import DataError, ModelError
from .checkpoint import BUFFERS, Checkpoint
from .embedded import EMBEDDED
from .layout import MlpLayout
from .models import ModelSource
from .selection import NeuronSet
from .shards import plain_dtype
from .stream import CUT

_PREFIX = re.compile(
    r"(?:model\.language_model\.|language_model\.model\.|language_model\.|model\.|transformer\."
    r"|gpt_neox\.)"
)
"""What wrappers put before the names of one and the same text model."""
_VOCABULARY = re.compile(
    r"(?:.*\.)?(?:embed_tokens|wte|embed_in|embed_out|word_embeddings|lm_head)\.(?:weight|bias)"
)
_COUNTED = ("BOOL", "I64")
"""Dtypes of masks and positions, which are no weights."""
_ENTRIES = (
    ("family", "model_type"),
    ("layers", "num_hidden_layers"),
    ("hidden size", "hidden_size"),
    ("attention heads", "num_attention_heads"),
    ("key-value heads", "num_key_value_heads"),
    ("head size", "head_dim"),
)
_SHOWN = 12
"""Rows of a table of what differs."""


@dataclass(frozen=True)
class Mismatch:
    """One thing in which two models differ."""

    what: str
    base: str
    tuned: str


@dataclass(frozen=True, eq=False)
class Pairing:
    """What belongs to what in two checkpoints."""

    layouts: tuple[MlpLayout, ...]
    """The base's."""
    tuned_layouts: tuple[MlpLayout, ...]
    kept: tuple[np.ndarray | None, ...]
    """Where one is a pruned copy of the other: per MLP, which of the parent's neurons the pruned
    one has, in its order (the parent is the base unless `pruned_side` says otherwise). None: all,
    in the same order."""
    pruned_side: Literal["", "base", "tuned"]
    vocabulary: tuple[int, int]
    """Rows of the token embeddings; the first ones of both, as many as the smaller has, are
    compared."""
    tensors: tuple[tuple[str, str], ...]
    """All tensors that are none of the MLPs' neurons: name in base, name in tuned."""
    only: tuple[tuple[str, ...], tuple[str, ...]]
    """Names of tensors that only one of them has: such as the head, where the other ties it to the
    embeddings."""


def pair(base: Checkpoint, tuned: Checkpoint) -> Pairing:
    """Match two checkpoints of one architecture and the same widths, tensor by tensor.

    MLPs are matched in the order of the layers, all other tensors by their names less what a
    wrapper may put before them. Vocabularies may differ in size. Where one was cut from the other
    by glulens, its neurons are matched with those that they were.

    Raises:
        ModelError: they are not alike; the message ends with a table of what differs.
    """
    layouts, others = tuple(base.layouts), tuple(tuned.layouts)
    kept, side = _kept(base, tuned)
    tensors, only, wrong = _tensors(base, tuned)
    differs = [*_of_configs(base.config, tuned.config), *_of_mlps(layouts, others, bool(side))]
    if not differs:  # other shapes follow from those
        differs += wrong
    if differs:
        raise ModelError(_refusal(base, tuned, differs))
    return Pairing(
        layouts, others, kept, side, (_vocabulary(base), _vocabulary(tuned)), tensors, only
    )


def is_quantised_source(source: ModelSource) -> bool:
    """Whether a model's weights went through a quantised format: a GGUF with block-wise types (one
    in F32, F16 or BF16 is not), or the embedded model, which was unpacked from such a one."""
    if source.kind == "embedded":
        return source.name in EMBEDDED
    if source.kind != "gguf":
        return False
    from gguf import GGMLQuantizationType, GGUFReader

    plain = {GGMLQuantizationType[name] for name in ("F64", "F32", "F16", "BF16")}
    return any(tensor.tensor_type not in plain for tensor in GGUFReader(source.path).tensors)


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has one row a token."""
    return _VOCABULARY.fullmatch(name) is not None


def _vocabulary(checkpoint: Checkpoint) -> int:
    rows = [e.shape[0] for n, e in checkpoint.entries.items() if e.shape and is_vocabulary(n)]
    return max(rows, default=int(getattr(checkpoint.config, "vocab_size", 0) or 0))


# Pruned copies


def _cut(checkpoint: Checkpoint) -> NeuronSet | None:
    """What was cut to make a checkpoint, if glulens cut it."""
    path = checkpoint.folder / CUT
    if not path.is_file():
        return None
    try:
        cut = NeuronSet.load(path)
    except DataError as error:
        raise ModelError(str(error)) from error
    left = tuple(w - gone for w, gone in zip(cut.widths, cut.counts, strict=True))
    widths = tuple(layout.width for layout in checkpoint.layouts)
    if left != widths:
        raise ModelError(
            f"{path} leaves {_widths(left)} neurons, the weights beside it have {_widths(widths)}: "
            "it is not of this checkpoint; take it away or prune again"
        )
    return cut


def _kept(
    base: Checkpoint, tuned: Checkpoint
) -> tuple[tuple[np.ndarray | None, ...], Literal["", "base", "tuned"]]:
    widths = [tuple(layout.width for layout in side.layouts) for side in (base, tuned)]
    cuts = [_cut(base), _cut(tuned)]
    every: tuple[np.ndarray | None, ...] = (None,) * len(widths[0])
    if widths[0] == widths[1]:
        if cuts[0] is not None and cuts[1] is not None and cuts[0] != cuts[1]:
            raise ModelError(
                f"{base.source.name} and {tuned.source.name} were pruned of different neurons, so "
                "equal places hold different ones; compare each with the model it was pruned from"
            )
        return every, ""
    sides: tuple[Literal["base", "tuned"], ...] = ("base", "tuned")
    for place in (1, 0):
        cut = cuts[place]
        if cut is not None and cut.widths == widths[1 - place]:
            return cut.complement().indices, sides[place]
    for place, checkpoint in enumerate((base, tuned)):
        cut = cuts[place]
        # Widths that no cutting of the other could have left are for the table of what differs.
        if cut is None or len(widths[0]) != len(widths[1]):
            continue
        raise ModelError(
            f"{checkpoint.source.name} was pruned from a model with {_widths(cut.widths)} neurons "
            f"(see {CUT} in it), the other one has {_widths(widths[1 - place])}; compare it with "
            "the model it was pruned from directly: of several prunings in a row only the last is "
            "on record"
        )
    return every, ""


def _widths(widths: Sequence[int]) -> str:
    if len(set(widths)) == 1:
        return f"{len(widths)} x {widths[0]}"
    return f"{sum(widths):,} in {len(widths)} MLPs"


# What differs


def _of_configs(base: Any, tuned: Any) -> Iterable[Mismatch]:
    for what, entry in _ENTRIES:
        values = [getattr(config, entry, None) for config in (base, tuned)]
        if None not in values and values[0] != values[1]:
            yield Mismatch(what, *map(str, values))


def _of_mlps(
    base: Sequence[MlpLayout], tuned: Sequence[MlpLayout], pruned: bool
) -> Iterable[Mismatch]:
    experts = [Counter(m.layer for m in side if m.part == "expert") for side in (base, tuned)]
    most = [max(counts.values(), default=0) for counts in experts]
    if most[0] != most[1]:
        yield Mismatch("experts a layer", *map(str, most))
    if len(base) != len(tuned):
        yield Mismatch("MLPs", str(len(base)), str(len(tuned)))
        return
    pairs = list(zip(base, tuned, strict=True))

    def first(what: str, of: Any) -> Iterable[Mismatch]:
        unlike = [(a, b) for a, b in pairs if of(a) != of(b)]
        if unlike:
            a, b = unlike[0]
            yield Mismatch(f"{what}, {a.name} ({len(unlike)} MLPs differ)", str(of(a)), str(of(b)))

    yield from first("kind of MLP", lambda m: f"{m.name}: {', '.join(_roles(m))}")
    if not pruned:
        yield from first("MLP width", lambda m: m.width)
    yield from first("MLP input", lambda m: m.hidden)


def _roles(layout: MlpLayout) -> list[str]:
    return [role for role in ("gate", "up", "down") if role in layout.slots]


def _tensors(
    base: Checkpoint, tuned: Checkpoint
) -> tuple[
    tuple[tuple[str, str], ...], tuple[tuple[str, ...], tuple[str, ...]], list[Mismatch]
]:  # fmt: skip
    """The pairs, those without a partner, and pairs of unlike shapes."""
    left, right = _by_bare_name(base), _by_bare_name(tuned)
    tensors, wrong = [], []
    for bare, name in left.items():
        if bare not in right:
            continue
        a, b = base.entries[name].shape, tuned.entries[right[bare]].shape
        if is_vocabulary(name) and len(a) == len(b) > 0:
            a, b = a[1:], b[1:]
        if a != b:
            shapes = (base.entries[name].shape, tuned.entries[right[bare]].shape)
            wrong.append(Mismatch(name, *(" x ".join(map(str, s)) for s in shapes)))
        tensors.append((name, right[bare]))
    only = (
        tuple(name for bare, name in left.items() if bare not in right),
        tuple(name for bare, name in right.items() if bare not in left),
    )
    return tuple(tensors), only, wrong


def _by_bare_name(checkpoint: Checkpoint) -> dict[str, str]:
    """The tensors of no neuron, by their names less what a wrapper puts before them."""
    of_neurons = {s.tensor for layout in checkpoint.layouts for s in layout.slots.values()}
    names = []
    for name, entry in checkpoint.entries.items():
        if name in of_neurons or name.endswith(BUFFERS) or entry.dtype in _COUNTED:
            continue
        plain_dtype(entry)
        names.append(name)
    bare = {_PREFIX.sub("", name, count=1) if _PREFIX.match(name) else name: name for name in names}
    return bare if len(bare) == len(names) else {name: name for name in names}


def _refusal(base: Checkpoint, tuned: Checkpoint, differs: Sequence[Mismatch]) -> str:
    rows = [Mismatch("", "base", "tuned"), *differs[:_SHOWN]]
    wide = max(len(row.what) for row in rows)
    middle = max(len(row.base) for row in rows)
    lines = [f"  {row.what:{wide}}  {row.base:{middle}}  {row.tuned}".rstrip() for row in rows]
    if len(differs) > _SHOWN:
        lines.append(f"  and {len(differs) - _SHOWN} more")
    return "\n".join(
        [
            f"{base.source.name} and {tuned.source.name} are not of one architecture and the same "
            "widths, so their neurons cannot be compared; give a model and its tuned copy",
            *lines,
        ]
    )
