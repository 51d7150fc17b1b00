"""What a run keeps beside its table is read row by row; whatever is wrong with it is one line."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest

from glulens import tables
from glulens.errors import RunError
from glulens.rundir import write_manifest, writing
from glulens.tables import (
    ACTIVATION_EDGES,
    ENTRY,
    LISTED,
    SCALE,
    activation_histograms,
    examples_of,
    sample_means,
    save_array,
    save_tables,
    vocabulary,
    weight_histograms,
)

NEURONS = 7
READERS = (examples_of, activation_histograms, weight_histograms, vocabulary)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run with everything; never written into."""
    path = tmp_path_factory.mktemp("tables") / "run"
    rng = np.random.default_rng(0)
    with writing(path) as scratch:
        entries = {side: np.zeros((NEURONS, 2), ENTRY) for side in tables.SIDES}
        for side, table in entries.items():
            table["value"] = rng.normal(size=table.shape)
            table["position"] = 1
            table["text"] = -1 if side == "spread" else 1
        save_tables(scratch / "examples", entries)
        polars.DataFrame(
            {
                "set": ["s", "s"], "item": ["a", "b"], "condition": ["x", "y"],
                "answer_from": [1, 1], "tokens": [json.dumps(["a"]), json.dumps(["b", "\x1b[1m"])],
            }
        ).write_parquet(scratch / "texts.parquet")  # fmt: skip
        counts = rng.integers(0, 9, (NEURONS, 64), np.uint32)
        save_tables(scratch / "histograms", {"0-x": counts})
        weights = {m: rng.integers(0, 9, (NEURONS, 24), np.uint16) for m in tables.MATRICES}
        save_tables(scratch / "weights", weights)
        scale = np.array([[(0, 1.0, 2.0, 3.0)], [(4, 0.1, 0.2, 0.3)]], SCALE)
        save_array(scratch / "weights" / "bins.npy", scale)
        listed = np.zeros((NEURONS, 3), LISTED)
        listed["token"], listed["value"] = [5, 3, -1], [2.5, 1.5, np.nan]
        save_tables(scratch / "vocabulary", dict.fromkeys(tables.LISTS, listed))
        polars.DataFrame({"id": [3, 5], "text": ["three", "[red]"]}).write_parquet(
            scratch / "vocabulary" / "tokens.parquet"
        )
        samples = np.arange(4 * NEURONS, dtype=np.float32).reshape(4, NEURONS)
        samples[:2, 1], samples[:, 2] = np.nan, np.nan
        save_array(scratch / "samples.npy", samples)
        write_manifest(scratch, {"histograms": {"s_x": "histograms/0-x.npy"}})
    return path


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def test_every_reader_reads_the_row_it_is_asked_for(whole):
    for row in range(NEURONS):
        found = examples_of(whole, row)
        stored = np.load(whole / "examples" / "high.npy")
        assert [one.value for one in found["high"]] == stored["value"][row].tolist()
        assert found["low"][0].tokens == ("b", "\x1b[1m")
        assert found["low"][0].about["condition"] == "y"
        assert found["spread"] == []
        histogram = activation_histograms(whole, row)["s_x"]
        assert (histogram.counts == np.load(whole / "histograms" / "0-x.npy")[row]).all()
        assert histogram.edges is ACTIVATION_EDGES
        for matrix, weights in weight_histograms(whole, row).items():
            assert (weights.counts == np.load(whole / "weights" / f"{matrix}.npy")[row]).all()
        listed = vocabulary(whole, row)
        assert list(listed) == list(tables.LISTS)
        assert [(one.text, one.value) for one in listed["in_up"]] == [
            ("[red]", 2.5),
            ("three", 1.5),
        ]


def test_the_edges_of_weights_are_those_of_the_neurons_mlp(whole):
    of_first, of_second = weight_histograms(whole, 3)["up"], weight_histograms(whole, 4)["up"]
    assert of_first.edges.tolist() == [2.0 * step for step in range(-11, 12)]
    np.testing.assert_allclose(of_second.edges, 0.1 * of_first.edges)


def test_a_plain_mlp_has_no_gate(run):
    (run / "weights" / "gate.npy").unlink()
    assert list(weight_histograms(run, 0)) == ["up", "down"]
    (run / "weights" / "up.npy").unlink()
    with pytest.raises(RunError, match="holds no weight histograms; make them with `glulens score"):
        weight_histograms(run, 0)


