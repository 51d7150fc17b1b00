"""Misconceptions: TruthfulQA (Lin et al., arXiv 2109.07958) or the built-in sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .records import BadRecord, Misconception
from .sources import (
    BUILTIN,
    HUB,
    DataSet,
    HubFile,
    build,
    fetch,
    find_local,
    read_csv,
    read_jsonl,
    read_parquet,
    sample_file,
)

ON_HUB = HubFile(
    "truthfulqa/truthful_qa",
    "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
    "generation/validation-00000-of-00001.parquet",
)
# v1 is what papers and the hub use; a folder without it may hold the 2025 revision.
LOCAL = (
    "truthfulqa/v1/TruthfulQA.csv",
    "truthfulqa/TruthfulQA.csv",
    "v1/TruthfulQA.csv",
    "TruthfulQA.csv",
)
COLUMNS = ("Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers")


def load_misconceptions(source: str | Path = BUILTIN) -> DataSet[Misconception]:
    """Misconceptions from `builtin`, `hub`, or a local folder of official files.

    Raises:
        DataError: missing or malformed data, with file and line.
    """
    if source == BUILTIN:
        path = sample_file("misconceptions.jsonl")
        return build("misconceptions", "built-in sample", {path: read_jsonl(path)}, _from_sample)
    if source == HUB:
        path = fetch(ON_HUB)
        origin = f"{ON_HUB.repo}@{ON_HUB.revision}"
        return build("truthfulqa", origin, {path: read_parquet(path)}, _from_hub)
    path = find_local(Path(source), LOCAL, "TruthfulQA")
    rows = read_csv(path, columns=COLUMNS)
    return build("truthfulqa", str(path), {path: rows}, _from_csv)


def _strings(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise BadRecord(f"{what} is not a list")
    return tuple(value)


def _from_sample(number: int, row: Mapping[str, Any], path: Path) -> Misconception:
    return Misconception(
        id=row["id"],
        question=row["question"],
        true=_strings(row["true"], "true"),
        false=_strings(row["false"], "false"),
        category=row["category"],
    )


def _official(number: int, row: tuple[str, str, str, list[str], list[str]]) -> Misconception:
    category, question, best, correct, incorrect = row
    best = best.strip()
    return Misconception(
        id=f"truthfulqa-{number}",
        question=question.strip(),
        # The best answer first; it is not always among the correct ones.
        true=tuple(dict.fromkeys([best, *(a.strip() for a in correct if a.strip())])),
        false=tuple(dict.fromkeys(a.strip() for a in incorrect if a.strip())),
        category=category,
    )


def _from_csv(number: int, row: Mapping[str, Any], path: Path) -> Misconception:
    return _official(
        number,
        (
            row["Category"],
            row["Question"],
            row["Best Answer"],
            row["Correct Answers"].split(";"),
            row["Incorrect Answers"].split(";"),
        ),
    )


def _from_hub(number: int, row: Mapping[str, Any], path: Path) -> Misconception:
    return _official(
        number,
        (
            row["category"],
            row["question"],
            row["best_answer"],
            list(_strings(row["correct_answers"], "correct_answers")),
            list(_strings(row["incorrect_answers"], "incorrect_answers")),
        ),
    )
