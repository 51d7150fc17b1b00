"""Cutting by hand: who leaves at a ratio, and what goes with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from ..errors import UsageError
from .ask import Ask
from .bars import bar
from .columns import Columns
from .cutting import Agreement, Cut, Loss, Queue, Scope, Top, agreement, losses, tops
from .glyphs import cells, fitted, safe
from .session import write_text
from .view import View, bindings

DIVISORS = (1, 8, 16, 32, 64, 128, 256)
"""What hardware likes kept widths to be a multiple of."""


@dataclass(frozen=True)
class Drawn:
    """A cut with all that is said of it."""

    cut: Cut
    losses: tuple[Loss, ...]
    agreements: tuple[Agreement, ...]


class Prune(View):
    """A slider over one criterion's order; nothing is cut but on paper."""

    NAME = "prune"
    BINDINGS = bindings("prune")
    DEFAULT_CSS = """
    Prune VerticalScroll { padding: 0 1; scrollbar-size-vertical: 1; }
    Prune Static { height: auto; }
    Prune #slider { padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._fraction, self._divisor = 0.1, 1
        self._scope: Scope = "layer"
        self._pins: np.ndarray | None = None
        self._queues: dict[tuple[str, Scope], Queue] = {}
        self._tops: tuple[Top, ...] | None = None
        self._drawn: Drawn | None = None

    def compose(self) -> ComposeResult:
        """The slider, and what it does."""
        yield Static(id="slider", markup=False)
        with VerticalScroll():
            yield Static(id="story", markup=False)

    def focus_view(self) -> None:
        """The view itself takes the keys that move the slider."""
        self.can_focus = True
        self.screen.set_focus(self)

    def refresh_view(self) -> None:
        """Cut by the column that is ranked by."""
        columns, by = self.session.columns, self.session.state.by
        scope, divisor, fraction = self._scope, self._divisor, self._fraction
        pins, queues = self._pins, self._queues

        def queue(name: str) -> Queue:
            if (name, scope) not in queues:
                queues[name, scope] = Queue(columns, name, scope, stay=pins)
            return queues[name, scope]

        def work() -> Drawn:
            if self._tops is None:
                self._tops = tops(columns)
            cut = queue(by).cut(fraction, divisor)
            others = [queue(name).cut(fraction, divisor) for name in columns.scores if name != by]
            return Drawn(
                cut,
                losses(columns, cut, self._tops),
                tuple(agreement(cut, other, columns.widths) for other in others),
            )

        self.browser.work_on("cutting", work, self._draw, group="cut")

    def _draw(self, drawn: Drawn) -> None:
        self._drawn = drawn
        width = max(self.size.width - 4, 20)
        self.query_one("#slider", Static).update(slider(drawn.cut, width))
        pinned = 0 if self._pins is None else int(self._pins.sum())
        text = Text("\n").join(story(self.session.columns, drawn, pinned, width))
        self.query_one("#story", Static).update(text)

    def on_resize(self) -> None:
        """Draw it anew."""
        if self._drawn is not None:
            self._draw(self._drawn)

    def action_cut(self, steps: int) -> None:
        """Move the slider, each step a multiple of the divisor."""
        columns = self.session.columns
        queue = self._queues.get((self.session.state.by, self._scope))
        if queue is None:
            queue = Queue(columns, self.session.state.by, self._scope, stay=self._pins)
        self._fraction = queue.step(self._fraction, steps, self._divisor)
        self.refresh_view()

    def action_scope(self) -> None:
        """A share of every layer, or of the model."""
        self._scope = "model" if self._scope == "layer" else "layer"
        self.refresh_view()

    def action_divisor(self) -> None:
        """The next divisor."""
        self._divisor = DIVISORS[(DIVISORS.index(self._divisor) + 1) % len(DIVISORS)]
        self.refresh_view()

    def action_pin(self) -> None:
        """Keep what is marked now, whatever its score; without marks nothing is pinned."""
        marks = self.session.marks
        self._pins = marks.copy() if marks.any() else None
        self._queues = {}
        self.refresh_view()

    def action_write(self) -> None:
        """Ask for a file and write the neurons that leave as a set."""
        drawn = self._drawn
        if drawn is None:
            return

        def write(text: str) -> None:
            if not text.strip():
                raise UsageError("no file name given")
            path = Path(text.strip()).expanduser()
            found = drawn.cut.neurons(self.session.columns)
            write_text(path, json.dumps(found.to_json()) + "\n")
            name = path.stem[:60].replace("`", "'")
            if name.isprintable() and name.strip():
                self.session.sets[name] = found
            self.notify(f"{len(found):,} neurons written to {path}", markup=False)

        self.app.query_one(Ask).ask("write the neurons that leave to", "cut.json", write)

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """Neurons and those that leave, by layer."""
        if self._drawn is None:
            return (), ()
        return ("layer", "neurons", "leave"), list(self._drawn.cut.by_layer(self.session.columns))

    def file_name(self) -> str:
        """After the criterion."""
        return f"cut-{self.session.state.by}.csv"


def slider(cut: Cut, width: int) -> Text:
    """The slider: how much leaves."""
    n = len(cut.leaving)
    share = cut.total / n if n else 0.0
    told = f" {100 * share:5.1f} %"
    text = Text("cut ", "bold")
    text.append(bar(share, max(width - len(told) - 6, 10)).replace(" ", "·"), "dark_orange")
    return text.append(told, "bold")


def story(columns: Columns, drawn: Drawn, pinned: int, width: int) -> Iterator[Text]:
    """What leaves, line by line."""
    cut = drawn.cut
    of = "every layer" if cut.scope == "layer" else "the model"
    yield Text.assemble(
        (f"{cut.total:,} of {len(cut.leaving):,} neurons", "bold"),
        f" by {safe(cut.criterion)}, the same share of {of}"
        if cut.scope == "layer"
        else f" by {safe(cut.criterion)}, a share of {of}",
        f"; kept widths are multiples of {cut.divisor}" if cut.divisor > 1 else "",
        f"; {pinned:,} pinned" if pinned else "",
    )
    parameters = cut.parameters
    if parameters.assumed is None:
        yield Text("the run does not say how many parameters a neuron has", "dim")
    else:
        told = f"{parameters.removed:,} parameters"
        if parameters.total:
            told += (
                f" of {parameters.total:,} ({100 * parameters.removed / parameters.total:.1f} %)"
            )
        told += f", {parameters.per_neuron:,} a neuron"
        yield Text(told + (" (gate, up and down without biases)" if parameters.assumed else ""))
    if cut.ties:
        yield Text(f"{cut.ties:,} kept neurons score like one that leaves: chance by index", "dim")
    if drawn.losses:
        yield Text()
        yield _head("top 1 % of each layer by", "lost", "of", "random +- sd", width=width)
        for loss in drawn.losses:
            expected = f"{loss.expected:.1f} +- {loss.sd:.1f}"
            yield _line(loss.column, f"{loss.lost:,}", f"{loss.top:,}", expected, width=width)
    if drawn.agreements:
        yield Text()
        yield _head("the same cut by", "shared", "Jaccard", "random", width=width)
        for other in drawn.agreements:
            told = "-" if other.jaccard != other.jaccard else f"{other.jaccard:.2f}"
            yield _line(
                other.criterion, f"{other.shared:,}", told, f"{other.expected:,.0f}", width=width
            )
    yield Text()
    yield Text("by layer", "bold underline")
    by_layer = list(cut.by_layer(columns))
    each = max(1, (width + 2) // 38)
    for start in range(0, len(by_layer), each):
        line = Text()
        for layer, size, leave in by_layer[start : start + each]:
            line.append(f"{layer:>4} ")
            line.append(bar(leave / size if size else 0.0, 16).replace(" ", "·"), "dark_orange")
            line.append(f" {leave:>6,}/{size:<7,} ")
        line.truncate(width)
        yield line


def _head(name: str, *cells_: str, width: int) -> Text:
    text = _line(name, *cells_, width=width)
    text.stylize("bold underline")
    return text


def _line(name: str, *cells_: str, width: int) -> Text:
    told = fitted(safe(name), 26) + "".join(f"{cell:>14}" for cell in cells_)
    return Text(cells(told, width))
