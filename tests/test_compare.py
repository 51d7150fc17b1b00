"""A base and a tuned model side by side: numbers, verdicts, refusals, and what a run leaves."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from commands import glulens_says, says
from families import make, save_tokenizer
from gguf_files import gguf_files
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file
from tuned_stories import tuned_pair

import glulens
from glulens.errors import ModelError, RunError, UsageError
from glulens.interp import compare as module
from glulens.interp import figures_compare
from glulens.interp.compare_report import report
from glulens.interp.content import html, markdown
from glulens.interp.tuning_verdict import ChangeVerdict
from glulens.prune.budget import Budget
from glulens.prune.selection import NeuronSet, lowest
from glulens.prune.stream import prune_checkpoint
from glulens.rundir import write_manifest

DRAWS: dict[str, Any] = {"permutations": 200}
CRITERIA = ("ppm", "maw", "vow", "pon", "l2", "vow_out", "pon_io")


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of stories260k and of a copy that was fine-tuned for a few steps."""
    return tuned_pair(tmp_path_factory.mktemp("pair"), steps=20)


@pytest.fixture(scope="module")
def run(pair, tmp_path_factory):
    """The two, compared and written."""
    return glulens.compare(*pair, output=tmp_path_factory.mktemp("runs") / "run", **DRAWS)


@pytest.fixture
def small(tmp_path) -> Path:
    """A small random Llama on disk."""
    return saved(tmp_path / "small", "llama")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Runs are written without figures, which take longest."""
    monkeypatch.setattr(figures_compare, "draw_comparison", lambda _: iter(()))


def saved(folder: Path, family: str, **changes: Any) -> Path:
    make(family, **changes).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def changed(folder: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint whose tensors `change` has altered."""
    shutil.copytree(folder, target)
    tensors = weights(folder)
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def neurons(folder: Path, layer: int) -> tuple[np.ndarray, ...]:
    """Gate and up [neurons, hidden], and down transposed, in float64."""
    at = f"model.layers.{layer}.mlp"
    found = weights(folder)
    gate, up, down = (
        found[f"{at}.{m}_proj.weight"].double().numpy() for m in ("gate", "up", "down")
    )
    return gate, up, down.T


def verdict_of(found: glulens.CompareResult) -> ChangeVerdict:
    assert found.verdict is not None
    return found.verdict


# What is in the tables


def test_the_run_directory_holds_what_the_design_says(run):
    opened = glulens.open_run(run.path)
    names = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    drawn = ("tenths", "layers", "norms", "ranks")
    figures = {f"figures/{name}.{kind}" for name in drawn for kind in ("png", "svg", "csv")}
    tables = {f"tables/{name}.csv" for name in run.tables()}
    assert {"concentration", "layers", "tensors", "groups", "distributions", "scores", "kept-alike",
            "carriers"} == set(run.tables())  # fmt: skip
    files = {"manifest.json", "neurons.parquet", "report.md", "report.html"}
    assert names == files | figures | tables
    manifest = opened.manifest
    assert manifest["command"] == "compare"
    assert manifest["status"] == "complete"
    assert set(manifest["outputs"]) == names - {"manifest.json"}
    assert manifest["model"]["neurons"] == 860
    assert manifest["model"]["sha256"] != manifest["tuned"]["sha256"]
    assert manifest["verdict"]["outcome"] == run.verdict.outcome
    assert manifest["warnings"] == []
    for sentence in run.sentences:
        assert sentence in opened.report


def test_the_table_has_one_row_a_neuron_and_no_holes(run):
    frame = polars.read_parquet(run.path / "neurons.parquet")
    assert_frame_equal(frame, run.neurons)
    assert frame.select("layer", "neuron").rows() == [(k, n) for k in range(5) for n in range(172)]
    assert frame.null_count().sum_horizontal().item() == 0
    assert frame.select(polars.col(polars.Float32).is_finite().all()).row(0).count(False) == 0
    for name in CRITERIA:
        for start in ("base_", "tuned_", "delta_", "rank_shift_"):
            assert start + name in frame.columns
    assert "random_0" in frame.columns
    assert "delta_random_0" not in frame.columns
    assert frame["change"].min() > 0  # pyright: ignore


