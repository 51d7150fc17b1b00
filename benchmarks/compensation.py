"""What compensation gives back: perplexity of SmolLM2-135M-Instruct after cuts, by ridge.

    .venv/bin/python benchmarks/compensation.py FOLDER [--tokens 2048]

FOLDER holds the official data. Calibrated on the built-in neutral passages, tried on the first
tokens of WikiText-2 in windows of 512, no BOS, float32. `before` and `after` are the mean over MLPs
of what the cut MLP writes otherwise than the intact one, over what that writes, squared, on the
calibration text: the least ridge always has the least of it, and not the least perplexity.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from glulens.datasets.neutral import load_neutral
from glulens.probes.perplexity import window_losses
from glulens.prune.compensation import Calibration, Correction, compensated
from glulens.prune.mlps import find_mlps
from glulens.prune.models import open_model
from glulens.prune.scoring import score_mlps
from glulens.prune.selection import NeuronSet, lowest

CUTS = (("ppm", 0.1), ("ppm", 0.5), ("random:0", 0.3))
RIDGES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)


def main(folder: Path, tokens: int) -> None:
    opened = open_model("smollm2-135m-instruct", dtype="float32")
    text = (folder / "wikitext2/wiki.test.raw").read_text(encoding="utf-8")
    ids = opened.tokenizer(text[: 20 * tokens])["input_ids"][:tokens]  # pyright: ignore
    calibration = Calibration.of(opened, [p.text for p in load_neutral().records])
    scores = score_mlps(find_mlps(opened.model), sorted({name for name, _ in CUTS}))

    def tried(cut: NeuronSet, corrections: tuple[Correction, ...]) -> float:
        with compensated(opened.model, cut, corrections):
            return window_losses(opened.model, ids).perplexity

    print(f"{calibration.tokens:,} tokens to calibrate on, {tokens:,} tried; ", end="")
    print(f"dense {window_losses(opened.model, ids).perplexity:.1f}\n")
    print("| cut | compensation | perplexity | before | after |\n|---|---|---:|---:|---:|")
    for name, fraction in CUTS:
        cut = lowest(scores[name], fraction)
        for method in ("none", "flap"):
            found = tried(cut, calibration.corrections(cut, method))
            print(f"| {name} {fraction:.0%} | {method} | {found:,.1f} | | |", flush=True)
        for ridge in RIDGES:
            made = calibration.corrections(cut, "lsq", ridge)
            errors = [fmean(getattr(c, at) for c in made) for at in ("before", "after")]
            print(
                f"| {name} {fraction:.0%} | lsq, ridge {ridge:g} | {tried(cut, made):,.1f} | "
                f"{errors[0]:.3f} | {errors[1]:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    given = parser.parse_args()
    main(given.folder, given.tokens)
