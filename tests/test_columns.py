"""A run's table as columns: what rows are, how they are named, sorted and placed among others."""

from __future__ import annotations

import numpy as np
import polars
import pytest
from browsing import WIDTH, columns_of, dense, mixture, run_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from glulens.errors import GlulensError, RunError, UsageError
from glulens.neuron_keys import NeuronKeys
from glulens.rundir import NEURONS
from glulens.tui.columns import open_columns
from glulens.tui.ordering import ascending


@pytest.fixture
def columns(tmp_path):
    return columns_of(tmp_path / "run", dense())


def test_scores_come_first_then_what_neurons_do(columns):
    assert columns.names[:3] == ("ppm", "maw", "odd") == columns.scores
    assert set(columns.names[3:]) == columns.functional() & set(columns.names)
    assert (columns.conditions, columns.contrasts, columns.attributions) == (("fact",),) * 3
    assert columns.shown("rms_fact") == ("rms_fact", "ppm", "maw", "odd", "attr_fact", "dz_fact")
    assert columns.layers == (0, 1, 2)
    assert columns.widths == (WIDTH,) * 3


def test_a_score_called_like_a_function_stays_a_score(tmp_path):
    frame = dense().with_columns(mean_ppm_maw=polars.col("ppm"), min_thing=polars.col("maw"))
    columns = columns_of(tmp_path / "run", frame)
    assert {"mean_ppm_maw", "min_thing"} < set(columns.scores)
    assert "mean_fact" not in columns.scores


def test_columns_are_read_when_asked_for_and_once(columns, monkeypatch):
    read = []
    true = type(columns._run).neurons

    def neurons(self, names=None):
        read.append(names)
        return true(self, names)

    monkeypatch.setattr(type(columns._run), "neurons", neurons)
    first = columns["ppm"]
    assert columns["ppm"] is first
    assert read == [["ppm"]]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    assert columns["tokens_fact"].dtype == np.int32


def test_what_is_missing_is_nan(columns):
    values = dense()["attr_fact"]
    assert values.null_count() > 0
    assert np.array_equal(np.isnan(columns["attr_fact"]), values.is_null().to_numpy())


def test_an_unknown_column_is_named_with_the_nearest(columns):
    with pytest.raises(UsageError, match=r"no column 'pmp' \(did you mean 'ppm'\?\)"):
        columns["pmp"]
    assert "ppm" in columns
    assert "pmp" not in columns


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.select("layer", "neuron"),
        lambda f: f.select("layer", "neuron", name=polars.lit("x")),
        lambda f: f.head(0),
        lambda f: f.drop("layer"),
        lambda f: f.cast({"neuron": polars.String}),
        lambda f: f.with_columns(neuron=polars.lit(None, polars.Int32)),
        lambda f: f.with_columns(neuron=polars.lit(0, polars.Int32)),
        lambda f: f.with_columns(neuron=polars.col("neuron") - 1),
        lambda f: f.with_columns(expert=polars.lit("x"), part=polars.lit("expert")),
        lambda f: f.with_columns(layer=polars.lit(1 << 40)),
    ],
)
def test_a_table_that_is_none_is_one_line(tmp_path, change):
    run = run_of(tmp_path / "run", change(dense()))
    with pytest.raises(RunError) as caught:
        open_columns(run)
    assert "\n" not in str(caught.value)


def test_damaged_bytes_never_crash(tmp_path):
    run = run_of(tmp_path / "run", dense())
    whole = (run / NEURONS).read_bytes()
    rng = np.random.default_rng(0)
    said = set()
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 8):
            data[place] ^= int(rng.integers(1, 256))
        if rng.random() < 0.3:
            del data[rng.integers(1, len(data)) :]
        (run / NEURONS).write_bytes(data)
        try:
            columns = open_columns(run)
            for name in columns.names:
                _ = columns[name]
        except RunError as error:
            said.add(str(error))
    assert said
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize("vanish", [False, True])
def test_a_table_that_was_replaced_or_vanished_is_not_mixed_with_the_old(columns, vanish):
    _ = columns["ppm"]
    (columns.path / NEURONS).unlink()
    if not vanish:
        dense(seed=1).write_parquet(columns.path / NEURONS)
    with pytest.raises(RunError, match="replaced or removed since it was opened"):
        columns["maw"]
    assert len(columns["ppm"]) == columns.n, "what was read stays"


