"""What the harness' model refuses, in one line, and the corners of a model without a template, a
BOS or a context of its own."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from glulens.datasets.sources import HUB
from glulens.errors import DataError, ResourceError, UsageError
from glulens.prune.models import OpenedModel

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'glulens[eval]'")

from lm_eval.api.instance import Instance
from tuned_stories import copy_of, for_transformers, save_stories

from glulens.interp import harness, harness_generate
from glulens.interp.harness import GlulensLM, simple_evaluate
from glulens.interp.harness_tasks import expand, local_documents, local_tasks

OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    made: Any = Instance
    return [made(kind, {}, one, k) for k, one in enumerate(arguments)]


def with_tokenizer(opened: OpenedModel, **changes: Any) -> OpenedModel:
    """The same model, whose tokenizer has other attributes."""
    tokenizer: Any = copy.copy(opened.tokenizer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return replace(opened, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def folder(stories, tmp_path_factory) -> Path:
    return save_stories(stories, tmp_path_factory.mktemp("model") / "stories")


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_tokens": 0}, "max_tokens 0: a whole number from 1 on"),
        ({"max_length": "many"}, "max_length 'many': a whole number from 1 on"),
        ({"max_gen_toks": 2.5}, "max_gen_toks 2.5: a whole number from 1 on"),
        ({"batch_size": "0"}, "batch_size '0': a whole number from 1 on, or auto"),
        ({"batch_size": "few"}, "batch_size 'few': a whole number from 1 on, or auto"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(stories, settings, said):
    with pytest.raises(UsageError, match=said):
        GlulensLM.of(stories, **settings)


def test_a_cut_file_beside_a_criterion_or_a_size_is_refused(stories):
    for given, named in (({"criterion": "ppm"}, "ppm"), ({"fraction": 0.1}, "fraction")):
        with pytest.raises(UsageError, match=f"cut names all that goes; leave {named} out"):
            GlulensLM.create_from_arg_obj({"pretrained": stories, "cut": "cut.json", **given})


def test_the_harness_command_opens_a_model_by_name_and_its_device_where_there_is_none(folder):
    """The harness asks for `cuda:0` whether there is a GPU or not."""
    given = {"device": "cuda:0", "batch_size": "auto", "max_batch_size": None}
    lm = GlulensLM.create_from_arg_string(f"pretrained={folder},criterion=ppm,width=100", given)
    assert set(lm.engine.widths) == {100}
    assert lm.engine.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert lm.batch_size == harness.BATCH_SIZE
    assert lm.get_model_info()["model_name"] == str(folder)


def test_roles_of_tokens_come_from_the_tokenizer_or_else_from_the_config(stories):
    """The tokenizer of stories260k names no BOS and no EOS, its config 1 and 2."""
    assert GlulensLM.of(stories).eot_token_id == 2
    listed = copy_of(stories)
    listed.model.config.eos_token_id = [7, 2]
    assert GlulensLM.of(listed).eot_token_id == 7
    none = with_tokenizer(stories, bos_token_id=None, eos_token_id=5)
    assert GlulensLM.of(none).prefix_token_id == 5
    with pytest.raises(UsageError, match="the tokenizer of stories260k has no BOS; give auto"):
        GlulensLM.of(none, add_bos=True)
    with pytest.raises(DataError, match="stories260k names no token that ends a text"):
        _ = GlulensLM.of(with_tokenizer(stories, eos_token_id=None)).eot_token_id


def test_a_context_that_the_config_does_not_name_is_the_tokenizers(stories):
    assert GlulensLM.of(stories).max_length == 512
    silent = SimpleNamespace(get_text_config=lambda: SimpleNamespace())
    for known, expected in ((77, 77), (10**30, 2048), (None, 2048)):
        given = with_tokenizer(stories, model_max_length=known)
        model = SimpleNamespace(config=silent, generation_config=None)
        other = replace(given, model=model)  # pyright: ignore[reportArgumentType]
        assert GlulensLM.of(other, engine=GlulensLM.of(stories).engine).max_length == expected


# Questions


def test_a_continuation_without_a_token_of_its_own_is_named(stories):
    with pytest.raises(DataError, match="no token of its own in '' after 'Once'"):
        GlulensLM.of(stories).loglikelihood(requests("loglikelihood", ("Once", "")))


def test_a_text_that_begins_with_bos_gets_no_second_one(stories):
    """Both ask for the same: the text after BOS."""
    tokenizer: Any = copy.copy(stories.tokenizer)
    own = type(tokenizer)

    class Spelling(own):
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            rest = text.removeprefix("<s>")
            ids = super().__call__(rest, add_special_tokens)["input_ids"]
            return {"input_ids": [1, *ids] if rest != text and not add_special_tokens else ids}

    tokenizer.__class__ = Spelling
    lm = GlulensLM.of(replace(stories, tokenizer=tokenizer))
    spelled, plain = lm.loglikelihood(requests("loglikelihood", ("", "<s>Once"), ("", "Once")))
    assert spelled == plain


def test_token_ids_are_scored_as_their_texts_are(stories):
    """Some of the harness' tasks come with token ids."""
    lm = GlulensLM.of(stories)
    pairs = [("Once upon a", " time"), ("The big", " dog")]
    encoded = [(pair, *lm._encode_pair(*pair)) for pair in pairs]
    assert lm._loglikelihood_tokens(encoded) == lm.loglikelihood(requests("loglikelihood", *pairs))


