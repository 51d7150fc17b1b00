"""The main job from start to end, on a trained tiny model and on SmolLM2."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars
import pytest
from polars.testing import assert_frame_equal

import glulens
from glulens.errors import DataError, ResourceError, RunError, UnfinishedError, UsageError
from glulens.interp.causal import EVERY, causal_draw
from glulens.interp.localiser import Localiser
from glulens.interp.options import Options
from glulens.interp.resamples import Resamples, functional
from glulens.prune.expressions import column
from glulens.prune.mlps import find_mlps
from glulens.prune.scoring import score_mlps

QUICK: dict[str, Any] = {
    "umap": False,
    "limit": 24,
    "permutations": 200,
    "bootstraps": 100,
    "causal_items": 4,
    "map_items": 0,
    "causal_random": 10,
    "null_items": 0,
    "decode_every": 0,
}
DRAWN = {"umap": True}
EVERYTHING: dict[str, Any] = {**QUICK, "map_items": 3, "null_items": 24, "decode_every": 2}


@pytest.fixture(scope="module")
def run(stories, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "stories"
    return glulens.hypothesis(stories, output=path, **{**EVERYTHING, **DRAWN})


def test_the_run_directory_holds_what_the_design_says(run):
    opened = glulens.open_run(run.path)
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    drawn = ("localisation", "null", "magnitude", "mass", "causal", "map", "decoding", "umap")
    figures = {f"figures/{name}.{kind}" for name in drawn for kind in ("png", "svg", "csv")}
    tables = {f"tables/{name}.csv" for name in run.tables()}
    files = {"manifest.json", "neurons.parquet", "report.md", "report.html"}
    weights = {f"weights/{name}.npy" for name in ("gate", "up", "down", "bins")}
    assert names == files | figures | tables | weights
    assert not list(run.path.parent.glob("*.unfinished"))
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
    assert frame.columns[8:12] == ["balanced_ppm", *(f"gauged_ppm_{seed}" for seed in range(3))]
    for name in ("misconception", "fact", "instruction", "control"):
        for kind in ("diff", "dz", "attr", "mean", "rms", "positive", "min", "max"):
            assert f"{kind}_{name}" in frame.columns


def test_the_associations_can_be_recomputed_from_the_table(run, stories):
    from scipy import stats

    frame = run.neurons
    for row in run.associations:
        if row.function == "auroc":  # ranks of means, which the table does not hold
            continue
        name = {"attribution": "attr_", "dz": "dz_"}[row.function] + row.property
        rhos = [
            stats.spearmanr(layer[column(row.criterion)], layer[name].abs()).statistic  # pyright: ignore
            for layer in frame.partition_by("layer")
        ]
        assert row.rho == pytest.approx(np.mean(rhos), abs=2e-4)


@pytest.mark.slow  # the same again as `test_a_killed_run_goes_on_and_says_the_same`, and more
def test_same_seed_same_bytes_other_seed_other_items(run, stories, tmp_path):
    again = glulens.hypothesis(stories, output=tmp_path / "again", **EVERYTHING)
    assert again.path is not None
    assert_frame_equal(run.neurons, again.neurons)
    tables = [f"tables/{name}.csv" for name in run.tables()]
    for name in ("neurons.parquet", "figures/localisation.svg", "figures/mass.csv", *tables):
        assert (run.path / name).read_bytes() == (again.path / name).read_bytes(), name
    assert again.associations == run.associations
    other = glulens.hypothesis(stories, seed=1, **{**QUICK, "causal_items": 0})
    assert not other.neurons.equals(run.neurons)
    assert other.path is None


@pytest.mark.slow
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


def test_all_tenths_are_silenced_and_the_map_has_every_layer(run):
    whole = [row for row in run.effects if row.layer == EVERY]
    for replacing in ("mean", "zero"):
        own = {row.tenth for row in whole if (row.replacing, row.draw) == (replacing, -1)}
        assert own == set(range(10))
        random = {(r.draw, r.tenth) for r in whole if r.replacing == replacing and r.draw >= 0}
        assert len(random) == 10
    cells = {(row.layer, row.tenth) for row in run.effects if row.layer >= 0 and row.draw == -1}
    assert cells == {(layer, tenth) for layer in range(5) for tenth in range(10)}
    assert all(row.low <= row.change <= row.high for row in run.effects)
    items = run.items.filter(polars.col("quantity") == "misconception")
    key = "zero", 0, -1, "misconception"
    row = next(r for r in whole if (r.replacing, r.tenth, r.draw, r.quantity) == key)
    chosen = items.filter(replacing="zero", layer=EVERY, tenth=0, draw=-1)
    assert chosen.height == 4
    assert chosen["change"].mean() == pytest.approx(row.change, rel=1e-4)


def test_parts_can_be_left_out(stories, tmp_path):
    found = glulens.hypothesis(stories, output=tmp_path / "r", **{**QUICK, "causal_items": 0})
    assert found.effects == found.overlaps == found.nulls == found.answerers == ()
    assert found.decoding is None
    assert not (tmp_path / "r" / "figures" / "causal.png").exists()
    said = (tmp_path / "r" / "report.md").read_text()
    assert "## Silencing" not in said
    assert "## Models that know nothing" not in said
    no_map = glulens.hypothesis(stories, **QUICK)
    assert {row.layer for row in no_map.effects} == {EVERY}


def test_models_that_know_nothing_and_controls_stand_beside_the_verdict(run):
    assert [row.model for row in run.nulls] == ["untrained", "row-shuffled"]
    assert all(row.outcome in ("no evidence", "cannot tell") for row in run.nulls)
    required = [check.name for check in run.verdict.checks if check.required]
    assert required == ["untrained model", "row-shuffled model"]
    names = {check.name for check in run.verdict.checks}
    assert "silencing the lowest tenth (mean) helps the truth" in names
    assert run.verdict.outcome in ("no evidence", "cannot tell"), (
        "a model of stories knows no facts"
    )


def test_a_killed_run_goes_on_and_says_the_same(run, stories, tmp_path, monkeypatch):
    from glulens.interp import experiments

    def dies(*_, **__):
        raise KeyboardInterrupt

    path = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(experiments, "silence", dies)
        with pytest.raises(KeyboardInterrupt):
            glulens.hypothesis(stories, output=path, **EVERYTHING)
    assert not path.exists()
    with pytest.raises(UnfinishedError, match="--resume"):
        glulens.hypothesis(stories, output=path, **EVERYTHING)
    found = glulens.hypothesis(stories, output=path, resume=True, **EVERYTHING)
    assert "contrasts-misconception-control" in found.manifest["resumed"]
    assert_frame_equal(found.neurons, run.neurons)
    for name, table in run.tables().items():
        assert_frame_equal(table, found.tables()[name])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_the_page_stands_alone(run):
    page = (run.path / "report.html").read_text()
    assert page.count("<img ") == 8
    assert all("data:image/png;base64," in part[:60] for part in page.split("<img ")[1:])
    for outside in ("http:", "https:", "<script", '<link rel="stylesheet', "@import", "url("):
        assert outside not in page, outside
    assert len(page) < 3_000_000
    assert run.verdict.outcome in page


def test_controls_are_in_no_family(run):
    for row in run.associations:
        control = row.criterion not in ("ppm", "maw", "vow", "pon", "l2")
        control = control or row.property == "control"
        assert (row.q != row.q) == control
        if not control:
            assert row.q >= row.p
    json.dumps(run.to_json(), allow_nan=False)


def test_smollm2_run_scores_are_the_models(smollm):
    found = glulens.hypothesis(
        smollm, limit=3, permutations=100, bootstraps=100, causal_items=0, null_items=0,
        decode_every=0, criteria=("vow", "ppm"),
    )  # fmt: skip
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

    from glulens.interp import options as module

    tree = ast.parse(inspect.getsource(module))
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Options").body
    fields = [n for n in body if isinstance(n, ast.AnnAssign)]
    texts = [n for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    assert len(texts) == len(fields) + 1
    assert Options().criteria[0] == "ppm"


def test_layers_csv_holds_what_the_statistic_averages(run, stories):
    layers = polars.read_csv(run.path / "tables" / "layers.csv")
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
    assert localiser.by_layer(values).rho.mean() == pytest.approx(row.rho, abs=1e-4)


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
        glulens.hypothesis(stories, limit=4, null_items=0, causal_items=0, output=tmp_path / "run")
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(contrasts, "read", fails("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        glulens.hypothesis(stories, limit=4)


def test_the_causal_look_draws_from_all_of_the_material():
    from glulens.datasets.pairs import load_material

    material = load_material("builtin", limit=None, seed=0)
    pairs, passages = causal_draw(material, 12, 0)
    assert {name: len(found) for name, found in pairs.items()} == {
        "misconception": 12, "fact": 12, "instruction": 12,
    }  # fmt: skip
    assert len(passages) == 6
    assert passages != list(material.neutral[:6])
    assert causal_draw(material, 12, 0)[1] == passages
    assert causal_draw(material, 12, 1)[1] != passages
