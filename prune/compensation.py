"""Making up for cut neurons in what stays: new columns of `down`, or a bias.

Both ask what an MLP writes on a calibration text and bring the cut one nearer to it, whichever
criterion chose the cut. `A` are activations [tokens, neurons], `D` is `down` [hidden, neurons], `K`
the kept neurons, `C` the cut ones, `S` = A'A / tokens:

lsq     the kept columns become W, which minimises ||A D' - A_K W'||^2 / tokens + lambda
        ||W - D_K||^2: W = D_K + D_C S_CK (S_KK + lambda I)^-1, as SliceGPT (arXiv 2401.15024) and
        others refit what they keep. lambda is `ridge` times the mean of S_KK's diagonal. It pulls
        towards the columns as they were, so that on that text the error is never above the one
        without compensation.
flap    the columns stay, and what the cut neurons wrote on average, D_C mean(A_C), goes into the
        bias of `down` (FLAP, arXiv 2312.11983).

Activations are the intact model's, so one reading of the text serves every cut of a sweep. First
tokens are part of `S`, against the custom of the house: models park activations there that are
hundreds of times any other, whatever the token, and columns refitted without them write something
large and wrong at every text's first position. They are few and alike, so that heeding them costs
little. They set neither lambda's scale nor flap's means. Nothing here is written to a checkpoint: a
bias where the family has none would not load again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError, UsageError
from ..progress import Progress, silent
from .edits import kept_indices
from .mlps import Mlp, find_mlps, oriented, watching
from .models import OpenedModel
from .selection import NeuronSet

Method = Literal["none", "lsq", "flap"]
METHODS: tuple[Method, ...] = ("none", "lsq", "flap")
RIDGE = 0.3
"""Of the mean second moment. Less follows the calibration text closer than other text bears: see
benchmarks/compensation.py."""
KEEP_BYTES = 4_000_000_000
"""Second moments that are kept at a time; beyond that the text is read again, in groups of MLPs."""
LONGEST = 512
"""Tokens of a calibration text."""


_See = Callable[[int, Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class Correction:
    """What becomes of one MLP. Errors are what it writes otherwise than the intact one on the
    calibration text, squared, over all that the intact one writes; NaN where not computed."""

    columns: Tensor | None = None
    """New `down` of the kept neurons [hidden, kept], in order of index, float64."""
    bias: Tensor | None = None
    """What is added to the bias of `down` [hidden], float64."""
    before: float = float("nan")
    """Error without compensation."""
    after: float = float("nan")
    """Error with it."""


@dataclass(frozen=True, eq=False)
class SecondMoments:
    """What one MLP's neurons do together, over tokens."""

    tokens: int
    products: Tensor
    """Mean of a_i a_j over all tokens, float64 [neurons, neurons]."""
    squares: Tensor
    """Mean of a_i^2 over all but first tokens, float64 [neurons]."""


