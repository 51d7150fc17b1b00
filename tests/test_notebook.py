"""The door for notebooks: light to import, and results that show themselves, whatever they hold."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
from browsing import dense, run_of
from families import make, save_tokenizer
from matplotlib.figure import Figure
from swept import swept
from test_calibrate import WIDTHS, contrasts
from test_house import HEAVY, modules_after

import glulens as gl
from glulens import show_html
from glulens.interp.calibrate import calibrate_contrasts, rates
from glulens.rundir import FIGURES, write_manifest, writing
from glulens.show_html import Grid, Image, page

HOSTILE = '<script>alert(1)</script><img src=x onerror="a()">\u202e & "quoted" \'too\' </td></div>'
ALLOWED = {"div", "p", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td", "img"}
ATTRIBUTES = {"class", "style", "src", "alt", "title"}


class Strict(HTMLParser):
    """Reads a piece of HTML and refuses what we never write: other elements, links, handlers."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[bytes] = []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, tag
        given = dict(attrs)
        assert set(given) <= ATTRIBUTES, given
        assert re.fullmatch(r"(text-align:(left|right))?", given.get("style") or "")
        if tag == "img":
            kind, _, data = (given["src"] or "").partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.append(base64.b64decode(data, validate=True))
        else:
            assert "src" not in given
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def said(self) -> str:
        return "\n".join(self.texts)


def shown(result: Any) -> Strict:
    found = Strict(result._repr_html_())
    assert all(picture.startswith(show_html.PNG) for picture in found.pictures)
    assert "\n" not in repr(result)
    assert len(repr(result)) < 300
    return found


def a_png() -> bytes:
    return show_html.image(Figure(figsize=(1, 1)), "").png


def test_the_door_is_light_and_every_name_on_it_opens():
    assert not modules_after("import glulens; dir(glulens)") & {*HEAVY, "matplotlib", "polars"}
    for name in ("open_model", "score", "probe", "hypothesis", "compare", "prune_checkpoint"):
        assert callable(getattr(gl, name))
    for name in ("sweep", "efficiency", "calibrate", "open_run"):
        assert callable(getattr(gl, name))
    assert set(gl.__all__) <= set(dir(gl))


def test_nothing_of_a_text_gets_out_of_its_place():
    hostile = Grid((HOSTILE, "n"), [(HOSTILE, "1")], 1, HOSTILE)
    found = Strict(page(HOSTILE, HOSTILE, hostile, Image(a_png(), HOSTILE)))
    assert len(found.pictures) == 1
    # It is read as it was written, but for the sign that turns lines around.
    assert found.texts.count(HOSTILE.replace("\u202e", "\\u202e")) == 5
    assert "\u202e" not in found.said


def test_a_run_directory_shows_itself(tmp_path):
    frame = dense().with_columns(pl_text=polars.lit(HOSTILE))
    path = run_of(
        tmp_path / "<b>run",
        frame,
        model={"name": HOSTILE},
        verdict={"sentence": "no evidence that <i>x</i>"},
    )
    (path / FIGURES).mkdir()
    for k in range(3):
        (path / FIGURES / f"{k}.png").write_bytes(a_png())
    (path / FIGURES / "0-not.png").write_bytes(b"<svg onload=alert(1)>")
    found = shown(gl.open_run(path))
    assert len(found.pictures) == 2
    assert "no evidence that <i>x</i>" in found.said
    assert f"neurons, {frame.height:,} rows x {frame.width} columns" in found.said
    assert "command='test'" in repr(gl.open_run(path))


@pytest.mark.parametrize("odd", [None, [1], {"name": [HOSTILE]}, "text"])
def test_a_run_without_a_table_or_with_an_odd_manifest_shows_what_there_is(tmp_path, odd):
    with writing(tmp_path / "run") as scratch:
        write_manifest(scratch, {"command": "calibrate", "model": odd, "verdict": odd})
    assert "command: calibrate" in shown(gl.open_run(tmp_path / "run")).said


def test_a_damaged_table_is_told(tmp_path):
    path = run_of(tmp_path / "run", dense())
    (path / "neurons.parquet").write_bytes(b"PAR1 no more")
    assert "cannot be read" in shown(gl.open_run(path)).said


@pytest.fixture(scope="module")
def quick(stories):
    return gl.hypothesis(
        stories, limit=12, permutations=100, bootstraps=100, causal_items=2, causal_random=10,
        map_items=0, null_items=0, decode_every=0, dose_items=0, umap=False,
    )  # fmt: skip


def test_a_hypothesis_shows_its_verdict_tables_and_figures(quick):
    found = shown(quick)
    assert quick.verdict.sentence in found.said
    assert "random:0" in found.texts
    assert "lowest tenth, zero" in found.texts
    assert len(found.pictures) == 2
    assert f"outcome={quick.verdict.outcome!r}" in repr(quick)


def test_scores_are_a_frame_that_shows_itself(stories):
    table = gl.score(stories)
    assert table.columns[:3] == ["layer", "neuron", "ppm"]
    assert "<table" in table._repr_html_()
    assert repr(stories) == "OpenedModel('stories260k', llama, float32, on cpu)"


