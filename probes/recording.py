"""Recording what a text makes every neuron do, for activation-based criteria and for masks.

Works on every supported family, experts included. Position 0 and padding never enter: texts are
run one by one, and a first token's activation can be hundreds of times any other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..progress import Progress, silent
from ..prune.mlps import Mlp, find_mlps, watching
from ..prune.models import OpenedModel
from ..prune.recording import Activity, Recording
from .moments import Moments


class _Sums:
    """Of one MLP: moments over tokens, and how strongly each text drives each neuron."""

    def __init__(self, width: int) -> None:
        self._moments = Moments((width,))
        self._text_squares = torch.zeros(width, dtype=torch.float64)
        self.tokens = self._texts = 0

    def update(self, rows: Tensor) -> None:
        """Take in all tokens of one text [tokens, neurons]."""
        if not len(rows):
            return
        self._moments.update(0, rows)
        self._text_squares += rows.detach().to("cpu", torch.float64).abs().mean(0).square()
        self.tokens += len(rows)
        self._texts += 1

    def result(self) -> Activity:
        """The statistics; zeros where no token came by, which an unused expert deserves."""
        if not self.tokens:
            return Activity(*(np.zeros(len(self._text_squares)) for _ in fields(Activity)))
        found = self._moments.result()
        return Activity(
            mean=found.mean,
            mean_abs=found.mean_abs,
            rms=found.rms,
            variance=np.nan_to_num(found.variance),  # a single token has none
            text_rms=(self._text_squares / self._texts).sqrt().numpy(),
        )


def record(
    opened: OpenedModel,
    texts: Sequence[str],
    *,
    max_tokens: int = 512,
    progress: Progress = silent,
) -> Recording:
    """Run texts through a model and keep what its neurons did on average.

    Args:
        opened: the model.
        texts: plain texts, at least one of two tokens.
        max_tokens: a longer text is cut off there.
        progress: told of each text.

    Returns:
        Statistics over all tokens but each text's first; float64, whatever the model's dtype.

    Raises:
        DataError: no text has two tokens.
    """
    mlps = find_mlps(opened.model)
    sums = [_Sums(mlp.width) for mlp in mlps]
    used = 0
    for rows in _rows(opened, mlps, texts, max_tokens, progress):
        used += 1
        for index, seen in rows.items():
            sums[index].update(seen)
    if not used:
        raise DataError("no text has two tokens or more; nothing was recorded")
    return Recording(tuple(s.result() for s in sums), tuple(s.tokens for s in sums), texts=used)


def samples(
    opened: OpenedModel,
    texts: Sequence[str],
    n: int = 256,
    *,
    seed: int = 0,
    max_tokens: int = 512,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """Activations of random tokens, as a reference for `masks.masked`.

    Returns:
        Per MLP, float32 [min(n, tokens seen), neurons]; tokens are drawn evenly from all texts
        (reservoir sampling), for every MLP anew.

    Raises:
        DataError: an MLP saw no token.
    """
    mlps = find_mlps(opened.model)
    rng = np.random.default_rng(seed)
    kept: list[list[np.ndarray]] = [[] for _ in mlps]
    seen = [0] * len(mlps)
    for rows in _rows(opened, mlps, texts, max_tokens, progress):
        for index, found in rows.items():
            for row in found.detach().float().cpu().numpy():
                seen[index] += 1
                if len(kept[index]) < n:
                    kept[index].append(row)
                elif (place := int(rng.integers(seen[index]))) < n:
                    kept[index][place] = row
    for mlp, found in zip(mlps, kept, strict=True):
        if not found:
            raise DataError(f"{mlp.layout.name} saw no token; give more text")
    return [np.stack(found) for found in kept]


def _rows(
    opened: OpenedModel,
    mlps: Sequence[Mlp],
    texts: Sequence[str],
    max_tokens: int,
    progress: Progress,
):
    """Per text, the activations of all tokens but the first, by MLP."""
    texts = [texts] if isinstance(texts, str) else texts  # not its letters
    for place, text in enumerate(texts):
        ids = opened.tokenizer(text)["input_ids"][:max_tokens]  # pyright: ignore
        if len(ids) < 2:
            continue
        found: dict[int, Tensor] = {}

        def see(index: int, rows: Tensor, tokens: Tensor, found: dict = found) -> None:
            found[index] = rows[tokens > 0]

        with torch.inference_mode(), watching(mlps, see):
            opened.model.base_model(
                input_ids=torch.tensor([ids], device=opened.device), use_cache=False
            )
        progress("recording activations (texts)", place + 1, len(texts))
        yield found
