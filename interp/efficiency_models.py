"""The models whose efficiency is measured: really narrower ones, side by side in memory.

A cut of an opened model shares with it every tensor that the cut leaves alone; what it costs beyond
is its own MLPs. A mask would have the same answers and the intact model's speed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from ..errors import UsageError
from ..progress import Progress, silent
from ..prune.compensation import Calibration, Correction, Method, install
from ..prune.mlps import find_mlps
from ..prune.models import Dtype, OpenedModel, open_model
from ..prune.scoring import score_mlps
from ..prune.selection import lowest
from ..prune.surgery import resize
from .efficiency_options import EfficiencyOptions


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        name: what it is called, with the cut.
        fraction: of the neurons of every MLP that were cut here.
        neurons: in all MLPs.
        ratio: mean width of an MLP over the size of the residual stream.
        parameters: numbers, each counted once.
        weight_bytes: what they take by themselves.
    """

    name: str
    fraction: float
    neurons: int
    ratio: float
    parameters: int
    weight_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Contender:
    """A live model that takes part."""

    size: Size
    model: Any
    tokenizer: Any
    device: Any
    chat: bool


def make_contenders(
    models: Sequence[str | OpenedModel],
    options: EfficiencyOptions,
    progress: Progress = silent,
) -> list[Contender]:
    """Open the models, or one and its cuts.

    Raises:
        UsageError: fractions of several models; neither several models nor fractions.
        ModelError, ResourceError: as `open_model`.
    """
    check_models(models, options)
    opened = [
        model
        if isinstance(model, OpenedModel)
        else open_model(
            model,
            dtype=cast(Dtype, options.dtype),
            device=options.device,
            progress=progress,
        )
        for model in models
    ]
    if not options.fractions:
        return [_contender(o, o.model, o.name, 0.0, options) for o in opened]
    return _cuts(opened[0], options, progress)


def check_models(models: Sequence[str | OpenedModel], options: EfficiencyOptions) -> None:
    """Raise `UsageError` unless these can be measured."""
    if not models:
        raise UsageError("no model given; name one or more, as in smollm2-135m-instruct")
    if options.fractions and len(models) > 1:
        raise UsageError("--fractions cuts one model; give one, or leave --fractions out")


def cut_name(name: str, criterion: str, fraction: float, compensate: str) -> str:
    """What a cut is called."""
    if not fraction:
        return name
    return f"{name} -{fraction:.0%} {criterion}" + (
        f" +{compensate}" if compensate != "none" else ""
    )


def calibration_texts() -> list[str]:
    """What compensation is calibrated on: the built-in neutral passages."""
    from ..datasets.neutral import load_neutral

    return [passage.text for passage in load_neutral().records]


def _cuts(opened: OpenedModel, options: EfficiencyOptions, progress: Progress) -> list[Contender]:
    scores = None
    if any(options.fractions):
        scores = score_mlps(find_mlps(opened.model), [options.criterion], progress=progress)
    calibration = None
    if options.compensate != "none":
        calibration = Calibration.of(opened, calibration_texts(), progress=progress)
    found = []
    for fraction in options.fractions:
        model: Any = opened.model
        if fraction:
            assert scores is not None
            cut = lowest(scores[options.criterion], fraction)
            corrections: tuple[Correction, ...] = ()
            if calibration is not None:
                corrections = calibration.corrections(cut, cast(Method, options.compensate))
            # Shared for now: surgery exchanges the tensors of MLPs and leaves the old ones whole.
            shared = {id(p): p for p in [*opened.model.parameters(), *opened.model.buffers()]}
            model = resize(copy.deepcopy(opened.model, cast(Any, shared)), cut)
            if corrections:
                install(model, corrections)
        name = cut_name(opened.name, options.criterion, fraction, options.compensate)
        found.append(_contender(opened, model, name, fraction, options))
    return found


def _contender(
    opened: OpenedModel, model: Any, name: str, fraction: float, options: EfficiencyOptions
) -> Contender:
    chat = options.chat and bool(getattr(opened.tokenizer, "chat_template", None))
    return Contender(measure(model, name, fraction), model, opened.tokenizer, opened.device, chat)


def measure(model: Any, name: str, fraction: float) -> Size:
    """The size of a live model, or of one without weights (torch's `meta` device)."""
    mlps = find_mlps(model)
    parameters = list(model.parameters())  # tied ones come once
    return Size(
        name=name,
        fraction=fraction,
        neurons=sum(mlp.width for mlp in mlps),
        ratio=sum(mlp.width for mlp in mlps) / len(mlps) / mlps[0].layout.hidden,
        parameters=sum(p.numel() for p in parameters),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
    )
