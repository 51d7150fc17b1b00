"""Sweeps: their points, their items against lm-eval's own evaluator, and what a kill leaves."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import says

from glulens.errors import UsageError
from glulens.interp.sweep_options import make_sweep_options, parse_layers, parse_limits
from glulens.interp.sweep_points import Order, make_points, numbers, orders, point_table
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps
from glulens.prune.surgery import resize

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'glulens[eval]'")

TASKS = ("truthfulqa_mc1", "truthfulqa_mc2", "mmlu", "lambada_openai", "wikitext")


SUBJECTS = ("anatomy", "college_physics", "virology")


@pytest.fixture(scope="module")
def folder(stories: Any, official: Path, tmp_path_factory: Any) -> Path:
    """A trained tiny model as a folder."""
    from tuned_stories import save_stories

    return save_stories(stories, tmp_path_factory.mktemp("model") / "stories")


@pytest.fixture(scope="module")
def data(official: Path, tmp_path_factory: Any) -> Path:
    """The official data with three of MMLU's subjects."""
    found = tmp_path_factory.mktemp("data")
    for name in ("truthfulqa", "lambada"):
        (found / name).symlink_to(official / name)
    (found / "wikitext2").mkdir()
    lines = (official / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8").split("\n")
    (found / "wikitext2" / "wiki.test.raw").write_text(
        "\n".join([*lines[:8], "", " = Another = ", "", *lines[8:10], ""]), encoding="utf-8"
    )
    for split in ("dev", "test"):
        (found / "mmlu" / split).mkdir(parents=True)
        for subject in SUBJECTS:
            file = f"mmlu/{split}/{subject}_{split}.csv"
            (found / file).symlink_to(official / file)
    return found


@pytest.fixture(scope="module")
def job(folder: Path, data: Path) -> Any:
    """A small sweep, ready to run."""
    from glulens.interp.sweep import prepare

    options = make_sweep_options(
        criteria="ppm",
        controls="random:1",
        fractions="0,0.3",
        tasks=TASKS,
        data=str(data),
        limits={"truthfulqa_mc1": 4, "truthfulqa_mc2": 4, "mmlu": 3, "lambada_openai": 20},
        num_fewshot=1,
        device="cpu",
    )
    return prepare(str(folder), options)


@pytest.fixture(scope="module")
def result(job: Any) -> Any:
    """What came of it."""
    from glulens.interp.stages import Stages
    from glulens.interp.sweep import _answers, collect

    return collect(job, _answers(job, Stages(None, 0), None, lambda *_: None))


def harness(job: Any, point: int, *, samples: bool) -> dict[str, Any]:
    """The same items, asked and scored by lm-eval's own evaluator."""
    from lm_eval.evaluator import evaluate

    lm, tasks = job.state.lm, job.state.tasks
    job.state.restore()
    lm.set_cut(job.points[point].cut)
    leaves = {leaf.task_name: leaf for task in tasks.values() for leaf in task.leaves}
    drawn = {
        leaf.task_name: list(some)
        for task in tasks.values()
        for leaf, some in zip(task.leaves, task.drawn, strict=True)
    }
    found: Any = evaluate(lm, leaves, samples=drawn, bootstrap_iters=0, log_samples=samples)
    lm.set_cut(None)
    return found


def test_points_lose_the_same_neurons_in_number(tiny: Any) -> None:
    mlps = find_mlps(tiny())
    layouts = [mlp.layout for mlp in mlps]
    cut_by = orders(("ppm", "vow"), ("random:2", "reversed"), seed=3)
    assert [order.criterion for order in cut_by] == [
        "ppm", "vow", "random:3", "random:4", "reversed:ppm", "reversed:vow",
    ]  # fmt: skip
    scores = score_mlps(mlps, [order.criterion for order in cut_by])
    points = make_points(layouts, scores, cut_by, fractions=(0.5, 0.0, 0.25), keep_layers=(0,))
    assert [point.name for point in points][:3] == ["intact", "ppm 25%", "ppm 50%"]
    assert len(points) == 1 + 6 * 2
    for point in points[1:]:
        assert point.cut is not None
        assert point.cut.counts == (0, *(int(48 * point.fraction),) * 2)
    by_name = {point.name: point for point in points}
    low, high = by_name["ppm 25%"], by_name["reversed:ppm 25%"]
    assert low.cut is not None
    assert high.cut is not None
    assert not len(low.cut & high.cut)
    assert low.cut.indices[1].tolist() == sorted(np.argsort(scores["ppm"][1], kind="stable")[:12])
    table = point_table(points, layouts, 10_000)
    assert table["parameters"].to_list()[1] == 10_000 - 2 * 12 * 3 * 32
    assert table["control"].to_list()[:1] == [None]
    assert table.filter(table["control"] == "random")["seed"].unique().sort().to_list() == [3, 4]


def test_ratios_are_counted_as_in_the_paper(tiny: Any) -> None:
    # Llama-3.2-1B in small: four times as wide as its stream.
    model = tiny(hidden_size=32, intermediate_size=128)
    mlps = find_mlps(model)
    scores = score_mlps(mlps, ["ppm"])
    points = make_points(
        [mlp.layout for mlp in mlps], scores, [Order("ppm")], ratios=numbers("4.0,3.6,...,1.6", "r")
    )
    assert [(p.ratio, p.fraction) for p in points] == [
        (4.0, 0.0), (3.6, 0.1), (3.2, 0.2), (2.8, 0.3), (2.4, 0.4), (2.0, 0.5), (1.6, 0.6),
    ]  # fmt: skip
    kept = [128 - p.cut.counts[0] for p in points if p.cut is not None]
    assert kept == [116, 103, 90, 77, 64, 52]  # ceil(ratio * 32)


def test_lists_of_numbers_go_on() -> None:
    assert numbers("0,0.1,...,0.6", "fractions") == (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    assert numbers("4,3.6,…,2.8", "ratios") == (4, 3.6, 3.2, 2.8)
    assert numbers("0.3, 0.1", "fractions") == (0.3, 0.1)
    for wrong in ("0,...,1", "0,0.1,...", "0,0.1,...,0.55", "a", "nan", "0.1,0,...,0.3"):
        with pytest.raises(UsageError):
            numbers(wrong, "fractions")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"criteria": "random:0"}, "--controls"),
        ({"controls": "random:0"}, "random:N"),
        ({"controls": "shuffled"}, "random:N"),
        ({"criteria": "", "controls": ()}, "nothing to cut by"),
        ({"fractions": (0.1,), "ratios": (2.0,)}, "either"),
        ({"fractions": (0.1, 1.0)}, "fraction 1"),
        ({"ratios": (0.0, 2.0)}, "above 0"),
        ({"limits": {"mmlu": 0}}, "at least 1"),
        ({"limits": {"piqa": 3}}, "none of the tasks"),
        ({"compensate": "magic"}, "lsq"),
        ({"data": "builtin"}, "--data"),
        ({"taks": "mmlu"}, "unknown option"),
    ],
)
def test_bad_options_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_sweep_options(**options)


