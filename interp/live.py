"""A model in a process of its own that answers questions about texts: the browser's Prompt view.

    python -m glulens.interp.live MODEL [--dtype DTYPE] [--device DEVICE]

Speaks JSON, one object a line: questions on stdin, answers on stdout (whatever a library prints
goes to stderr). While the model loads there are lines {"progress": [what, done, total]}, then
{"ready": {"name", "family", "neurons", "layers", "context"}}, or {"error": LINE} and the end. Then,
for each question, with neurons numbered by their rows in a run's table,

    {"id": 1, "text": "...", "rows": [7, 9], "layer": 3 or null, "top": 8,
     "silence": [5], "values": [0.25] or null}

one answer: {"id": 1, "error": LINE}, or {"id": 1, "answer": ...} with

    ids, tokens      of the text [tokens]
    activations      of the rows asked for [tokens, rows]
    top              the largest |activation| of the layer, or of the model: [row, value]
                     [tokens, top], filled up with [-1, null] where there are fewer
    layers           root mean square of each layer's activations [tokens, layers]
    next             the ten likeliest next tokens: [id, token, probability]

null stands for what is no number, and for an expert's neuron where its token went elsewhere. With
`silence` all of this is of the model with these neurons silenced: at 0, which is what pruning does,
at every position; or at `values` (their means on other text, say), at every position but the first,
whose activations are of another size. It ends when stdin does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import GlulensError, UsageError, is_out_of_memory, visible

if TYPE_CHECKING:
    from torch import Tensor

    from ..prune.models import OpenedModel

TOKENS, ROWS, TOP, NEXT = 1024, 256, 64, 10
"""Most tokens of a text, rows asked for, neurons listed at a token; next tokens given."""
LONGEST = 64_000_000
"""Bytes in a question: every neuron of the largest models can be silenced."""


@dataclass(frozen=True)
class Question:
    """See above."""

    text: str
    rows: tuple[int, ...]
    layer: int | None
    top: int
    silence: tuple[int, ...]
    values: tuple[float, ...] | None

    @classmethod
    def read(cls, given: dict[str, Any], neurons: int, layers: int) -> Question:
        """A question as it came.

        Raises:
            UsageError: something is missing, of another kind, or out of bounds.
        """
        text, layer, top = given.get("text"), given.get("layer"), given.get("top", 8)
        values = given.get("values")
        if not isinstance(text, str):
            raise UsageError("the text is no string")
        if layer is not None and (type(layer) is not int or not 0 <= layer < layers):
            raise UsageError(f"layer {layer!r}; layers go from 0 to {layers - 1}")
        if type(top) is not int or not 0 <= top <= TOP:
            raise UsageError(f"top {top!r}: from 0 to {TOP}")
        rows = _rows(given.get("rows", []), neurons)
        silence = _rows(given.get("silence", []), neurons)
        if len(rows) > ROWS:
            raise UsageError(f"{len(rows)} rows; at most {ROWS} at a time")
        if len(set(silence)) != len(silence):
            raise UsageError("a row is silenced twice")
        if values is not None and (
            not isinstance(values, list)
            or len(values) != len(silence)
            or not all(type(value) in (int, float) for value in values)
        ):
            raise UsageError("as many values as rows to silence are needed, all numbers")
        return cls(text, rows, layer, top, silence, None if values is None else tuple(values))


def _rows(given: Any, neurons: int) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(
        type(row) is int and 0 <= row < neurons for row in given
    ):
        raise UsageError(f"rows are whole numbers from 0 to {neurons - 1}")
    return tuple(given)


class Answerer:
    """Answers questions about one model."""

    def __init__(self, opened: OpenedModel) -> None:
        from ..probes.hooks import HooksEngine
        from ..probes.tokens import Encoder

        config = opened.model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", None)
        self._engine = HooksEngine(opened.model)
        self._tokenizer: Any = opened.tokenizer
        self._layers = [mlp.layout.layer for mlp in self._engine.mlps]
        self._edges = np.concatenate([[0], np.cumsum(self._engine.widths)])
        longest = TOKENS if context is None else min(TOKENS, int(context))
        self._encoder = Encoder(opened.tokenizer, max_length=longest)
        self.about = {
            "name": opened.name,
            "family": config.model_type,
            "neurons": int(self._edges[-1]),
            "layers": max(self._layers) + 1,
            "context": longest,
        }

    def answer(self, given: dict[str, Any]) -> dict[str, Any]:
        """The answer to a question as it came.

        Raises:
            UsageError, DataError: the question is none, or its text cannot be encoded.
        """
        import torch

        question = Question.read(given, self.about["neurons"], self.about["layers"])
        ids = self._encoder.prompt(question.text)
        seen = _Seen(question, len(ids), self._edges, self._layers)
        with torch.inference_mode():
            logits = self._engine.forward(
                torch.tensor([ids], device=self._engine.device),
                keep=torch.tensor([len(ids) - 1]),
                visit=seen.visit,
            )
            assert logits is not None
            chances = logits[0].float().softmax(0)
            likely = chances.topk(min(NEXT, len(chances)))
        following = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        return {
            "ids": list(ids),
            "tokens": [self._text(token) for token in ids],
            **seen.result(),
            "next": [[token, self._text(token), _number(chance)] for token, chance in following],
        }

    def _text(self, token: int) -> str:
        return self._tokenizer.decode([token])


class _Seen:
    """Gathers what a question asks for while the model runs."""

    def __init__(
        self, question: Question, tokens: int, edges: np.ndarray, layers: Sequence[int]
    ) -> None:
        import torch

        self._edges, self._layers, self._layer = edges, layers, question.layer
        self._wanted = _by_mlp(question.rows, edges)
        self._silenced = _by_mlp(question.silence, edges)
        self._values = None
        if question.values is not None:
            self._values = torch.tensor(question.values)
        self._activations = torch.full((tokens, len(question.rows)), torch.nan)
        self._squares = torch.zeros(tokens, max(layers) + 1)
        self._counts = torch.zeros(tokens, max(layers) + 1)
        self._top = torch.full((tokens, question.top), torch.nan)
        self._top_rows = torch.full((tokens, question.top), -1)

    def visit(self, mlp: int, rows: Tensor, places: Tensor) -> Tensor | None:
        """See `probes.engine.Visit`."""
        changed = self._silence(mlp, rows, places)
        values = (rows if changed is None else changed).float()
        at, layer = places.cpu(), self._layers[mlp]
        self._squares[at, layer] += values.square().sum(1).cpu()
        self._counts[at, layer] += values.shape[1]
        if mlp in self._wanted:
            neurons, columns = self._wanted[mlp]
            self._activations[at[:, None], columns] = values[:, neurons.to(values.device)].cpu()
        if self._layer in (None, layer):
            self._rank(values, at, int(self._edges[mlp]))
        return changed

    def _silence(self, mlp: int, rows: Tensor, places: Tensor) -> Tensor | None:
        if mlp not in self._silenced:
            return None
        neurons, order = self._silenced[mlp]
        changed = rows.clone()
        if self._values is None:
            changed[:, neurons.to(rows.device)] = 0
            return changed
        later = (places > 0).nonzero()
        changed[later, neurons.to(rows.device)] = self._values[order].to(rows)
        return changed

    def _rank(self, values: Tensor, at: Tensor, first: int) -> None:
        """Merge the largest of these neurons into the largest so far."""
        import torch

        kept = self._top.shape[1]
        if not kept:
            return
        _, chosen = values.abs().topk(min(kept, values.shape[1]), dim=1)
        found = torch.cat([self._top[at], values.gather(1, chosen).cpu()], 1)
        rows = torch.cat([self._top_rows[at], chosen.cpu() + first], 1)
        # What is no number comes last, the places without a neuron behind those with one.
        size = found.abs().nan_to_num(-1.0) - (rows < 0).float()
        order = size.argsort(dim=1, descending=True, stable=True)[:, :kept]
        self._top[at], self._top_rows[at] = found.gather(1, order), rows.gather(1, order)

    def result(self) -> dict[str, Any]:
        """What was seen, as plain values."""
        layers = (self._squares / self._counts).sqrt()  # NaN where no neuron saw the token
        top = zip(self._top_rows.tolist(), _numbers(self._top.tolist()), strict=True)
        return {
            "activations": _numbers(self._activations.tolist()),
            "layers": _numbers(layers.tolist()),
            "top": [list(map(list, zip(*pair, strict=True))) for pair in top],
        }


def _by_mlp(rows: Sequence[int], edges: np.ndarray) -> dict[int, tuple[Tensor, Tensor]]:
    """By MLP: neurons within it, and their places among the rows."""
    import torch

    given = np.asarray(rows, np.int64)
    mlps = np.searchsorted(edges, given, side="right") - 1
    return {
        int(mlp): (
            torch.from_numpy(given[mlps == mlp] - edges[mlp]),
            torch.from_numpy(np.flatnonzero(mlps == mlp)),
        )
        for mlp in np.unique(mlps)
    }


def _numbers(table: Sequence[Sequence[float]]) -> list[list[float | None]]:
    return [[_number(value) for value in row] for row in table]


def _number(value: float) -> float | None:
    """Six digits; None for what JSON has no word for."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def serve(answerer: Answerer, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer line by line until there are no more questions, or nobody to read the answers."""
    with suppress(BrokenPipeError):
        _write(answers, {"ready": answerer.about})
        while line := questions.readline(LONGEST):
            _write(answers, _reply(answerer, line))


