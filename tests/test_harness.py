"""The harness' model: what it answers must be what the harness' own `hf` model answers."""

from __future__ import annotations

import importlib.util
import socket
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glulens.datasets.multiple_choice import load_mmlu, load_truthfulqa
from glulens.errors import DataError, UsageError
from glulens.prune.models import OpenedModel
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import lowest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'glulens[eval]'")

from glulens.interp import harness
from glulens.interp.harness import GlulensLM
from glulens.interp.harness_tables import articles
from glulens.interp.harness_tasks import TASKS, floor, local_tasks

PASSAGE = "Once upon a time, there was a little girl named Lily. She loved to play outside. " * 12


@pytest.fixture(scope="module")
def theirs(smollm: OpenedModel) -> Any:
    """The harness' own model, around the same weights."""
    from lm_eval.models import huggingface

    hflm: Any = huggingface.HFLM
    return hflm(pretrained=smollm.model, tokenizer=smollm.tokenizer, batch_size=4)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    made: Any = Instance
    return [made(kind, {}, one, k) for k, one in enumerate(arguments)]


def of_task(name: str, official: Path, documents: int, first: int = 0) -> list[Any]:
    (task,) = local_tasks([name], official)
    task.build_all_requests(samples=list(range(first, first + documents)))
    return list(task.instances)


def agree(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    np.testing.assert_allclose([v for v, _ in ours], [v for v, _ in theirs], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "documents"),
    [("truthfulqa_mc2", 1), ("mmlu_anatomy", 1), ("lambada_openai", 6), ("winogrande", 2)],
)
def test_log_likelihoods_are_the_harness_own(
    smollm: OpenedModel, theirs: Any, official: Path, name: str, documents: int
) -> None:
    asked = of_task(name, official, documents)
    ours = GlulensLM.of(smollm).loglikelihood(asked)
    agree(ours, theirs.loglikelihood(asked, disable_tqdm=True))
    if name == "lambada_openai":  # else the flag was compared with itself
        assert {greedy for _, greedy in ours} == {True, False}


def test_a_masked_model_is_scored_as_the_harness_scores_it_masked(
    smollm: OpenedModel, theirs: Any, official: Path
) -> None:
    from glulens.prune.masks import masked
    from glulens.prune.mlps import find_mlps

    draw = np.random.default_rng(0)
    cut = lowest([draw.random(mlp.width) for mlp in find_mlps(smollm.model)], 0.2)
    asked = of_task("lambada_openai", official, 2)
    lm = GlulensLM.of(smollm)
    intact = lm.loglikelihood(asked)
    lm.set_cut(cut)
    ours = lm.loglikelihood(asked)
    with masked(smollm.model, cut):
        agree(ours, theirs.loglikelihood(asked, disable_tqdm=True))
    assert abs(ours[0][0] - intact[0][0]) > 0.1
    lm.set_cut(None)
    assert lm.loglikelihood(asked) == intact


def test_what_does_not_fit_is_cut_on_the_left(smollm: OpenedModel, theirs: Any) -> None:
    lm = GlulensLM.of(smollm, max_length=24)
    asked = requests("loglikelihood", (PASSAGE, " Then she"), ("", "Paris is"), ("A ", "cat sat"))
    before, theirs._max_length = theirs._max_length, 24
    try:
        agree(lm.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True))
    finally:
        theirs._max_length = before
    with pytest.raises(DataError, match="exceeds the context of 24"):
        lm.loglikelihood(requests("loglikelihood", ("A", PASSAGE)))


