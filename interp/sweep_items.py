"""Items of lm-eval's tasks: asked of a model a few at a time, with every item's result kept.

lm-eval's own evaluator builds all requests of a task anew for every model and gives results when
the last is answered. Here they are built once, by the same task objects and in the same order, so
that prompts are equal; and any number of items can be answered at a time. Filters, metrics and
their aggregation are the task's own. A test holds both ways to the same numbers.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DataError, UsageError

if TYPE_CHECKING:
    import polars

    from ..prune.compensation import Calibration, Method
    from ..prune.selection import NeuronSet
    from .harness import GlulensLM
    from .sweep_points import Point

TOGETHER = (("truthfulqa_mc1", "truthfulqa_mc2"),)
"""Tasks that put the same questions, so that answers to both are scored at once."""
JOINT = "+"
"""Between the names of tasks that are asked together."""
CHUNK = {"multiple_choice": 64, "loglikelihood": 128, "loglikelihood_rolling": 8}
"""Items that are answered and kept at a time, by kind of request; 16 where answers are generated.
What a batch holds depends on it, and so do the last digits of what comes out."""
_GENERATED = 16
_FEWSHOT_SEED = 1234
"""lm-eval's own."""


class Item(NamedTuple):
    """One item with its requests, and which of the task's leaves put it."""

    leaf: int
    doc: Any
    requests: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class AskedTask:
    """A task as the user named it, with the items to be asked.

    Attributes:
        name: `mmlu`, `truthfulqa_mc1`, ...
        leaves: lm-eval's task objects: MMLU has one a subject, others are one.
        items: by `doc_id`, in order. It counts the items of all leaves, drawn or not.
        drawn: of each leaf, the indices of its items that are asked.
        chunks: doc_ids that are answered together.
    """

    name: str
    leaves: tuple[Any, ...]
    items: Mapping[int, Item]
    drawn: tuple[tuple[int, ...], ...]
    chunks: tuple[tuple[int, ...], ...]

    @property
    def kind(self) -> str:
        """`multiple_choice`, `loglikelihood`, `loglikelihood_rolling` or `generate_until`."""
        return str(self.leaves[0].OUTPUT_TYPE)


class SweepState:
    """A loaded model and the items to ask it: all that a unit of work needs.

    Attributes:
        lm: the model as lm-eval wants it.
        tasks: by name.
        method: what makes up for neurons that go (see `prune.compensation`).
    """

    def __init__(self, lm: GlulensLM, tasks: dict[str, AskedTask], method: Method = "none") -> None:
        self.lm = lm
        self.tasks = tasks
        self.method: Method = method
        self._undo = ExitStack()
        self._at: Point | None = None
        self._calibration: Calibration | None = None

    def go_to(self, point: Point) -> None:
        """Make the model that of a point, if it is not already."""
        if point is self._at:
            return
        self.restore()
        if point.cut is not None and self.method != "none":
            self._undo.enter_context(self._compensated(point.cut))
        self.lm.set_cut(point.cut)
        self._at = point

    def restore(self) -> None:
        """Make the model what it was."""
        self._undo.close()
        self.lm.set_cut(None)
        self._at = None

    def _compensated(self, cut: NeuronSet) -> Any:
        from ..datasets.neutral import load_neutral
        from ..prune.compensation import Calibration, compensated

        opened = self.lm.opened
        if self._calibration is None:  # the intact model's, for all cuts
            texts = [passage.text for passage in load_neutral().records]
            self._calibration = Calibration.of(opened, texts)
        corrections = self._calibration.corrections(cut, self.method)
        return compensated(opened.model, cut, corrections)


class Found(NamedTuple):
    """What a unit of work gives: items [task, subtask, doc_id, metric, form, value, weight] and
    answers [task, subtask, doc_id, ...] (see `SweepResult`), both without the point."""

    items: polars.DataFrame
    answers: polars.DataFrame