def test_means_are_over_the_tokens_that_a_neuron_saw(whole):
    # Column j holds j, j + 7, j + 14, j + 21; column 1 its last two, column 2 nothing.
    assert sample_means(whole, [0, 1, 2, 6, 0]).tolist() == [10.5, 18.5, 0.0, 16.5, 10.5]
    assert sample_means(whole, []).tolist() == []
    with pytest.raises(RunError, match="is of 7 neurons"):
        sample_means(whole, [7])


@pytest.mark.parametrize("read", [*READERS, lambda run, row: sample_means(run, [row])])
def test_what_is_missing_says_how_to_make_it(tmp_path, read):
    with writing(tmp_path / "run") as scratch:
        write_manifest(scratch, {})
    with pytest.raises(RunError, match="holds no .*; make them with `glulens (probe|score) MODEL"):
        read(tmp_path / "run", 0)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("row", [-1, NEURONS])
def test_a_row_that_is_not_there_is_an_error(whole, read, row):
    with pytest.raises(RunError, match=rf"7 rows, none of number {row}\)"):
        read(whole, row)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("../outside.npy", "names '../outside.npy', which is no file in histograms/"),
        ("histograms/../manifest.json", "no file in histograms/"),
        ("histograms/..", "no file in histograms/"),
        ("/etc/passwd", "no file in histograms/"),
        (3, "names 3"),
        ("histograms/0-x.npy\x00", "null byte"),
        ("histograms/gone.npy", "holds no activation histograms"),
    ],
)
def test_a_manifest_names_nothing_outside_its_run(run, file, line):
    manifest = json.loads((run / "manifest.json").read_text())
    save_array(run.parent / "outside.npy", np.zeros((NEURONS, 64), np.uint32))
    (run / "manifest.json").write_text(json.dumps({**manifest, "histograms": {"x": file}}))
    with pytest.raises(RunError) as caught:
        activation_histograms(run, 0)
    assert line in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "line"),
    [
        ("examples/low.npy", np.zeros((NEURONS, 2)), "holds float64"),
        ("histograms/0-x.npy", np.zeros((NEURONS, 8), np.uint32), "8 columns, not 64"),
        ("weights/up.npy", np.zeros(NEURONS, np.uint16), "not uint16 by rows"),
        ("weights/bins.npy", np.zeros((0, 1), SCALE), "the shape (0, 1)"),
        ("vocabulary/in_up.npy", np.full((NEURONS, 1), 9, LISTED), "does not know token 9"),
    ],
)
def test_an_array_of_another_kind_is_damage(run, name, array, line):
    save_array(run / name, array)
    messages = []
    for read in READERS:
        try:
            read(run, 1)
        except RunError as error:
            messages.append(str(error))
    assert len(messages) == 1
    assert line in messages[0]
    assert "cannot be read" in messages[0]


def test_pickles_are_never_opened(run):
    np.save(run / "weights" / "up.npy", np.array([[object()]]), allow_pickle=True)
    with pytest.raises(RunError, match="holds object"):
        weight_histograms(run, 0)


def test_new_texts_are_seen(run):
    assert examples_of(run, 0)["high"][0].tokens[0] == "b"
    frame = polars.read_parquet(run / "texts.parquet")
    frame.with_columns(tokens=polars.lit(json.dumps(["new", "text"]))).write_parquet(
        run / "texts.parquet"
    )
    assert examples_of(run, 0)["high"][0].tokens == ("new", "text")


def test_any_damage_is_one_line_or_other_numbers(run):
    draw = random.Random(0)
    files = [file for file in sorted(run.rglob("*")) if file.suffix in (".npy", ".parquet")]
    refused = []
    for _ in range(400):
        file = draw.choice(files)
        whole = file.read_bytes()
        data = bytearray(whole)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        else:
            for _ in range(draw.choice((1, 4))):
                data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
        file.write_bytes(bytes(data))
        for read in READERS:
            try:
                read(run, draw.randrange(NEURONS))
            except RunError as error:
                refused.append(str(error))
        file.write_bytes(whole)
    assert len(refused) > 100
    assert not any("\n" in line for line in refused)


def test_a_run_that_vanishes_is_an_error(run):
    shutil.rmtree(run)
    for read in READERS:
        with pytest.raises(RunError):
            read(run, 0)


def test_reading_needs_neither_torch_nor_numba():
    code = "import sys, glulens.tables; print(sorted({'torch', 'numba'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_full_disk_is_told_by_its_own_number(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left") as caught:
        save_array(Path("/dev/full"), np.zeros(1 << 20))
    assert caught.value.errno == 28
