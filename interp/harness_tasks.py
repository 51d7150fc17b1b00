"""Tasks of lm-evaluation-harness on local official data: its prompts and metrics, no hub.

Every task is the harness' own definition (0.4.13), of which nothing but the origin of its documents
is exchanged; see `harness_tables`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..datasets.sources import HUB
from ..errors import DataError, UsageError, nearest
from . import harness_tables as tables

if TYPE_CHECKING:
    from lm_eval.api.task import Task

SHOTS = 5
"""Solved examples before a question of MMLU or GSM8K."""
FEWSHOT_SEED = 1234
"""The harness' own; only tasks that draw their examples have a use for it."""


@dataclass(frozen=True)
class LocalTask:
    """A task that local data suffices for.

    Attributes:
        folder: where the harness keeps its definition.
        read: makes its documents of the data folder.
        metrics: what it reports, the first being the one to look at.
        about: in a line, with what is not as on the hub.
        base: the harness' name of the task, if it is another.
        changes: entries of the definition that are exchanged.
    """

    folder: str
    read: Callable[..., tables.Tables]
    metrics: tuple[str, ...]
    about: str
    base: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()


IFEVAL_METRICS = (
    "prompt_level_strict_acc",
    "inst_level_strict_acc",
    "prompt_level_loose_acc",
    "inst_level_loose_acc",
)
_NO_TRAINING = ("training_split", None)

TASKS: dict[str, LocalTask] = {
    "truthfulqa_mc1": LocalTask(
        "truthfulqa", tables.truthfulqa, ("acc",), "TruthfulQA, the one right answer of several"
    ),
    "truthfulqa_mc2": LocalTask(
        "truthfulqa", tables.truthfulqa, ("acc",), "TruthfulQA, the right answers' probability"
    ),
    "mmlu": LocalTask(
        "mmlu/default", tables.mmlu, ("acc",), "MMLU, 57 subjects, each a task of its own; 5 shots"
    ),
    "ifeval": LocalTask(
        "ifeval", tables.instructions, IFEVAL_METRICS, "IFEval, checked offline (`ifeval_check`)"
    ),
    "gsm8k": LocalTask(
        "gsm8k",
        tables.gsm8k,
        ("exact_match",),
        "GSM8K, 5 shots drawn from gsm8k/train.jsonl, which must be there",
    ),
    "gsm8k_cot": LocalTask(
        "gsm8k", tables.gsm8k, ("exact_match",), "GSM8K after the harness' eight worked examples"
    ),
    "gsm8k_local": LocalTask(
        "gsm8k",
        tables.gsm8k,
        ("exact_match",),
        "GSM8K's prompt without a shot: for folders without gsm8k/train.jsonl; not `gsm8k`",
        base="gsm8k",
        changes=(_NO_TRAINING, ("fewshot_split", None), ("num_fewshot", 0)),
    ),
    "wikitext": LocalTask(
        "wikitext",
        tables.wikitext,
        ("word_perplexity", "byte_perplexity", "bits_per_byte"),
        "WikiText-2, whole articles in rolling windows",
        changes=(_NO_TRAINING, ("validation_split", None)),
    ),
    "lambada_openai": LocalTask(
        "lambada", tables.lambada, ("acc", "perplexity"), "LAMBADA, the last word of a passage"
    ),
    "boolq": LocalTask(
        "super_glue/boolq",
        tables.boolq,
        ("acc",),
        "BoolQ, yes or no; passages without the titles that the hub's have",
        changes=(_NO_TRAINING,),
    ),
    "winogrande": LocalTask(
        "winogrande",
        tables.winogrande,
        ("acc",),
        "WinoGrande, which of two words fills the gap",
        changes=(_NO_TRAINING,),
    ),
}
"""Tasks by name; `mmlu_SUBJECT` is one subject of `mmlu`."""


