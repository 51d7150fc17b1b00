"""Makes docs/api/: the public names of every room, as their source documents them.

    python docs/make_api.py            # writes the pages
    python docs/make_api.py --check    # exit code 1 where a page is not what would be written

Modules are read, not imported. A page shows each public name as it stands in the source, without
what it does inside: signature, docstring, fields and public methods.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGES = HERE / "api"
ROOMS = {
    "root": "What `import glulens` offers, and the modules that every room uses.",
    "prune": "What neurons weigh, and removing them.",
    "datasets": "Texts: facts, instructions, misconceptions, and where they come from.",
    "probes": "What neurons do: recording, attribution, ablation, linear probes.",
    "interp": "The questions: hypothesis, calibration, comparison, sweep, efficiency.",
    "tui": "The browser's parts that need no screen: columns, filters, facts, sets.",
}
LEFT_OUT = re.compile(
    r"__main__|cli.*|figures.*|.*rows|.*report|.*kernels|.*plan|.*files|.*state|content|shown|"
    r"stages|unfinished|json_values|option_checks|versions"
)
"""Modules that lay out what others found, or are those others' inner works."""
ONLY = {"tui": ("columns", "cutting", "facts", "filter_functions", "filters", "plain", "sets")}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def modules(room: str) -> list[Path]:
    """The modules of a room that its page is about."""
    folder = ROOT if room == "root" else ROOT / room
    only = ONLY.get(room)
    return [
        path
        for path in sorted(folder.glob("*.py"))
        if (path.stem in only if only else not LEFT_OUT.fullmatch(path.stem))
    ]


def page(room: str) -> str:
    """A room's page in Markdown."""
    name = "glulens" if room == "root" else f"glulens.{room}"
    parts = [f"# {name}", f"{ROOMS[room]} Made from docstrings by `docs/make_api.py`."]
    found = [(path, *_module(path)) for path in modules(room)]
    found = [row for row in found if row[2] or row[0].stem == "__init__"]
    lines = [
        f"| [`{_dotted(path)}`](#{_anchor(_dotted(path))}) | {_cell(about)} |"
        for path, about, _ in found
    ]
    parts.append("\n".join(["| module | |", "|---|---|", *lines]))
    for path, about, names in found:
        parts += [f"## {_dotted(path)}", _fenced("text", about)]
        if path.stem == "__init__" and (exported := _exports(path)):
            parts.append(exported)
        parts += [f"### {title}\n\n{_fenced('python', shown)}" for title, shown in names]
    return "\n\n".join(parts) + "\n"


def _exports(path: Path) -> str:
    """The names that a package offers, with their homes; empty where it offers none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if _assigned(node) == "_HOMES" and isinstance(node, ast.Assign):
            homes: dict[str, str] = ast.literal_eval(node.value)
            package = _dotted(path)
            lines = []
            for name, home in sorted(homes.items()):
                dotted = f"{package}.{home.lstrip('.')}"
                room = dotted.split(".")[1] if dotted.count(".") > 1 else "root"
                link = f"{room}.md#{_anchor(dotted)}"
                lines.append(f"| `{package}.{name}` | [`{dotted}`]({link}) |")
            return "\n".join(["| name | home |", "|---|---|", *lines])
    return ""


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["glulens", *(part for part in parts if part != "__init__")])


def _anchor(title: str) -> str:
    return title.replace(".", "").lower()


def _cell(about: str) -> str:
    """The first sentence of a docstring, on one line of a table."""
    first = re.split(r"\n\s*\n", about)[0].replace("\n", " ")
    return first.split(". ")[0].rstrip(".:").replace("|", "\\|").replace("*", "\\*")


def _fenced(kind: str, content: str) -> str:
    return f"```{kind}\n{content.rstrip()}\n```"


def _module(path: Path) -> tuple[str, list[tuple[str, str]]]:
    """A module's docstring, and its public names with what the source shows of them."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = source.splitlines()
    found: list[tuple[str, str]] = []
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, DEFINITIONS) and _is_public(node):
            found.append((node.name, "\n".join(_definition(node, lines))))
        elif _is_text(following) and (name := _assigned(node)) and not name.startswith("_"):
            found.append((name, "\n".join(_span(lines, node, following))))
    return ast.get_docstring(tree) or "", found


def _is_public(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return not node.name.startswith("_") and ast.get_docstring(node) is not None


def _is_text(node: ast.stmt | None) -> bool:
    """Whether it is a string that stands by itself: what documents the line before it."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _assigned(node: ast.stmt) -> str | None:
    """The one name that a statement gives a value, or a type."""
    if isinstance(node, ast.AnnAssign):
        target: ast.expr = node.target
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _span(lines: list[str], first: ast.stmt, last: ast.stmt | None = None) -> list[str]:
    end = (last or first).end_lineno
    assert end is not None
    return lines[first.lineno - 1 : end]


def _definition(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]
) -> Iterator[str]:
    """Decorators, signature and docstring; of a class fields and public methods, too."""
    yield from (f"{' ' * node.col_offset}@{ast.unparse(d)}" for d in node.decorator_list)
    first = node.body[0]
    yield from lines[node.lineno - 1 : first.end_lineno if _is_text(first) else first.lineno - 1]
    if not isinstance(node, ast.ClassDef):
        return
    after_docstring = True
    for member, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, DEFINITIONS) and _is_public(member):
            yield ""
            yield from _definition(member, lines)
        elif (name := _assigned(member)) and not name.startswith("_"):
            if after_docstring:
                yield ""
            yield from _span(lines, member, following if _is_text(following) else None)
        else:
            continue
        after_docstring = False


def main() -> None:
    """Write the pages, or look whether they are as they should be."""
    wanted = {PAGES / f"{room}.md": page(room) for room in ROOMS}
    if sys.argv[1:] == ["--check"]:
        stale = [
            path.name
            for path, content in wanted.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != content
        ]
        if stale:
            sys.exit(f"docs/api is not what the source says ({', '.join(stale)}): run make api")
        return
    PAGES.mkdir(exist_ok=True)
    for path, content in wanted.items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
