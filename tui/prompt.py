"""A text of one's own, tried on the model: tokens against layers, and neurons switched off.

The model lives in a child process, started when the view is first asked something. Keys never wait
for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..errors import GlulensError, UsageError
from .ask import Ask
from .glyphs import cells, fitted, safe
from .heat import HeatMap
from .live import Answer, Live, Question
from .view import View, bindings

TOP = 24
"""Neurons listed at a token."""
_TOKEN = 16  # cells of a token's label
_NEEDED = "start the browser with --model NAME to try texts on a model here"


class Prompt(View):
    """Tokens down, layers across; beside it the neurons of the token under the cursor."""

    NAME = "prompt"
    BINDINGS = bindings("prompt")
    DEFAULT_CSS = """
    Prompt #text { height: auto; max-height: 3; padding: 0 1; }
    Prompt #beside { width: 44; border-left: vkey $panel; }
    Prompt #next { height: auto; padding: 0 1; }
    Prompt #at { height: 1; padding: 0 1; }
    Prompt OptionList, Prompt OptionList:focus { border: none; height: 1fr; padding: 0 1; }
    Prompt.narrow #beside { width: 34; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._live: Live | None = None
        self._text = ""
        self._layer: int | None = None
        self._silenced = False
        self._intact: Answer | None = None
        self._answer: Answer | None = None
        self._listed: tuple[int, ...] = ()
        """Rows of the neurons in the list."""

    def compose(self) -> ComposeResult:
        """The text, the map, the token."""
        yield Static(id="text", markup=False)
        with Horizontal():
            yield HeatMap()
            with Vertical(id="beside"):
                yield Static(id="next", markup=False)
                yield Static(id="at", markup=False)
                yield OptionList(markup=False)

    def focus_view(self) -> None:
        """The keys go to the map."""
        self.screen.set_focus(self.query_one(HeatMap))

    def refresh_view(self) -> None:
        """Say what to do where nothing was asked yet."""
        if self._answer is None:
            told = _NEEDED if self.session.model is None else "t: a text to try"
            self._say(told)

    def on_resize(self) -> None:
        """The list gives way to the map."""
        self.set_class(self.app.size.width < 100, "narrow")

    def on_unmount(self) -> None:
        """The child goes with the view."""
        if self._live is not None:
            self._live.close()

    def _say(self, text: str) -> None:
        self.query_one("#text", Static).update(Text(cells(safe(text), 3 * self.app.size.width)))

    def action_text(self) -> None:
        """Ask for a text."""

        def apply(text: str) -> None:
            if self.session.model is None:
                raise UsageError(_NEEDED)
            if not text:
                raise UsageError("no text given")
            self._text, self._silenced, self._intact = text, False, None
            self._run()

        self.app.query_one(Ask).ask("text", self._text, apply)

    def action_silence(self) -> None:
        """The same text with the marked neurons silenced, or without that again."""
        if not self._text:
            self._say(_NEEDED if self.session.model is None else "t: a text to try first")
            return
        if not self._silenced and not self.session.marks.any():
            self.browser.error("nothing is marked; mark neurons with space to switch them off")
            return
        self._silenced = not self._silenced
        self._run()

    def action_stop(self) -> None:
        """End the child; the next text starts another."""
        if self._live is not None:
            self._live.close()
            self._live = None
            self._say("stopped; t: a text to try")

    def on_heat_map_chosen(self, message: HeatMap.Chosen) -> None:
        """List the neurons of one layer, or again of all."""
        message.stop()
        layer = self.session.columns.layers[message.column]
        self._layer = None if self._layer == layer else layer
        self._run()

    def on_heat_map_moved(self, message: HeatMap.Moved) -> None:
        """Another token."""
        message.stop()
        self._list()

    @work(exclusive=True, group="live")
    async def _run(self) -> None:
        model = self.session.model
        if model is None or not self._text:
            return
        if self._live is None or self._live.stage == "ended":
            self._live = Live(model, neurons=self.session.columns.n)
        live = self._live
        rows = np.flatnonzero(self.session.marks).tolist() if self._silenced else []
        question = Question(self._text, layer=self._layer, top=TOP, silence=rows)
        self._say("starting the model ..." if live.stage == "loading" else "asking ...")
        try:
            answer = await asyncio.wrap_future(live.ask(question))
        except GlulensError as error:
            if live is self._live:
                self._say(str(error))
            return
        if not self._silenced:
            self._intact = answer
        self._answer = answer
        self._draw(answer, len(rows))

    def _draw(self, answer: Answer, silenced: int) -> None:
        layers = self.session.columns.layers
        grid = answer.layers.astype(np.float64)
        # Position 0 holds activations of another size, which would leave no colour for the rest.
        rest = grid[1:] if len(grid) > 1 else grid
        end = float(np.nanquantile(rest, 0.98)) if np.isfinite(rest).any() else 1.0
        self.query_one(HeatMap).show(
            grid,
            [cells(safe(token, borders=True), _TOKEN) for token in answer.tokens],
            [str(layer) for layer in layers],
            ends=(0.0, end or 1.0),
            cursor=(len(answer.tokens) - 1, self.query_one(HeatMap).cursor[1]),
        )
        told = f"{len(answer.tokens)} tokens, root mean square of each layer's activations"
        if silenced:
            told += f"; {silenced:,} neurons switched off"
        self._say(told)
        self.query_one("#next", Static).update(Text("\n").join(self._next(answer, silenced)))
        self._list()

    def _next(self, answer: Answer, silenced: int) -> Sequence[Text]:
        before = {}
        if silenced and self._intact is not None:
            before = {one.token: one.probability for one in self._intact.next}
        lines = [Text("next token" + ("  (before)" if before else ""), "bold underline")]
        for one in answer.next[:6]:
            line = Text(f"{fitted(safe(one.text, borders=True), 14)} {one.probability:7.2%}")
            if before:
                was = before.get(one.token)
                line.append("  (less)" if was is None else f" ({was:.2%})", "dim")
            lines.append(line)
        return [*lines, Text()]

    def _list(self) -> None:
        answer = self._answer
        if answer is None:
            return
        at = min(self.query_one(HeatMap).cursor[0], len(answer.tokens) - 1)
        where = "" if self._layer is None else f", layer {self._layer}"
        title = f"largest activations at {safe(answer.tokens[at], borders=True)}{where}"
        self.query_one("#at", Static).update(Text(cells(title, 42), "bold underline"))
        found = [
            (int(row), float(value))
            for row, value in zip(answer.top_rows[at], answer.top_values[at], strict=True)
            if row >= 0
        ]
        self._listed = tuple(row for row, _ in found)
        chosen = self.query_one(OptionList)
        chosen.clear_options()
        chosen.add_options(
            Option(Text(f"{self.session.columns.label(row):<14} {value:+10.3f}"))
            for row, value in found
        )

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """The cursor goes to the neuron, so that it can be marked."""
        event.stop()
        if self.query_one(OptionList).has_focus and event.option_index < len(self._listed):
            self.browser.go(self._listed[event.option_index])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open the neuron."""
        event.stop()
        self.browser.go(self._listed[event.option_index])
        self.browser.action_view("neuron")

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """Tokens by layers."""
        if self._answer is None:
            return (), ()
        layers = [f"layer_{layer}" for layer in self.session.columns.layers]
        return ("token", *layers), [
            (token, *map(float, values))
            for token, values in zip(self._answer.tokens, self._answer.layers, strict=True)
        ]
