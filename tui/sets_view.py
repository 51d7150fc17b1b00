"""Named sets of neurons: kept marks, files, and what can be made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from ..errors import RunError, UsageError
from .ask import Ask
from .glyphs import cells, fitted, safe
from .view import View, bindings

_NAME = 28


class SetsView(View):
    """A list of sets; enter marks one."""

    NAME = "sets"
    BINDINGS = bindings("sets")
    DEFAULT_CSS = """
    SetsView #head { height: 1; padding: 0 1; }
    SetsView OptionList, SetsView OptionList:focus { border: none; height: 1fr; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        """A heading and the list."""
        yield Static(id="head", markup=False)
        yield OptionList(markup=False)

    def focus_view(self) -> None:
        """The keys go to the list."""
        self.screen.set_focus(self.query_one(OptionList))

    def refresh_view(self) -> None:
        """List the sets."""
        session = self.session
        chosen = self.query_one(OptionList)
        at = chosen.highlighted or 0
        chosen.clear_options()
        marks = session.marks
        for name in session.sets:
            mask = session.sets.mask(name)
            size, shared = int(mask.sum()), int((mask & marks).sum())
            told = f"{fitted(safe(name), _NAME)} {size:>12,} neurons"
            told += f"   {shared:,} of them marked" if marks.any() else ""
            chosen.add_option(Option(Text(cells(told, max(self.app.size.width - 2, 20)))))
        if len(session.sets):
            chosen.highlighted = min(at, len(session.sets) - 1)
            head = "named sets; enter marks one"
        else:
            head = "no set yet: s keeps the marks as one, o reads one from a file"
        self.query_one("#head", Static).update(cells(head, max(self.app.size.width - 2, 1)))

    def _show_newest(self) -> None:
        self.refresh_view()
        self.query_one(OptionList).highlighted = len(self.session.sets) - 1

    def _chosen(self) -> str:
        at = self.query_one(OptionList).highlighted
        names = list(self.session.sets)
        if at is None or at >= len(names):
            raise UsageError("no set is chosen; s keeps the marks as one, o reads one from a file")
        return names[at]

    def _named(self) -> str | None:
        try:
            return self._chosen()
        except UsageError as error:
            self.browser.error(str(error))
            return None

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Mark the set's neurons."""
        event.stop()
        self.action_recall()

    def action_recall(self) -> None:
        """Mark the set's neurons, and no others."""
        name = self._named()
        if name is not None:
            self.browser.push(self.session.state.marked(self.session.sets.mask(name)))

    def action_keep(self) -> None:
        """Ask for a name and keep the marks under it."""

        def keep(name: str) -> None:
            self.session.sets[name.strip()] = self.session.marked_set()
            self._show_newest()

        self.app.query_one(Ask).ask("name for the marked neurons", "", keep)

    def action_combine(self) -> None:
        """Ask for an expression, and keep what it gives."""

        def size(text: str) -> str:
            return f"{len(self.session.sets.combine(text)):,} neurons" if text.strip() else ""

        def keep(text: str) -> None:
            found = self.session.sets.combine(text)
            name = text.strip().replace("`", "'")[:60]
            self.session.sets[name] = found
            self._show_newest()

        self.app.query_one(Ask).ask("combine, as in a & b - c | ~d", "", keep, live=size)

    def action_load(self) -> None:
        """Ask for a file and read it."""

        def load(text: str) -> None:
            if not text.strip():
                raise UsageError("no file name given")
            self.session.sets.load(Path(text.strip()).expanduser())
            self._show_newest()

        self.app.query_one(Ask).ask("read a set from", "", load)

    def action_write(self) -> None:
        """Ask for a file and write the set."""
        name = self._named()
        if name is None:
            return

        def write(text: str) -> None:
            path = Path(text.strip()).expanduser()
            if not text.strip():
                raise UsageError("no file name given")
            if path.exists():
                raise RunError(f"{path} exists; give another name")
            self.session.sets.save(name, path)
            self.notify(f"written to {path}", markup=False)

        self.app.query_one(Ask).ask(f"write {safe(name)} to", "set.json", write)

    def action_drop(self) -> None:
        """Forget the set."""
        name = self._named()
        if name is not None:
            del self.session.sets[name]
            self.refresh_view()

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """Sets and their sizes."""
        sets = self.session.sets
        return ("name", "neurons"), [(name, len(sets[name])) for name in sets]
