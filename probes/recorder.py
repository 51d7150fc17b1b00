"""Recording what every neuron does on sets of texts, in memory that does not grow with them.

A job names texts, conditions (sets of texts) and contrasts (pairs of texts). One pass over the
texts gathers streaming statistics for every condition, paired statistics for every contrast, the
strongest examples of every neuron, and the activations of some random tokens. A token that several
texts share is computed once and counted as often as it is shared.

Position 0 and padding never enter: models park huge activations on a first token that belong to no
text.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, ModelError, ResourceError, RunError, is_out_of_memory
from ..progress import Progress, silent
from ..prune.recording import Activity, Recording
from .engine import Engine, Visit, run
from .examples import Examples, spread
from .jobs import SELECTIONS, Job, Recorded, selected, told_once
from .likelihood import layout
from .means import MeansFile, Paired, PairStream, TextSums, paired
from .moments import ActivationStatistics, Moments, as_rows, text_sums
from .states import below, forget_states, load_state, prefixed, save_state
from .trees import Pass

FORMAT = 1
"""Of the state; raised whenever what is kept, or what it means, changes."""
MATRIX_BYTES = 4_000_000_000
"""The means of texts are kept on disk up to this size, unless told otherwise."""


def record_job(
    engine: Engine,
    job: Job,
    *,
    folder: Path,
    resume: bool = False,
    about: Any = None,
    max_tokens: int = 1024,
    share: bool = True,
    matrix_bytes: int = MATRIX_BYTES,
    every: float = 60.0,
    progress: Progress = silent,
) -> Recorded:
    """Run a job.

    Args:
        engine: the model, through any engine: intact, masked or pruned.
        job: what to record.
        folder: where the state of the work is kept meanwhile; it must exist. Who calls removes it.
        resume: go on from the state that stands there.
        about: what else decides the result (the model's hash, a mask); a state made otherwise is
            not gone on from.
        max_tokens: padded tokens in a batch; rows are halved where memory runs out.
        share: run common beginnings of texts once.
        matrix_bytes: the means of texts are kept on disk up to this size, for exact AUROC.
        every: seconds between two states; 0 keeps one after every pass.
        progress: told of the tokens done.

    Raises:
        DataError: a selection that no token is in.
        ModelError: activations that are not finite.
        ResourceError: memory does not suffice for one row, or the disk is full.
    """
    started = time.monotonic()
    whole = layout(engine, job.texts, max_tokens, share=share, last=True)
    steps = _steps(whole.passes)
    # A state counts steps: it is worth nothing where these are laid out otherwise.
    laid_out = [[len(p.prefix), p.ids.shape, p.texts] for p in whole.passes]
    where = [str(engine.device), torch.__version__]
    name = job.digest(
        [FORMAT, about, engine.name, list(engine.widths), where, matrix_bytes, laid_out]
    )
    recorder = _Recorder(engine.widths, job, folder, matrix_bytes)
    done, notes = 0, []
    if not resume:
        forget_states(folder)
    else:
        done, state, notes = load_state(folder, name)
        if done and not recorder.restore(state):
            notes.append("the means of texts were damaged: all is recorded again")
            recorder.close()
            recorder, done = _Recorder(engine.widths, job, folder, matrix_bytes), 0
        notes.append(f"resumed after {done} of {len(steps)} steps" if done else "begun anew")
    kept = time.monotonic()
    past: Any = None
    tokens_done = sum(_size(step) for step in steps[:done])
    what = "recording (tokens)"
    with torch.inference_mode():
        for number, step in enumerate(steps):
            if isinstance(step, tuple):
                prefix, members = step
                # What is remembered lasts until the next prefix comes.
                later = [s for s in steps[max(done, number + 1) :] if isinstance(s, Pass)]
                if number >= done or (later and later[0].prefix == prefix):
                    past = None
                    past = recorder.remember(engine, prefix, members, number >= done)
            elif number >= done:
                recorder.absorb(engine, step, past if step.prefix else None)
            if number < done:
                continue
            tokens_done += _size(step)
            progress(what, tokens_done, whole.tokens_run)
            if time.monotonic() - kept >= every and number + 1 < len(steps):
                begun = time.monotonic()
                recorder.keep(folder, name, number + 1)
                kept = time.monotonic()
                every = max(every, 20 * (kept - begun)) if every else 0.0
    if recorder.halved:
        notes.append(
            f"memory ran out: {len(whole.passes)} batches were run as "
            f"{len(whole.passes) + recorder.halved}; a lower --max-tokens avoids that"
        )
    conditions, contrasts, examples = recorder.result()
    return Recorded(
        widths=tuple(engine.widths),
        conditions=conditions,
        contrasts=contrasts,
        examples=examples,
        samples=recorder.samples,
        activity=recorder.activity(),
        means=recorder.kept_means(),
        tokens=(whole.tokens_given, whole.tokens_run, recorder.n_selected),
        seconds=time.monotonic() - started,
        notes=tuple(notes),
    )


_Step = Pass | tuple[tuple[int, ...], tuple[int, ...]]
"""A pass, or a prefix with the numbers of the texts that begin with it."""


def _steps(passes: Sequence[Pass]) -> list[_Step]:
    """Passes, each group of one prefix after that prefix itself."""
    found: list[_Step] = []
    for prefix, group in groupby(passes, key=lambda step: step.prefix):
        steps = list(group)
        if prefix:
            found.append((prefix, tuple(sorted({t for step in steps for t in step.texts}))))
        found += steps
    return found


def _size(step: _Step) -> int:
    return step.tokens if isinstance(step, Pass) else len(step[0])


@dataclass(frozen=True)
class _Feed:
    """What to take from one batch; places are flat indices of tokens."""

    conditions: dict[str, tuple[np.ndarray, np.ndarray]]
    """Places and how often each counts."""
    spans: tuple[np.ndarray, ...]
    """Places of each text's selected tokens."""
    examples: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Places, texts, positions."""
    samples: tuple[np.ndarray, np.ndarray]
    """Rows of the matrix of samples, and places."""


class _Recorder:
    """All that a job gathers."""

    def __init__(self, widths: Sequence[int], job: Job, folder: Path, matrix_bytes: int) -> None:
        self._job = job
        self._edges = np.concatenate([[0], np.cumsum(widths)])
        neurons = int(self._edges[-1])
        self._spans = [selected(text, job.tokens) for text in job.texts]
        self._in = {
            name: np.bincount(np.array(texts), minlength=len(job.texts))
            for name, texts in job.conditions.items()
        }
        for name, texts in job.conditions.items():
            if not any(self._spans[t][1] > self._spans[t][0] for t in texts):
                raise DataError(
                    f"{name}: no token is selected by {job.tokens!r}; choose another of "
                    f"{', '.join(SELECTIONS)}"
                )
        self._moments = {name: Moments(widths) for name in job.conditions}
        self._examples = Examples(widths, job.examples)
        self._fresh = told_once(job.texts, self._spans)
        ends = np.cumsum([len(fresh) for fresh in self._fresh])
        self.n_selected = sum(last - first for first, last in self._spans if last > first)
        n_samples = min(job.samples, int(ends[-1]))
        drawn = np.sort(
            np.random.default_rng(job.seed).choice(int(ends[-1]), n_samples, replace=False)
        )
        of = np.searchsorted(ends, drawn, side="right")
        at = [self._fresh[t][k - ends[t]] for t, k in zip(of, drawn, strict=True)]  # from the end
        self._sample_at = np.stack([of, np.array(at, np.int64)], 1)
        self._sampled = {(int(t), int(p)): row for row, (t, p) in enumerate(self._sample_at)}
        self.samples = np.full((len(self._sampled), neurons), np.nan, np.float32)
        in_pairs = {t for pairs in job.contrasts.values() for pair in pairs for t in pair}
        wanted = range(len(job.texts)) if job.all_means else sorted(in_pairs)
        self._row = {text: row for row, text in enumerate(wanted)}
        self._means: MeansFile | None = None
        self._streams: dict[str, PairStream] = {}
        if self._row and len(self._row) * neurons * 4 <= matrix_bytes:
            self._means = MeansFile(folder / "means.f32", len(self._row), neurons)
        else:
            self._streams = {n: PairStream(widths, pairs) for n, pairs in job.contrasts.items()}
        # Of each text the squared mean magnitude, summed; and the texts that an MLP saw.
        self._drive = np.zeros(neurons)
        self._texts = np.zeros(len(self._edges) - 1, np.int64)
        self._before: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self.halved = 0
        """Batches that were run because memory ran out, beyond those that were planned."""

    def close(self) -> None:
        """Let the file go."""
        if self._means is not None:
            self._means.close()

    def remember(
        self, engine: Engine, prefix: tuple[int, ...], members: tuple[int, ...], take: bool
    ) -> Any:
        """Run a prefix; take its selected tokens in unless that was done before a kill."""
        ids = np.array([prefix], np.int64)
        columns = np.arange(len(prefix))
        step = Pass(
            (), ids, columns[None].astype(np.int32) - 1, columns[None], np.ones_like(ids, bool),
            members, tuple(columns for _ in members),
        )  # fmt: skip
        spans = {self._clip(t, 0, len(prefix)) for t in members}
        self._before = None
        there = torch.from_numpy(ids).to(engine.device)
        if all(last <= first for first, last in spans):
            return _remembered(engine, there, None)
        feed = self._feed(step, 0, len(prefix))
        # Texts that begin alike have one sum up to there, since selections differ at answers only.
        first, last = max(spans, key=lambda span: span[1] - span[0])
        neurons = int(self._edges[-1])
        sums, sizes = np.zeros(neurons), np.zeros(neurons)
        counts = np.zeros(len(self._edges) - 1)

        def visit(mlp: int, rows: Tensor, places: Tensor) -> None:
            values, index = self._values(rows, places, ids.size)
            if take:
                self._take(mlp, values, index, feed)
            part = slice(self._edges[mlp], self._edges[mlp + 1])
            (found,) = _present([np.arange(first, last)], index)
            sums[part] = text_sums(values, [found])[0]
            sizes[part] = text_sums(values, [found], magnitude=True)[0]
            counts[mlp] = len(found)

        past = _remembered(engine, there, visit)
        self._before = sums, sizes, counts
        return past

    def absorb(self, engine: Engine, step: Pass, past: Any) -> None:
        """Run a pass and take it in; in halves where memory runs out."""
        texts = [t for t in step.texts if t in self._row or self._streams]
        sums = TextSums(texts, step.texts, len(self._edges) - 1, int(self._edges[-1]))
        self.halved += self._attempt(engine, step, past, sums, frozenset()) - 1
        if self._before is not None and step.prefix:
            sums.total += self._before[0]
            sums.size += self._before[1]
            sums.count += self._before[2]
        rows = [sums.any[t] for t in texts]
        means = np.empty(sums.total.shape, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            for mlp, (first, last) in enumerate(pairwise(self._edges)):
                count = sums.count[:, mlp, None]
                self._drive[first:last] += np.nansum((sums.size[:, first:last] / count) ** 2, 0)
                means[:, first:last] = sums.total[:, first:last] / count[rows]
        self._texts += (sums.count > 0).sum(0)
        for text, row in sums.row.items():
            if self._means is not None:
                self._means.put(self._row[text], means[row])
        for stream in self._streams.values():
            stream.put(texts, means)

    def _attempt(
        self, engine: Engine, step: Pass, past: Any, sums: TextSums, skip: frozenset[int]
    ) -> int:
        feed = self._feed(step, len(step.prefix), None)
        taken: set[int] = set()

        def visit(mlp: int, rows: Tensor, places: Tensor) -> None:
            if mlp in skip:
                return
            values, index = self._values(rows, places, step.ids.size)
            part = slice(self._edges[mlp], self._edges[mlp + 1])
            present = _present(feed.spans, index)
            # These are set, not added to, and can be set again if memory runs out on the way.
            to = [sums.any[t] for t in step.texts]
            sums.size[to, part] = text_sums(values, present, magnitude=True)
            sums.count[to, mlp] = [len(found) for found in present]
            kept = [k for k, t in enumerate(step.texts) if t in sums.row]
            to = [sums.row[step.texts[k]] for k in kept]
            sums.total[to, part] = text_sums(values, [present[k] for k in kept])
            taken.add(mlp)  # what follows must not be done twice
            try:
                self._take(mlp, values, index, feed)
            except MemoryError as error:
                raise ResourceError(
                    "out of memory while activations were counted; free some"
                ) from error

        try:
            run(engine, step, past=past, visit=visit)
            return 1
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            halves = step.halves()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if halves is None:
                raise ResourceError(
                    f"out of memory on a single row of {step.ids.shape[1]} tokens; leave the "
                    "longest texts out, or take --dtype bfloat16 or another --device"
                ) from error
        # What the first layers saw of the whole pass has been taken in already.
        done = skip | taken
        return sum(self._attempt(engine, half, past, sums, done) for half in halves)

    def _clip(self, text: int, first: int, last: int) -> tuple[int, int]:
        begin, end = self._spans[text]
        return max(begin, first), min(end, last)

    def _feed(self, step: Pass, first: int, last: int | None) -> _Feed:
        """What to take from a batch that holds positions from `first` to before `last`."""
        spans, examples = [], []
        weights = {name: np.zeros(step.ids.size, np.int64) for name in self._in}
        at: dict[tuple[int, int], int] = {}
        for text, places in zip(step.texts, step.places, strict=True):
            begin, end = self._clip(
                text, first, len(self._job.texts[text]) if last is None else last
            )
            span = places[begin - first : end - first] if end > begin else places[:0]
            spans.append(span)
            for name, times in self._in.items():
                if times[text]:
                    weights[name][span] += times[text]
            for position in self._fresh[text].tolist():
                if begin <= position < end:
                    place = int(places[position - first])
                    examples.append((place, text, position))
                    if (text, position) in self._sampled:
                        at[text, position] = place
        columns = np.array(examples, np.int64).reshape(-1, 3).T
        sampled = np.array([(self._sampled[k], place) for k, place in at.items()], np.int64)
        return _Feed(
            conditions={n: (np.flatnonzero(w), w[w > 0]) for n, w in weights.items() if w.any()},
            spans=tuple(spans),
            examples=(columns[0], columns[1], columns[2]),
            samples=(sampled.reshape(-1, 2)[:, 0], sampled.reshape(-1, 2)[:, 1]),
        )

    def _values(
        self, rows: Tensor, places: Tensor, size: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows as the kernels read them, and where each place's row is (None: in its place)."""
        values = as_rows(rows)
        if len(values) == size:
            return values, None
        index = np.full(size, -1, np.int64)
        index[places.cpu().numpy()] = np.arange(len(values))
        return values, index

    def _take(self, mlp: int, values: np.ndarray, index: np.ndarray | None, feed: _Feed) -> None:
        for name, (places, weights) in feed.conditions.items():
            if index is not None:
                there = index[places] >= 0
                places, weights = index[places[there]], weights[there]
            self._moments[name].update(mlp, values, places, weights)
        places, texts, positions = feed.examples
        slots, sampled = feed.samples
        if index is not None:
            there = index[places] >= 0
            places, texts, positions = index[places[there]], texts[there], positions[there]
            there = index[sampled] >= 0
            slots, sampled = slots[there], index[sampled[there]]
        self._examples.update(mlp, values, places, texts, positions)
        self.samples[slots, self._edges[mlp] : self._edges[mlp + 1]] = values[sampled]

    def _check_finite(self) -> dict[str, ActivationStatistics]:
        seen = {name: m for name, m in self._moments.items() if m.any}
        conditions = {name: moments.result() for name, moments in seen.items()}
        for name, found in conditions.items():
            broken = ~np.isfinite(found.rms) & (found.count > 0)
            if broken.any():
                mlp = int(np.searchsorted(self._edges, broken.argmax(), side="right")) - 1
                raise ModelError(
                    f"{name}: activations of MLP {mlp} are not finite; try --dtype float32"
                )
        return conditions

    def keep(self, folder: Path, name: str, step: int) -> None:
        """Save the state after `step` steps."""
        self._check_finite()
        state = {"samples": self.samples, "drive": self._drive, "texts": self._texts}
        state["halved"] = np.array([self.halved])
        state |= prefixed("examples", self._examples.state())
        for condition, moments in self._moments.items():
            state |= prefixed(f"condition.{condition}", moments.state())
        for contrast, stream in self._streams.items():
            state |= prefixed(f"contrast.{contrast}", stream.state())
        if self._means is not None:
            self._means.sync()
            state |= {"checksums": self._means.checksums, "written": self._means.written}
        save_state(folder, name, step, state)

    def restore(self, state: dict[str, np.ndarray]) -> bool:
        """Go on from a state; false where the file of means does not hold what it should."""
        self.samples[:] = state["samples"]
        self._drive[:], self._texts[:] = state["drive"], state["texts"]
        self.halved = int(state["halved"][0])
        self._examples.restore(below("examples", state))
        for condition, moments in self._moments.items():
            moments.restore(below(f"condition.{condition}", state))
        for contrast, stream in self._streams.items():
            stream.restore(below(f"contrast.{contrast}", state))
        if self._means is None:
            return True
        self._means.checksums[:] = state["checksums"]
        self._means.written[:] = state["written"]
        return self._means.intact()

    def result(
        self,
    ) -> tuple[dict[str, ActivationStatistics], dict[str, Paired], dict[str, np.ndarray]]:
        """Statistics of conditions and contrasts, and examples.

        Raises:
            ModelError: activations that are not finite.
        """
        conditions = self._check_finite()
        if self._means is not None and not self._means.written.all():
            raise RunError("the means of some texts were never written; begin anew")
        examples = self._examples.result()
        texts, positions = self._sample_at[:, 0], self._sample_at[:, 1]
        examples["spread"] = spread(
            self.samples, texts, positions, self._job.examples, self._job.seed
        )
        if self._means is None:
            return conditions, {n: s.result() for n, s in self._streams.items()}, examples
        contrasts = {}
        for name, pairs in self._job.contrasts.items():
            sides = [[self._row[pair[side]] for pair in pairs] for side in (0, 1)]
            found = [
                paired(*(self._means.get(rows, int(first), int(last)) for rows in sides))
                for first, last in zip(self._edges[:-1], self._edges[1:], strict=True)
            ]
            contrasts[name] = Paired(
                *(np.concatenate([getattr(f, part.name) for f in found]) for part in fields(Paired))
            )
        return conditions, contrasts, examples

    def activity(self) -> Recording:
        """What activation-based criteria need, of all conditions together."""
        pooled = reduce(Moments.merged, self._moments.values()).result()
        drive = np.sqrt(self._drive / np.maximum(np.repeat(self._texts, np.diff(self._edges)), 1))
        parts = [
            Activity(*(np.nan_to_num(values[first:last]) for values in (
                pooled.mean, pooled.mean_abs, pooled.rms, pooled.variance, drive)))
            for first, last in pairwise(self._edges)
        ]  # fmt: skip
        counts = tuple(int(pooled.count[first]) for first in self._edges[:-1])
        return Recording(tuple(parts), counts, texts=len(self._job.texts))

    def kept_means(self) -> tuple[MeansFile, dict[int, int]] | None:
        """The file of means and each text's row in it."""
        return None if self._means is None else (self._means, self._row)


def _remembered(engine: Engine, ids: Tensor, visit: Visit | None) -> Any:
    try:
        return engine.remember(ids, visit)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"out of memory on a beginning of {ids.numel()} tokens that many texts share; free "
            "some, or take --dtype bfloat16 or another --device"
        ) from error


def _present(spans: Sequence[np.ndarray], index: np.ndarray | None) -> list[np.ndarray]:
    """The rows at some places; those that did not pass the MLP are left out."""
    if index is None:
        return list(spans)
    rows = [index[span] for span in spans]
    return [found[found >= 0] for found in rows]
