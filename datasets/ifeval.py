"""Instructions: IFEval prompts (Zhou et al., arXiv 2311.07911) or the built-in sample."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .records import BadRecord, Instruction
from .sources import (
    BUILTIN,
    HUB,
    DataSet,
    HubFile,
    build,
    fetch,
    find_local,
    read_jsonl,
    sample_file,
)

ON_HUB = HubFile(
    "google/IFEval",
    "966cd89545d6b6acfd7638bc708b98261ca58e84",
    "ifeval_input_data.jsonl",
)
LOCAL = ("ifeval/input_data.jsonl", "input_data.jsonl", "ifeval_input_data.jsonl")


def load_instructions(source: str | Path = BUILTIN) -> DataSet[Instruction]:
    """Instructions from `builtin`, `hub`, or a local folder of official files.

    Raises:
        DataError: missing or malformed data, with file and line.
    """
    if source == BUILTIN:
        path = sample_file("instructions.jsonl")
        return build("instructions", "built-in sample", {path: read_jsonl(path)}, _from_sample)
    if source == HUB:
        path = fetch(ON_HUB)
        origin = f"{ON_HUB.repo}@{ON_HUB.revision}"
    else:
        path = find_local(Path(source), LOCAL, "IFEval")
        origin = str(path)
    return build("ifeval", origin, {path: read_jsonl(path)}, _official)


def _ids_and_kwargs(
    ids: object, kwargs: object
) -> tuple[tuple[str, ...], tuple[dict[str, Any], ...]]:
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise BadRecord("the instruction ids are not a list of text")
    if not isinstance(kwargs, list) or not all(isinstance(entry, dict) for entry in kwargs):
        raise BadRecord("kwargs is not a list of objects")
    # The hub's copy spells out every argument that an instruction does not have, as null.
    given = tuple({k: v for k, v in entry.items() if v is not None} for entry in kwargs)
    return tuple(ids), given


def _official(number: int, row: Mapping[str, Any], path: Path) -> Instruction:
    ids, kwargs = _ids_and_kwargs(row["instruction_id_list"], row["kwargs"])
    return Instruction(f"ifeval-{row['key']}", row["prompt"], ids, kwargs)


def _from_sample(number: int, row: Mapping[str, Any], path: Path) -> Instruction:
    ids, kwargs = _ids_and_kwargs(row["instruction_ids"], row["kwargs"])
    return Instruction(
        row["id"],
        row["prompt"],
        ids,
        kwargs,
        request=row["request"],
        compliant=row["compliant"],
        noncompliant=row["noncompliant"],
    )
