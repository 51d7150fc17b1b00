"""Criteria by name: plain ones, controls, and compositions.

    NAME                    a criterion of `criteria`
    random:SEED             control: an order without meaning
    reversed:X              control: the opposite order
    shuffled:X:SEED         control: the same scores, dealt out anew within each MLP
    gauged:X:SEED           X after a random change of gauge: every neuron's row of up times c, its
                            column of down over c, log c normal with standard deviation log 2; the
                            function stays
    balanced(X)             X where every neuron's gauge is fixed so that ||U_i|| = ||D_:i||
    folded(X)               X where the gain of the norm before the MLP is multiplied into G and U
    mean(X,Y,...)           mean of the ranks within the MLP

X and Y are any of these. Scores of one MLP never depend on another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from ..errors import ModelError, UsageError, nearest
from .criteria import ACTIVATION_CRITERIA, WEIGHT_CRITERIA
from .recording import Activity, Recording
from .weights import MatrixWeights, MlpWeights

COMPOSED = (
    "random:SEED",
    "reversed:X",
    "shuffled:X:SEED",
    "gauged:X:SEED",
    "balanced(X)",
    "folded(X)",
    "mean(X,Y)",
)
GAUGE = float(np.log(2))
"""Standard deviation of log c of `gauged`."""
LONGEST = 200
"""Characters of a criterion."""
_CALL = re.compile(r"(balanced|folded|mean)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Criterion:
    """A parsed criterion: what is done, and to which criteria."""

    name: str
    kind: str
    """`plain`, `random`, `reversed`, `shuffled`, `gauged`, `balanced`, `folded` or `mean`."""
    parts: tuple[Criterion, ...] = ()
    seed: int = 0

    @property
    def needs_recording(self) -> bool:
        """Whether any part looks at activations."""
        return self.name in ACTIVATION_CRITERIA or any(p.needs_recording for p in self.parts)

    @property
    def needs_gain(self) -> bool:
        """Whether any part folds the norm's gain in."""
        return self.kind == "folded" or any(p.needs_gain for p in self.parts)

    @property
    def is_control(self) -> bool:
        """Whether it is there to be compared with, not to rank by."""
        return self.kind in ("random", "reversed", "shuffled", "gauged")