def test_limits_and_layers_are_read() -> None:
    assert parse_limits(("100", "mmlu=5,wikitext=2")) == {
        "limit": 100,
        "limits": {"mmlu": 5, "wikitext": 2},
    }
    assert parse_layers("0, 2,0") == (0, 2)
    for wrong in (("x",), ("mmlu=",), ("=3",)):
        with pytest.raises(UsageError):
            parse_limits(wrong)
    with pytest.raises(UsageError):
        parse_layers("-1")


@pytest.mark.parametrize("point", [0, 1])
def test_items_equal_the_harness_own_evaluator(job: Any, result: Any, point: int) -> None:
    found = harness(job, point, samples=True)
    rows = result.items.filter(result.items["point"] == point).to_dicts()
    ours = {(row["task"], row["doc_id"], row["metric"]): row for row in rows}
    seen = 0
    for task in job.state.tasks.values():
        first = 0
        for leaf in task.leaves:
            for sample in found["samples"][leaf.task_name]:
                for metric in sample["metrics"]:
                    theirs = sample[metric]
                    row = ours[task.name, first + sample["doc_id"], metric]
                    if isinstance(theirs, tuple):
                        assert row["weight"] == theirs[1]
                        theirs = theirs[0] / theirs[1]
                    assert row["value"] == pytest.approx(float(theirs), abs=1e-6)
                    assert row["subtask"] == leaf.task_name
                    seen += 1
            first += len(leaf.eval_docs)
    assert seen == len(ours)