def local_tasks(
    names: Sequence[str], data: str | Path, *, num_fewshot: int | None = None
) -> list[Task]:
    """The harness' tasks on local official files, ready for `simple_evaluate` and `evaluate`.

    Args:
        names: of `TASKS`; `mmlu` stands for its 57 subjects, in the harness' order of names.
        data: a folder of official files, or `hub` for the harness' own sources (any task of the
            harness then).
        num_fewshot: solved examples, in place of the task's own number, where the task has examples
            at hand (`mmlu`, `gsm8k`, `gsm8k_cot`); as in the harness others stay at none.

    Raises:
        UsageError: an unknown task.
        DataError: the data are not in the folder, or malformed.
    """
    from .harness import quiet

    names = expand(names, data)
    if num_fewshot is not None and num_fewshot < 0:
        raise UsageError(f"num-fewshot {num_fewshot}: at least 0 is needed")
    with quiet():
        if str(data) == HUB:
            found = _from_hub(names, num_fewshot)
        else:
            found = _from_folder(names, Path(data), num_fewshot)
    for task in found:
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
    return found


def expand(names: Iterable[str], data: str | Path) -> list[str]:
    """Names of single tasks: `mmlu` becomes the subjects that the folder has, doubles go.

    Raises:
        UsageError: an unknown task.
        DataError: MMLU is asked for and not there.
    """
    if str(data) == HUB:
        return list(dict.fromkeys(names))
    found: dict[str, None] = {}
    for name in names:
        if name == "mmlu":
            test = tables.mmlu_folder(Path(data)) / "test"
            subjects = sorted(p.name.removesuffix("_test.csv") for p in test.glob("*_test.csv"))
            found |= {f"mmlu_{subject}": None for subject in subjects}
        elif name in TASKS or name.startswith("mmlu_"):
            found[name] = None
        else:
            raise UsageError(
                f"unknown task {name!r}{nearest(name, TASKS)}; allowed are {', '.join(TASKS)}, "
                "mmlu_SUBJECT; others need the hub (--data hub)"
            )
    return list(found)


def floor(task: Task) -> dict[str, float]:
    """What an answerer that knows nothing gets, by metric, where it can be reckoned.

    Multiple choice: each answer as likely as the next (of MC2 the share of right ones); BoolQ:
    the commoner answer always, which knows its share; GSM8K: 0. IFEval's is what an answer without
    content gets (`ifeval_check.contentless`); LAMBADA and perplexities have none.
    """
    name = str(task.get_config("task"))
    documents: Any = task.eval_docs
    if name.startswith("truthfulqa_mc"):
        targets = documents[f"{name.removeprefix('truthfulqa_')}_targets"]
        return {"acc": _mean(_mean(target["labels"]) for target in targets)}
    if name.startswith("mmlu_"):
        return {"acc": 1 / 4}
    if name == "boolq":
        yes = _mean(documents["label"])
        return {"acc": max(yes, 1 - yes)}
    if name == "winogrande":
        return {"acc": 1 / 2}
    return {"exact_match": 0.0} if name.startswith("gsm8k") else {}


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _definitions(folder: str) -> Any:
    """A manager that knows the definitions in one of the harness' folders: to read all of them
    takes many seconds."""
    import lm_eval.tasks

    where = Path(lm_eval.tasks.__file__).parent / folder
    return lm_eval.tasks.TaskManager(include_path=str(where), include_defaults=False)


def _from_folder(names: Sequence[str], folder: Path, shots: int | None) -> list[Task]:
    source = _Source(folder)
    managers: dict[str, Any] = {}
    found = []
    for name in names:
        local = _local(name)
        changes: dict[str, Any] = {}
        has_shots = local.read in (tables.mmlu, tables.gsm8k) and name != "gsm8k_local"
        if has_shots and (shots is not None or local.read is tables.mmlu):
            changes["num_fewshot"] = SHOTS if shots is None else shots
        if local.folder not in managers:
            managers[local.folder] = _definitions(local.folder)
        found.append(_made(managers[local.folder], name, source, changes))
    return found


def _local(name: str) -> LocalTask:
    return TASKS["mmlu" if name.startswith("mmlu_") else name]


