"""What tests share: a real small model, a trained tiny one, random ones, and the official data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers: a core each, before anyone counts them
    for threads in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(threads, "1")

import torch

import glulens
from glulens.prune.models import OpenedModel

# Machines differ and are busy: time is no test's business.
hypothesis.settings.register_profile("glulens", deadline=None)
hypothesis.settings.load_profile("glulens")

REPOSITORY = Path(glulens.__file__).parent
OFFICIAL = Path(os.environ.get("GLULENS_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder of official data sets, or a skip."""
    if not (OFFICIAL / "truthfulqa").is_dir():
        pytest.skip("no official data: set GLULENS_TEST_DATA to the folder that holds them")
    return OFFICIAL


@pytest.fixture(scope="session")
def smollm() -> OpenedModel:
    """SmolLM2-135M-Instruct. Shared: tests that change weights must work on a copy."""
    return glulens.open_model("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def stories(official: Path) -> OpenedModel:
    """A trained Llama of 260 thousand parameters (5 layers x 172 neurons). Shared, as above."""
    from stories import open_stories

    return open_stories(official / "stories260k")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """Makes small random Llamas: for algebra, never for a claim."""

    def make(seed: int = 0, **changes: Any) -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        settings: dict[str, Any] = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 100,
            "max_position_embeddings": 128,
        }
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
        # Transformers' initial weights are so small that every output is nearly the same.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.15)
        return model.eval().requires_grad_(False)

    return make
