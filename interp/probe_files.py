"""What a probe run writes: its table of neurons, examples, histograms and report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars

from ..errors import visible
from ..prune.expressions import column
from ..rundir import NEURONS, REPORT, save_frame, write_manifest, writing
from ..tables import EXAMPLES, HISTOGRAMS, SAMPLES, TEXTS, save_array, save_tables
from .probe import Prepared, text_rows

if TYPE_CHECKING:
    from ..probes.recorder import Recorded
    from ..prune.histograms import WeightHistograms

DECODING, RECORDING = "decoding.csv", "recording.safetensors"
_SAFE = re.compile(r"[^A-Za-z0-9_.-]")
"""What file names are not made of; conditions are called as the data say."""
COLUMNS = {
    "tokens_C": "tokens of condition C that passed the neuron",
    "mean_C, sd_C, rms_C, abs_C": "activation over these: mean, standard deviation, root of the "
    "mean square, mean magnitude",
    "min_C, max_C": "its range",
    "positive_C": "share of tokens with an activation above 0",
    "median_C": "from a histogram of half-octaves: within a factor of 1.23 for magnitudes from "
    "0.0015 (0 is below) to 48; never outside the range",
    "diff_S": "mean over pairs of set S of the text means' difference, a minus b",
    "dz_S": "diff_S over its standard deviation over pairs",
    "t_S": "paired t",
    "auroc_S": "probability that a text of side a has a larger mean than one of side b",
}
"""What columns mean. Every other column is a weight criterion of that name."""


def probe_table(scores: polars.DataFrame, recorded: Recorded) -> polars.DataFrame:
    """Weight scores with what every neuron does; columns as in `COLUMNS`, float32."""
    columns: dict[str, np.ndarray] = {}
    for name, found in recorded.conditions.items():
        columns[f"tokens_{name}"] = found.count.astype(np.int32)
        columns |= {
            f"{part}_{name}": values.astype(np.float32)
            for part, values in (
                ("mean", found.mean),
                ("sd", np.sqrt(found.variance)),
                ("rms", found.rms),
                ("abs", found.mean_abs),
                ("min", found.minimum),
                ("max", found.maximum),
                ("positive", found.positive),
                ("median", np.clip(found.quantile(0.5), found.minimum, found.maximum)),
            )
        }
    for name, found in recorded.contrasts.items():
        columns |= {
            f"{part}_{name}": values.astype(np.float32)
            for part, values in (
                ("diff", found.mean),
                ("dz", found.d_z),
                ("t", found.t),
                ("auroc", found.auroc),
            )
        }
    return scores.with_columns(
        **{
            name: polars.Series(values).fill_nan(None)
            if values.dtype.kind == "f"
            else polars.Series(values)
            for name, values in columns.items()
        }
    )


def write_run(
    path: Path,
    prepared: Prepared,
    recorded: Recorded,
    scores: polars.DataFrame,
    manifest: dict[str, Any],
    tokenizer: Any,
    decoded: polars.DataFrame | None,
    criteria: Sequence[str],
    *,
    weights: WeightHistograms,
    vocabulary: Mapping[str, np.ndarray],
    overwrite: bool,
) -> None:
    """Write a whole run directory, or nothing.

    Raises:
        RunError, ResourceError: see `rundir.writing`.
    """
    from ..probes.vocabulary import ABOUT, save_vocabulary

    table = probe_table(scores, recorded)
    manifest["columns"] = COLUMNS
    with writing(path, overwrite=overwrite) as scratch:
        save_frame(scratch / NEURONS, table)
        save_tables(scratch / EXAMPLES, recorded.examples)
        save_frame(scratch / TEXTS, polars.DataFrame(text_rows(prepared, tokenizer)))
        (scratch / HISTOGRAMS).mkdir()
        histograms: dict[str, str] = manifest.setdefault("histograms", {})
        for name, found in recorded.conditions.items():
            file = f"{len(histograms)}-{_SAFE.sub('_', name)[:60]}.npy"
            save_array(scratch / HISTOGRAMS / file, found.histogram)
            histograms[name] = f"{HISTOGRAMS}/{file}"
        weights.save(scratch)
        if vocabulary:
            save_vocabulary(scratch, vocabulary, tokenizer)
            manifest["vocabulary"] = ABOUT
        recorded.activity.save(scratch / RECORDING)
        save_array(scratch / SAMPLES, recorded.samples)
        if decoded is not None:
            save_frame(scratch / DECODING, decoded)
        report = "\n".join(report_lines(table, manifest, decoded, criteria)) + "\n"
        (scratch / REPORT).write_text(report, encoding="utf-8")
        write_manifest(scratch, manifest)


def contrast_rows(table: polars.DataFrame, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What a terminal shows of each contrast."""
    rows = []
    for name, about in manifest["contrasts"].items():
        dz = table[f"dz_{name}"].abs()
        dz = dz.set(~dz.is_finite(), None)  # a neuron of fewer than two pairs, or that never varies
        top = dz.arg_max()
        rows.append(
            {
                "contrast": name,
                "a minus b": " - ".join(about["conditions"]),
                "pairs": about["pairs"],
                "median |d_z|": dz.median(),
                "share |d_z| > 0.5": (dz > 0.5).mean(),
                "largest |d_z|": dz.max(),
                "its neuron": None if top is None else _label(table.row(top, named=True)),
                "AUROC": about["auroc"],
            }
        )
    return rows