def parse_criterion(text: str) -> Criterion:
    """Read one criterion.

    Raises:
        UsageError: an unknown name (with the nearest one) or a bad seed.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise UsageError(f"criterion {text[:40]!r}...: at most {LONGEST} characters")
    if text in WEIGHT_CRITERIA or text in ACTIVATION_CRITERIA:
        return Criterion(text, "plain")
    call = _CALL.fullmatch(text)
    if call is not None:
        parts = tuple(map(parse_criterion, split(call[2])))
        if call[1] == "mean" and len(parts) < 2:
            raise UsageError(f"criterion {text!r}: mean takes two or more, as in mean(ppm,vow)")
        if call[1] != "mean" and len(parts) != 1:
            raise UsageError(f"criterion {text!r}: {call[1]} takes one, as in {call[1]}(ppm)")
        if call[1] == "folded" and parts[0].needs_gain:
            raise UsageError(f"criterion {text!r}: the gain can be folded in only once")
        return Criterion(f"{call[1]}({','.join(p.name for p in parts)})", call[1], parts)
    kind, colon, rest = text.partition(":")
    if kind == "random" and colon:
        return Criterion(text, kind, seed=_seed(text, rest, "random:0"))
    if kind == "reversed" and rest:
        part = parse_criterion(rest)
        return Criterion(f"reversed:{part.name}", kind, (part,))
    if kind in ("shuffled", "gauged") and colon:
        inner, _, seed = rest.rpartition(":")
        if inner:
            part = parse_criterion(inner)
            number = _seed(text, seed, f"{kind}:ppm:0")
            return Criterion(f"{kind}:{part.name}:{number}", kind, (part,), number)
        raise UsageError(f"criterion {text!r}: name a criterion and a seed, as in {kind}:ppm:0")
    hint = nearest(text, [*WEIGHT_CRITERIA, *ACTIVATION_CRITERIA, "random:0"])
    raise UsageError(f"unknown criterion {text!r}{hint}; allowed are {allowed()}")


def allowed() -> str:
    """What a criterion may be called, in words; of this moment, since criteria can be added."""
    return ", ".join((*WEIGHT_CRITERIA, *ACTIVATION_CRITERIA, *COMPOSED))


def _seed(text: str, given: str, example: str) -> int:
    if not given.isdecimal():
        raise UsageError(f"criterion {text!r}: SEED must be a whole number, as in {example}")
    return int(given)


def split(text: str) -> list[str]:
    """Cut a list at its commas, but not at those within parentheses."""
    found, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    return [part.strip() for part in found if part.strip()]


def parse_criteria(text: str) -> tuple[str, ...]:
    """The criteria named in a comma-separated list, each checked, none twice.

    Raises:
        UsageError: an unknown name (with the nearest one), a bad seed, an empty list.
    """
    names = tuple(dict.fromkeys(parse_criterion(part).name for part in split(text)))
    if not names:
        raise UsageError(f"no criterion given; allowed are {allowed()}")
    columns: dict[str, str] = {}
    for name in names:
        if columns.setdefault(column(name), name) != name:
            raise UsageError(
                f"criteria {columns[column(name)]!r} and {name!r} would share the column "
                f"{column(name)!r}; give them to two runs"
            )
    return names


def check_criterion(name: str) -> None:
    """Raise `UsageError` unless `name` is a criterion."""
    parse_criterion(name)


def is_control(name: str) -> bool:
    """Whether the criterion is there to be compared with, not to rank by."""
    return parse_criterion(name).is_control


def column(name: str) -> str:
    """The criterion's column in `neurons.parquet`: its name with `_` for all but word signs.

    `mean(...)` becomes `meanrank_...`, since `mean_P` is an activation there.
    """
    return re.sub(r"\W+", "_", name.replace("mean(", "meanrank(")).strip("_")


def evaluate(
    criterion: Criterion | str,
    weights: Sequence[MlpWeights],
    recording: Recording | None = None,
) -> list[np.ndarray]:
    """Score every neuron by one criterion.

    Args:
        weights: of every MLP, see `scoring`; with gains where `criterion.needs_gain`.
        recording: what the same model did on some text, where `criterion.needs_recording`.

    Returns:
        One float32 array [neurons] an MLP. A neuron with a weight that is not finite scores -inf:
        it goes first.

    Raises:
        UsageError: unknown criterion, no recording where one is needed, or one of other widths.
        ModelError: the criterion is not defined for the model (no gate to balance, no norm to
            fold, a single weight to take the variance of).
    """
    if isinstance(criterion, str):
        criterion = parse_criterion(criterion)
    activity: Sequence[Activity | None] = [None] * len(weights)
    if criterion.needs_recording:
        if recording is None:
            raise UsageError(
                f"criterion {criterion.name!r} looks at activations: give a recording "
                "(--recording FILE, made with glulens.probes.recording.record)"
            )
        recording.check([mlp.width for mlp in weights])
        activity = recording.mlps
    found = []
    for index, (mlp, active) in enumerate(zip(weights, activity, strict=True)):
        finite = mlp.finite
        if not finite.all():  # scored without the others, whose sums and ranks would spoil theirs
            mlp, active = mlp.of(finite), active and active.of(finite)
        scores = np.full(len(finite), -np.inf, np.float32)
        if finite.any():
            with np.errstate(over="ignore"):
                scores[finite] = _score(criterion, mlp, active, index, finite)
        if np.isnan(scores).any():
            raise ModelError(f"MLP {index}: {criterion.name} is not defined for its shape")
        found.append(scores)
    return found


def _score(
    c: Criterion, w: MlpWeights, a: Activity | None, index: int, finite: np.ndarray
) -> np.ndarray:
    """The scores of the neurons that are `finite`, which `w` and `a` are of."""

    def of(part: Criterion) -> np.ndarray:
        return _score(part, w, a, index, finite)

    if c.name in WEIGHT_CRITERIA:
        return WEIGHT_CRITERIA[c.name](w)
    if c.name in ACTIVATION_CRITERIA:
        assert a is not None
        return ACTIVATION_CRITERIA[c.name](w, a)
    if c.kind in ("random", "shuffled"):
        # One stream an MLP: its draw does not depend on the widths of those before it.
        rng = np.random.default_rng(np.random.SeedSequence(c.seed, spawn_key=(index,)))
        if c.kind == "random":
            return rng.random(len(finite), dtype=np.float32)[finite]
        return rng.permutation(of(c.parts[0]))
    if c.kind == "reversed":
        return -of(c.parts[0])
    if c.kind == "gauged":
        _need_gate(c, w, index)
        rng = np.random.default_rng(np.random.SeedSequence(c.seed, spawn_key=(index,)))
        factor = np.exp(rng.normal(0, GAUGE, len(finite)))[finite]
        return _score(c.parts[0], *_rescaled(w, a, factor), index, finite)
    if c.kind == "balanced":
        return _score(c.parts[0], *_balance(w, a, index), index, finite)
    if c.kind == "folded":
        if w.folded is None:
            raise ModelError(f"{c.name}: no norm stands right before this model's MLPs to fold in")
        folded = replace(w, inputs=w.folded, folded=None)
        return _score(c.parts[0], folded, a, index, finite)
    return np.mean([rankdata(of(part)) for part in c.parts], axis=0)


def _balance(w: MlpWeights, a: Activity | None, index: int) -> tuple[MlpWeights, Activity | None]:
    """Multiply U_i and divide D_:i by what makes their norms equal; the function stays."""
    _need_gate("balanced(...)", w, index)
    up, down = w.inputs[1].norm, w.down.norm
    both = (up > 0) & (down > 0) & np.isfinite(up * down)
    return _rescaled(w, a, np.sqrt(np.where(both, down, 1.0) / np.where(both, up, 1.0)))


def _need_gate(c: Criterion | str, w: MlpWeights, index: int) -> None:
    name = c if isinstance(c, str) else c.name
    if not w.gated:
        raise ModelError(
            f"{name}: MLP {index} has no gate, so its neurons cannot be rescaled without changing "
            f"the function; leave {name} out"
        )


def _rescaled(
    w: MlpWeights, a: Activity | None, factor: np.ndarray
) -> tuple[MlpWeights, Activity | None]:
    """Multiply U_i and divide D_:i by positive factors."""

    def scaled(inputs: tuple[MatrixWeights, ...]) -> tuple[MatrixWeights, ...]:
        return inputs[0], inputs[1].scaled(factor)

    found = MlpWeights(scaled(w.inputs), w.down.scaled(1 / factor), w.folded and scaled(w.folded))
    return found, a and a.scaled(factor)