class _Source:
    """The documents in a folder, each file read once."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"no such data folder: {folder}; give a folder or {HUB!r}")
        self.folder = folder
        self._read: dict[Callable[..., tables.Tables], Any] = {}

    def documents(self, name: str) -> Any:
        """Of a task, by split, as the harness' library of data sets keeps them."""
        from datasets import Dataset, DatasetDict

        local = _local(name)
        if local.read not in self._read:
            if local.read is tables.mmlu:
                rows = tables.mmlu(self.folder, name.removeprefix("mmlu_"))
            else:
                rows = local.read(self.folder)
            made = DatasetDict({split: Dataset.from_list(found) for split, found in rows.items()})
            if local.read is tables.mmlu:  # each subject is read once anyway
                return made
            self._read[local.read] = made
        return self._read[local.read]

    def has_subject(self, name: str) -> bool:
        """Whether a task is a subject of MMLU that is here (others are called so, too)."""
        if not name.startswith("mmlu_"):
            return False
        path = Path("test") / f"{name.removeprefix('mmlu_')}_test.csv"
        return any((folder / path).is_file() for folder in (self.folder / "mmlu", self.folder))

    def changes(self, name: str, documents: Any, shots: int | None) -> dict[str, Any]:
        """What of the definition must change, shots (None: its own number) considered."""
        changes = dict(_local(name).changes)
        if name == "gsm8k" and "train" not in documents:
            if shots != 0:
                raise DataError(
                    f"gsm8k: its shots come from {self.folder / tables.GSM8K_TRAIN[0]}, which is "
                    "not there; put it there, or take gsm8k_cot (its own examples) or gsm8k_local "
                    "(none)"
                )
            changes |= dict(TASKS["gsm8k_local"].changes)
        if name == "ifeval":
            from .ifeval_check import process_results

            changes["process_results"] = process_results
        return changes


def _made(manager: Any, name: str, source: _Source, changes: dict[str, Any]) -> Task:
    entry = manager.task_index.get(_local(name).base or name)
    if entry is None:
        raise UsageError(f"unknown task {name!r}: the harness has no such definition")
    if name == "ifeval":
        from .ifeval_check import load_checker

        load_checker()  # before the task's own import of it goes to the network
    documents = source.documents(name)
    changes |= source.changes(name, documents, changes.get("num_fewshot"))
    given = {"task": name, "custom_dataset": lambda **_: documents, "dataset_path": None}
    # The entry as it is, under another name and with other documents.
    task = manager._factory.build(entry, overrides=given | changes, registry=manager.task_index)
    # The results quote the definition: say where the documents are from, not how they came here.
    task.set_config("custom_dataset", None)
    task.set_config("dataset_path", str(source.folder))
    return task


@contextmanager
def local_documents(data: str | Path) -> Iterator[None]:
    """Within the block the harness' own tasks, asked for by name or group, find their documents in
    a folder where they are among `TASKS`; others go to the hub as ever.

    For the harness' command; a definition's own number of shots holds.

    Raises:
        DataError: the folder, or later a task's data in it, is missing or malformed.
    """
    from lm_eval.api import task as harness

    source, kind = _Source(Path(data)), cast(Any, harness.ConfigurableTask)
    before = kind.download

    def download(task: Any, *given: Any, **options: Any) -> None:
        name = str(task.config.task)
        if name not in TASKS and not source.has_subject(name):
            before(task, *given, **options)
            return
        task.dataset = source.documents(name)
        for key, value in source.changes(name, task.dataset, None).items():
            setattr(task.config, key, value)
        task.config.dataset_path = str(source.folder)

    kind.download = download
    try:
        yield
    finally:
        kind.download = before


def _from_hub(names: Sequence[str], shots: int | None) -> list[Task]:
    from lm_eval.tasks import TaskManager

    if "ifeval" in names:
        from .ifeval_check import load_checker

        load_checker()
    manager = TaskManager()
    try:
        found = list(manager.load(list(names))["tasks"].values())
    except (KeyError, ValueError) as error:
        raise UsageError(f"the harness cannot make these tasks ({error})") from error
    except Exception as error:  # the hub's client raises a dozen kinds
        raise DataError(
            f"the data of {', '.join(names)} cannot be had from the hub ({type(error).__name__}); "
            "check the network, or give a local folder with --data"
        ) from error
    for task in found:
        own = task.get_config("num_fewshot")
        if str(task.get_config("task")).startswith("mmlu_"):
            own = SHOTS if own is None else own
            task.set_config("num_fewshot", own)
        if shots is not None and own != 0:
            task.set_config("num_fewshot", shots)
    return found
