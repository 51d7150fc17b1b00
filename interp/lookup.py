"""Finding a neuron by what people call it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..errors import RunError, UsageError

if TYPE_CHECKING:
    import polars

_NAME = re.compile(r"L(\d{1,6})(?:\.(?:E(\d{1,6})|(S)))?\.N(\d{1,9})", re.IGNORECASE)


def find_neuron(neurons: polars.DataFrame, name: str) -> int:
    """The row of a neuron called as in `L12.N345`, `L12.E3.N345` or `L12.S.N345`.

    Raises:
        UsageError: not such a name, or the run has no such neuron.
        RunError: the table's columns are not what they should be.
    """
    import polars

    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise UsageError(
            f"neuron {name!r}: write layer and number, as in L12.N345 (an expert's: L12.E3.N345, "
            "a shared expert's: L12.S.N345)"
        )
    layer, expert, shared, number = match.groups()
    wanted = (polars.col("layer") == int(layer)) & (polars.col("neuron") == int(number))
    if "expert" in neurons.columns:
        part = "expert" if expert else "shared" if shared else "dense"
        wanted &= polars.col("part").cast(polars.String) == part
        if expert:
            wanted &= polars.col("expert") == int(expert)
    elif expert or shared:
        raise UsageError(f"neuron {name!r}: this model has no experts; write L{layer}.N{number}")
    try:
        rows = neurons.select(wanted.arg_true()).to_series()
    except polars.exceptions.PolarsError as error:
        raise RunError(
            "the run's table of neurons is not one that glulens wrote: its keys cannot be "
            "compared; run the job again"
        ) from error
    if not neurons.height:
        raise RunError("the run's table of neurons is empty; run the job again")
    if not len(rows):
        layers = neurons["layer"].max()
        widest = neurons["neuron"].max()
        raise UsageError(
            f"neuron {name!r} is not in this run; layers go to {layers}, neurons to {widest} "
            "(in the widest layer)"
        )
    return int(rows[0])
