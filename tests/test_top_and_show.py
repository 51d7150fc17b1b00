"""`glulens top` and `glulens show`: the browser's tables for scripts."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import polars
import pytest
from browsing import columns_of, dense, mixture, run_of
from commands import says
from scipy import stats

from glulens import tables
from glulens.rundir import NEURONS
from glulens.tui.facts import facts
from glulens.tui.keys import KEYS, read_keys
from glulens.tui.plain import aligned, top


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("top") / "run", dense())


def test_top_lists_the_ranking(run, capsys):
    out, err = says(capsys, "top", run, "--by", "maw", "--desc", "-n", "3")
    best = dense().sort("maw", descending=True).head(3)
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["rank", "neuron", "maw"]
    names = [f"L{layer}.N{neuron}" for layer, neuron in best.select("layer", "neuron").rows()]
    assert [line.split()[1] for line in lines[1:]] == names
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    assert "3 of 120 neurons, highest maw first" in err


def test_top_filters_and_says_how_many_pass(run, capsys):
    out, err = says(capsys, "top", run, "--where", "layer == 1 and neuron < 5", "-n", "50")
    assert {line.split()[1].split(".")[0] for line in out.splitlines()[1:]} == {"L1"}
    assert "5 of 5 neurons where layer == 1 and neuron < 5, lowest ppm first" in err
    out, err = says(capsys, "top", run, "--where", "layer == 9")
    assert len(out.splitlines()) == 1
    assert "0 of 0 neurons" in err


def test_json_and_csv_hold_every_digit(run, capsys):
    words = ("top", run, "--by", "attr_fact", "--desc", "-n", "120", "--columns", "attr_fact,odd")
    out, _ = says(capsys, *words, "--json")
    found = json.loads(out)
    assert found["schema_version"] == 1
    assert (found["by"], found["descending"], found["total"], found["passed"]) == (
        "attr_fact", True, 120, 120,
    )  # fmt: skip
    wanted = dense().with_row_index().sort("attr_fact", descending=True, nulls_last=True)
    records = found["neurons"]
    assert [record["attr_fact"] for record in records] == wanted["attr_fact"].to_list()
    assert records[-1]["attr_fact"] is None
    assert list(records[0]) == ["rank", "label", "layer", "neuron", "attr_fact", "odd"]
    out, _ = says(capsys, *words, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["label"] for row in rows] == [record["label"] for record in records]
    for row, record in zip(rows, records, strict=True):
        assert row["attr_fact"] == (
            "" if record["attr_fact"] is None else repr(record["attr_fact"])
        )
    assert {row["odd"] for row in rows} >= {"inf", "-inf", "", "1.5"}
    frame = polars.read_csv(io.StringIO(out))
    assert frame["odd"].dtype == polars.Float64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--by", "pmp"), "no column 'pmp' (did you mean 'ppm'?)"),
        (("--columns", "ppm,xyz"), "no column 'xyz'; there are layer, neuron, ppm"),
        (("--where", "ppm >"), "filter, at 6: a name, a number or a condition is missing"),
        (("-n", "0"), "-n 0: at least 1"),
        (("--json", "--csv"), "give one"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(run, capsys, words, said):
    out, err = says(capsys, "top", run, *words, code=2)
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


def test_no_run_is_exit_code_3(tmp_path, capsys):
    for words in (["top", tmp_path / "no"], ["show", tmp_path / "no", "L0.N0"]):
        _, err = says(capsys, *words, code=3)
        assert "no such run directory" in err


def test_the_grammar_is_printed_without_a_run(capsys):
    out, _ = says(capsys, "top", "--grammar")
    assert "pct(x, p)" in out


def test_on_a_screen_only_columns_that_fit_are_shown(run):
    from glulens.tui.columns import open_columns

    found = top(open_columns(run), by="maw")
    for width in (24, 40, 60, 200):
        lines = list(aligned(found.cells(width)))
        assert max(map(len, lines)) <= width
        assert "maw" in lines[0]
    assert len(found.cells(200)[0]) > len(found.cells(40)[0])
    assert max(map(len, aligned(found.cells(1)))) < 24, "the column ranked by always stays"


def test_hostile_column_names_move_nothing(tmp_path, capsys):
    frame = dense().rename({"ppm": "p\x1b]0;x\x07m", "maw": "[red]宽"})
    run = run_of(tmp_path / "run", frame)
    for words in (("top", run), ("show", run, "L0.N1")):
        out, _ = says(capsys, *words)
        assert r"p\x1b]0;x\x07m" in out
        assert "[red]宽" in out
        assert out.replace("\n", "").isprintable()


def test_show_says_everything_and_what_is_missing(run, capsys):
    out, _ = says(capsys, "show", run, "L1.N2")
    for words in ("L1.N2, one of 40 neurons of layer 1", "scores", "attribution", "contrasts",
                  "activation", "holds no examples", "holds no vocabulary"):  # fmt: skip
        assert words in out
    out, _ = says(capsys, "show", run, "L1.N2", "--json")
    found = json.loads(out)
    assert found["schema_version"] == 1
    assert found["label"] == "L1.N2"
    assert found["scores"][0]["value"] == pytest.approx(dense()["ppm"][42])
    assert found["examples"] is None
    assert "glulens probe" in found["missing"]["examples"]
    _, err = says(capsys, "show", run, "L9.N2", code=2)
    assert "layers go to 2" in err


def test_facts_are_the_tables_numbers(tmp_path):
    frame = dense().with_columns(
        t_fact=polars.lit(2.5), sd_fact=polars.lit(0.5), auroc_fact=polars.lit(0.75)
    )
    about = {"contrasts": {"fact": {"pairs": 16}}}
    found = facts(columns_of(tmp_path / "run", frame, **about), 42)
    (activation,), (contrast,), (attribution,) = (
        found.activations, found.contrasts, found.attributions,
    )  # fmt: skip
    row = frame.row(42, named=True)
    assert (activation.mean, activation.sd, activation.tokens) == (row["mean_fact"], 0.5, 42)
    assert activation.median is None
    assert (contrast.diff, contrast.t, contrast.auroc, contrast.pairs) == (
        row["diff_fact"], 2.5, 0.75, 16,
    )  # fmt: skip
    size = frame["attr_fact"].abs().to_numpy()
    less = (size[40:80] < size[42]).sum() + 0.5
    assert attribution.in_layer == pytest.approx(100 * less / np.isfinite(size[40:80]).sum())


def test_what_lies_beside_the_table_is_shown_too(tmp_path, capsys):
    run = run_of(tmp_path / "run", dense())
    entries = np.zeros((120, 2), tables.ENTRY)
    entries["value"][42], entries["text"] = 7.5, np.where(np.arange(120) == 42, 0, -1)[:, None]
    entries["position"] = 1
    tables.save_tables(run / tables.EXAMPLES, dict.fromkeys(tables.SIDES, entries))
    tokens = json.dumps(["The ", "\x1b]0;x\x07[red]"])
    about = {"set": ["s"], "item": ["i"], "condition": ["c"], "tokens": [tokens]}
    polars.DataFrame(about).write_parquet(run / tables.TEXTS)
    out, _ = says(capsys, "show", run, "L1.N2")
    assert r"+7.5  The [\x1b]0;x\x07[red]]" in out
    assert "holds no examples" not in out
    out, _ = says(capsys, "show", run, "L1.N2", "--json")
    found = json.loads(out)
    assert found["examples"]["high"][0]["value"] == 7.5
    assert set(found["missing"]) == {"activation_histograms", "weight_histograms", "vocabulary"}
    (run / tables.EXAMPLES / "high.npy").write_bytes(b"")
    out, _ = says(capsys, "show", run, "L1.N2")
    assert "the examples of" in out
    assert "cannot be read" in out


def test_the_list_of_keys_is_a_key_file(tmp_path, capsys):
    out, _ = says(capsys, "browse", "--list-keys")
    (tmp_path / "keys.toml").write_text(out)
    assert read_keys(tmp_path / "keys.toml") == {key.id: key.keys for key in KEYS}
    (tmp_path / "keys.toml").write_text("[keys]\nfliter = 'f'\n")
    run = run_of(tmp_path / "run", dense())
    _, err = says(capsys, "browse", run, "--keys", tmp_path / "keys.toml", code=2)
    assert "did you mean 'filter'?" in err


def test_a_contrasts_interval_is_students(tmp_path):
    pairs = np.random.default_rng(0).normal(0.3, 1, 12)
    frame = (
        dense()
        .head(2)
        .with_columns(
            diff_fact=polars.lit(pairs.mean()), dz_fact=polars.lit(pairs.mean() / pairs.std(ddof=1))
        )
    )
    wanted = stats.ttest_1samp(pairs, 0).confidence_interval(0.95)
    (found,) = facts(columns_of(tmp_path / "a", frame, items={"fact": 12}), 0).contrasts
    assert (found.low, found.high) == pytest.approx(tuple(wanted))
    for number, odd in enumerate(({}, {"items": {"fact": 1}}, {"items": {"fact": "12"}})):
        (found,) = facts(columns_of(tmp_path / f"b{number}", frame, **odd), 0).contrasts
        assert (found.low, found.high) == (None, None)
    never = frame.with_columns(diff_fact=polars.lit(0.0), dz_fact=polars.lit(0.0))
    (found,) = facts(columns_of(tmp_path / "c", never, items={"fact": 12}), 0).contrasts
    assert (found.low, found.high) == (None, None)


def test_experts_are_shown_by_their_names(tmp_path, capsys):
    run = run_of(tmp_path / "run", mixture())
    out, _ = says(capsys, "top", run, "-n", "2")
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["L1.S.N4", "L1.S.N3"]
    out, _ = says(capsys, "show", run, "l1.e2.n0")
    assert out.startswith("L1.E2.N0, one of 14 neurons of layer 1")


def test_a_run_that_was_damaged_meanwhile_is_one_line(tmp_path, capsys):
    run = run_of(tmp_path / "run", dense())
    (run / NEURONS).write_bytes(b"PAR1 nothing PAR1")
    _, err = says(capsys, "top", run, code=3)
    assert err.count("\n") == 1
