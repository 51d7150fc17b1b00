"""Makes docs/notebook.ipynb: the cells below, run from top to bottom in an empty folder.

    python docs/make_notebook.py            # minutes on two cores
    python docs/make_notebook.py OUT.ipynb

The folder's own path is taken out of what cells print, and how long cells took is not kept.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE / "notebook.ipynb"

CELLS: tuple[tuple[str, str], ...] = (
    (
        "markdown",
        """# glulens in a notebook

Ranks the MLP neurons of a language model by their weights, looks at what one of them does, takes a
tenth of them out, and asks whether misconceptions live in the small ones. The model is
SmolLM2-135M-Instruct, the texts are the built-in sample: nothing comes from a hub. Limits are low,
so that the whole page takes three minutes; results at such limits say nothing about the
model. The [tutorial](tutorial.md) does the same on the command line.""",
    ),
    (
        "code",
        """import glulens as gl

model = gl.open_model("smollm2-135m-instruct")
model""",
    ),
    (
        "markdown",
        """## Score

One row a neuron, one column a criterion; higher means keep. The weights are read once for all of
them. [pruning.md](pruning.md) has the criteria.""",
    ),
    (
        "code",
        """scores = gl.score(model)
scores""",
    ),
    ("markdown", "The ten smallest neurons of layer 12 by the paper's criterion:"),
    (
        "code",
        """import polars as pl

scores.filter(pl.col("layer") == 12).sort("ppm").select("layer", "neuron", "ppm", "l2").head(10)""",
    ),
    (
        "markdown",
        """## Look at one neuron

`probe` records what every neuron does on probe sets and writes a run directory; here on the answers
to eight questions of the built-in sample.""",
    ),
    (
        "code",
        """run = gl.probe(model, "runs/probe", on="truthfulqa", limit=8, examples=3)
run""",
    ),
    ("markdown", "Everything that the run knows of the smallest neuron of layer 12:"),
    (
        "code",
        """from glulens.tui.columns import open_columns
from glulens.tui.facts import facts
from glulens.tui.plain import sheet

smallest = scores.filter(pl.col("layer") == 12).sort("ppm")["neuron"][0]
columns = open_columns(run.path)
print("\\n".join(sheet(facts(columns, columns.find(f"L12.N{smallest}")), examples=2)))""",
    ),
    (
        "markdown",
        """## Take a tenth out

Silencing neurons equals cutting them, to the last bit but rounding. Perplexity of the built-in
neutral text, intact, without the lowest tenth of every layer, and without random tenths:""",
    ),
    (
        "code",
        """from glulens.datasets.neutral import load_neutral
from glulens.probes.perplexity import window_losses
from glulens.prune import find_mlps, lowest, masked, score_mlps

passages = load_neutral().records[:8]
ids = model.tokenizer("\\n".join(passage.text for passage in passages))["input_ids"]


def perplexity():
    return window_losses(model.model, ids).perplexity


ranked = score_mlps(find_mlps(model.model), ["ppm", "random:0", "random:1", "random:2"])
rows = [{"cut a tenth by": "nothing", "perplexity": perplexity()}]
for name, score in ranked.items():
    with masked(model.model, lowest(score, fraction=0.1)):
        rows.append({"cut a tenth by": name, "perplexity": perplexity()})
pl.DataFrame(rows)""",
    ),
    (
        "markdown",
        """On this model the paper's criterion does worse than chance;
[random-control.md](random-control.md) has ten draws, five criteria, and the layer that makes most
of it.

`glulens.prune.resize` cuts for good in memory. `prune_checkpoint` writes a checkpoint that stock
Transformers load, tensor by tensor; a dry run says what it would write.""",
    ),
    (
        "code",
        """budget = gl.Budget(fraction=0.1)
gl.prune_checkpoint("smollm2-135m-instruct", "pruned", budget=budget, dry_run=True)""",
    ),
    (
        "markdown",
        """## The main job

Do misconceptions live in low-magnitude neurons? Sixteen questions cannot say, and the verdict says
that they cannot. `gl.hypothesis(model)` with its own defaults takes minutes, with the official data
an hour; [hypothesis.md](hypothesis.md) says how to read it.""",
    ),
    (
        "code",
        """found = gl.hypothesis(
    model,
    limit=16,
    criteria=("ppm", "l2", "random:0"),
    permutations=200,
    bootstraps=100,
    causal_items=0,
    map_items=0,
    dose_items=0,
    null_items=0,
    decode_every=0,
    umap=False,
)
found""",
    ),
    ("markdown", "Results are frames and dataclasses; nothing has to be read off a page."),
    (
        "code",
        """found.verdict.outcome, found.verdict.p, found.neurons.columns[:8]""",
    ),
)


def build() -> Any:
    """The notebook, not yet run."""
    from nbformat import v4

    notebook = v4.new_notebook()
    for number, (kind, source) in enumerate(CELLS):
        make = v4.new_markdown_cell if kind == "markdown" else v4.new_code_cell
        notebook.cells.append(make(source, id=f"cell-{number:02}"))
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return notebook


def run(notebook: Any, timeout: int = 1800) -> Any:
    """Run a notebook in an empty folder; a cell that fails ends it.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient
    from traitlets.config import Config

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        # Through sockets of this user's, not through ports that others on the machine could reach.
        manager = {"transport": "ipc", "ip": str(Path(sockets) / "kernel")}
        client = NotebookClient(
            notebook,
            timeout=timeout,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            config=Config(KernelManager=manager),
        )
        client.execute()
        places = {str(Path(folder).resolve()), folder}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_kept(output, places) for output in cell.outputs if _is_kept(output)]
    notebook.metadata.pop("language_info", None)
    return notebook


def _is_kept(output: Any) -> bool:
    """Progress bars and warnings on stderr are this machine's affair."""
    return not (output.output_type == "stream" and output.name == "stderr")


def _kept(output: Any, places: set[str]) -> Any:
    said = json.dumps(output)
    for place in places:
        said = said.replace(f"{place}{os.sep}", "").replace(place, ".")
    from nbformat import from_dict

    return from_dict(json.loads(said))


def main() -> None:
    """Make the notebook and write it."""
    from nbformat import NO_CONVERT, validate, write

    target = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    notebook = run(build())
    validate(notebook)
    write(notebook, target, version=NO_CONVERT)
    sys.stderr.write(f"{target}\n")


if __name__ == "__main__":
    main()
