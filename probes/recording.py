"""Recording what a text makes every neuron do, for activation-based criteria and for masks.

Works on every supported family, experts included. Position 0 and padding never enter: texts are
run one by one, and a first token's activation can be hundreds of times any other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..progress import Progress, silent
from ..prune.mlps import Mlp, find_mlps, watching
from ..prune.models import OpenedModel
from ..prune.recording import Activity, Recording


@dataclass
class _Sums:
    """Of one MLP; float64 [neurons]. Squared deviations by Chan, Golub and LeVeque's update."""

    count: int
    mean: Tensor
    deviation: Tensor
    absolute: Tensor
    text_squares: Tensor
    """Sum over texts of the squared mean |activation| within the text."""
    texts: int

    @classmethod
    def of(cls, width: int) -> _Sums:
        zeros = [torch.zeros(width, dtype=torch.float64) for _ in range(4)]
        return cls(0, *zeros, texts=0)

    def update(self, rows: Tensor) -> None:
        """Take in all tokens of one text [tokens, neurons]."""
        new = len(rows)
        if not new:
            return
        rows = rows.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        shift, total = mean - self.mean, self.count + new
        self.deviation += (rows - mean).square().sum(0)
        self.deviation += shift.square() * (self.count * new / total)
        self.mean += shift * (new / total)
        absolute = rows.abs().sum(0)
        self.absolute += absolute
        self.text_squares += (absolute / new).square()
        self.count = total
        self.texts += 1

    def result(self) -> Activity:
        """The statistics; zeros where no token came by, which an unused expert deserves."""
        n, texts = max(self.count, 1), max(self.texts, 1)
        return Activity(
            mean=self.mean.numpy(),
            mean_abs=(self.absolute / n).numpy(),
            rms=(self.deviation / n + self.mean.square()).sqrt().numpy(),
            variance=(self.deviation / max(self.count - 1, 1)).numpy(),
            text_rms=(self.text_squares / texts).sqrt().numpy(),
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
    sums = [_Sums.of(mlp.width) for mlp in mlps]
    used = 0
    for rows in _rows(opened, mlps, texts, max_tokens, progress):
        used += 1
        for index, seen in rows.items():
            sums[index].update(seen)
    if not used:
        raise DataError("no text has two tokens or more; nothing was recorded")
    return Recording(tuple(s.result() for s in sums), tuple(s.count for s in sums), texts=used)


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
