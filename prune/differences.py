"""How two checkpoints differ, neuron by neuron and tensor by tensor, from one reading of each.

No model is built: a tensor of each is mapped, both are read once together, and both are let go.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError
from ..progress import Progress, silent
from .checkpoint import Checkpoint, Reader
from .edits import take_rows
from .families import FAMILIES, Family
from .layout import NOT_TEXT, MlpLayout
from .mlps import oriented
from .pairing import Pairing, is_vocabulary, pair
from .shards import mapped
from .shift import WeightShift, norm_shift, weight_shift
from .weights import BLOCK, MatrixWeights, MlpWeights, as_compiled, from_sums, weigh_matrix

SAMPLE = 2**16
"""Weights of a tensor whose distribution is looked at."""
_LAYER = re.compile(r"(?:.*\.)?(?:layers|h)\.(\d+)\.")
_GROUPS: tuple[tuple[str, str], ...] = (
    ("norm", r"norm|\.ln_|layernorm"),
    ("bias", r"bias$"),
    ("head", r"(?:^|\.)(?:lm_head|embed_out)\."),
    ("embedding", r"embed|\.?wte\.|\.?wpe\."),
    ("attention", r"attn|attention"),
)


@dataclass(frozen=True, eq=False)
class MatrixDifference:
    """Of one matrix in two models, per neuron, over its `n` weights there; float64 [neurons].

    Sums are made in float32 and added up in float64: about seven digits. Weights that are further
    apart than float32 can square (1e19), and nearer than 1e-19, are infinitely far and not apart.
    """

    n: int
    before: MatrixWeights
    after: MatrixWeights
    squares: np.ndarray
    """||after - before||^2: exactly 0 where they are equal."""
    dot: np.ndarray
    """<before, after>."""

    @cached_property
    def cosine(self) -> np.ndarray:
        """Of the angle between before and after, within [-1, 1]: exactly 1 where they are equal
        (zero both, too), NaN where just one is zero."""
        a, b = self.before.squares, self.after.squares
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            product = np.sqrt(a) * np.sqrt(b)
            # 1 - cos from the difference: of vectors that nearly agree, the product keeps no digit.
            near = 1 - (self.squares - (np.sqrt(a) - np.sqrt(b)) ** 2) / (2 * product)
            found = np.where(self.squares < np.minimum(a, b), near, self.dot / product)
        return np.where(self.squares == 0, 1.0, np.clip(found, -1, 1))

    @property
    def finite(self) -> np.ndarray:
        """Whether all weights of a neuron are finite in both, bool [neurons]."""
        return np.isfinite(self.before.squares) & np.isfinite(self.after.squares)


@dataclass(frozen=True, eq=False)
class MlpDifference:
    """Of one MLP in two models."""

    layout: MlpLayout
    """The base's."""
    rows: np.ndarray
    """Which neurons are compared, int64 [neurons]: their places in the base, or in the parent where
    the base is the pruned copy of the tuned."""
    matrices: dict[str, MatrixDifference]
    """`gate` (if there is one), `up`, `down`."""
    before: MlpWeights
    """For `expressions.evaluate`, of the neurons compared."""
    after: MlpWeights

    @cached_property
    def squares(self) -> np.ndarray:
        """||change||^2 of each neuron: its row of gate, row of up and column of down, float64
        [neurons]; NaN where any of its weights is not finite."""
        return self._summed(lambda matrix: matrix.squares)

    @property
    def absolute(self) -> np.ndarray:
        """The L2 norm of the change."""
        return np.sqrt(self.squares)

    @property
    def relative(self) -> np.ndarray:
        """The change's norm over that of the base's weights; 0 where both are 0, NaN where only
        the base's is."""
        of_base = self._summed(lambda matrix: matrix.before.squares)
        found = np.full(len(of_base), np.nan)
        np.divide(self.squares, of_base, out=found, where=of_base > 0)
        found[(of_base == 0) & (self.squares == 0)] = 0
        return np.sqrt(found)

    @property
    def share(self) -> np.ndarray:
        """Of the MLP's whole ||change||^2; all 0 where nothing changed."""
        total = np.nansum(self.squares)
        return self.squares / total if total > 0 else self.squares

    def _summed(self, of: Callable[[MatrixDifference], np.ndarray]) -> np.ndarray:
        finite = np.all([matrix.finite for matrix in self.matrices.values()], axis=0)
        with np.errstate(invalid="ignore"):
            total = np.sum([of(matrix) for matrix in self.matrices.values()], axis=0)
        return np.where(finite, total, np.nan)


