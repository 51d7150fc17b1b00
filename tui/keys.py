"""Every key of the browser: one table, from which bindings, help and the key file are made.

A key file is TOML; under `[keys]` each line gives a binding's name and its new keys, several by
commas:

    [keys]
    filter = "f,slash"
    quit = "ctrl+q"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, nearest

VIEWS = ("atlas", "rank", "neuron", "compare", "prune", "prompt", "sets")
"""On keys 1 to 7."""


@dataclass(frozen=True)
class Key:
    """A binding.

    Attributes:
        id: its name in a key file.
        keys: as Textual spells them, several by commas.
        action: what it does, as Textual spells actions.
        about: the same in words.
        where: the view it works in; empty for all.
        shown: what the footer calls it; empty keeps it out of the footer.
    """

    id: str
    keys: str
    action: str
    about: str
    where: str = ""
    shown: str = ""


KEYS: tuple[Key, ...] = (
    *(
        Key(f"view-{name}", str(number), f"view('{name}')", f"the {name} view")
        for number, name in enumerate(VIEWS, 1)
    ),
    Key("filter", "slash", "filter", "show the neurons that an expression holds for", "", "filter"),
    Key("goto", "colon", "goto", "go to a neuron by name, as in L12.N345", "", "go to"),
    Key("next-column", "right_square_bracket", "sort(1)", "rank by the next column", "", "rank by"),
    Key("previous-column", "left_square_bracket", "sort(-1)", "rank by the column before"),
    Key("reverse", "r", "reverse", "turn the ranking round"),
    Key("next", "full_stop", "step(1)", "the next neuron in the ranking"),
    Key("previous", "comma", "step(-1)", "the neuron before in the ranking"),
    Key("mark", "space", "mark", "mark the neuron, or take its mark away", "", "mark"),
    Key("mark-all", "m", "mark_all", "mark all neurons that pass the filter"),
    Key("unmark-all", "M", "unmark_all", "take all marks away"),
    Key("undo", "u", "undo", "undo the last change of filter, ranking or marks"),
    Key("redo", "U,ctrl+r", "redo", "do it again"),
    Key("zoom", "z", "zoom", "give the focused pane the whole screen, or take it back"),
    Key("export", "e", "export", "write what the view shows to a file", "", "export"),
    Key("copy", "y", "copy", "copy the neuron's name (marked: all names) to the clipboard"),
    Key("help", "question_mark", "help", "keys of this view and the words of filters", "", "help"),
    Key("quit", "q", "quit", "leave", "", "quit"),
    Key("atlas-value", "v", "value(1)", "colour by the next column", "atlas", "colour by"),
    Key("atlas-value-back", "V", "value(-1)", "colour by the column before", "atlas"),
    Key("compare-next", "n", "pair(1)", "the next column that both have", "compare", "column"),
    Key("compare-previous", "N", "pair(-1)", "the column before", "compare"),
    Key("cut-more", "right", "cut(1)", "cut more", "prune", "more"),
    Key("cut-less", "left", "cut(-1)", "cut less", "prune", "less"),
    Key("cut-much-more", "shift+right,pagedown", "cut(10)", "cut much more", "prune"),
    Key("cut-much-less", "shift+left,pageup", "cut(-10)", "cut much less", "prune"),
    Key("cut-scope", "l", "scope", "a share of every layer, or of the model", "prune", "scope"),
    Key("cut-divisor", "d", "divisor", "what the kept width is a multiple of", "prune", "divisor"),
    Key("cut-pin", "p", "pin", "keep the marked neurons whatever their score", "prune", "pin"),
    Key("cut-write", "w", "write", "write the neurons that leave as a set", "prune", "write"),
    Key("prompt-text", "t", "text", "another text", "prompt", "text"),
    Key("prompt-silence", "x", "silence", "switch marked neurons off or on", "prompt", "off/on"),
    Key("prompt-stop", "c", "stop", "stop what the model is doing", "prompt", "stop"),
    Key("set-save", "s", "keep", "keep the marks as a named set", "sets", "keep marks"),
    Key("set-load", "o", "load", "read a set from a file", "sets", "open"),
    Key("set-write", "w", "write", "write the set to a file", "sets", "write"),
    Key("set-combine", "a", "combine", "a new set from others: a & b - c | d", "sets", "combine"),
    Key("set-mark", "enter", "recall", "mark the set's neurons", "sets", "mark them"),
    Key("set-drop", "delete,backspace", "drop", "forget the set", "sets"),
)  # fmt: skip


def keys_of(where: str) -> tuple[Key, ...]:
    """The bindings of one view; those of all views for the empty string."""
    return tuple(key for key in KEYS if key.where == where)


def default_file() -> Path:
    """Where a key file is looked for if none is given."""
    import platformdirs

    return Path(platformdirs.user_config_dir("glulens")) / "keys.toml"


def read_keys(path: str | Path) -> dict[str, str]:
    """Keys by binding, from a key file.

    Raises:
        UsageError: the file cannot be read, names a binding there is none of, or gives two bindings
            that can meet the same key.
    """
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as TOML ({str(error)[:120]})") from error
    table = found.get("keys")
    if set(found) != {"keys"} or not isinstance(table, dict):
        raise UsageError(f"{path}: it should hold one table, [keys], with lines as in quit = 'q'")
    known = {key.id for key in KEYS}
    for name, keys in table.items():
        if name not in known:
            raise UsageError(
                f"{path}: no binding is called {name!r}{nearest(name, known)}; "
                "`glulens browse --list-keys` shows all"
            )
        if not isinstance(keys, str) or not all(part.strip() for part in keys.split(",")):
            raise UsageError(f"{path}: {name} = {keys!r}; write keys by commas, as in 'f,slash'")
    _check_clashes(path, table)
    return table


def _check_clashes(path: str | Path, table: Mapping[str, str]) -> None:
    for where in ("", *VIEWS):
        taken: dict[str, str] = {}
        for key in (*keys_of(""), *(keys_of(where) if where else ())):
            for part in split(table.get(key.id, key.keys)):
                if part in taken:
                    raise UsageError(
                        f"{path}: {part!r} would be both {taken[part]!r} and {key.id!r}; give one "
                        "of them another key"
                    )
                taken[part] = key.id


def split(keys: str) -> Sequence[str]:
    """Single keys of a list by commas."""
    return [part.strip() for part in keys.split(",")]


_SIGNS = {
    "slash": "/", "colon": ":", "question_mark": "?", "right_square_bracket": "]",
    "left_square_bracket": "[", "full_stop": ".", "comma": ",", "delete": "del",
    "right": "→", "left": "←", "shift+right": "shift+→", "shift+left": "shift+←",
}  # fmt: skip


def spelled(keys: str) -> str:
    """Keys as they stand on a keyboard."""
    return " ".join(_SIGNS.get(part, part) for part in split(keys))