class Calibration:
    """What a model does on a text, as compensation needs it, read when first asked for.

    Args:
        model: the intact model, on any device.
        sequences: token ids; one of a single token says nothing.
        keep_bytes: second moments kept in memory. Where those of all MLPs take more, each call of
            `corrections` reads the text again, once for every group of MLPs that fits.
        progress: told of each sequence.

    Raises:
        UsageError: `keep_bytes` is too small for one MLP.
        DataError: no sequence has two tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        sequences: Sequence[Sequence[int]],
        *,
        keep_bytes: int = KEEP_BYTES,
        progress: Progress = silent,
    ) -> None:
        self._model = model
        self._mlps = find_mlps(model)
        self._sequences = [list(ids) for ids in sequences if len(ids) > 1]
        if not self._sequences:
            raise DataError("compensation needs a text of two tokens or more to calibrate on")
        self._progress = progress
        self._means: list[Tensor] | None = None
        self._kept: list[SecondMoments] | None = None
        self._groups = _groups(self._mlps, keep_bytes)

    @classmethod
    def of(
        cls, opened: OpenedModel, texts: Sequence[str], *, longest: int = LONGEST, **options: Any
    ) -> Calibration:
        """On plain texts, each cut off after `longest` tokens; `options` as above."""
        texts = [texts] if isinstance(texts, str) else texts  # not its letters
        tokenizer = opened.tokenizer
        ids = [tokenizer(text)["input_ids"][:longest] for text in texts]  # pyright: ignore
        return cls(opened.model, ids, **options)

    @property
    def tokens(self) -> int:
        """Tokens that count: all but each sequence's first."""
        return sum(len(ids) - 1 for ids in self._sequences)

    def corrections(
        self, cut: NeuronSet, method: Method = "lsq", ridge: float = RIDGE
    ) -> tuple[Correction, ...]:
        """What becomes of every MLP when `cut` goes.

        Raises:
            UsageError: unknown method, a negative ridge or one too small for this text, a set of
                another model, or one that empties an MLP.
            ModelError: a bias where there is no place for one (stacked experts).
        """
        check_method(method, ridge)
        kept_indices([mlp.layout for mlp in self._mlps], cut)
        if method == "none":
            return tuple(Correction() for _ in self._mlps)
        if method == "flap":
            return self._biases(cut)
        if len(self._groups) == 1:
            if self._kept is None:
                self._kept = self._second_moments(self._mlps)
            groups = iter([self._kept])
        else:
            groups = (self._second_moments([self._mlps[k] for k in g]) for g in self._groups)
        found: list[Correction] = []
        for moments in groups:
            for seen in moments:
                mlp = self._mlps[len(found)]
                found.append(least_squares(mlp, cut, seen, ridge))
        return tuple(found)

    def _biases(self, cut: NeuronSet) -> tuple[Correction, ...]:
        if self._means is None:
            sums = [torch.zeros(mlp.width, dtype=torch.float64) for mlp in self._mlps]
            counts = [0] * len(self._mlps)

            def take(index: int, rows: Tensor, tokens: Tensor) -> None:
                later = rows[tokens > 0]
                sums[index] += later.double().sum(0).cpu()
                counts[index] += len(later)

            self._read(self._mlps, take, "means for compensation (texts)")
            self._means = [s / max(n, 1) for s, n in zip(sums, counts, strict=True)]
        found = []
        for mlp, mean in zip(self._mlps, self._means, strict=True):
            gone = torch.from_numpy(cut.indices[mlp.index].copy())
            if not len(gone):
                found.append(Correction())
                continue
            _check_place_for_bias(mlp)
            down = mlp.weights[2]
            columns = down[:, gone.to(down.device)].double()
            found.append(Correction(bias=columns @ mean[gone].to(down.device)))
        return tuple(found)

    def _second_moments(self, mlps: Sequence[Mlp]) -> list[SecondMoments]:
        sums = {
            mlp.index: torch.zeros(
                mlp.width, mlp.width, dtype=torch.float64, device=mlp.weights[2].device
            )
            for mlp in mlps
        }
        squares = {index: torch.zeros_like(s[0]) for index, s in sums.items()}
        counts, later = dict.fromkeys(sums, 0), dict.fromkeys(sums, 0)

        def take(index: int, rows: Tensor, tokens: Tensor) -> None:
            wide = rows.double()
            sums[index].addmm_(wide.T, wide)
            squares[index] += wide[tokens > 0].square().sum(0)
            counts[index] += len(rows)
            later[index] += int((tokens > 0).sum())

        self._read(mlps, take, "second moments for compensation (texts)")
        return [
            SecondMoments(
                counts[index],
                total.div_(max(counts[index], 1)),
                squares[index].div_(max(later[index], 1)),
            )
            for index, total in sums.items()
        ]

    def _read(self, mlps: Sequence[Mlp], take: _See, what: str) -> None:
        """Show the activations of all tokens to `take(mlp, rows, tokens)`."""

        def see(index: int, rows: Tensor, tokens: Tensor) -> None:
            if len(rows):
                take(index, rows, tokens)

        device = self._model.get_input_embeddings().weight.device  # pyright: ignore
        with torch.inference_mode(), watching(mlps, see):
            for place, ids in enumerate(self._sequences):
                row = torch.tensor([ids], device=device)
                self._model.base_model(input_ids=row, use_cache=False)  # pyright: ignore
                self._progress(what, place + 1, len(self._sequences))