def test_numbers_are_those_of_the_weights(run, pair):
    base, tuned = (neurons(folder, 3) for folder in pair)
    differences = [b - a for a, b in zip(base, tuned, strict=True)]
    rows = run.neurons.filter(layer=3)
    squares = np.sum([np.square(d).sum(1) for d in differences], axis=0)
    before = np.sum([np.square(m).sum(1) for m in base], axis=0)
    close: Any = {"rtol": 1e-5}
    np.testing.assert_allclose(rows["change"], np.sqrt(squares), **close)
    np.testing.assert_allclose(rows["change_relative"], np.sqrt(squares / before), **close)
    np.testing.assert_allclose(rows["change_share"], squares / squares.sum(), **close)
    for role, a, b, d in zip(("gate", "up", "down"), base, tuned, differences, strict=True):
        size, norm = np.linalg.norm(d, axis=1), np.linalg.norm(a, axis=1)
        np.testing.assert_allclose(rows[f"change_{role}"], size, **close)
        np.testing.assert_allclose(rows[f"relative_{role}"], size / norm, **close)
        cosine = (a * b).sum(1) / norm / np.linalg.norm(b, axis=1)
        np.testing.assert_allclose(rows[f"cosine_{role}"], cosine, atol=1e-6)


def test_scores_are_those_of_either_model_alone(run, pair):
    alone = [glulens.score(folder, CRITERIA) for folder in pair]
    for name in CRITERIA:
        base, tuned = (frame[name].to_numpy() for frame in alone)
        assert run.neurons[f"base_{name}"].to_list() == base.tolist()
        assert run.neurons[f"tuned_{name}"].to_list() == tuned.tolist()
        delta = (tuned.astype(np.float64) - base).astype(np.float32)
        assert run.neurons[f"delta_{name}"].to_list() == delta.tolist()
        for layer in range(5):
            rows = slice(172 * layer, 172 * layer + 172)
            places = [np.argsort(np.argsort(s[rows], kind="stable")) for s in (base, tuned)]
            shift = run.neurons[f"rank_shift_{name}"][rows].to_numpy()
            assert shift.tolist() == (places[1] - places[0]).tolist()


def test_groups_add_up_to_every_weight(run, pair):
    base, tuned = map(weights, pair)
    squares = {name: float((tuned[name].double() - base[name].double()).square().sum())
               for name in base}  # fmt: skip
    groups = {row["group"]: row for row in run.groups.iter_rows(named=True)}
    assert groups["all"]["weights"] == sum(tensor.numel() for tensor in base.values())
    assert groups["all"]["change"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)
    attention = sum(v for name, v in squares.items() if "self_attn" in name)
    assert groups["attention"]["change"] == pytest.approx(attention**0.5, rel=1e-5)
    shares = [row["share_of_change"] for name, row in groups.items() if name != "all"]
    assert sum(shares) == pytest.approx(1)


def test_the_concentration_can_be_recomputed_from_the_table(run):
    from scipy import stats

    for row in run.concentrations:
        measure = "change" if row.measure == "absolute" else "change_relative"
        name = "random_0" if row.criterion == "random:0" else f"base_{row.criterion}"
        rhos = [
            stats.spearmanr(layer[name], layer[measure]).statistic  # pyright: ignore
            for layer in run.neurons.partition_by("layer")
        ]
        assert row.rho == pytest.approx(np.mean(rhos), abs=2e-4)
    layers = run.layers
    held = layers.select([f"tenth_{k}" for k in range(1, 11)]).to_numpy()
    np.testing.assert_allclose(held.sum(1), 1)
    first = next(r for r in run.concentrations if (r.criterion, r.measure) == ("ppm", "absolute"))
    np.testing.assert_allclose(held.mean(0), first.shares, atol=1e-6)
    np.testing.assert_allclose(layers["rho_absolute"], first.layers)


