"""What a hypothesis run says: the tables in the terminal, the report, and the run directory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..datasets.pairs import PROPERTIES
from ..prune.expressions import is_control
from ..rundir import FIGURES, NEURONS, REPORT, write_manifest, writing
from .causal import DAMAGE, Change
from .localisation import Association, corrected
from .neurons import COLUMNS
from .verdict import SESOI, format_p

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .hypothesis import HypothesisResult

Row = tuple[str, ...]


def association_rows(result: HypothesisResult, *, full: bool = True) -> tuple[Row, list[Row]]:
    """Header and rows of the main table: one row a property and criterion.

    Args:
        full: with the effects as seen and p; without, what fits a terminal.
    """
    header = (
        "property",
        "criterion",
        "rho (null)",
        *(("effect [95 %]",) if full else ()),
        "seen",
        "corrected effect [95 %]",
        *(("p",) if full else ()),
        "q",
        "|d_z|, corrected [95 %]",
        "q",
        "lowest tenth (null)",
    )
    by_key = {(r.property, r.criterion, r.function): r for r in result.associations}
    rows = []
    for name, criterion in dict.fromkeys((r.property, r.criterion) for r in result.associations):
        row = by_key[name, criterion, "attribution"]
        dz = by_key[name, criterion, "dz"]
        seen = f"{row.effect:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        rows.append(
            (
                name,
                criterion,
                f"{row.rho:+.3f} ({row.rho_null:+.3f})",
                *((seen,) if full else ()),
                f"{row.attenuation:.2f}",
                _corrected(row),
                *((format_p(row.p),) if full else ()),
                format_p(row.q),
                _corrected(dz),
                format_p(dz.q),
                f"{row.share:.1%} ({row.share_null:.1%})",
            )
        )
    return header, rows


def _corrected(row: Association) -> str:
    found = corrected(row)
    if found is None:
        return "too faint"
    effect, low, high = found
    return f"{effect:+.2f} [{low:+.2f}, {high:+.2f}]"


def _change(row: Change) -> str:
    return f"{row.change:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def causal_rows(result: HypothesisResult) -> tuple[Row, list[Row]]:
    """Header and rows of the causal look: one row a set, the random ones as their range."""
    quantities = list(dict.fromkeys(row.quantity for row in result.changes))
    intact = {row.quantity: row.intact for row in result.changes}
    header = (
        "silenced (change)",
        *(name if name == DAMAGE else f"{name} margin" for name in quantities),
    )
    rows: list[Row] = [("nothing (value)", *(f"{intact[name]:+.3f}" for name in quantities))]
    named = dict.fromkeys(row.set for row in result.changes if row.kind != "random")
    for name in named:
        chosen = {row.quantity: row for row in result.changes if row.set == name}
        rows.append((name, *(_change(chosen[quantity]) for quantity in quantities)))
    random = [row for row in result.changes if row.kind == "random"]
    count = len({row.set for row in random})
    spans = []
    for name in quantities:
        values = [row.change for row in random if row.quantity == name]
        spans.append(f"{min(values):+.3f} .. {max(values):+.3f}")
    rows.append((f"random tenth (range of {count})", *spans))
    return header, rows


def property_rows(result: HypothesisResult) -> tuple[Row, list[Row]]:
    """Header and rows: what each property's pairs are, and how the intact model does on them."""
    header = (
        "property",
        "a minus b",
        "items",
        "prefers the better",
        "margin (nats)",
        "tokens a / b",
    )
    return header, [
        (
            row["property"],
            row["contrast"],
            str(row["items"]),
            f"{row['preferred_share']:.1%}",
            f"{row['margin']:+.3f}",
            f"{row['answer_tokens_a']:.1f} / {row['answer_tokens_b']:.1f}",
        )
        for row in result.properties
    ]


