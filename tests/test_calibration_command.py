"""`glulens calibrate` from start to end: what a run holds, how it goes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars
import pytest
from commands import says
from families import make, save_tokenizer
from tuned_stories import save_stories

import glulens
from glulens.errors import DataError, RunError, UsageError
from glulens.interp import calibration as module
from glulens.interp.calibrate import PLANTED, RANDOM, REVERSED, STRENGTHS

QUICK: dict[str, Any] = {
    "limit": 44,
    "plantings": 1,
    "orders": 3,
    "permutations": 100,
    "bootstraps": 100,
}
WORDS = ("--limit", "44", "--plantings", "1", "--orders", "3")


@pytest.fixture(scope="module")
def folder(stories, tmp_path_factory) -> Path:
    return save_stories(stories, tmp_path_factory.mktemp("model") / "stories")


@pytest.fixture(scope="module")
def run(stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    return glulens.calibrate(stories, output=path, criterion="maw", **QUICK)


def test_the_run_directory_holds_every_planting_and_how_often_it_was_told(run):
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json", "plantings.csv", "rates.csv", "report.md", "report.html",
        "figures/power.png", "figures/power.svg", "figures/power.csv",
    }  # fmt: skip
    assert sorted(p.name for p in run.path.parent.iterdir()) == ["run"]
    plantings = polars.read_csv(run.path / "plantings.csv")
    kinds = plantings.group_by("kind", maintain_order=True).len().rows()
    assert kinds == [(PLANTED, len(STRENGTHS)), (REVERSED, len(STRENGTHS)), (RANDOM, 3)]
    rates = polars.read_csv(run.path / "rates.csv")
    assert rates["n"].to_list() == [1] * 2 * len(STRENGTHS) + [3]
    told = rates.select("supported", "contradicted", "no_evidence", "cannot_tell")
    assert told.sum_horizontal().to_list() == rates["n"].to_list()
    assert polars.read_csv(run.path / "figures" / "power.csv").equals(rates)
    manifest = glulens.open_run(run.path).manifest
    assert manifest["command"] == "calibrate"
    assert manifest["status"] == "complete"
    assert manifest["options"]["criterion"] == "maw"
    assert manifest["items"]["misconception"] == 44
    assert manifest["model"]["neurons"] == 5 * 172
    assert len(manifest["rates"]) == len(rates)


def test_a_planted_order_is_the_models_own_and_its_function_stays(run):
    assert run.order_kept == 1
    assert 0 < run.logit_change < 1e-4


def test_the_report_says_what_the_tables_say(run):
    said = (run.path / "report.md").read_text()
    summary = module.summary(run)
    wrong = sum(r.supported + r.contradicted for r in run.rates if r.kind == RANDOM)
    assert summary.startswith(f"Of 3 random orders {wrong} were called supported or contradicted")
    for part in (
        summary,
        "44 questions, criterion `maw`",
        "100.00% of neighbours",
        "(`rates.csv`)",
    ):
        assert part in said, part
    page = (run.path / "report.html").read_text()
    assert page.count("<img ") == 1
    assert "http" not in page


def test_a_stopped_run_goes_on_without_running_the_model_again(folder, tmp_path, capsys):
    from glulens.interp.calibrate import calibrate_contrasts
    from glulens.probes import contrasts

    def stops(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "run"
    command = ("calibrate", folder, *WORDS, "-o", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "calibrate_contrasts", stops)
        _, err = says(capsys, *command, code=130)
    assert f"interrupted; the same command with -o {path} --resume goes on" in err
    assert not path.exists()
    _, err = says(capsys, *command, code=5)
    assert "go on with --resume" in err
    seen: list[int] = []

    def listened(found: Any, widths: Any, **given: Any) -> Any:
        seen.append(len(found["misconception"].items))
        return calibrate_contrasts(found, widths, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrasts, "record_contrasts", stops)
        patch.setattr(module, "calibrate_contrasts", listened)
        out, err = says(capsys, *command, "--resume")
    assert seen == [44]
    assert "Of 3 random orders" in out
    assert f"run directory: {path}" in out
    assert "planted" in out.splitlines()[1]
    assert glulens.open_run(path).manifest["argv"][0] == "glulens"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_json_holds_the_rates_and_nothing_that_is_no_number(run, capsys, monkeypatch):
    monkeypatch.setattr(module, "calibrate", lambda model, **told: run)
    out, err = says(capsys, "calibrate", "a-model", "-o", run.path, "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["schema_version"] == 1
    assert found["path"] == str(run.path)
    assert found["order_kept"] == 1
    for said, row in zip(found["rates"], run.rates, strict=True):
        assert said["effect"] == (row.effect if row.effect == row.effect else None)
        assert (said["kind"], said["n"]) == (row.kind, row.n)
    assert f"run directory: {run.path}" in err
    monkeypatch.undo()
    _, err = says(capsys, "calibrate", "a-model", "-o", run.path, code=3)
    assert "exists" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"criterion": "vow_out"}, "criterion 'vow_out': an order can be planted into ppm, maw"),
        ({"plantings": 0}, "--plantings 0: at least 1"),
        ({"orders": 0}, "--orders 0: at least 1"),
        ({"permutations": 9}, "--permutations 9: at least 100"),
        ({"seed": -1}, "--seed -1: at least 0"),
        ({"limit": 0}, "limit 0"),
    ],
)
def test_bad_options_are_told_before_a_model_is_opened(options, said):
    with pytest.raises(UsageError, match=said):
        glulens.calibrate("no-such-model", **options)


def test_too_few_questions_and_nothing_to_go_on_with_are_told(stories, tmp_path):
    with pytest.raises(DataError, match="12 questions; calibration halves them and needs 40"):
        glulens.calibrate(stories, limit=12, output=tmp_path / "run")
    with pytest.raises(RunError, match="nothing to go on with"):
        glulens.calibrate(stories, output=tmp_path / "other", resume=True)


def test_a_model_without_gates_is_refused_before_it_is_run(tmp_path, monkeypatch, capsys):
    """A gate is what makes rescaling harmless; to record the contrasts first would take minutes."""
    from glulens.probes import contrasts

    def runs(*_: Any, **__: Any) -> None:
        pytest.fail("the model was run")

    monkeypatch.setattr(contrasts, "record_contrasts", runs)
    make("gpt2").save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    _, err = says(capsys, "calibrate", tmp_path / "model", "-o", tmp_path / "run", code=2)
    assert "MLP 0 has no gate: rescaling would change its function" in err
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_neuron_without_weights_takes_no_place_in_an_order(stories, tmp_path):
    from tuned_stories import copy_of

    opened = copy_of(stories)
    opened.model.model.layers[3].mlp.up_proj.weight[7] = 0
    with pytest.raises(UsageError, match="MLP 3: a neuron without weights"):
        glulens.calibrate(opened, output=tmp_path / "run", **QUICK)
    assert list(tmp_path.iterdir()) == []
