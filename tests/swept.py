"""Sweeps that nobody ran: frames as a sweep leaves them, made of a known law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars

from glulens.interp.sweep_result import SweepResult

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
KINDS = ("punctuation:no_comma", "keywords:existence", "change_case:english_lowercase")


def swept(
    *,
    criteria: Sequence[str] = ("ppm", "vow"),
    draws: int = 3,
    fractions: Sequence[float] = FRACTIONS,
    harm: dict[str, float] | None = None,
    items: int = 200,
    tasks: Sequence[str] = ("truthfulqa_mc2", "mmlu", "lambada_openai", "wikitext", "ifeval"),
    model: str = "made-up",
    is_reversed: bool = True,
    seed: int = 0,
) -> SweepResult:
    """A sweep whose cuts do a damage of fraction x harm; items differ in how hard they are.

    Args:
        harm: by criterion (`random` for all random orders, `reversed` for all reversed ones); 1
            where nothing is said.
    """
    rng = np.random.default_rng(seed)
    orders: list[tuple[str, str | None, int | None]] = [(name, None, None) for name in criteria]
    orders += [(f"random:{k}", "random", k) for k in range(draws)]
    orders += [(f"reversed:{name}", "reversed", None) for name in criteria if is_reversed]
    rows: list[dict[str, Any]] = [point_row(0, "intact", None, None, 0.0)]
    damage = [0.0]
    for name, control, number in orders:
        for fraction in fractions:
            rows.append(point_row(len(rows), name, control, number, fraction))
            own = (harm or {}).get(control or name, 1.0)
            luck = rng.normal(0, 0.05) if control == "random" else 0.0
            damage.append(fraction * (own + luck))
    parts, answers = [], []
    for task in tasks:
        hard = rng.normal(0, 1, items)
        noise = rng.normal(0, 0.25, (len(damage), items))
        for point, hurt in enumerate(damage):
            parts += metrics(task, point, hurt, hard, noise[point])
        if task == "ifeval":
            for point, hurt in enumerate(damage):
                ended = hard + noise[point] < 1 - 2 * hurt
                tokens = np.where(ended, 40 + 10 * np.abs(hard), 128).astype(int)
                answers.append(
                    polars.DataFrame(
                        {
                            "task": task,
                            "subtask": task,
                            "doc_id": np.arange(items),
                            "text": ["the " * int(t) for t in tokens],
                            "answer_tokens": tokens,
                            "answer_characters": tokens * 4,
                            "ended": ended,
                        }
                    ).with_columns(point=polars.lit(point))
                )
    floors = {
        "truthfulqa_mc2": {"acc": 0.4641},
        "mmlu": {"acc": 0.25},
        "ifeval": {"prompt_level_strict_acc": 0.161},
    }
    return SweepResult(
        polars.DataFrame(rows, infer_schema_length=None),
        polars.concat(parts),
        polars.DataFrame(),
        polars.DataFrame({"layer": [0], "neuron": [0], "ppm": [1.0]}),
        {"model": {"name": model}, "warnings": [], "argv": ["glulens", "sweep"],
         "tasks": [{"name": task, "floor": floors.get(task, {})} for task in tasks],
         "started": "2026-01-01", "options": {"criteria": list(criteria), "seed": seed}},
        answers=polars.concat(answers) if answers else None,
    )  # fmt: skip


def point_row(
    number: int, criterion: str, control: str | None, seed: int | None, fraction: float
) -> dict[str, Any]:
    return {
        "point": number,
        "criterion": criterion,
        "control": control,
        "seed": seed,
        "fraction": fraction,
        "ratio": round(4 * (1 - fraction), 6),
        "neurons_cut": int(1000 * fraction),
        "parameters": 10_000 - int(3000 * fraction),
    }


def metrics(
    task: str, point: int, hurt: float, hard: np.ndarray, noise: np.ndarray
) -> list[polars.DataFrame]:
    ability = 1 - 3 * hurt + noise
    if task == "truthfulqa_mc2":  # rises to the floor with damage
        return [long(point, task, "acc", 1 / (1 + np.exp(0.5 - 0.8 * hurt - hard * (1 - hurt))))]
    if task == "lambada_openai":
        loss = 2 + 6 * hurt + 0.3 * hard + 0.1 * noise
        return [
            long(point, task, "perplexity", -loss),
            long(point, task, "acc", (hard < ability).astype(float)),
        ]
    if task == "wikitext":
        words = np.arange(len(hard)) % 7 * 30.0 + 50
        return [long(point, task, "word_perplexity", -(3 + 5 * hurt + 0.2 * hard), words)]
    if task == "ifeval":
        one, two = (hard < ability - 1).astype(float), (hard < ability - 0.5).astype(float)
        found = []
        for how, easier in (("strict", 0.0), ("loose", 0.2)):
            each = np.stack([one, two]) if not easier else np.maximum(np.stack([one, two]), one)
            found += [
                long(point, task, f"prompt_level_{how}_acc", each.min(0)),
                long(point, task, f"inst_level_{how}_acc", each.mean(0), np.full(len(one), 2.0)),
            ]
            for k, kind in enumerate(KINDS):
                chosen = np.arange(len(one)) % len(KINDS) == k
                found.append(
                    long(point, task, f"inst_level_{how}_acc:{kind}", each[0][chosen]).with_columns(
                        doc_id=polars.Series(np.flatnonzero(chosen))
                    )
                )
        return found
    return [long(point, task, "acc", (hard < ability).astype(float))]


def long(
    point: int, task: str, metric: str, values: np.ndarray, weights: np.ndarray | None = None
) -> polars.DataFrame:
    """Items of one metric at one point, as the frame of a sweep holds them."""
    return polars.DataFrame(
        {
            "point": np.full(len(values), point),
            "task": [task] * len(values),
            "subtask": [task] * len(values),
            "doc_id": np.arange(len(values)),
            "metric": [metric] * len(values),
            "value": np.asarray(values, float),
            "weight": np.ones(len(values)) if weights is None else weights,
        }
    )
