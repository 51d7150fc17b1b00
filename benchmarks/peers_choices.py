"""Multiple choice beside lm-evaluation-harness' `hf` model, with the bench of
`multiple_choice.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import multiple_choice
import torch
from peers_rows import Row, Side, contest, data_folder

from glulens.datasets.multiple_choice import Question, load_mmlu, load_truthfulqa
from glulens.probes.choices import MAX_TOKENS, encode_choices
from glulens.probes.engine import run
from glulens.probes.likelihood import layout

MC2, MMLU = "TruthfulQA MC2 after its primer", "MMLU, 5 shots, all of one subject"
SUBJECT = "anatomy"
LIMIT = "the same passes, no head, nothing read"


def rows(quick: bool) -> list[Row]:
    """All rows of the section; `quick` asks two questions of each task once."""
    data = data_folder()
    bench = multiple_choice.Bench()
    if not quick:
        multiple_choice.level()
    mc2 = load_truthfulqa(data, "mc2").records
    mmlu = load_mmlu(data, [SUBJECT]).records
    few, many, rounds = (2, 2, 1) if quick else (6, 16, 3)
    draws = [multiple_choice.sampled(mc2, few if k == 0 else many, k) for k in range(rounds + 1)]
    whole = mmlu[:2] if quick else mmlu
    shots = [mmlu[:few], *[whole] * (1 if quick else 2)]
    return [one(bench, MC2, draws, quick), one(bench, MMLU, shots, quick)]


def one(bench: Any, what: str, draws: Sequence[Sequence[Question]], quick: bool) -> Row:
    """A row: ours, the harness, and the forwards that ours makes, over the same draws."""
    if not quick:
        bench.choose_batch(draws[0])
    ways = {
        "glulens": lambda k: bench.ours(draws[k]),
        "lm-eval hf": lambda k: bench.theirs(draws[k]),
        LIMIT: lambda k: passes(bench, draws[k]),
    }
    taken, peaks, given = contest(ways, len(draws) - 1)
    sides = {
        name: Side(name, [s / len(draws[k]) for k, s in enumerate(seconds, 1)], peaks[name])
        for name, seconds in taken.items()
    }
    peer = sides["lm-eval hf"]
    peer.name += f", batches of {bench.harness.batch_size_per_gpu}"
    gap = multiple_choice.differ(given["glulens"], given["lm-eval hf"])
    note = f"{len(draws[1])} items a round"
    found = Row(what, "items", sides["glulens"], peer, sides[LIMIT], note=note).faster(8)
    return found.below("largest difference in nats", gap, 1e-3)


def passes(bench: Any, questions: Sequence[Question]) -> None:
    """Run the model over the passes that ours makes."""
    pairs = dict.fromkeys((q.context, choice) for q in questions for choice in q.choices)
    texts = [encode_choices(bench.encoder, context, [c])[0] for context, c in pairs]
    with torch.inference_mode():
        follow(bench.engine, texts, MAX_TOKENS)


def follow(engine: Any, texts: Any, max_tokens: int, *, share: bool = True) -> None:
    """Forwards over a plan of texts, with what is remembered of their beginnings and no head."""
    known: Any = ((), None)
    for step in layout(engine, texts, max_tokens, share=share, last=False).passes:
        if step.prefix and step.prefix != known[0]:
            ids = torch.tensor([step.prefix], device=engine.device)
            known = step.prefix, engine.remember(ids)
        run(engine, step, past=known[1] if step.prefix else None)
