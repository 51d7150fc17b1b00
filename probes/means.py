"""What every text does to every neuron on average, and what the members of pairs differ by.

The means [texts, neurons] are kept in a file beside the run while it is made, so that memory stays
flat, and paired statistics are then exact. Where the file would be too large pairs are taken in as
they close: the moments are as exact, and AUROC comes from histograms, with its margin.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np

from ..errors import ResourceError, is_out_of_space
from .moments import Moments, histogram_auroc


@dataclass(frozen=True)
class Paired:
    """What the members of pairs make every neuron do differently; float64 [neurons].

    Differences are of a text's mean activation over its selected tokens, a minus b. NaN where a
    neuron has fewer than two pairs (experts are not sent every text's tokens).
    """

    n: np.ndarray
    """Pairs, int64."""
    mean: np.ndarray
    deviation: np.ndarray
    """Unbiased standard deviation of the differences."""
    auroc: np.ndarray
    """Probability that a text of side a has a larger mean than one of side b."""
    auroc_margin: np.ndarray
    """The largest error `auroc` can have: 0 where it is exact."""

    @property
    def d_z(self) -> np.ndarray:
        """Cohen's d for paired data: mean over standard deviation of the differences; NaN where
        they do not vary."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.deviation > 0, self.mean / self.deviation, np.nan)

    @property
    def t(self) -> np.ndarray:
        """Student's paired t."""
        return self.d_z * np.sqrt(self.n)

    @property
    def exact(self) -> bool:
        """Whether `auroc` was computed from all values."""
        return not np.nan_to_num(self.auroc_margin).any()


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not is_out_of_space(error):
            raise
        raise ResourceError(
            "the disk filled up while means of texts were kept; free some, or lower --limit"
        ) from error


class MeansFile:
    """Float32 rows [texts, neurons] in a file, each with a checksum that the caller keeps."""

    def __init__(self, path: Path, rows: int, neurons: int) -> None:
        self.rows, self.neurons = rows, neurons
        self.checksums = np.zeros(rows, np.uint32)
        self.written = np.zeros(rows, bool)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    @property
    def _stride(self) -> int:
        return 4 * self.neurons

    def put(self, row: int, values: np.ndarray) -> None:
        """Write a row, float32 [neurons]."""
        data = np.ascontiguousarray(values, "<f4").tobytes()
        done = 0
        with _disk():
            while done < len(data):
                done += os.pwrite(self._file, data[done:], row * self._stride + done)
        self.checksums[row] = zlib.crc32(data)
        self.written[row] = True

    def intact(self) -> bool:
        """Whether every row that was written reads as it was."""
        for row in np.flatnonzero(self.written):
            data = os.pread(self._file, self._stride, int(row) * self._stride)
            if len(data) != self._stride or zlib.crc32(data) != self.checksums[row]:
                return False
        return True

    def get(self, rows: Sequence[int], first: int, last: int) -> np.ndarray:
        """Columns first to last of some rows, float32 [rows, last - first]."""
        out = np.empty((len(rows), last - first), np.float32)
        for place, row in enumerate(rows):
            data = os.pread(self._file, 4 * (last - first), int(row) * self._stride + 4 * first)
            out[place] = np.frombuffer(data, "<f4")
        return out

    def sync(self) -> None:
        """Bring what was written to the disk."""
        with _disk():
            os.fsync(self._file)

    def close(self) -> None:
        """Let the file go."""
        os.close(self._file)


@numba.njit(parallel=True, cache=True, nogil=True)
def _auroc(a, b, both, out):
    """Of each neuron [neurons, pairs] the share of (text of a, text of b) with a above b, ties
    counted as halves; pairs that are not `both` there are left out."""
    for j in numba.prange(len(a)):
        x, y = np.sort(a[j][both[j]]), np.sort(b[j][both[j]])
        below, upto, total = 0, 0, 0.0
        for value in x:
            while below < len(y) and y[below] < value:
                below += 1
            while upto < len(y) and y[upto] <= value:
                upto += 1
            total += 0.5 * (below + upto)
        if len(x):
            out[j] = total / (float(len(x)) * len(y))


def paired(a: np.ndarray, b: np.ndarray) -> Paired:
    """Exact statistics of pairs; a, b: means [pairs, neurons], NaN where a text has none."""
    both = np.isfinite(a) & np.isfinite(b)
    n = both.sum(0)
    difference = np.where(both, a.astype(np.float64) - b, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = difference.sum(0) / n
        rest = np.where(both, difference - mean, 0.0)
        deviation = np.where(n > 1, np.sqrt((rest**2).sum(0) / (n - 1.0)), np.nan)
    auroc = np.full(len(n), np.nan)
    columns = [np.ascontiguousarray(side.T) for side in (a, b, both)]
    _auroc(columns[0], columns[1], columns[2], auroc)
    return Paired(n, mean, deviation, auroc, np.zeros(len(n)))


class PairStream:
    """Paired statistics without the matrix: a pair is taken in when its second member comes."""

    def __init__(self, widths: Sequence[int], pairs: Sequence[tuple[int, int]]) -> None:
        self._widths = tuple(widths)
        self._edges = np.concatenate([[0], np.cumsum(self._widths)])
        self._pairs = tuple(pairs)
        self._of: dict[int, list[int]] = {}
        for number, pair in enumerate(self._pairs):
            for text in set(pair):
                self._of.setdefault(text, []).append(number)
        self._open: dict[int, np.ndarray] = {}
        self._closed = np.zeros(len(self._pairs), bool)
        self._moments = {part: Moments(self._widths) for part in ("a", "b", "difference")}

    def put(self, texts: Sequence[int], means: np.ndarray) -> None:
        """Means of some texts, float32 [texts, neurons]; NaN where one sent a neuron nothing."""
        for text, row in zip(texts, means, strict=True):
            if text in self._of:
                self._open[text] = row.copy()
        closing = [
            number
            for number in sorted({n for text in texts for n in self._of.get(text, ())})
            if not self._closed[number] and all(t in self._open for t in self._pairs[number])
        ]
        if closing:
            sides = (
                np.stack([self._open[self._pairs[number][side]] for number in closing])
                for side in (0, 1)
            )
            self._take(*sides)
            self._closed[closing] = True
        for gone in [t for t in self._open if self._closed[self._of[t]].all()]:
            del self._open[gone]

    def _take(self, a: np.ndarray, b: np.ndarray) -> None:
        for mlp, (first, last) in enumerate(pairwise(self._edges)):
            x, y = (np.ascontiguousarray(side[:, first:last]) for side in (a, b))
            both = np.flatnonzero(np.isfinite(x).all(1) & np.isfinite(y).all(1))
            self._moments["a"].update(mlp, x, both)
            self._moments["b"].update(mlp, y, both)
            self._moments["difference"].update(mlp, x - y, both)

    def result(self) -> Paired:
        """The statistics so far."""
        if not self._moments["difference"].any:
            nothing = np.full(int(self._edges[-1]), np.nan)
            return Paired(np.zeros(len(nothing), np.int64), *(nothing.copy() for _ in range(4)))
        a, b, found = (self._moments[part].result() for part in ("a", "b", "difference"))
        auroc, margin = histogram_auroc(a.histogram, b.histogram)
        return Paired(found.count, found.mean, np.sqrt(found.variance), auroc, margin)

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to go on later."""
        texts = np.array(sorted(self._open), np.int64)
        rows = [self._open[int(text)] for text in texts]
        waiting = np.stack(rows) if rows else np.zeros((0, int(self._edges[-1])), np.float32)
        found = {"closed": self._closed, "waiting.texts": texts, "waiting": waiting}
        for part, moments in self._moments.items():
            found |= {f"{part}.{name}": value for name, value in moments.state().items()}
        return found

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        self._closed = state["closed"].copy()
        waiting = zip(state["waiting.texts"], state["waiting"], strict=True)
        self._open = {int(text): row.copy() for text, row in waiting}
        for part, moments in self._moments.items():
            prefix = f"{part}."
            moments.restore(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )


class TextSums:
    """Over the selected tokens of the texts of a pass: counts [texts, MLPs], sums of magnitudes
    [texts, neurons], and sums of some texts."""

    def __init__(self, some: Sequence[int], texts: Sequence[int], mlps: int, neurons: int) -> None:
        self.row = {text: row for row, text in enumerate(some)}
        self.any = {text: row for row, text in enumerate(texts)}
        self.total = np.zeros((len(some), neurons))
        self.size = np.zeros((len(texts), neurons))
        self.count = np.zeros((len(texts), mlps))