def test_scores_equal_the_harness_own(job: Any, result: Any) -> None:
    from lm_eval.api.metrics import pooled_sample_stderr

    found = harness(job, 1, samples=False)["results"]
    scores = {
        (row["task"], row["metric"]): row
        for row in result.scores.filter(result.scores["point"] == 1).to_dicts()
    }
    for name in TASKS:
        leaves = [leaf.task_name for leaf in job.state.tasks[name].leaves]
        for key, theirs in found[leaves[0]].items():
            metric, _, form = key.partition(",")
            if form == "none" and not metric.endswith("_stderr"):
                # As many items of every subject: the group's score is the plain mean of theirs.
                mean = np.mean([found[leaf][key] for leaf in leaves]) if name == "mmlu" else theirs
                assert scores[name, metric]["value"] == pytest.approx(mean, rel=1e-6)
    assert scores["mmlu", "acc"]["n"] == 3 * len(SUBJECTS)
    values = result.items.filter(
        (result.items["point"] == 1) & (result.items["task"] == "lambada_openai")
    )
    for metric, factor in (
        ("acc", 1.0),
        ("perplexity", scores["lambada_openai", "perplexity"]["value"]),
    ):
        part = values.filter(values["metric"] == metric)["value"].to_numpy()
        error = part.std(ddof=1) / np.sqrt(len(part)) * factor
        assert scores["lambada_openai", metric]["stderr"] == pytest.approx(error)
    # Pooled over subjects as in the harness, where subjects have several items.
    from glulens.interp.sweep_scores import _stderr

    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c"], [5, 7, 4])
    drawn = rng.integers(0, 2, len(groups)).astype(float)
    of = [drawn[groups == g] for g in "abc"]
    theirs = pooled_sample_stderr(
        [float(g.std(ddof=1) / np.sqrt(len(g))) for g in of], [len(g) for g in of]
    )
    assert _stderr("mean", 0.5, drawn, np.ones(len(drawn)), groups) == pytest.approx(theirs)


def test_silencing_is_cutting(job: Any, result: Any) -> None:
    from glulens.interp.harness import GlulensLM
    from glulens.interp.sweep_items import SweepState, run_unit

    point = job.points[1]
    cut = copy.deepcopy(job.opened.model)
    resize(cut, point.cut)
    state = SweepState(GlulensLM.of(replace(job.opened, model=cut)), job.state.tasks)
    task = state.tasks["lambada_openai"]
    found = run_unit(state, replace(point, cut=None), task.name, task.chunks[0])
    silenced = result.answers.filter(
        (result.answers["point"] == 1) & (result.answers["task"] == task.name)
    )
    ours = np.concatenate(silenced["loglikelihoods"].to_list())
    assert np.abs(ours - np.concatenate(found.answers["loglikelihoods"].to_list())).max() < 1e-4
    intact = result.answers.filter(
        (result.answers["point"] == 0) & (result.answers["task"] == task.name)
    )
    assert np.abs(ours - np.concatenate(intact["loglikelihoods"].to_list())).max() > 0.1


def test_answers_keep_every_choice(job: Any, result: Any) -> None:
    for row in result.answers.filter(result.answers["task"] == "truthfulqa_mc2").to_dicts():
        doc = job.state.tasks["truthfulqa_mc2"].items[row["doc_id"]].doc
        assert len(row["loglikelihoods"]) == len(doc["mc2_targets"]["choices"])
        chances = np.exp(row["loglikelihoods"] - np.max(row["loglikelihoods"]))
        right = float(chances[np.array(doc["mc2_targets"]["labels"]) == 1].sum() / chances.sum())
        item = result.items.filter(
            (result.items["point"] == row["point"])
            & (result.items["task"] == "truthfulqa_mc2")
            & (result.items["doc_id"] == row["doc_id"])
        )
        assert item["value"].to_list() == [pytest.approx(right)]


