"""A model in a child process: what it answers, and what becomes of a child that misbehaves."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import make, save_tokenizer

from glulens.errors import DataError, ModelError
from glulens.interp.live import ROWS, TOP, Answerer, main, serve
from glulens.prune.mlps import find_mlps
from glulens.prune.models import ModelSource, OpenedModel
from glulens.prune.selection import NeuronSet
from glulens.tui.live import Answer, Live, Question

TEXT = "Once upon a time there was a little girl"
SERVE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from stories import open_stories
from glulens.interp.live import Answerer, serve
serve(Answerer(open_stories(Path({data!r}))), sys.stdin.buffer, sys.stdout.buffer)
"""
PATIENCE = 100.0
"""Seconds that a test waits before it fails: machines are busy."""


@pytest.fixture(scope="module")
def live(official) -> Iterator[Live]:
    """stories260k in a child. Shared: its tests leave it alive."""
    code = SERVE.format(tests=str(Path(__file__).parent), data=str(official / "stories260k"))
    with Live("stories260k", neurons=860, command=[sys.executable, "-c", code]) as found:
        yield found


def ask(live: Live, *given: Any, **fields: Any) -> Answer:
    return live.ask(Question(*given, **fields)).result(PATIENCE)


def script(body: str) -> list[str]:
    """A child that says it is ready and then does something else."""
    about = {"name": "x", "family": "llama", "neurons": 4, "layers": 2, "context": 8}
    head = f"import json, sys, time\nprint({json.dumps({'ready': about})!r}, flush=True)\n"
    return [sys.executable, "-c", head + body]


def seen(stories: OpenedModel, text: str, cut: dict[int, float] | None = None) -> Any:
    """Activations [tokens, neurons] and next-token probabilities, by hooks of the test's own."""
    ids = torch.tensor([stories.tokenizer(text)["input_ids"]])
    found, undo = [], []
    first = 0
    for mlp in find_mlps(stories.model):
        part = {row - first: v for row, v in (cut or {}).items() if 0 <= row - first < mlp.width}

        def hook(module: Any, args: Any, part: Any = part) -> Any:
            rows = args[0].clone()
            for neuron, value in part.items():
                rows[:, 0 if value == 0 else slice(1, None), neuron] = value
                if value == 0:
                    rows[:, :, neuron] = 0
            found.append(rows[0])
            return (rows,)

        assert mlp.down is not None
        undo.append(mlp.down.register_forward_pre_hook(hook))
        first += mlp.width
    logits = stories.model(ids).logits[0, -1]
    for one in undo:
        one.remove()
    return torch.cat(found, 1), logits.softmax(0), ids[0].tolist()


def test_it_says_what_the_model_did(live, stories):
    assert live.ready.result(PATIENCE).neurons == 860
    rows = [3, 859, 172, 3]
    answer = ask(live, TEXT, rows=rows, top=12)
    whole, chances, ids = seen(stories, TEXT)
    assert list(answer.ids) == ids
    assert "".join(answer.tokens).strip() == TEXT
    np.testing.assert_allclose(answer.activations, whole[:, rows], rtol=1e-4, atol=1e-6)
    order = whole.abs().argsort(dim=1, descending=True)[:, :12]
    np.testing.assert_allclose(answer.top_values, whole.gather(1, order), rtol=1e-4, atol=1e-6)
    taken = whole.gather(1, torch.from_numpy(answer.top_rows.astype(np.int64)))
    np.testing.assert_allclose(taken, answer.top_values, rtol=1e-4, atol=1e-6)
    layers = whole.unflatten(1, (5, 172)).square().mean(2).sqrt()
    np.testing.assert_allclose(answer.layers, layers, rtol=1e-4)
    best = chances.topk(10)
    assert [one.token for one in answer.next] == best.indices.tolist()
    np.testing.assert_allclose([n.probability for n in answer.next], best.values, rtol=1e-4)
    assert answer.next[0].text == stories.tokenizer.decode([answer.next[0].token])


def test_one_layer_is_ranked_alone(live, stories):
    answer = ask(live, TEXT, layer=2, top=TOP)
    assert answer.top_rows.shape == (len(answer.ids), TOP)
    assert answer.top_rows.min() >= 2 * 172
    assert answer.top_rows.max() < 3 * 172
    size = np.abs(answer.top_values)
    assert (np.diff(size, axis=1) <= 0).all()
    whole, _, _ = seen(stories, TEXT)
    np.testing.assert_allclose(size[:, 0], whole[:, 344:516].abs().amax(1), rtol=1e-4)