class Unit(NamedTuple):
    """A unit of work: some items of a task (or of several that are asked together), one point."""

    point: int
    task: str
    chunk: int
    doc_ids: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name among the files of an unfinished run."""
        return f"{self.point:04d}-{self.task}-{self.chunk:05d}"


def ask(
    name: str,
    leaves: Sequence[Any],
    lm: Any,
    *,
    limit: int | None = None,
    pick: str = "random",
    chat: bool = False,
    seed: int = 0,
) -> AskedTask:
    """Draw a task's items and build their requests, as lm-eval does.

    Args:
        leaves: lm-eval's task objects.
        limit: items of every leaf.
        pick: `random`, or `first`, as lm-eval's own limit.
        chat: put prompts through the chat template.

    Raises:
        DataError: a leaf without items.
    """
    items: dict[int, Item] = {}
    all_drawn = []
    first = 0
    for place, leaf in enumerate(leaves):
        leaf.set_fewshot_seed(seed=_FEWSHOT_SEED)
        size = len(leaf.eval_docs)
        drawn = _draw(size, limit, pick, seed)
        all_drawn.append(tuple(drawn))
        if not drawn:
            raise DataError(f"task {leaf.task_name} has no items")
        given: dict[str, Any] = {"samples": drawn if len(drawn) < size else None}
        if chat:
            given |= {
                "apply_chat_template": True,
                "fewshot_as_multiturn": True,
                "chat_template": lm.apply_chat_template,
                "tokenizer_name": lm.tokenizer_name,
            }
        with redirect_stderr(io.StringIO()):  # its bars
            leaf.build_all_requests(**given)
        requests: dict[int, list[Any]] = {}
        for instance in leaf.instances:
            requests.setdefault(instance.doc_id, []).append(instance)
        for number, found in requests.items():
            ordered = tuple(sorted(found, key=lambda instance: instance.idx))
            items[first + drawn[number]] = Item(place, ordered[0].doc, ordered)
        first += size
    chunk = CHUNK.get(str(leaves[0].OUTPUT_TYPE), _GENERATED)
    ids = list(items)
    chunks = tuple(tuple(ids[at : at + chunk]) for at in range(0, len(ids), chunk))
    return AskedTask(name, tuple(leaves), items, tuple(all_drawn), chunks)


def _draw(size: int, limit: int | None, pick: str, seed: int) -> list[int]:
    """Indices of the items to ask, ascending; the same for tasks of the same size."""
    if limit is None or limit >= size:
        return list(range(size))
    if pick == "first":
        return list(range(limit))
    if pick != "random":
        raise UsageError(f"pick {pick!r}; allowed are random, first")
    return sorted(np.random.default_rng([seed, size]).permutation(size)[:limit].tolist())


def units(points: int, tasks: Mapping[str, AskedTask]) -> list[Unit]:
    """All work of a sweep: point by point, task by task."""
    jobs = list(_jobs(tasks))
    return [
        Unit(point, name, number, chunk)
        for point in range(points)
        for name, chunks in jobs
        for number, chunk in enumerate(chunks)
    ]


def _jobs(tasks: Mapping[str, AskedTask]) -> Iterator[tuple[str, tuple[tuple[int, ...], ...]]]:
    done: set[str] = set()
    for name, task in tasks.items():
        if name in done:
            continue
        joint = [name]
        for group in TOGETHER:
            if name in group:
                # Other data, or other limits, and they are no longer the same questions.
                joint = [n for n in group if n in tasks and tasks[n].chunks == task.chunks]
        done.update(joint)
        yield JOINT.join(joint), task.chunks


def run_unit(state: SweepState, point: Point, task: str, doc_ids: Sequence[int]) -> Found:
    """Answer some items of a task by the model of a point.

    Pure given the loaded model: whoever runs it gets the same, up to rounding that differs between
    machines and numbers of threads.

    Args:
        task: a task's name, or several joined by `+`.
        doc_ids: which items, in order.
    """
    state.go_to(point)
    asked = [state.tasks[name] for name in task.split(JOINT)]
    requests = [r for one in asked for doc_id in doc_ids for r in one.items[doc_id].requests]
    about = _respond(state.lm, requests)
    items: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for one in asked:
        _filter(one, doc_ids)
        for doc_id in doc_ids:
            item = one.items[doc_id]
            leaf = one.leaves[item.leaf]
            keys = {"task": one.name, "subtask": leaf.task_name, "doc_id": doc_id}
            for metric, value in _metrics(leaf, item):
                items += [keys | row for row in _rows(metric, value, item.doc)]
            answers.append(keys | _answer(one.kind, item, about))
    return Found(frame(items, ITEMS), frame(answers, ANSWERS))


def _respond(lm: Any, requests: Sequence[Any]) -> dict[int, Any]:
    """Put all requests to the model, those of a kind together.

    Returns:
        What became of generated answers (`harness_generate.Generated`), by the request's identity.
    """
    kinds: dict[str, list[Any]] = {}
    for request in requests:
        request.resps, request.filtered_resps = [], {}
        kinds.setdefault(request.request_type, []).extend([request] * (request.repeats or 1))
    about: dict[int, Any] = {}
    for kind, put in kinds.items():
        for request, answer in zip(put, getattr(lm, kind)(put, disable_tqdm=True), strict=True):
            request.resps.append(answer)
        if kind == "generate_until":
            about |= {id(r): said for r, said in zip(put, lm.generated, strict=True)}
    return about


def _filter(asked: AskedTask, doc_ids: Sequence[int]) -> None:
    """Run the tasks' filters, which see all requests of a leaf at once."""
    by_leaf: dict[int, list[Any]] = {}
    for doc_id in doc_ids:
        item = asked.items[doc_id]
        by_leaf.setdefault(item.leaf, []).extend(item.requests)
    for place, requests in by_leaf.items():
        for ensemble in asked.leaves[place]._filters:
            ensemble.apply(requests)


