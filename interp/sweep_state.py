"""What every process of a sweep holds: the model, loaded once, and the items to ask it."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import UsageError
from ..progress import Progress, silent
from ..prune.models import OpenedModel, open_model
from .sweep_items import SweepState, ask
from .sweep_options import SweepOptions


def load_state(name: str, options: SweepOptions, *, progress: Progress = silent) -> SweepState:
    """Open a model by name and build the items: what a worker does once.

    Raises:
        UsageError, ModelError, DataError, ResourceError: see `open_model` and `open_state`.
    """
    opened = open_model(
        name,
        dtype=options.dtype,  # pyright: ignore[reportArgumentType]
        device=options.device,
        progress=progress,
    )
    return open_state(opened, options)


def leaves_of(options: SweepOptions) -> dict[str, list[Any]]:
    """lm-eval's task objects by the names that were asked for; needs no model.

    Raises:
        UsageError: lm-eval is not installed, or an unknown task.
        DataError: a task's data are missing or malformed.
    """
    from .harness_tasks import local_tasks

    return {
        name: list(local_tasks([name], options.data, num_fewshot=options.num_fewshot))
        for name in options.tasks
    }


def open_state(
    opened: OpenedModel, options: SweepOptions, leaves: dict[str, list[Any]] | None = None
) -> SweepState:
    """Wrap an opened model for lm-eval and build the items.

    Args:
        leaves: what `leaves_of` gave, where it is at hand.

    Raises:
        UsageError: as `leaves_of`; or no chat template.
        DataError: as `leaves_of`.
    """
    from .harness import GlulensLM

    if options.chat and not getattr(opened.tokenizer, "chat_template", None):
        raise UsageError("this model has no chat template; leave --chat out")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = GlulensLM.of(
        opened,
        max_tokens=options.max_tokens,
        batch_size=options.batch_size,
        max_gen_toks=options.max_gen_toks,
        add_bos={"true": True, "false": False}.get(options.add_bos, options.add_bos),
    )
    tasks = {
        name: ask(
            name,
            found,
            lm,
            limit=options.limit_of(name),
            pick=options.pick,
            chat=options.chat,
            seed=options.seed,
        )
        for name, found in (leaves or leaves_of(options)).items()
    }
    method: Any = options.compensate
    return SweepState(lm, tasks, method)
