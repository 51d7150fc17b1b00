"""Gradient x activation against exact ablation, on random neurons of SmolLM2-135M-Instruct.

    .venv/bin/python benchmarks/attribution_vs_ablation.py [neurons] [questions]

For every property of the built-in sample: the attribution of random neurons, averaged over pairs,
against what silencing each of them does to the same average.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy import stats

import glulens
from glulens.datasets.pairs import load_material
from glulens.probes.ablation import ablate_each
from glulens.probes.contrasts import encode_pairs, record_contrasts
from glulens.probes.engine import make_engine
from glulens.probes.tokens import Encoder
from glulens.progress import on_stderr


def main(neurons: int = 64, questions: int = 8) -> None:
    opened = glulens.open_model("smollm2-135m-instruct")
    engine, encoder = make_engine(opened), Encoder(opened.tokenizer)
    pairs = load_material(limit=questions).pairs
    recorded = record_contrasts(engine, encoder, pairs)
    chosen = np.random.default_rng(0).choice(sum(engine.widths), neurons, replace=False)
    ends = np.cumsum(engine.widths)
    layers = np.searchsorted(ends, chosen, side="right")
    places = [
        (int(at), int(n - ends[at] + engine.widths[at]))
        for n, at in zip(chosen, layers, strict=True)
    ]
    later = layers > 0
    print(f"{neurons} random neurons ({int(later.sum())} beyond layer 0), {questions} pairs")
    print("property       Spearman  Pearson  Pearson beyond layer 0")
    for name, members in pairs.items():
        with on_stderr() as progress:
            exact = ablate_each(engine, encode_pairs(encoder, members), places, progress=progress)
        exact = (exact[:, 0::2] - exact[:, 1::2]).mean(1)
        approximate = recorded[name].attribution.mean(0)[chosen]
        print(
            f"{name:13s}  {stats.spearmanr(approximate, exact).statistic:8.3f}"
            f"  {stats.pearsonr(approximate, exact).statistic:7.3f}"
            f"  {stats.pearsonr(approximate[later], exact[later]).statistic:7.3f}"
        )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