def terminal(result: HypothesisResult) -> RenderableType:
    """Tables and verdict for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(
        title: str, content: tuple[Row, list[Row]], left: int, *, grouped: bool = False
    ) -> Table:
        header, rows = content
        grid = Table(
            title=f"\n{title}",
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            padding=(0, 1),
        )
        for place, name in enumerate(header):
            grid.add_column(name, justify="left" if place < left else "right")
        for place, row in enumerate(rows):
            # A gap between properties where they have several rows each.
            following = rows[place + 1 : place + 2]
            grid.add_row(
                *row, end_section=grouped and bool(following) and following[0][0] != row[0]
            )
        return grid

    parts: list[RenderableType] = [
        table("Pairs", property_rows(result), 2),
        table(
            "Magnitude against function: |attribution|, and |d_z|, within layers",
            association_rows(result, full=False),
            2,
            grouped=True,
        ),
    ]
    if result.changes:
        parts.append(table("Silencing a tenth of every layer", causal_rows(result), 1))
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


def _markdown(content: tuple[Row, list[Row]]) -> str:
    header, rows = content
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    head = "| " + " | ".join(cell.replace("|", "\\|") for cell in header) + " |"
    return "\n".join([head, "|" + "---|" * len(header), *lines])


def report(result: HypothesisResult) -> str:
    """The report in Markdown."""
    manifest = result.manifest
    model, options = manifest["model"], manifest["options"]
    data = "\n".join(
        f"- {d['name']}: {d['records']} records, {d['origin']}, sha256 {str(d['sha256'])[:16]}…"
        for d in manifest["data"]
    )
    warnings = "\n".join(f"- {w}" for w in manifest["warnings"]) or "- none"
    family = sum(
        not is_control(r.criterion) and not PROPERTIES[r.property].is_control
        for r in result.associations
    )
    figures = "![Effects by criterion and property](figures/localisation.png)\n"
    causal = ""
    if result.changes:
        n = {r.quantity: r.n_items for r in result.changes}
        sizes = ", ".join(f"{name} {count}" for name, count in n.items())
        causal = f"""## Silencing a tenth of every layer

{_markdown(causal_rows(result))}

Changes against the intact model with 95 % bootstrap intervals over items (n: {sizes}). Margins are
LL(preferred) - LL(other) in nats per item; damage is the rise of the mean negative log-likelihood
of neutral text in nats per token. The range of a few random tenths is no test.

![Change when tenths are silenced](figures/causal.png)

"""
    return f"""# Do misconceptions live in low-magnitude neurons?

**Verdict: {result.verdict.sentence}**

Model `{model["name"]}` ({model["family"]}, {model["layers"]} layers, {model["neurons"]:,} neurons,
{model["dtype"]}, weights sha256 `{model["sha256"][:16]}…`), {manifest["started"]},
seed {options["seed"]}.

## Pairs

{_markdown(property_rows(result))}

Answers are matched in length as far as the data allow; log-likelihoods are sums over answer tokens.

## Magnitude against function, within layers

{_markdown(association_rows(result))}

rho: Spearman's correlation of the weight score with the functional score, within each layer,
averaged over layers. null: its mean when labels are swapped within items at random
({options["permutations"]} draws). Effect: rho minus that mean, with effect +- 1.96 standard errors
from resampling items ({options["bootstraps"]} draws). Seen: how much of a true effect shows at this
number of items, from planted orders; corrected: effect and interval divided by it. p: two-sided,
from the null. q: Benjamini-Hochberg over {family} tests (criteria without controls x properties
without the control x |attribution| and |d_z|). A negative effect says that function falls with
magnitude. Smallest effect of interest: {SESOI:g}.
Lowest tenth: share of the layer's |attribution| in the tenth of neurons lowest by the
criterion, and what it would be under the null.

{figures}
{causal}## What this does not show

- Attribution is first order: what silencing one neuron costs, not what silencing many does.
- Correlation within a layer says nothing of differences between layers.
- `ppm`, `maw`, `vow`, `pon` and `l2` do not see `down`: rescaling up against down leaves the
  function and changes the score. A localisation by such a score is about this parametrisation.
- Noise draws rank correlations towards the null. The correction for it assumes half-normal
  standardised effects, and takes the factor as known.
- The interval is over items, with the neurons as they are; `random:0` shows what an order without
  meaning gives on them.
- The contrast of two answers holds everything in which they differ, not the misconception alone;
  the control shows how much two true answers differ in the same way.

## Data

{data}

Not used or noteworthy:

{warnings}

## How to run this again

```
{" ".join(_quoted(word) for word in manifest["argv"])}
```

`neurons.parquet`: one row a neuron. {"; ".join(f"`{k}`: {v}" for k, v in COLUMNS.items())}; other
columns are weight scores. `layers.csv`: the rank correlation in every layer.
"""


def _quoted(word: str) -> str:
    import shlex

    return shlex.quote(word)


def write_run(result: HypothesisResult, path: Path, *, overwrite: bool = False) -> None:
    """Write the run directory, whole or not at all.

    Raises:
        RunError, ResourceError: see `rundir.writing`.
    """
    from .figures import write_figures

    with writing(path, overwrite=overwrite) as scratch:
        # Through memory: a full disk is then one plain OSError, whatever the library would say.
        table = io.BytesIO()
        result.neurons.write_parquet(table)
        (scratch / NEURONS).write_bytes(table.getvalue())
        (scratch / "layers.csv").write_text(result.layers.write_csv())
        write_figures(result, scratch / FIGURES)
        (scratch / REPORT).write_text(report(result), encoding="utf-8")
        columns = {
            NEURONS: dict(zip(result.neurons.columns, map(str, result.neurons.dtypes), strict=True))
        }
        write_manifest(
            scratch,
            {**result.manifest, "verdict": result.to_json()["verdict"], "columns": columns},
        )