def test_cuts_are_those_that_prune_would_make(run):
    sides = [
        [layer[f"{side}_vow"].to_numpy() for layer in run.neurons.partition_by("layer")]
        for side in ("base", "tuned")
    ]
    for fraction in (0.1, 0.6):
        one, other = (lowest(side, fraction) for side in sides)
        row = next(r for r in run.kept_alike if (r.criterion, r.fraction) == ("vow", fraction))
        assert (row.cut, row.same) == (len(one), len(one & other))
    best = run.carriers[0]
    low = lowest([layer["base_ppm"].to_numpy() for layer in run.neurons.partition_by("layer")], 0.1)
    moved = run.neurons["change"].to_numpy().reshape(5, 172)
    assert best.neuron in low.indices[best.layer]
    assert moved[best.layer, best.neuron] == max(
        float(moved[layer, chosen].max()) for layer, chosen in enumerate(low.indices)
    )


def test_same_seed_same_bytes(run, pair, tmp_path, monkeypatch):
    def first_alone(result):
        yield next(draw(result))

    draw = figures_compare.draw_comparison
    monkeypatch.setattr(figures_compare, "draw_comparison", first_alone)
    again = glulens.compare(*pair, output=tmp_path / "again", **DRAWS)
    assert again.path is not None
    for name in ("neurons.parquet", "tables/concentration.csv", "figures/tenths.svg"):
        assert (again.path / name).read_bytes() == (run.path / name).read_bytes(), name


# What must hold


def test_swapped_arguments_mirror_every_sign(run, pair):
    other = glulens.compare(*reversed(pair), **DRAWS).neurons
    frame = run.neurons
    for name in CRITERIA:
        assert (other[f"delta_{name}"] == -frame[f"delta_{name}"]).all()
        assert (other[f"rank_shift_{name}"] == -frame[f"rank_shift_{name}"]).all()
        assert (other[f"base_{name}"] == frame[f"tuned_{name}"]).all()
        assert (other[f"tuned_{name}"] == frame[f"base_{name}"]).all()
    for name in ("change", "change_share", "change_gate", "change_up", "change_down"):
        assert (other[name] == frame[name]).all(), name


def test_a_model_against_itself_is_exact_zeros_without_a_warning(pair, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = glulens.compare(pair[0], pair[0], output=tmp_path / "run", **DRAWS)
    assert found.verdict is not None
    assert found.verdict.outcome == found.verdict.relative_outcome == "nothing changed"
    zeros = [name for name in found.neurons.columns
             if name.startswith(("delta_", "rank_shift_", "change", "relative_"))]  # fmt: skip
    assert len(zeros) == 2 * 7 + 3 + 3 + 3
    for name in zeros:
        assert (found.neurons[name] == 0).all(), name
    for role in ("gate", "up", "down"):
        assert (found.neurons[f"cosine_{role}"] == 1).all()
    assert (found.tensors["change"] == 0).all()
    assert found.carriers == ()
    assert all(row.same == row.cut for row in found.kept_alike)
    said = (tmp_path / "run" / "report.md").read_text()
    assert "nothing changed" in said
    assert not (tmp_path / "run" / "figures" / "tenths.png").exists()
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("tenth", "outcome"),
    [("lowest", "supported"), ("highest", "contradicted"), ("", "no evidence")],
)
def test_planted_changes_are_told(pair, tmp_path, tenth, outcome):
    """On a trained model: one tenth by ppm changed, or noise alike on every weight."""
    rng = np.random.default_rng(0)
    scores = glulens.score(pair[0], ["ppm"]).partition_by("layer")

    def plant(tensors: dict[str, Any]) -> None:
        for layer, rows in enumerate(scores):
            order = np.argsort(rows["ppm"].to_numpy(), kind="stable")
            chosen = {"lowest": order[:17], "highest": order[-17:], "": order}[tenth].copy()
            for matrix in ("gate", "up", "down"):
                weight = tensors[f"model.layers.{layer}.mlp.{matrix}_proj.weight"]
                view = weight.T if matrix == "down" else weight
                noise = rng.normal(0, 0.01, (len(chosen), view.shape[1])).astype(np.float32)
                view[chosen] += weight.new_tensor(noise)

    target = changed(pair[0], tmp_path / "planted", plant)
    found = glulens.compare(pair[0], target, criteria=("ppm",), **DRAWS)
    verdict = verdict_of(found)
    assert verdict.outcome == outcome, verdict.sentence
    still = {row["group"]: row["change"] for row in found.groups.iter_rows(named=True)}
    assert still["attention"] == still["embedding"] == still["norm"] == 0


