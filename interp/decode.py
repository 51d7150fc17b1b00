"""Linear probes on what a probe run recorded: every set of two conditions, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, UsageError
from ..progress import Progress, silent

if TYPE_CHECKING:
    import polars

    from ..probes.recorder import Recorded
    from ..prune.layout import MlpLayout
    from ..prune.models import OpenedModel
    from .probe import Prepared, ProbeOptions


def check_decodable(
    prepared: Prepared, settings: ProbeOptions, layouts: Sequence[MlpLayout]
) -> Prepared:
    """Find out before anything is recorded whether there will be something to decode.

    Returns:
        The same, with a note on every set that will be left out.

    Raises:
        DataError: no set has two conditions and enough questions, or too many texts.
        UsageError: a layer that the model does not have or that is an expert, or no criterion.
    """
    from ..probes.recorder import MATRIX_BYTES

    if find_spec("sklearn") is None:
        raise UsageError("--decode needs scikit-learn: pip install scikit-learn")
    if not settings.criteria:
        raise UsageError("--decode ranks neurons by the first criterion; give --criteria one")
    for layer in _layers(settings, len(layouts)):
        if not 0 <= layer < len(layouts):
            raise UsageError(f"layer {layer}: the model has {len(layouts)}, from 0")
        if layouts[layer].part == "expert":
            raise UsageError(
                f"MLP {layer} is an expert, which does not see every text; linear probes cannot "
                "compare texts by it: leave --decode out"
            )
    size = 4 * len(prepared.job.texts) * sum(layout.width for layout in layouts)
    if size > MATRIX_BYTES:
        raise DataError(
            f"the means of {len(prepared.job.texts):,} texts take {size / 1e9:.1f} GB, to decode "
            f"at most {MATRIX_BYTES / 1e9:.1f} are kept; lower --limit"
        )
    notes = []
    for task in _tasks(prepared):
        try:
            task.check(settings.seed)
        except DataError as error:
            notes.append(f"{task.name}: not decoded: {error}")
    if len(notes) == len(prepared.sets):
        raise DataError(f"nothing can be decoded ({'; '.join(notes)}); leave --decode out")
    return replace(prepared, notes=(*prepared.notes, *notes))


def check_rankable(scores: Mapping[str, Sequence[np.ndarray]], settings: ProbeOptions) -> None:
    """Find out before anything is recorded whether neurons can be ranked for the probes.

    Raises:
        DataError: scores of a layer that do not tell its lowest from its highest.
    """
    from ..probes.linear import tenths

    ranked = scores[settings.criteria[0]]
    for layer in _layers(settings, len(ranked)):
        try:
            tenths(ranked[layer], n_random=0)
        except DataError as error:
            raise DataError(f"--decode: layer {layer}, {settings.criteria[0]}: {error}") from error


def _layers(settings: ProbeOptions, n_layers: int) -> tuple[int, ...]:
    return settings.decode_layers or tuple(range(n_layers))


@dataclass(frozen=True)
class _Task:
    """What is to be told of one set: which of two conditions a text is of.

    Attributes:
        name: the set's.
        conditions: the first is the positive one; decodable if there are two.
        texts: numbers of the texts in the job: those with a selected token.
        labels, items, answers: of each text.
        first_tokens, answer_tokens: of each answer its first token's id, and how many it has.
    """

    name: str
    conditions: tuple[str, ...]
    texts: tuple[int, ...]
    labels: np.ndarray
    items: np.ndarray
    answers: tuple[str, ...]
    first_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]

    def check(self, seed: int) -> None:
        """
        Raises:
            DataError: this cannot be decoded.
        """
        from ..probes.tasks import make_task

        if len(self.conditions) != 2:
            raise DataError(f"{len(self.conditions)} of its conditions have texts, two are needed")
        if not any(answer.strip() for answer in self.answers):
            raise DataError("all its answers are blank")
        make_task(
            self.labels, self.items, self.first_tokens, seed=seed, control_draws=1, bootstraps=1
        )


def _tasks(prepared: Prepared) -> list[_Task]:
    """One of every set."""
    from ..probes.jobs import selected

    found = []
    for number, probe_set in enumerate(prepared.sets):
        texts, about = [], []
        for text, (of, place) in enumerate(prepared.rows):
            first, last = selected(prepared.job.texts[text], prepared.job.tokens)
            if of == number and first < last:
                texts.append(text)
                about.append(probe_set.texts[place])
        there = {text.condition for text in about}
        names = probe_set.contrast or probe_set.conditions
        conditions = tuple(name for name in names if name in there)
        encoded = [prepared.job.texts[text] for text in texts]
        found.append(
            _Task(
                probe_set.name,
                conditions,
                tuple(texts),
                np.array([text.condition == conditions[0] for text in about], bool),
                np.array([text.item for text in about]),
                tuple(text.text.answer for text in about),
                tuple(text.ids[text.start] for text in encoded),
                tuple(text.n_answer for text in encoded),
            )
        )
    return found


def decode_sets(
    opened: OpenedModel,
    prepared: Prepared,
    recorded: Recorded,
    scores: Mapping[str, Sequence[np.ndarray]],
    settings: ProbeOptions,
    folder: Path,
    progress: Progress = silent,
) -> polars.DataFrame:
    """Decode the condition of every set that can be, from mean activations.

    `check_decodable` has said which those are.

    Returns:
        One row a set, layer and set of neurons; see `probes.linear.table`.

    Raises:
        DataError: means of texts were not kept, or no set can be decoded.
    """
    import polars

    from ..probes.linear import decode_layers, table

    if recorded.means is None:
        raise DataError("means of texts were not kept: too many texts to decode; lower --limit")
    random = None
    if settings.random_model:
        random = _random_model(opened, prepared, settings, folder, progress)
    found = []
    for task in _tasks(prepared):
        try:
            task.check(settings.seed)
        except DataError:
            continue
        rows = table(
            decode_layers(
                _features(recorded, task.texts),
                task.labels,
                task.items,
                scores_by_layer=scores[settings.criteria[0]],
                first_tokens=task.first_tokens,
                answers=task.answers,
                answer_tokens=task.answer_tokens,
                random_features_by_layer=None if random is None else _features(random, task.texts),
                layers=_layers(settings, len(recorded.widths)),
                seed=settings.seed,
                progress=progress,
            )
        )
        found.append(rows.insert_column(0, polars.lit(task.name).alias("set")))
    if not found:
        raise DataError("no probe set has two conditions to tell apart; leave --decode out")
    if random is not None and random.means is not None:
        random.means[0].close()
    return polars.concat(found)


def _features(recorded: Recorded, texts: Sequence[int]) -> Any:
    """By layer, the mean activations of some texts, float32 [texts, neurons]."""
    assert recorded.means is not None
    file, row = recorded.means
    edges = np.concatenate([[0], np.cumsum(recorded.widths)])
    places = [row[text] for text in texts]

    def of(layer: int) -> np.ndarray:
        return file.get(places, int(edges[layer]), int(edges[layer + 1]))

    return of


def _random_model(
    opened: OpenedModel,
    prepared: Prepared,
    settings: ProbeOptions,
    folder: Path,
    progress: Progress,
) -> Recorded:
    """The same texts in a model of the same shape whose weights were never trained."""
    from ..probes.hooks import HooksEngine
    from ..probes.recorder import record_job
    from ..prune.nulls import untrained

    model = untrained(opened, settings.seed)
    (folder / "random").mkdir(exist_ok=True)
    return record_job(
        HooksEngine(model),
        replace(prepared.job, contrasts={}),
        folder=folder / "random",
        max_tokens=settings.max_tokens,
        every=1e9,
        progress=lambda what, done, total: progress(f"random model: {what}", done, total),
    )
