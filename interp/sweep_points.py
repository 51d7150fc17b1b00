"""What a sweep goes through: the intact model once, and cuts of growing size by criteria and
controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..prune.budget import Budget, choose
from ..prune.expressions import parse_criterion
from ..prune.layout import MlpLayout
from ..prune.selection import NeuronSet, kept_width

if TYPE_CHECKING:
    import polars

INTACT = "intact"
"""The criterion of the point at which nothing is cut."""
CONTROLS = ("random", "reversed")
"""Kinds of control: orders without meaning, and each criterion's opposite."""
DRAWS = 5
"""Random orders where `--controls random` does not say how many."""
MOST = 10_000
"""Of random orders, and of numbers that dots stand for."""
DIGITS = 10
"""Characters at which a count is no count any more."""


@dataclass(frozen=True)
class Point:
    """A model of the sweep.

    Attributes:
        criterion: what chose the neurons (`ppm`, `random:3`, `reversed:ppm`), or `intact`.
        fraction: how much of every MLP was asked to go; 0 for the intact model.
        cut: the neurons that go; None for the intact model.
        control: kind of control (`random`, `reversed`), or None for a criterion to be tested and
            the intact model.
        seed: of a random order.
        ratio: kept width over hidden size: as asked, or where fractions were, of all MLPs together.
    """

    criterion: str
    fraction: float
    cut: NeuronSet | None = field(hash=False)
    control: str | None = None
    seed: int | None = None
    ratio: float | None = None

    @property
    def name(self) -> str:
        """The point in a few words."""
        return f"{self.criterion} {self.fraction:.0%}" if self.cut is not None else INTACT


@dataclass(frozen=True)
class Order:
    """An order in which neurons go: a criterion, and what kind of control it is."""

    criterion: str
    control: str | None = None
    seed: int | None = None


def orders(criteria: Sequence[str], controls: Sequence[str], seed: int = 0) -> list[Order]:
    """The orders that a sweep cuts by: criteria as given, then random ones, then reversed ones.

    Args:
        criteria: see `prune.expressions`.
        controls: `random:N` (the criteria random:SEED to random:SEED+N-1) or `random` (five), and
            `reversed` (reversed:X of every criterion X).
        seed: of the first random order.

    Raises:
        UsageError: an unknown name, or a control among the criteria.
    """
    found = []
    for name in criteria:
        criterion = parse_criterion(name)
        if criterion.is_control:
            raise UsageError(f"criterion {name!r} is a control; name it in --controls")
        found.append(Order(criterion.name))
    for name in controls:
        kind, colon, count = name.strip().partition(":")
        draws = DRAWS
        if colon:
            draws = int(count) if count.isdecimal() and len(count) < DIGITS else 0
        if kind == "random" and 0 < draws <= MOST:
            found += [Order(f"random:{seed + k}", kind, seed + k) for k in range(draws)]
        elif kind == "reversed" and not colon:
            found += [Order(parse_criterion(f"reversed:{other}").name, kind) for other in criteria]
        else:
            raise UsageError(
                f"control {name[:80]!r}; allowed are random:N (N random cuts of each size, at most "
                f"{MOST:,}) and reversed"
            )
    if not found:
        raise UsageError("nothing to cut by: give --criteria or --controls")
    return list(dict.fromkeys(found))


