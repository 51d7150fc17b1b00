"""Opening a model by name: the embedded one, a local folder, a GGUF file, or a hub id.

Weights come from safetensors or GGUF only, never from a pickle, and no code that a repository ships
is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import (
    ModelError,
    ResourceError,
    UsageError,
    is_out_of_memory,
    is_out_of_space,
    nearest,
)
from ..progress import Progress, silent
from .embedded import EMBEDDED, embedded_folder, ensure_embedded, sha256_of
from .gguf_header import MOST_LAYERS, check_gguf

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES = ("auto", "float32", "bfloat16", "float16")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configs call the number of layers."""
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "tokenizer*"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: what it was called, and the files found there."""

    name: str
    kind: Literal["embedded", "folder", "gguf", "hub"]
    path: Path
    revision: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights: of the GGUF, or of all safetensors shards with their names."""
        if self.kind == "embedded":
            return EMBEDDED[self.name].gguf_sha256
        if self.kind == "gguf":
            return sha256_of(self.path)
        digest = hashlib.sha256()
        for shard in sorted(self.path.glob("*.safetensors")):
            digest.update(f"{shard.name} {sha256_of(shard)}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A live model with its tokenizer and where both came from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource

    def __repr__(self) -> str:
        kind = self.model.config.get_text_config().model_type
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"OpenedModel({self.name!r}, {kind}, {dtype}, on {self.device})"

    @property
    def name(self) -> str:
        """The name it was opened by."""
        return self.source.name

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return self.model.get_input_embeddings().weight.device  # pyright: ignore


def open_model(
    name: str | Path,
    *,
    dtype: Dtype = "auto",
    device: str = "auto",
    device_map: str | dict[str, Any] | None = None,
    progress: Progress = silent,
) -> OpenedModel:
    """Open a model for inference.

    Args:
        name: the alias `smollm2-135m-instruct`; a folder saved by Transformers; a `.gguf` file; or
            a hub id such as `org/name` or `org/name@revision`.
        dtype: `auto` is float32 on a CPU, where it is exact and costs little, and what the
        checkpoint
            says elsewhere.
        device: a torch device; `auto` takes the first CUDA device if there is one.
        device_map: handed to Transformers (needs accelerate) and overrides `device`, e.g. `"auto"`.
        progress: told of downloads.

    Raises:
        ModelError: unknown name, missing or damaged files, pickled weights, unsupported family.
        ResourceError: no memory or disk.
        UsageError: unknown dtype or device.
    """
    import torch

    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}; allowed are {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r} is not one torch knows; try cpu or cuda") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: no CUDA device here; try --device cpu")
    on_cpu = where.type == "cpu" and device_map is None
    wanted: Any = {"auto": torch.float32 if on_cpu else "auto"}.get(dtype) or getattr(torch, dtype)
    source = find_model(name, progress=progress)
    _quiet()
    try:
        if source.kind == "gguf":
            model, tokenizer = load_gguf(source.path, dtype=wanted, device_map=device_map)
        else:
            model, tokenizer = _load_folder(source.path, dtype=wanted, device_map=device_map)
        if device_map is None:
            model.to(where)  # pyright: ignore
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"{name}: not enough memory for the weights; try --dtype bfloat16 or another --device"
        ) from error
    model.eval()
    model.requires_grad_(False)
    return OpenedModel(model, tokenizer, source)


def find_model(name: str | Path, *, fetch: bool = True, progress: Progress = silent) -> ModelSource:
    """Find the files of a model without loading it (see `open_model` for names and errors).

    Args:
        fetch: download what is missing; otherwise a model that is not here is an error.
    """
    text = str(name)
    if text in EMBEDDED:
        model = EMBEDDED[text]
        if not fetch and not embedded_folder(model).is_dir():
            raise ModelError(f"{text} is not in the cache yet; run without --dry-run to fetch it")
        folder = ensure_embedded(model, progress) if fetch else embedded_folder(model)
        return ModelSource(text, "embedded", folder)
    path = Path(text).expanduser()
    try:
        is_dir, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise ModelError(f"{text[:80]} cannot be looked at ({error.strerror})") from error
    if is_dir:
        return ModelSource(text, "folder", path)
    if is_file:
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{text} is a file but not a .gguf; give the folder that holds it")
        return ModelSource(text, "gguf", path)
    looks_local = text.startswith((".", "/", "~")) or path.suffix.lower() == ".gguf"
    if looks_local:
        raise ModelError(f"no such file or folder: {text}; give a Transformers folder or a .gguf")
    if not _HUB_ID.fullmatch(text):
        raise ModelError(
            f"unknown model {text!r}{nearest(text, EMBEDDED)}; allowed are {', '.join(EMBEDDED)}, "
            "a local folder, a .gguf file, or a hub id org/name[@revision]"
        )
    return _from_hub(text, fetch)


