"""What a hypothesis run says: in the terminal, as Markdown, as one HTML page, and on disk."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..prune.expressions import is_control
from ..rundir import FIGURES, NEURONS, column_types, save_frame, write_manifest, writing
from .causal import EVERY
from .content import Block, Picture, Report, Section, grid
from .localisation import FAINT
from .neurons import COLUMNS
from .rows import (
    answerer_rows,
    association_rows,
    causal_rows,
    check_rows,
    difference_rows,
    enrichment_rows,
    null_rows,
    overlap_rows,
    property_rows,
    specific_rows,
    tenth_rows,
)
from .run_files import kept_table, write_pages, write_tables
from .verdict import ALPHA, SESOI

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .result import HypothesisResult


def terminal(result: HypothesisResult) -> RenderableType:
    """Tables and verdict for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [
        grid("Pairs", property_rows(result), 2),
        grid(
            "Magnitude against function: |attribution|, and |d_z|, within layers",
            association_rows(result, full=False),
            2,
            grouped=True,
        ),
    ]
    if result.effects:
        parts.append(grid("Silencing a tenth of every layer", causal_rows(result, full=False), 1))
    if result.answerers:
        parts.append(grid("TruthfulQA, and what its scores are worth", answerer_rows(result), 1))
    if result.verdict.checks:
        parts.append(grid("Controls", check_rows(result), 4))
    parts.append(
        Text(
            "rho: rank correlation of weight score and |attribution|. null: its mean with labels "
            "swapped within items. seen: how much of a true effect shows at this n. corrected: "
            "(rho - null) / seen. q: Benjamini-Hochberg. lowest tenth: share of |attribution| it "
            "holds.\n",
            style="dim",
        )
    )
    parts.append(Text(f"Verdict: {result.verdict.sentence}", style="bold"))
    return Group(*parts)


def report(result: HypothesisResult) -> Report:
    """The whole report as data."""
    model, options = result.manifest["model"], result.manifest["options"]
    about = (
        f"Model `{model['name']}` ({model['family']}, {model['layers']} layers, "
        f"{model['neurons']:,} neurons, {model['dtype']}, weights sha256 "
        f"`{model['sha256'][:16]}…`), {result.manifest['started']}, seed {options['seed']}."
    )
    sections = [_rule(), _controls(result), _pairs(result), _localisation(result)]
    if result.nulls:
        sections.append(_nulls(result))
    if result.effects:
        sections.append(_silencing(result))
    if result.answerers:
        sections.append(_floors(result))
    if result.overlaps:
        sections.append(_rivals(result))
    if result.decoding is not None:
        sections.append(_decoding())
    sections += [_limits(), _data(result)]
    return Report(
        "Do misconceptions live in low-magnitude neurons?",
        f"Verdict: {result.verdict.sentence}",
        about,
        sections,
    )


def _rule() -> Section:
    return Section(
        "The rule, stated before the run",
        [
            "The effect is Spearman's rank correlation, within layers, of a neuron's magnitude "
            "with its |attribution| to the difference between a false and a true answer, beyond "
            "its mean with true and false swapped within questions, corrected for attenuation. A "
            "negative effect agrees with the claim.",
            f"- *supported*: effect at most -{SESOI:g}, q below {ALPHA:g}, the effect minus the "
            "control's has a 95 % interval below 0, and no required control failed\n"
            f"- *contradicted*: effect at least +{SESOI:g}, q below {ALPHA:g}, and no required "
            "control failed\n"
            "- *no evidence*: the 95 % interval of the effect, or of the effect minus the "
            f"control's, excludes -{SESOI:g} and below\n"
            "- *cannot tell*: all else; where the attenuation is below "
            f"{FAINT:g}, or less than two standard errors from 0, nothing is corrected and nothing "
            "can be told",
        ],
    )


def _controls(result: HypothesisResult) -> Section:
    smallest = result.verdict.smallest_detectable
    power = (
        "No effect could be located, so no smallest one can be given."
        if smallest is None
        else f"The smallest effect that 4 of 5 such runs would tell from 0: {smallest:.3f}."
    )
    blocks: list[Block] = [power]
    if result.verdict.checks:
        blocks.append(kept_table(check_rows(result), "checks", 4))
    return Section("Power and controls", blocks)


