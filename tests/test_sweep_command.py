"""`glulens sweep` on tasks that write and read whole texts, stopped and gone on with, and refused;
and what a sweep of the paper's model shows beside the paper's numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars
import pytest
from commands import says
from swept import swept
from tuned_stories import save_stories

import glulens
from glulens.errors import DataError, ResourceError, RunError, UsageError
from glulens.interp import sweep as module
from glulens.interp import sweep_report
from glulens.rundir import write_manifest, writing

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'glulens[eval]'")

from glulens.interp.content import markdown
from glulens.interp.figures_sweep import draw_sweep, paper_figure
from glulens.interp.sweep_analysis import analyse
from glulens.interp.sweep_files import read_sweep
from glulens.interp.sweep_items import ask
from glulens.interp.sweep_rows import number, paper_rows

OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@pytest.fixture(scope="module")
def folder(stories, tmp_path_factory) -> Path:
    return save_stories(stories, tmp_path_factory.mktemp("model") / "stories")


@pytest.fixture(scope="module")
def data(official, tmp_path_factory) -> Path:
    """The beginnings of three official files."""
    found = tmp_path_factory.mktemp("data")
    for name, lines in (
        ("ifeval/input_data.jsonl", 12),
        ("lambada/lambada_test.jsonl", 12),
        ("wikitext2/wiki.test.raw", 6),
    ):
        text = (official / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (found / name).parent.mkdir()
        (found / name).write_text("".join(text[:lines]), encoding="utf-8")
    return found


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Runs are written without figures, which take longest."""
    monkeypatch.setattr(sweep_report, "save_figures", lambda *_, **__: [])


# Written answers


WRITING = ("--tasks", "ifeval,wikitext", "--limit", "ifeval=3", "--pick", "first",
           "--max-gen-toks", "4", "--controls", "none", "--fractions", "0,0.5",
           "--keep-layers", "0,4")  # fmt: skip


def test_instructions_and_whole_texts_are_swept(folder, data, tmp_path, capsys, undrawn):
    out, _ = says(capsys, "sweep", folder, "--data", data, *WRITING, "-o", tmp_path / "run")
    for part in ("Scores", "IFEval", "without content", "give --controls random:5",
                 "Warning: not all items were asked, but some, taken from the front: ifeval 3",
                 "Warning: IFEval's sentences were found by"):  # fmt: skip
        assert part in " ".join(out.split()), part
    assert out.endswith(f"run directory: {tmp_path / 'run'}\n")
    run = glulens.open_run(tmp_path / "run")
    options = run.manifest["options"]
    assert (options["controls"], options["keep_layers"]) == ([], [0, 4])
    assert [task["kind"] for task in run.manifest["tasks"]] == [
        "generate_until", "loglikelihood_rolling",
    ]  # fmt: skip
    floor = run.manifest["tasks"][0]["floor"]
    assert {"prompt_level_strict_acc", "inst_level_loose_acc"} <= set(floor)
    assert 0 <= floor["prompt_level_strict_acc"] <= floor["prompt_level_loose_acc"] <= 1
    kinds = [name for name in floor if name.startswith("inst_level_strict_acc:")]
    assert kinds, "the floor is known of every kind of instruction"
    items = polars.read_parquet(run.path / "items.parquet")
    assert set(items["criterion"]) == {"intact", "ppm"}
    points = read_sweep(run.path).points
    assert points["neurons_cut"].to_list() == [0, 3 * 86], "two of five layers stay whole"
    assert "## IFEval" in run.report


