"""What a pruned checkpoint says about itself in its model card."""

from __future__ import annotations

from collections.abc import Sequence

from .layout import MlpLayout


def card(
    original: str | None,
    *,
    source: str,
    revision: str | None,
    how: str,
    command: str,
    layouts: Sequence[MlpLayout],
    kept: Sequence[int],
    stored: Sequence[int],
    parameters: tuple[int, int],
    ties: int | None,
    version: str,
) -> str:
    """The model card: the original text, if there is one, and a section on what was cut.

    Args:
        how: the criterion and the budget in words.
        kept: neurons left, by MLP.
        stored: neurons as stored, by MLP, zero neurons included.
        parameters: before and after, zero neurons not counted.
        ties: kept neurons that scored like a cut one; None where nothing was scored.
    """
    before = sum(layout.width for layout in layouts)
    lines = [
        "## Pruned with glulens",
        "",
        f"Neurons of the MLPs of `{source}` were cut: rows of gate and up, columns of down.",
        "",
        "| | |",
        "|---|---|",
        *([f"| revision | `{revision}` |"] if revision else []),
        f"| chosen by | {how} |",
        f"| neurons | {before:,} -> {sum(kept):,} ({1 - sum(kept) / before:.1%} cut) |",
        f"| parameters | {parameters[0]:,} -> {parameters[1]:,} |",
        f"| widths | {_widths([w.width for w in layouts])} -> {_widths(kept)} |",
    ]
    if list(stored) != list(kept):
        lines.append(
            f"| stored widths | {_widths(stored)}: narrower MLPs are padded with zero neurons, so "
            "that stock Transformers loads them; `glulens.open_model` takes those away |"
        )
    if ties is not None:
        lines.append(f"| ties | {ties:,} kept neurons score like a cut one of their MLP |")
    lines += [
        f"| made by | glulens {version}: `{command}` |",
        "",
        "Which neurons went is in `glulens_cut.json` (numbers of the source model). The model was "
        "not trained after the cut.",
    ]
    head = (
        "---\nlibrary_name: transformers\n---\n" if original is None else original.rstrip() + "\n"
    )
    return head + "\n" + "\n".join(lines) + "\n"


def _widths(widths: Sequence[int]) -> str:
    """`32 x 8192`, or the runs where widths differ: `1 x 8192, 31 x 7373`."""
    runs: list[list[int]] = []
    for width in widths:
        if runs and runs[-1][1] == width:
            runs[-1][0] += 1
        else:
            runs.append([1, width])
    shown = [f"{count} x {width}" for count, width in runs[:12]]
    return ", ".join(shown) + (f", and {len(runs) - 12} more runs" if len(runs) > 12 else "")
