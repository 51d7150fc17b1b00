"""What is tried on the model beside reading it: tenths silenced, growing cuts, linear probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from ..datasets.multiple_choice import load_truthfulqa
from ..datasets.pairs import MISCONCEPTION, Material
from ..datasets.sources import BUILTIN
from ..errors import DataError
from ..probes.recording import record
from ..progress import Progress
from ..prune.models import OpenedModel
from ..prune.selection import NeuronSet, lowest
from .causal import (
    DAMAGE,
    EVERY,
    CausalSet,
    Effect,
    Replacing,
    Trial,
    causal_draw,
    causal_sets,
    effects,
    silence,
)
from .floors import Answerer, Choices, Dose, answer, answerers
from .options import Options
from .rivals import Overlap, find_rivals, overlaps
from .stages import Stages

if TYPE_CHECKING:
    from ..probes.contrasts import Contrasts
    from ..probes.engine import Engine
    from ..probes.tokens import Encoder

REFERENCE = 32
"""Neutral passages whose mean activations replace a silenced neuron's."""
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of every layer's neurons; the paper's cuts."""
DOSE_DRAWS = 3
LAYERS_AT_ONCE = 4
PROTECTED = 100
"""Draws from here on are the lowest tenth with one class of neurons protected."""


class Experiments:
    """The experiments of one run; each is kept in the run's stages.

    Attributes:
        overlaps: of the lowest and highest tenth with neurons that have other jobs.
    """

    def __init__(
        self,
        opened: OpenedModel,
        encoder: Encoder,
        material: Material,
        scores: Mapping[str, Sequence[np.ndarray]],
        options: Options,
        stages: Stages,
        progress: Progress,
    ) -> None:
        self._encoder, self._material, self._options = encoder, material, options
        self._stages, self._progress = stages, progress
        self._scores, self._criterion = scores, options.criteria[0]
        self.overlaps: list[Overlap] = []
        self._rivals: list[Any] = []
        self._trial: Trial | None = None
        if not options.causal_items:
            return
        self._trial = self._make_trial(options.causal_items)
        # Both look at the model itself, which an engine may wrap.
        self._reference = self._means(opened)
        self._find_rivals(opened)

    def _means(self, opened: OpenedModel) -> list[np.ndarray]:
        texts = [passage.text for passage in self._material.neutral[:REFERENCE]]

        def make() -> dict[str, np.ndarray]:
            found = record(opened, texts, progress=self._progress)
            return {f"{k:04d}": mlp.mean.astype(np.float32) for k, mlp in enumerate(found.mlps)}

        found = self._stages("means", make)
        return [found[name] for name in sorted(found)]

    def _find_rivals(self, opened: OpenedModel) -> None:
        from ..probes.hooks import HooksEngine

        texts = [self._encoder.passage(p.text) for p in self._material.neutral]
        self._rivals = find_rivals(opened.model, HooksEngine(opened.model), texts)
        scores = self._scores[self._criterion]
        cuts = {
            f"lowest tenth by {self._criterion}": lowest(scores, fraction=0.1),
            f"highest tenth by {self._criterion}": lowest([-s for s in scores], fraction=0.1),
        }
        self.overlaps = overlaps(cuts, self._rivals)

    def silence(self, engine: Engine) -> tuple[list[Effect], polars.DataFrame]:
        """Silence tenths of all layers, by mean and by zero, and of every layer alone, by mean."""
        if self._trial is None:
            return [], polars.DataFrame()
        options = self._options
        scores = self._scores[self._criterion]
        whole = causal_sets(scores, [EVERY], options.causal_random, options.seed)
        whole += self._protected(whole[0].cut)
        rows: list[Effect] = []
        frames = []
        jobs: list[tuple[Trial, Replacing, list[tuple[str, list[CausalSet]]]]] = [
            (self._trial, "mean", [("all-mean", whole)]),
            (self._trial, "zero", [("all-zero", whole)]),
        ]
        if options.map_items:
            parts = []
            for first in range(0, len(scores), LAYERS_AT_ONCE):
                layers = range(first, min(first + LAYERS_AT_ONCE, len(scores)))
                sets = causal_sets(scores, layers, options.causal_random, options.seed)
                parts.append((f"layers-{first}", sets))
            jobs.append((self._make_trial(options.map_items), "mean", parts))
        total = sum(len(parts) for _, _, parts in jobs)
        done = 0
        for trial, replacing, parts in jobs:
            found = []
            for name, sets in parts:

                def make(
                    trial: Trial = trial,
                    sets: list[CausalSet] = sets,
                    replacing: Replacing = replacing,
                ) -> dict[str, np.ndarray]:
                    before, after = silence(
                        engine, trial, sets, replacing, self._reference,
                        max_tokens=options.max_tokens, progress=self._progress,
                    )  # fmt: skip
                    return {"intact": before, "changed": after}

                found.append(self._stages(f"silenced-{name}", make))
                done += 1
                self._progress("silencing tenths (jobs)", done, total)
            sets = [each for _, some in parts for each in some]
            changed = np.concatenate([part["changed"] for part in found])
            intact = found[0]["intact"]
            rows += effects(trial, sets, replacing, intact, changed, seed=options.seed)
            frames.append(_items(trial, sets, replacing, intact, changed))
        return rows, polars.concat(frames)

    def _make_trial(self, count: int) -> Trial:
        pairs, passages = causal_draw(self._material, count, self._options.seed)
        return Trial.make(self._encoder, pairs, passages)

    def _protected(self, lowest_tenth: NeuronSet) -> list[CausalSet]:
        """The lowest tenth of all layers, less each class of neurons with another job."""
        return [
            CausalSet(EVERY, 0, -1 - PROTECTED - k, lowest_tenth - rival.neurons)
            for k, rival in enumerate(self._rivals)
            if len(lowest_tenth & rival.neurons)
        ]

    def dose(self, engine: Engine) -> tuple[list[Answerer], list[Dose]]:
        """TruthfulQA's multiple choice: the floors, and the model under growing cuts."""
        options = self._options
        if options.data == BUILTIN or not options.dose_items:
            return [], []
        try:
            choices = Choices(
                load_truthfulqa(options.data, "mc1").records,
                load_truthfulqa(options.data, "mc2").records,
            )
        except DataError as error:
            self._stages.notes.append(f"no multiple choice: {error}")
            return [], []
        if options.limit is not None and options.limit < len(choices.mc1):
            drawn = np.random.default_rng([options.seed, 8]).permutation(len(choices.mc1))
            choices = choices.some(sorted(drawn[: options.limit].tolist()))
        found = self._stages(
            "choices", lambda: _flat(choices.score(engine, self._encoder,
                                                   max_tokens=options.max_tokens,
                                                   progress=self._progress))
        )  # fmt: skip
        rows = answerers(self._encoder, choices, _whole(found), seed=options.seed)
        return rows, self._doses(engine, choices)

    def _doses(self, engine: Engine, choices: Choices) -> list[Dose]:
        if self._trial is None:
            return []
        options, scores = self._options, self._scores[self._criterion]
        rng = np.random.default_rng([options.seed, 9])
        some = choices.some(
            sorted(rng.permutation(len(choices.mc1))[: options.dose_items].tolist())
        )
        orders = [("intact", 0, scores), ("lowest", 0, scores)]
        orders += [
            ("random", draw, [rng.random(len(layer)) for layer in scores])
            for draw in range(DOSE_DRAWS)
        ]
        neutral = self._trial.texts[self._trial.spans[DAMAGE]]
        tokens = np.array([text.n_answer for text in neutral])
        cuts = [
            (name, draw, fraction, lowest(by, fraction=fraction))
            for name, draw, by in orders
            for fraction in ((0.0,) if name == "intact" else FRACTIONS)
        ]
        rows = []
        usual = 0.0
        for done, (name, draw, fraction, cut) in enumerate(cuts):

            def make(cut: NeuronSet = cut) -> dict[str, np.ndarray]:
                from ..probes.engine import silencer
                from ..probes.likelihood import loglikelihoods

                heard = loglikelihoods(
                    engine, neutral, intervene=silencer(cut), max_tokens=options.max_tokens
                )
                scored = some.score(engine, self._encoder, cut, max_tokens=options.max_tokens)
                return {**_flat(scored), "loss": -heard / tokens}

            found = self._stages(f"dose-{name}-{draw}-{fraction:.1f}", make)
            loss = float(found["loss"].mean())
            usual = loss if name == "intact" else usual
            said = answer(f"{name} {fraction:.0%}", some, _whole(found), seed=options.seed)
            rows.append(Dose(name, draw, fraction, said, loss - usual))
            self._progress("growing cuts (cuts)", done + 1, len(cuts))
        return rows

    def decode(self, contrasts: Mapping[str, Contrasts]) -> polars.DataFrame | None:
        """Linear probes of false against true answers: lowest, highest and random tenths."""
        every = self._options.decode_every
        if not every:
            return None
        from ..probes.linear import decode_layers, table

        found, scores = contrasts[MISCONCEPTION], self._scores[self._criterion]
        ends = np.cumsum([len(layer) for layer in scores])
        pairs = self._material.pairs[MISCONCEPTION]
        texts = [self._encoder.text(text) for pair in pairs for text in (pair.a, pair.b)]
        about: dict[str, Any] = {
            "labels": np.tile([1, 0], len(pairs)),
            "groups": np.repeat(np.arange(len(pairs)), 2),
            "first_tokens": [text.ids[text.start] for text in texts],
            "answers": [text.answer for pair in pairs for text in (pair.a, pair.b)],
            "answer_tokens": [text.n_answer for text in texts],
        }
        frames = []
        layers = range(0, len(scores), every)
        for done, layer in enumerate(layers):

            def make(layer: int = layer) -> dict[str, np.ndarray]:
                part = slice(ends[layer] - len(scores[layer]), ends[layer])
                features = found.means[:, :, part].swapaxes(0, 1).reshape(2 * len(pairs), -1)
                rows = table(
                    decode_layers(
                        lambda _: features,
                        scores_by_layer={layer: scores[layer]},
                        layers=[layer],
                        n_random=3,
                        seed=self._options.seed,
                        **about,
                    )
                )
                return {"table": np.frombuffer(rows.write_json().encode(), np.uint8)}

            kept = self._stages(f"decoded-{layer}", make)["table"].tobytes()
            rows = polars.read_json(kept, infer_schema_length=None)
            frames.append(rows if not done else rows.filter(polars.col("layer").is_not_null()))
            self._progress("linear probes (layers)", done + 1, len(layers))
        return polars.concat(frames, how="vertical_relaxed")


