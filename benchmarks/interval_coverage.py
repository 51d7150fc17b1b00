"""Why the interval of an effect is effect +- 1.96 bootstrap standard errors.

    .venv/bin/python benchmarks/interval_coverage.py [simulations]

Simulates item contrasts of correlated neurons, with a systematic part that is larger in neurons of
low score and drawn anew each time, as items are. Prints how often four 95 % intervals hold the mean
effect: the one used, that of items alone, percentiles of the resampled effect, and the basic
(mirrored) bootstrap; and how often the null is rejected.
"""

from __future__ import annotations

import sys

import numpy as np

from glulens.interp.localisation import associate
from glulens.interp.localiser import Localiser
from glulens.interp.resamples import Resamples

WIDTH, LAYERS, ITEMS, DRAWS = 200, 4, 60, 200


def main(simulations: int = 200) -> None:
    rng = np.random.default_rng(0)
    scores = [rng.random(WIDTH) for _ in range(LAYERS)]
    localiser = Localiser({"score": scores})
    spread = 0.5 + 2 * np.concatenate(scores)
    loads = rng.normal(size=(8, WIDTH * LAYERS))
    slope = (1.2 - np.concatenate(scores)) ** 2
    print(f"{simulations} simulations of {ITEMS} items, {WIDTH * LAYERS} neurons")
    print("signal  effect  used  items alone  percentile  basic  p < 0.05")
    for signal in (0.0, 0.5, 1.0, 3.0):
        effects, errors, items, tails, rejected = [], [], [], [], []
        for _ in range(simulations):
            mu = rng.normal(size=len(slope)) * slope
            noise = rng.normal(size=(ITEMS, 8)) @ loads + rng.normal(size=(ITEMS, len(mu))) * spread
            contrasts = (noise + signal * mu).astype(np.float32)
            found = associate(
                localiser,
                "simulated",
                contrasts,
                "attribution",
                Resamples.sign_flips(ITEMS, DRAWS, rng),
                Resamples.bootstrap(ITEMS, DRAWS, rng),
                rng,
            )
            (row,), resampled = found.associations, found.resampled[:, 0]
            effects.append(row.effect)
            errors.append(row.se)
            items.append(resampled.std(ddof=1))
            tails.append(np.quantile(resampled, [0.025, 0.975]))
            rejected.append(row.p < 0.05)
        effect, error, tail = np.array(effects), np.array(errors), np.array(tails)
        alone = np.array(items)
        true = effect.mean()
        mirrored = 2 * effect[:, None] - tail[:, ::-1]

        def holds(interval: np.ndarray, true: float = true) -> float:
            return float(((interval[:, 0] < true) & (true < interval[:, 1])).mean())

        used = np.stack([effect - 1.96 * error, effect + 1.96 * error], 1)
        narrow = np.stack([effect - 1.96 * alone, effect + 1.96 * alone], 1)
        print(
            f"{signal:6.1f}  {true:+.3f}  {holds(used):4.2f}  {holds(narrow):11.2f}"
            f"  {holds(tail):10.2f}  {holds(mirrored):5.2f}  {np.mean(rejected):8.2f}"
        )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