def make_points(
    layouts: Sequence[MlpLayout],
    scores: Mapping[str, Sequence[np.ndarray]],
    cut_by: Sequence[Order],
    *,
    fractions: Sequence[float] = (),
    ratios: Sequence[float] = (),
    keep_layers: Sequence[int] = (),
) -> list[Point]:
    """The intact model, then every order at every size, smallest cut first.

    All orders lose the same number of neurons in each MLP. Ties go by index, ascending.

    Args:
        layouts: the model's MLPs.
        scores: by criterion, one array [neurons] an MLP; higher = keep.
        cut_by: see `orders`.
        fractions: floor(fraction * width) neurons of every MLP go; 0 is the intact model.
        ratios: kept width over hidden size, instead of fractions; the model's own is the intact
            model.
        keep_layers: layers that stay whole.

    Raises:
        UsageError: fractions and ratios, neither, one that is not possible, or an unknown layer.
    """
    if bool(fractions) == bool(ratios):
        raise UsageError("give either --fractions or --ratios")
    whole = dict.fromkeys(keep_layers, 0.0)
    own = layouts[0].width / layouts[0].hidden
    budgets: dict[float, Budget] = {}
    asked: dict[float, float | None] = {}
    for fraction in fractions:
        if fraction:
            budgets[fraction], asked[fraction] = Budget(fraction=fraction, layers=whole), None
    for ratio in ratios:
        if kept_width(layouts[0].hidden, layouts[0].width, ratio) < layouts[0].width:
            fraction = round(1 - ratio / own, 6)
            budgets[fraction], asked[fraction] = Budget(expansion=ratio, layers=whole), ratio
    intact = Point(INTACT, 0.0, None)
    found = [replace(intact, ratio=_ratio(layouts, intact))]
    for order in cut_by:
        for fraction in sorted(budgets):
            cut = choose(layouts, scores[order.criterion], budgets[fraction])
            point = Point(order.criterion, fraction, cut, order.control, order.seed)
            found.append(replace(point, ratio=asked[fraction] or _ratio(layouts, point)))
    return found


def _ratio(layouts: Sequence[MlpLayout], point: Point) -> float:
    cut = 0 if point.cut is None else len(point.cut)
    kept = sum(layout.width for layout in layouts) - cut
    return round(kept / sum(layout.hidden for layout in layouts), 6)


def point_table(
    points: Sequence[Point], layouts: Sequence[MlpLayout], parameters: int
) -> polars.DataFrame:
    """One row a point: `point` (its number), criterion, control, seed, fraction, ratio,
    neurons_cut, parameters (that the model would have once the neurons are gone)."""
    import polars

    rows = []
    for number, point in enumerate(points):
        counts = (0,) * len(layouts) if point.cut is None else point.cut.counts
        gone = sum(
            count * layout.parameters_per_neuron
            for count, layout in zip(counts, layouts, strict=True)
        )
        rows.append(
            {
                "point": number,
                "criterion": point.criterion,
                "control": point.control,
                "seed": point.seed,
                "fraction": point.fraction,
                "ratio": point.ratio,
                "neurons_cut": sum(counts),
                "parameters": parameters - gone,
            }
        )
    return polars.DataFrame(
        rows,
        schema={
            "point": polars.Int32,
            "criterion": polars.String,
            "control": polars.String,
            "seed": polars.Int64,
            "fraction": polars.Float64,
            "ratio": polars.Float64,
            "neurons_cut": polars.Int64,
            "parameters": polars.Int64,
        },
    )


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Numbers in a comma-separated list, where `a,b,...,z` goes on in steps of b - a.

    Raises:
        UsageError: something is no number, or dots that do not say where they lead.
    """
    found: list[float] = []
    parts = [part.strip() for part in text.split(",")]
    place = 0
    while place < len(parts):
        part = parts[place]
        if part in ("...", "…"):
            if len(found) < 2 or place + 1 == len(parts):
                raise UsageError(
                    f"{what} {text!r}: dots stand between two numbers and a last one, as in "
                    "0,0.1,...,0.6"
                )
            last = _number(parts[place + 1], what)
            step = found[-1] - found[-2]
            steps = (last - found[-1]) / step if step else 0.0
            count = round(steps) if steps <= MOST else 0
            if count < 1 or abs(found[-1] + count * step - last) > 1e-9:
                raise UsageError(
                    f"{what} {text[:80]!r}: steps of {step:g} do not lead to {last:g}, or in more "
                    f"than {MOST:,}"
                )
            # Rounded, since 0.1 + 2 * 0.1 is not the 0.3 that was meant.
            found += [round(found[-1] + k * step, 9) for k in range(1, count)]
            place += 1
            found.append(last)
        else:
            found.append(_number(part, what))
        place += 1
    return tuple(dict.fromkeys(found))


def _number(part: str, what: str) -> float:
    try:
        number = float(part)
    except ValueError:
        raise UsageError(f"{what}: {part!r} is no number; give a list such as 0,0.1,0.2") from None
    if not np.isfinite(number):
        raise UsageError(f"{what}: {part!r} is not finite")
    return number
