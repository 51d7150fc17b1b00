"""The report's tables as rows of words, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..datasets.pairs import MISCONCEPTION, PROPERTIES
from .causal import DAMAGE, EVERY, Effect
from .content import Row
from .localisation import Association, corrected
from .verdict import format_p

if TYPE_CHECKING:
    from .result import HypothesisResult

Rows = tuple[Row, list[Row]]


def association_rows(result: HypothesisResult, *, full: bool = True) -> Rows:
    """The main table: one row a property and criterion.

    Args:
        full: with the effects as seen and p; without, what fits a terminal.
    """
    header = (
        "property",
        "criterion",
        "rho (null)",
        *(("effect [95 %]",) if full else ()),
        "seen",
        "corrected effect [95 %]",
        *(("p",) if full else ()),
        "q",
        "|d_z|, corrected [95 %]",
        "q",
        *(("AUROC, corrected [95 %]", "q", "given loudness") if full else ()),
        "lowest tenth (null)",
    )
    by_key = {(r.property, r.criterion, r.function): r for r in result.associations}
    shown = dict.fromkeys((r.property, r.criterion) for r in result.associations)
    rows = []
    for name, criterion in shown:
        if not full and criterion not in result.manifest["options"]["criteria"]:
            continue
        row = by_key[name, criterion, "attribution"]
        dz, area = by_key[name, criterion, "dz"], by_key[name, criterion, "auroc"]
        seen = f"{row.effect:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        given = row.partial - row.partial_null
        rows.append(
            (
                name,
                criterion,
                f"{row.rho:+.3f} ({row.rho_null:+.3f})",
                *((seen,) if full else ()),
                f"{row.attenuation:.2f}" + (f" ({row.attenuation_se:.2f})" if full else ""),
                _corrected(row),
                *((format_p(row.p),) if full else ()),
                format_p(row.q),
                _corrected(dz),
                format_p(dz.q),
                *(
                    (_corrected(area), format_p(area.q), f"{given:+.3f}, p = {row.partial_p:.2f}")
                    if full
                    else ()
                ),
                f"{row.share:.1%} ({row.share_null:.1%})",
            )
        )
    return header, rows


def _corrected(row: Association) -> str:
    found = corrected(row)
    if found is None:
        return "too faint"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def property_rows(result: HypothesisResult) -> Rows:
    """What each property's pairs are, and how the intact model does on them."""
    header = (
        "property",
        "a minus b",
        "items",
        "prefers the better",
        "margin (nats)",
        "tokens a / b",
    )
    return header, [
        (
            row["property"],
            row["contrast"],
            str(row["items"]),
            f"{row['preferred_share']:.1%}",
            f"{row['margin']:+.3f}",
            f"{row['answer_tokens_a']:.1f} / {row['answer_tokens_b']:.1f}",
        )
        for row in result.properties
    ]


def check_rows(result: HypothesisResult) -> Rows:
    """Controls of the verdict, and whether they passed."""
    said = {True: "passed", False: "failed", None: "says nothing"}
    rows = [
        (row.name, "required" if row.required else "beside", said[row.passed], row.found)
        for row in result.verdict.checks
    ]
    return ("control", "", "", "found"), rows


def difference_rows(result: HypothesisResult) -> Rows:
    """The misconception's effect minus other properties', by the criteria that were given."""
    rows = [
        (
            row.criterion,
            row.minus,
            {"attribution": "|attribution|", "dz": "|d_z|", "auroc": "AUROC"}[row.function],
            f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]",
            "paired" if row.paired else "independent",
        )
        for row in result.differences
        if row.criterion in result.manifest["options"]["criteria"] and row.function != "auroc"
    ]
    return ("criterion", "misconception minus", "by", "difference [95 %]", "items"), rows


def null_rows(result: HypothesisResult) -> Rows:
    """Models that know nothing."""
    header = ("model", "outcome", "questions", "prefers the truth", "rho (null)", "seen",
              "corrected effect [95 %]", "p")  # fmt: skip
    return header, [
        (
            row.model,
            row.outcome,
            str(row.n_items),
            f"{row.accuracy:.1%}",
            f"{row.rho:+.3f} ({row.rho_null:+.3f})",
            f"{row.attenuation:.2f}",
            "too faint"
            if row.effect != row.effect
            else f"{row.effect:+.2f} [{row.low:+.2f}, {row.high:+.2f}]",
            format_p(row.p),
        )
        for row in result.nulls
    ]


