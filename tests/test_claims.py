"""The paper's published numbers, and what is recomputed from them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from commands import says

from glulens.errors import UsageError
from glulens.interp.claims import FLOORS, by_chance, claims, partial, published


def test_the_statistics_of_the_published_numbers():
    found = {row.model: row for row in claims().correlations}
    small, large = found["Llama-3.2-1B"], found["Llama-3.2-3B"]
    assert (round(large.r, 3), round(large.p, 3), large.n) == (-0.864, 0.012, 7)
    assert (round(small.r, 3), round(small.p, 3), small.n) == (-0.676, 0.096, 7)
    assert (round(large.rho, 3), round(small.rho, 3)) == (-0.607, -0.357)
    # Without the intact model nothing is left of the smaller model's.
    assert tuple(np.round(small.without, 3)) == (-0.883, -0.018)
    assert round(large.by_chance, 2) == 0.83
    assert round(small.by_chance, 3) == 0.995


def test_mc2_ends_at_the_floor_and_begins_below_it():
    found = [row for row in claims().distances if row.floor == "v1"]
    assert [round(row.intact, 4) for row in found] == [-0.0869, -0.0722, -0.0258]
    assert all(row.largest < 0.0021 for row in found)


def test_gains_on_ifeval():
    gains = {(row.model, row.fraction): row for row in claims().gains}
    assert len(gains) == 6 + 6 + 3
    best = gains["Llama-3.2-1B", 0.3]
    assert (round(best.relative, 2), round(best.z, 2)) == (0.75, 3.68)
    assert round(gains["Llama-3.2-3B", 0.4].z, 2) == 3.46
    assert round(gains["Llama-3.2-1B", 0.4].relative, 2) == 0.46
    assert gains["Llama-3.2-1B-Instruct", 0.4].z < -8
    # Holm by hand: the smallest of six times six, the next at least that.
    p = sorted(row.p for (model, _), row in gains.items() if model == "Llama-3.2-1B")
    assert best.holm == pytest.approx(6 * p[0])
    second = next(row for row in gains.values() if row.p == p[1])
    assert second.holm == pytest.approx(5 * p[1])


def test_the_file_holds_seven_cuts_of_thirteen_tasks():
    data = published()
    for model in ("Llama-3.2-1B", "Llama-3.2-3B"):
        assert len({task for task, _ in data[model]}) == 13
        assert {series.fractions for series in data[model].values()} == {
            (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
        }
    assert {len(series.values) for series in data["Llama-3.2-1B-Instruct"].values()} == {4}


def test_partial_correlation_is_that_of_three_correlations():
    x, y, z = np.random.default_rng(0).normal(size=(3, 12))
    xy, xz, yz = (float(np.corrcoef(a, b)[0, 1]) for a, b in ((x, y), (x, z), (y, z)))
    expected = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert partial(x, y, z) == pytest.approx(expected)


def test_any_two_increasing_series_of_two_points_correlate_fully():
    assert by_chance(0.999999, 2) == 1.0
    assert by_chance(0.5, 7) > by_chance(0.9, 7) > by_chance(0.99, 7)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_the_floors_are_those_of_the_official_files(official, version):
    items = json.loads((official / "truthfulqa" / version / "mc_task.json").read_text())
    shares = [np.mean(list(item["mc2_targets"].values())) for item in items]
    assert float(np.mean(shares)) == pytest.approx(FLOORS[version], abs=5e-5)


def test_the_command_prints_them_and_writes_json(capsys):
    out, _ = says(capsys, "claims")
    for word in ("-0.864", "-0.676", "82.8%", "+3.68"):
        assert word in out
    out, _ = says(capsys, "claims", "--model", "Llama-3.2-3B", "--json")
    told = json.loads(out)
    assert told["schema_version"] == 1
    assert [row["model"] for row in told["correlations"]] == ["Llama-3.2-3B"]


def test_another_model_has_no_published_numbers():
    with pytest.raises(UsageError, match=r"no published numbers for 'Llama-3\.2-7B'"):
        claims(["Llama-3.2-7B"])
