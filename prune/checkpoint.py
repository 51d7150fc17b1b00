"""A checkpoint on disk, without building its model: names, shapes, MLPs, and tensors one by one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import ModelError, ResourceError, visible
from ..progress import Progress, silent
from .layout import MlpLayout, locate
from .models import ModelSource, find_model, load_gguf, pickled_weights, read_config
from .scoring import score
from .shards import Entry, Shard, mapped, read_shard
from .surgery import RECORD, true_widths

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".inv_freq")
"""Causal masks and rotary frequencies, which are no weights."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Transformers folder with safetensors weights.

    Attributes:
        folder: where it lies.
        source: what it was called.
        raw_config: `config.json` as it stands.
        config: the text model's Transformers config.
        shards: by file name.
    """

    folder: Path
    source: ModelSource
    raw_config: dict[str, Any]
    config: Any
    shards: dict[str, Shard]

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All tensors, by name."""
        return {n: entry for shard in self.shards.values() for n, entry in shard.entries.items()}

    @cached_property
    def layouts(self) -> list[MlpLayout]:
        """Where the MLPs lie (see `layout.locate`)."""
        record = self.raw_config.get(RECORD)
        return locate(
            {name: entry.shape for name, entry in self.entries.items()},
            self.config,
            None if record is None else true_widths(record),
        )

    @property
    def parameters(self) -> int:
        """Numbers stored, padding included; buffers that some old checkpoints hold are left out."""
        return sum(
            prod(entry.shape) for name, entry in self.entries.items() if not name.endswith(BUFFERS)
        )

    def score(self, names: Sequence[str], **options: Any) -> dict[str, list[np.ndarray]]:
        """Score every neuron (`options`, results and errors as in `scoring.score`)."""
        family = self.config.model_type
        return score(self.layouts, Reader(self), names, family=family, **options)


class Reader:
    """Gives tensors by name. The last one stays mapped: fused ones are asked for twice in a row."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._recent: tuple[str, Tensor] | None = None

    def __call__(self, name: str) -> Tensor:
        """The tensor, mapped from disk."""
        if self._recent is None or self._recent[0] != name:
            self._recent = None  # let go before the next is mapped
            entry = self._checkpoint.entries[name]
            self._recent = name, mapped(self._checkpoint.folder, entry)
        return self._recent[1]


@contextmanager
def open_checkpoint(name: str | Path, *, progress: Progress = silent) -> Iterator[Checkpoint]:
    """Open the checkpoint behind a model's name (see `models.open_model`) for streaming.

    A GGUF file is converted into a temporary folder first, which does build the model.

    Raises:
        ModelError: unknown name, missing or damaged files, pickled or quantised weights.
    """
    source = find_model(name, progress=progress)
    if source.kind != "gguf":
        yield _checkpoint(source, source.path)
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="glulens-gguf-") as scratch:
        model, tokenizer = load_gguf(source.path)
        free, needed = shutil.disk_usage(scratch).free, 4 * model.num_parameters()
        if free < needed:
            raise ResourceError(
                f"{free / 1e6:,.0f} MB are free at {scratch}, converting {source.path.name} takes "
                f"{needed / 1e6:,.0f} MB; free some or set TMPDIR"
            )
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        del model
        yield _checkpoint(source, Path(scratch))


def _checkpoint(source: ModelSource, folder: Path) -> Checkpoint:
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is not an object")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelError(
            f"{folder} has no config.json; give a folder saved by Transformers"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read ({error})") from error
    quantised = raw.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ModelError(
            f"{folder} is quantised ({method}); give the checkpoint in bfloat16, float16 or float32"
        )
    shards = {path.name: read_shard(path) for path in _shard_files(folder)}
    return Checkpoint(folder, source, raw, read_config(source, folder), shards)


def _shard_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if (folder / SINGLE).is_file():  # what Transformers takes first, whatever else is there
        return [folder / SINGLE]
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise pickled_weights(folder) or ModelError(f"{folder} holds no .safetensors weights")
        raise ModelError(
            f"{folder} has {files[0].name} but neither {SINGLE} nor {INDEX}; Transformers reads "
            "only those: rename the file or fetch the index"
        )
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        wanted = sorted({str(name) for name in names.values()})
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise ModelError(f"{index} cannot be read ({error}); fetch the checkpoint again") from error
    for name in wanted:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index} names {name[:80]!r}, which is no .safetensors file beside it"
            )
        if not os.path.isfile(folder / name):  # false, too, of what no file can be called
            raise ModelError(
                f"{index.name} names {visible(name[:80])}, which is missing from {folder}; fetch "
                "the checkpoint again"
            )
    return [folder / name for name in wanted]
