"""The page of keys and filters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from .filters import grammar
from .glyphs import fitted
from .keys import Key, keys_of, spelled

_LEFT = 26


class Help(ModalScreen[None]):
    """Keys of a view, then those of all, then the words of filters."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help VerticalScroll {
        width: 88; max-width: 96%; height: 90%;
        border: round $accent; padding: 0 2; background: $surface;
    }
    Help Static { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", "back", id="help.leave")
    ]

    def __init__(self, where: str, changed: Mapping[str, str]) -> None:
        super().__init__()
        self._where, self._changed = where, changed

    def compose(self) -> ComposeResult:
        """One text."""
        with VerticalScroll():
            yield Static(Text("\n").join(self._lines()))

    def _lines(self) -> Iterable[Text]:
        own = keys_of(self._where)
        if own:
            yield Text(self._where, "bold underline")
            yield from map(self._line, own)
            yield Text()
        yield Text("everywhere", "bold underline")
        yield from map(self._line, keys_of(""))
        yield Text()
        yield Text("filters", "bold underline")
        for form, meaning in grammar():
            yield Text.assemble((fitted(form, _LEFT), "bold"), "  ", meaning)
        yield Text()
        yield Text("as in  layer < 4 and ppm > pct(ppm, 99) and not marked", "dim")

    def _line(self, key: Key) -> Text:
        keys = spelled(self._changed.get(key.id, key.keys))
        return Text.assemble((fitted(keys, _LEFT), "bold"), "  ", key.about)
