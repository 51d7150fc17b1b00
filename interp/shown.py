"""Results in a notebook: their verdict, the tables that carry it, and a figure or two.

The rows are those of the terminal and of reports; `show_html` makes HTML of them, and escapes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..show_html import Grid, Part, head, image, page

if TYPE_CHECKING:
    from .calibration import Calibration
    from .compare_result import CompareResult
    from .efficiency import EfficiencyResult
    from .result import HypothesisResult
    from .sweep_result import SweepResult


def hypothesis_html(result: HypothesisResult) -> str:
    """Verdict, correlations, silencing, controls, two figures and the first neurons."""
    from .figures import localisation_figure
    from .figures_causal import causal_figure
    from .rows import association_rows, causal_rows, check_rows

    parts: list[Part] = [
        result.verdict.sentence,
        Grid(*association_rows(result, full=False), 2, "Magnitude against function"),
    ]
    if result.effects:
        rows = causal_rows(result, full=False)
        parts.append(Grid(*rows, 1, "Silencing a tenth of every layer"))
    if result.verdict.checks:
        parts.append(Grid(*check_rows(result), 4, "Controls"))
    parts.append(image(localisation_figure(result), "Corrected effects by criterion and property"))
    if result.effects:
        parts.append(image(causal_figure(result), "Every tenth silenced, beside random tenths"))
    parts += [head(result.neurons, "neurons"), *_where(result.path)]
    return page(f"Verdict: {result.verdict.outcome}", *parts)


def compare_html(result: CompareResult) -> str:
    """Verdict, change against magnitude, scores in both, and the first neurons."""
    from .compare_rows import kept_rows, score_rows, short_rows
    from .figures_compare import tenths_figure

    parts: list[Part] = [*result.sentences]
    if result.verdict is not None:
        parts.append(Grid(*short_rows(result), 1, "Magnitude in the base against change"))
    parts.append(Grid(*score_rows(result), 1, "Scores in both"))
    if result.kept_alike:
        parts.append(Grid(*kept_rows(result, full=False), 1, "Cut alike by both sides' scores"))
    if result.verdict is not None:
        about = "Share of the squared change in each tenth"
        parts.append(image(tenths_figure(result)[0], about))
    parts += [head(result.neurons, "neurons"), *_where(result.path)]
    said = "two runs" if result.verdict is None else f"verdict: {result.verdict.outcome}"
    return page(f"Comparison, {said}", *parts)


def sweep_html(result: SweepResult) -> str:
    """Scores of every cut, what they say, and their curves."""
    from .figures_sweep import curves_figure
    from .sweep_report import sentences, shown
    from .sweep_rows import curve_rows

    found, keys = result.analysis, shown(result)
    parts: list[Part] = [
        Grid(*curve_rows(found, keys, full=False), 2, "Scores"),
        *sentences(found),
        *(f"Warning: {said}" for said in result.manifest.get("warnings", ())),
    ]
    if keys:
        about = "Scores by fraction cut, with random cuts and floors"
        parts.append(image(curves_figure(found, keys)[0], about))
    return page(f"Sweep of {result.points.height} points", *parts, *_where(result.path))


def calibration_html(result: Calibration) -> str:
    """How often every planting was called what it is."""
    from .calibration import power_figure, rate_rows, summary

    return page(
        "Does the test say what was planted?",
        summary(result),
        Grid(*rate_rows(result), 1),
        image(power_figure(result), "Share of plantings that were called what they are"),
        *_where(result.path),
    )


def efficiency_html(result: EfficiencyResult) -> str:
    """Models, and every measure beside the first model's."""
    sizes = [
        (s.name, f"{s.neurons:,}", f"{s.parameters:,}", f"{s.weight_bytes / 1e6:,.0f} MB")
        for s in result.sizes
    ]
    rows = [
        (
            result.sizes[row.model].name,
            row.part,
            f"{row.name}, {row.unit}",
            str(row.batch),
            _interval(row.value, row.low, row.high),
            _interval(row.ratio, row.ratio_low, row.ratio_high),
        )
        for row in result.measures
    ]
    return page(
        "Models side by side",
        Grid(("model", "neurons", "parameters", "weights"), sizes),
        Grid(("model", "work", "measure", "batch", "median [95 %]", "x the first [95 %]"), rows, 3),
        *(f"Warning: {said}" for said in result.warnings),
    )


def _interval(value: float, low: float, high: float) -> str:
    if value != value:
        return "-"
    return f"{value:.4g}" if low != low else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _where(path: Path | None) -> Sequence[str]:
    return () if path is None else (f"Run directory: {path}",)


def short(name: str, /, **facts: object) -> str:
    """One line for a terminal; what is None is left out."""
    told = ", ".join(
        f"{key}={(str(value) if isinstance(value, Path) else value)!r}"
        for key, value in facts.items()
        if value is not None
    )
    return f"{name}({told})"