def test_a_plan_of_written_answers_says_how_much_is_written_at_most(folder, data, capsys):
    words = ("sweep", folder, "--data", data, *WRITING, "--dry-run")
    out, _ = says(capsys, *words, "--json")
    written, read = json.loads(out)["tasks"]
    assert (written["task"], written["items"], written["generated"]) == ("ifeval", 3, 3 * 4)
    assert written["tokens"] > 3
    assert written["forwards"] >= 1
    assert (read["task"], read["generated"], read["requests"]) == ("wikitext", 0, 1)
    opened = glulens.open_model(str(folder))
    text = (data / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    # The task reads its text without WikiText's signs, so that tokens are some fewer.
    assert 0.5 < read["tokens"] / len(opened.tokenizer(text)["input_ids"]) < 1.1
    assert read["forwards"] == -(-read["tokens"] // 512)
    out, _ = says(capsys, *words)
    assert "<= 12" in out


# Stopped and gone on with


SMALL = ("--tasks", "lambada_openai", "--limit", "3", "--fractions", "0,0.3", "--controls",
         "random:1")  # fmt: skip


def test_a_stopped_sweep_says_how_to_go_on(folder, data, tmp_path, capsys, monkeypatch, undrawn):
    path = tmp_path / "run"
    command = ("sweep", folder, "--data", data, *SMALL, "-o", path)
    goes_on = f"the same command with -o {path} --resume goes on"
    run_unit = module.run_unit

    def after(units: int, error: BaseException) -> None:
        """The sweep's work fails after so many units."""
        left = [units]

        def some(*given: Any) -> Any:
            if not left[0]:
                raise error
            left[0] -= 1
            return run_unit(*given)

        monkeypatch.setattr(module, "run_unit", some)

    after(0, KeyboardInterrupt())
    _, err = says(capsys, *command, code=130)
    assert err.endswith("glulens: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())
    after(1, RuntimeError(OUT_OF_MEMORY))
    _, err = says(capsys, *command, code=4)
    assert f"what is done stays: {goes_on}" in err
    assert "out of memory; lower --max-tokens (now 1024), or take --dtype bfloat16" in err
    after(1, KeyboardInterrupt())
    _, err = says(capsys, *command, "--resume", code=130)
    assert f"interrupted; {goes_on}" in err
    after(0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        says(capsys, *command, "--resume")
    capsys.readouterr()
    # Twice one unit was kept; there are three, one a point.
    after(1, AssertionError("what was done is done again"))
    out, _ = says(capsys, *command, "--resume", "--json")
    monkeypatch.undo()
    whole = glulens.sweep(
        str(folder), data=str(data), tasks="lambada_openai", limit=3, fractions="0,0.3",
        controls="random:1",
    )  # fmt: skip
    found = {(row["point"], row["metric"]): row["value"] for row in json.loads(out)["scores"]}
    for row in whole.scores.to_dicts():
        assert found[row["point"], row["metric"]] == pytest.approx(row["value"], rel=1e-6)
    assert whole.path is None


# Refused


def test_places_and_models_are_checked_before_any_work(stories, folder, data, capsys):
    given: dict[str, Any] = {"data": str(data), "tasks": "lambada_openai"}
    with pytest.raises(UsageError, match="nothing to go on with where nothing is written"):
        glulens.sweep(stories, resume=True, **given)
    with pytest.raises(UsageError, match="workers open the model by name"):
        glulens.sweep(stories, ray="local", **given)
    _, err = says(capsys, "sweep", folder, "--data", data, *SMALL, "--chat", code=2)
    assert "this model has no chat template; leave --chat out" in err


def test_memory_that_runs_out_before_anything_is_kept_leaves_nothing(
    stories, data, tmp_path, monkeypatch
):
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "run_unit", fails)
    with pytest.raises(ResourceError, match="out of memory; lower --max-tokens"):
        glulens.sweep(
            stories, limit=2, data=str(data), tasks="lambada_openai", output=tmp_path / "run"
        )
    assert not list(tmp_path.iterdir())


def test_items_that_are_not_there_or_picked_oddly_are_refused(stories, data):
    from glulens.interp.harness import GlulensLM
    from glulens.interp.harness_tasks import local_tasks

    lm, leaves = GlulensLM.of(stories), local_tasks(["lambada_openai"], data)
    with pytest.raises(UsageError, match="pick 'last'; allowed are random, first"):
        ask("lambada_openai", leaves, lm, limit=2, pick="last")
    leaves[0].dataset["test"] = leaves[0].dataset["test"].select([])
    with pytest.raises(DataError, match="task lambada_openai has no items"):
        ask("lambada_openai", leaves, lm)


@pytest.mark.parametrize("value", ["right", (1, 2, 3), [], None])
def test_a_metric_that_is_no_number_is_named(value):
    from glulens.interp.sweep_items import _rows

    with pytest.raises(DataError, match="metric bleu gives .* neither number nor numbers"):
        list(_rows("bleu", value, {}))


# Criteria that look at activations


def test_a_criterion_that_looks_at_activations_reads_the_built_in_text(stories, data, monkeypatch):
    from glulens.datasets import neutral
    from glulens.probes.recording import record
    from glulens.prune.mlps import find_mlps
    from glulens.prune.scoring import score_mlps

    whole = neutral.load_neutral()
    short = replace(whole, records=whole.records[:6])
    monkeypatch.setattr(neutral, "load_neutral", lambda: short)
    given = {"criteria": "wanda", "controls": (), "fractions": "0,0.4", "limit": 2,
             "data": str(data), "tasks": "lambada_openai"}  # fmt: skip
    found = glulens.sweep(stories, **given)
    recording = record(stories, [passage.text for passage in short.records])
    scores = score_mlps(find_mlps(stories.model), ["wanda"], recording=recording)["wanda"]
    assert found.neurons["wanda"].to_list() == pytest.approx([v for mlp in scores for v in mlp])
    again = glulens.sweep(stories, recording=recording, **given)
    assert again.scores.equals(found.scores)


# Beside the paper


FAST: dict[str, Any] = {"flips": 200, "bootstraps": 100}


def of_the_papers_model(**changes: Any) -> Any:
    """A sweep of a model that the paper has, and what is found in it."""
    given = {"criteria": ("ppm", "maw"), "draws": 2, "items": 25, "fractions": (0.2, 0.4),
             "tasks": ("truthfulqa_mc2", "mmlu", "wikitext", "lambada_openai")}  # fmt: skip
    result = swept(model="meta-llama/Llama-3.2-1B", **{**given, **changes})
    return result, analyse(result, **FAST)


@pytest.fixture(scope="module")
def llama() -> Any:
    return of_the_papers_model()


def test_the_papers_scores_stand_in_the_terminal_and_in_the_report(llama, tmp_path):
    result, analysis = llama
    _, _, beside = drawn(sweep_report.terminal(result, analysis)).partition("Beside the paper's")
    assert beside.startswith(" Llama-3.2-1B")
    said = markdown(sweep_report.report(result, analysis), tmp_path)
    _, _, section = said.partition("## Beside the paper's Llama-3.2-1B")
    section, _, _ = section.partition("\n## ")
    header, *rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in header][2:4] == ["paper", "ours"]
    assert len(rows) == len(analysis.paper)
    for row, (_, cut, theirs, *_, random) in zip(analysis.paper, rows, strict=True):
        assert cut == f"{100 * row.fraction:.0f} %"
        assert (" to " in random) == (row.random_low == row.random_low)
        assert theirs == number(row.paper, row.metric)


def test_the_papers_figure_has_a_panel_a_score_and_both_lines(llama):
    result, analysis = llama
    drawn_figures = draw_sweep(analysis, sweep_report.shown(result))
    figure, frame = next(found[1:] for found in drawn_figures if found[0] == "paper")
    keys = list(dict.fromkeys((row.task, row.metric) for row in analysis.paper))
    axes: list[Any] = [axis for axis in figure.axes if axis.get_visible()]
    for axis, key in zip(axes, keys, strict=True):
        own = [row for row in analysis.paper if (row.task, row.metric) == key]
        paper = next(line for line in axis.lines if line.get_label() == "paper")
        assert paper.get_ydata().tolist() == [row.paper for row in own]
        assert (axis.get_yscale() == "log") == key[1].endswith("perplexity")
    assert frame.height == len(analysis.paper)


def test_without_random_cuts_nothing_is_said_of_them():
    result, analysis = of_the_papers_model(draws=0, is_reversed=False)
    assert {row[-1] for row in paper_rows(analysis)[1]} == {"-"}
    figure, _ = paper_figure(analysis)
    labels = {label for axis in figure.axes for label in axis.get_legend_handles_labels()[1]}
    assert labels == {"paper", "ours, ppm"}
    said = " ".join(drawn(sweep_report.terminal(result, analysis)).split())
    assert "ppm: no random cuts to compare with; give --controls random:5" in said
    assert "same perplexity" not in said


def test_a_sweep_of_one_task_shows_no_table_that_needs_two():
    one = swept(criteria=("ppm",), draws=0, items=15, fractions=(0.5,), tasks=("lambada_openai",),
                is_reversed=False)  # fmt: skip
    text = drawn(sweep_report.terminal(one, analyse(one, **FAST)))
    assert "Scores" in text
    for title in ("MMLU against MC2", "same perplexity", "IFEval", "Beside the paper's"):
        assert title not in text


def drawn(content: Any) -> str:
    from rich.console import Console

    console = Console(width=150)
    with console.capture() as shown:
        console.print(content)
    return shown.get()


# What a run directory must hold


def test_a_run_of_another_command_is_no_sweep(tmp_path):
    with writing(tmp_path / "run") as scratch:
        write_manifest(scratch, {"command": "score", "model": {"name": "mine"}})
    with pytest.raises(RunError, match="is a run of 'score', not of sweep"):
        read_sweep(tmp_path / "run")