def _metrics(leaf: Any, item: Item) -> Iterator[tuple[str, Any]]:
    for key in item.requests[0].filtered_resps:
        found = leaf.process_results(item.doc, [r.filtered_resps[key] for r in item.requests])
        for metric, value in found.items():
            yield metric if key == "none" else f"{metric},{key}", value


def _rows(metric: str, value: Any, doc: Any) -> Iterator[dict[str, Any]]:
    """An item's metric as rows: a number, a sum over parts (sum, parts), or a value a part."""

    def row(name: str, form: str, number: float, weight: float) -> dict[str, Any]:
        return {"metric": name, "form": form, "value": float(number), "weight": float(weight)}

    if isinstance(value, bool | int | float | np.number | np.bool_):
        yield row(metric, "number", float(value), 1)
    elif isinstance(value, tuple) and len(value) == 2:
        yield row(metric, "pair", value[0] / value[1], value[1])
    elif isinstance(value, list) and value:
        yield row(metric, "list", float(np.mean(value)), len(value))
        kinds = doc.get("instruction_id_list") if isinstance(doc, Mapping) else None
        if kinds is not None and len(kinds) == len(value):
            for kind in dict.fromkeys(kinds):
                part = [v for v, k in zip(value, kinds, strict=True) if k == kind]
                yield row(f"{metric}:{kind}", "list", float(np.mean(part)), len(part))
    else:
        raise DataError(f"metric {metric} gives {value!r:.60}, which is neither number nor numbers")


def _answer(kind: str, item: Item, about: Mapping[int, Any]) -> dict[str, Any]:
    found = [request.resps[0] for request in item.requests]
    if kind == "generate_until":
        text = str(found[0])
        said = about[id(item.requests[0])]
        return {
            "text": text,
            "answer_tokens": said.tokens,
            "answer_characters": len(text),
            "ended": said.ended,
        }
    if kind == "loglikelihood_rolling":
        return {"loglikelihoods": [_first(answer) for answer in found]}
    return {
        "loglikelihoods": [float(answer[0]) for answer in found],
        "greedy": [bool(answer[1]) for answer in found],
    }


