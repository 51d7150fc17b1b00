"""What a neuron writes and reads, in tokens of the vocabulary: the logit lens on its weights.

*Out*: the neuron's column of `down`, through the final norm's gain and the unembedding: by how much
a unit of its activation moves each token's logit where the residual stream has a root mean square
of 1, before a family's scales and caps. The highest and the lowest are kept.

*In*: the cosine of each token's input embedding with the neuron's row of `gate` and of `up`, with
the gain of the norm before the MLP folded in. That norm divides by the length of what it is given,
so this is the order in which bare embeddings would drive the row. The highest are kept.

Where a norm subtracts the mean (LayerNorm), so does the lens. It sees weights only: nothing of the
layers between (attention, other MLPs, biases), which matters more the farther the layer is from
the end that is read. Descriptive, and no test of anything. Sources: nostalgebraist, *interpreting
GPT: the logit lens* (2020); Geva et al. 2021 (arXiv 2012.14913) and 2022 (arXiv 2203.14680).

A token costs a neuron 2 x hidden size operations, three times over; memory is bounded whatever the
model's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..progress import Progress, silent
from ..prune.families import FAMILIES, Family
from ..prune.mlps import Mlp, find_mlps
from ..rundir import save_frame
from ..tables import LISTED, LISTS, TOKENS, VOCABULARY, save_tables

LENGTH = 8
"""Tokens in a list."""
ABOUT = {
    "out_high, out_low": "tokens whose logits a unit of the neuron's activation raises most and "
    "lowers most (unembedding x final norm's gain x column of down)",
    "in_gate, in_up": "tokens whose input embedding has the largest cosine with the neuron's row "
    "(the gain of the norm before the MLP folded in)",
    "source": "logit lens (nostalgebraist 2020; Geva et al. 2021, 2022); of weights alone, "
    "descriptive",
}
"""What the lists are, for the manifest."""

_NEURONS, _TOKENS = 1024, 4096
"""Neurons and tokens multiplied at a time: 16 MB of float32 scores."""
_LARGEST = float(np.finfo(np.float16).max)
_NORMS = ("norm", "ln_f", "final_layer_norm")
"""What families call their last norm, beside their layers."""


@dataclass(frozen=True, eq=False)
class _Norm:
    """A norm as the lens sees it."""

    gain: Tensor | None = None
    centred: bool = False

    @classmethod
    def of(cls, module: nn.Module | None, offset: float) -> _Norm:
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor):
            return cls()
        # RMSNorm is called so in every family; what is called LayerNorm subtracts the mean.
        centred = isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__
        return cls(weight.detach().float() + offset, centred)

    def passed(self, written: Tensor) -> Tensor:
        """What is left of vectors [n, hidden] behind the norm, but for its division."""
        return self._scaled(self.centre(written))

    def folded(self, rows: Tensor) -> Tensor:
        """Rows [n, hidden] that read behind the norm, as rows that read before it."""
        return self.centre(self._scaled(rows))

    def centre(self, vectors: Tensor) -> Tensor:
        """The same without their means, where the norm takes these away."""
        return vectors - vectors.mean(1, keepdim=True) if self.centred else vectors

    def _scaled(self, vectors: Tensor) -> Tensor:
        return vectors if self.gain is None else vectors * self.gain.to(vectors.device)


class TokenLens:
    """The lists of a model's neurons. Make it, and read it, before an engine wraps the model.

    Args:
        model: any supported live model.
        tokenizer: says how many of the embeddings stand for a token; the rest are padding.

    Attributes:
        notes: a line about every kind of list that the model does not allow.
    """

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        self._mlps = find_mlps(model)
        hidden = self._mlps[0].layout.hidden
        size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
        self._head = _vectors(model.get_output_embeddings(), hidden, size)
        self._embeddings = _vectors(model.get_input_embeddings(), hidden, size)
        family = model.config.get_text_config().model_type
        self._offset = FAMILIES.get(family, Family()).norm_offset
        self._final = _Norm.of(_final_norm(self._mlps[0]), self._offset)
        self.notes = [
            f"no vocabulary of what neurons {do}: the model has no {what} of {hidden} numbers a "
            "token"
            for vectors, do, what in (
                (self._head, "write", "unembedding"),
                (self._embeddings, "read", "input embedding"),
            )
            if vectors is None
        ]

    def read(self, length: int = LENGTH, progress: Progress = silent) -> dict[str, np.ndarray]:
        """The lists that the model allows, `LISTED` [neurons, length], the most extreme first.

        A neuron whose weights are 0 has no tokens (-1); nor has one without a gate in `in_gate`.
        """
        done, total = 0, sum(mlp.width for mlp in self._mlps)
        kinds = [name for name in LISTS if self._allowed(name)]
        found = {name: _nothing(total, length) for name in kinds}
        with torch.no_grad():
            for mlp in self._mlps if kinds else ():
                for first in range(0, mlp.width, _NEURONS):
                    last = min(first + _NEURONS, mlp.width)
                    for name, entries in self._block(mlp, slice(first, last), length):
                        found[name][done : done + last - first, : entries.shape[1]] = entries
                    done += last - first
                    progress("reading neurons in tokens (neurons)", done, total)
        return found

    def _allowed(self, name: str) -> bool:
        if name.startswith("out"):
            return self._head is not None
        gated = name != "in_gate" or any("gate" in mlp.layout.slots for mlp in self._mlps)
        return self._embeddings is not None and gated

    def _block(self, mlp: Mlp, part: slice, length: int) -> Iterator[tuple[str, np.ndarray]]:
        gate, up, down = mlp.weights
        if self._head is not None:
            directions = self._final.passed(down[:, part].T.float())
            high, low = _extremes(directions, self._head, length, both=True)
            yield "out_high", high
            yield "out_low", low
        if self._embeddings is None:
            return
        before = _Norm()
        if mlp.layout.norm is not None:
            module = mlp.model.get_submodule(mlp.layout.norm.rpartition(".")[0])
            before = _Norm.of(module, self._offset)
        for name, rows in (("in_gate", gate), ("in_up", up)):
            if rows is not None:
                directions = before.folded(rows[part].float())
                yield name, _extremes(directions, self._embeddings, length, before=before)[0]


def _vectors(module: Any, hidden: int, size: int | None) -> Tensor | None:
    """One vector a token [tokens, hidden], or None where the module holds no such thing."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != hidden:
        return None
    return weight.detach()[:size]


