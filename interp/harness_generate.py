"""Text that a model writes for the harness: greedy or drawn, side by side, masked or whole.

Transformers writes it, with the harness' own rule for where to stop; what is added is the
intervention, and what became of each text: its length, and whether the model ended it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from ..errors import ResourceError, UsageError, is_out_of_memory
from ..probes.engine import Intervention, Visit
from ..probes.hooks import HooksEngine
from ..progress import Progress
from ..prune.mlps import watching

if TYPE_CHECKING:
    from .harness import GlulensLM

WHAT = "writing (texts)"


@dataclass(frozen=True)
class Generated:
    """What a model wrote after a context.

    Attributes:
        text: as the harness sees it: up to the first stop sequence, without special tokens.
        tokens: written before the text's end, the token that ends it not counted.
        ended: whether the model wrote a token that ends a text; otherwise it was stopped, by a stop
            sequence or at the most tokens it was given.
        stopped: whether a stop sequence of the task cut the text.
    """

    text: str
    tokens: int
    ended: bool
    stopped: bool


def generate(
    lm: GlulensLM, requests: Sequence[tuple[str, dict[str, Any]]], progress: Progress
) -> list[Generated]:
    """Write after every context, those of like settings side by side, the longest first.

    Args:
        lm: the model.
        requests: context and the harness' settings for writing.
        progress: told of texts done.

    Raises:
        UsageError: the engine cannot write, or what is to be written exceeds the context.
        ResourceError: memory does not suffice for a single text.
    """
    if not isinstance(lm.engine, HooksEngine):
        raise UsageError(f"the {lm.engine.name} engine cannot write text; take --engine hooks")
    encoded = [tuple(lm.tok_encode(context)) for context, _ in requests]
    groups: dict[str, list[int]] = {}
    for number, (_, settings) in enumerate(requests):
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(number)
    found: dict[int, Generated] = {}
    for members in groups.values():
        members.sort(key=lambda k: (-len(encoded[k]), encoded[k]))
        writer = _Writer(lm, lm.engine, requests[members[0]][1])
        for begin in range(0, len(members), lm.batch_size):
            rows = members[begin : begin + lm.batch_size]
            texts = writer.in_parts([encoded[k] for k in rows])
            found |= dict(zip(rows, texts, strict=True))
            progress(WHAT, len(found), len(requests))
    return [found[k] for k in range(len(requests))]


class _Writer:
    """Writes with one kind of settings."""

    def __init__(self, lm: GlulensLM, engine: HooksEngine, settings: dict[str, Any]) -> None:
        from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

        self._lm, self._engine = lm, engine
        self._model: Any = lm.opened.model
        given: dict[str, Any] = dict(normalize_gen_kwargs(settings, 256))
        self._most = min(given.pop("max_gen_toks"), lm.max_gen_toks or 1 << 40)
        if self._most >= lm.max_length:
            raise UsageError(
                f"max_gen_toks {self._most} leaves no room in the model's context of "
                f"{lm.max_length}; give a smaller max_gen_toks"
            )
        self._ends = _ends(lm)
        end = lm.tokenizer.decode([lm.eot_token_id], skip_special_tokens=False)  # pyright: ignore
        until = given.pop("until", None)
        self._until: list[str] = handle_stop_sequences(list(until or []), eos=str(end))
        self._asked = [stop for stop in until or [] if stop and stop != end]
        given.pop("max_length", None)
        if given.get("do_sample") is False or given.get("temperature") == 0.0:
            given |= {"do_sample": False}
            # Only sampling has them; a model's own defaults would be warned of.
            given |= {"temperature": None, "top_p": None, "top_k": None}
        self._given = given

    def in_parts(self, texts: Sequence[tuple[int, ...]]) -> list[Generated]:
        """All texts, in halves where memory runs out."""
        try:
            return self._write(texts)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if len(texts) == 1:
                raise ResourceError(
                    "out of memory writing a single text; lower max_gen_toks, or take --dtype "
                    "bfloat16 or another --device"
                ) from error
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(texts) // 2
        return self.in_parts(texts[:half]) + self.in_parts(texts[half:])

    def _write(self, texts: Sequence[tuple[int, ...]]) -> list[Generated]:
        texts = [text[-(self._lm.max_length - self._most) :] for text in texts]
        width = max(map(len, texts))
        pad = self._pad()
        ids = torch.full((len(texts), width), pad)
        real = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):  # padding on the left: all write in the same column
            ids[row, width - len(text) :] = torch.tensor(text)
            real[row, width - len(text) :] = 1
        device = self._engine.device
        stop = _Stop(self._lm.tokenizer, self._until, width, len(texts))
        with torch.inference_mode(), _silencing(self._engine, self._lm.intervene):
            written = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=real.to(device),
                max_new_tokens=self._most,
                pad_token_id=pad,
                stopping_criteria=StoppingCriteriaList([stop]),
                use_cache=True,
                **self._given,
            )
        return [self._read(row[width:]) for row in written.tolist()]

    def _pad(self) -> int:
        found = getattr(self._lm.tokenizer, "pad_token_id", None)
        return self._lm.eot_token_id if found is None else int(found)

    def _read(self, ids: list[int]) -> Generated:
        end = next((k for k, token in enumerate(ids) if token in self._ends), None)
        ended, mine = end is not None, ids[:end]
        whole = text = self._decode(mine)
        for stop in self._until:
            text = text.split(stop)[0] if stop else text
        stopped = text != whole
        if stopped:  # count what remains: the shortest beginning that has all of the text
            low, high = 0, len(mine)
            while low < high:
                middle = (low + high) // 2
                if len(self._decode(mine[:middle])) >= len(text):
                    high = middle
                else:
                    low = middle + 1
            mine, ended = mine[:low], False
        return Generated(text, len(mine), ended, stopped)

    def _decode(self, ids: list[int]) -> str:
        return str(self._lm.tokenizer.decode(ids, skip_special_tokens=True))


class _Stop(StoppingCriteria):
    """The harness' rule, told row by row: a row that has a stop sequence writes no further, and
    does not keep the others waiting."""

    def __init__(self, tokenizer: Any, until: Sequence[str], width: int, rows: int) -> None:
        self._tokenizer, self._width = tokenizer, width
        self._until = [stop for stop in until if stop]
        # A stop sequence may be written in other tokens than its own: look back a little further.
        sizes = [len(tokenizer(s, add_special_tokens=False)["input_ids"]) for s in self._until]
        self._back = max(sizes, default=0) + 2
        self._done = [False] * rows

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        tails = input_ids[:, self._width :][:, -self._back :].tolist()
        for row, tail in enumerate(tails):
            if not self._done[row]:
                said = self._tokenizer.decode(tail)
                self._done[row] = any(stop in said for stop in self._until)
        return torch.tensor(self._done, device=input_ids.device)


def _ends(lm: GlulensLM) -> set[int]:
    """Tokens that end a text."""
    config: Any = lm.opened.model.generation_config
    listed = getattr(config, "eos_token_id", None)
    return {lm.eot_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}


@contextmanager
def _silencing(engine: HooksEngine, intervene: Intervention | None) -> Iterator[None]:
    """Within the block the intervention holds, whatever is run, a step at a time included."""
    if intervene is None:
        yield
        return
    visit: list[Visit] = []

    def before(module: Any, args: Any, given: dict[str, Any]) -> None:
        positions = given.get("position_ids")
        if positions is None:
            ids = given["input_ids"] if given.get("input_ids") is not None else args[0]
            past = given.get("past_key_values")
            first = past.get_seq_length() if past is not None else 0
            positions = torch.arange(first, first + ids.shape[1]).expand(len(ids), -1)
        visit[:] = [intervene(positions.flatten().cpu())]

    def look(mlp: int, rows: Tensor, places: Tensor) -> Tensor | None:
        return visit[0](mlp, rows, places)

    handle = engine.model.base_model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with watching(engine.mlps, look):
            yield
    finally:
        handle.remove()
