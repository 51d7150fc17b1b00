"""IFEval's checker, offline: lm-evaluation-harness' own code, which else downloads as it starts.

The harness checks instructions with langdetect and NLTK's sentence tokenizer (Punkt), whose trained
parameters (`punkt_tab`) it fetches where they are missing. Here nothing is fetched. Where they are
on this machine (`NLTK_DATA`, or one of NLTK's folders) they are used, and the results are the
harness' own. Where not, the same algorithm runs with the abbreviations below in place of trained
parameters, and `Checker.tokenizer` says so. Two of 25 kinds of instruction look at sentences found
that way: `length_constraints:number_sentences`, and `change_case:capital_word_frequency`, where
only a word before a full stop can change. (Others that speak of sentences cut them by the harness'
own rule.)

Two things make the harness' results depend on chance; here an answer always gets the same one.
langdetect draws at random: its seed is set. And what an instruction leaves open the checker draws
(prompt 1122 wants the letter "#", which it takes for none, and counts another): each prompt draws
from its own key.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

from ..errors import DataError, UsageError

TRAINED = "NLTK's punkt_tab"
BUILT_IN = "Punkt with built-in abbreviations (NLTK's punkt_tab is not on this machine)"
CONTENTLESS = " ".join(["the"] * 1200)
"""An answer without content, long enough for any length that IFEval asks for."""
LANGDETECT_SEED = 0

_ABBREVIATIONS = """
c d e f g h k l m n p r s t v w
mr mrs ms dr prof gen col lt maj rep reps sen st sr jr messrs adm
jan feb aug sep sept oct nov dec tues wed fri
inc ltd co cos corp bros ave ft vs yr
a.m p.m u.s u.s.a u.s.s.r u.k u.n d.c a.d ph.d m.b.a n.y l.a n.j n.c s.c n.h
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
"""Words whose full stop ends no sentence by itself, lower case, without that full stop. Chosen to
do as NLTK's parameters do, not to be right: these take "e.g." and "etc." for ends of sentences."""
_STARTERS = """
although among both but despite even he however i if in instead it many meanwhile most nor since so
some the there these they this though thus under when while yet
"""
STARTERS = frozenset(_STARTERS.split())
"""Words that begin a sentence where they follow an abbreviation's full stop."""


@dataclass(frozen=True)
class Checked:
    """What one answer obeys, instruction by instruction.

    Attributes:
        key: the prompt's number in IFEval.
        instructions: kinds, such as `punctuation:no_comma`.
        strict: whether the answer follows them as it is.
        loose: whether it, or it without its first or last line or its asterisks, does.
    """

    key: int
    instructions: tuple[str, ...]
    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


@dataclass(frozen=True)
class Checker:
    """The harness' checker, loaded.

    Attributes:
        tokenizer: what finds sentences: `TRAINED` or `BUILT_IN`.
    """

    tokenizer: str

    def check(self, document: Mapping[str, Any], answer: str) -> Checked:
        """Check an answer.

        Args:
            document: a row of IFEval: `key`, `prompt`, `instruction_id_list`, `kwargs`.
            answer: the model's.

        Raises:
            DataError: an instruction that the checker does not know.
        """
        try:
            found = process_results(document, [answer])
        except KeyError as error:
            raise DataError(
                f"IFEval {document.get('key')}: the checker knows no {error.args[0]!r}; take the "
                "official input_data.jsonl"
            ) from error
        return Checked(
            int(document["key"]),
            tuple(document["instruction_id_list"]),
            tuple(map(bool, found["inst_level_strict_acc"])),
            tuple(map(bool, found["inst_level_loose_acc"])),
        )


def process_results(document: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """What the harness' task makes of an answer, draws fixed: for its definition of IFEval."""
    from lm_eval.tasks.ifeval import utils

    before = random.getstate()
    random.seed(int(document["key"]))
    try:
        return utils.process_results(document, results)
    finally:
        random.setstate(before)


def load_checker(*, trained: bool | None = None) -> Checker:
    """Load the harness' checker without a download.

    There is one in a process: the last call decides how sentences are found.

    Args:
        trained: whether to use NLTK's trained parameters; None: where they are at hand.

    Raises:
        UsageError: a library is missing.
        DataError: the trained parameters are asked for and not at hand.
    """
    for name in ("lm_eval", "nltk", "langdetect", "immutabledict"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"IFEval's checker needs {name}: pip install 'glulens[eval]'")
    import langdetect

    there = _trained_are_there()
    if trained and not there:
        raise DataError(
            "NLTK's punkt_tab is not on this machine; fetch it with `python -m nltk.downloader "
            "punkt_tab`, or do without"
        )
    with _no_download():
        from lm_eval.tasks.ifeval import instructions_util

    langdetect.DetectorFactory.seed = LANGDETECT_SEED
    use = there if trained is None else trained
    _exchange_tokenizer(instructions_util, built_in=not use)
    return Checker(TRAINED if use else BUILT_IN)


def accuracies(checked: Sequence[Checked]) -> dict[str, float]:
    """IFEval's four metrics, 0 to 1, by the harness' names."""
    if not checked:
        raise DataError("no answer was checked")
    found = {}
    for way in ("strict", "loose"):
        kept = [getattr(one, way) for one in checked]
        found[f"prompt_level_{way}_acc"] = sum(map(all, kept)) / len(kept)
        found[f"inst_level_{way}_acc"] = sum(map(sum, kept)) / sum(map(len, kept))
    return found


def by_kind(checked: Iterable[Checked]) -> dict[str, dict[str, float]]:
    """By kind of instruction: how many there are (`n`), and which share was followed (`strict`,
    `loose`)."""
    counts: dict[str, list[int]] = {}
    for one in checked:
        for kind, strict, loose in zip(one.instructions, one.strict, one.loose, strict=True):
            row = counts.setdefault(kind, [0, 0, 0])
            for place, add in enumerate((1, strict, loose)):
                row[place] += add
    return {
        kind: {"n": n, "strict": strict / n, "loose": loose / n}
        for kind, (n, strict, loose) in sorted(counts.items())
    }


def contentless(documents: Iterable[Mapping[str, Any]], answer: str = CONTENTLESS) -> list[Checked]:
    """What an answer without content follows: the floor that IFEval's scores stand on."""
    checker = load_checker()
    return [checker.check(document, answer) for document in documents]


def _trained_are_there() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


@contextmanager
def _no_download() -> Iterator[None]:
    """Within the block NLTK says that all is there: the harness fetches what is missing as its
    checker is imported."""
    import nltk

    before = nltk.data.find
    nltk.data.find = lambda *_, **__: None
    try:
        yield
    finally:
        nltk.data.find = before


def _exchange_tokenizer(util: Any, *, built_in: bool) -> None:
    """Say how the harness' checker finds sentences. Nothing of NLTK itself is touched."""
    import nltk

    if not hasattr(util, "_glulens_tokenizer"):
        util._glulens_tokenizer = util._get_sentence_tokenizer
    if not built_in:
        util._get_sentence_tokenizer, util.nltk = util._glulens_tokenizer, nltk
        return
    util._get_sentence_tokenizer = _punkt
    util.nltk = SimpleNamespace(tokenize=nltk.tokenize, data=nltk.data, word_tokenize=_words)


@cache
def _punkt() -> Any:
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    parameters.sent_starters = set(STARTERS)
    return PunktSentenceTokenizer(parameters)


def _words(text: str) -> list[str]:
    """As `nltk.word_tokenize`: sentences, then words."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    split = NLTKWordTokenizer().tokenize
    return [word for sentence in _punkt().tokenize(text) for word in split(sentence)]