def _label(row: dict[str, Any]) -> str:
    part = ""
    if row.get("expert") is not None:
        part = f".E{row['expert']}"
    elif row.get("part") == "shared":
        part = ".S"
    return f"L{row['layer']}{part}.N{row['neuron']}"


def report_lines(
    table: polars.DataFrame,
    manifest: dict[str, Any],
    decoded: polars.DataFrame | None,
    criteria: Sequence[str],
) -> list[str]:
    """The report in Markdown."""
    model, tokens = manifest["model"], manifest["tokens"]
    lines = [
        f"# What the neurons of {model['name']} do",
        "",
        f"{model['neurons']:,} neurons in {model['mlps']} MLPs, {model['family']}, "
        f"{model['dtype']}; engine {manifest['options']['engine']}, tokens "
        f"`{manifest['options']['tokens']}`. {tokens['texts']:,} tokens of text, of which "
        f"{tokens['computed']:,} were computed (common beginnings once) and {tokens['selected']:,} "
        "selected.",
        "",
        *_markdown(
            [
                {"condition": name, "texts": about["texts"], "tokens": about["tokens"]}
                for name, about in manifest["conditions"].items()
            ]
        ),
    ]
    if rows := contrast_rows(table, manifest):
        lines += ["", "## Contrasts", "", *_markdown(rows), ""]
        lines += [
            "d_z is of the difference between the mean activations of a pair's two texts. With "
            f"{model['neurons']:,} neurons some are far out by chance alone: nothing here is a "
            "test. AUROC is over texts; `exact` from all of them, `histogram` within half the "
            "share of ties in a bin.",
        ]
        lines += ["", "Rank correlation of |d_z| with weight scores, over layers (median, range):"]
        lines += ["", *_markdown(_correlations(table, manifest, criteria))]
        lines += ["", "A description, without a null; `glulens hypothesis` tests."]
    if decoded is not None:
        lines += ["", "## Linear probes", "", *_decoding(decoded)]
    if manifest["refused"]:
        lines += ["", f"## Refused texts ({len(manifest['refused'])})", ""]
        lines += [f"- {_plain(line)}" for line in manifest["refused"]]
    if manifest["warnings"]:
        lines += ["", "## Notes", "", *(f"- {_plain(line)}" for line in manifest["warnings"])]
    lines += ["", f"Made by `{' '.join(manifest['argv'])}`."]
    return lines


def _correlations(
    table: polars.DataFrame, manifest: dict[str, Any], criteria: Sequence[str]
) -> list[dict[str, Any]]:
    """Spearman's rho within each layer; layers are strata."""
    rows = []
    for name in manifest["contrasts"]:
        for criterion in criteria:
            key = column(criterion)
            found = (
                table.drop_nulls([f"dz_{name}"])
                .group_by("layer")
                .agg(polars.corr(key, polars.col(f"dz_{name}").abs(), method="spearman"))[key]
                .drop_nans()
            )
            rows.append(
                {
                    "contrast": name,
                    "criterion": criterion,
                    "median rho": found.median(),
                    "least": found.min(),
                    "most": found.max(),
                }
            )
    return rows


def _decoding(decoded: polars.DataFrame) -> list[str]:
    kept = ["set", "what", "accuracy", "control", "selectivity", "auroc"]
    numbers = kept[2:]
    text = decoded.filter(polars.col("layer").is_null()).select(kept)
    best = (
        decoded.filter(polars.col("layer").is_not_null())
        .group_by("set", "what", maintain_order=True)
        .agg(polars.col("layer").n_unique().alias("layers"), *(polars.mean(n) for n in numbers))
    )
    return [
        "Folds by question; standardised within the fold; control labels are random by the "
        "answer's first token. Baselines that see no neuron:",
        "",
        *_markdown(text.to_dicts()),
        "",
        "Means over layers (every layer stands in decoding.csv):",
        "",
        *_markdown(best.to_dicts()),
    ]


def _markdown(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = list(rows[0])
    lines = ["| " + " | ".join(map(_plain, names)) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else _plain(str(value))


def _plain(text: str) -> str:
    """Data in a line of Markdown: no line breaks, no table bars."""
    return visible(" ".join(text.split())).replace("|", "\\|")
