"""The hypothesis on official data: TruthfulQA's own scores, their floors, and growing cuts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from commands import says
from rich.console import Console
from tuned_stories import save_stories

import glulens
from glulens.datasets.multiple_choice import load_truthfulqa
from glulens.interp import experiments, figures
from glulens.interp.report import terminal
from glulens.probes.choices import floor

DRAWN = ("dose", "entropy")
QUICK: dict[str, Any] = {
    "limit": 4,
    "criteria": ("ppm",),
    "permutations": 100,
    "bootstraps": 100,
    "causal_items": 2,
    "causal_random": 1,
    "map_items": 0,
    "null_items": 0,
    "decode_every": 0,
    "dose_items": 2,
    "umap": False,
}


@pytest.fixture(scope="module")
def opened(stories, tmp_path_factory) -> Any:
    """The trained tiny model with a tokenizer that is quick on thousands of choices."""
    folder = save_stories(stories, tmp_path_factory.mktemp("model") / "stories")
    return glulens.open_model(str(folder))


@pytest.fixture(scope="module")
def data(official, tmp_path_factory) -> Path:
    """The beginnings of the official files: as much as a run of four items needs."""
    found = tmp_path_factory.mktemp("data")
    for name in ("truthfulqa", "mmlu/test", "ifeval", "wikitext2"):
        (found / name).mkdir(parents=True)
    for name, lines in (
        ("truthfulqa/TruthfulQA.csv", 40),
        ("mmlu/test/anatomy_test.csv", 40),
        ("ifeval/input_data.jsonl", 40),
        ("wikitext2/wiki.test.raw", 60),
    ):
        text = (official / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (found / name).write_text("".join(text[:lines]), encoding="utf-8")
    items = json.loads((official / "truthfulqa/mc_task.json").read_text(encoding="utf-8"))
    items.sort(key=lambda item: len(str(item)))  # the model reads no more than 512 tokens
    (found / "truthfulqa/mc_task.json").write_text(json.dumps(items[:12]), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def run(opened, data, tmp_path_factory) -> Any:
    """A run with two sizes of cut instead of six, that draws the two figures of interest alone."""
    draw_all = figures.draw_all

    def some(result: Any) -> Any:
        return (drawn for drawn in draw_all(result) if drawn[0] in DRAWN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "FRACTIONS", (0.3, 0.6))
        patch.setattr(figures, "draw_all", some)
        path = tmp_path_factory.mktemp("runs") / "run"
        return glulens.hypothesis(opened, data=str(data), output=path, **QUICK)


def test_answerers_that_know_nothing_stand_beside_the_model(run, data):
    by_name = {row.name.split(" (")[0]: row for row in run.answerers}
    assert [*by_name][:3] == ["chance", "length only", "model"]
    chance, tempered = by_name["chance"], by_name["model at T = infinity"]
    assert (chance.mc1, chance.mc2, chance.entropy) == (tempered.mc1, tempered.mc2, 1.0)
    entropies = [row.entropy for row in run.answerers if row.temperature == row.temperature]
    assert entropies == sorted(entropies), "the higher the temperature, the less decided"
    # The floor is that of the very questions that were drawn.
    drawn = np.random.default_rng([0, 8]).permutation(12)[:4]
    for name in ("mc1", "mc2"):
        questions = load_truthfulqa(data, name).records
        own = np.mean(floor([questions[k] for k in drawn]))
        assert getattr(chance, name) == pytest.approx(own)
    assert {row.n for row in run.answerers} == {4}


def test_growing_cuts_go_by_the_criterion_and_at_random(run):
    cuts = [(dose.order, dose.draw, dose.fraction) for dose in run.doses]
    random = [("random", draw, f) for draw in range(3) for f in (0.3, 0.6)]
    assert cuts == [("intact", 0, 0.0), ("lowest", 0, 0.3), ("lowest", 0, 0.6), *random]
    assert run.doses[0].damage == 0
    assert {dose.answerer.n for dose in run.doses} == {2}
    # A trained model writes neutral text worse without six neurons in ten.
    assert all(dose.damage > 0 for dose in run.doses if dose.fraction == 0.6)


def test_the_floor_is_among_the_controls_of_the_verdict(run):
    check = next(check for check in run.verdict.checks if check.name == "above its floor")
    model = next(row for row in run.answerers if row.name == "model")
    chance = next(row for row in run.answerers if row.name == "chance")
    assert check.passed == (model.mc2_low > chance.mc2)
    assert f"MC2 {model.mc2:.3f}" in check.found
    assert not check.required


def test_the_run_holds_its_tables_figures_and_report(run):
    dose = polars.read_csv(run.path / "tables" / "dose.csv")
    assert dose["damage"].to_list() == pytest.approx([dose.damage for dose in run.doses])
    answerers = polars.read_csv(run.path / "tables" / "answerers.csv")
    assert answerers["mc2"].to_list() == pytest.approx([row.mc2 for row in run.answerers])
    assert {p.stem for p in (run.path / "figures").iterdir()} == set(DRAWN)
    said = (run.path / "report.md").read_text()
    _, _, floors = said.partition("## What the scores are worth")
    assert "after its six-question primer, 4 questions" in floors
    assert "| length only (" in floors
    for name in DRAWN:
        assert f"(figures/{name}.png)" in floors
    assert "Not used or noteworthy:" in said
    assert run.manifest["warnings"][0] in said


def test_the_dose_figure_begins_at_the_intact_model(run):
    from glulens.interp.figures_causal import dose_figure

    axes: list[Any] = dose_figure(run).axes
    assert [axis.get_title() for axis in axes] == ["MC1", "MC2", "damage, nats per token"]
    chance = run.answerers[0]
    for axis, name in zip(axes[:2], ("mc1", "mc2"), strict=True):
        own, level = axis.lines
        assert own.get_xdata().tolist() == [0, 0.3, 0.6]
        at = [getattr(dose.answerer, name) for dose in run.doses[:3]]
        assert own.get_ydata().tolist() == at
        assert set(level.get_ydata()) == {getattr(chance, name)}
    assert axes[2].lines[0].get_ydata().tolist() == [dose.damage for dose in run.doses[:3]]


def test_the_terminal_shows_every_table_and_the_verdict(run, monkeypatch, tmp_path, capsys):
    from glulens.interp import hypothesis as module

    given: dict[str, Any] = {}
    monkeypatch.setattr(
        module, "hypothesis", lambda model, **k: given.update(k, model=model) or run
    )
    out, _ = says(capsys, "hypothesis", "a-model", "--criteria", "ppm,vow", "--dose-items", "3",
                  "-o", tmp_path / "run")  # fmt: skip
    titles = ("Pairs", "Magnitude against function", "Silencing a tenth of every layer",
              "TruthfulQA, and what its scores are worth", "Controls")  # fmt: skip
    places = [out.index(title) for title in (*titles, "Verdict: ")]
    assert places == sorted(places)
    assert " ".join(run.verdict.sentence.split()) in " ".join(out.split())
    assert out.endswith(f"run directory: {tmp_path / 'run'}\n")
    assert (given["model"], given["criteria"], given["dose_items"]) == (
        "a-model",
        ("ppm", "vow"),
        3,
    )


def test_without_silencing_there_are_floors_and_no_cuts(opened, data):
    given = {**QUICK, "causal_items": 0, "criteria": ("balanced(ppm)", "random:0")}
    found = glulens.hypothesis(opened, data=str(data), **given)
    assert found.answerers[0].name == "chance"
    assert found.doses == found.effects == ()
    console = Console(width=150)
    with console.capture() as shown:
        console.print(terminal(found))
    assert "what its scores are worth" in shown.get()
    assert "Silencing" not in shown.get()
    assert "Silencing" not in found._repr_html_()
    # A balanced criterion does not see the gauge: in others it says the same.
    check = next(c for c in found.verdict.checks if c.name == "the same in other gauges")
    gauged = [f"gauged:balanced(ppm):{seed}" for seed in range(3)]
    assert re.findall(r"([^ ]+) [+-]", check.found) == [*gauged, "is"]
    rhos = {row.criterion: row.rho for row in found.associations
            if (row.property, row.function) == ("fact", "attribution")}  # fmt: skip
    assert [rhos[name] for name in gauged] == pytest.approx([rhos["balanced(ppm)"]] * 3, abs=1e-6)
    assert rhos["random:0"] != pytest.approx(rhos["balanced(ppm)"], abs=1e-6)


def test_data_without_multiple_choice_say_so_and_the_rest_is_done(opened, data, tmp_path):
    some = shutil.copytree(data, tmp_path / "data")
    (some / "truthfulqa" / "mc_task.json").unlink()
    found = glulens.hypothesis(opened, data=str(some), **{**QUICK, "causal_items": 0})
    assert found.answerers == found.doses == ()
    said = [line for line in found.manifest["warnings"] if line.startswith("no multiple choice: ")]
    assert len(said) == 1
    assert "mc_task.json" in said[0]
    assert found.verdict.sentence


def test_a_plan_counts_the_questions_under_cuts(opened, data, monkeypatch, capsys):
    from glulens.interp import plan

    monkeypatch.setattr(plan, "_speed", lambda: 1e9)
    start = ("hypothesis", opened.source.path, "--data", data, "--limit", "20", "--dry-run",
             "--json")  # fmt: skip

    def seconds(*words: str) -> float:
        out, _ = says(capsys, *start, *words)
        return json.loads(out)["seconds"]

    without, some, more = (seconds("--dose-items", n) for n in ("0", "5", "10"))
    assert without < some < more
    # 25 cuts, and the intact model once on all questions of the limit.
    assert (more - without) / (some - without) == pytest.approx((20 + 250) / (20 + 125))