def saved(folder: Path, seed: int) -> Path:
    make("llama", seed=seed).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_comparing_and_pruning_show_themselves(tmp_path):
    base, tuned = saved(tmp_path / "base", 0), saved(tmp_path / "tuned", 1)
    found = gl.compare(base, tuned, permutations=100)
    said = shown(found)
    assert found.sentences[0] in said.said
    assert len(said.pictures) == 1
    done = gl.prune_checkpoint(base, tmp_path / "out", budget=gl.Budget(fraction=0.25))
    kept = f"{sum(done.kept):,}"
    assert kept in shown(done).texts
    assert kept in repr(done)


def test_two_runs_side_by_side_show_themselves_without_a_verdict(tmp_path):
    base, tuned = (run_of(tmp_path / name, dense(k)) for k, name in enumerate(("base", "tuned")))
    found = gl.compare(base, tuned)
    said = shown(found)
    assert "Comparison, two runs" in said.texts
    assert "Scores in both" in said.texts
    assert not {"Magnitude in the base against change", "Cut alike by both sides' scores"} & {
        *said.texts
    }
    assert not said.pictures


def test_a_sweep_of_no_score_that_is_tested_shows_no_curves():
    found = shown(swept(criteria=(), draws=0, is_reversed=False, items=15, tasks=("piqa",)))
    assert "Sweep of 1 points" in found.texts


def test_sweeps_and_calibrations_show_themselves():
    sweep = swept(items=40, fractions=(0.1, 0.3), tasks=("truthfulqa_mc2", "mmlu"))
    found = shown(sweep)
    assert "Scores" in found.texts
    assert len(found.pictures) == 1
    plantings = calibrate_contrasts(
        contrasts(80), WIDTHS, plantings=1, orders=2, permutations=100, bootstraps=100
    )
    of = gl.Calibration(tuple(plantings), tuple(rates(plantings)), 1e-6, 1.0, {})
    found = shown(of)
    assert "planted" in found.texts
    assert len(found.pictures) == 1


def test_an_efficiency_result_shows_itself():
    from glulens.interp.efficiency import EfficiencyResult, Measure
    from glulens.interp.efficiency_models import Size
    from glulens.interp.efficiency_options import EfficiencyOptions

    nan = float("nan")
    sizes = tuple(
        Size(name=name, **{k: 1 for k in Size.__dataclass_fields__ if k != "name"})
        for name in (HOSTILE, "half")
    )
    measures = (
        Measure(1, "fixed length", 1, "decode", "ms", 2.0, 1.9, 2.1, 0.5, nan, nan),
        Measure(1, "fixed length", 1, "rate", "1/s", 3.0, nan, nan, nan, nan, nan),
    )
    found = shown(EfficiencyResult(sizes, measures, {}, EfficiencyOptions(), {}, ("mind",)))
    assert "2 [1.9, 2.1]" in found.texts
    assert "0.5" in found.texts
    place = found.texts.index("rate, 1/s")
    assert [text for text in found.texts[place + 1 :] if text.strip()][:3] == ["1", "3", "-"]
    assert np.isin(["decode, ms", "Warning: mind"], found.texts).all()


DOCS = Path(gl.__file__).parent / "docs"


def maker() -> Any:
    """docs/make_notebook.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook() -> Any:
    import nbformat

    found = nbformat.read(DOCS / "notebook.ipynb", nbformat.NO_CONVERT)
    nbformat.validate(found)
    return found


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_what_its_script_makes_and_was_run_from_top_to_bottom(notebook):
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == list(maker().CELLS)
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert cell.outputs, cell.source
        assert not [out for out in cell.outputs if out.output_type == "error"]


def test_the_notebook_names_no_place_of_the_machine_it_was_made_on(notebook):
    said = re.sub(r"base64,[A-Za-z0-9+/=]+", "", json.dumps(notebook))
    places = re.findall(r"(?<![\w.~])/(?:root|home|tmp|work|var|Users|opt|mnt)/|[A-Z]:\\\\", said)
    assert not places
    assert len(said) < 100_000, "figures are data, and the rest is short"


def test_every_name_of_glulens_that_the_notebook_uses_is_there(notebook):
    used: set[str] = set()
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glulens"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module
                used |= {alias.name for alias in node.names}
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "gl":
                assert node.attr in gl.__all__
                used.add(node.attr)
    assert {"open_model", "score", "probe", "hypothesis", "prune_checkpoint", "masked"} <= used


@pytest.mark.slow
def test_the_notebook_runs(notebook):
    """Minutes: in a kernel, from top to bottom; it ends where the committed one does."""
    made = maker()
    again = made.run(made.build())
    for old, new in zip(code(notebook), code(again), strict=True):
        kinds = [[o.output_type for o in cell.outputs] for cell in (old, new)]
        assert kinds[0] == kinds[1], old.source
    assert code(again)[-1].outputs[0].data["text/plain"].startswith("('cannot tell'")