def test_a_pruned_copy_is_compared_by_the_neurons_it_kept(pair, tmp_path):
    cut = prune_checkpoint(pair[1], tmp_path / "pruned", budget=Budget(fraction=0.25)).cut
    kept = cut.complement().indices
    for base, tuned, side in ((pair[0], tmp_path / "pruned", "tuned"),
                              (tmp_path / "pruned", pair[0], "base")):  # fmt: skip
        found = glulens.compare(base, tuned, **DRAWS)
        assert found.manifest["pruned_side"] == side
        assert "cut have no row" in found.manifest["warnings"][0]
        for layer, rows in enumerate(found.neurons.partition_by("layer")):
            assert rows["neuron"].to_list() == kept[layer].tolist()
    whole = glulens.compare(*pair, **DRAWS).neurons
    part = glulens.compare(pair[0], tmp_path / "pruned", **DRAWS).neurons
    keys = ["layer", "neuron"]
    again = part.select(keys).join(whole, on=keys, maintain_order="left")
    for name in ("change", "base_ppm", "tuned_ppm", "cosine_down"):
        assert (again[name] == part[name]).all(), name
    with pytest.raises(UsageError, match="same widths"):
        glulens.compare(pair[0], tmp_path / "pruned", transplant=True, **DRAWS)


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt2", "phi3"])
def test_other_families(family, tmp_path):
    base, tuned = saved(tmp_path / "a", family), saved(tmp_path / "b", family, seed=1)
    drawn = tmp_path / "run" if family in ("mixtral", "gpt2") else None
    found = glulens.compare(base, tuned, output=drawn, criteria=("ppm",), **DRAWS)
    frame = found.neurons
    assert ("part" in frame.columns) == (family in ("mixtral", "deepseek_v3"))
    assert ("change_gate" in frame.columns) == (family != "gpt2")
    assert frame["change"].is_finite().all()
    alone = glulens.score(tuned, ["ppm"])
    assert frame["tuned_ppm"].to_list() == alone["ppm"].to_list()
    assert frame["neuron"].to_list() == alone["neuron"].to_list()
    assert drawn is None or (drawn / "figures" / "norms.png").exists()


# What is said of the sources


def test_a_quantised_source_is_named_and_gets_no_verdict(smollm, tmp_path, undrawn):
    base, exact, coarse = gguf_files(smollm, tmp_path)
    assert verdict_of(glulens.compare(base, exact, **DRAWS)).outcome == "nothing changed"
    found = glulens.compare(base, coarse, output=tmp_path / "run", **DRAWS)
    # Rounding to blocks alone has a rho that would contradict the claim.
    assert found.concentrations[0].rho > 0.3
    verdict = verdict_of(found)
    assert verdict.outcome == verdict.relative_outcome == "cannot tell"
    assert "comes from a quantised file" in verdict.sentence
    said = (tmp_path / "run" / "report.md").read_text()
    assert f"the tuned model ({coarse}) comes from a quantised GGUF" in said
    assert "blurs maw and ppm" in said
    assert "the base model" not in said
    manifest = found.manifest
    assert (manifest["model"]["quantised"], manifest["tuned"]["quantised"]) == (False, True)


