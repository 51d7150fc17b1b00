"""First-order attributions against exact ablation, on random neurons of SmolLM2-135M-Instruct.

    python benchmarks/attribution_vs_ablation.py [FOLDER] [--neurons N] [--pairs N] [--steps N]
                                                 [--markdown docs/attribution.md]

For every property of the official data in FOLDER (`../shared/data` beside the checkout, or
GLULENS_TEST_DATA): gradient x activation and integrated gradients of random neurons, as the mean of
a minus b over pairs, against what silencing each neuron by itself does to the same mean. All
properties see the same neurons. With --markdown the page is written too, prose and all. About 20
minutes on two cores with nothing else to do, half of it integrated gradients.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import glulens as gl
from glulens.datasets.pairs import Pair, load_material
from glulens.probes.ablation import ablate_each
from glulens.probes.attribution import (
    Agreement,
    gradient_x_activation,
    incompleteness,
    integrated_gradients,
)
from glulens.probes.engine import make_engine
from glulens.probes.tokens import Encoder
from glulens.progress import on_stderr

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
PAGE = """\
# What a first-order attribution is worth

An attribution says of all neurons at once what silencing each of them would cost, from one backward
pass or a few. Silencing them one by one says it exactly, and takes a run each. This page holds the
one against the other:

```
{command}
```

{setting}

*Gradient x activation* is `gradient_x_activation` (what `glulens hypothesis` ranks by), *integrated
gradients* is `integrated_gradients` with {steps} steps: one layer's neurons are scaled together
from 0 to 1, later layers recomputed (arXiv 1703.01365; by layer as in arXiv 2403.19647). *Exact* is
LL(intact) - LL(neuron silenced), summed over the answer's tokens, at every position but 0, which
attributions leave out too. All three are means over pairs of member a minus member b. Correlations
are over neurons: they describe these neurons on these pairs, and are no test of anything.

{table}

Integrated gradients of a layer should sum up to what silencing the whole layer loses. Over all
texts and layers, the median distance from it is {off:.1%} of that loss (90th percentile
{off90:.1%}).

The {n} neurons were silenced on {texts} texts of {tokens:,} tokens in all.

## How to use it

`glulens.probes.attribution.check` does this for any attribution, over the largest neurons and over
random ones, and is meant to be printed beside it. Integrated gradients share out among a layer's
neurons what all of them do together, which is another question than what one of them does: where
single neurons are ranked, take gradient x activation. Layer 0 is shown apart because single neurons
there can break the model, which no first order foresees; one such neuron decides a Pearson
correlation, ranks bear it. Of neurons silenced *together* an attribution says nothing: take
`glulens.probes.ablation.ablate`. Where a norm follows the MLP (gemma2, gemma3, olmo2, glm4),
integrated gradients are far from complete, and `incompleteness` shows it.
"""


def table(
    pairs: Mapping[str, Sequence[Pair]],
    place: dict,
    estimates: dict[str, np.ndarray],
    exact: np.ndarray,
    later: np.ndarray,
) -> str:
    """Agreement by property and method; estimates and exact are [texts, neurons]."""
    lines = [
        "| property | pairs | attribution | Spearman | Pearson | Spearman, without layer 0 "
        "| Pearson, without layer 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, members in pairs.items():
        a, b = ([place[getattr(pair, side)] for pair in members] for side in "ab")
        truth = (exact[a] - exact[b]).mean(0)
        for method, values in estimates.items():
            mine = (values[a].astype(float) - values[b]).mean(0)
            whole, beyond = (Agreement.between(mine[k], truth[k]) for k in (slice(None), later))
            lines.append(
                f"| {name} | {len(members)} | {method} | {whole.spearman:.3f} | "
                f"{whole.pearson:.3f} | {beyond.spearman:.3f} | {beyond.pearson:.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    read = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    read.add_argument("folder", type=Path, nargs="?",
                      default=Path(os.environ.get("GLULENS_TEST_DATA", BESIDE)))  # fmt: skip
    read.add_argument("--neurons", type=int, default=256)
    read.add_argument("--pairs", type=int, default=8, help="of each property")
    read.add_argument("--steps", type=int, default=4, help="of integrated gradients")
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--markdown", type=Path, help="write the page here")
    given = read.parse_args()

    opened = gl.open_model("smollm2-135m-instruct")
    engine, encoder = make_engine(opened), Encoder(opened.tokenizer)
    pairs = load_material(given.folder, limit=given.pairs, seed=given.seed).pairs
    unique = dict.fromkeys(t for members in pairs.values() for p in members for t in (p.a, p.b))
    place = {text: number for number, text in enumerate(unique)}
    texts = [encoder.text(text) for text in unique]
    total = sum(engine.widths)
    chosen = np.sort(np.random.default_rng(given.seed).choice(total, given.neurons, replace=False))
    ends = np.cumsum(engine.widths)
    layers = np.searchsorted(ends, chosen, side="right")
    neurons = [
        (int(at), int(n - ends[at] + engine.widths[at]))
        for n, at in zip(chosen, layers, strict=True)
    ]
    with on_stderr() as progress:
        gradient = gradient_x_activation(engine, texts, progress=progress)
        integrated = integrated_gradients(engine, texts, steps=given.steps, progress=progress)
        exact = ablate_each(engine, texts, neurons, progress=progress).T
        off = incompleteness(engine, texts, integrated)
    sums = np.stack([p.sum(1, dtype=float) for p in np.split(integrated, ends[:-1], axis=1)], 1)
    relative = np.abs(off) / np.abs(sums - off)
    estimates = {
        "gradient x activation": gradient[:, chosen],
        "integrated gradients": integrated[:, chosen],
    }
    later = layers > 0
    page = PAGE.format(
        command="python benchmarks/attribution_vs_ablation.py"
        f" --neurons {given.neurons} --pairs {given.pairs} --steps {given.steps}"
        f" --seed {given.seed} --markdown docs/attribution.md",
        setting=f"SmolLM2-135M-Instruct, float32, official data; {given.neurons} neurons drawn "
        f"evenly from {total:,}, the same for every property, {int(later.sum())} of them beyond "
        "layer 0.",
        steps=given.steps,
        table=table(pairs, place, estimates, exact, later),
        off=float(np.median(relative)),
        off90=float(np.quantile(relative, 0.9)),
        n=given.neurons,
        texts=len(texts),
        tokens=sum(map(len, texts)),
    )
    print(page)
    if given.markdown:
        given.markdown.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
