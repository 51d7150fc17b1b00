"""The nnsight engine: the same activations through nnsight's traces, here or on NDIF.

Here it does what the hooks do: it watches, replaces, differentiates and shares beginnings. Wrapping
puts nnsight's own `forward` on every module for good; outside a trace it does nothing, so the model
can still be run, hooked, copied and saved. Prune first: modules exchanged later are not watched.

Far away (`remote`) it records and nothing else. What runs there is the traced block alone: nnsight
sends its source text with the variables it names, and the model by its hub id. The block names
nothing of this package, so nothing must be installed or whitelisted there. It saves one list of
activations, and visits see that list on this machine afterwards. A visit that wants its rows
replaced comes too late for that, so interventions and attributions are refused.

glulens unpickles nothing; nnsight does. It sends a request as a pickle and opens the answer with
`torch.load(weights_only=False)`: a remote run trusts its server with this machine.
"""

from __future__ import annotations

import copy
import sys
from contextlib import redirect_stdout, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..errors import ModelError, UsageError
from ..prune.mlps import find_mlps
from .engine import Context, Visit
from .hooks import context_arguments, shares_up_to

if TYPE_CHECKING:
    from ..prune.models import OpenedModel

_NDIF = "https://api.ndif.us"
_NOTHING = torch.empty(0, dtype=torch.int64)
"""No token's logits. nnsight could stop a run before the head, by an exception that keeps the last
activations alive until Python looks for cycles; a head that sees no row costs nothing."""


