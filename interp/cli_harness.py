"""`glulens lm-eval`: lm-evaluation-harness' own command, with the model `glulens` on its list."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import click


@click.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.option("--data", metavar="FOLDER", help="Official files, in place of the hub.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lm_eval(data: str | None, arguments: tuple[str, ...]) -> None:
    """lm-evaluation-harness' command, with the model `glulens`.

    As in `glulens lm-eval --data FOLDER run --model glulens --model_args
    pretrained=NAME,criterion=ppm,expansion=2.4 --tasks lambada_openai`; all other arguments go to
    it as they are. The harness has no plugins, so that its own `lm_eval` cannot find the model by
    itself. With `--data` the documents of the tasks that `glulens sweep` knows come from a folder.
    """
    from . import harness  # noqa: F401  # registers the model
    from .harness_tasks import local_documents
    from .ifeval_check import load_checker

    if any("ifeval" in argument for argument in arguments):
        load_checker()  # else the harness downloads NLTK's parameters
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["glulens lm-eval", *arguments]
    try:
        with local_documents(data) if data is not None else nullcontext():
            cli_evaluate()
    finally:
        sys.argv = before
