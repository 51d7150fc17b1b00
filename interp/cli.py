"""The command line: each command is a thin face on a function that a notebook can call.

stdout is for data, stderr for narration and progress. Nothing heavy is imported before a command
needs it: `glulens --help` never loads torch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import GlulensError, ResourceError, RunError, is_out_of_memory, visible
from . import cli_probes, cli_weights

EXIT_CODES = """
Exit codes: 0 ok; 1 failed; 2 usage; 3 model or data missing or unsupported; 4 out of memory or
disk; 5 unfinished, resumable; 130 interrupted.
"""
RUNS = Path("runs")


class Commands(click.Group):
    """The group that turns errors into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
            sys.exit(code if isinstance(code, int) else 0)
        except click.exceptions.Abort:
            _stop("interrupted; nothing was written", 130)
        except KeyboardInterrupt:
            _stop("interrupted; nothing was written", 130)
        except click.ClickException as error:
            hint = ""
            if isinstance(error, click.UsageError) and error.ctx is not None:
                hint = f" (see {error.ctx.command_path} --help)"
            _stop(error.format_message() + hint, error.exit_code)
        except GlulensError as error:
            _stop(str(error), error.exit_code)
        except (MemoryError, RuntimeError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                sys.stderr.close()  # whoever read us has gone; saying so to them would fail again
                sys.exit(1)
            if not is_out_of_memory(error):
                raise
            _stop(
                "out of memory; free some, or lower --max-tokens or --limit where the command has "
                "them",
                ResourceError.exit_code,
            )


def _stop(message: str, code: int) -> None:
    click.echo(f"glulens: {visible(' '.join(message.split()))}", err=True)
    sys.exit(code)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="glulens")
def main() -> None:
    """Do the weights of a neuron say what it does?

    Rank the MLP neurons of a language model by their weights, watch the same neurons on facts,
    instructions and misconceptions, and test whether the two have anything to do with each other.
    """


def run_options(causal_items: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that `hypothesis` and `demo` share; the demo's causal look is the shorter."""
    options = [
        click.option("-o", "--output", type=click.Path(path_type=Path),
                     help="Run directory to write.  [default: runs/COMMAND-MODEL-TIME]"),
        click.option("--overwrite", is_flag=True, help="Replace a run that is there."),
        click.option("--limit", type=int, metavar="N", help="Items per property, drawn at random."),
        click.option("--criteria", metavar="LIST",
                     help="Comma-separated; the first carries the verdict.  "
                     "[default: ppm,maw,vow,pon,l2,random:0]"),
        click.option("--seed", type=int, default=0, show_default=True, help="Of every draw."),
        click.option("--causal-items", type=int, default=causal_items, show_default=True,
                     metavar="N", help="Items a property in the causal look; 0 leaves it out."),
        click.option("--max-tokens", type=int, default=1024, show_default=True, metavar="N",
                     help="Padded tokens in a batch; lower it when memory is short."),
        click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON."),
        click.option("--dry-run", is_flag=True, help="Say what it would cost; run nothing."),
    ]  # fmt: skip

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@main.command()
@click.argument("model")
@click.option("--data", default="builtin", show_default=True, metavar="WHERE",
              help="`builtin`, `hub`, or a folder with the official files.")  # fmt: skip
@run_options(causal_items=40)
@click.option("--permutations", type=int, default=2000, show_default=True, metavar="N",
              help="Draws of the item-label null.")  # fmt: skip
@click.option("--chat", is_flag=True, help="Put prompts through the model's chat template.")
@click.option("--engine", type=click.Choice(["hooks", "lens"]), default="hooks", show_default=True)
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="A torch device.")
def hypothesis(model: str, **options: Any) -> None:
    """Test whether misconceptions live in low-magnitude neurons of MODEL.

    MODEL is smollm2-135m-instruct, a folder saved by Transformers, a .gguf file, or a hub id with
    an optional @revision.
    """
    _hypothesis("hypothesis", model, **options)


@main.command()
@run_options(causal_items=24)
def demo(**options: Any) -> None:
    """The hypothesis on SmolLM2-135M-Instruct with the built-in sample."""
    _hypothesis("demo", "smollm2-135m-instruct", **options)


def _hypothesis(
    command: str,
    model: str,
    output: Path | None,
    overwrite: bool,
    criteria: str | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    from ..progress import on_stderr
    from ..prune.expressions import parse_criteria
    from ..rundir import unused
    from .hypothesis import hypothesis as run
    from .hypothesis import make_options

    where = {name: options.pop(name) for name in ("dtype", "device") if name in options}
    if criteria is not None:
        options["criteria"] = parse_criteria(criteria)
    settings = make_options(**options)
    if dry_run:
        from dataclasses import asdict

        from .plan import plan_hypothesis

        plan = plan_hypothesis(model, settings)
        lines = json.dumps({"schema_version": 1, **asdict(plan)}) if as_json else plan.lines()
        click.echo(lines if isinstance(lines, str) else "\n".join(lines))
        return
    path = output or unused(RUNS / f"{command}-{Path(model).name.split('@')[0]}")
    with on_stderr() as progress:
        result = run(
            model,
            output=path,
            overwrite=overwrite,
            progress=progress,
            argv=["glulens", *sys.argv[1:]],
            **where,
            **options,
        )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1, allow_nan=False))
    else:
        _print(result)
    click.echo(f"run directory: {path}", err=as_json)


def _print(result: Any) -> None:
    from rich.console import Console

    from .report import terminal

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # in a file or a pipe nothing needs folding
    console.print(terminal(result))


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
def browse(run: Path) -> None:
    """Browse the neurons of RUN, a run directory, in the terminal."""
    from ..tui.app import browse as show

    show(run)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), default=RUNS)
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
def runs(folder: Path, as_json: bool) -> None:
    """List the finished runs in FOLDER (./runs)."""
    from ..rundir import find_runs

    if not folder.is_dir():
        raise RunError(f"no such folder: {folder}; `glulens demo` makes a first run in ./{RUNS}")
    rows = [
        {
            "path": str(run.path),
            "started": run.manifest.get("started"),
            "model": run.manifest.get("model", {}).get("name"),
            "verdict": run.manifest.get("verdict", {}).get("outcome"),
        }
        for run in find_runs(folder)
    ]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "runs": rows}, indent=1))
    for row in () if as_json else rows:
        click.echo("\t".join(str(value) for value in row.values()))


@main.command()
def models() -> None:
    """List the models that need no hub, and whether they are in the cache."""
    from ..prune.embedded import EMBEDDED, embedded_folder

    for model in EMBEDDED.values():
        state = "cached" if embedded_folder(model).is_dir() else "fetched when first used"
        click.echo(f"{model.alias}\t{model.about}\t{state}")


main.add_command(cli_weights.score)
main.add_command(cli_weights.prune)
main.add_command(cli_probes.probe)
main.add_command(cli_probes.examples)


if __name__ == "__main__":
    main()
