"""The documents of benchmarks as lm-evaluation-harness' tasks want them, from official files.

Each table is what the data set on the hub holds, column by column, as far as the task reads it.
Two are rebuilt from another form of the same data: WinoGrande's sentences are made of contexts that
hold the option already (the requests come out the same), and BoolQ's passages are without the title
that SuperGLUE's copy puts before them (so that its requests are not letter for letter the same).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..datasets import ifeval, neutral
from ..datasets.mmlu import COLUMNS
from ..datasets.multiple_choice import LETTERS, PRIMER, load_truthfulqa
from ..datasets.sources import find_local, read_csv, read_jsonl
from ..errors import DataError

Rows = list[dict[str, Any]]
Tables = dict[str, Rows]
"""Documents by split."""

LAMBADA = ("lambada/lambada_test.jsonl", "lambada_test.jsonl")
BOOLQ = ("benchmarks/boolq.jsonl", "boolq.jsonl")
WINOGRANDE = ("benchmarks/winogrande.jsonl", "winogrande.jsonl")
GSM8K = ("gsm8k/test.jsonl", "gsm8k_test.jsonl")
GSM8K_TRAIN = ("gsm8k/train.jsonl", "gsm8k_train.jsonl")


def truthfulqa(folder: Path) -> Tables:
    """TruthfulQA's multiple choice: both targets of every question."""
    both = [load_truthfulqa(folder, target).records for target in ("mc1", "mc2")]
    rows = []
    for one, many in zip(*both, strict=True):
        row: dict[str, Any] = {
            "question": one.context.removeprefix(f"{PRIMER}\n\nQ: ").removesuffix("\nA:")
        }
        for target, question in (("mc1", one), ("mc2", many)):
            row[f"{target}_targets"] = {
                "choices": [choice[1:] for choice in question.choices],
                "labels": list(question.labels),
            }
        rows.append(row)
    return {"validation": rows}


def mmlu_folder(folder: Path) -> Path:
    """Where MMLU's splits lie.

    Raises:
        DataError: not there.
    """
    for candidate in (folder / "mmlu", folder):
        if any((candidate / "test").glob("*_test.csv")):
            return candidate
    raise DataError(f"{folder} has no MMLU: looked for [mmlu/]test/SUBJECT_test.csv")


def mmlu(folder: Path, subject: str) -> Tables:
    """One subject of MMLU: its questions, and the five solved ones."""
    where = mmlu_folder(folder)
    return {
        split: _mmlu_rows(where / split / f"{subject}_{split}.csv", subject)
        for split in ("test", "dev")
    }


def _mmlu_rows(path: Path, subject: str) -> Rows:
    rows = []
    for number, row in read_csv(path, columns=COLUMNS, header=False):
        if row["answer"].strip() not in tuple(LETTERS):
            raise DataError(f"{path}:{number}: answer {row['answer']!r} is not one of {LETTERS}")
        # One dev file has line ends of another system.
        text = {name: value.replace("\r\n", "\n") for name, value in row.items()}
        rows.append(
            {
                "question": text["question"],
                "subject": subject,
                "choices": [text[letter] for letter in LETTERS],
                "answer": LETTERS.index(text["answer"].strip()),
            }
        )
    return rows


def instructions(folder: Path) -> Tables:
    """IFEval's prompts."""
    path = find_local(folder, ifeval.LOCAL, "IFEval")
    wanted = ("key", "prompt", "instruction_id_list", "kwargs")
    return {"train": _rows(path, lambda row: {name: row[name] for name in wanted})}


def gsm8k(folder: Path) -> Tables:
    """GSM8K's test questions, and those to learn from where they are at hand."""
    found = {"test": _rows(find_local(folder, GSM8K, "GSM8K"), _question_and_answer)}
    for candidate in GSM8K_TRAIN:
        if (folder / candidate).is_file():
            found["train"] = _rows(folder / candidate, _question_and_answer)
            break
    return found


def _question_and_answer(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"question": row["question"], "answer": row["answer"]}


def lambada(folder: Path) -> Tables:
    """LAMBADA's passages, OpenAI's variant."""
    path = find_local(folder, LAMBADA, "LAMBADA")
    return {"test": _rows(path, lambda row: {"text": row["text"]})}


def boolq(folder: Path) -> Tables:
    """BoolQ's passages and questions, the titles missing."""
    return {"validation": _rows(find_local(folder, BOOLQ, "BoolQ"), _boolq)}


def _boolq(row: Mapping[str, Any]) -> dict[str, Any]:
    passage, mark, question = row["query"].removeprefix("Passage: ").rpartition("\nQuestion: ")
    if not mark or not question.endswith("?") or list(row["choices"]) != ["no", "yes"]:
        raise ValueError("not `Passage: ... Question: ...?` with the choices no and yes")
    return {"passage": passage, "question": question[:-1], "label": int(row["gold"])}


def winogrande(folder: Path) -> Tables:
    """WinoGrande's sentences with a gap, and what may fill it."""
    return {"validation": _rows(find_local(folder, WINOGRANDE, "WinoGrande"), _winogrande)}


def _winogrande(row: Mapping[str, Any]) -> dict[str, Any]:
    # The contexts hold what stands before the gap; so they are the options, and nothing stands
    # before the gap.
    one, other = row["context_options"]
    return {
        "sentence": f"_ {row['continuation']}",
        "option1": one,
        "option2": other,
        "answer": str(int(row["gold"]) + 1),
    }


def wikitext(folder: Path) -> Tables:
    """WikiText-2's test set, article by article, cut where `wikitext_document_level` cuts it."""
    path = find_local(folder, neutral.LOCAL, "WikiText-2")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text ({error})") from error
    return {"test": [{"page": page} for page in articles(text)]}


def articles(text: str) -> list[str]:
    """Cut running WikiText before each heading of the first level (` = Title = `)."""
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        # Deeper headings are ` = = Title = = `.
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            if "".join(lines).strip():
                found.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [*found, "\n".join(lines)]


def _rows(path: Path, make: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Rows:
    rows = []
    for number, row in read_jsonl(path):
        try:
            rows.append(make(row))
        except KeyError as error:
            raise DataError(f"{path}:{number}: {error.args[0]!r} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}:{number}: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty")
    return rows