def test_whole_texts_are_read_in_the_harness_windows(smollm: OpenedModel, theirs: Any) -> None:
    texts = [PASSAGE, "A short one.", PASSAGE[:300]]
    asked = requests("loglikelihood_rolling", *((text,) for text in texts))
    before, theirs._max_length = theirs._max_length, 64
    try:
        expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    finally:
        theirs._max_length = before
    ours = GlulensLM.of(smollm, max_length=64).loglikelihood_rolling(asked)
    # Of the first text's -255.4033 in double precision ours misses 6e-5, the harness' 1.4e-3.
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_text_is_what_the_harness_own_model_writes(smollm: OpenedModel, theirs: Any) -> None:
    lm = GlulensLM.of(smollm, batch_size=2)
    chat = lm.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}])
    assert chat == theirs.apply_chat_template([{"role": "user", "content": "What is the capital of "
                                                "France?"}])  # fmt: skip
    short = {"until": [], "max_gen_toks": 10}
    asked = requests(
        "generate_until",
        (chat, short),
        ("Q: What is 2 + 2?\nA:", {"until": ["Q:", "\n"], "max_gen_toks": 10}),
        ("The capital of Italy is", short),
        ("One, two, three, four,", {"until": [" seven"], "max_gen_toks": 10}),
    )
    ours = lm.generate_until(asked)
    assert ours == theirs.generate_until(asked, disable_tqdm=True)
    first, second, third, fourth = lm.generated
    assert "Paris" in first.text
    assert first.ended
    assert first.tokens == len(lm.tok_encode(first.text, add_special_tokens=False))
    assert not second.ended
    assert third.tokens == 10
    assert not third.ended
    assert not third.stopped
    assert fourth.stopped
    assert not fourth.ended
    assert lm.tok_encode(fourth.text) == lm.tok_encode(" five, six,")
    assert fourth.tokens == 4


def test_writing_under_a_mask_is_writing_with_a_cut_model(stories: OpenedModel) -> None:
    from glulens.prune.mlps import find_mlps
    from glulens.prune.surgery import resize

    cut = lowest(score_mlps(find_mlps(stories.model), ["ppm"])["ppm"], 0.3)
    asked = requests(
        "generate_until",
        ("Once upon a", {"until": ["."], "max_gen_toks": 40}),
        ("The big dog", {"until": [], "max_gen_toks": 30}),
    )
    lm = GlulensLM.of(stories)
    intact = lm.generate_until(asked)
    lm.set_cut(cut)
    copy = OpenedModel(resize(deepcopy(stories.model), cut), stories.tokenizer, stories.source)
    assert lm.generate_until(asked) == GlulensLM.of(copy).generate_until(asked) != intact


def test_model_arguments_cut_in_memory(stories: OpenedModel, tmp_path: Path) -> None:
    from glulens.prune.mlps import find_mlps

    asked = requests("loglikelihood", ("Once upon a", " time"), ("Once upon a", " dog"))
    cut = lowest(score_mlps(find_mlps(stories.model), ["random:3"])["random:3"], 0.25)
    masked = GlulensLM.of(stories)
    masked.set_cut(cut)
    cut.save(tmp_path / "cut.json")

    def made(**arguments: Any) -> GlulensLM:
        copy = OpenedModel(deepcopy(stories.model), stories.tokenizer, stories.source)
        return GlulensLM.create_from_arg_obj({"pretrained": copy, "progress": None} | arguments)

    for lm in (
        made(criterion="random:3", fraction=0.25),
        made(criterion="random:3", width=129),
        made(criterion="random:3", expansion=129 / 64),
        made(cut=str(tmp_path / "cut.json")),
    ):
        assert set(lm.engine.widths) == {129}
        agree(lm.loglikelihood(asked), masked.loglikelihood(asked))
    assert set(made(criterion="ppm", fraction=0).engine.widths) == {172}
    with pytest.raises(UsageError, match="exactly one of fraction, expansion, width"):
        made(criterion="ppm")
    with pytest.raises(UsageError, match="say by what"):
        made(fraction=0.1)
    with pytest.raises(UsageError, match="unknown model argument 'pretained'"):
        made(pretained="x")
    with pytest.raises(UsageError, match="looks at activations"):
        made(criterion="amp", fraction=0.1)


