"""The documentation: links lead somewhere, the API pages are what the source says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import glulens

ROOT = Path(glulens.__file__).parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])


def test_api_pages_are_what_the_source_says():
    done = subprocess.run(
        [sys.executable, DOCS / "make_api.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What links may point to, as GitHub names it."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://|mailto:", target) or page.parent.name == "official":
            continue
        name, _, anchor = target.partition("#")
        there = page if not name else page.parent / name
        assert there.exists(), f"{page.name} -> {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} -> {target}"


def test_the_map_names_every_page():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in [*DOCS.glob("*.md"), *DOCS.glob("*.ipynb"), *(DOCS / "api").glob("*.md")]:
        if page.name != "index.md":
            assert f"({page.relative_to(DOCS)})" in text, page.name