def test_tasks_with_the_same_questions_are_asked_together(job: Any) -> None:
    names = [unit.task for unit in job.units if unit.point == 0]
    assert names[0] == "truthfulqa_mc1+truthfulqa_mc2"
    assert sorted(set(names)) == ["lambada_openai", "mmlu", names[0], "wikitext"]
    both = [job.state.tasks[name].drawn for name in names[0].split("+")]
    assert both[0] == both[1]


def test_items_are_drawn_or_the_first(job: Any, official: Path) -> None:
    from glulens.interp.sweep_state import open_state

    def drawn(**options: Any) -> tuple[int, ...]:
        settings = make_sweep_options(
            tasks="lambada_openai", data=str(official), limit=5, **options
        )
        return open_state(job.opened, settings).tasks["lambada_openai"].drawn[0]

    assert drawn(pick="first") == (0, 1, 2, 3, 4)
    assert drawn() == drawn()
    assert drawn() != drawn(seed=1)
    assert max(drawn()) > 100


def test_floors_are_of_the_items_asked(job: Any) -> None:
    from glulens.interp.sweep_items import floor_of

    task = job.state.tasks["truthfulqa_mc2"]
    by_hand = np.mean([np.mean(item.doc["mc2_targets"]["labels"]) for item in task.items.values()])
    assert floor_of(task) == {"acc": pytest.approx(by_hand)}
    assert floor_of(job.state.tasks["mmlu"]) == {"acc": 0.25}


