"""What the analysis of a sweep finds, row by row; `sweep_analysis` says how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars

    from .sweep_measures import Key
    from .sweep_stats import Correlation

_NAN = float("nan")


@dataclass(frozen=True)
class Score:
    """One metric at one point; low and high its 95 % interval over items.

    Attributes:
        floor: the score of an answerer that knows nothing; NaN where there is no such number.
    """

    point: int
    task: str
    metric: str
    criterion: str
    control: str | None
    fraction: float
    value: float
    low: float
    high: float
    n: int
    floor: float


@dataclass(frozen=True)
class Paired:
    """A cut against a rival on the same items.

    Attributes:
        against: `intact`, or `random`: the random cuts of the same size.
        value, rival: scores; of several random cuts their mean (of perplexities the geometric one).
        difference: value minus rival; of perplexities in nats, that of the logarithms. low and high
            its 95 % bootstrap interval over items.
        test: `McNemar`, or `sign flips`.
        gained, lost: items that only the cut, only the rival got right; None for sign flips.
        p, q: of the test, and after Benjamini-Hochberg; q is NaN outside the family.
        draws: random cuts that the rival is made of; 0 against the intact model.
        z, p_draws, q_draws: among the draws; NaN with fewer than three.
    """

    point: int
    task: str
    metric: str
    criterion: str
    control: str | None
    fraction: float
    against: str
    n: int
    value: float
    rival: float
    difference: float
    low: float
    high: float
    test: str
    gained: int | None
    lost: int | None
    p: float
    draws: int = 0
    z: float = _NAN
    p_draws: float = _NAN
    q: float = _NAN
    q_draws: float = _NAN


@dataclass(frozen=True)
class Series:
    """The paper's correlation along one criterion's cuts."""

    criterion: str
    control: str | None
    found: Correlation


@dataclass(frozen=True)
class Matched:
    """A cut beside random cuts that do the same damage.

    Attributes:
        perplexity: of the cut.
        value: its score.
        random: mean score of the random orders at this perplexity; NaN if it lies beyond the reach
            of any of them.
        random_fraction: the size of random cuts of this perplexity, interpolated alike.
        difference: value - random (of perplexities, of the logarithms), low and high its interval
            over items.
        draws: random orders.
    """

    point: int
    task: str
    metric: str
    criterion: str
    control: str | None
    fraction: float
    perplexity: float
    value: float
    random: float
    random_fraction: float
    difference: float
    low: float
    high: float
    draws: int


@dataclass(frozen=True)
class Instructions:
    """Share of the instructions of one kind that answers follow, at one point.

    Attributes:
        metric: strict or loose.
        instructions, n: how many, in how many prompts.
        floor: what an answer without content gets; NaN where it was not computed.
    """

    point: int
    task: str
    metric: str
    kind: str
    criterion: str
    control: str | None
    fraction: float
    value: float
    low: float
    high: float
    instructions: int
    n: int
    floor: float


@dataclass(frozen=True)
class Answers:
    """Generated answers of a task at one point.

    Attributes:
        tokens: mean length; low and high its 95 % interval over items.
        median: of the length, tokens.
        characters: mean length.
        ended: share that the model ended by itself.
        empty: share without a visible character.
    """

    point: int
    task: str
    criterion: str
    control: str | None
    fraction: float
    n: int
    tokens: float
    low: float
    high: float
    median: float
    characters: float
    ended: float
    empty: float


@dataclass(frozen=True)
class Beside:
    """The paper's number and ours at the same cut.

    Attributes:
        random_low, random_high: range of random cuts of this size; NaN without.
    """

    fraction: float
    task: str
    metric: str
    paper: float
    ours: float
    low: float
    high: float
    random_low: float
    random_high: float


@dataclass(frozen=True)
class SweepAnalysis:
    """Everything above.

    Attributes:
        perplexity: the task and metric that damage is measured by; None where there is none.
        paper_model: the paper's name of this model; None where it is none of the paper's.
    """

    scores: tuple[Score, ...]
    tests: tuple[Paired, ...]
    correlations: tuple[Series, ...]
    matched: tuple[Matched, ...]
    instructions: tuple[Instructions, ...]
    answers: tuple[Answers, ...]
    paper: tuple[Beside, ...]
    perplexity: Key | None
    paper_model: str | None

    def tables(self) -> dict[str, polars.DataFrame]:
        """One table a part; what is empty is left out."""
        import polars

        parts: dict[str, Sequence[Any]] = {
            "curves": self.scores,
            "tests": self.tests,
            "matched": self.matched,
            "instructions": self.instructions,
            "answers": self.answers,
            "paper": self.paper,
        }
        found = {
            name: polars.DataFrame([asdict(row) for row in rows], infer_schema_length=None)
            for name, rows in parts.items()
            if rows
        }
        if self.correlations:
            found["correlations"] = polars.DataFrame(
                [
                    {"criterion": row.criterion, "control": row.control, **asdict(row.found)}
                    for row in self.correlations
                ],
                infer_schema_length=None,
            )
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is no number is null."""
        from .json_values import finite

        return {
            "perplexity": None if self.perplexity is None else ":".join(self.perplexity),
            "paper_model": self.paper_model,
            **{name: finite(frame.to_dicts()) for name, frame in self.tables().items()},
        }
