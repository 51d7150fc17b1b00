"""A comparison's tables as rows of words, for the terminal, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .causal import DAMAGE
from .content import Row
from .rows import Rows
from .verdict import format_p

if TYPE_CHECKING:
    from .compare_result import CompareResult
    from .concentration import Concentration
    from .transplant import Transplant

CARRIERS = 10
"""Carriers that a terminal shows."""


def _rho(value: float) -> str:
    return "-" if value != value else f"{value:+.3f}"


def _percent(value: float, digits: int = 1) -> str:
    return "-" if value != value else f"{value:.{digits}%}"


def _times(value: float) -> str:
    """A relative size with three digits that mean something."""
    if value != value:
        return "-"
    return f"{value:.2%}" if value == 0 or value >= 0.001 else f"{value * 100:.2g}%"


def _nearly_one(rho: float) -> str:
    """A correlation that is 1 only where it is."""
    if rho != rho:
        return "-"
    return "> 0.9999" if 0.99995 <= rho < 1 else f"{rho:.4f}"


DIRECTIONS = {
    "into base": "The tuned model's weights in the base (change of the base)",
    "into tuned": "The base's weights in the tuned model (change of the tuned model)",
}


def _nearly_all(share: float) -> str:
    """A share that is 100 % only where it is."""
    return "> 99.9%" if 0.9995 <= share < 1 else _percent(share)


def group_rows(result: CompareResult) -> Rows:
    """Where the change lies: kinds of tensors."""
    header = ("tensors", "weights", "share of weights", "change", "of itself", "share of change")
    return header, [
        (
            row["group"],
            f"{row['weights']:,}",
            _percent(row["share_of_weights"]),
            f"{row['change']:.4g}",
            _times(row["relative"]),
            _percent(row["share_of_change"]),
        )
        for row in result.groups.iter_rows(named=True)
    ]


def concentration_rows(result: CompareResult) -> Rows:
    """Every criterion against both measures of change."""
    header = (
        "criterion",
        "change",
        "rho [95 %]",
        "chance +-",
        "by arithmetic",
        *(("by rounding", "beyond it [95 %]") if _is_rounded(result) else ()),
        "p",
        "q",
        "lowest tenth's share (chance)",
        "highest",
    )
    rows = []
    for row in result.concentrations:
        low, high = row.null_shares[0]
        rows.append(
            (
                row.criterion,
                row.measure,
                _interval(row),
                "-" if row.null_sd != row.null_sd else f"{1.96 * row.null_sd:.3f}",
                _rho(row.if_alike),
                *((_rho(row.if_rounded), _beyond(row)) if _is_rounded(result) else ()),
                format_p(row.p),
                format_p(row.q),
                f"{_percent(row.shares[0])} ({_percent(low)} .. {_percent(high)})",
                _percent(row.shares[-1]),
            )
        )
    return header, rows


def short_rows(result: CompareResult) -> Rows:
    """One row a criterion, both measures side by side: what fits a terminal."""
    header = (
        "criterion",
        "absolute: rho [95 %]",
        *(("by rounding",) if _is_rounded(result) else ()),
        "q",
        "lowest tenth",
        "relative: rho [95 %]",
        "by arithmetic",
        "q",
        "lowest tenth",
        "chance +-",
    )
    by_key = {(row.criterion, row.measure): row for row in result.concentrations}
    rows = []
    for criterion in dict.fromkeys(row.criterion for row in result.concentrations):
        one, other = by_key[criterion, "absolute"], by_key[criterion, "relative"]
        rows.append(
            (
                criterion,
                _interval(one),
                *((_rho(one.if_rounded),) if _is_rounded(result) else ()),
                format_p(one.q),
                _percent(one.shares[0]),
                _interval(other),
                _rho(other.if_alike),
                format_p(other.q),
                _percent(other.shares[0]),
                "-" if one.null_sd != one.null_sd else f"{1.96 * one.null_sd:.3f}",
            )
        )
    return header, rows


def _is_rounded(result: CompareResult) -> bool:
    """Whether 16 bits hide enough of the change to be controlled for."""
    return any(row.if_rounded == row.if_rounded for row in result.concentrations)


def _beyond(row: Concentration) -> str:
    if row.beyond != row.beyond:
        return "-"
    return f"{row.beyond:+.3f} [{row.beyond_low:+.3f}, {row.beyond_high:+.3f}]"


def _interval(row: Concentration) -> str:
    return "-" if row.rho != row.rho else f"{row.rho:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def tenth_rows(result: CompareResult) -> Rows:
    """Shares of the change in each tenth of the base by the first criterion, in percent."""
    first = result.manifest["options"]["criteria"][0]
    rows: list[Row] = []
    for row in result.concentrations:
        if row.criterion == first:
            rows.append((row.measure, *(_points(share) for share in row.shares)))
            band = (f"{_points(low)}-{_points(high)}" for low, high in row.null_shares)
            rows.append(("  by chance", *band))
    return ("% of the change", *(str(k) for k in range(1, 11))), rows


def _points(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f}"


def score_rows(result: CompareResult) -> Rows:
    """How alike the two sides rank."""
    header = (
        "score",
        "rank correlation",
        "median rank shift",
        "largest",
        "base mean",
        "tuned mean",
        "Wasserstein (sd)",
        "KS",
    )
    return header, [
        (
            row["score"],
            _nearly_one(row["rank_correlation"]),
            _percent(row["median_rank_shift"], 2),
            _percent(row["largest_rank_shift"]),
            f"{row['base_mean']:.5g}",
            f"{row['tuned_mean']:.5g}",
            f"{row['wasserstein_sd']:.2g}",
            f"{row['ks']:.2g}",
        )
        for row in result.scores.iter_rows(named=True)
    ]


def kept_rows(result: CompareResult, *, full: bool = True) -> Rows:
    """Do both sides' scores cut the same neurons? A column a fraction."""
    fractions = sorted({row.fraction for row in result.kept_alike})
    by_key = {(row.criterion, row.fraction): row for row in result.kept_alike}
    rows: list[Row] = []
    for criterion in dict.fromkeys(row.criterion for row in result.kept_alike):
        some = [by_key[criterion, fraction] for fraction in fractions]
        cells = [
            _nearly_all(row.same / row.cut if row.cut else float("nan"))
            + (f" (z {row.z:+,.0f})" if full and row.z == row.z else "")
            for row in some
        ]
        rows.append((criterion, *cells))
    if rows:
        some = [by_key[next(iter(by_key))[0], fraction] for fraction in fractions]
        chance = [_percent(row.expected / row.cut if row.cut else float("nan")) for row in some]
        rows.append(("by chance", *chance))
    return ("cut by both, of the cut", *(f"{fraction:.0%}" for fraction in fractions)), rows


