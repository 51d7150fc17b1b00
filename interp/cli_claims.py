"""`glulens claims`: the paper's own numbers, recomputed."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--model", "models", multiple=True, metavar="NAME",
              help="Only this one, as in Llama-3.2-3B; several times for several.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write the statistics to stdout as JSON.")
def claims(models: tuple[str, ...], as_json: bool) -> None:
    """Recompute what the published numbers of arXiv 2512.22671 say by themselves.

    Its correlation of MMLU with TruthfulQA-MC2 and how often chance does as much, the distance of
    MC2 from an answerer that knows nothing, and the z of each gain on IFEval. Runs no model.
    """
    from . import claims as work

    found = work.claims(models or None)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    from rich.console import Console, Group

    from .content import grid

    correlations = [
        (
            row.model, str(row.n), f"{row.r:+.3f}", f"{row.p:.3f}", f"{row.rho:+.3f}",
            f"{row.rho_p:.2f}", f"{row.without[0]:+.3f} .. {row.without[1]:+.3f}",
            f"{row.given_fraction:+.3f}",
            "-" if row.given_perplexity != row.given_perplexity else f"{row.given_perplexity:+.3f}",
            f"{row.by_chance:.1%}",
        )
        for row in found.correlations
    ]  # fmt: skip
    distances = [
        (
            row.model, row.floor, f"{row.chance:.4f}", f"{row.intact:+.4f}",
            f"{row.smallest:+.4f} .. {row.largest:+.4f}",
        )
        for row in found.distances
    ]  # fmt: skip
    gains = [
        (
            row.model, f"{row.fraction:.0%}", f"{row.value:.4f}", f"{row.relative:+.0%}",
            f"{row.z:+.2f}", f"{row.p:.4f}", f"{row.holm:.3f}",
        )
        for row in found.gains
    ]  # fmt: skip
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(
        Group(
            grid(
                "MMLU against TruthfulQA-MC2 over the cuts",
                (
                    ("model", "n", "r", "p", "Spearman", "p", "without one point",
                     "given the cut", "given perplexity", "by chance"),
                    correlations,
                ),
                1,
            ),
            grid(
                "MC2 beyond an answerer that knows nothing",
                (("model", "TruthfulQA", "its MC2", "intact", "under cuts"), distances),
                2,
            ),
            grid(
                "IFEval (prompt level, strict) against the intact model, 541 prompts",
                (("model", "cut", "score", "change", "z", "p", "p (Holm)"), gains),
                1,
                grouped=True,
            ),
            "by chance: share of pairs of unrelated increasing series (sorted uniform draws) whose "
            "|r| is as large. given: partial r, of perplexity its logarithm. v0, v1: versions of "
            "TruthfulQA; lm-evaluation-harness reads v1. p (Holm): over the cuts of a model.",
        )
    )  # fmt: skip
