"""`glulens browse`: the shell around the views, and what happens between them.

The shell owns the session and the work that takes long: filtering, sorting and counting run in a
thread, and what they find is shown when it is there. Keys are never kept waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.text import Text
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import BindingType
from textual.events import Event, Key
from textual.screen import Screen
from textual.widgets import ContentSwitcher, Footer, Static
from textual.worker import get_current_worker

from ..errors import GlulensError, UsageError
from . import filters
from .ask import Ask
from .atlas import Atlas
from .columns import Columns
from .compare import Compare
from .glyphs import cells, safe
from .helping import Help
from .keys import VIEWS
from .neuron import Neuron
from .prompt import Prompt
from .pruning import Prune
from .rank import Rank
from .session import Session
from .sets_view import SetsView
from .state import State
from .view import View, bindings

_PATIENCE = 0.1  # seconds of work before it is said that there is some
VIEW_TYPES: tuple[type[View], ...] = (Atlas, Rank, Neuron, Compare, Prune, Prompt, SetsView)


class Browser(App[list[str]]):
    """The browser; leaving it gives the names of the marked neurons."""

    TITLE = "glulens"
    BINDINGS: ClassVar[list[BindingType]] = bindings("")
    ENABLE_COMMAND_PALETTE = True
    CSS = """
    #top { height: 1; background: $panel; padding: 0 1; }
    #said { height: 1; color: $text-muted; padding: 0 1; }
    ContentSwitcher { height: 1fr; }
    """

    def __init__(self, session: Session, keys: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.session = session
        self.set_keymap(dict(keys or {}))
        self._working = ""
        self._ordered: tuple[str, str, bool, object] | None = None
        self._to_the_top = True
        self._typed: deque[Key] = deque()
        self._typing: asyncio.Task[None] | None = None
        self._last: State | None = None
        """The last state whose order was found."""

    def compose(self) -> ComposeResult:
        """The line of views, the views, the line that says what is shown, a line to ask in."""
        yield Static(id="top")
        with ContentSwitcher(initial="rank"):
            for view in VIEW_TYPES:
                yield view()
        yield Static(id="said")
        yield Ask()
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin with the ranking."""
        self._reorder()
        self.view.focus_view()
        self._say()

    @property
    def view(self) -> View:
        """The view that is shown."""
        switcher = self.query_one(ContentSwitcher)
        return self.query_one(f"#{switcher.current}", View)

    # What is shown

    def push(self, state: State) -> None:
        """Go on to a state, and show it."""
        self.session.history.push(state)
        self._changed()

    def _changed(self) -> None:
        state = self.session.state
        marks = state.marks if "marked" in state.where else None
        wanted = state.where, state.by, state.descending, marks
        if wanted != self._ordered:
            self._reorder()
        else:
            self.view.refresh_view()
            self._say()

    def _reorder(self) -> None:
        state = self.session.state
        marks = state.marks if "marked" in state.where else None
        self._ordered = state.where, state.by, state.descending, marks
        self.work_on(
            f"sorting by {state.by}",
            lambda: self.session.ordered(state),
            self._show_order,
            group="order",
            otherwise=self._back,
        )

    def _back(self) -> None:
        """What could not be shown is not the state."""
        if self._last is not None and self._last != self.session.state:
            self._to_the_top = False
            self.session.history.push(self._last)
            self._changed()

    def _show_order(self, found: np.ndarray) -> None:
        self.session.order = found
        self._last = self.session.state
        if self._to_the_top and len(found):  # another ranking is read from its beginning
            self._to_the_top = False
            self.session.history.push(replace(self.session.state, cursor=int(found[0])))
        self.view.refresh_view()
        self._say()

    def work_on(
        self,
        what: str,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        *,
        group: str,
        otherwise: Callable[[], None] | None = None,
    ) -> None:
        """Do something in a thread; a later piece of work of the same group takes its place.

        Args:
            what: said meanwhile, if it takes long.
            work: gives what `then` takes; a `GlulensError` is shown instead.
            otherwise: done after such an error.
        """

        def run() -> None:
            worker = get_current_worker()
            try:
                found = work()
            except GlulensError as error:
                if not worker.is_cancelled:
                    self.call_from_thread(failed, str(error))
                return
            finally:
                done.append(True)
            if not worker.is_cancelled:
                self.call_from_thread(finish, found)

        def finish(found: Any) -> None:
            if self._working == what:
                self._working = ""
            then(found)
            self._say()

        def failed(message: str) -> None:
            self._working = ""
            self._say()
            self.error(message)
            if otherwise is not None:
                otherwise()

        def still() -> None:
            if not done:
                self._working = what
                self._say()

        done: list[bool] = []
        self.run_worker(run, thread=True, exclusive=True, group=group, exit_on_error=False)
        self.set_timer(_PATIENCE, still)

    def error(self, message: str) -> None:
        """Say what went wrong."""
        self.notify(safe(message), severity="error", markup=False)

    def _say(self) -> None:
        """Draw the lines above and below the views."""
        session, state = self.session, self.session.state
        top = Text(no_wrap=True, overflow="ellipsis")
        for number, name in enumerate(VIEWS, 1):
            style = "reverse bold" if name == self.view.NAME else ""
            top.append(f" {number} {name} ", style)
        model = session.columns.manifest.get("model") or {}
        about = f"{session.columns.path.name}: {model.get('name', 'unknown model')}"
        room = self.size.width - 2 - top.cell_len - 2
        if room > 8:
            top.append(cells(safe(about), room).rjust(room + 2), "dim")
        self.query_one("#top", Static).update(top)
        parts = [f"{len(session.order):,} of {session.columns.n:,} neurons"]
        parts.append(f"{state.by} {'▼' if state.descending else '▲'}")
        if session.marks.any():
            parts.append(f"{int(session.marks.sum()):,} marked")
        if state.where:
            parts.append(f"where {safe(state.where)}")
        if self._working:
            parts.insert(0, f"… {safe(self._working)}")
        line = Text(cells(" · ".join(parts), max(self.size.width - 2, 1)), no_wrap=True)
        self.query_one("#said", Static).update(line)

    def on_resize(self) -> None:
        """Cut the lines anew."""
        self._say()

    # Keys

    async def on_event(self, event: Event) -> None:
        """Take one key after the other.

        Textual hands a key to the focused widget and takes the next before that has had its effect,
        so that what is typed quickly after `/` would still go to the table.
        """
        if not isinstance(event, Key) or event.is_forwarded:
            await super().on_event(event)
            return
        self._typed.append(event)
        if self._typing is None or self._typing.done():
            self._typing = asyncio.create_task(self._take_keys())

    async def _take_keys(self) -> None:
        """Hand over what was typed; the next key once the one before has had its effect."""
        while self._typed and self.is_running:
            target = self.focused or self.screen
            await super().on_event(self._typed.popleft())
            # A key goes up from the focused widget to the app, and messages that come of it do.
            nodes = target.ancestors_with_self
            for node in (*nodes, *nodes):
                reached = asyncio.Event()
                if node.call_later(reached.set):
                    with suppress(TimeoutError):  # a widget at work is not waited for long
                        await asyncio.wait_for(reached.wait(), _PATIENCE)

    def action_view(self, name: str) -> None:
        """Show one of the seven."""
        self.query_one(ContentSwitcher).current = name
        self.view.refresh_view()
        self.view.focus_view()
        self.refresh_bindings()
        self._say()

    def go(self, row: int) -> None:
        """Put the cursor on a neuron."""
        self.push(replace(self.session.state, cursor=row))

    def action_step(self, step: int) -> None:
        """The next or the previous neuron in the ranking."""
        rows = self.session.order
        if not len(rows):
            return
        found = np.flatnonzero(rows == self.session.state.cursor)
        at = int(found[0]) + step if len(found) else 0
        self.go(int(rows[min(max(at, 0), len(rows) - 1)]))

    def action_sort(self, step: int) -> None:
        """Rank by another column."""
        names, state = self.session.names, self.session.state
        self.rank_by(names[(names.index(state.by) + step) % len(names)])

    def rank_by(self, name: str) -> None:
        """Rank by a column; by the same one again turns the order round."""
        state = self.session.state
        if name == state.by:
            self.action_reverse()
        else:
            self._to_the_top = True
            self.push(replace(state, by=name))

    def action_reverse(self) -> None:
        """Turn the order round."""
        state = self.session.state
        self._to_the_top = True
        self.push(replace(state, descending=not state.descending))

    def mark(self, row: int) -> None:
        """Mark a neuron, or take its mark away."""
        self.push(self.session.state.toggled(row, self.session.columns.n))

    def action_mark(self) -> None:
        """The same with the neuron under the cursor."""
        self.mark(self.session.state.cursor)

    def action_mark_all(self) -> None:
        """Mark all neurons that pass the filter."""
        mask = self.session.marks.copy()
        mask[self.session.order] = True
        self.push(self.session.state.marked(mask))

    def action_unmark_all(self) -> None:
        """Take all marks away."""
        self.push(self.session.state.marked(np.zeros(self.session.columns.n, bool)))

    def action_undo(self) -> None:
        """Go back a state."""
        if not self.session.history.can_undo:
            self.notify("nothing to undo")
        self.session.history.undo()
        self._changed()

    def action_redo(self) -> None:
        """Go forward again."""
        if not self.session.history.can_redo:
            self.notify("nothing to do again")
        self.session.history.redo()
        self._changed()

    def filter_to(self, where: str) -> None:
        """Show the neurons that an expression holds for, in the ranking."""
        self.push(replace(self.session.state, where=where))
        self.action_view("rank")

    def action_filter(self) -> None:
        """Ask for a filter, counting as it is typed."""

        def count(text: str) -> str:
            keep = self.session.keep(replace(self.session.state, where=text))
            n = self.session.columns.n
            return f"{n if keep is None else int(keep.sum()):,} of {n:,}"

        def apply(text: str) -> None:
            filters.parse(text, self.session.columns.names)
            self.push(replace(self.session.state, where=text.strip()))

        self.query_one(Ask).ask("where", self.session.state.where, apply, live=count)

    def action_goto(self) -> None:
        """Ask for a neuron's name."""

        def to(text: str) -> None:
            row = self.session.columns.find(text)
            if not np.any(self.session.order == row):
                raise UsageError(f"{self.session.columns.label(row)} does not pass the filter")
            self.go(row)

        self.query_one(Ask).ask("go to", "", to)

    def action_export(self) -> None:
        """Ask for a file: the view's rows, the marks, or a picture of the screen."""

        def write(text: str) -> None:
            if not text.strip():
                raise UsageError("no file name given")
            path = Path(text.strip()).expanduser()
            self.notify(f"{self._export(path)} written to {path}", markup=False)

        self.query_one(Ask).ask(
            "export (.csv rows, .json marks, .svg picture)", self.view.file_name(), write
        )

    def _export(self, path: Path) -> str:
        from .session import write_text

        if path.suffix == ".svg":
            write_text(path, self.export_screenshot(title="glulens", simplify=True))
            return "a picture"
        if path.suffix == ".json":
            import json

            found = self.session.marked_set()
            write_text(path, json.dumps(found.to_json()) + "\n")
            return f"{len(found):,} neurons"
        if path.suffix != ".csv":
            raise UsageError(f"{path.name}: end the name in .csv, .json or .svg")
        return self.view.export_to(path)

    def action_copy(self) -> None:
        """Copy names to the clipboard."""
        labels = self.session.marked_labels()
        if not labels:
            labels = [self.session.columns.label(self.session.state.cursor)]
        self.copy_to_clipboard(" ".join(labels))
        self.notify(f"{len(labels):,} copied" if len(labels) > 1 else f"{labels[0]} copied")

    def action_zoom(self) -> None:
        """Give the focused pane the whole screen, or take it back."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self.focused is not None:
            self.screen.maximize(self.focused, container=False)

    def action_help(self) -> None:
        """Say what keys and filters there are."""
        self.push_screen(Help(self.view.NAME, self.current_keys()))

    def current_keys(self) -> Mapping[str, str]:
        """Keys by binding, where they differ from the table."""
        return dict(self._keymap)

    async def action_quit(self) -> None:
        """Leave."""
        self.exit(self.session.marked_labels())

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette finds besides Textual's own: every column."""
        yield from super().get_system_commands(screen)
        for name in self.session.names:
            yield SystemCommand(
                f"rank by {safe(name)}",
                "order the neurons by this column",
                lambda name=name: self.rank_by(name),
            )


def open_session(
    path: str | Path, other: str | Path | None = None, model: str | None = None
) -> Session:
    """A session on one run or two, and a model to try texts on.

    Raises:
        RunError: no such run, or nothing in it to rank.
    """
    from .columns import open_columns

    second: Columns | None = None if other is None else open_columns(other)
    return Session(open_columns(path), second, model)