def tenth_rows(result: HypothesisResult) -> Rows:
    """What each tenth by the primary criterion holds of |attribution|, for each property."""
    primary = result.verdict.criterion
    rows = []
    for name in PROPERTIES:
        some = [
            r
            for r in result.tenths
            if (r.property, r.criterion, r.function) == (name, primary, "attribution")
        ]
        if some:
            rows.append((name, "mass", *(f"{r.mass:.1%} ({r.mass_null:.1%})" for r in some)))
            rows.append((name, "top 1 %", *(f"{r.top:.1%} ({r.top_null:.1%})" for r in some)))
    return ("property", "", *(str(k + 1) for k in range(10))), rows


def enrichment_rows(result: HypothesisResult) -> Rows:
    """Top functional neurons in the lowest and the highest tenth, all layers together."""
    rows = [
        (
            row.property,
            {"attribution": "|attribution|", "dz": "|d_z|", "auroc": "AUROC"}[row.function],
            "lowest" if row.tenth == 0 else "highest",
            str(row.found),
            f"{row.expected:.1f}",
            format_p(min(1.0, 2 * min(row.more_p, row.fewer_p))),
        )
        for row in result.enrichments
        if row.layer == EVERY and row.tenth in (0, 9)
    ]
    return ("property", "by", "tenth", "top neurons", "expected", "p (descriptive)"), rows


def causal_rows(result: HypothesisResult, *, full: bool = True) -> Rows:
    """What silencing tenths of all layers did, the random ones as their range."""
    some = [row for row in result.effects if row.layer == EVERY]
    quantities = list(dict.fromkeys(row.quantity for row in some))
    intact = {row.quantity: row.intact for row in some}
    header = (
        "silenced (change)",
        *(name if name == DAMAGE else f"{name} margin" for name in quantities),
    )
    rows: list[Row] = [("nothing (value)", *(f"{intact[name]:+.3f}" for name in quantities))]
    for replacing in dict.fromkeys(row.replacing for row in some):
        for tenth in range(10) if full else (0, 9):
            own = {
                r.quantity: r
                for r in some
                if (r.replacing, r.tenth, r.draw) == (replacing, tenth, -1)
            }
            if own:
                place = {0: "lowest", 9: "highest"}.get(tenth, f"{tenth + 1}.")
                rows.append((f"{place} tenth, {replacing}", *(_change(own[q]) for q in quantities)))
        spans = []
        draws = [r for r in some if r.replacing == replacing and r.draw >= 0]
        for name in quantities:
            values = [r.change for r in draws if r.quantity == name]
            spans.append(f"{min(values):+.3f} .. {max(values):+.3f}" if values else "-")
        count = len({(r.draw, r.tenth) for r in draws})
        rows.append((f"random tenths, {replacing} (range of {count})", *spans))
    return header, rows


def _change(row: Effect) -> str:
    return f"{row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def specific_rows(result: HypothesisResult) -> Rows:
    """Effects of the lowest and highest tenth against chance and at equal damage."""
    rows = []
    for row in result.effects:
        if row.layer != EVERY or row.tenth not in (0, 9) or row.draw >= 0:
            continue
        place = "lowest" if row.tenth == 0 else "highest"
        if row.draw < -1:
            place += " less a rival class"
        damage = row.quantity == DAMAGE
        rows.append(
            (
                f"{place}, {row.replacing}",
                row.quantity,
                f"{row.change:+.3f}",
                f"{row.z:+.1f}",
                format_p(row.p),
                "-" if damage else f"{row.specific:+.3f}" + (" *" if row.extrapolated else ""),
                "-" if damage else f"{row.specific_z:+.1f}",
                "-" if damage else format_p(row.specific_p),
            )
        )
    header = ("tenth", "quantity", "change", "z", "p", "at equal damage", "z", "p")
    return header, rows


def answerer_rows(result: HypothesisResult) -> Rows:
    """TruthfulQA's scores and their floors."""
    header = ("answerer", "MC1 [95 %]", "MC2 [95 %]", "entropy")
    return header, [
        (
            row.name,
            f"{row.mc1:.4f} [{row.mc1_low:.3f}, {row.mc1_high:.3f}]",
            f"{row.mc2:.4f} [{row.mc2_low:.3f}, {row.mc2_high:.3f}]",
            f"{row.entropy:.3f}",
        )
        for row in result.answerers
    ]


def overlap_rows(result: HypothesisResult) -> Rows:
    """Cuts and neurons with other jobs."""
    header = ("cut", "neurons", "in the model", "in the cut", "expected", "p more", "p fewer")
    return header, [
        (
            row.cut,
            row.rival,
            str(row.members),
            str(row.found),
            f"{row.expected:.1f}",
            format_p(row.more_p),
            format_p(row.fewer_p),
        )
        for row in result.overlaps
    ]


def primary_of(result: HypothesisResult) -> Association:
    """The association that carries the verdict."""
    key = MISCONCEPTION, result.verdict.criterion, "attribution"
    return next(r for r in result.associations if (r.property, r.criterion, r.function) == key)
