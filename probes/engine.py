"""What every engine can do: run token ids through a model while its neurons are watched.

An engine is one way of reaching the activations of a model's MLP neurons (what enters `down_proj`).
All do the same through one method, so that everything above is written once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..errors import UsageError

if TYPE_CHECKING:
    from ..prune.models import OpenedModel
    from ..prune.selection import NeuronSet
    from .trees import Pass

Visit = Callable[[int, Tensor, Tensor], Tensor | None]
"""`visit(mlp, rows, places)`: sees the activations [n, neurons] that pass an MLP, in order of MLPs,
and the flat index [n] of each row's token in the batch (all of them, in order, in a dense model;
those routed to it, for an expert). May return rows to put in their place."""

Intervention = Callable[[Tensor], Visit]
"""Given the position in its text of every token of a batch, flat, makes the visit of that batch."""

ENGINES = ("hooks", "lens", "nnsight")


@dataclass(frozen=True)
class Context:
    """How the tokens of a batch hang together, where they are not plain texts.

    Attributes:
        positions: position of each token in its text, [row, column].
        sees: what each token attends to, bool [row, column, past + column].
        past: what `Engine.remember` gave for the beginning that all rows share, or None.
    """

    positions: Tensor
    sees: Tensor
    past: Any = None


class Engine(Protocol):
    """A model whose neurons can be watched and replaced."""

    name: str
    widths: tuple[int, ...]
    """Neurons, by MLP."""
    device: torch.device
    """Where token ids must be."""
    dense: bool
    """Whether every MLP sees every token; experts see those routed to them."""
    shares_up_to: int
    """The longest text whose beginning may be shared with others; 0 where `forward` takes no
    context."""

    def forward(
        self,
        ids: Tensor,
        *,
        keep: Tensor | None = None,
        visit: Visit | None = None,
        context: Context | None = None,
    ) -> Tensor | None:
        """Run a batch.

        Args:
            ids: token ids [row, column], padded on the right. Attention is causal, so what
                stands right of a text cannot change it and no padding mask is needed.
            keep: flat indices (row * columns + column) of the tokens whose logits are wanted;
                without it the head is not run.
            visit: called with the activations of every MLP.
            context: for rows that are no plain texts.

        Returns:
            Logits [len(keep), vocabulary], or None without `keep`.
        """
        ...

    def remember(self, ids: Tensor, visit: Visit | None = None) -> Any:
        """Run the beginning of texts, [1, column]; what comes back is a `Context.past`."""
        ...


LIBRARIES = {"lens": ("transformer_lens", "TransformerLens"), "nnsight": ("nnsight", "nnsight")}
"""What engines need: the module, and what people call it. Both are extras of the engine's name."""


def check_engine(name: str, *, remote: bool = False) -> None:
    """Say before any work whether an engine can be made.

    Raises:
        UsageError: unknown engine, its library is not installed, or it cannot run remotely.
    """
    if name not in ENGINES:
        raise UsageError(f"unknown engine {name!r}; allowed are {', '.join(ENGINES)}")
    if remote and name != "nnsight":
        raise UsageError(f"engine {name!r} runs here only; --remote needs --engine nnsight")
    if name in LIBRARIES and importlib.util.find_spec(LIBRARIES[name][0]) is None:
        raise UsageError(
            f"the {name} engine needs {LIBRARIES[name][1]}: pip install 'glulens[{name}]'"
        )


def make_engine(opened: OpenedModel, name: str = "hooks", *, remote: bool = False) -> Engine:
    """The engine called `name` on an opened model.

    Raises:
        UsageError: see `check_engine`.
        ModelError: the model has no neurons the engine can reach.
    """
    check_engine(name, remote=remote)
    if name == "hooks":
        from .hooks import HooksEngine

        return HooksEngine(opened.model)
    if name == "lens":
        from .lens import LensEngine

        return LensEngine(opened.model)
    from .remote import NnsightEngine

    return NnsightEngine(opened, remote=remote)


def silencer(cut: NeuronSet, *, spare_first: bool = False) -> Intervention:
    """Zeroes the activations of a set: pruning by another name.

    Args:
        spare_first: leave position 0 as it is. Models park huge activations there that belong to no
            text; attributions leave it out, and so must the ablation that checks them.
    """
    index = [torch.from_numpy(chosen.copy()) for chosen in cut.indices]

    def intervene(positions: Tensor) -> Visit:
        def visit(mlp: int, rows: Tensor, places: Tensor) -> Tensor | None:
            if not len(index[mlp]):
                return None
            changed = rows.index_fill(1, index[mlp].to(rows.device), 0)
            if spare_first:
                first = positions.to(rows.device)[places] == 0
                changed = torch.where(first[:, None], rows, changed)
            return changed

        return visit

    return intervene


def run(
    engine: Engine,
    step: Pass,
    *,
    past: Any = None,
    keep: Tensor | None = None,
    visit: Visit | None = None,
) -> Tensor | None:
    """Run one pass of a plan; `past` is what the engine remembers of its prefix."""
    ids = torch.from_numpy(step.ids).to(engine.device)
    context = None
    if not step.is_plain:
        positions = torch.from_numpy(step.positions).to(engine.device)
        context = Context(positions, torch.from_numpy(step.sees()).to(engine.device), past)
    return engine.forward(ids, keep=keep, visit=visit, context=context)