def test_what_16_bits_do_by_themselves_is_told(pair, tmp_path, capsys, undrawn):
    """Changes of a twentieth of a step: most weights show nothing, by how large they are."""
    import torch

    rng = torch.Generator().manual_seed(0)

    def coarse(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            tensors[name] = weight.bfloat16()

    def noise(tensors: dict[str, Any]) -> None:
        for name, weight in tensors.items():
            if ".mlp." in name:
                moved = weight.float() + torch.randn(weight.shape, generator=rng) * 2e-4
                tensors[name] = moved.bfloat16()

    base = changed(pair[0], tmp_path / "base", coarse)
    tuned = changed(base, tmp_path / "tuned", noise)
    found = glulens.compare(base, tuned, criteria=("l2",), **DRAWS)
    row = found.concentrations[0]
    assert row.rho == pytest.approx(row.if_rounded, abs=0.1)
    assert abs(row.if_rounded) > 0.02
    assert verdict_of(found).outcome not in ("supported", "contradicted")
    words = ("-o", tmp_path / "run", "--criteria", "l2", "--permutations", "200")
    out, _ = says(capsys, "compare", base, tuned, *words)
    assert "by rounding" in out
    fine = glulens.compare(*pair, criteria=("l2",), **DRAWS).concentrations[0]
    assert fine.if_rounded != fine.if_rounded


def test_other_dtypes_and_vocabularies_are_named(small, tmp_path):
    import torch

    def shorter(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(torch.bfloat16)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = tensors[name][:50].clone()

    tuned = changed(small, tmp_path / "tuned", shorter)
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    found = glulens.compare(small, tuned, **DRAWS)
    said = "\n".join(found.manifest["warnings"])
    assert "stored as F32, the tuned model as BF16" in said
    assert "60 and 50 rows; the first 50 are compared" in said
    relative = found.neurons["change_relative"].to_numpy()
    assert 0 < relative.max() < 1 / 256


def test_a_run_that_says_what_neurons_do(run, pair, tmp_path, undrawn):
    """Attribution that is the change itself correlates perfectly; d_z without meaning does not."""
    frame = run.neurons.select(
        "layer",
        "neuron",
        attr_instruction=-polars.col("change"),
        attr_fact=polars.Series(np.random.default_rng(0).normal(size=860)),
    )
    probe = written(tmp_path / "probe", frame, sha256="another")
    found = glulens.compare(*pair, output=tmp_path / "run", probe=str(probe), **DRAWS)
    rows = {(row.function, row.minus): row for row in found.selective}
    assert rows["attr_instruction", ""].rho == pytest.approx(1, abs=1e-3)
    assert abs(rows["attr_fact", ""].rho) < 0.1
    assert ("attr_instruction", "attr_fact") in rows
    assert "of neither model's weights" in found.manifest["warnings"][0]
    assert "Did neurons change that do something?" in (tmp_path / "run" / "report.md").read_text()
    with pytest.raises(RunError, match="of 859 neurons"):
        glulens.compare(*pair, probe=str(written(tmp_path / "other", frame[1:])), **DRAWS)
    nothing = written(tmp_path / "nothing", frame.select("layer", "neuron", ppm="attr_fact"))
    with pytest.raises(RunError, match="no columns attr_PROPERTY"):
        glulens.compare(*pair, probe=str(nothing), **DRAWS)


def written(path: Path, frame: polars.DataFrame, **model: Any) -> Path:
    """A run directory of nothing but a table."""
    path.mkdir()
    frame.write_parquet(path / "neurons.parquet")
    (path / "report.md").write_text("")
    write_manifest(path, {"command": "test", "model": model, "options": {"criteria": ["ppm"]}})
    return path


# Two runs


def test_two_runs_are_compared_by_what_they_share(run, pair, tmp_path, capsys, undrawn):
    for side, criteria in zip(("base", "tuned"), ("ppm,vow", "vow,ppm,l2"), strict=True):
        folder = pair[side == "tuned"]
        says(capsys, "score", folder, "--criteria", criteria, "-o", tmp_path / side)
    out, _ = says(capsys, "compare", tmp_path / "base", tmp_path / "tuned", "-o", tmp_path / "r")
    assert "no verdict: two runs hold scores and no weights" in " ".join(out.split())
    found = glulens.open_run(tmp_path / "r")
    frame = found.neurons()
    same = [c for c in run.neurons.columns if c.endswith(("_ppm", "_vow"))]
    assert_frame_equal(frame, run.neurons.select("layer", "neuron", *same))
    assert "base_l2" not in frame.columns
    assert "verdict" not in found.manifest
    kept = polars.read_csv(tmp_path / "r" / "tables" / "kept-alike.csv")
    assert kept["criterion"].unique(maintain_order=True).to_list() == ["ppm", "vow"]
    mine = next(r for r in run.kept_alike if (r.criterion, r.fraction) == ("ppm", 0.1))
    assert kept.filter(criterion="ppm", fraction=0.1)["same"].item() == mine.same


def test_runs_of_other_neurons_are_refused_with_a_table(pair, small, tmp_path, capsys, undrawn):
    says(capsys, "score", pair[0], "-o", tmp_path / "one")
    says(capsys, "score", small, "-o", tmp_path / "two")
    out, err = says(capsys, "compare", tmp_path / "one", tmp_path / "two", code=3)
    assert out == ""
    assert ["neurons", "860", "48"] in [line.split() for line in err.splitlines()]
    out, err = says(capsys, "compare", tmp_path / "one", small, code=2)
    assert "is a run directory and" in err
    out, err = says(capsys, "compare", tmp_path / "one", tmp_path / "one", "--transplant", code=2)
    assert "--transplant needs the models" in err


def scored(path: Path, table: dict[str, Any], **model: Any) -> Path:
    """A run of two layers of four neurons, if the table does not say otherwise."""
    where = {"layer": [0] * 4 + [1] * 4, "neuron": [0, 1, 2, 3] * 2}
    return written(path, polars.DataFrame({**where, **table}), **model)


def test_rows_in_any_order_are_the_same_run(tmp_path):
    """A run may be anybody's: its rows need not lie in the order of layers and neurons."""
    rng = np.random.default_rng(0)
    base, tuned = (scored(tmp_path / n, {"ppm": rng.random(8)}) for n in ("base", "tuned"))
    expected = glulens.compare(base, tuned)
    for name in ("base", "tuned"):
        mixed = polars.read_parquet(tmp_path / name / "neurons.parquet").sample(
            fraction=1, shuffle=True, seed=1
        )
        written(tmp_path / f"mixed-{name}", mixed)
    found = glulens.compare(tmp_path / "mixed-base", tmp_path / "mixed-tuned")
    assert_frame_equal(found.neurons, expected.neurons)
    assert_frame_equal(found.scores, expected.scores)
    assert repr(found.kept_alike) == repr(expected.kept_alike)


def test_runs_that_share_no_number_or_have_other_indices_are_refused(tmp_path):
    base = scored(tmp_path / "base", {"ppm": [1.0] * 8})
    for name, table in (("vow", {"vow": [1.0] * 8}), ("text", {"ppm": ["high"] * 8})):
        with pytest.raises(RunError, match="have no column in common; make both with the same"):
            glulens.compare(base, scored(tmp_path / name, table))
    one, other = (
        scored(tmp_path / name, {"neuron": [0, kept, 7] * 2, "layer": [0, 0, 0, 1, 1, 1]})
        for name, kept in (("one", 2), ("other", 3))
    )
    with pytest.raises(RunError, match="not of the same neurons") as caught:
        glulens.compare(one, other)
    assert ["indices", "some", "others"] in [s.split() for s in str(caught.value).splitlines()]


def test_runs_of_other_families_are_told_and_a_layer_without_numbers_has_no_row(tmp_path, undrawn):
    nan = float("nan")
    base = scored(tmp_path / "base", {"ppm": [*range(8)], "dz_fact": [nan] * 4 + [1.0] * 4},
                  family="llama")  # fmt: skip
    tuned = scored(tmp_path / "tuned", {"ppm": [*range(8)], "dz_fact": [2.0] * 8}, family="qwen2")
    found = glulens.compare(base, tuned, output=tmp_path / "run")
    assert "the runs are of models of the families llama and qwen2" in found.manifest["warnings"]
    layers = [(row["column"], row["layer"]) for row in found.layers.to_dicts()]
    assert layers == [("ppm", 0), ("ppm", 1), ("dz_fact", 1)]
    said = (tmp_path / "run" / "report.md").read_text()
    assert "families llama and qwen2" in said


def test_a_dry_run_of_two_runs_reads_their_tables_alone(tmp_path, capsys):
    base, tuned = (scored(tmp_path / n, {"ppm": [1.0] * 8}) for n in ("base", "tuned"))
    out, _ = says(capsys, "compare", base, tuned, "--dry-run", "--json")
    plan = json.loads(out)
    assert (plan["neurons"], plan["tensors"], plan["forwards"]) == (8, 0, 0)
    assert plan["bytes"] == sum((p / "neurons.parquet").stat().st_size for p in (base, tuned))
    out, _ = says(capsys, "compare", base, tuned, "--dry-run")
    assert "neurons (rows of neurons.parquet): 8" in out
    assert "transplant" not in out


# Refusals


@pytest.mark.parametrize(
    ("family", "changes", "row"),
    [
        ("llama", {"intermediate_size": 20}, "MLP width"),
        ("llama", {"num_hidden_layers": 3}, "layers"),
        ("qwen2", {}, "family"),
    ],
)
def test_unlike_models_end_with_exit_3_and_a_table(small, tmp_path, capsys, family, changes, row):
    other = saved(tmp_path / "other", family, **changes)
    for pair_ in ((small, other), (other, small)):
        out, err = says(capsys, "compare", *pair_, "-o", tmp_path / "run", code=3)
        lines = err.splitlines()
        assert out == ""
        assert lines[0].startswith("glulens: ")
        header = next(k for k, line in enumerate(lines) if line.split() == ["base", "tuned"])
        assert any(line.strip().startswith(row) for line in lines[header + 1 :]), err
        assert not (tmp_path / "run").exists()
        out, err = says(capsys, "compare", *pair_, "--dry-run", code=3)
        assert row in err


def test_damaged_checkpoints_are_named(small, tmp_path, capsys, undrawn):
    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][7, 3] = float("nan")

    bad = changed(small, tmp_path / "bad", spoil)
    run = tmp_path / "run"
    _, err = says(capsys, "compare", small, bad, "-o", run, code=3)
    assert "(tuned), layer 1" in err
    assert "the first is 7" in err
    assert not run.exists()
    says(capsys, "compare", small, bad, "-o", run, "--allow-nonfinite", "--permutations", "100")
    frame = glulens.open_run(run).neurons()
    assert np.isnan(frame.filter(layer=1, neuron=7)["change"].item())
    assert frame["change"].is_nan().sum() == 1
    assert "1 neurons have weights that are not finite" in (run / "report.md").read_text()
    whole = (small / "model.safetensors").read_bytes()
    (bad / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    _out, err = says(capsys, "compare", bad, small, "-o", tmp_path / "other", code=3)
    assert "truncated or damaged" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "run", "small"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criteria": ()}, "no criterion"),
        ({"criteria": ("mow",)}, "did you mean"),
        ({"criteria": ("wanda",)}, "looks at activations"),
        ({"criteria": ("random:0",)}, "carries the verdict"),
        ({"permutations": 0}, "--permutations 0"),
        ({"seed": -1}, "--seed -1"),
        ({"transplant_sets": ("a.json",)}, "give --transplant too"),
        ({"transplant": True, "transplant_random": 1}, "--transplant-random 1"),
        ({"dtype": "int8"}, "allowed are"),
        ({"permutation": 3}, "unknown option 'permutation'"),
    ],
)
def test_bad_options_are_told_before_any_work(options, message):
    with pytest.raises(UsageError, match=message):
        glulens.compare("nowhere", "nowhere", **options)


