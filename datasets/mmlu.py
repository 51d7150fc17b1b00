"""Facts: the MMLU test set (Hendrycks et al., arXiv 2009.03300) or the built-in sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .records import BadRecord, Fact
from .sources import (
    BUILTIN,
    HUB,
    DataSet,
    HubFile,
    build,
    fetch,
    read_csv,
    read_jsonl,
    read_parquet,
    sample_file,
)

ON_HUB = HubFile(
    "cais/mmlu",
    "c30699e8356da336a370243923dbaf21066bb9fe",
    "all/test-00000-of-00001.parquet",
)
LOCAL = ("mmlu/test", "test")
COLUMNS = ("question", "A", "B", "C", "D", "answer")


def load_facts(source: str | Path = BUILTIN) -> DataSet[Fact]:
    """Facts from `builtin`, `hub`, or a local folder of official files.

    Raises:
        DataError: missing or malformed data, with file and line.
    """
    if source == BUILTIN:
        path = sample_file("facts.jsonl")
        return build("facts", "built-in sample", {path: read_jsonl(path)}, _from_sample)
    if source == HUB:
        path = fetch(ON_HUB)
        origin = f"{ON_HUB.repo}@{ON_HUB.revision}"
        return build("mmlu", origin, {path: read_parquet(path)}, _from_hub)
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"no such data folder: {folder}; give a folder, {BUILTIN!r} or {HUB!r}")
    for candidate in LOCAL:
        files = sorted((folder / candidate).glob("*_test.csv"))
        if files:
            rows = {path: read_csv(path, columns=COLUMNS, header=False) for path in files}
            return build("mmlu", str(folder / candidate), rows, _from_csv)
    wanted = ", ".join(f"{candidate}/SUBJECT_test.csv" for candidate in LOCAL)
    raise DataError(f"{folder} has no MMLU: looked for {wanted}")


def _from_sample(number: int, row: Mapping[str, Any], path: Path) -> Fact:
    if not isinstance(row["choices"], list):
        raise BadRecord("choices is not a list")
    return Fact(row["id"], row["question"], tuple(row["choices"]), row["answer"], row["subject"])


def _from_hub(number: int, row: Mapping[str, Any], path: Path) -> Fact:
    choices = tuple(choice.strip() for choice in row["choices"])
    return Fact(f"mmlu-{number}", row["question"].strip(), choices, row["answer"], row["subject"])


def _from_csv(number: int, row: Mapping[str, Any], path: Path) -> Fact:
    letter = row["answer"].strip()
    if letter not in {"A", "B", "C", "D"}:
        raise BadRecord(f"answer {letter!r} is not one of A, B, C, D")
    subject = path.name.removesuffix("_test.csv")
    return Fact(
        id=f"{subject}-{number}",
        question=row["question"].strip(),
        choices=tuple(row[name].strip() for name in "ABCD"),
        answer="ABCD".index(letter),
        subject=subject,
    )