def test_a_model_without_a_chat_template_says_so(stories):
    with pytest.raises(UsageError, match="no chat template; leave --apply_chat_template out"):
        GlulensLM.of(stories).apply_chat_template([{"role": "user", "content": "Hello"}])


def test_a_template_that_takes_no_system_part_is_given_none(stories):
    """Gemma's template raises at a system's part; the harness asks every model the same way."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[model]{% endif %}"
    )
    tokenizer: Any = for_transformers(stories.tokenizer)  # pyright: ignore[reportArgumentType]
    tokenizer.chat_template = template
    lm = GlulensLM.of(replace(stories, tokenizer=tokenizer))
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert lm.apply_chat_template(asked) == "[user] Hello\n[model]"


# Writing


def test_what_cannot_be_written_is_refused(stories):
    lm = GlulensLM.of(stories)
    asked = requests("generate_until", ("Once", {"until": [], "max_gen_toks": 512}))
    with pytest.raises(UsageError, match="max_gen_toks 512 leaves no room in the model's context"):
        lm.generate_until(asked)
    engine: Any = SimpleNamespace(name="lens", device="cpu", widths=())
    with pytest.raises(UsageError, match="the lens engine cannot write text; take --engine hooks"):
        GlulensLM.of(stories, engine=engine).generate_until(asked)


def test_a_batch_that_does_not_fit_is_written_in_halves(stories, monkeypatch):
    asked = requests(
        "generate_until",
        *((text, {"until": [], "max_gen_toks": 6}) for text in ("Once upon a", "The", "One day")),
    )
    whole = GlulensLM.of(stories).generate_until(asked)
    write = harness_generate._Writer._write
    tried: list[int] = []

    def narrow(self: Any, texts: Any) -> Any:
        tried.append(len(texts))
        if len(texts) > 1:
            raise RuntimeError(OUT_OF_MEMORY)
        return write(self, texts)

    monkeypatch.setattr(harness_generate._Writer, "_write", narrow)
    assert GlulensLM.of(stories).generate_until(asked) == whole
    assert tried == [3, 1, 2, 1, 1]

    def never(self: Any, texts: Any) -> Any:
        raise RuntimeError(OUT_OF_MEMORY)

    monkeypatch.setattr(harness_generate._Writer, "_write", never)
    with pytest.raises(ResourceError, match="out of memory writing a single text"):
        GlulensLM.of(stories).generate_until(asked)

    def broken(self: Any, texts: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(harness_generate._Writer, "_write", broken)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        GlulensLM.of(stories).generate_until(asked)


def test_drawn_text_is_drawn_with_what_the_task_asks(stories):
    settings = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5}
    lm = GlulensLM.of(stories)
    found = set()
    for seed in range(4):
        torch.manual_seed(seed)
        found |= set(lm.generate_until(requests("generate_until", ("Once upon a", settings))))
    assert len(found) > 1
    greedy = requests("generate_until", ("Once upon a", {**settings, "do_sample": False}))
    assert lm.generate_until(greedy) == lm.generate_until(greedy)


def test_a_cut_holds_where_a_model_is_not_told_positions(stories):
    """Step by step with a cache: positions go on where the cache ends."""
    lm = GlulensLM.of(stories)
    seen: list[list[int]] = []

    def intervene(positions: Any) -> Any:
        seen.append(positions.tolist())
        return lambda mlp, rows, places: None

    engine: Any = lm.engine
    ids = torch.tensor([lm.tok_encode("Once upon a time")])
    with torch.inference_mode(), harness_generate._silencing(engine, intervene):
        first = stories.model.model(ids, use_cache=True)
        stories.model.model(input_ids=ids[:, :1], past_key_values=first.past_key_values)
    length = ids.shape[1]
    assert seen == [list(range(length)), [length]]


# Tasks


def test_shots_below_none_are_refused(official):
    with pytest.raises(UsageError, match="num-fewshot -1: at least 0 is needed"):
        local_tasks(["boolq"], official, num_fewshot=-1)


def test_other_tasks_go_to_the_hub_as_ever(official, monkeypatch):
    from lm_eval.api import task as theirs

    asked: list[str] = []
    kind: Any = theirs.ConfigurableTask
    monkeypatch.setattr(kind, "download", lambda task, *_, **__: asked.append(task.config.task))
    names = ("piqa", "mmlu_pro", "mmlu_no_such_subject")
    with local_documents(official):
        for name in names:
            kind.download(SimpleNamespace(config=SimpleNamespace(task=name)))
        own = SimpleNamespace(config=SimpleNamespace(task="mmlu_anatomy", dataset_path=None))
        kind.download(own)
    assert asked == list(names)
    dataset: Any = vars(own)["dataset"]
    assert len(dataset["test"]) == 135
    assert own.config.dataset_path == str(official)


def test_gsm8k_takes_its_shots_from_a_training_file_where_there_is_one(tmp_path):
    rows = [{"question": f"{k} + {k}?", "answer": f"It is {2 * k}. #### {2 * k}"} for k in range(9)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "gsm8k_test.jsonl").write_text("\n".join(lines[:2]), encoding="utf-8")
    bare = local_tasks(["gsm8k"], tmp_path, num_fewshot=0)[0]
    bare.build_all_requests(limit=1)
    assert bare.instances[0].args[0].count("Question:") == 1
    (tmp_path / "gsm8k_train.jsonl").write_text("\n".join(lines[2:]), encoding="utf-8")
    for shots, questions in ((None, 6), (2, 3)):
        (task,) = local_tasks(["gsm8k"], tmp_path, num_fewshot=shots)
        task.build_all_requests(limit=1)
        assert task.instances[0].args[0].count("Question:") == questions


@pytest.mark.parametrize(
    ("task", "name", "text", "said"),
    [
        ("gsm8k_cot", "gsm8k_test.jsonl", '{"question": "1 + 1?"}', "1: 'answer' is missing"),
        ("gsm8k_cot", "gsm8k_test.jsonl", "", "gsm8k_test.jsonl is empty"),
        ("mmlu_x", "test/x_test.csv", "What?,a,b,c,d,E\n", "1: answer 'E' is not one of ABCD"),
        ("wikitext", "wiki.test.raw", b"\xff\xfe\xff", "cannot be read as text"),
    ],
)
def test_malformed_data_are_named_by_file_and_line(tmp_path, task, name, text, said):
    from glulens.interp.harness_tasks import _Source

    (tmp_path / name).parent.mkdir(exist_ok=True)
    given = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(given)
    with pytest.raises(DataError) as caught:
        _Source(tmp_path).documents(task)
    assert said in str(caught.value)
    assert name.rpartition("/")[2] in str(caught.value)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the harness' manager would find on the hub; what it was asked for."""
    import lm_eval.tasks

    found: Any = SimpleNamespace(tasks={}, asked=[], error=None)

    class Manager:
        def load(self, names: list[str]) -> dict[str, Any]:
            found.asked.append(names)
            if found.error is not None:
                raise found.error
            return {"tasks": found.tasks}

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Manager)
    return found