def _reply(answerer: Answerer, line: bytes) -> dict[str, Any]:
    number = None
    try:
        given = json.loads(line)
        if not isinstance(given, dict):
            raise UsageError("a question is a JSON object")
        number = given.get("id")
        return {"id": number, "answer": answerer.answer(given)}
    except Exception as error:  # whatever one question does to a model, the next may be asked
        return {"id": number, "error": _line(error)}


def _line(error: Exception) -> str:
    if not isinstance(error, GlulensError) and is_out_of_memory(error):
        return "out of memory; a shorter text takes less"
    said = " ".join(str(error).split()) or type(error).__name__
    told = said if isinstance(error, GlulensError) else f"{type(error).__name__}: {said}"
    return visible(told)[:300]


def _write(answers: BinaryIO, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what, allow_nan=False).encode() + b"\n")
    answers.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the model that the command line names, and serve."""
    parser = argparse.ArgumentParser(prog="glulens.interp.live")
    parser.add_argument("model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    # Nobody but `_write` may write where the answers go.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def progress(what: str, done: int, total: int) -> None:
        _write(answers, {"progress": [what, done, total]})

    try:
        from ..prune.models import open_model

        answerer = Answerer(
            open_model(given.model, dtype=given.dtype, device=given.device, progress=progress)
        )
    except Exception as error:  # in one line, whatever it is
        with suppress(BrokenPipeError):
            _write(answers, {"error": _line(error)})
        return error.exit_code if isinstance(error, GlulensError) else 1
    serve(answerer, sys.stdin.buffer, answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