def _first(answer: Any) -> float:
    return float(answer[0] if isinstance(answer, tuple | list) else answer)


ITEMS = {
    "task": "String",
    "subtask": "String",
    "doc_id": "Int32",
    "metric": "String",
    "form": "String",
    "value": "Float64",
    "weight": "Float64",
}
ANSWERS = {
    "task": "String",
    "subtask": "String",
    "doc_id": "Int32",
    "loglikelihoods": "Float64*",
    "greedy": "Boolean*",
    "text": "String",
    "answer_tokens": "Int32",
    "answer_characters": "Int32",
    "ended": "Boolean",
}
"""Columns and their polars types; a star makes lists."""


def frame(rows: Sequence[Mapping[str, Any]], schema: Mapping[str, str]) -> polars.DataFrame:
    """Rows as a table of fixed types."""
    import polars

    def kind(name: str) -> Any:
        found = getattr(polars, name.rstrip("*"))
        return polars.List(found) if name.endswith("*") else found

    return polars.DataFrame(list(rows), schema={name: kind(of) for name, of in schema.items()})


def pack(found: Found) -> dict[str, np.ndarray]:
    """A unit's tables as arrays of bytes, for `Stages`."""

    def packed(table: polars.DataFrame) -> np.ndarray:
        file = io.BytesIO()
        table.write_ipc(file)
        return np.frombuffer(file.getvalue(), np.uint8)

    return {"items": packed(found.items), "answers": packed(found.answers)}


def unpack(arrays: Mapping[str, np.ndarray]) -> Found:
    """What `pack` packed."""
    import polars

    def table(name: str) -> polars.DataFrame:
        return polars.read_ipc(io.BytesIO(arrays[name].tobytes()))

    return Found(table("items"), table("answers"))


def floor_of(task: AskedTask) -> dict[str, float]:
    """What an answerer that knows nothing gets of the items that are asked, by metric, where it can
    be reckoned (see `harness_tasks.floor`)."""
    from .harness_tasks import floor

    if task.name == "ifeval":
        return _contentless(task)
    total: dict[str, float] = {}
    for leaf, drawn in zip(task.leaves, task.drawn, strict=True):
        some: Any = SimpleNamespace(
            get_config=leaf.get_config, eval_docs=leaf.eval_docs.select(drawn)
        )
        for metric, value in floor(some).items():
            total[metric] = total.get(metric, 0.0) + value * len(drawn)
    return {metric: value / len(task.items) for metric, value in total.items()}


def _contentless(task: AskedTask) -> dict[str, float]:
    """IFEval's metrics of an answer without content."""
    from .ifeval_check import CONTENTLESS

    sums: dict[str, list[float]] = {}
    for item in task.items.values():
        found = task.leaves[item.leaf].process_results(item.doc, [CONTENTLESS])
        for metric, value in found.items():
            for row in _rows(metric, value, item.doc):
                total = sums.setdefault(row["metric"], [0.0, 0.0])
                total[0] += row["value"] * row["weight"]
                total[1] += row["weight"]
    return {metric: right / of for metric, (right, of) in sums.items()}


def fingerprint(tasks: Mapping[str, AskedTask]) -> dict[str, str]:
    """A hash by task of all that is asked: requests, and what their answers are held to."""
    found = {}
    for name, task in tasks.items():
        digest = hashlib.blake2b(digest_size=16)
        for doc_id, item in task.items.items():
            parts = [doc_id, [request.args for request in item.requests], item.doc]
            digest.update(json.dumps(parts, sort_keys=True, default=str).encode())
        found[name] = digest.hexdigest()
    return found