class OfTheHub:
    """As much of one of the harness' tasks as is set."""

    def __init__(self, name: str, shots: int | None) -> None:
        self.config: dict[str, Any] = {"task": name, "num_fewshot": shots}
        self.seed = 0

    def get_config(self, name: str) -> Any:
        return self.config[name]

    def set_config(self, name: str, value: Any) -> None:
        self.config[name] = value

    def set_fewshot_seed(self, seed: int) -> None:
        self.seed = seed


def test_tasks_of_the_hub_get_the_shots_that_local_ones_get(hub):
    names = ("mmlu_anatomy", "piqa", "gsm8k", "gsm8k_cot_zero")
    for shots, expected in ((None, [5, 0, 5, 0]), (2, [2, 2, 2, 0])):
        own = (None, None, 5, 0)
        hub.tasks = {name: OfTheHub(name, k) for name, k in zip(names, own, strict=True)}
        found: Any = local_tasks(["mmlu_anatomy", "piqa", "piqa"], HUB, num_fewshot=shots)
        assert [task.config["num_fewshot"] for task in found] == expected
        assert {task.seed for task in found} == {1234}
    assert hub.asked == [["mmlu_anatomy", "piqa"]] * 2, "asked for twice is asked once"
    assert expand(["mmlu", "mmlu"], HUB) == ["mmlu"]