def test_bos_is_added_or_left_out(smollm: OpenedModel, stories: OpenedModel) -> None:
    bos = GlulensLM.of(smollm).prefix_token_id
    plain = GlulensLM.of(smollm).tok_encode("A cat")
    assert bos not in plain  # this tokenizer adds none, whatever it is told
    assert GlulensLM.of(smollm, add_bos=True).tok_encode("A cat") == [bos, *plain]
    assert GlulensLM.of(smollm, add_bos=False).tok_encode("A cat") == plain
    spelled = smollm.tokenizer.bos_token
    with_it = GlulensLM.of(smollm, add_bos=True).tok_encode(f"{spelled}A cat")
    assert with_it.count(bos) == 1
    own = GlulensLM.of(stories).tok_encode("A cat")  # this one adds it
    assert own[0] == 1
    assert GlulensLM.of(stories, add_bos=False).tok_encode("A cat") == own[1:]
    assert GlulensLM.of(stories, add_bos=True).tok_encode("A cat") == own
    with pytest.raises(UsageError, match="allowed are auto, true, false"):
        GlulensLM.of(stories, add_bos="maybe")


def test_the_harness_evaluates_a_registered_model(
    stories: OpenedModel, official: Path, offline: None
) -> None:
    tasks = local_tasks(["winogrande", "ifeval"], official)
    copy = OpenedModel(deepcopy(stories.model), stories.tokenizer, stories.source)
    done: list[int] = []
    given = {
        "pretrained": copy,
        "criterion": "ppm",
        "expansion": 2.0,
        "max_gen_toks": 8,
        "progress": lambda what, k, n: done.append(k),
    }
    with harness.quiet():
        found = harness.simple_evaluate(
            "glulens", given, tasks, limit=2, bootstrap_iters=10, log_samples=True
        )
    samples = found["samples"]["winogrande"]
    mean = np.mean([sample["acc"] for sample in samples])
    assert found["results"]["winogrande"]["acc,none"] == mean
    for sample in samples:
        likelier = int(np.argmax([float(answer[0]) for (answer,) in sample["resps"]]))
        assert sample["acc"] == (likelier == int(sample["doc"]["answer"]) - 1)
    assert 0 <= found["results"]["ifeval"]["prompt_level_strict_acc,none"] <= 1
    assert found["config"]["widths"] == [128]
    assert done


def test_local_tasks_ask_what_the_data_sets_ask(official: Path, offline: None) -> None:
    for name, questions in (
        ("truthfulqa_mc1", load_truthfulqa(official, "mc1").records),
        ("truthfulqa_mc2", load_truthfulqa(official, "mc2").records),
        ("mmlu_anatomy", load_mmlu(official, ["anatomy"]).records),
    ):
        (task,) = local_tasks([name], official)
        task.build_all_requests()
        expected = [(q.context, choice) for q in questions for choice in q.choices]
        assert [request.args for request in task.instances] == expected
    (bare,) = local_tasks(["mmlu_anatomy"], official, num_fewshot=0)
    bare.build_all_requests(limit=1)
    assert bare.instances[0].args[0].count("Answer:") == 1