def check_method(method: str, ridge: float = RIDGE) -> None:
    """Raise `UsageError` unless there is such a compensation and the ridge can be one."""
    if method not in METHODS:
        raise UsageError(f"compensation {method!r}; allowed are {', '.join(METHODS)}")
    if not 0 <= ridge < float("inf"):
        raise UsageError(f"ridge {ridge}: give 0 or more, as in {RIDGE}")


def _groups(mlps: Sequence[Mlp], keep_bytes: int) -> list[list[int]]:
    """Places of MLPs whose second moments fit together; all of them where they do."""
    groups: list[list[int]] = [[]]
    left = keep_bytes
    for place, mlp in enumerate(mlps):
        size = 8 * mlp.width**2
        if size > keep_bytes:
            raise UsageError(
                f"{mlp.layout.name}: second moments of {mlp.width} neurons take "
                f"{size / 1e9:.1f} GB, {keep_bytes / 1e9:.1f} GB are allowed; allow more, or "
                "compensate with flap"
            )
        if size > left:
            groups.append([])
            left = keep_bytes
        groups[-1].append(place)
        left -= size
    return groups


def least_squares(
    mlp: Mlp, cut: NeuronSet, moments: SecondMoments, ridge: float = RIDGE
) -> Correction:
    """New columns of the kept neurons of one MLP, in float64 (see the module).

    Raises:
        UsageError: with this ridge the system cannot be solved.
    """
    down = mlp.weights[2].double()
    gone = torch.from_numpy(cut.indices[mlp.index].copy()).to(down.device)
    kept = torch.from_numpy(cut.complement().indices[mlp.index].copy()).to(down.device)
    lost, stays = down[:, gone], down[:, kept]
    if not len(gone) or not moments.tokens:
        return Correction(columns=stays)
    s = moments.products.to(down.device)
    whole = float(((down @ s) * down).sum())
    if whole == 0:
        return Correction(columns=stays)
    written = s[kept][:, gone] @ lost.T  # what the kept neurons could say of the cut ones'
    system = s[kept][:, kept]
    damped = system.clone()
    damped.diagonal().add_(ridge * float(moments.squares.to(kept.device)[kept].mean()))
    factor, failed = torch.linalg.cholesky_ex(damped)
    change = torch.cholesky_solve(written, factor).T if not int(failed) else None
    if change is None or not bool(change.isfinite().all()):
        raise UsageError(
            f"{mlp.layout.name}: ridge {ridge} is too small for {moments.tokens} tokens on "
            f"{len(kept)} neurons; give a larger one, as in {RIDGE}, or more text"
        )
    before = float(((lost @ s[gone][:, gone]) * lost).sum())
    after = before - float(2 * (change * written.T).sum() - ((change @ system) * change).sum())
    return Correction(columns=stays + change, before=before / whole, after=max(after, 0.0) / whole)