def test_what_the_hub_does_not_give_is_one_line(hub):
    hub.error = KeyError("no_such_task")
    with pytest.raises(UsageError, match="the harness cannot make these tasks .'no_such_task'"):
        local_tasks(["no_such_task"], HUB)
    hub.error = ConnectionError("a long story\nof sockets")
    with pytest.raises(DataError) as caught:
        local_tasks(["piqa", "ifeval"], HUB)
    assert str(caught.value).startswith(
        "the data of piqa, ifeval cannot be had from the hub (ConnectionError); check the network"
    )
    assert "\n" not in str(caught.value)


def test_without_tasks_the_harness_says_so_itself(stories):
    with pytest.raises(ValueError, match="No tasks specified"):
        simple_evaluate(GlulensLM.of(stories))


def test_the_commands_ifeval_goes_to_no_network_for_its_parameters(monkeypatch):
    import lm_eval.__main__

    from glulens.interp import ifeval_check
    from glulens.interp.cli_harness import lm_eval as command

    loaded: list[bool] = []
    monkeypatch.setattr(ifeval_check, "load_checker", lambda: loaded.append(True))
    seen: list[list[str]] = []
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append(list(sys.argv)))
    for tasks, expected in (("piqa", []), ("piqa,ifeval", [True])):
        command.callback(None, ("run", "--tasks", tasks))  # pyright: ignore[reportOptionalCall]
        assert loaded == expected
    assert seen[1] == ["glulens lm-eval", "run", "--tasks", "piqa,ifeval"]


# IFEval's checker


def test_the_checker_names_what_it_misses(monkeypatch):
    from glulens.interp import ifeval_check

    checker = ifeval_check.load_checker()
    document = {"key": 12, "prompt": "?", "instruction_id_list": ["a:b"], "kwargs": [{}]}
    with pytest.raises(DataError, match="IFEval 12: the checker knows no 'a:b'; take the official"):
        checker.check(document, "An answer.")
    with pytest.raises(DataError, match="no answer was checked"):
        ifeval_check.accuracies([])
    find = ifeval_check.importlib.util.find_spec
    monkeypatch.setattr(
        ifeval_check.importlib.util,
        "find_spec",
        lambda name: None if name == "nltk" else find(name),
    )
    with pytest.raises(UsageError, match=r"checker needs nltk: pip install 'glulens\[eval\]'"):
        ifeval_check.load_checker()


def test_trained_parameters_are_taken_where_they_are(monkeypatch):
    import nltk

    from glulens.interp.ifeval_check import BUILT_IN, TRAINED, load_checker

    monkeypatch.setattr(nltk.data, "find", lambda *_, **__: "here")
    try:
        assert load_checker().tokenizer == TRAINED
        assert load_checker(trained=False).tokenizer == BUILT_IN
    finally:
        monkeypatch.undo()
        load_checker()