def test_compensation_leaves_the_model_as_it_was(
    job: Any, result: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glulens.datasets import neutral
    from glulens.interp.sweep_items import SweepState, run_unit

    whole = neutral.load_neutral()
    short = replace(whole, records=whole.records[:12])
    monkeypatch.setattr(neutral, "load_neutral", lambda: short)

    state = SweepState(job.state.lm, job.state.tasks, "lsq")
    before = {name: p.clone() for name, p in job.opened.model.named_parameters()}
    task = state.tasks["lambada_openai"]
    found = run_unit(state, job.points[1], task.name, task.chunks[0])
    state.restore()
    for name, parameter in job.opened.model.named_parameters():
        assert parameter.equal(before[name]), name
    lost = {}
    for point in (0, 1):
        part = result.answers.filter(
            (result.answers["point"] == point) & (result.answers["task"] == task.name)
        )
        lost[point] = np.concatenate(part["loglikelihoods"].to_list())
    made_up = np.concatenate(found.answers["loglikelihoods"].to_list())
    # Nearer to the intact model than without.
    assert np.abs(made_up - lost[0]).mean() < np.abs(lost[1] - lost[0]).mean()


def test_instructions_are_counted_by_kind() -> None:
    from glulens.interp.sweep_items import _rows

    doc = {"instruction_id_list": ["a:x", "b:y", "a:x"]}
    rows = list(_rows("inst_level_strict_acc", [True, False, False], doc))
    assert [(row["metric"], row["value"], row["weight"]) for row in rows] == [
        ("inst_level_strict_acc", pytest.approx(1 / 3), 3),
        ("inst_level_strict_acc:a:x", 0.5, 2),
        ("inst_level_strict_acc:b:y", 0.0, 1),
    ]


def test_written_answers_say_how_they_ended(smollm: Any, official: Path) -> None:
    from glulens.interp.sweep_items import run_unit
    from glulens.interp.sweep_points import Point
    from glulens.interp.sweep_state import open_state

    options = make_sweep_options(
        tasks="gsm8k_local,ifeval", data=str(official), limit=2, max_gen_toks=6, chat=True
    )
    state = open_state(smollm, options)
    point = Point("intact", 0.0, None)
    found = run_unit(state, point, "ifeval", state.tasks["ifeval"].chunks[0])
    assert found.answers["answer_tokens"].max() == 6
    assert found.answers["ended"].to_list() == (found.answers["answer_tokens"] < 6).to_list()
    assert found.answers["answer_characters"].to_list() == [
        len(text) for text in found.answers["text"]
    ]
    metrics = set(found.items["metric"])
    assert {"prompt_level_strict_acc", "inst_level_loose_acc"} <= metrics
    assert any(metric.startswith("inst_level_strict_acc:") for metric in metrics)
    found = run_unit(state, point, "gsm8k_local", state.tasks["gsm8k_local"].chunks[0])
    assert set(found.items["metric"]) == {
        "exact_match,strict-match",
        "exact_match,flexible-extract",
    }


def test_kept_units_are_read_as_they_were(result: Any) -> None:
    from glulens.interp.sweep_items import Found, pack, unpack

    found = Found(result.items.head(7), result.answers.head(3))
    again = unpack(pack(found))
    assert again.items.equals(found.items)
    assert again.answers.equals(found.answers)


@pytest.mark.parametrize("sweeps", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_sweep_goes_on_to_the_same_tables(
    folder: Path, official: Path, tmp_path: Path, sweeps: int
) -> None:
    script = Path(__file__).with_name("sweeping.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(official), str(tmp_path), "5", str(sweeps)],
        capture_output=True,
        text=True,
        timeout=300 * sweeps,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *tables, kills = done.stdout.splitlines()
    assert len(tables) == 5 * sweeps
    assert all(line.startswith("same ") for line in tables), done.stdout
    assert int(kills.split()[1]) > 0


SMALL = (
    "--tasks", "lambada_openai,truthfulqa_mc1", "--limit", "3", "--fractions", "0,0.2",
    "--controls", "random:1",
)  # fmt: skip


def test_the_command_says_what_it_would_cost(
    folder: Path, official: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "run"
    out, _ = says(
        capsys, "sweep", folder, "--data", official, *SMALL, "-o", path, "--dry-run", "--json"
    )
    plan = json.loads(out)
    assert plan["points"] == 3
    assert [(task["task"], task["items"]) for task in plan["tasks"]] == [
        ("lambada_openai", 3),
        ("truthfulqa_mc1", 3),
    ]
    assert plan["items"] == 18
    assert all(task["tokens"] > task["requests"] > 0 for task in plan["tasks"])
    assert all(task["forwards"] > 0 < task["seconds"] for task in plan["tasks"])
    assert not list(tmp_path.iterdir())
    out, _ = says(capsys, "sweep", folder, "--data", official, *SMALL, "--dry-run")
    assert "x 3 points" in out


def test_the_command_writes_a_run(
    folder: Path, official: Path, tmp_path: Path, capsys: Any
) -> None:
    import polars

    from glulens.interp.sweep_files import read_sweep
    from glulens.rundir import open_run

    path = tmp_path / "run"
    out, _ = says(capsys, "sweep", folder, "--data", official, *SMALL, "-o", path, "--json")
    said = json.loads(out)
    assert len(said["points"]) == 3
    run = open_run(path)
    assert run.manifest["command"] == "sweep"
    assert [task["name"] for task in run.manifest["tasks"]] == ["lambada_openai", "truthfulqa_mc1"]
    assert run.manifest["tasks"][1]["floor"]["acc"] < 0.5
    assert run.schema().names() == ["layer", "neuron", "ppm", "random_0"]
    items = polars.read_parquet(path / "items.parquet")
    assert items.columns[:7] == [
        "point", "task", "subtask", "doc_id", "metric", "value", "weight",
    ]  # fmt: skip
    assert items["criterion"].unique().sort().to_list() == ["intact", "ppm", "random:0"]
    again = read_sweep(path)
    assert again.scores.height == len(said["scores"])
    assert again.items.height == items.height
    out, _ = says(capsys, "runs", tmp_path)
    assert str(path) in out
    _, err = says(capsys, "sweep", folder, "--data", official, *SMALL, "-o", path, code=3)
    assert "exists" in err


def test_the_command_refuses_in_a_line(official: Path, tmp_path: Path, capsys: Any) -> None:
    start = ("sweep", "smollm2-135m-instruct", "-o", tmp_path / "run")
    for words, code, said in (
        (("--data", official, "--tasks", "mmlu_magic"), 2, "magic"),
        (("--data", official, "--tasks", "piqa"), 2, "piqa"),
        (("--data", tmp_path, "--tasks", "lambada_openai"), 3, "LAMBADA"),
        (("--limit", "many"), 2, "--limit"),
        (("--fractions", "0,2"), 2, "fraction"),
        (("--criteria", "ppn"), 2, "ppm"),
    ):
        _, err = says(capsys, *start, *words, code=code)
        assert said in err
        assert len(err.strip().splitlines()) == 1, err
    assert not list(tmp_path.iterdir())