@pytest.mark.parametrize("value", [None, 0.75])
def test_neurons_are_silenced_as_pruning_or_means_do(live, stories, value):
    rows = list(range(100, 300))
    intact = ask(live, TEXT, rows=[100, 500])
    values = None if value is None else [value] * len(rows)
    answer = ask(live, TEXT, rows=[100, 500], silence=rows, values=values)
    whole, chances, _ = seen(stories, TEXT, dict.fromkeys(rows, value or 0))
    np.testing.assert_allclose(answer.activations, whole[:, [100, 500]], rtol=1e-3, atol=1e-5)
    assert (answer.activations[1:, 0] == (value or 0)).all()
    assert (answer.activations[0, 0] == intact.activations[0, 0]) == (value is not None)
    found = {one.token: one.probability for one in answer.next}
    np.testing.assert_allclose([*found.values()], chances[[*found]], rtol=1e-3)
    assert found != {one.token: one.probability for one in intact.next}
    again = ask(live, TEXT, rows=[100, 500])
    assert (again.activations == intact.activations).all()


def test_zero_is_what_pruning_does(live, stories):
    from glulens.prune.masks import masked

    rows = np.arange(0, 860, 7)
    cut = NeuronSet((172,) * 5, tuple(rows[rows // 172 == k] - 172 * k for k in range(5)))
    ids = torch.tensor([stories.tokenizer(TEXT)["input_ids"]])
    with masked(stories.model, cut):
        chances = stories.model(ids).logits[0, -1].softmax(0)
    for one in ask(live, TEXT, silence=rows).next:
        assert one.probability == pytest.approx(float(chances[one.token]), rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"text": "word " * 300}, "exceeds the model's context of 512"),
        ({"text": "a\ud800"}, "half a surrogate pair"),
        ({"text": 3}, "the text is no string"),
        ({"rows": [860]}, "whole numbers from 0 to 859"),
        ({"rows": [-1]}, "whole numbers from 0 to 859"),
        ({"rows": list(range(ROWS + 1))}, f"at most {ROWS} at a time"),
        ({"rows": ["x"]}, "this cannot be asked"),
        ({"layer": 5}, "layers go from 0 to 4"),
        ({"top": TOP + 1}, f"from 0 to {TOP}"),
        ({"silence": [1, 1]}, "silenced twice"),
        ({"silence": [1], "values": []}, "as many values as rows"),
        ({"layer": object()}, "this cannot be asked"),
    ],
)
def test_a_refused_question_is_one_line_and_the_next_is_answered(live, fields, line):
    with pytest.raises(DataError) as caught:
        ask(live, **{"text": TEXT, **fields})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ask(live, "One", top=0).top_rows.shape == (len(ask(live, "One").ids), 0)