def test_places_are_checked_first_and_a_run_can_be_replaced(run, pair, tmp_path, capsys, undrawn):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    _, err = says(capsys, "compare", "nowhere", "nowhere", "-o", mine, code=3)
    assert "exists" in err
    assert "no such" not in err
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "old.txt").write_text("old")
    _, err = says(capsys, "compare", *pair, "-o", copy, code=3)
    assert "give --overwrite" in err
    says(capsys, "compare", *pair, "-o", copy, "--overwrite", "--permutations", "100")
    assert not (copy / "old.txt").exists()
    assert glulens.open_run(copy).manifest["options"]["permutations"] == 100


def test_memory_that_runs_out_names_the_option_to_lower(small, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(module, "difference", fails)
    with pytest.raises(glulens.errors.ResourceError, match="out of memory") as caught:
        glulens.compare(small, small)
    assert caught.value.exit_code == 4


# The command


def test_the_command_prints_tables_a_verdict_and_the_place(pair, tmp_path, capsys, undrawn):
    out, _err = says(capsys, "compare", *pair, "-o", tmp_path / "run", "--criteria", "vow,random:0")
    for title in ("Where the change lies", "Magnitude in the base against change",
                  "Change by tenth of vow", "Scores in both", "cut the same neurons?",
                  "In the lowest tenth by vow", "Verdict: ", "By relative change, "):  # fmt: skip
        assert title in out
    assert f"run directory: {tmp_path / 'run'}" in out
    assert max(map(len, out.splitlines())) <= 150
    verdict = glulens.open_run(tmp_path / "run").manifest["verdict"]
    assert verdict["criterion"] == "vow"
    assert verdict["sentence"] in " ".join(out.split())


def test_json_is_one_document(pair, tmp_path, capsys, undrawn):
    out, err = says(capsys, "compare", *pair, "-o", tmp_path / "run", "--json", "--criteria", "ppm")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert found["schema_version"] == 1
    assert found["verdict"]["criterion"] == "ppm"
    assert [row["measure"] for row in found["concentration"]] == ["absolute", "relative"]
    assert found["path"] == str(tmp_path / "run")
    assert "run directory:" in err


def test_a_dry_run_counts_and_writes_nothing(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, _ = says(capsys, "compare", *pair, "--dry-run", "--json")
    plan = json.loads(out)
    tensors = weights(pair[0])
    assert plan["tensors"] == 2 * len(tensors)
    assert plan["bytes"] == 2 * sum(t.numel() * t.element_size() for t in tensors.values())
    assert (plan["neurons"], plan["forwards"]) == (860, 0)
    out, _ = says(capsys, "compare", *pair, "--dry-run", "--transplant", "--transplant-items", "2",
                  "--transplant-random", "3")  # fmt: skip
    # Three properties of two pairs and two passages; 10 tenths, 2 sets, 3 random, and none.
    assert f"{2 * (15 + 1) * (3 * 2 * 2 + 2):,} forwards" in out
    assert list(tmp_path.iterdir()) == []
    code, _, err = glulens_says(capsys, "compare", pair[0], "nowhere", "--dry-run")
    assert code == 3
    assert "unknown model" in err


def test_transplants_stand_in_the_run(pair, tmp_path, capsys):
    chosen = tmp_path / "chosen.json"
    NeuronSet((172,) * 5, tuple(np.arange(5) for _ in range(5))).save(chosen)
    run = tmp_path / "run"
    out, _ = says(
        capsys, "compare", *pair, "-o", run, "--criteria", "ppm", "--permutations", "100",
        "--transplant", "--transplant-items", "2", "--transplant-random", "3",
        "--transplant-set", chosen,
    )  # fmt: skip
    assert "The tuned model's weights in the base" in out
    rows = polars.read_csv(run / "tables" / "transplant.csv")
    assert set(rows["direction"].unique()) == {"into base", "into tuned"}
    assert {"lowest tenth", "highest tenth", "all neurons", "chosen"} <= set(rows["name"].unique())
    assert set(rows["quantity"].unique()) == {"misconception", "fact", "instruction", "damage"}
    assert (run / "figures" / "transplant.png").exists()
    said = (run / "report.md").read_text()
    for words in ("## Transplants", "| random tenths (3) |", "| random, like chosen (3) |"):
        assert said.count(words) == 2 - (words[0] == "#"), words
    assert glulens.open_run(run).manifest["data"][0]["records"] > 0
    wrong = tmp_path / "wrong.json"
    NeuronSet((9,), (np.arange(3),)).save(wrong)
    out, err = says(capsys, "compare", *pair, "--transplant", "--transplant-set", wrong, code=2)
    assert "the set is of a model with widths" in err


def test_the_browser_shows_both_models(run, capsys):
    from glulens.tui.app import open_session
    from glulens.tui.compare import pairs

    assert [name for name, _, _ in pairs(open_session(run.path))] == list(CRITERIA)
    out, _ = says(capsys, "top", run.path, "--by", "change", "--desc", "-n", "1", "--json")
    best = run.neurons.sort("change", descending=True).row(0, named=True)
    assert f'"L{best["layer"]}.N{best["neuron"]}"' in out
    out, _ = says(capsys, "top", run.path, "--where", "change_relative > 0 and rank_shift_ppm > 3")
    assert out


def test_the_page_stands_alone(run):
    page = (run.path / "report.html").read_text()
    assert page == html(report(run), run.path / "figures")
    assert (run.path / "report.md").read_text() == markdown(report(run), run.path / "figures")
    assert page.count("<img ") == 4
    for outside in ("http:", "https:", "<script", '<link rel="stylesheet', "@import", "url("):
        assert outside not in page, outside


def test_a_mismatch_is_an_error_with_its_table(small, tmp_path):
    other = saved(tmp_path / "other", "llama", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"\n +base +tuned\n") as caught:
        glulens.compare(small, other)
    assert caught.value.exit_code == 3
