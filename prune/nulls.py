"""Models that know nothing of what a trained one knows, for controls: untrained, and shuffled."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from .mlps import find_mlps
from .models import OpenedModel


def untrained(opened: OpenedModel, seed: int = 0) -> Any:
    """A model of the same shape whose weights were drawn at random, as training would begin.

    It holds none of the opened model's memory; torch's own random state stays what it was.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(opened.model.config, dtype=opened.model.dtype)
    return model.to(opened.device).eval().requires_grad_(False)


def row_shuffled(opened: OpenedModel, seed: int = 0) -> Any:
    """A copy in whose MLPs rows of gate, rows of up and columns of down have each changed places.

    Within every MLP and matrix the same neurons' weights are there, in another order, each matrix
    in one of its own: what a row of gate is paired with is left to chance. Norms, attention and
    embeddings stay, and so does every distribution of weights.
    """
    model = copy.deepcopy(opened.model)
    with torch.no_grad():
        for number, mlp in enumerate(find_mlps(model)):
            for place, role in enumerate(("gate", "up", "down")):
                rng = np.random.default_rng(np.random.SeedSequence([seed, number, place]))
                order = torch.from_numpy(rng.permutation(mlp.width))
                for name in (role, f"{role}_bias") if role != "down" else (role,):
                    weight = mlp.view(name)
                    if weight is None:
                        continue
                    axis = 1 if name == "down" else 0
                    moved = weight.index_select(axis, order.to(weight.device)).clone()
                    weight.copy_(moved)
    return model