HOSTILE = ["\x1b]0;x\x07", "[red]x[/]", "\u202eabc\u200b", "a\nb\0c", "x" * 300, "\ufeff{}\\"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_arrive_as_they_are(live, stories, text):
    answer = ask(live, text)
    assert list(answer.ids) == stories.tokenizer(text)["input_ids"]
    assert list(answer.tokens) == [stories.tokenizer.decode([token]) for token in answer.ids]


def test_whatever_comes_on_a_line_gets_one_line_and_the_end_is_the_end(stories):
    lines = [
        b"\xff", b"", b"[1]", b"[" * 50_000, b"null", b'{"id": 4}', b'{"id": [5], "text": 1e999}',
        b'{"id": 6, "text": "Once", "top": true}', b'{"id": 7, "text": "Once", "top": 1}',
    ]  # fmt: skip
    out = io.BytesIO()
    serve(Answerer(stories), io.BytesIO(b"\n".join(lines)), out)
    first, *said = [json.loads(line) for line in out.getvalue().splitlines()]
    assert first["ready"]["layers"] == 5
    assert [one["id"] for one in said] == [None, None, None, None, None, 4, [5], 6, 7]
    assert ["error" in one for one in said] == [True] * 8 + [False]
    assert all(one["error"].isprintable() for one in said[:8])


def said(stories: OpenedModel, *questions: Any) -> list[dict[str, Any]]:
    """What comes back for lines of JSON, in this process."""
    lines = [json.dumps({"id": k, "text": TEXT, **one}).encode() for k, one in enumerate(questions)]
    out = io.BytesIO()
    serve(Answerer(stories), io.BytesIO(b"\n".join(lines)), out)
    return [json.loads(line) for line in out.getvalue().splitlines()][1:]


def test_what_cannot_be_asked_is_told_by_the_child_itself(stories):
    asked = [
        ({"layer": 5}, "layer 5; layers go from 0 to 4"),
        ({"layer": True}, "layer True; layers"),
        ({"top": -1}, "top -1: from 0 to 64"),
        ({"rows": [0] * (ROWS + 1)}, f"{ROWS + 1} rows; at most {ROWS} at a time"),
        ({"rows": 3}, "rows are whole numbers from 0 to 859"),
        ({"silence": [860]}, "rows are whole numbers from 0 to 859"),
        ({"silence": [4, 4]}, "a row is silenced twice"),
        ({"silence": [4], "values": [1, 2]}, "as many values as rows to silence"),
        ({"silence": [4], "values": ["1"]}, "all numbers"),
    ]
    found = said(stories, *(question for question, _ in asked))
    for (question, line), one in zip(asked, found, strict=True):
        assert line in one["error"], question


def test_silencing_at_values_leaves_the_first_position_alone(stories):
    rows = [100, 101, 500]
    intact, at = said(
        stories, {"rows": rows, "top": 0}, {"rows": rows, "silence": rows, "values": [1, 2, 3]}
    )
    first, *later = at["answer"]["activations"]
    assert first[:2] == intact["answer"]["activations"][0][:2]
    assert {tuple(row) for row in later} == {(1, 2, 3)}
    assert intact["answer"]["top"] == [[]] * len(intact["answer"]["ids"])


def test_a_question_that_takes_too_much_memory_leaves_the_child_alive(stories, monkeypatch):
    from glulens.interp import live as module

    answer = Answerer.answer
    failing = [RuntimeError("DefaultCPUAllocator: can't allocate memory"), KeyError()]

    def fails(self: Answerer, given: dict[str, Any]) -> dict[str, Any]:
        if failing:
            raise failing.pop(0)
        return answer(self, given)

    monkeypatch.setattr(module.Answerer, "answer", fails)
    memory, other, fine = said(stories, {}, {}, {})
    assert memory["error"] == "out of memory; a shorter text takes less"
    assert other["error"] == "KeyError: KeyError"
    assert fine["answer"]["ids"]


@pytest.fixture
def stdin(monkeypatch) -> Any:
    """Puts bytes where a question is read."""

    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))

    return give


def test_the_command_line_answers_until_there_are_no_more_questions(
    tmp_path, capfd, stdin, monkeypatch
):
    from glulens.prune import models

    make("llama").save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    opens = models.open_model

    def noisy(*given: Any, progress: Any, **options: Any) -> OpenedModel:
        progress("reading", 1, 2)
        os.write(1, b"a library says hello\n")
        return opens(*given, **options)

    monkeypatch.setattr(models, "open_model", noisy)
    stdin(b'{"id": 1, "text": "a b"}\n{"id": 2}\n')
    assert main([str(tmp_path / "model"), "--device", "cpu"]) == 0
    out, err = capfd.readouterr()
    progress, ready, first, second = map(json.loads, out.splitlines())
    assert progress == {"progress": ["reading", 1, 2]}
    assert ready["ready"]["neurons"] == 48
    assert first["answer"]["tokens"] == ["a", "b"]
    assert second == {"id": 2, "error": "the text is no string"}
    assert "a library says hello" in err


def test_the_command_line_says_in_a_line_what_it_cannot_open(tmp_path, capfd, stdin):
    stdin(b"")
    assert main([str(tmp_path / "nowhere")]) == ModelError.exit_code
    assert "no such file or folder" in json.loads(capfd.readouterr().out)["error"]


def test_the_command_line_says_in_a_line_what_broke(capfd, stdin, monkeypatch):
    from glulens.prune import models

    stdin(b"")

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("two\nlines")

    monkeypatch.setattr(models, "open_model", fails)
    assert main(["a-model"]) == 1
    assert json.loads(capfd.readouterr().out) == {"error": "ValueError: two lines"}


