"""`glulens sweep`: a model intact and under growing cuts, evaluated on lm-eval's tasks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .cli_runs import place_of, saying_how_to_go_on, show

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("--criteria", default="ppm", show_default=True, metavar="LIST",
              help="What cuts go by, comma-separated (see `glulens score -h`).")  # fmt: skip
@click.option("--controls", default="random:5,reversed", show_default=True, metavar="LIST",
              help="random:N (N random cuts of each size), reversed (of every criterion), none."
              )  # fmt: skip
@click.option("--fractions", metavar="LIST",
              help="Shares of every MLP's neurons to cut.  [default: 0,0.1,...,0.6]")  # fmt: skip
@click.option("--ratios", metavar="LIST",
              help="Instead: kept width over hidden size, e.g. 4.0,3.6,...,1.6.")  # fmt: skip
@click.option("--tasks", default="truthfulqa_mc1,truthfulqa_mc2,mmlu,lambada_openai,wikitext",
              show_default=True, metavar="LIST", help="Tasks of lm-eval.")  # fmt: skip
@click.option("--data", default="hub", show_default=True, metavar="WHERE",
              help="A folder with the official files, or `hub`: lm-eval's own data.")  # fmt: skip
@click.option("--limit", multiple=True, metavar="N|TASK=N",
              help="Items a task (of mmlu: a subject), or of one task.")  # fmt: skip
@click.option("--pick", type=click.Choice(["random", "first"]), default="random",
              show_default=True, help="Which items; `first` is lm-eval's own limit.")  # fmt: skip
@click.option("--num-fewshot", type=int, metavar="N",
              help="Examples before a question.  [default: as the task has it]")  # fmt: skip
@click.option("--chat", is_flag=True, help="Put prompts through the model's chat template.")
@click.option("--add-bos", type=click.Choice(["auto", "true", "false"]), default="auto",
              show_default=True, help="A BOS token: as the tokenizer, always, never.")  # fmt: skip
@click.option("--keep-layers", metavar="LIST", help="Layers that stay whole, e.g. 0.")
@click.option("--compensate", type=click.Choice(["none", "lsq", "flap"]), default="none",
              show_default=True, help="Make up for cut neurons: least squares, bias.")  # fmt: skip
@click.option("--recording", type=click.Path(dir_okay=False, path_type=Path),
              help="For criteria that look at activations.  [default: the built-in neutral text]"
              )  # fmt: skip
@click.option("--max-tokens", type=int, default=1024, show_default=True, metavar="N",
              help="Padded tokens in a batch; lower it when memory is short.")  # fmt: skip
@click.option("--batch", "batch_size", type=int, default=8, show_default=True, metavar="N",
              help="Answers that are written side by side.")  # fmt: skip
@click.option("--max-gen-toks", type=int, metavar="N",
              help="Most tokens of a written answer.  [default: as the task has it]")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="A torch device.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of the items drawn, and of the first random cut.")  # fmt: skip
@click.option("--ray", metavar="ADDRESS",
              help="Spread the work: `local`, or the address of a Ray cluster.")  # fmt: skip
@click.option("-o", "--output", type=_PATH,
              help="Run directory to write.  [default: runs/sweep-MODEL-TIME]")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--overwrite", is_flag=True, help="Replace a run that is there.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")
@click.option("--dry-run", is_flag=True,
              help="Say what it would cost; opens the model, runs a few items.")  # fmt: skip
def sweep(
    model: str,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    recording: Path | None,
    limit: tuple[str, ...],
    keep_layers: str | None,
    ray: str | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """What do growing cuts do to MODEL's scores, and what do random cuts of the same size do?

    The model is loaded once; the neurons of a cut are silenced, which is what removing them does.
    Every item's result is kept: items.parquet. Tasks, prompts and metrics are lm-eval's
    (`pip install 'glulens[eval]'`). Killed or stopped, the same command with --resume goes on.
    """
    from ..progress import on_stderr
    from .sweep_options import make_sweep_options, parse_layers, parse_limits

    given = {name: value for name, value in options.items() if value is not None}
    given |= parse_limits(limit)
    if options["controls"].strip() in ("", "none"):
        given["controls"] = ()
    if keep_layers is not None:
        given["keep_layers"] = parse_layers(keep_layers)
    settings = make_sweep_options(**given)
    if dry_run:
        from .content import grid
        from .sweep_plan import plan_sweep

        with on_stderr() as progress:
            plan = plan_sweep(model, settings, recording=_read(recording), progress=progress)
        if as_json:
            click.echo(json.dumps(plan.to_json(), indent=1))
        else:
            show(grid("What the sweep would cost here", plan.rows(), 1))
        return
    from .sweep import sweep as run

    path = place_of("sweep", model, output, resume)
    with saying_how_to_go_on(path), on_stderr() as progress:
        result = run(
            model,
            output=path,
            resume=resume,
            overwrite=overwrite,
            recording=_read(recording),
            ray=ray,
            progress=progress,
            argv=["glulens", *sys.argv[1:]],
            **given,
        )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        from .sweep_report import terminal

        show(terminal(result))
    click.echo(f"run directory: {path}", err=as_json)


def _read(recording: Path | None) -> Any:
    from ..prune.recording import Recording

    return None if recording is None else Recording.load(recording)
