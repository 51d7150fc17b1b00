"""The main job from start to end, on a trained tiny model and on SmolLM2."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars
import pytest
from polars.testing import assert_frame_equal

import glulens
from glulens.errors import DataError, ResourceError, RunError, UsageError
from glulens.interp.hypothesis import Options
from glulens.interp.localisation import Localiser, Resamples, functional
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps

QUICK: dict[str, Any] = {"limit": 24, "permutations": 200, "bootstraps": 100, "causal_items": 8}


@pytest.fixture(scope="module")
def run(stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "stories"
    return glulens.hypothesis(stories, output=path, **QUICK)


def test_the_run_directory_holds_what_the_design_says(run):
    opened = glulens.open_run(run.path)
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    figures = {
        f"figures/{n}.{kind}" for n in ("localisation", "causal") for kind in ("png", "svg", "csv")
    }
    assert names == {"manifest.json", "neurons.parquet", "layers.csv", "report.md", *figures}
    manifest = opened.manifest
    assert manifest["status"] == "complete"
    assert set(manifest["outputs"]) == names - {"manifest.json"}
    assert manifest["model"]["neurons"] == 5 * 172
    assert manifest["items"] == {"misconception": 24, "fact": 24, "instruction": 24, "control": 24}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["data"])
    assert manifest["options"]["limit"] == 24
    assert manifest["versions"]["glulens"] == glulens.__version__
    assert run.verdict.sentence in opened.report


def test_the_table_has_one_row_a_neuron_and_no_holes(run):
    frame = polars.read_parquet(run.path / "neurons.parquet")
    assert frame.height == 860
    assert not frame.select("layer", "neuron").is_duplicated().any()
    assert frame.null_count().sum_horizontal().item() == 0
    assert frame.select(polars.col(polars.Float32).is_nan().any()).row(0).count(True) == 0
    assert frame.columns[:8] == ["layer", "neuron", "ppm", "maw", "vow", "pon", "l2", "random_0"]
    for name in ("misconception", "fact", "instruction", "control"):
        for kind in ("diff", "dz", "attr", "mean", "rms", "positive", "min", "max"):
            assert f"{kind}_{name}" in frame.columns


def test_the_associations_can_be_recomputed_from_the_table(run, stories):
    from scipy import stats

    frame = run.neurons
    for row in run.associations:
        column = {"attribution": "attr_", "dz": "dz_"}[row.function] + row.property
        rhos = [
            stats.spearmanr(layer[row.criterion.replace(":", "_")], layer[column].abs()).statistic  # pyright: ignore
            for layer in frame.partition_by("layer")
        ]
        assert row.rho == pytest.approx(np.mean(rhos), abs=2e-4)


def test_same_seed_same_bytes_other_seed_other_items(run, stories, tmp_path):
    again = glulens.hypothesis(stories, output=tmp_path / "again", **QUICK)
    assert again.path is not None
    assert_frame_equal(run.neurons, again.neurons)
    for name in ("neurons.parquet", "layers.csv", "figures/localisation.svg", "figures/causal.csv"):
        assert (run.path / name).read_bytes() == (again.path / name).read_bytes(), name
    assert again.associations == run.associations
    other = glulens.hypothesis(stories, seed=1, **QUICK)
    assert not other.neurons.equals(run.neurons)
    assert other.path is None


def test_the_lens_engine_says_the_same(run, stories):
    pytest.importorskip("transformer_lens")
    import copy

    from glulens.prune.models import OpenedModel

    fresh = OpenedModel(copy.deepcopy(stories.model), stories.tokenizer, stories.source)
    theirs = glulens.hypothesis(fresh, engine="lens", **QUICK)
    keys = [c for c in run.neurons.columns if c.startswith(("attr_", "diff_", "rms_"))]
    assert_frame_equal(
        run.neurons.select(keys), theirs.neurons.select(keys), abs_tol=1e-4, rel_tol=1e-3
    )


def test_causal_sets_are_tenths_and_the_random_ones_differ(run):
    kinds = {(row.set, row.kind, row.n_neurons) for row in run.changes}
    assert {n for _, _, n in kinds} == {5 * 17}
    assert sorted(kind for _, kind, _ in kinds) == ["highest", "lowest", *["random"] * 5]
    damage = [row.change for row in run.changes if row.quantity == "damage"]
    assert len(set(damage)) == 7
    assert all(row.low <= row.change <= row.high for row in run.changes)


def test_the_causal_look_can_be_left_out(stories, tmp_path):
    no_causal: dict[str, Any] = {**QUICK, "causal_items": 0}
    found = glulens.hypothesis(stories, output=tmp_path / "r", **no_causal)
    assert found.changes == ()
    assert not (tmp_path / "r" / "figures" / "causal.png").exists()
    assert "Silencing" not in (tmp_path / "r" / "report.md").read_text()


def test_controls_are_in_no_family(run):
    for row in run.associations:
        control = row.criterion == "random:0" or row.property == "control"
        assert (row.q != row.q) == control
        if not control:
            assert row.q >= row.p
    json.dumps(run.to_json(), allow_nan=False)


def test_smollm2_run_scores_are_the_models(smollm):
    found = glulens.hypothesis(
        smollm, limit=3, permutations=100, bootstraps=100, causal_items=0, criteria=("vow", "ppm")
    )
    assert found.neurons.height == 46_080
    scores = score_mlps(find_mlps(smollm.model), ["ppm"])["ppm"]
    assert found.neurons["ppm"].to_numpy()[1536:3072].tolist() == scores[1].tolist()
    assert found.verdict.criterion == "vow"
    assert found.manifest["model"]["sha256"] == smollm.source.sha256


def test_score_is_the_smallest_useful_call(smollm):
    frame = glulens.score(smollm, ["ppm", "random:1"])
    assert frame.columns == ["layer", "neuron", "ppm", "random_1"]
    assert frame.height == 46_080


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit 0"),
        ({"criteria": ()}, "no criterion"),
        ({"criteria": ("mow",)}, "did you mean"),
        ({"criteria": ("reversed:ppm",)}, "carries the verdict"),
        ({"seed": -1}, "--seed -1"),
        ({"max_tokens": 0}, "--max-tokens 0"),
        ({"limitt": 3}, "unknown option 'limitt'"),
        ({"engine": "hokks"}, "allowed are hooks, lens"),
    ],
)
def test_bad_options_are_told_before_any_work(options, message, stories):
    with pytest.raises(UsageError, match=message):
        glulens.hypothesis(stories, **({"limit": 2, "causal_items": 0} | options))


def test_data_and_places_are_checked_first(stories, tmp_path):
    with pytest.raises(DataError, match="no such data folder"):
        glulens.hypothesis(stories, data=str(tmp_path / "nowhere"))
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        glulens.hypothesis(stories, output=tmp_path / "run")


def test_options_are_documented():
    import ast
    import inspect

    from glulens.interp import hypothesis as module

    tree = ast.parse(inspect.getsource(module))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Options").body
    fields = [n for n in body if isinstance(n, ast.AnnAssign)]
    texts = [n for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    assert len(texts) == len(fields) + 1
    assert Options().criteria[0] == "ppm"


def test_layers_csv_holds_what_the_statistic_averages(run, stories):
    layers = polars.read_csv(run.path / "layers.csv")
    mean = layers.filter(
        (polars.col("property") == "fact")
        & (polars.col("function") == "dz")
        & (polars.col("criterion") == "ppm")
    )["rho"].mean()
    row = next(
        r
        for r in run.associations
        if (r.property, r.function, r.criterion) == ("fact", "dz", "ppm")
    )
    assert row.rho == pytest.approx(mean, abs=1e-6)
    localiser = Localiser({"ppm": score_mlps(find_mlps(stories.model), ["ppm"])["ppm"]})
    values = functional(
        run.neurons.select("dz_fact").to_numpy().T, Resamples.observed(1), "attribution"
    )
    assert localiser.by_layer(values)[0].mean() == pytest.approx(row.rho, abs=1e-4)


def test_memory_that_runs_out_names_the_option_to_lower(stories, monkeypatch, tmp_path):
    """On a CPU torch says so with a plain RuntimeError; other RuntimeErrors are not hidden."""
    from glulens.probes import contrasts

    def fails(message):
        def read(*_):
            raise RuntimeError(message)

        return read

    said = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"
    monkeypatch.setattr(contrasts, "read", fails(said))
    with pytest.raises(
        ResourceError, match=r"lower --max-tokens \(now 1024\) or --limit"
    ) as caught:
        glulens.hypothesis(stories, limit=4, output=tmp_path / "run")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(contrasts, "read", fails("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        glulens.hypothesis(stories, limit=4)


def test_the_causal_look_draws_from_all_of_the_material():
    from glulens.datasets.pairs import load_material
    from glulens.interp.hypothesis import Options, causal_draw

    material = load_material("builtin", limit=None, seed=0)
    pairs, passages = causal_draw(material, Options(causal_items=12))
    assert {name: len(found) for name, found in pairs.items()} == {
        "misconception": 12, "fact": 12, "instruction": 12,
    }  # fmt: skip
    assert len(passages) == 6
    assert passages != list(material.neutral[:6])
    assert causal_draw(material, Options(causal_items=12))[1] == passages
    assert causal_draw(material, Options(causal_items=12, seed=1))[1] != passages