def _final_norm(mlp: Mlp) -> nn.Module | None:
    stem = re.split(r"(?:layers|h)\.\d+\.", mlp.layout.slots["up"].tensor)[0]
    beside: Any = mlp.model.get_submodule(stem.rstrip("."))
    return next((norm for name in _NORMS if (norm := getattr(beside, name, None))), None)


def _extremes(
    directions: Tensor,
    tokens: Tensor,
    length: int,
    *,
    before: _Norm | None = None,
    both: bool = False,
) -> list[np.ndarray]:
    """The tokens that score highest with each direction, and the lowest where `both` are asked for.

    Args:
        directions: float32 [neurons, hidden].
        tokens: [tokens, hidden].
        length: how many are kept.
        before: scores are cosines, with what is left of the tokens after this norm.

    Returns:
        `LISTED` [neurons, at most length], the most extreme first.
    """
    directions = directions.to(tokens.device)
    sizes = torch.linalg.vector_norm(directions, dim=1)
    if before is not None:
        directions = nn.functional.normalize(directions, dim=1)
    nothing = sizes.new_zeros(len(sizes), 0)
    kept = [(nothing, nothing.long())] * (1 + both)
    for begin in range(0, len(tokens), _TOKENS):
        vectors = tokens[begin : begin + _TOKENS].float()
        if before is not None:
            vectors = nn.functional.normalize(before.centre(vectors), dim=1)
        scores = directions @ vectors.T
        kept = [
            _merged(old, scores, begin, length, largest=side == 0) for side, old in enumerate(kept)
        ]
    found = []
    for values, at in kept:
        entries = _nothing(*values.shape)
        there = (sizes > 0).cpu().numpy()
        entries["value"][there] = values.clamp(-_LARGEST, _LARGEST).cpu().numpy()[there]
        entries["token"][there] = at.cpu().numpy()[there]
        found.append(entries)
    return found


def _merged(
    old: tuple[Tensor, Tensor], scores: Tensor, begin: int, length: int, *, largest: bool
) -> tuple[Tensor, Tensor]:
    """The extremes so far [neurons, length] and their tokens, with scores of tokens from `begin`
    on."""
    values, at = scores.topk(min(length, scores.shape[1]), dim=1, largest=largest)
    values, at = torch.cat([old[0], values], 1), torch.cat([old[1], at + begin], 1)
    values, order = values.topk(min(length, values.shape[1]), dim=1, largest=largest)
    return values, at.gather(1, order)


def _nothing(neurons: int, length: int) -> np.ndarray:
    table = np.zeros((neurons, length), LISTED)
    table["token"], table["value"] = -1, np.nan
    return table


def save_vocabulary(folder: Path, lists: Mapping[str, np.ndarray], tokenizer: Any) -> None:
    """Write `vocabulary/` of a run directory (see `glulens.tables`), with the text of every token
    that stands in a list.

    Raises:
        OSError: it cannot be written.
    """
    import polars

    save_tables(folder / VOCABULARY, lists)
    ids = np.unique(np.concatenate([table["token"].reshape(-1) for table in lists.values()]))
    ids = ids[ids >= 0].tolist()
    texts = [tokenizer.decode([token]).encode(errors="replace").decode() for token in ids]
    schema = {"id": polars.Int32, "text": polars.String}
    table = polars.DataFrame({"id": ids, "text": texts}, schema=schema)
    save_frame(folder / VOCABULARY / TOKENS, table)
