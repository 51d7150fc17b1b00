"""What a text made every neuron do, as activation-based criteria need it.

`probes.recording.record` makes one; here is what it holds and how it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from ..errors import DataError, UsageError

_KIND = "glulens recording"


@dataclass(frozen=True, eq=False)
class Activity:
    """Of one MLP, over the tokens it saw; float64 arrays [neurons]."""

    mean: np.ndarray
    mean_abs: np.ndarray
    rms: np.ndarray
    variance: np.ndarray
    """Unbiased."""
    text_rms: np.ndarray
    """Root of the mean over texts of the squared mean of |activation| within the text; an expert's
    texts are those that sent it a token."""

    def of(self, keep: np.ndarray) -> Activity:
        """Of some neurons only."""
        return Activity(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def scaled(self, factor: np.ndarray) -> Activity:
        """The same after each neuron's activation was multiplied by its factor, above 0."""
        return Activity(
            self.mean * factor,
            self.mean_abs * factor,
            self.rms * factor,
            self.variance * factor**2,
            self.text_rms * factor,
        )


@dataclass(frozen=True, eq=False)
class Recording:
    """The activity of all MLPs of a model on a set of texts."""

    mlps: tuple[Activity, ...]
    tokens: tuple[int, ...]
    """Tokens that each MLP saw; experts see those routed to them."""
    texts: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons, by MLP."""
        return tuple(len(mlp.rms) for mlp in self.mlps)

    def check(self, widths: Sequence[int]) -> None:
        """Raise `UsageError` unless the recording is of a model of these widths."""
        if self.widths != tuple(widths):
            raise UsageError(
                f"the recording is of a model with {len(self.mlps)} MLPs and {sum(self.widths)} "
                f"neurons, this one has {len(widths)} and {sum(widths)}; record this model"
            )

    def save(self, path: str | Path) -> None:
        """Write as safetensors."""
        from safetensors.numpy import save_file

        arrays = {
            field.name: np.concatenate([getattr(mlp, field.name) for mlp in self.mlps])
            for field in fields(Activity)
        }
        about = {"kind": _KIND, "widths": self.widths, "tokens": self.tokens, "texts": self.texts}
        save_file(arrays, Path(path), metadata={"about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read what `save` wrote.

        Raises:
            DataError: missing, damaged, or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), "numpy") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                arrays = {field.name: file.get_tensor(field.name) for field in fields(Activity)}
            if about.get("kind") != _KIND:
                raise ValueError("it is something else")
            widths = [int(width) for width in about["widths"]]
            places = np.cumsum(widths)[:-1]
            split = {name: np.split(array, places) for name, array in arrays.items()}
            if any(len(array) != sum(widths) for array in arrays.values()):
                raise ValueError("its arrays do not fit its widths")
            if not all(np.isfinite(array).all() for array in arrays.values()):
                raise ValueError("it holds values that are not finite")
            return cls(
                tuple(Activity(**{n: a[i] for n, a in split.items()}) for i in range(len(widths))),
                tuple(int(count) for count in about["tokens"]),
                int(about["texts"]),
            )
        except (
            OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError,
            OverflowError, RecursionError,
        ) as error:  # fmt: skip
            raise DataError(
                f"{path} cannot be read as a recording ({error}); make it with "
                "glulens.probes.recording.record(...).save(PATH)"
            ) from error
