"""What every view is: a part of the screen that shows the session and can be written to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual.binding import Binding, BindingType
from textual.widget import Widget

from .grid import NeuronTable
from .keys import keys_of

if TYPE_CHECKING:
    from .app import Browser
    from .session import Session


def bindings(where: str) -> list[BindingType]:
    """A view's keys as Textual's bindings; those of the whole browser for the empty string."""
    return [
        Binding(key.keys, key.action, key.shown or key.about, show=bool(key.shown), id=key.id)
        for key in keys_of(where)
    ]


class View(Widget):
    """One of the seven.

    Attributes:
        NAME: as in `keys.VIEWS`.
    """

    NAME: ClassVar[str] = ""
    DEFAULT_CSS = "View { height: 1fr; width: 1fr; }"

    def __init__(self) -> None:
        super().__init__(id=self.NAME)

    @property
    def browser(self) -> Browser:
        """The app."""
        from .app import Browser

        return cast(Browser, self.app)

    @property
    def session(self) -> Session:
        """What all views share."""
        return self.browser.session

    def refresh_view(self) -> None:
        """Show what the session holds now; called when it changed or the view came up."""

    def focus_view(self) -> None:
        """Give the keys to the part that wants them."""

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """What the view shows, as a header and rows for a CSV file."""
        return (), ()

    def file_name(self) -> str:
        """What a file of `rows` is called unless the user says otherwise."""
        return f"{self.NAME}.csv"

    def export_to(self, path: Path) -> str:
        """Write what is shown; says what was written."""
        from .session import write_rows

        header, rows = self.rows()
        write_rows(path, header, rows)
        return f"{len(rows):,} rows"


class TableView(View):
    """A view around a table of neurons, whose cursor is that of all views."""

    def focus_view(self) -> None:
        """The keys go to the table."""
        self.screen.set_focus(self.query_one(NeuronTable))

    def on_neuron_table_moved(self, message: NeuronTable.Moved) -> None:
        """The cursor is shared by all views."""
        if message.row != self.session.state.cursor:
            self.browser.go(message.row)

    def on_neuron_table_chosen(self, message: NeuronTable.Chosen) -> None:
        """Open the neuron."""
        self.browser.go(message.row)
        self.browser.action_view("neuron")

    def on_neuron_table_marked(self, message: NeuronTable.Marked) -> None:
        """Mark it."""
        self.browser.mark(message.row)

    def on_neuron_table_unreadable(self, message: NeuronTable.Unreadable) -> None:
        """A column cannot be read."""
        self.browser.error(str(message.error))