@contextmanager
def compensated(
    model: nn.Module, cut: NeuronSet, corrections: Sequence[Correction]
) -> Iterator[nn.Module]:
    """Within the block the intact model computes what the cut and compensated one would.

    Columns of cut neurons are zero meanwhile, which is pruning by another name, so no mask is
    needed; one that silences the same neurons changes nothing. Afterwards the very tensors that
    were there are there again. The block needs memory for a second `down` of every MLP.
    """
    mlps = find_mlps(model)
    kept_indices([mlp.layout for mlp in mlps], cut)
    _check_number(mlps, corrections)
    old: dict[str, nn.Parameter | None] = {}
    new: dict[str, Tensor] = {}
    for mlp, correction in zip(mlps, corrections, strict=True):
        if not len(cut.indices[mlp.index]):
            continue
        slot = mlp.layout.slots["down"]
        if slot.tensor not in new:
            old[slot.tensor] = model.get_parameter(slot.tensor)
            new[slot.tensor] = model.get_parameter(slot.tensor).detach().clone()
        view = oriented(new[slot.tensor], slot, mlp.layout)
        view[:, torch.from_numpy(cut.indices[mlp.index].copy()).to(view.device)] = 0
        if correction.columns is not None:
            kept = torch.from_numpy(cut.complement().indices[mlp.index].copy()).to(view.device)
            view[:, kept] = correction.columns.to(view)
        if correction.bias is not None:
            name, before = _bias(mlp)
            old[name] = before
            new[name] = _shifted(before, correction.bias, view)
    try:
        for name, tensor in new.items():
            _put(model, name, nn.Parameter(tensor, requires_grad=False))
        yield model
    finally:
        for name, parameter in old.items():
            _put(model, name, parameter)


def install(model: nn.Module, corrections: Sequence[Correction]) -> None:
    """Put corrections into a model that `surgery.resize` has cut accordingly, for good.

    Raises:
        UsageError: they are of another cut.
    """
    mlps = find_mlps(model)
    _check_number(mlps, corrections)
    for mlp, correction in zip(mlps, corrections, strict=True):
        wide = correction.columns
        if wide is not None and wide.shape[1] != mlp.width:
            raise UsageError(
                f"{mlp.layout.name} has {mlp.width} neurons, its correction {wide.shape[1]}; cut "
                "the model by the same set first"
            )
    with torch.no_grad():
        for mlp, correction in zip(mlps, corrections, strict=True):
            down = mlp.weights[2]
            if correction.columns is not None:
                down.copy_(correction.columns.to(down))
            if correction.bias is not None:
                name, before = _bias(mlp)
                shifted = _shifted(before, correction.bias, down)
                _put(model, name, nn.Parameter(shifted, requires_grad=False))


@contextmanager
def compensate(
    opened: OpenedModel,
    cut: NeuronSet,
    texts: Sequence[str],
    method: Method = "lsq",
    ridge: float = RIDGE,
    *,
    calibration: Calibration | None = None,
) -> Iterator[nn.Module]:
    """Within the block the model is cut and compensated (`compensated`), calibrated on texts.

    Args:
        calibration: made before (`Calibration.of`) to serve many cuts; `texts` are not read then.

    Raises:
        UsageError, ModelError, DataError: see `Calibration.corrections`.
    """
    check_method(method, ridge)
    made = calibration or Calibration.of(opened, texts)
    with compensated(opened.model, cut, made.corrections(cut, method, ridge)) as model:
        yield model


def _check_number(mlps: Sequence[Mlp], corrections: Sequence[Correction]) -> None:
    if len(mlps) != len(corrections):
        raise UsageError(f"{len(corrections)} corrections for a model of {len(mlps)} MLPs")


def _check_place_for_bias(mlp: Mlp) -> None:
    if mlp.down is None:
        raise ModelError(
            f"{mlp.layout.name}: stacked experts have no bias that flap could use; compensate "
            "with lsq"
        )


def _bias(mlp: Mlp) -> tuple[str, nn.Parameter | None]:
    """The name of the bias of `down`, and what is there."""
    _check_place_for_bias(mlp)
    name = mlp.layout.slots["down"].tensor.rpartition(".")[0] + ".bias"
    return name, getattr(mlp.down, "bias", None)


def _shifted(before: nn.Parameter | None, shift: Tensor, like: Tensor) -> Tensor:
    whole = shift.to(like.device) if before is None else before.detach().double() + shift
    return whole.to(like.dtype)


def _put(model: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
    stem, _, leaf = name.rpartition(".")
    model.get_submodule(stem)._parameters[leaf] = parameter
