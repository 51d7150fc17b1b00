"""Every parser of ours, with valid inputs to begin from and how hostile ones are made of them."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import mutate
from faults.mutate import Grammar

Case = bytes | str


@dataclass(frozen=True)
class Parser:
    """A parser under fuzz.

    Attributes:
        name: what it reads.
        share: cases of about a million, in thousands; at least 10.
        make: a hostile input.
        read: reads it; every error that a user would see as one line is right.
    """

    name: str
    share: int
    make: Callable[[random.Random], Case]
    read: Callable[[Case], object]


_NUMBER = (
    *(("ppm",), ("attr_fact",), ("1",), ("0.5",), ("layer",), ("neuron",), ("`ppm`",), ("1e9",)),
    *(("-", "number"), ("(", "number", ")"), ("number", " + ", "number")),
    *(("number", "*", "number"), ("number", " / ", "number"), ("abs(", "number", ")")),
    *(("pct(", "number", ", 99)"), ("log(", "number", ")"), ("z(", "number", ")")),
    *(("max(", "number", ",", "number", ")"), ("rank(", "number", ")")),
)
FILTER: Grammar = {
    "number": _NUMBER,
    "condition": (("number", " < ", "number"), ("marked",), ("part == 'dense'",),
                  ("not ", "condition"), ("(", "condition", ")"), ("isnan(", "number", ")"),
                  ("condition", " and ", "condition"), ("condition", " or ", "condition"),
                  ("number", " in (", "number", ", 3)"), ("1 <= ", "number", " != ", "number")),
}  # fmt: skip
CRITERION: Grammar = {
    "x": (("ppm",), ("vow",), ("random:3",), ("reversed:", "x"), ("shuffled:", "x", ":7"),
          ("balanced(", "x", ")"), ("folded(", "x", ")"), ("mean(", "x", ",", "x", ")"),
          ("gauged:", "x", ":0"), ("amp",)),
    "list": (("x",), ("x", ",", "list"), ("x", ", ", "x")),
}  # fmt: skip
SETS: Grammar = {
    "set": (("a",), ("b",), ("`c d`",), ("~", "set"), ("(", "set", ")"), ("set", " & ", "set"),
            ("set", "|", "set"), ("set", " - ", "set")),
}  # fmt: skip
_SIGNS = ("and", "or", "not", "in", "(", ")", ",", "<", "==", "`", "'", "pct(", "layer", ":", "&",
          "~", "-", "...", "=", "random:", "reversed:", "mean(", "L", ".N", ".E")  # fmt: skip


def make_parsers(folder: Path) -> list[Parser]:
    """All of them. Files are written into `folder`, one name a parser: one process a folder."""
    return [*_languages(folder), *_tables(folder), *_runs(folder), *_models(folder)]


def _from_grammar(grammar: Grammar, symbol: str) -> Callable[[random.Random], str]:
    def make(draw: random.Random) -> str:
        text = mutate.of_grammar(draw, grammar, symbol)
        return mutate.of_text(draw, text, _SIGNS) if draw.random() < 0.6 else text

    return make


def _from_texts(*texts: str) -> Callable[[random.Random], str]:
    return lambda draw: mutate.of_text(draw, draw.choice(texts), _SIGNS)


def _from_bytes(*whole: bytes) -> Callable[[random.Random], bytes]:
    return lambda draw: mutate.of_bytes(draw, draw.choice(whole))


def _from_json(*values: Any) -> Callable[[random.Random], str]:
    return lambda draw: mutate.of_json(draw, draw.choice(values))


def _file(path: Path, case: Case) -> Path:
    path.write_bytes(case if isinstance(case, bytes) else case.encode("utf-8", "surrogatepass"))
    return path


def _as_typed(case: Case) -> str:
    """Text as a command line could hold it."""
    return case if isinstance(case, str) else case.decode("utf-8", "replace")


def _languages(folder: Path) -> list[Parser]:
    import numpy as np
    from browsing import columns_of, dense, mixture

    from glulens.interp.cli_probes import _layers
    from glulens.interp.cli_weights import _count, _layer_fraction
    from glulens.interp.sweep_options import parse_layers, parse_limits
    from glulens.interp.sweep_points import numbers, orders
    from glulens.prune.budget import Budget
    from glulens.prune.expressions import parse_criteria
    from glulens.tui import filters, keys
    from glulens.tui.sets import Sets, chosen

    columns = columns_of(folder / "dense", dense())
    names = columns_of(folder / "mixture", mixture()).keys
    sets = Sets(columns)
    for at, name in enumerate(("a", "b", "c d")):
        sets[name] = chosen(columns, np.arange(columns.n) % 3 == at)
    marked = np.arange(columns.n) % 2 == 0

    def one_option(case: Case) -> None:
        text = _as_typed(case)
        kind, _, rest = text.partition("|")
        readers: list[Callable[[str], object]] = [
            _layer_fraction, _count, parse_layers, _layers, lambda t: parse_limits((t,)),
            lambda t: numbers(t, "--fractions"), lambda t: orders(("ppm",), t.split(",")),
        ]  # fmt: skip
        readers[len(kind) % len(readers)](rest or text)

    def one_budget(case: Case) -> None:
        for number in _as_typed(case).split(",")[:3]:
            try:
                value = float(number)
            except ValueError:
                continue
            Budget(fraction=value)
            Budget(expansion=value)

    return [
        Parser("filters of neurons", 130, _from_grammar(FILTER, "condition"),
               lambda case: filters.parse(_as_typed(case), columns.names).mask(columns, marked)),
        Parser("criteria", 150, _from_grammar(CRITERION, "list"),
               lambda case: parse_criteria(_as_typed(case))),
        Parser("expressions of sets", 120, _from_grammar(SETS, "set"),
               lambda case: sets.combine(_as_typed(case))),
        Parser("names of neurons", 130,
               _from_texts("L0.N3", "L1.E2.N1", "L1.S.N4", "l0.n0", "L12.E300.N99999"),
               lambda case: names.find(_as_typed(case))),
        Parser("lists and numbers of options", 140,
               _from_texts("|0-3=0.5", "a|120M", "bb|0,1,5", "ccc|0,8,15", "dddd|mmlu=5,100",
                           "eeeee|0,0.1,...,0.6", "ffffff|random:3,reversed",
                           "eeeee|4.0,3.6,…,1.6"),
               one_option),
        Parser("budgets", 40, _from_texts("0.1,3.6,0.999", "1e-9,0,-1"), one_budget),
        Parser("key files", 12,
               _from_texts("[keys]\nquit = 'q'\nsearch = 'f,slash'\n", "[keys]\n"),
               lambda case: keys.read_keys(_file(folder / "keys.toml", case))),
    ]  # fmt: skip


def _tables(folder: Path) -> list[Parser]:
    import polars

    from glulens.datasets import ifeval, mmlu, multiple_choice, neutral, probe_sets, truthfulqa
    from glulens.datasets.sources import build, read_jsonl, read_parquet

    def jsonl(make: Any) -> Callable[[Case], object]:
        path = folder / "rows.jsonl"
        return lambda case: build("x", "x", {_file(path, case): read_jsonl(path)}, make)

    def parquet(make: Any) -> Callable[[Case], object]:
        path = folder / "rows.parquet"
        return lambda case: build("x", "x", {_file(path, case): read_parquet(path)}, make)

    def lines(name: str, keep: int) -> list[str]:
        import glulens.datasets.sources as sources

        return sources.sample_file(name).read_text(encoding="utf-8").splitlines()[:keep]

    def from_lines(*texts: str) -> Callable[[random.Random], Case]:
        rows = [json.loads(text) for text in texts]

        def make(draw: random.Random) -> Case:
            if draw.random() < 0.4:
                return mutate.of_bytes(draw, "\n".join(texts).encode())
            spoiled = mutate.of_json(draw, draw.choice(rows))
            return "\n".join([texts[0], spoiled, *texts[1:]][draw.randrange(2) :])

        return make

    def held(**columns: Any) -> bytes:
        file = io.BytesIO()
        polars.DataFrame(columns, strict=False).write_parquet(file)
        return file.getvalue()

    official = json.dumps(
        {"key": 1000, "prompt": "Write a note. Do not use any commas.",
         "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    )  # fmt: skip
    csv = folder / "csv"
    for name in ("test", "truthfulqa"):
        (csv / name).mkdir(parents=True)

    def of_csv(name: str, load: Callable[[Path], object]) -> Callable[[Case], object]:
        def read(case: Case) -> object:
            _file(csv / name, case)
            return load(csv)

        return read

    item = {"question": "Is it so?", "mc1_targets": {"Yes.": 1, "No.": 0},
            "mc2_targets": {"Yes.": 1, "No.": 0, "Never.": 0}}  # fmt: skip
    hub_mmlu = held(
        question=["What?", "Who?"], subject=["s", "s"], choices=[["a", "b", "c", "d"]] * 2,
        answer=[1, 2],
    )  # fmt: skip
    odd_mmlu = held(question=[None, "Who?"], subject=["s", None], choices=[None, ["a", None]],
                    answer=[None, 2])  # fmt: skip
    hub_truth = held(
        category=["c"], question=["What?"], best_answer=["It."], correct_answers=[["It.", "So."]],
        incorrect_answers=[["Not."]],
    )  # fmt: skip
    odd_truth = held(category=[None], question=[None], best_answer=["It."],
                     correct_answers=[["It.", None]], incorrect_answers=[None])  # fmt: skip
    header = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    return [
        Parser("CSV of probe sets", 20,
               _from_bytes(b"text,label,item\na b,1,x\n\"d, e\",0,x\nf,1,y\n",
                           b"prompt,statement,LABEL\nWhy? ,So,cat\n,,dog\n"),
               lambda case: probe_sets.load_probe_set(_file(folder / "set.csv", case), limit=3)),
        Parser("CSV of TruthfulQA", 12,
               _from_bytes((header + "A,B,What?,It.,It.; So.,Not.; Nor.,http://x\n").encode()),
               of_csv("truthfulqa/TruthfulQA.csv", truthfulqa.load_misconceptions)),
        Parser("CSV of MMLU", 12, _from_bytes(b"What?,a,b,c,d,A\n\"Who, then\",e,f,g,h,D\n"),
               of_csv("test/one_test.csv", mmlu.load_facts)),
        Parser("JSON of multiple choice", 12, _from_json([item, {**item, "question": "And so?"}]),
               of_csv("truthfulqa/mc_task.json",
                      lambda at: multiple_choice.load_truthfulqa(at, "mc1"))),
        Parser("neutral text", 10, _from_bytes(b" = Title = \n" + b"word " * 200),
               of_csv("wiki.test.raw", neutral.load_neutral)),
        Parser("JSON lines of facts", 14, from_lines(*lines("facts.jsonl", 3)),
               jsonl(mmlu._from_sample)),
        Parser("JSON lines of misconceptions", 14, from_lines(*lines("misconceptions.jsonl", 3)),
               jsonl(truthfulqa._from_sample)),
        Parser("JSON lines of instructions", 14, from_lines(*lines("instructions.jsonl", 3)),
               jsonl(ifeval._from_sample)),
        Parser("JSON lines of IFEval", 14, from_lines(official), jsonl(ifeval._official)),
        Parser("parquet of MMLU", 10, _from_bytes(hub_mmlu, odd_mmlu), parquet(mmlu._from_hub)),
        Parser("parquet of TruthfulQA", 10, _from_bytes(hub_truth, odd_truth),
               parquet(truthfulqa._from_hub)),
    ]  # fmt: skip


def _runs(folder: Path) -> list[Parser]:
    import numpy as np
    from browsing import dense, run_of

    from glulens import tables
    from glulens.interp.cli import main
    from glulens.interp.stages import Stages
    from glulens.prune.recording import Activity, Recording
    from glulens.prune.selection import NeuronSet
    from glulens.rundir import NEURONS, find_runs, open_run
    from glulens.tui.columns import open_columns

    run = run_of(folder / "runs" / "run", dense(layers=2, width=10))
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"model": {"name": "m", "mlps": 2}, "verdict": {"outcome": "no evidence"},
                 "started": "2026-01-01", "histograms": {"a": "histograms/0-a.npy"}}  # fmt: skip
    whole = (run / NEURONS).read_bytes()
    entries = np.zeros((20, 3), tables.ENTRY)
    (folder / "beside").mkdir()
    place = run_of(folder / "beside" / "run", dense(layers=2, width=10),
                   histograms={"a": "histograms/0-a.npy"})  # fmt: skip
    for name in ("examples", "histograms", "weights", "vocabulary"):
        (place / name).mkdir()
    files: list[tuple[str, bytes]] = []

    def put(name: str, array: Any) -> None:
        tables.save_array(place / name, array)
        files.append((name, (place / name).read_bytes()))

    for side in tables.SIDES:
        put(f"examples/{side}.npy", entries)
    put("histograms/0-a.npy", np.zeros((20, 64), "<u4"))
    put("weights/bins.npy", np.zeros((2, 1), tables.SCALE))
    for matrix in tables.MATRICES:
        put(f"weights/{matrix}.npy", np.zeros((20, 24), "<u2"))
    put("samples.npy", np.zeros((4, 20), "<f4"))

    def beside(case: Case) -> None:
        from glulens.errors import GlulensError

        assert isinstance(case, bytes)
        name, data = files[case[0] % len(files)]
        (place / name).write_bytes(case[1:])
        try:
            readers: dict[str, Callable[[], object]] = {
                "e": lambda: tables.examples_of(place, 3),
                "h": lambda: tables.activation_histograms(place, 3),
                "w": lambda: tables.weight_histograms(place, 3),
                "s": lambda: tables.sample_means(place, [1, 3]),
            }
            readers[name[0]]()
        except GlulensError:
            pass
        finally:
            (place / name).write_bytes(data)

    def make_beside(draw: random.Random) -> bytes:
        at = draw.randrange(len(files))
        return bytes([at]) + mutate.of_bytes(draw, files[at][1])

    def listed(case: Case) -> None:
        _file(run / "manifest.json", case)
        find_runs(folder / "runs")
        open_run(run)

    command = main.commands["runs"].callback
    assert command is not None

    def shown(case: Case) -> None:
        import contextlib

        _file(run / "manifest.json", case)
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
            command(folder / "runs", False)
            command(folder / "runs", True)

    def table(case: Case) -> None:
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / NEURONS).write_bytes(case if isinstance(case, bytes) else b"")
        columns = open_columns(run)
        if columns.names:
            columns.order(columns.names[0])

    neurons = NeuronSet((10, 10), (np.array([1, 2]), np.array([9])))
    ones = np.ones(4)
    recording = Recording((Activity(ones, ones, ones, ones, ones),) * 2, (9, 9), 3)
    recording.save(folder / "good.safetensors")
    stages = Stages(folder, "about")
    stages("kept", lambda: {"a": np.arange(5), "b": np.ones((2, 2), np.float32)})
    kept = folder / "kept.stage.safetensors"
    stage = kept.read_bytes()

    def again(case: Case) -> None:
        _file(kept, case)
        stages._load(kept)

    return [
        Parser("manifests", 25, _from_json(manifest), listed),
        Parser("manifests, as `runs` lists them", 12, _from_json(manifest), shown),
        Parser("tables of neurons", 10, _from_bytes(whole), table),
        Parser("arrays beside the table", 15, make_beside, beside),
        Parser("sets of neurons", 25, _from_json(neurons.to_json()),
               lambda case: NeuronSet.load(_file(folder / "set.json", case)).complement()),
        Parser("recordings", 12, _from_bytes((folder / "good.safetensors").read_bytes()),
               lambda case: Recording.load(_file(folder / "it.safetensors", case))),
        Parser("stages of a killed run", 12, _from_bytes(stage), again),
    ]  # fmt: skip


def _models(folder: Path) -> list[Parser]:
    import torch
    from families import make, save_tokenizer
    from safetensors.torch import save

    from glulens.prune.checkpoint import open_checkpoint
    from glulens.prune.models import ModelSource, read_config
    from glulens.prune.shards import read_shard

    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    model = folder / "model"
    make("llama", vocab_size=60).save_pretrained(model)
    save_tokenizer(model)
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", weights[:8])[0]
    header = json.loads(weights[8 : 8 + size])
    index = {"metadata": {}, "weight_map": dict.fromkeys(header, "model.safetensors")}

    def whole(case: Case) -> None:
        """The first letter says which file is spoiled."""
        text = case if isinstance(case, str) else case.decode("utf-8", "replace")
        kind, text = text[0], text[1:]
        good = json.dumps(config)
        _file(model / "config.json", text if kind == "c" else good)
        (model / "model.safetensors.index.json").unlink(missing_ok=True)
        if kind == "i":
            (model / "model.safetensors").rename(model / "held")
            _file(model / "model.safetensors.index.json", text)
        elif kind == "h":
            data = text.encode("utf-8", "surrogatepass")
            (model / "model.safetensors").write_bytes(
                struct.pack("<Q", len(data)) + data + weights[8 + size :]
            )
        try:
            with open_checkpoint(model) as checkpoint:
                _ = checkpoint.layouts, checkpoint.parameters
        finally:
            if kind == "i":
                (model / "held").rename(model / "model.safetensors")
            elif kind == "h":
                (model / "model.safetensors").write_bytes(weights)

    def make_whole(draw: random.Random) -> str:
        kind, value = draw.choice((("c", config), ("i", index), ("h", header)))
        return kind + mutate.of_json(draw, value)

    def gguf(case: Case) -> None:
        path = _file(folder / "it.gguf", case)
        read_config(ModelSource(str(path), "gguf", path))

    return [
        Parser("headers of safetensors", 20, _from_bytes(save(tensors, {"format": "pt"})),
               lambda case: read_shard(_file(folder / "shard.safetensors", case))),
        Parser("checkpoints: config, index, header", 10, make_whole, whole),
        Parser("GGUF files", 10, _from_bytes(small_gguf(folder)), gguf),
    ]  # fmt: skip


def small_gguf(folder: Path) -> bytes:
    """A file with values of every kind and two tensors; a few hundred bytes."""
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(folder / "good.gguf", "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c", "d"])
    writer.add_array("glulens.numbers", [1, 2, 3])
    writer.add_array("glulens.reals", [0.5, 1.5])
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((16, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (folder / "good.gguf").read_bytes()
