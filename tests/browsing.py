"""Small runs for the tests of the browser's parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars

from glulens.rundir import NEURONS, write_manifest, writing
from glulens.tui.columns import Columns, open_columns

LAYERS, WIDTH = 3, 40


def dense(seed: int = 0, layers: int = LAYERS, width: int = WIDTH) -> polars.DataFrame:
    """Neurons of a dense model; `ppm` has ties, `attr_fact` misses some values, `odd` has what
    floats can hold."""
    rng = np.random.default_rng(seed)
    n = layers * width
    odd = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5, 1e-30], n)
    return polars.DataFrame(
        {
            "layer": np.repeat(np.arange(layers, dtype=np.int16), width),
            "neuron": np.tile(np.arange(width, dtype=np.int32), layers),
            "attr_fact": np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)),
            "ppm": np.round(rng.random(n), 1).astype(np.float32),
            "maw": rng.random(n).astype(np.float32),
            "odd": odd.astype(np.float32),
            "rms_fact": rng.random(n).astype(np.float32),
            "mean_fact": rng.normal(size=n).astype(np.float32),
            "dz_fact": rng.normal(size=n).astype(np.float32),
            "diff_fact": rng.normal(size=n).astype(np.float32),
            "tokens_fact": np.arange(n, dtype=np.int32),
        }
    ).with_columns(polars.col("attr_fact").fill_nan(None))


def mixture() -> polars.DataFrame:
    """A dense layer of 4, then 3 experts of 3 and a shared one of 5."""
    mlps = [(0, "dense", None, 4), *((1, "expert", e, 3) for e in range(3)), (1, "shared", None, 5)]
    rows = [(layer, part, e, i) for layer, part, e, width in mlps for i in range(width)]
    kinds = {
        "layer": polars.Int16,
        "part": polars.Categorical,
        "expert": polars.Int32,
        "neuron": polars.Int32,
    }
    ppm = polars.Series(np.arange(len(rows), dtype=np.float32)[::-1].copy())
    return polars.DataFrame(rows, schema=kinds, orient="row").with_columns(ppm=ppm)


def run_of(path: Path, frame: polars.DataFrame, **manifest: Any) -> Path:
    """A run directory with this table."""
    with writing(path) as scratch:
        frame.write_parquet(scratch / NEURONS)
        write_manifest(scratch, {"command": "test", **manifest})
    return path


def columns_of(path: Path, frame: polars.DataFrame, **manifest: Any) -> Columns:
    """Its columns."""
    return open_columns(run_of(path, frame, **manifest))