def _pairs(result: HypothesisResult) -> Section:
    return Section(
        "Pairs",
        [
            kept_table(property_rows(result), "properties", 2),
            "Answers are matched in length as far as the data allow; log-likelihoods are sums over "
            "answer tokens.",
        ],
    )


def _localisation(result: HypothesisResult) -> Section:
    options = result.manifest["options"]
    family = sum(not is_control(r.criterion) and r.q == r.q for r in result.associations)
    blocks: list[Block] = [
        kept_table(association_rows(result), "associations", 2),
        "rho: Spearman's correlation within each layer, averaged over layers. null: its mean when "
        f"labels are swapped within items at random ({options['permutations']} draws). Effect: rho "
        "minus that mean, +- 1.96 standard errors: of items "
        f"({options['bootstraps']} resamples) and of orders without meaning together. Seen: how "
        "much of a true effect shows at this number of items, from planted orders (standard error "
        "in brackets); corrected: effect divided by it, its error included. p: two-sided, from the "
        f"null. q: Benjamini-Hochberg over {family} tests (criteria given, without controls x "
        "properties without the control x |attribution|, |d_z| and AUROC). Given loudness: the "
        "effect, as seen, with mean |activation| and the norm of `down` partialled out; its p from "
        "the same null. `balanced` and `gauged` are the first criterion in other parametrisations "
        "of the same function.",
        Picture(
            "localisation", "Corrected effects by criterion and property; grey: too small to matter"
        ),
        Picture("null", "The primary statistic under swapped labels, and as observed"),
        kept_table(tenth_rows(result), "tenths", 2),
        "Shares of |attribution| (mass) and of the top 1 % of neurons in each tenth by the first "
        "criterion, within layers (under the null).",
        Picture("mass", "Share of |attribution| in each tenth, by layer and property"),
        Picture("magnitude", "Magnitude against attribution in every layer"),
        kept_table(enrichment_rows(result), "enrichment", 3),
        "Numbers of the top 1 % of each layer in its lowest and highest tenth, all layers "
        "together, against drawing neurons at random (hypergeometric). That null takes neurons for "
        "independent, which they are not: descriptive.",
    ]
    if result.differences:
        blocks += [
            kept_table(difference_rows(result), "differences", 3),
            "Corrected effects of the misconception contrast minus those of others.",
        ]
    blocks.append(Picture("umap", "Neurons by functional profile, coloured by magnitude and layer"))
    return Section("Magnitude against function, within layers", blocks)


def _nulls(result: HypothesisResult) -> Section:
    return Section(
        "Models that know nothing",
        [
            kept_table(null_rows(result), "null-models", 2),
            "*untrained*: the same shape with random weights. *row-shuffled*: in every MLP rows of "
            "gate, rows of up and columns of down have changed places, each matrix in an order of "
            "its own. The primary test with q = p.",
        ],
    )


def _silencing(result: HypothesisResult) -> Section:
    def sizes(alone: bool) -> str:
        n = {r.quantity: r.n_items for r in result.effects if (r.layer > EVERY) == alone}
        return ", ".join(f"{name} {count}" for name, count in n.items())

    blocks: list[Block] = [
        kept_table(causal_rows(result), "causal"),
        "Changes against the intact model with 95 % bootstrap intervals over items (n: "
        f"{sizes(alone=False)}). Margins are LL(preferred) - LL(other) in nats per item; damage is "
        "the rise of the mean negative log-likelihood of neutral text in nats per token. mean: "
        "neurons replaced by their mean on neutral text, position 0 left alone; zero: what pruning "
        "does.",
        Picture("causal", "Every tenth of all layers, beside random tenths"),
        kept_table(specific_rows(result), "causal", 2),
        "z: against random tenths of the same counts. At equal damage: what is left of the change "
        "beyond the line of change on damage through the random tenths (*: damage outside theirs, "
        "so that the line is extrapolated). *Less a rival class*: with the neurons of one such "
        "class protected, in the order of the table of rivals.",
    ]
    if any(row.layer > EVERY for row in result.effects):
        blocks.append(
            Picture("map", f"Every layer's tenths silenced alone (n: {sizes(alone=True)})")
        )
    return Section("Silencing tenths", blocks)