def _from_hub(name: str, fetch: bool) -> ModelSource:
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=_HUB_FILES,
            local_files_only=not fetch,
        )
    except Exception as error:  # the hub's client raises a dozen kinds, HTTP's among them
        if isinstance(error, OSError) and is_out_of_space(error):
            raise ResourceError(f"{name}: the disk is full; free some or set HF_HOME") from error
        raise ModelError(
            f"{name} cannot be fetched from the hub ({_first_line(error)}); check the id, the "
            "revision and the network, or give a local folder"
        ) from error
    return ModelSource(name, "hub", Path(folder), revision=Path(folder).name)


def read_config(source: ModelSource, folder: Path | None = None) -> Any:
    """The text model's Transformers config, without its weights.

    Args:
        source: the model.
        folder: read the config there instead.

    Raises:
        ModelError: it cannot be read.
    """
    from transformers import AutoConfig

    _quiet()
    gguf = {}
    if folder is None:
        folder = source.path
        if source.kind == "gguf":
            check_gguf(source.path)
            folder, gguf = source.path.parent, {"gguf_file": source.path.name}
    if not gguf:
        _check_depth(folder)
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **gguf
        )
        return config.get_text_config()
    except Exception as error:  # a damaged file can raise anything from the libraries below
        raise _unreadable(source.path, error) from error


def _load_folder(
    folder: Path, *, dtype: Any, device_map: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; give a folder saved by Transformers")
    if not any(folder.glob("*.safetensors")):
        raise pickled_weights(folder) or ModelError(f"{folder} holds no .safetensors weights")
    _check_depth(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # a damaged file can raise anything from the libraries below
        if is_out_of_memory(error):
            raise
        raise _unreadable(folder, error) from error
    model, info = loaded
    # Transformers fills missing tensors with random numbers and a warning; here that is an error.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder}: {len(missing)} tensors are missing from the weights, e.g. {missing[0]}; "
            "the checkpoint is incomplete, fetch it again"
        )
    from .surgery import trim

    return trim(model), tokenizer


def _check_depth(folder: Path) -> None:
    """Raise `ModelError` where a config announces layers that no memory would hold; they would be
    built one by one before the weights are looked at. What else is wrong with it, others tell."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    parts = (raw, raw.get("text_config")) if isinstance(raw, dict) else ()
    for part in parts:
        for name in _DEPTHS:
            layers = part.get(name) if isinstance(part, dict) else None
            if isinstance(layers, int | float) and layers > MOST_LAYERS:
                raise ModelError(
                    f"{folder / 'config.json'} announces {layers} layers, at most {MOST_LAYERS} "
                    "are read; fetch the checkpoint again"
                )


def pickled_weights(folder: Path) -> ModelError | None:
    """The error to raise where a folder's weights are pickled; None where they are not."""
    pickles = [p.name for kind in ("*.bin", "*.pt", "*.pth") for p in folder.glob(kind)]
    if not pickles:
        return None
    return ModelError(
        f"{folder} holds pickled weights ({pickles[0]}), which can run code when opened; "
        "convert them to safetensors first"
    )


def load_gguf(
    path: Path, *, dtype: Any = None, device_map: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a GGUF file as plain floating-point weights (float32 unless told otherwise)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(path)
    _quiet()
    folder, name = str(path.parent), path.name
    try:
        # Transformers draws its bar of the conversion whatever the log level; errors still raise.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=name,
                dtype=torch.float32 if dtype in (None, "auto") else dtype,
                device_map=device_map,
                local_files_only=True,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    except Exception as error:  # as above
        if is_out_of_memory(error):
            raise
        raise _unreadable(path, error) from error
    # Transformers marks what came from a GGUF as quantised and then refuses to save it; the
    # weights are plain floats.
    model.hf_quantizer = None  # pyright: ignore
    model.is_quantized = False  # pyright: ignore
    for holder, mark in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(holder, mark):
            delattr(holder, mark)
    return model, tokenizer


def _unreadable(where: Path, error: Exception) -> ModelError:
    return ModelError(
        f"{where} cannot be read as a model ({_first_line(error)}); it may be truncated, damaged "
        "or of an unsupported family: fetch it again or choose another"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__


def _quiet() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
