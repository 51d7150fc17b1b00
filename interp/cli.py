"""The command line: each command is a thin face on a function that a notebook can call.

stdout is for data, stderr for narration and progress. Nothing heavy is imported before a command
needs it: `glulens --help` never loads torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..errors import (
    GlulensError,
    ResourceError,
    RunError,
    is_out_of_memory,
    refused,
    visible,
)
from . import (
    cli_browse,
    cli_claims,
    cli_compare,
    cli_efficiency,
    cli_harness,
    cli_hypothesis,
    cli_probes,
    cli_sweep,
    cli_weights,
)

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
            if isinstance(error, OSError) and error.errno and not is_out_of_memory(error):
                told = refused(error)
                _stop(str(told), told.exit_code)
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
            "command": _told(run.manifest, "command"),
            "started": _told(run.manifest, "started"),
            "model": _told(run.manifest, "model", "name"),
            "verdict": _told(run.manifest, "verdict", "outcome"),
        }
        for run in find_runs(folder)
    ]
    if as_json:
        click.echo(json.dumps({"schema_version": 1, "runs": rows}, indent=1))
    for row in () if as_json else rows:
        click.echo("\t".join(visible(value or "-") for value in row.values()))


def _told(manifest: dict[str, Any], *names: str) -> str | None:
    """A text that a manifest holds; a manifest may be anybody's, and hold anything."""
    found: Any = manifest
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


@main.command()
def models() -> None:
    """List the models that need no hub, and whether they are in the cache."""
    from ..prune.embedded import EMBEDDED, embedded_folder

    for model in EMBEDDED.values():
        state = "cached" if embedded_folder(model).is_dir() else "fetched when first used"
        click.echo(f"{model.alias}\t{model.about}\t{state}")


main.add_command(cli_hypothesis.hypothesis)
main.add_command(cli_hypothesis.demo)
main.add_command(cli_hypothesis.calibrate)
main.add_command(cli_weights.score)
main.add_command(cli_weights.prune)
main.add_command(cli_probes.probe)
main.add_command(cli_probes.examples)
main.add_command(cli_compare.compare)
main.add_command(cli_claims.claims)
main.add_command(cli_sweep.sweep)
main.add_command(cli_harness.lm_eval)
main.add_command(cli_efficiency.efficiency)
main.add_command(cli_browse.browse)
main.add_command(cli_browse.top)
main.add_command(cli_browse.show)


if __name__ == "__main__":
    main()
