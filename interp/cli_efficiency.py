"""`glulens efficiency`: time, tokens a second and energy of models side by side."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError, visible

if TYPE_CHECKING:
    from .efficiency import EfficiencyResult, Measure


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="A [B ...]")
@click.option("--fractions", metavar="LIST",
              help="Measure cuts of one model, as in 0,0.5; 0 is the intact one.")  # fmt: skip
@click.option("--criterion", default="ppm", show_default=True,
              help="What chooses the neurons that go.")  # fmt: skip
@click.option("--compensate", type=click.Choice(["none", "lsq", "flap"]), default="none",
              show_default=True, help="Make up for cuts in what stays.")  # fmt: skip
@click.option("--prompt-tokens", type=int, default=128, show_default=True, metavar="N",
              help="Tokens read first, at fixed length.")  # fmt: skip
@click.option("--new-tokens", type=int, default=64, show_default=True, metavar="N",
              help="Tokens written then, end of text or not.")  # fmt: skip
@click.option("--batch", "batches", default="1,8", show_default=True, metavar="LIST",
              help="Rows run together.")  # fmt: skip
@click.option("--rounds", type=int, default=5, show_default=True, metavar="N",
              help="Times that everything is measured, in turn.")  # fmt: skip
@click.option("--prompts", type=int, default=4, show_default=True, metavar="N",
              help="Instructions answered until end of text; 0 for none.")  # fmt: skip
@click.option("--longest", type=int, default=128, show_default=True, metavar="N",
              help="Tokens after which an answer is cut off.")  # fmt: skip
@click.option("--data", default="builtin", show_default=True, metavar="WHERE",
              help="Of instructions: `builtin`, `hub`, or a folder of official files.")  # fmt: skip
@click.option("--chat/--no-chat", default=True, show_default=True,
              help="Put instructions through the chat template, if there is one.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
              default="auto", show_default=True, help="Of the models in memory.")  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="A torch device.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Write the result to stdout as JSON.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost; measure nothing.")
def efficiency(
    models: tuple[str, ...],
    fractions: str | None,
    batches: str,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """How long do models take to answer, and what energy, each beside the first?

    Time to the first token, from token to token, tokens a second and joules a token, at fixed
    length and until the model ends its text, in turn A B A B ..., with intervals over rounds.
    Models are names (see `glulens score -h`); --fractions cuts one, to really narrower weights.
    Energy comes from the machine's own counters or not at all. Run it on a quiet machine.
    """
    from ..progress import on_stderr
    from .efficiency import efficiency as run
    from .efficiency_options import make_efficiency_options

    options["batches"] = tuple(map(_whole, _list(batches, "--batch", "1,8")))
    if fractions is not None:
        options["fractions"] = tuple(map(_number, _list(fractions, "--fractions", "0,0.5")))
    settings = make_efficiency_options(**options)
    if dry_run:
        from .efficiency_plan import plan_efficiency

        plan = plan_efficiency(models, settings)
        click.echo(json.dumps(plan.to_json()) if as_json else "\n".join(plan.lines()))
        return
    with on_stderr() as progress:
        result = run(models, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1, allow_nan=False))
        return
    from .cli_runs import show

    for warning in result.warnings:
        click.echo(f"warning: {visible(warning)}", err=True)
    show(terminal(result))


def _list(text: str, flag: str, example: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{flag} {text!r}: write numbers with commas, as in {example}")
    return parts


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--fractions: {text!r} is no number; write as in 0,0.5") from None


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"--batch: {text!r} is no whole number; write as in 1,8")
    return int(text)


def terminal(result: EfficiencyResult) -> Any:
    """The result for a terminal."""
    from rich.console import Group

    from .content import grid
    from .efficiency import FIXED, UNTIL_END

    sizes = [
        (letter(place), s.name, f"{s.neurons:,}", f"{s.ratio:.2f}", f"{s.parameters:,}",
         f"{s.weight_bytes / 1e6:,.0f} MB", f"{s.weight_bytes / first:.2f} x")
        for first in [result.sizes[0].weight_bytes]
        for place, s in enumerate(result.sizes)
    ]  # fmt: skip
    said, about = result.options, result.about
    pieces: list[Any] = [
        grid(
            "Models",
            (("", "model", "neurons", "expansion", "parameters", "weights", "of A"), sizes),
            2,
        ),
        grid(
            f"Fixed length: {said.prompt_tokens} tokens read, {said.new_tokens} written",
            _rows(
                result, FIXED, ("prefill", "decode", "rate", "energy"),
                ("to 1st token, ms", "per token, ms", "tokens/s", "J/token"),
            ),
            2,
            grouped=True,
        ),
    ]  # fmt: skip
    if said.prompts:
        pieces.append(
            grid(
                f"Until end of text: {said.prompts} instructions, at most {said.longest} tokens",
                _rows(
                    result, UNTIL_END, ("answer", "length", "ended", "rate", "energy"),
                    ("s/answer", "tokens/answer", "ended", "tokens/s", "J/token"),
                ),
                2,
                grouped=True,
            )
        )  # fmt: skip
    what = (
        f"{about['device']}, {', '.join(about['dtypes'])}, {about['threads']} threads, load "
        f"{about['load_before']} before. Medians of {about['rounds']} rounds in turn, in brackets "
        "95 % of a bootstrap over rounds; x A: over the first model in the same round. Eager "
        "Transformers, greedy."
    )
    return Group(*pieces, "", what, about["energy"])


def _rows(
    result: EfficiencyResult, part: str, names: tuple[str, ...], titles: tuple[str, ...]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """One line a batch and model: each value with its interval and its ratio to the first."""
    batches = sorted({m.batch for m in result.measures if m.part == part})
    measured = [
        (name, title)
        for name, title in zip(names, titles, strict=True)
        if name != "energy" or result.about["measures_energy"]
    ]
    lines = []
    for batch in batches:
        for place in range(len(result.sizes)):
            line = [str(batch), letter(place)]
            for name, _ in measured:
                found = result.find(place, part, batch, name)
                line += ["-", "-"] if found is None else _cells(found, place)
            lines.append(tuple(line))
    header = ["batch", "model"]
    for _, title in measured:
        header += [title, "x A"]
    return tuple(header), lines


def letter(place: int) -> str:
    """A, B, ..., Z, AA, AB, ...: names of models are too long to stand in every line."""
    found = ""
    while place >= 0:
        place, rest = divmod(place, 26)
        found, place = chr(ord("A") + rest) + found, place - 1
    return found


def _cells(found: Measure, place: int) -> list[str]:
    exact = found.name in ("length", "ended")
    value = f"{found.value:,.4g}"
    if not exact and found.low == found.low:
        value += f" [{found.low:,.4g}, {found.high:,.4g}]"
    if place == 0 or found.ratio != found.ratio:
        return [value, ""]
    ratio = f"{found.ratio:.2f}"
    if not exact and found.ratio_low == found.ratio_low:
        ratio += f" [{found.ratio_low:.2f}, {found.ratio_high:.2f}]"
    return [value, ratio]
