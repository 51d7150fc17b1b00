"""One neuron as a page of text: scores, what it does, what it says, and where it fired."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from .. import tables
from ..errors import GlulensError
from .bars import bar, histogram, interval, rebinned, shared_scale
from .facts import Facts, facts
from .glyphs import cells, fitted, safe
from .view import View

_NAME = 16  # cells of a column's name
_BAR = 10
_SIDES = {"high": "most positive", "low": "most negative", "spread": "across its range"}
_LISTS = {
    "out_high": "promotes",
    "out_low": "suppresses",
    "in_gate": "gate reads",
    "in_up": "up reads",
}
_EXAMPLES = 6
_Section = Callable[[Facts, int], Iterator[Text]]
_TWO = 100  # cells from which on the page stands in two columns


class Portrait(VerticalScroll):
    """A neuron's page; read in a thread, since a column may have to be read for it."""

    DEFAULT_CSS = """
    Portrait { padding: 0 1; scrollbar-size-vertical: 1; scrollbar-gutter: stable; }
    Portrait Static { width: 1fr; height: auto; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._row = -1
        self._found: Facts | None = None

    def compose(self) -> ComposeResult:
        """One long text."""
        yield Static(markup=False)

    def show(self, row: int) -> None:
        """Show a neuron, by its row."""
        if row == self._row:
            return
        self._row = row
        view = next(node for node in self.ancestors if isinstance(node, View))
        columns = view.session.columns

        def done(found: Facts) -> None:
            if found.row == self._row:
                self._found = found
                self.scroll_home(animate=False)
                self._draw()

        view.browser.work_on(
            "reading the neuron", lambda: facts(columns, row), done, group=f"facts-{view.NAME}"
        )

    def on_resize(self) -> None:
        """Lay it out anew."""
        self._draw()

    def _draw(self) -> None:
        if self._found is not None and self.size.width > 4:
            width = self.scrollable_content_region.width
            text = Text("\n", no_wrap=True, overflow="ellipsis").join(page(self._found, width))
            self.query_one(Static).update(text)


def page(found: Facts, width: int) -> Iterator[Text]:
    """The page of a neuron, line by line, none wider than `width` cells."""
    yield Text.assemble(
        (found.label, "bold"),
        cells(f"  one of {found.neurons_in_layer:,} in layer {found.layer}", width - 10),
    )
    numbers, words = (_scores, _effects, _activations, _weights), (_vocabulary, _examples)
    if width < _TWO or not (found.vocabulary or found.examples):
        yield from _sections(found, (*numbers, *words), width)
        yield from _missing(found, width)
        return
    half = width * 4 // 7
    left = [*_sections(found, numbers, half), *_missing(found, half)]
    right = _sections(found, words, width - half - 2)
    for one, other in zip_longest(left, right, fillvalue=Text()):
        line = one.copy()
        line.pad_right(half + 2 - line.cell_len)
        yield line.append_text(other)


def _sections(found: Facts, sections: Iterable[_Section], width: int) -> Iterator[Text]:
    for section in sections:
        try:
            yield from section(found, width)
        except (ValueError, GlulensError) as error:  # a table that is not what it should be
            yield Text(cells(safe(str(error)), width), "dim")


def _missing(found: Facts, width: int) -> Iterator[Text]:
    for name, why in found.missing.items():
        yield Text()
        yield from _wrapped(f"no {name.replace('_', ' ')}: {safe(why)}", width)


def _title(name: str, note: str, width: int) -> Iterator[Text]:
    yield Text()
    yield Text.assemble((name, "bold underline"), (cells(f"  {note}", width - len(name)), "dim"))


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.4g}"


def _scores(found: Facts, width: int) -> Iterator[Text]:
    if not found.scores:
        return
    yield from _title("weights", "share of the layer, and of the model, that lies below", width)
    for score in found.scores:
        yield _placed(score.name, score.value, score.in_layer, score.in_model, width)


def _placed(name: str, value: float, in_layer: float, in_model: float, width: int) -> Text:
    text = Text(f"{fitted(safe(name), _NAME)} {_number(value):>10} ")
    for share in (in_layer, in_model):
        told = "    -" if math.isnan(share) else f"{share:5.1f}"
        text.append(f" {told}%")
    if width >= text.cell_len + _BAR + 1:
        text.append(" " + bar(in_layer / 100, _BAR), "cyan")
    return text


def _effects(found: Facts, width: int) -> Iterator[Text]:
    if found.attributions:
        yield from _title("attribution", "nats; by magnitude", width)
        for one in found.attributions:
            yield _placed(one.property, one.value, one.in_layer, one.in_model, width)
    if not found.contrasts:
        return
    yield from _title("contrast a - b", "d_z; 95 % of this neuron alone", width)
    scale = shared_scale(*([c.low or 0, c.high or 0, c.diff or 0] for c in found.contrasts))
    for one in found.contrasts:
        text = Text(f"{fitted(safe(one.property), _NAME)} {_number(one.diff, '+'):>10} ")
        text.append(f"{_number(one.dz, '+'):>8} ")
        room = width - text.cell_len
        if room >= 12 and one.diff is not None:
            low = math.nan if one.low is None else one.low
            high = math.nan if one.high is None else one.high
            text.append(interval(low, one.diff, high, scale, min(room, 30)), "cyan")
        yield text


def _activations(found: Facts, width: int) -> Iterator[Text]:
    if not found.activations:
        return
    yield from _title("activation", "mean, sd or rms, share above 0", width)
    histograms = found.activation_histograms or {}
    for one in found.activations:
        spread = one.sd if one.sd is not None else one.rms
        text = Text(f"{fitted(safe(one.condition), _NAME)} {_number(one.mean, '+'):>10} ")
        text.append(f"{_number(spread):>9} ")
        text.append("    -" if one.positive is None else f"{100 * one.positive:4.0f}%")
        counts = histograms.get(one.condition)
        room = width - text.cell_len - 1
        if counts is not None and room >= 8:
            text.append(" " + _sparkline(counts, min(room, 32)), "cyan")
        yield text


def _sparkline(found: tables.Histogram, width: int) -> str:
    there = np.flatnonzero(found.counts)
    if not len(there):
        return ""
    return histogram(rebinned(found.counts[there[0] : there[-1] + 1], width))[0]


def _weights(found: Facts, width: int) -> Iterator[Text]:
    if not found.weight_histograms:
        return
    yield from _title("weights' values", "from least to largest edge of the layer", width)
    for name, one in found.weight_histograms.items():
        text = Text(f"{fitted(safe(name), 6)} ")
        edges = f"{_number(float(one.edges[0]), '+')} .. {_number(float(one.edges[-1]), '+')}"
        room = width - text.cell_len - len(edges) - 2
        text.append(histogram(rebinned(one.counts, max(room, 1)))[0], "cyan")
        yield text.append(f"  {edges}", "dim")


def _vocabulary(found: Facts, width: int) -> Iterator[Text]:
    if not found.vocabulary:
        return
    yield from _title("vocabulary", "logit lens: descriptive", width)
    for name, some in found.vocabulary.items():
        told = "  ".join(safe(one.text, borders=True) for one in some)
        yield Text(f"{fitted(_LISTS.get(name, safe(name)), 11)} {cells(told, width - 12)}")


def _examples(found: Facts, width: int) -> Iterator[Text]:
    if not found.examples:
        return
    shown = {side: some for side, some in found.examples.items() if some}
    top = max((abs(one.value) for some in shown.values() for one in some), default=1) or 1
    for side, some in shown.items():
        yield from _title(_SIDES.get(side, safe(side)), "", width)
        step = max(1, len(some) // _EXAMPLES) if side == "spread" else 1
        for one in some[::step][:_EXAMPLES]:
            yield _example(one, one.value / top, width)


def _example(one: tables.Example, share: float, width: int) -> Text:
    head = f"{one.value:+9.3f} "
    token = cells(safe(one.tokens[one.position], borders=True), max(width // 3, 4))
    room = max(width - len(head) - len(token) - 2, 0)
    before = safe("".join(one.tokens[max(0, one.position - 40) : one.position]))
    after = safe("".join(one.tokens[one.position + 1 : one.position + 40]))
    left = before[-(room * 2 // 3) :] if room > 2 else ""
    text = Text(head, "dim")
    text.append(left)
    # Reversed where there is no colour to tell it by; the sign is in front anyway.
    text.append(token, f"bold reverse {'dark_orange' if share >= 0 else 'deep_sky_blue1'}")
    text.append(cells(after, max(width - text.cell_len, 0)))
    text.truncate(width)
    return text


def _wrapped(text: str, width: int) -> Iterator[Text]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield Text(cells(line, width), "dim")  # a path may be longer than a line
            line = ""
        line = f"{line} {word}".strip()
    yield Text(cells(line, width), "dim")