def _floors(result: HypothesisResult) -> Section:
    return Section(
        "What the scores are worth",
        [
            kept_table(answerer_rows(result), "answerers"),
            f"TruthfulQA's multiple choice after its six-question primer, "
            f"{result.answerers[0].n} questions. Chance: all choices equally likely. Length only: "
            "an answerer that sees how long choices are. T: log-likelihoods divided by it; the "
            "model knows no more or less and is only less sure.",
            Picture("dose", "Scores and damage under growing cuts"),
            Picture("entropy", "MC2 against indecision"),
        ],
    )


def _rivals(result: HypothesisResult) -> Section:
    return Section(
        "Neurons with other jobs",
        [
            kept_table(overlap_rows(result), "overlaps", 2),
            "Entropy neurons write where the unembedding hardly reads; token-frequency neurons "
            "move logits with the frequency of tokens; super-weight carriers make the spikes on "
            "which the model stands. p: of a random cut of the same counts (hypergeometric).",
        ],
    )


def _decoding() -> Section:
    return Section(
        "Linear probes",
        [
            Picture(
                "decoding",
                "False or true? Accuracy of linear probes on tenths of each layer, "
                "questions left out",
            ),
            "Logistic regression on mean activations, folds by question. Dashed: what can be told "
            "without the model. All results with control tasks: `tables/decoding.csv`.",
        ],
    )


def _limits() -> Section:
    return Section(
        "What this does not show",
        [
            "- Attribution is first order: what silencing one neuron costs, not what silencing "
            "many does.\n"
            "- Correlation within a layer says nothing of differences between layers.\n"
            "- `ppm`, `maw`, `vow`, `pon` and `l2` do not see `down`: rescaling up against down "
            "leaves the function and changes the score. A localisation by such a score is about "
            "this parametrisation.\n"
            "- Noise draws rank correlations towards the null. The correction for it assumes "
            "half-normal standardised effects.\n"
            "- The contrast of two answers holds everything in which they differ, not the "
            "misconception alone; the control shows how much two true answers differ in the same "
            "way.\n"
            "- p of a silenced tenth takes changes by random tenths for normal; the specific "
            "effect takes them for linear in damage.\n"
            "- Direct effects on logits, by which neurons with other jobs are found, leave out "
            "what later layers make of them.",
        ],
    )


def _data(result: HypothesisResult) -> Section:
    manifest = result.manifest
    data = "\n".join(
        f"- {d['name']}: {d['records']} records, {d['origin']}, sha256 `{str(d['sha256'])[:16]}…`"
        for d in manifest["data"]
    )
    blocks: list[Block] = [data]
    if manifest["warnings"]:
        blocks += ["Not used or noteworthy:", "\n".join(f"- {w}" for w in manifest["warnings"])]
    command = " ".join(map(shlex.quote, manifest["argv"]))
    columns = "; ".join(f"`{k}`: {v}" for k, v in COLUMNS.items())
    blocks += [
        "To run this again:",
        f"```\n{command}\n```",
        f"`neurons.parquet`: one row a neuron. {columns}; other columns are weight scores. "
        "`tables/`: every number above.",
    ]
    return Section("Data, and how to run this again", blocks)


def write_run(
    result: HypothesisResult,
    path: Path,
    *,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the run directory, whole or not at all.

    Raises:
        RunError, ResourceError: see `rundir.writing`.
    """
    from .figures import write_figures

    whole = report(result)
    with writing(path, overwrite=overwrite) as scratch:
        save_frame(scratch / NEURONS, result.neurons)
        if result.histograms is not None:
            result.histograms.save(scratch)
        write_tables(scratch, result.tables())
        write_figures(result, scratch / FIGURES, tell)
        write_pages(scratch, whole)
        columns = {NEURONS: column_types(result.neurons)}
        write_manifest(
            scratch,
            {**result.manifest, "verdict": result.to_json()["verdict"], "columns": columns},
        )