def test_other_local_tasks(official: Path, offline: None) -> None:
    names = ["boolq", "winogrande", "lambada_openai", "gsm8k_cot", "gsm8k_local", "wikitext"]
    found = {task.config.task: task for task in local_tasks(names, official)}
    for task in found.values():
        task.build_all_requests(limit=1)
    asked: dict[str, list[Any]] = {
        name: [request.args for request in task.instances] for name, task in found.items()
    }
    sizes = {name: len(task.eval_docs) for name, task in found.items()}
    assert sizes == {
        "boolq": 3270,
        "winogrande": 1267,
        "lambada_openai": 5153,
        "gsm8k_cot": 1319,
        "gsm8k_local": 1319,
        "wikitext": 62,  # as many as the hub's test split has
    }
    assert asked["boolq"][0][0].endswith("Question: does ethanol take more energy make that "
                                         "produces?\nAnswer:")  # fmt: skip
    assert [answer for _, answer in asked["boolq"]] == [" no", " yes"]
    start = "Sarah was a much better surgeon than Maria so"
    after = " always got the easier cases."
    assert asked["winogrande"] == [(f"{start} Sarah", after), (f"{start} Maria", after)]
    assert asked["lambada_openai"][0][1] == " signs"
    assert asked["gsm8k_cot"][0][0].count("\nA:") == 9
    assert asked["gsm8k_local"][0][0].count("Answer:") == 1
    with pytest.raises(DataError, match="gsm8k_cot"):
        local_tasks(["gsm8k"], official)
    assert floor(found["winogrande"]) == {"acc": 0.5}
    assert floor(found["boolq"])["acc"] == pytest.approx(2033 / 3270)
    assert floor(found["wikitext"]) == {}


def test_the_harness_own_names_find_local_documents(official: Path, offline: None) -> None:
    import lm_eval.tasks

    from glulens.interp.harness_tasks import local_documents

    for folder, names in (("winogrande", {"winogrande": 1267}), ("gsm8k", {"gsm8k_cot": 1319})):
        where = Path(lm_eval.tasks.__file__).parent / folder
        manager = lm_eval.tasks.TaskManager(include_path=str(where), include_defaults=False)
        with local_documents(official), harness.quiet():
            found = manager.load(list(names))["tasks"]
            with pytest.raises(DataError, match="gsm8k_cot"):
                lm_eval.tasks.TaskManager(
                    include_path=str(where.parent / "gsm8k"), include_defaults=False
                ).load(["gsm8k"])
        assert {name: len(task.eval_docs) for name, task in found.items()} == names


def test_floors_of_truthfulqa_are_the_reference_values(official: Path) -> None:
    mc1, mc2 = (local_tasks([f"truthfulqa_{target}"], official)[0] for target in ("mc1", "mc2"))
    assert floor(mc1)["acc"] == pytest.approx(0.2225, abs=5e-5)
    assert floor(mc2)["acc"] == pytest.approx(0.4641, abs=5e-5)


def test_articles_begin_at_headings_of_the_first_level() -> None:
    text = " \n = One = \n a b \n = = Part = = \n c \n = Two = \n = d = e \n = = = F = = = \n"
    assert articles(text) == [
        " = One = \n a b \n = = Part = = \n c ",
        " = Two = \n = d = e \n = = = F = = = \n",
    ]


def test_wrong_names_and_folders_say_so(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'winogrande'"):
        local_tasks(["winogrand"], official)
    with pytest.raises(DataError, match="no such data folder"):
        local_tasks(["boolq"], tmp_path / "nowhere")
    for name in TASKS:
        with pytest.raises(DataError, match="looked for"):
            local_tasks([name], tmp_path)
    (tmp_path / "boolq.jsonl").write_text('{"query": "no passage", "choices": [], "gold": 0}\n')
    with pytest.raises(DataError, match=r"boolq.jsonl:1: not `Passage"):
        local_tasks(["boolq"], tmp_path)


def test_the_harness_command_finds_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.__main__
    from click.testing import CliRunner
    from lm_eval.api.registry import get_model

    from glulens.interp.cli_harness import lm_eval as command

    seen: list[Any] = []
    monkeypatch.setattr(
        lm_eval.__main__, "cli_evaluate", lambda: seen.append((sys.argv, get_model("glulens")))
    )
    arguments = ["run", "--model", "glulens", "--model_args", "pretrained=x,fraction=0.1", "-h"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert seen == [(["glulens lm-eval", *arguments], GlulensLM)]


def test_without_the_harness_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    spec = importlib.util.spec_from_file_location(
        "glulens.interp.harness_again", Path(str(harness.__file__))
    )
    assert spec
    assert spec.loader
    with pytest.raises(UsageError, match=r"pip install 'glulens\[eval\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