@dataclass(frozen=True)
class TensorDifference:
    """Of one whole tensor in two models; of a fused one, gate and up apart."""

    name: str
    """In the base."""
    group: str
    """`gate`, `up`, `down`, `attention`, `embedding`, `head`, `norm`, `bias` or `other`."""
    layer: int | None
    n: int
    """Weights compared."""
    squares: float
    """||after - before||^2, over the rows (of MLPs: neurons) that are finite; the next three,
    too."""
    before: float
    """Sum of squares."""
    after: float
    """Sum of squares."""
    dot: float
    distribution: WeightShift | None = None
    """Of the weights, in a sample: at most `SAMPLE`, of rows evenly spaced, the same in both; None
    for what is no matrix."""
    norms: WeightShift | None = None
    """Of the L2 norms of all rows; for `down` of the columns, which are neurons."""


@dataclass(frozen=True, eq=False)
class Difference:
    """Of two models."""

    mlps: list[MlpDifference]
    tensors: list[TensorDifference]
    pairing: Pairing


def difference(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    gains: bool = False,
    allow_nonfinite: bool = False,
    progress: Progress = silent,
) -> Difference:
    """Compare two checkpoints, reading each once.

    Args:
        base: what was before.
        tuned: what came of it; the same architecture and widths, any dtypes (see `pairing.pair`).
        gains: also weigh gate and up with the gain of the norm before them multiplied in, of each
            model its own.
        allow_nonfinite: weights that are NaN or infinite are no error; the change of their neurons
            is NaN.
        progress: told how far it is.

    Raises:
        ModelError: the two do not match; weights are not finite or are quantised.
    """
    pairing = pair(base, tuned)
    work = _Work(pairing, (base, tuned), gains, allow_nonfinite)
    total = len(pairing.layouts) + len(pairing.tensors)
    mlps, tensors = [], []
    with torch.no_grad():
        for index in range(len(pairing.layouts)):
            mlps.append(work.mlp(index))
            tensors += work.finished(index)
            progress("comparing (MLPs and tensors)", index + 1, total)
        for index, names in enumerate(pairing.tensors, len(pairing.layouts) + 1):
            tensors.append(work.tensor(*names))
            progress("comparing (MLPs and tensors)", index, total)
    return Difference(mlps, tensors, pairing)


