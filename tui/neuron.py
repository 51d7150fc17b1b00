"""The neuron under the cursor, on a page of its own."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult

from .facts import facts
from .portrait import Portrait
from .view import View


class Neuron(View):
    """Everything that the run knows of one neuron; `,` and `.` go along the ranking."""

    NAME = "neuron"

    def compose(self) -> ComposeResult:
        """Its page."""
        yield Portrait()

    def focus_view(self) -> None:
        """The keys scroll the page."""
        self.screen.set_focus(self.query_one(Portrait))

    def refresh_view(self) -> None:
        """Show the neuron under the cursor."""
        self.query_one(Portrait).show(self.session.state.cursor)

    def file_name(self) -> str:
        """After the neuron."""
        return f"{self.session.columns.label(self.session.state.cursor)}.csv"

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """Its scores, attributions and contrasts."""
        found = facts(self.session.columns, self.session.state.cursor)
        rows: list[Sequence[object]] = [
            ("score", one.name, one.value, one.in_layer, one.in_model) for one in found.scores
        ]
        rows += [
            ("attribution", one.property, one.value, one.in_layer, one.in_model)
            for one in found.attributions
        ]
        rows += [
            ("dz", one.property, one.dz, one.dz_in_layer, one.dz_in_model)
            for one in found.contrasts
        ]
        return ("kind", "name", "value", "percent_of_layer_below", "percent_of_model_below"), rows
