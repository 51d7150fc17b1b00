"""Recording every neuron beside TransformerLens and nnsight, with the contestants of
`recording.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import recording
from peers_rows import Row, Side, contest, data_folder

ROUNDS, QUESTIONS, SINGLE = 3, 30, 4
"""Rounds, questions a round, and questions a round for those who go prompt by prompt."""
SHARED = "record all answers, common beginnings shared by glulens"
ALONE = "record all answers, nothing shared"


def rows(quick: bool) -> list[Row]:
    """All rows of the section; `quick` does one round of two questions."""
    recording.DATA = data_folder()
    rounds, questions, single = (1, 2, 1) if quick else (ROUNDS, QUESTIONS, SINGLE)
    bench = recording.Bench(peers=True)
    order = np.random.default_rng(recording.SEED).permutation(recording.ALL)
    turns = np.resize(order, (rounds + 1, questions)).tolist()
    whole = [bench.make(turn) for turn in turns]
    part = [bench.make(turn[:single]) for turn in turns]
    batched: dict[str, Any] = {
        "glulens": bench.ours,
        "glulens, unshared": bench.ours_unshared,
        "bare forward, with logits": bench.bare,
        "the same passes, nothing watched": bench.shared_headless,
        "TransformerLens, batches": bench.lens_spared,
        "nnsight, batches": bench.nnsight_spared,
    }
    by_prompt: dict[str, Any] = {
        "TransformerLens, prompt by prompt": bench.lens_single,
        "nnsight, prompt by prompt": bench.nnsight_single,
    }
    warm = bench.make(turns[0][:1])
    for way in (batched | by_prompt).values():
        way(warm)
    ways = {name: lambda k, way=way: way(whole[k]) for name, way in batched.items()}
    ways |= {name: lambda k, way=way: way(part[k]) for name, way in by_prompt.items()}
    taken, peaks, given = contest(ways, rounds)
    worst = recording.agree({name: given[name] for name in batched})
    same = f"means and RMS agree to {worst:.0e} of the RMS"
    sides = {}
    for name, seconds in taken.items():
        asked = part if name in by_prompt else whole
        costs = [s / asked[k].texts for k, s in enumerate(seconds, 1)]
        sides[name] = Side(name, costs, peaks[name])
    ours, unshared = sides["glulens"], sides["glulens, unshared"]
    limit = sides["the same passes, nothing watched"]
    found = [
        Row(SHARED, "answers", ours, sides[name], limit, note=same).faster(2.5)
        for name in ("TransformerLens, batches", "nnsight, batches")
    ]
    # Their rounds are other questions than ours, so the limit of ours says nothing there.
    found += [Row(SHARED, "answers", ours, sides[name]).faster(6) for name in by_prompt]
    bare = sides["bare forward, with logits"]
    return [*found, Row(ALONE, "answers", unshared, None, bare).within(1)]