class NnsightEngine:
    """A model inside nnsight's `TransformersModel`.

    Attributes:
        wrapped: nnsight's model, for its own tools.

    Args:
        opened: the model; experts in stacked tensors cannot be reached.
        remote: True runs on NDIF (or on `NDIF_HOST`); `"local"` is nnsight's dry run of that: the
            request is written, read back with this package out of reach, and run here.

    Raises:
        UsageError: nnsight is not installed; no such `remote`; no hub id or no key for NDIF.
        ModelError: a mixture of experts.
    """

    name = "nnsight"
    dense = True

    def __init__(self, opened: OpenedModel, *, remote: bool | str = False) -> None:
        if remote not in (False, True, "local"):
            raise UsageError(f"remote {remote!r}; allowed are False, True and 'local'")
        if remote is True and opened.source.kind != "hub":
            raise UsageError(
                f"{opened.name} is on this machine, and NDIF serves models of the hub by their id: "
                "open the model as org/name, or leave --remote out"
            )
        nnsight = _import_nnsight()
        model: Any = opened.model
        mlps = find_mlps(model)
        if any(mlp.down is None for mlp in mlps):
            raise ModelError(
                "nnsight sees modules, and a mixture of experts keeps its experts in one; "
                "use --engine hooks"
            )
        if remote is True:
            _check_key()
        self._nnsight = nnsight
        self._model = model
        self._remote = remote
        self._mlps = mlps
        self._paths = [m.layout.slots["down"].tensor.rpartition(".")[0] for m in mlps]
        head = model.get_output_embeddings()
        self._head = next(name for name, module in model.named_modules() if module is head)
        self.widths = tuple(mlp.width for mlp in mlps)
        self.device: torch.device = torch.device("cpu") if remote is True else opened.device
        self.shares_up_to = 0 if remote else shares_up_to(model)
        # Left alone, Transformers' pipeline moves a model to the first GPU.
        where = {} if getattr(model, "hf_device_map", None) else {"device": opened.device}
        self.wrapped: Any = nnsight.TransformersModel(
            model, task="text-generation", tokenizer=_own_tokenizer(opened.tokenizer), **where
        )
        if remote is True:
            # A model that was opened is called by its folder; a server knows it by its id. Without
            # a revision in the name it is the one the server keeps, which is asked for by None.
            repo, _, revision = opened.name.partition("@")
            self.wrapped.repo_id, self.wrapped.revision = repo, revision or None

    def forward(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        visit: Visit | None = None,
        context: Context | None = None,
    ) -> Tensor | None:
        """See `Engine.forward`; run remotely it takes no context.

        Raises:
            UsageError: run remotely, a visit wants its rows replaced, or the model here is masked.
            ModelError: the server's model has other widths than the one here.
        """
        given: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if context is not None:
            if self._remote:
                raise ValueError("the nnsight engine runs plain texts only on a server")
            given |= context_arguments(self._model, ids, context)
        run = self._run_far if self._remote else self._run_here
        if keep is not None:
            return run(given, keep, visit)
        run(given, _NOTHING, visit)
        return None

    def remember(self, ids: Tensor, visit: Visit | None = None) -> Any:
        """See `Engine.remember`; what the hooks engine remembers serves as well. Not remotely."""
        if self._remote:
            raise ValueError("the nnsight engine runs plain texts only on a server")
        cache: Any = DynamicCache()
        given = {"input_ids": ids, "past_key_values": cache, "use_cache": True}
        self._run_here(given, _NOTHING, visit)
        return [(layer.keys, layer.values) for layer in cache.layers]

    # A traced block is not run where it stands: nnsight reads its source and runs it in a coroutine
    # that waits for the model at every `.input`. Only what is saved comes back to the function's
    # variables, and a block that is sent away may name only what can be sent: never `self`.

    def _run_here(self, given: dict[str, Any], keep: Tensor, visit: Visit | None) -> Tensor:
        nnsight, model, head = self._nnsight, self.wrapped, self._head
        paths = [(m.index, path) for m, path in zip(self._mlps, self._paths, strict=True)]
        given = _whole(given)
        logits: Any = None
        with model.trace(**given) as tracer:
            for index, path in paths if visit is not None else ():
                down = model.get(path)
                whole = down.input
                rows = whole.reshape(-1, whole.shape[-1])
                new = visit(index, rows, torch.arange(len(rows), device=rows.device))  # pyright: ignore
                if new is not None:
                    down.input = new.reshape(whole.shape)
            states = model.get(head).input
            kept = states.reshape(-1, states.shape[-1])[keep.to(states.device)]
            model.get(head).input = kept[None]
            logits = nnsight.save(tracer.result.logits[0])
        return logits  # noqa: RET504  (the block above does not run where it stands)

    def _run_far(self, given: dict[str, Any], keep: Tensor, visit: Visit | None) -> Tensor:
        masked = any(mlp.down is not None and mlp.down._forward_pre_hooks for mlp in self._mlps)
        if self._remote is True and masked:
            raise UsageError(
                "the model here is masked, and the server's is not; leave --remote out"
            )
        reads, logits = self._fetch(_whole(given), keep, self._paths if visit is not None else [])
        for mlp, read in zip(self._mlps, reads, strict=visit is not None):
            if read.shape[-1] != mlp.width:
                raise ModelError(
                    f"{mlp.layout.name} has {read.shape[-1]} neurons on the server and {mlp.width} "
                    "here: the server runs the model as the hub has it; leave --remote out"
                )
            assert visit is not None
            rows = read.reshape(-1, mlp.width).to(self.device)
            if visit(mlp.index, rows, torch.arange(len(rows), device=rows.device)) is not None:
                raise UsageError(
                    "a remote run can only record: interventions and attributions need the model "
                    "on this machine; leave --remote out"
                )
        return logits.to(self.device)

    def _fetch(
        self, given: dict[str, Any], keep: Tensor, paths: list[str]
    ) -> tuple[list[Tensor], Tensor]:
        """Activations [..., neurons] of the MLPs at `paths`, and logits [len(keep), vocabulary]."""
        nnsight, model, head, remote = self._nnsight, self.wrapped, self._head, self._remote
        reads: list[Tensor] = []
        logits: Any = None
        search = list(sys.path)
        try:
            # On stdout, which is for data, nnsight tells how a request is doing.
            with redirect_stdout(sys.stderr), model.trace(**given, remote=remote) as tracer:
                reads = nnsight.save([])
                for path in paths:
                    reads.append(model.get(path).input.detach().cpu())
                states = model.get(head).input
                kept = states.reshape(-1, states.shape[-1])[keep.to(states.device)]
                model.get(head).input = kept[None]
                logits = nnsight.save(tracer.result.logits[0].detach().cpu())
        except Exception as error:  # of the network, the hub or the server: a dozen kinds
            if remote == "local":
                raise
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(
                f"{model.repo_id} did not run remotely ({said[-1][:200]}); see `nnsight.status()` "
                "for what is served, or leave --remote out"
            ) from error
        finally:
            sys.path[:] = search  # the dry run takes it apart and puts it back in another order
        return reads, logits


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that nnsight hands to the model as they are.

    It takes texts apart, pads and masks them itself, unless a tensor is among the arguments that
    it knows nothing of; this one asks for every column.
    """
    ids = given["input_ids"]
    return {**given, "logits_to_keep": torch.arange(ids.shape[1], device=ids.device)}


def _own_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer for nnsight, which gives it a padding token and lets it pad on the left."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return copy.deepcopy(tokenizer)
    # Ids come ready made. Without one, nnsight would look for it on the hub.
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({})))


def _import_nnsight() -> Any:
    # nnsight gives every object of the process a `save`. Of anyio's classes three cannot be made
    # after that, and it knows; but anyio 4.16 makes them on first use, so that importing it first,
    # as nnsight does, no longer helps: whatever uses anyio next would fail.
    if "nnsight" not in sys.modules:
        with suppress(ImportError):
            from anyio.abc import SocketAttribute  # noqa: F401
            from anyio.streams.file import FileStreamAttribute  # noqa: F401
            from anyio.streams.tls import TLSAttribute  # noqa: F401
    # On import it also takes a `-v` on anybody's command line for a wish to hear more of itself.
    arguments = sys.argv
    sys.argv = arguments[:1]
    try:
        import nnsight
        from nnsight import TransformersModel  # noqa: F401  (it is loaded on first use)
    except ImportError as error:
        raise UsageError(
            "the nnsight engine needs nnsight: pip install 'glulens[nnsight]'"
        ) from error
    finally:
        sys.argv = arguments
    return nnsight


def _check_key() -> None:
    """NDIF wants a key; a server of one's own (`NDIF_HOST`) may not."""
    from nnsight.schema.config import CONFIG

    if CONFIG.API.HOST == _NDIF and not CONFIG.API.APIKEY:
        raise UsageError(
            "NDIF wants a key: set NDIF_API_KEY before you start, or store one with `nnsight login`"
        )