def test_all_neurons_silenced_at_once(live):
    answer = ask(live, TEXT, silence=range(860))
    assert not answer.layers.any()
    assert len(answer.next) == 10


def test_questions_can_be_taken_back_and_awaited(live):
    first = [live.ask(Question(TEXT, silence=range(860))) for _ in range(20)]
    taken = [future.cancel() for future in first[1:]]
    assert any(taken)

    async def wait() -> Answer:
        return await asyncio.wait_for(asyncio.wrap_future(live.ask(Question(TEXT))), PATIENCE)

    assert len(asyncio.run(wait()).next) == 10
    assert live.stage == "idle"


def test_a_killed_child_is_noticed_and_every_question_fails(official):
    code = SERVE.format(tests=str(Path(__file__).parent), data=str(official / "stories260k"))
    live = Live("stories260k", command=[sys.executable, "-c", code])
    live.ready.result(PATIENCE)
    assert live._process is not None
    os.kill(live._process.pid, 9)
    with pytest.raises(ModelError, match=r"the process of stories260k ended \(signal 9\)"):
        ask(live, TEXT)
    with pytest.raises(ModelError, match="signal 9"):
        ask(live, TEXT)
    assert live.stage == "ended"


def test_stopping_ends_the_child_whatever_it_does():
    live = Live("x", command=script("time.sleep(600)"))
    live.ready.result(PATIENCE)
    waiting = [live.ask(Question("a")) for _ in range(3)]
    while live.stage != "busy":
        time.sleep(0.01)
    live.close()
    for future in waiting:
        with pytest.raises(ModelError, match="stopped"):
            future.result(PATIENCE)
    assert live._process is not None
    assert live._process.wait(PATIENCE) == -9
    live.close()
    assert Live("y", command=["/nowhere"]).ready.exception(PATIENCE) is not None


GOOD = {
    "ids": [5], "tokens": ["a"], "activations": [[]], "top": [[[3, 1.5], [-1, None]]],
    "layers": [[1.0, None]], "next": [[5, "a", 0.5]],
}  # fmt: skip
ANSWERS = """
for line in sys.stdin:
    number = json.loads(line)["id"]
    print(json.dumps({{"id": number, "answer": json.loads({answer!r})}}), flush=True)
"""


@pytest.mark.parametrize("text", [*HOSTILE, "\ud800", "x" * 10_000])
def test_hostile_tokens_arrive_as_they_are(text):
    said = {**GOOD, "tokens": [text], "next": [[5, text, None]]}
    with Live("x", command=script(ANSWERS.format(answer=json.dumps(said)))) as live:
        answer = ask(live, text, top=2)
        assert answer.tokens == (text,)
        assert answer.next[0].text == text
        assert np.isnan(answer.next[0].probability)


def test_an_answer_of_the_right_shape_is_taken():
    with Live("x", command=script(ANSWERS.format(answer=json.dumps(GOOD)))) as live:
        answer = ask(live, "a", top=2)
        assert answer.top_rows.tolist() == [[3, -1]]
        assert np.isnan(answer.top_values[0, 1])
        assert np.isnan(answer.layers[0, 1])


@pytest.mark.parametrize(
    "change",
    [
        {"ids": []},
        {"ids": [1.5]},
        {"ids": [1] * 9, "tokens": ["a"] * 9},
        {"tokens": [3]},
        {"tokens": ["a", "b"]},
        {"activations": [[1.0]]},
        {"activations": "x"},
        {"top": [[[4, 1.0], [0, 1.0]]]},
        {"top": [[[0.5, 1.0], [0, 1.0]]]},
        {"top": [[[None, 1.0], [0, 1.0]]]},
        {"top": [[[10**400, 1.0], [0, 1.0]]]},
        {"layers": [[1.0]]},
        {"layers": None},
        {"next": [[5, None, 0.5]]},
        {"next": 3},
    ],
)
def test_an_answer_of_another_shape_ends_the_child(change):
    body = ANSWERS.format(answer=json.dumps({**GOOD, **change}))
    with Live("x", command=script(body)) as live:
        with pytest.raises(ModelError, match="wrote what is no answer and was stopped") as caught:
            ask(live, "a", top=2)
        assert "\n" not in str(caught.value)
        assert live._process is not None
        live._process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("print('\\x1b[2Jhello', flush=True)", "no answer and was stopped"),
        ("print('[1]', flush=True)", "no answer and was stopped"),
        ("print('[' * 100_000, flush=True)", "no answer and was stopped"),
        ('print(\'{"id": 77, "answer": {}}\', flush=True)', "another question"),
        ("print('{\"id\": 0}', flush=True)", "no answer and was stopped"),
        ("sys.stdout.buffer.write(b'\\xff\\n'); sys.stdout.flush()", "no answer and was stopped"),
        ("sys.exit('no\\x1b\\nmemory\\x1b left')", r"(exit code 1): memory\x1b left"),
        ("sys.exit(3)", "exit code 3"),
        ("import os; os.close(1)", "(it closed its output)"),
    ],
)
def test_a_child_that_writes_garbage_or_dies_is_one_line(body, line):
    body = f"sys.stdin.readline(); {body}; time.sleep(600)"
    with Live("x", command=script(body)) as live:
        with pytest.raises(ModelError) as caught:
            ask(live, "a")
        assert line in str(caught.value)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("size", [1, 1_000_000])  # less and more than a pipe holds
