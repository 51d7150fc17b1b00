"""What a comparison would cost, said before it is made."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from ..prune.checkpoint import open_checkpoint
from ..prune.models import find_model
from ..prune.pairing import pair
from .compare_options import CompareOptions


@dataclass(frozen=True)
class ComparePlan:
    """Tensors and bytes to be read, rows to be written, forwards of a transplant."""

    neurons: int
    tensors: int
    bytes: int
    permutations: int
    sets: int
    """Sets of neurons to transplant."""
    forwards: int

    def lines(self) -> list[str]:
        """The plan in words."""
        said = [
            f"neurons (rows of neurons.parquet): {self.neurons:,}",
            f"tensors: {self.tensors:,}, to read: {self.bytes / 1e6:,.1f} MB of both models",
            f"permutations: {self.permutations:,}",
        ]
        if self.forwards:
            said.append(
                f"transplant: {self.forwards:,} forwards of texts ({self.sets:,} sets, both ways)"
            )
        return said


def plan_compare(base: str, tuned: str, options: CompareOptions) -> ComparePlan:
    """Plan a comparison from the headers of both checkpoints; a GGUF is converted for it.

    Raises:
        ModelError: what the comparison itself would raise about the two.
    """
    from .compare import are_runs

    if are_runs(base, tuned):
        from ..rundir import open_run

        runs = [open_run(side) for side in (base, tuned)]
        size = sum((run.path / "neurons.parquet").stat().st_size for run in runs)
        return ComparePlan(runs[0].neurons(["layer"]).height, 0, size, 0, 0, 0)
    for name in (base, tuned):
        find_model(name, fetch=False)
    with ExitStack() as both:
        sides = [both.enter_context(open_checkpoint(name)) for name in (base, tuned)]
        pairing = pair(*sides)
        entries = [side.entries for side in sides]
        size = sum(entry.size for some in entries for entry in some.values())
        rows = zip(pairing.layouts, pairing.tuned_layouts, strict=True)
        neurons = sum(min(a.width, b.width) for a, b in rows)
        count = sum(map(len, entries))
    moved = forwards = 0
    if options.transplant:
        moved, forwards = _transplants(options)
    return ComparePlan(neurons, count, size, options.permutations, moved, forwards)


def _transplants(options: CompareOptions) -> tuple[int, int]:
    from ..datasets.pairs import load_material
    from .transplant_sets import transplant_cost

    cost = transplant_cost(
        load_material(options.data, seed=options.seed),
        items=options.transplant_items,
        random=options.transplant_random,
        seed=options.seed,
        given=len(options.transplant_sets),
    )
    return cost.n_sets, cost.forwards
