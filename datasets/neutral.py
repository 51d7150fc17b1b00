"""Neutral text, on which damage is measured: the WikiText-2 test set or the built-in sample."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import DataError
from .records import Passage
from .sources import (
    BUILTIN,
    HUB,
    DataSet,
    HubFile,
    build,
    fetch,
    find_local,
    read_jsonl,
    read_parquet,
    sample_file,
)

ON_HUB = HubFile(
    "Salesforce/wikitext",
    "b08601e04326c79dfdd32d625aee71d232d685c3",
    "wikitext-2-raw-v1/test-00000-of-00001.parquet",
)
LOCAL = ("wikitext2/wiki.test.raw", "wiki.test.raw")
WORDS = 80
"""Words in a passage cut from WikiText: about as many as a built-in one has."""


def load_neutral(source: str | Path = BUILTIN) -> DataSet[Passage]:
    """Passages from `builtin`, `hub`, or a local folder of official files.

    WikiText is cut into passages of 80 words that do not cross a heading; what is left over at the
    end of a section is no passage.

    Raises:
        DataError: missing or malformed data.
    """
    if source == BUILTIN:
        path = sample_file("neutral.jsonl")
        return build(
            "neutral",
            "built-in sample",
            {path: read_jsonl(path)},
            lambda number, row, place: Passage(row["id"], row["text"]),
        )
    if source == HUB:
        path, origin = fetch(ON_HUB), f"{ON_HUB.repo}@{ON_HUB.revision}"
        try:
            text = "".join(row["text"] for _, row in read_parquet(path))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} has no column 'text' of text; fetch it again") from error
    else:
        path = find_local(Path(source), LOCAL, "WikiText-2")
        origin = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text ({error})") from error
    passages = _passages(text)
    if not passages:
        raise DataError(f"{path}: no passage of {WORDS} words; give a longer text")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return DataSet("wikitext2", origin, digest, passages)


def _passages(text: str) -> tuple[Passage, ...]:
    found: list[Passage] = []
    words: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("= "):
            words = []
            continue
        words += line.split()
        while len(words) >= WORDS:
            found.append(Passage(f"wikitext-{len(found)}", " ".join(words[:WORDS])))
            words = words[WORDS:]
    return tuple(found)
