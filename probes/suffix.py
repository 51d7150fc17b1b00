"""Many changes of a model's neurons on the same texts, each run only from where it begins.

Below the first MLP that a change touches the model does what it always does. So the intact model
runs once and leaves behind the hidden states that enter the layers where some change begins; each
change is then run from there on. Meanwhile the layers below pass on what they are given, and the
first one that counts is given the hidden states instead; final norm and head run as they are.
Changes that begin at the same layer stand side by side in a batch. Works for every family whose
decoder layers form one list and are called with the hidden states first.

An engine other than `hooks` runs the whole model for every change, with the same result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import is_out_of_memory
from ..progress import Progress, silent
from ..prune.mlps import Mlp
from .engine import Engine, Visit
from .hooks import HooksEngine
from .likelihood import in_parts
from .likelihood import score_pass as score
from .tokens import Encoded
from .trees import Pass, plan

_LAYERS = re.compile(r"((?:.*\.)?(?:layers|h))\.\d+\.")


@dataclass(frozen=True)
class Change:
    """A change of what neurons do.

    Attributes:
        mlps: the MLPs it touches; none for a change that changes nothing.
        make: given a pass, makes its visit. Called for these MLPs only, with the rows and places of
            that pass alone, whatever stands beside it in a batch.
    """

    mlps: tuple[int, ...]
    make: Callable[[Pass], Visit]


@dataclass(frozen=True)
class Held:
    """What a run of the intact model left behind.

    Attributes:
        states: hidden states [row, column, hidden] that enter a layer, by layer.
        extras: how many values a layer returns besides the hidden states, by layer; None where it
            returns them alone, not in a tuple.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    extras: dict[int, int | None] = field(default_factory=dict)


