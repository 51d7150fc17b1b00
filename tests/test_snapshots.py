"""What the views look like, held as pictures: `GLULENS_SNAPSHOTS=write` makes them anew, to be
looked at before they are committed."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest
from browsing import dense, run_of

from glulens.tui.app import Browser, open_session

FOLDER = Path(__file__).parent / "snapshots"
VIEWS = {"atlas": ("1", (120, 32)), "rank": ("2", (80, 24)), "prune": ("5", (120, 32))}


def picture(path: Path, key: str, size: tuple[int, int]) -> str:
    async def session() -> str:
        app = Browser(open_session(path))
        async with app.run_test(size=size) as pilot:
            await app.workers.wait_for_complete()
            await pilot.press(key)
            await pilot.pause()
            await app.workers.wait_for_complete()
            await pilot.pause()
            return app.export_screenshot(title="glulens", simplify=True)

    # Names inside the picture are made of a hash of its content.
    return re.sub(r"terminal-\d+", "terminal", asyncio.run(session()))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_looks_as_it_did(name, tmp_path):
    key, size = VIEWS[name]
    found = picture(
        run_of(tmp_path / "run", dense(), model={"name": "tiny", "hidden": 16}), key, size
    )
    file = FOLDER / f"{name}-{size[0]}x{size[1]}.svg"
    if os.environ.get("GLULENS_SNAPSHOTS") == "write":
        FOLDER.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")
    assert found == file.read_text(encoding="utf-8"), f"{name} looks otherwise; look at it"
