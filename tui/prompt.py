"""A text of one's own, tried on the model: tokens against layers, and neurons switched off."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from .view import View, bindings


class Prompt(View):
    """Needs a model: `glulens browse RUN --model NAME`."""

    NAME = "prompt"
    BINDINGS = bindings("prompt")

    def compose(self) -> ComposeResult:
        """A word."""
        yield Static("start with --model NAME to try texts here", markup=False)