class Layers:
    """The decoder layers of a live model.

    Attributes:
        of: the layer of every MLP.
    """

    def __init__(self, model: nn.Module, mlps: Sequence[Mlp]) -> None:
        self.of = tuple(mlp.layout.layer for mlp in mlps)
        found = _LAYERS.match(mlps[0].layout.slots["down"].tensor)
        assert found is not None
        # All of them, also those that have no neurons.
        self._layers = list(model.get_submodule(found[1]).children())

    @contextmanager
    def held(self, starts: Sequence[int]) -> Iterator[Held]:
        """Within the block a run leaves behind what `resumed` needs to begin at these layers."""
        found = Held()
        with ExitStack() as undo:
            for number, layer in enumerate(self._layers[: max(starts, default=-1) + 1]):

                def enter(
                    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], number: int = number
                ) -> None:
                    found.states[number] = args[0] if args else kwargs["hidden_states"]

                def leave(module: Any, args: Any, out: Any, number: int = number) -> None:
                    found.extras[number] = len(out) - 1 if isinstance(out, tuple) else None

                if number in starts:
                    handle = layer.register_forward_pre_hook(enter, with_kwargs=True)
                    undo.callback(handle.remove)
                undo.callback(layer.register_forward_hook(leave).remove)
            yield found

    @contextmanager
    def resumed(self, held: Held, start: int, copies: int = 1) -> Iterator[None]:
        """Within the block a run of the same batch, `copies` times one below the other, begins at
        layer `start`. The layers are as they were afterwards, whatever happens."""
        states = held.states[start].repeat(copies, 1, 1)

        def enter(
            module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (states, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": states}

        with ExitStack() as undo:
            for number, layer in enumerate(self._layers[:start]):
                undo.enter_context(_skipped(layer, held.extras[number]))
            handle = self._layers[start].register_forward_pre_hook(enter, with_kwargs=True)
            undo.callback(handle.remove)
            yield


@contextmanager
def _skipped(layer: Any, extras: int | None) -> Iterator[None]:
    """Within the block a layer returns what it is given, in the form it usually does."""
    before = layer.__dict__.get("forward")  # a layer that is dispatched to a device has one

    def forward(*args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return states if extras is None else (states, *[None] * extras)

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


def layers_of(engine: Engine) -> Layers | None:
    """The decoder layers of an engine that lets us at them; None for the others."""
    return Layers(engine.model, engine.mlps) if isinstance(engine, HooksEngine) else None


def evaluate(
    engine: Engine,
    texts: Sequence[Encoded],
    changes: Sequence[Change],
    *,
    max_tokens: int = 1024,
    share: bool = True,
    progress: Progress = silent,
    what: str = "changed log-likelihoods",
) -> tuple[np.ndarray, np.ndarray]:
    """Summed log-probability (nats) of every text's answer, intact and under every change.

    Args:
        max_tokens: padded tokens in a batch; fewer where memory runs out.
        share: run common beginnings once; not for changes that tell texts apart. No beginning is
            remembered from the intact model, whose keys and values a change would make untrue.
        progress: told of log-likelihoods done.

    Returns:
        float64 [texts] and [changes, texts]; independent of batching but for rounding.

    Raises:
        ResourceError: memory does not even suffice for a single row.
    """
    intact, changed = np.empty(len(texts)), np.empty((len(changes), len(texts)))
    if not texts:
        return intact, changed
    layers = layers_of(engine)
    groups: dict[int, list[int]] = {}
    for number, change in enumerate(changes):
        if change.mlps:
            start = min(layers.of[mlp] for mlp in change.mlps) if layers else 0
            groups.setdefault(start, []).append(number)
    share = share and max(map(len, texts)) <= engine.shares_up_to
    passes = plan(texts, max_tokens, share=share, last=False, remember=False).passes
    done = 0

    def work(step: Pass) -> None:
        told = done
        at = list(step.texts)
        mine = [texts[text] for text in at]
        alone = _beside(step, 1)
        with layers.held(list(groups)) if layers else nullcontext() as held:
            intact[at] = score(engine, alone, mine, None, None)
        # What changes nothing; the others are filled in below.
        changed[:, at] = intact[at]

        def together(start: int, members: Sequence[int]) -> None:
            nonlocal told
            within: AbstractContextManager[Any] = nullcontext()
            if layers and held:
                within = layers.resumed(held, start, len(members))
            visit = _side_by_side([changes[number] for number in members], step)
            both = _beside(alone, len(members))
            try:
                with within:
                    found = score(engine, both, mine * len(members), None, lambda _: visit)
            except (MemoryError, RuntimeError) as error:
                if len(members) == 1 or not is_out_of_memory(error):
                    raise
                found = None
            if found is None:  # outside, where the failed attempt's tensors are gone
                half = len(members) // 2
                together(start, members[:half])
                together(start, members[half:])
                return
            changed[np.ix_(members, at)] = found.reshape(len(members), len(at))
            told += len(members) * len(at)
            progress(what, told, changed.size)

        room = max(1, max_tokens // step.ids.size)
        for start, members in sorted(groups.items()):
            for k in range(0, len(members), room):
                together(start, members[k : k + room])

    with torch.inference_mode():
        for whole in passes:
            in_parts(work, whole)
            done += sum(map(len, groups.values())) * len(whole.texts)
    progress(what, changed.size, changed.size)
    return intact, changed


@dataclass(frozen=True, eq=False)
class _Beside(Pass):
    """Copies of a pass, one below the other; texts are counted anew, copy after copy."""

    seen: np.ndarray

    def sees(self) -> np.ndarray:
        return self.seen


def _beside(step: Pass, copies: int) -> _Beside:
    def tile(array: np.ndarray) -> np.ndarray:
        return np.tile(array, (copies, *[1] * (array.ndim - 1)))

    return _Beside(
        step.prefix,
        tile(step.ids),
        tile(step.parents),
        tile(step.positions),
        tile(step.real),
        tuple(range(copies * len(step.texts))),
        tuple(places + c * step.ids.size for c in range(copies) for places in step.places),
        tile(step.sees()),
    )


def _side_by_side(changes: Sequence[Change], step: Pass) -> Visit:
    """The visit of a batch that holds the rows of `step` once for every change."""
    visits = [change.make(step) for change in changes]
    touched = [frozenset(change.mlps) for change in changes]
    touched_at_all = frozenset().union(*touched)
    size = step.ids.size

    def visit(mlp: int, rows: Tensor, places: Tensor) -> Tensor | None:
        if mlp not in touched_at_all:
            return None
        counts = [size] * len(changes)
        if len(rows) != size * len(changes):  # an expert: some tokens only, in their order
            counts = torch.bincount(places // size, minlength=len(changes)).tolist()
        parts = []
        for number, (mine, at) in enumerate(
            zip(rows.split(counts), places.split(counts), strict=True)
        ):
            new = visits[number](mlp, mine, at - number * size) if mlp in touched[number] else None
            parts.append(mine if new is None else new)
        return torch.cat(parts)

    return visit