def test_rows_have_one_order_whatever_the_files(tmp_path):
    whole = columns_of(tmp_path / "a", dense())
    mixed = columns_of(tmp_path / "b", dense().sample(fraction=1, shuffle=True, seed=3))
    assert whole.keys.stored is None
    assert mixed.keys.stored is not None
    for name in ("layer", "neuron", *whole.names):
        assert np.array_equal(whole[name], mixed[name], equal_nan=True)
    assert [mixed.label(row) for row in (0, 41)] == ["L0.N0", "L1.N1"]


def test_neurons_of_experts_are_called_by_their_expert(tmp_path):
    columns = columns_of(tmp_path / "run", mixture())
    assert columns.widths == (4, 3, 3, 3, 5)
    assert [mlp.name for mlp in columns.mlps] == ["L0", "L1.E0", "L1.E1", "L1.E2", "L1.S"]
    for row in range(columns.n):
        assert columns.find(columns.label(row)) == row
    assert columns.find(" l1.e2.n0 ") == 10
    shuffled = NeuronKeys(mixture().sample(fraction=1, shuffle=True, seed=1))
    assert [shuffled.label(row) for row in range(18)] == [columns.label(row) for row in range(18)]
    for name in ("L1.N0", "L0.E1.N0", "L1.E3.N0", "L1.E0.N3"):
        with pytest.raises(UsageError, match="is not in this run; layers go to 1, neurons to 4"):
            columns.find(name)


def test_a_name_that_is_none_says_how_to_write_one(columns):
    for name in ("3.4", "L1", "N3", "L1.N", "L1.N-3", "L1N3", "L1.N³", ""):
        with pytest.raises(UsageError, match="write layer and number"):
            columns.find(name)
    with pytest.raises(UsageError, match=r"no experts; write L0\.N1"):
        columns.find("L0.E2.N1")
    with pytest.raises(UsageError, match="layers go to 2, neurons to 39"):
        columns.find("L0.N40")


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(
    st.one_of(
        arrays.arrays(np.float32, st.integers(0, 40), elements=FLOATS),
        arrays.arrays(np.float64, st.integers(0, 40), elements=st.floats()),
        *(
            arrays.arrays(kind, st.integers(0, 40))
            for kind in (np.int8, np.uint16, np.int32, np.uint32, np.int64, np.uint64)
        ),
    ),
    st.booleans(),
)
def test_sorting_is_stable_with_nan_last_both_ways(values, descending):
    numbers = [value.item() for value in values]
    missing = [row for row, value in enumerate(numbers) if value != value]
    there = [row for row in range(len(numbers)) if row not in missing]
    there.sort(key=lambda row: -numbers[row] if descending else numbers[row])
    before = values.copy()
    found = ascending(values, descending=descending)
    assert found.tolist() == there + missing
    assert found.dtype == np.int32
    assert np.array_equal(values, before, equal_nan=values.dtype.kind == "f"), "left as it was"


def test_orders_and_ranks_of_one_column_at_a_time_are_kept(columns):
    order = columns.order("ppm")
    assert columns.order("ppm") is order
    assert columns.order("ppm", descending=True) is not order
    rank = columns.rank("maw")
    assert columns["maw"][np.argsort(rank)].tolist() == sorted(columns["maw"].tolist())
    assert columns.rank("maw") is rank


def test_a_percentile_counts_half_of_the_ties(tmp_path):
    frame = polars.DataFrame(
        {
            "layer": [0] * 4 + [1] * 2,
            "neuron": [0, 1, 2, 3, 0, 1],
            "ppm": [1.0, 2.0, 2.0, None, -3.0, 5.0],
        }
    )
    columns = columns_of(tmp_path / "run", frame)
    assert columns.percentile("ppm", 0) == pytest.approx(100 * 0.5 / 3)
    assert columns.percentile("ppm", 1) == pytest.approx(100 * 2 / 3)
    assert columns.percentile("ppm", 1, "model") == pytest.approx(100 * 3 / 5)
    assert columns.percentile("ppm", 4, "model") == pytest.approx(100 * 0.5 / 5)
    assert columns.percentile("ppm", 4, "model", size=True) == pytest.approx(100 * 3.5 / 5)
    assert np.isnan(columns.percentile("ppm", 3))


def test_one_neuron_is_a_table(tmp_path):
    columns = columns_of(tmp_path / "run", dense().head(1))
    assert columns.order("ppm").tolist() == [0]
    assert columns.percentile("ppm", 0) == 50


def test_every_error_is_one_for_the_user(tmp_path):
    with pytest.raises(GlulensError, match="no such run directory"):
        open_columns(tmp_path / "nothing")
