"""A model for lm-evaluation-harness: its tasks and metrics, scored by glulens.

    from glulens.interp.harness import GlulensLM, simple_evaluate
    simple_evaluate("glulens", {"pretrained": NAME, "criterion": "ppm", "fraction": 0.2}, [TASK])

Importing this module registers the model as `glulens`. The harness (0.4.13) loads no plugins: its
own `lm_eval` command knows only the models on its list. `glulens lm-eval ARGUMENTS` is that same
command after this module was imported, and nothing else.

The tokens are those of the harness' own `hf` model, special tokens that a text spells out included
(chat templates need that), and so is what happens to a text longer than the model's context: it is
cut on the left. What differs is how they are run: common beginnings once, what is asked twice once,
and the head only where an answer stands. Probabilities are float32 whatever the model's dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import DataError, UsageError
from ..probes.engine import Engine, Intervention, make_engine, silencer
from ..probes.likelihood import loglikelihoods
from ..probes.tokens import Encoded, from_template
from ..progress import Progress, on_stderr, silent
from ..prune.models import OpenedModel, open_model
from ..prune.selection import NeuronSet
from .harness_cut import check_cut, chosen_cut

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
except ImportError as missing:
    raise UsageError(
        "evaluation needs lm-evaluation-harness: pip install 'glulens[eval]'"
    ) from missing

if TYPE_CHECKING:
    from .harness_generate import Generated

AT_ONCE = 16_384
"""Requests that are encoded and laid out together: beginnings are shared among these."""
MAX_TOKENS = 1024
"""Padded tokens in a pass."""
BATCH_SIZE = 8
"""Texts that are written side by side."""
_UNSET = 2048
"""The harness' context of a model that names none."""