def distribution_rows(result: CompareResult) -> Rows:
    """Distances between distributions by kind: their mean and largest over layers."""
    import polars

    if not result.distributions.height:
        return (), []
    found = (
        result.distributions.group_by("of", "group", maintain_order=True)
        .agg(
            polars.len().alias("count"),
            polars.col("wasserstein_sd").mean().alias("mean"),
            polars.col("wasserstein_sd").max().alias("most"),
            polars.col("ks").mean().alias("ks"),
            polars.col("base_sd").mean(),
            polars.col("tuned_sd").mean(),
            polars.col("base_kurtosis").mean(),
            polars.col("tuned_kurtosis").mean(),
        )
        .iter_rows(named=True)
    )
    header = (
        "distribution",
        "of",
        "number",
        "Wasserstein (sd)",
        "largest",
        "KS",
        "sd, base",
        "tuned",
        "kurtosis, base",
        "tuned",
    )
    return header, [
        (
            {"norms": "norms of rows", "weights": "weights"}[row["of"]],
            row["group"],
            str(row["count"]),
            f"{row['mean']:.2g}",
            f"{row['most']:.2g}",
            f"{row['ks']:.2g}",
            f"{row['base_sd']:.4g}",
            f"{row['tuned_sd']:.4g}",
            f"{row['base_kurtosis']:.2f}",
            f"{row['tuned_kurtosis']:.2f}",
        )
        for row in found
    ]