def test_a_child_that_sleeps_is_given_up(size):
    with Live("x", command=script("time.sleep(600)"), answering=1.0) as live:
        with pytest.raises(ModelError, match="x was silent for 1 s and was stopped"):
            ask(live, "a" * size)
        assert live._process is not None
        assert live._process.wait(PATIENCE) == -9


@pytest.mark.parametrize(
    ("first", "line"),
    [
        ({"error": "no\nsuch\x1b model"}, "no such\\x1b model"),
        ({"ready": {"name": "x"}}, "wrote what is no answer"),
        ({"hello": 1}, "wrote what is no answer"),
        ({"progress": [1]}, "wrote what is no answer"),
    ],
)
def test_a_model_that_does_not_load_says_so(first, line):
    code = f"import time; print({json.dumps(first)!r}, flush=True); time.sleep(600)"
    with Live("x", command=[sys.executable, "-c", code]) as live:
        with pytest.raises(ModelError) as caught:
            live.ready.result(PATIENCE)
        assert line in str(caught.value)
        with pytest.raises(ModelError):
            ask(live, "a")


def test_another_model_than_the_runs_is_refused():
    with (
        Live("x", neurons=46_080, command=script("time.sleep(600)")) as live,
        pytest.raises(ModelError, match="x has 4 neurons, the run 46,080"),
    ):
        live.ready.result(PATIENCE)


def test_the_command_opens_a_model_and_whatever_prints_does_not_disturb(tmp_path, monkeypatch):
    """The real child, on a folder, from a place whose modules must not be taken for others."""
    make("llama").save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    (tmp_path / "json.py").write_text("print('taken for json'); raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    with Live(str(tmp_path / "model"), neurons=48) as live:
        assert live.ready.result(PATIENCE).layers == 2
        answer = ask(live, "a b c", layer=1)
        assert answer.tokens == ("a", "b", "c")
        assert answer.top_rows.min() >= 24


def test_experts_are_seen_where_tokens_went():
    model = make("qwen3_moe")
    mlps = find_mlps(model)

    class Letters:
        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(c) % 60 for c in text]}

        def decode(self, ids: list[int]) -> str:
            return chr(ids[0])

    tokenizer: Any = Letters()
    answerer = Answerer(OpenedModel(model, tokenizer, ModelSource("m", "folder", Path())))
    edges = np.cumsum([0, *(mlp.width for mlp in mlps)])
    experts = [k for k, mlp in enumerate(mlps) if mlp.layout.part == "expert"]
    rows = [int(edges[k]) for k in experts]
    found = answerer.answer({"text": "abcdefgh", "rows": rows, "top": 50, "layer": 1})
    went = np.array([[value is not None for value in row] for row in found["activations"]])
    assert (went.sum(1) == 2).all(), "two of four experts a token"
    top = np.array([[row for row, _ in token] for token in found["top"]])
    mlp_of = np.searchsorted(edges, top, side="right") - 1
    for token in range(8):
        there = {experts[k] for k in np.flatnonzero(went[token])}
        assert {*mlp_of[token][top[token] >= 0]} == there
        assert (top[token] >= 0).sum() == sum(mlps[k].width for k in there)
    silenced = answerer.answer({"text": "abcdefgh", "rows": rows, "silence": rows})
    assert {v for row in silenced["activations"] for v in row} <= {0.0, None}
