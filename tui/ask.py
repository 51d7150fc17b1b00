"""The line at the bottom in which the browser asks for a text, and answers while it is typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Input, Static

from ..errors import GlulensError
from .glyphs import safe

if TYPE_CHECKING:
    from .app import Browser

LONGEST = 10_000
"""Characters."""
_PAUSE = 0.15  # seconds without a key after which the text is tried


class Ask(Horizontal):
    """Hidden until something is asked; escape takes the question back."""

    DEFAULT_CSS = """
    Ask { height: 1; display: none; background: $panel; }
    Ask.asking { display: block; }
    Ask #what { width: auto; padding: 0 1; color: $text-accent; }
    Ask Input { border: none; height: 1; padding: 0; width: 2fr; background: $panel; }
    Ask #answer { width: 1fr; padding: 0 1; color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back", show=False, id="ask.leave")
    ]

    def __init__(self) -> None:
        super().__init__()
        self._apply: Callable[[str], None] | None = None
        self._live: Callable[[str], str] | None = None
        self._before: Widget | None = None

    def compose(self) -> ComposeResult:
        """What is asked, the text, what would come of it."""
        yield Static(id="what", markup=False)
        yield Input(max_length=LONGEST, select_on_focus=False)
        yield Static(id="answer", markup=False)

    def ask(
        self,
        what: str,
        value: str,
        apply: Callable[[str], None],
        *,
        live: Callable[[str], str] | None = None,
    ) -> None:
        """Ask for a text.

        Args:
            what: the question.
            value: stands there already.
            apply: takes the answer; if it raises a `GlulensError` the question stays.
            live: run in a thread while typing; what it returns is shown beside.
        """
        self._apply, self._live = apply, live
        self._before = self.app.focused
        self.query_one("#what", Static).update(what)
        self.query_one("#answer", Static).update("")
        field = self.query_one(Input)
        field.value = value
        field.cursor_position = len(value)
        self.add_class("asking")
        self.screen.set_focus(field)  # at once: `focus` would come after the next key

    def on_input_changed(self, event: Input.Changed) -> None:
        """Try the text once the keys rest."""
        event.stop()
        live, text = self._live, event.value
        if live is not None:

            def later() -> None:
                if self.has_class("asking") and self.query_one(Input).value == text:
                    self._try(live, text)

            self.set_timer(_PAUSE, later)

    def _try(self, live: Callable[[str], str], text: str) -> None:
        def work() -> str:
            try:
                return live(text)
            except GlulensError as error:
                return str(error)

        browser = cast("Browser", self.app)
        browser.work_on(
            "counting",
            work,
            lambda said: self.query_one("#answer", Static).update(safe(said)),
            group="count",
        )

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Hand the answer over."""
        event.stop()
        apply = self._apply
        if apply is None:
            return
        try:
            apply(event.value)
        except GlulensError as error:
            self.query_one("#answer", Static).update(safe(str(error)))
            return
        self.action_leave()

    def action_leave(self) -> None:
        """Hide again."""
        if not self.has_class("asking"):
            return
        self.remove_class("asking")
        self._apply = self._live = None
        browser = cast("Browser", self.app)
        if self._before is not None and self._before.is_attached and self._before.focusable:
            self.screen.set_focus(self._before)
        else:
            browser.view.focus_view()