def carrier_rows(result: CompareResult, most: int | None = None) -> Rows:
    """Neurons that a cut would take and that hold most of the change."""
    header = ("neuron", "percentile", "share of the MLP", "share of all MLPs", "place by change")
    rows = [
        (
            _label(row.layer, row.part, row.expert, row.neuron),
            f"{row.percentile:.1f}",
            _percent(row.share_of_mlp, 2),
            _percent(row.share_of_model, 3),
            f"{row.rank:,}.",
        )
        for row in result.carriers[:most]
    ]
    return header, rows


def _label(layer: int, part: str, expert: int | None, neuron: int) -> str:
    within = {"dense": "", "shared": ".S"}.get(part, f".E{expert}")
    return f"L{layer}{within}.N{neuron}"


def selective_rows(result: CompareResult) -> Rows:
    """Absolute change against what neurons do."""
    header = ("what neurons do", "minus", "rho [95 %]", "p (descriptive)", "q",
              "given magnitude [95 %]")  # fmt: skip
    return header, [
        (
            row.function,
            row.minus or "-",
            f"{row.rho:+.3f} [{row.low:+.3f}, {row.high:+.3f}]",
            format_p(row.p),
            format_p(row.q),
            f"{row.partial:+.3f} [{row.partial_low:+.3f}, {row.partial_high:+.3f}]",
        )
        for row in result.selective
    ]


def transplant_rows(result: CompareResult, direction: str, *, full: bool = True) -> Rows:
    """What the weights of some neurons did in the other model; random sets, with their number, as
    their range.

    Args:
        direction: `into base` or `into tuned`.
        full: with every tenth and z; without, what fits a terminal.
    """
    here = [row for row in result.transplants if row.direction == direction]
    quantities = list(dict.fromkeys(row.quantity for row in here))
    told = [q for q in quantities if any(r.restored == r.restored for r in here if r.quantity == q)]
    header = (
        "transplanted",
        "held",
        *(name if name == DAMAGE else f"{name} margin" for name in quantities),
        *(f"{name}, way" for name in told),
    )
    host = direction.removeprefix("into ")
    rows: list[Row] = []
    for name, side in ((host, "host"), ("tuned" if host == "base" else "base", "donor")):
        values = {row.quantity: getattr(row, side) for row in here}
        cells = (f"{values[q]:+.3f}" for q in quantities)
        rows.append((f"{name} (value)", "", *cells, *("" for _ in told)))
    for name in dict.fromkeys(row.name for row in here if not row.is_random):
        if full or not name.startswith("tenth "):
            own = {row.quantity: row for row in here if row.name == name}
            share = _percent(next(iter(own.values())).change_share)
            cells = (_moved(own[q], full) for q in quantities)
            rows.append((name, share, *cells, *(_way(own[q].restored) for q in told)))
    random: dict[str, list[Transplant]] = {}  # by what has the same counts
    for row in here:
        if row.is_random:
            random.setdefault(row.name.partition(" like ")[2], []).append(row)
    for like, some in random.items():
        by = {q: [row for row in some if row.quantity == q] for q in quantities}
        held = _percent(sum(row.change_share for row in some) / len(some))
        cells = (_range([row.change for row in by[q]], "{:+.3f}".format) for q in quantities)
        ways = (_range([row.restored for row in by[q]], _way) for q in told)
        name = f"random, like {like}" if like else "random tenths"
        rows.append((f"{name} ({len(by[quantities[0]])})", held, *cells, *ways))
    return header, rows


def _way(restored: float) -> str:
    return "-" if restored != restored else f"{restored:+.0%}"


def _range(values: Sequence[float], say: Callable[[float], str]) -> str:
    return f"{say(min(values))} .. {say(max(values))}"


def _moved(row: Transplant, full: bool) -> str:
    digits = 3 if full or row.quantity == DAMAGE else 2
    change, low, high = (f"{value:+.{digits}f}" for value in (row.change, row.low, row.high))
    said = f"{change} [{low}, {high}]"
    return said + f" z {row.z:+.1f}" if full and row.z == row.z else said