def _flat(scores: tuple[list[np.ndarray], list[np.ndarray]]) -> dict[str, np.ndarray]:
    found = {}
    for name, part in zip(("mc1", "mc2"), scores, strict=True):
        found[name] = np.concatenate(part)
        found[f"{name}-counts"] = np.array([len(one) for one in part])
    return found


def _whole(arrays: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    both = [np.split(arrays[n], np.cumsum(arrays[f"{n}-counts"])[:-1]) for n in ("mc1", "mc2")]
    return both[0], both[1]


def _items(
    trial: Trial,
    sets: Sequence[CausalSet],
    replacing: str,
    intact: np.ndarray,
    changed: np.ndarray,
) -> polars.DataFrame:
    before, after = trial.quantities(intact), trial.quantities(changed)
    frames = []
    for name, values in after.items():
        count = values.shape[1]
        frames.append(
            polars.DataFrame(
                {
                    "replacing": [replacing] * values.size,
                    "layer": np.repeat([each.layer for each in sets], count),
                    "tenth": np.repeat([each.tenth for each in sets], count),
                    "draw": np.repeat([each.draw for each in sets], count),
                    "quantity": [name] * values.size,
                    "item": list(trial.items[name]) * len(sets),
                    "change": (values - before[name]).reshape(-1).astype(np.float32),
                }
            )
        )
    return polars.concat(frames)