def compare_matrix(before: Tensor, after: Tensor, axis: int) -> MatrixDifference:
    """Read two matrices of one shape once.

    Args:
        before: two-dimensional, of a floating dtype, on the CPU, contiguous or not.
        after: the same in the other model; its dtype may be another.
        axis: the axis that counts neurons.
    """
    before, after = before.detach(), after.detach()
    if before.shape != after.shape or before.ndim != 2:
        raise ModelError(f"matrices of shapes {tuple(before.shape)} and {tuple(after.shape)}")
    for matrix in (before, after):
        if not matrix.is_floating_point() or matrix.element_size() < 2:
            raise ModelError(f"a weight of dtype {matrix.dtype} is packed or quantised")
    if before.stride(1) != 1 and before.stride(0) == 1:
        before, after, axis = before.T, after.T, 1 - axis
    neurons = before.shape[axis]
    sums = np.empty((5, neurons)), np.empty((5, neurons)), np.empty((2, neurons))
    one, other = as_compiled(before), as_compiled(after)
    if one is not None and other is not None and one.dtype == other.dtype:
        _compiled_pair(one, other, axis, *sums)
    else:
        step = max(1, BLOCK // max(before.shape[1 - axis], 1))
        for start in range(0, neurons, step):
            size = min(step, neurons - start)
            one, other = (_block(matrix, axis, start, size) for matrix in (before, after))
            _compiled_pair(one, other, 0, *(part[:, start : start + size] for part in sums))
    weights = from_sums(sums[0], before, axis), from_sums(sums[1], after, axis)
    return MatrixDifference(before.shape[1 - axis], *weights, squares=sums[2][0], dot=sums[2][1])


def _compiled_pair(
    before: np.ndarray,
    after: np.ndarray,
    axis: int,
    of_before: np.ndarray,
    of_after: np.ndarray,
    between: np.ndarray,
) -> None:
    with warnings.catch_warnings():
        # numba speaks of the threading layer it finds; any will do.
        warnings.simplefilter("ignore")
        from .pair_kernels import compare_columns, compare_rows

        (compare_columns if axis else compare_rows)(before, after, of_before, of_after, between)


def _block(matrix: Tensor, axis: int, start: int, size: int) -> np.ndarray:
    """Some neurons, as rows, in float32."""
    block = matrix.narrow(axis, start, size)
    return (block if axis == 0 else block.T).to(torch.float32).contiguous().numpy()


def _sampled(matrices: tuple[Tensor, Tensor], most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` weights of each, of whole rows as they are stored, evenly spaced."""
    if matrices[0].stride(1) != 1 and matrices[0].stride(0) == 1:
        matrices = matrices[0].T, matrices[1].T
    rows, columns = matrices[0].shape
    wanted = min(rows, max(1, most // max(columns, 1)))
    places = np.linspace(0, max(rows - 1, 0), wanted).round().astype(np.int64)
    every = -(-columns // most) if columns > most else 1
    one, other = (_picked(matrix, places, every) for matrix in matrices)
    return one, other


def _picked(matrix: Tensor, rows: np.ndarray, every: int) -> np.ndarray:
    """Some rows and columns, flat, in float32."""
    if matrix.dtype != torch.bfloat16:
        return matrix.numpy()[rows, ::every].astype(np.float32).ravel()
    words: np.ndarray = matrix.view(torch.uint16).numpy()
    return (words[rows, ::every].astype(np.uint32) << 16).view(np.float32).ravel()


@dataclass
class _Whole:
    """What is added up of a tensor while its parts pass by."""

    group: str
    layer: int | None
    parts: list[MatrixDifference] = field(default_factory=list)
    samples: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def result(self, name: str) -> TensorDifference:
        squares, of_before, of_after, dot, n = 0.0, 0.0, 0.0, 0.0, 0
        norms: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for part in self.parts:
            good = part.finite
            squares += float(part.squares[good].sum())
            of_before += float(part.before.squares[good].sum())
            of_after += float(part.after.squares[good].sum())
            dot += float(part.dot[good].sum())
            n += part.n * len(good)
            norms[0].append(part.before.norm[good])
            norms[1].append(part.after.norm[good])
        one, other = (np.concatenate(side) for side in zip(*self.samples, strict=True))
        return TensorDifference(
            name, self.group, self.layer, n, squares, of_before, of_after, dot,
            distribution=weight_shift(one, other),
            norms=norm_shift(np.concatenate(norms[0]), np.concatenate(norms[1])),
        )  # fmt: skip


class _Work:
    """One comparison on its way."""

    def __init__(
        self,
        pairing: Pairing,
        sides: tuple[Checkpoint, Checkpoint],
        gains: bool,
        allow_nonfinite: bool,
    ) -> None:
        self.pairing, self.sides = pairing, sides
        self.readers = (Reader(sides[0]), Reader(sides[1]))
        self.gains, self.allow_nonfinite = gains, allow_nonfinite
        self.parent = 1 if pairing.pruned_side == "base" else 0
        self.layers = int(getattr(sides[0].config, "num_hidden_layers", 0))
        self.whole: dict[tuple[str, str], _Whole] = {}
        self.parts = Counter(key for layout in pairing.layouts for key in _keys(layout))

    def mlp(self, index: int) -> MlpDifference:
        """Compare one MLP."""
        layouts = (self.pairing.layouts[index], self.pairing.tuned_layouts[index])
        kept = self.pairing.kept[index]
        family = FAMILIES.get(self.sides[0].config.model_type, Family())
        gains = [None, None]
        if self.gains and layouts[0].norm is not None and layouts[1].norm is not None:
            gains = [
                read(str(layout.norm)).float() + family.norm_offset
                for read, layout in zip(self.readers, layouts, strict=True)
            ]
        found: dict[str, MatrixDifference] = {}
        folded: tuple[list[MatrixWeights], list[MatrixWeights]] = ([], [])
        for role in ("gate", "up", "down"):
            if role not in layouts[0].slots:
                continue
            pair_ = self._matrices(layouts, role, kept)
            found[role] = compare_matrix(*pair_, int(role == "down"))
            for side, layout in enumerate(layouts):
                matrix = found[role].after if side else found[role].before
                places = kept if kept is not None and side == self.parent else None
                bad = np.flatnonzero(~np.isfinite(matrix.squares))
                bad = bad if places is None else places[bad]
                self._check(side, layout.slots[role].tensor, layout.name, bad, "neurons")
            for side, gain in enumerate(gains if role != "down" else ()):
                if gain is not None:
                    folded[side].append(weigh_matrix(pair_[side], 0, gain))
            key = (layouts[0].slots[role].tensor, role)
            whole = self.whole.setdefault(key, _Whole(role, layouts[0].layer))
            whole.parts.append(found[role])
            whole.samples.append(_sampled(pair_, max(1, SAMPLE // self.parts[key])))
        rows = np.arange(layouts[0].width) if kept is None else kept
        weights = [
            MlpWeights(
                tuple(getattr(found[role], side) for role in ("gate", "up") if role in found),
                getattr(found["down"], side),
                tuple(of_side) if of_side else None,
            )
            for side, of_side in zip(("before", "after"), folded, strict=True)
        ]
        return MlpDifference(layouts[0], rows.astype(np.int64), found, weights[0], weights[1])

    def _matrices(
        self, layouts: tuple[MlpLayout, MlpLayout], role: str, kept: np.ndarray | None
    ) -> tuple[Tensor, Tensor]:
        found = []
        for side, (read, layout) in enumerate(zip(self.readers, layouts, strict=True)):
            slot = layout.slots[role]
            part = oriented(read(slot.tensor), slot, layout)
            if kept is not None and side == self.parent:
                part = take_rows(part, int(role == "down"), kept)
            found.append(part)
        return found[0], found[1]

    def finished(self, index: int) -> list[TensorDifference]:
        """The tensors of which no part is left after an MLP: the experts of a layer share some."""
        later = self.pairing.layouts[index + 1 : index + 2]
        open_ = {key for layout in later for key in _keys(layout)}
        done = [key for key in self.whole if key not in open_]
        found = [self.whole.pop(key).result(key[0]) for key in done]
        layouts = (self.pairing.layouts[index], self.pairing.tuned_layouts[index])
        for role in ("gate_bias", "up_bias"):
            if role in layouts[0].slots and role in layouts[1].slots:
                biases = self._matrices(layouts, role, self.pairing.kept[index])
                name = layouts[0].slots[role].tensor
                found.append(self._vector(name, *biases, "bias", layouts[0].layer))
        return found

    def tensor(self, name: str, other: str) -> TensorDifference:
        """Compare two tensors that are not of neurons."""
        tensors = [
            mapped(side.folder, side.entries[n])
            for side, n in zip(self.sides, (name, other), strict=True)
        ]
        group, layer = self._about(name)
        if is_vocabulary(name):
            rows = min(len(tensor) for tensor in tensors)
            tensors = [tensor[:rows] for tensor in tensors]
        if tensors[0].ndim < 2 or not tensors[0].numel():
            return self._vector(name, tensors[0], tensors[1], group, layer)
        before, after = (tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors)
        found = compare_matrix(before, after, 0)
        for side, weights in enumerate((found.before, found.after)):
            bad = np.flatnonzero(~np.isfinite(weights.squares))
            self._check(side, (name, other)[side], group, bad, "rows")
        whole = _Whole(group, layer, [found], [_sampled((before, after), SAMPLE)])
        return whole.result(name)

    def _vector(
        self, name: str, before: Tensor, after: Tensor, group: str, layer: int | None
    ) -> TensorDifference:
        a, b = (side.flatten().double().numpy() for side in (before, after))
        for side, values in enumerate((a, b)):
            self._check(side, name, group, np.flatnonzero(~np.isfinite(values)), "entries")
        good = np.isfinite(a) & np.isfinite(b)
        a, b = a[good], b[good]
        return TensorDifference(
            name, group, layer, len(good),
            squares=float(((b - a) ** 2).sum()),
            before=float((a**2).sum()),
            after=float((b**2).sum()),
            dot=float((a * b).sum()),
        )  # fmt: skip

    def _about(self, name: str) -> tuple[str, int | None]:
        """Group and layer; what is not of the text model, or beyond its layers, is `other`."""
        match = _LAYER.match(name)
        layer = int(match[1]) if match else None
        if NOT_TEXT.search(name) or (layer is not None and layer >= self.layers):
            return "other", None
        for group, pattern in _GROUPS:
            if re.search(pattern, name):
                return group, layer
        return "other", layer

    def _check(self, side: int, tensor: str, where: str, bad: np.ndarray, what: str) -> None:
        """Refuse weights that are not finite."""
        if self.allow_nonfinite or not len(bad):
            return
        name = self.sides[side].source.name
        raise ModelError(
            f"{name} ({('base', 'tuned')[side]}), {where}: {len(bad)} {what} have NaN or infinite "
            f"weights in {tensor} (the first is {int(bad[0])}); the checkpoint is damaged: fetch "
            "it again, or leave them out with --allow-nonfinite"
        )


def _keys(layout: MlpLayout) -> list[tuple[str, str]]:
    roles = ("gate", "up", "down")
    return [(layout.slots[role].tensor, role) for role in roles if role in layout.slots]
