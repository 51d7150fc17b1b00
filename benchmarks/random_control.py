"""Does a weight criterion choose better than chance? SmolLM2, a tenth of every layer, WikiText-2.

    python benchmarks/random_control.py FOLDER

FOLDER holds `wikitext2/wiki.test.raw`. Every criterion cuts floor(0.1 * 1536) = 153 neurons of each
of 30 layers (or of 29, layer 0 whole), by masking, which equals pruning. Perplexity over the first
20,000 tokens in windows of 512, no BOS, float32. Prints a Markdown table. About 20 minutes on two
cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import glulens as gl
from glulens.probes.perplexity import window_losses
from glulens.progress import on_stderr
from glulens.prune import Budget, choose, find_mlps, masked, score_mlps

TOKENS, WINDOW, FRACTION = 20_000, 512, 0.1
RANDOM = [f"random:{seed}" for seed in range(10)]
NAMED = ["ppm", "maw", "vow", "pon", "l2", "reversed:ppm", "shuffled:ppm:0"]


def main(folder: Path) -> None:
    text = (folder / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    opened = gl.open_model("smollm2-135m-instruct")
    ids = opened.tokenizer(text)["input_ids"][:TOKENS]
    mlps = find_mlps(opened.model)
    layouts = [mlp.layout for mlp in mlps]
    scores = score_mlps(mlps, [*NAMED, *RANDOM])
    whole = Budget(fraction=FRACTION)
    spared = Budget(fraction=FRACTION, layers={0: 0.0})
    found: dict[tuple[str, bool], float] = {}
    with on_stderr() as progress:
        dense = window_losses(opened.model, ids, window=WINDOW).perplexity
        for name in (*NAMED, *RANDOM):
            for spare in (False, True):
                cut = choose(layouts, scores[name], spared if spare else whole)
                with masked(opened.model, cut):
                    losses = window_losses(opened.model, ids, window=WINDOW)
                found[name, spare] = losses.perplexity
                progress("perplexities", len(found), 2 * len(NAMED + RANDOM))
    print(f"SmolLM2-135M-Instruct, {len(ids):,} tokens of WikiText-2; dense {dense:.1f}\n")
    print("| cut a tenth by | perplexity | beaten by random draws | layer 0 whole | beaten by |")
    print("|---|---|---|---|---|")
    for name in NAMED:
        cells = []
        for spare in (False, True):
            better = sum(found[other, spare] < found[name, spare] for other in RANDOM)
            cells += [f"{found[name, spare]:,.1f}", f"{better} of {len(RANDOM)}"]
        print(f"| `{name}` | {' | '.join(cells)} |")
    for name in RANDOM:
        print(f"| `{name}` | {found[name, False]:,.1f} | | {found[name, True]:,.1f} | |")
    for spare in (False, True):
        draws = np.array([found[name, spare] for name in RANDOM])
        print(
            f"\nrandom, {'layer 0 whole' if spare else 'all layers'}: median "
            f"{np.median(draws):.1f}, range {draws.min():.1f} .. {draws.max():.1f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