class GlulensLM(TemplateLM):
    """A model of glulens as the harness wants one.

    Attributes:
        opened: the model with its tokenizer.
        engine: how it is run.
        intervene: replaces activations in all that follows; may be exchanged between evaluations
            (see `set_cut`), which costs nothing.
        progress: told of requests done.
        generated: what the last call of `generate_until` wrote, in the order of its requests.
    """

    def __init__(
        self,
        pretrained: str | OpenedModel,
        *,
        criterion: str | None = None,
        fraction: float | None = None,
        expansion: float | None = None,
        width: int | None = None,
        cut: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        **settings: Any,
    ) -> None:
        """Open a model, and cut it in memory where that is asked for.

        Args:
            pretrained: what `open_model` takes.
            criterion: what neurons are ranked by, of their weights, controls such as `random:0`
                included; with one of the next three.
            fraction: of each MLP's neurons, cut.
            expansion: kept width over hidden size.
            width: neurons kept in each MLP.
            cut: a file that `NeuronSet.save` wrote, in place of a criterion.
            dtype: of the weights, as `open_model` takes it.
            device: a torch device; None is `auto`. The harness' command asks for `cuda:0` whether
                there is one or not: then `auto`, too.
            settings: what `of` takes.

        Raises:
            UsageError: arguments that are unknown or contradict each other.
            ModelError, DataError, ResourceError: see `open_model`.
        """
        check_cut(criterion, {"fraction": fraction, "expansion": expansion, "width": width}, cut)
        loud: Any = {"progress": None} if "progress" not in settings else {}
        if not isinstance(pretrained, OpenedModel):
            with on_stderr() as progress:
                pretrained = open_model(
                    pretrained,
                    dtype=cast(Any, dtype),
                    device=_device(device),
                    progress=progress,
                )
        chosen = chosen_cut(pretrained, criterion, fraction, expansion, width, cut)
        if chosen is not None:
            from ..prune.surgery import resize

            resize(pretrained.model, chosen)
        self._set_up(pretrained, **settings, **loud)

    @classmethod
    def of(cls, opened: OpenedModel, **settings: Any) -> GlulensLM:
        """Wrap a model that is open, without changing it.

        Args:
            opened: the model.
            engine: made of the model by default (`hooks`). Only `hooks` can write text.
            intervene: replaces activations.
            add_bos: `auto` is what the tokenizer does by itself; True and False overrule it. The
                harness added none to Llama's texts up to 0.4.9.1, and does what the tokenizer does
                since.
            max_tokens: padded tokens in a pass.
            max_length: the context, if not the model's own.
            max_gen_toks: most tokens that are written, whatever a task asks for.
            batch_size: texts that are written side by side.
            progress: told of requests done; None draws bars on stderr.

        Raises:
            UsageError: an unknown setting or a bad value.
        """
        lm = cls.__new__(cls)
        lm._set_up(opened, **settings)
        return lm

    def _set_up(
        self,
        opened: OpenedModel,
        *,
        engine: Engine | None = None,
        intervene: Intervention | None = None,
        add_bos: bool | str = "auto",
        max_tokens: int = MAX_TOKENS,
        max_length: int | None = None,
        max_gen_toks: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,  # the harness' command always passes it
        progress: Progress | None = silent,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise UsageError(f"unknown model argument {next(iter(unknown))!r}; {_ALLOWED}")
        for name, number in {
            "max_tokens": max_tokens,
            "max_length": max_length,
            "max_gen_toks": max_gen_toks,
        }.items():
            if number is not None and (type(number) is not int or number < 1):
                raise UsageError(f"{name} {number!r}: a whole number from 1 on is needed")
        super().__init__()
        self.opened = opened
        self.engine = engine or make_engine(opened)
        self.intervene = intervene
        self.tokenizer = opened.tokenizer
        self.progress = progress
        self.generated: list[Generated] = []
        self.max_gen_toks = max_gen_toks
        self.max_length = max_length or _context(opened)
        self.batch_size = _batch_size(batch_size)
        self._device = self.engine.device
        self._max_tokens = max_tokens
        self._add_bos = {"auto": None, True: True, False: False}.get(add_bos, add_bos)
        if self._add_bos not in (None, True, False):
            raise UsageError(f"add_bos {add_bos!r}; allowed are auto, true, false")
        if self._add_bos and _role(opened, "bos") is None:
            raise UsageError(f"add_bos: the tokenizer of {opened.name} has no BOS; give auto")
        self._table: dict[int, int] = {}
        # A question's choices come one after the other: its context is encoded once.
        self._ids = lru_cache(4)(self._encode)

    def set_cut(self, cut: NeuronSet | None) -> None:
        """Silence a set of neurons from now on, which is what cutting it does; None: none."""
        if cut is not None:
            cut.check(self.engine.widths)
        self.intervene = None if cut is None else silencer(cut)

    # What the harness asks of a model's tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        found = _role(self.opened, "eos")
        if found is None:
            raise DataError(f"{self.opened.name} names no token that ends a text; take another")
        return found

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or where there is none, EOS."""
        found = _role(self.opened, "bos")
        return self.eot_token_id if found is None else found

    @property
    def tokenizer_name(self) -> str:
        """The harness' key for cached requests."""
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model."""
        model = self.opened.model
        return {
            "model_name": self.opened.name,
            "model_num_parameters": sum(p.numel() for p in model.parameters()),
            "model_dtype": str(model.dtype),
            "model_sha": self.opened.source.revision or "",
            "widths": sorted(set(self.engine.widths)),
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids as the `hf` model has them, but that `add_bos=true` is kept to.

        (The `hf` model hands it to the tokenizer, and some tokenizers add none even so.)
        """
        return list(self._ids(string, add_special_tokens))

    def _encode(self, string: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        wanted = self._add_bos if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and self._begins_with_prefix(string):
            wanted = False
        given = {} if wanted is None else {"add_special_tokens": wanted}
        tokenizer: Any = self.tokenizer
        ids = tokenizer(string, **given)["input_ids"]
        if wanted and self._add_bos:
            bos = _role(self.opened, "bos")
            ids = ids if ids[:1] == [bos] else [bos, *ids]
        # Numbers are shared among texts: else they would take four times the memory.
        return tuple(self._table.setdefault(token, token) for token in ids)

    def _begins_with_prefix(self, string: str) -> bool:
        tokenizer: Any = self.tokenizer
        prefix = tokenizer.decode([self.prefix_token_id])
        return bool(prefix) and string.startswith(prefix)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's template writes it; a system's part goes where the template
        does not take one."""
        import jinja2

        def written(turns: list[dict[str, str]]) -> str:
            tokenizer: Any = self.tokenizer
            return tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        if not getattr(self.tokenizer, "chat_template", None):
            raise UsageError("this model has no chat template; leave --apply_chat_template out")
        try:
            return written(chat_history)
        except jinja2.TemplateError:
            return from_template(
                self.tokenizer,
                [turn for turn in chat_history if turn["role"] != "system"],
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

    # The three questions

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-probability (nats) of continuations after their contexts, and whether each token is
        the model's first choice.

        Args:
            requests: the harness' instances, whose arguments are (context, continuation).

        Raises:
            DataError: a continuation without a token, or longer than the model's context.
            ResourceError: memory does not suffice for a single row.
        """
        pairs = [request.args for request in requests]
        found: list[tuple[float, bool]] = []
        with self._telling() as progress:
            for begin in range(0, len(pairs), AT_ONCE):
                texts = [self._text(*pair) for pair in pairs[begin : begin + AT_ONCE]]
                found += self._score(texts, _further(progress, begin, len(pairs)))
        for pair, answer in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, answer)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        texts = [
            self._joined(before, after, context, continuation)
            for (context, continuation), before, after in requests
        ]
        return self._score(texts, silent)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability (nats) of whole texts, in windows of the context's length.

        A text's first token is predicted from `prefix_token_id`, and that of a later window from
        the token before: the harness' windows.

        Args:
            requests: the harness' instances, whose arguments are (text,).
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        texts: list[Encoded] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for before, predicted in map(make_disjoint_window, windows):
                texts.append(Encoded((*before, *predicted), len(before)))
                owner.append(number)
        with self._telling() as progress:
            scored = [value for value, _ in self._score(texts, progress)]
        found = (
            np.bincount(owner, scored, len(requests)).tolist() if owner else [0.0] * len(requests)
        )
        for request, value in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after its contexts; also see `generated`.

        Args:
            requests: the harness' instances, whose arguments are (context, settings).

        Raises:
            UsageError: the engine cannot write, or what is to be written exceeds the context.
            ResourceError: memory does not suffice for a single text.
        """
        from .harness_generate import generate

        with self._telling() as progress:
            self.generated = generate(self, [request.args for request in requests], progress)
        for request, written in zip(requests, self.generated, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, written.text)
        return [written.text for written in self.generated]

    def _text(self, context: str, continuation: str) -> Encoded:
        if context:
            return self._joined(*self._encode_pair(context, continuation), context, continuation)
        after = self.tok_encode(continuation, add_special_tokens=False)
        if after[:1] == [self.prefix_token_id]:
            return self._joined(after[:1], after[1:], context, continuation)
        return self._joined([self.prefix_token_id], after, context, continuation)

    def _joined(
        self, before: Sequence[int], after: Sequence[int], context: str, continuation: str
    ) -> Encoded:
        if not after:
            raise DataError(f"no token of its own in {continuation!r} after {context[-60:]!r}")
        if len(after) > self.max_length:
            raise DataError(
                f"a continuation of {len(after)} tokens exceeds the context of {self.max_length}: "
                f"{continuation[:60]!r}; take another model or leave it out"
            )
        ids = (*before, *after)[-(self.max_length + 1) :]  # the last one is only predicted
        return Encoded(ids, len(ids) - len(after))

    def _score(self, texts: Sequence[Encoded], progress: Progress) -> list[tuple[float, bool]]:
        places: dict[Encoded, int] = {}
        where = [places.setdefault(text, len(places)) for text in texts]
        greedy = np.zeros(len(places), bool)
        found = loglikelihoods(
            self.engine,
            list(places),
            intervene=self.intervene,
            max_tokens=self._max_tokens,
            greedy=greedy,
            progress=progress,
            what="log-likelihoods (requests)",
        )
        return [(float(found[k]), bool(greedy[k])) for k in where]

    def _telling(self) -> AbstractContextManager[Progress]:
        return on_stderr() if self.progress is None else nullcontext(self.progress)


register_model("glulens")(GlulensLM)


def simple_evaluate(
    model: str | GlulensLM,
    model_args: Mapping[str, Any] | str | None = None,
    tasks: Sequence[Any] = (),
    **options: Any,
) -> dict[str, Any]:
    """The harness' own `simple_evaluate`, which now knows the model `glulens`.

    Args:
        model: `glulens`, or one that is made.
        model_args: what `GlulensLM` takes; None for one that is made.
        tasks: names, or tasks as `harness_tasks.local_tasks` makes them: then the harness' own
            definitions, thousands of files, are not read.
        options: see the harness.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    if tasks and not any(isinstance(task, str | dict) for task in tasks):
        options.setdefault("task_manager", TaskManager(include_defaults=False))
    evaluate: Any = lm_eval.simple_evaluate
    return evaluate(model, model_args, list(tasks), **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block the harness says nothing below an error."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


_ALLOWED = (
    "allowed are pretrained, criterion, fraction, expansion, width, cut, dtype, device, add_bos, "
    "max_tokens, max_length, max_gen_toks, batch_size"
)


def _further(progress: Progress, begin: int, total: int) -> Progress:
    """Counts on from `begin`; of what is asked twice the second is done with the first."""
    return lambda what, done, part: progress(what, begin + done, total)


def _device(given: str | None) -> str:
    import torch

    wanted = str(given or "auto")
    return "auto" if wanted.startswith("cuda") and not torch.cuda.is_available() else wanted


def _role(opened: OpenedModel, role: str) -> int | None:
    """The token that plays a role, by the tokenizer or else by the model's config."""
    found = getattr(opened.tokenizer, f"{role}_token_id", None)
    if found is None and not hasattr(opened.tokenizer, f"{role}_token_id"):
        config: Any = opened.model.config
        found = getattr(config.get_text_config(), f"{role}_token_id", None)
    return found[0] if isinstance(found, list) else found


def _context(opened: OpenedModel) -> int:
    """The most tokens that the model reads, found where the harness looks."""
    config: Any = opened.model.config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (found := getattr(config.get_text_config(), name, None)) is not None:
            return int(found)
    found = getattr(opened.tokenizer, "model_max_length", None)
    return int(found) if found is not None and found < 1 << 40 else _UNSET


def _batch_size(given: int | str | None) -> int:
    if given is None or str(given).startswith("auto"):
        return BATCH_SIZE
    if not str(given).isdecimal() or int(given) < 1:
        raise UsageError(f"batch_size {given!r}: a whole number from 1 on, or auto")
    return int(given)
