"""What measuring efficiency would cost, said before it is done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ModelError
from ..prune.mlps import find_mlps
from ..prune.models import OpenedModel, find_model, read_config
from ..prune.selection import cut_count
from .efficiency_models import Size, check_models, cut_name, measure
from .efficiency_options import EfficiencyOptions


@dataclass(frozen=True)
class EfficiencyPlan:
    """Memory, tokens and time of a measurement.

    Attributes:
        sizes: of the models, without weights.
        weight_bytes: of all together; cuts of one model share what the cut leaves alone.
        cache_bytes: keys and values of the largest batch, of one model at a time.
        runs: pieces of work that are timed.
        steps: forwards in all.
        seconds: rough; the longest that answers can take.
    """

    sizes: tuple[Size, ...]
    weight_bytes: int
    cache_bytes: int
    runs: int
    steps: int
    seconds: float

    def lines(self) -> list[str]:
        """The plan in words."""
        return [
            *(
                f"{s.name}: {s.neurons:,} neurons, {s.parameters:,} parameters, "
                f"{s.weight_bytes / 1e6:,.0f} MB"
                for s in self.sizes
            ),
            f"memory: {self.weight_bytes / 1e6:,.0f} MB of weights side by side, "
            f"{self.cache_bytes / 1e6:,.0f} MB of keys and values",
            f"runs: {self.runs:,}, forwards: at most {self.steps:,}",
            f"time: about {self.seconds / 60:.1f} min, if no answer ends before --longest",
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"schema_version": 1, **asdict(self)}


def plan_efficiency(
    models: Sequence[str | OpenedModel], options: EfficiencyOptions
) -> EfficiencyPlan:
    """Plan a measurement from configs, without loading weights.

    Raises:
        UsageError, ModelError: as the measurement itself.
    """
    check_models(models, options)
    whole = [_skeleton(model, options) for model in models]
    sizes, weights = [], 0
    for name, model in whole:
        intact = measure(model, name, 0.0)
        weights += intact.weight_bytes
        for fraction in options.fractions or (0.0,):
            size, own = _cut(model, intact, fraction, options)
            sizes.append(size)
            weights += own
    cache = max(_cache(model, options) for _, model in whole)
    rows = [*options.batches, *[1] * options.prompts]
    written = [options.new_tokens] * len(options.batches) + [options.longest] * options.prompts
    steps = options.rounds * len(sizes) * sum(written)
    speed, bandwidth = _machine(options.device)
    seconds = 0.0
    for size in sizes:
        for batch, tokens in zip(rows, written, strict=True):
            read = 2 * size.parameters * batch * options.prompt_tokens / speed
            step = max(size.weight_bytes / bandwidth, 2 * size.parameters * batch / speed)
            seconds += options.rounds * (read + tokens * step)
    return EfficiencyPlan(
        tuple(sizes), weights, cache, options.rounds * len(sizes) * len(rows), steps, seconds
    )


def _skeleton(model: str | OpenedModel, options: EfficiencyOptions) -> tuple[str, Any]:
    """A model without weights, in the dtype that it would have."""
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(model, OpenedModel):
        return model.name, model.model
    source = find_model(model, fetch=False)
    config = read_config(source)
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    stored = getattr(config, "dtype", None) or torch.float32
    dtype = (
        (torch.float32 if device == "cpu" else stored)
        if options.dtype == "auto"
        else getattr(torch, options.dtype)
    )
    try:
        with torch.device("meta"):
            return source.name, AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, KeyError) as error:
        raise ModelError(f"{model}: no plan can be made of its config ({error})") from error


def _cut(model: Any, intact: Size, fraction: float, options: EfficiencyOptions) -> tuple[Size, int]:
    """The size of a cut, and the bytes that it does not share with the intact model."""
    if not fraction:
        return intact, 0
    layouts = [mlp.layout for mlp in find_mlps(model)]
    gone = [cut_count(layout.width, fraction) for layout in layouts]
    pairs = list(zip(layouts, gone, strict=True))
    parameters = intact.parameters - sum(n * w.parameters_per_neuron for w, n in pairs)
    neurons = intact.neurons - sum(gone)
    of_mlps = sum((w.width - n) * w.parameters_per_neuron for w, n in pairs)
    item = intact.weight_bytes / intact.parameters
    name = cut_name(intact.name, options.criterion, fraction, options.compensate)
    ratio = neurons / len(layouts) / layouts[0].hidden
    return (
        Size(name, fraction, neurons, ratio, parameters, round(parameters * item)),
        round(of_mlps * item),
    )


def _cache(model: Any, options: EfficiencyOptions) -> int:
    """Bytes of keys and values of the longest batch: 2 x layers x heads x size x tokens x rows."""
    import torch

    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    tokens = max(options.batches) * (options.prompt_tokens + options.new_tokens)
    item = torch.empty(0, dtype=model.dtype).element_size()
    return 2 * config.num_hidden_layers * kept * size * tokens * item


def _machine(name: str) -> tuple[float, float]:
    """Operations and bytes a second that matrix products reach here just now, in float32."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    a, b = torch.ones(512, 2048, device=device), torch.ones(2048, 2048, device=device)
    wide = torch.ones(8192, 4096, device=device)  # 134 MB: beyond a processor's caches
    row = torch.ones(4096, device=device)

    def rate(work: Any) -> float:
        work()
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < 0.3:
            float(work().sum())  # waits for the device
            done += 1
        return done / (time.perf_counter() - begun)

    speed = 2 * 512 * 2048**2 * rate(lambda: a @ b)
    return speed, 4 * wide.numel() * rate(lambda: wide @ row)
