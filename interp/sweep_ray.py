"""A sweep's work on many processes or machines, by Ray.

A worker is a process with one core (and one GPU where the sweep runs on GPUs) that opens the model
once and is given one unit of work after the other: some items of a task at a point. What it finds
goes back to the process that called, which keeps it as if it had done the work itself; so a sweep
on Ray is resumed like any other, with Ray or without.

**What gets lost.** When a worker or its machine dies, its unit is given to another one. Where the
worker was, a new one is asked for; it starts when the cluster has room, and nobody waits for it as
long as others work. A unit that has taken three workers with it stops the sweep. Ray's own restarts
are not used: they keep a unit waiting for the room that died with the machine.

**What goes over the wire** are options, indices and tables as bytes. Ray itself pickles what it
sends and runs what it is sent: a cluster is as trustworthy as whoever can reach it.

Every worker must have glulens, and find the model and the data under the same names. It says which
weights, data and version of torch it has, and is refused if they are others.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GlulensError, ModelError, ResourceError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from .sweep import Job
    from .sweep_items import Found, Unit
    from .sweep_options import SweepOptions
    from .sweep_points import Point

LOCAL = "local"
ATTEMPTS = 3
"""Workers that a unit may lose."""
OPENING = "the model's opening"
PATIENCE = 600.0
"""Seconds without any worker at work before the sweep gives up."""
_TICK = 5.0
_NOWHERE = "no Ray cluster at {!r} ({}); give local, or the address that `ray start --head` printed"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "POLARS_MAX_THREADS")


class Worker:
    """What runs in a worker's process: the model, opened once, and units of work."""

    def __init__(self) -> None:
        self._state: Any = None
        self._points: dict[int, Point] = {}

    def load(self, name: str, options: Mapping[str, Any], points: Sequence[Any]) -> dict[str, str]:
        """Open the model and build the items.

        Args:
            name: of the model, for `open_model`.
            options: of `SweepOptions`.
            points: as `_plain_point` makes them.

        Returns:
            What tells this worker's results from others': see `_identity`.
        """
        import torch

        from .sweep_options import make_sweep_options
        from .sweep_state import load_state

        torch.set_num_threads(1)
        self._state = load_state(name, make_sweep_options(**options))
        self._points = {number: _point(*found) for number, found in enumerate(points)}
        return _identity(self._state)

    def run(self, unit: tuple[Any, ...]) -> dict[str, np.ndarray]:
        """Do a unit of work; its tables as bytes."""
        from .sweep_items import Unit, pack, run_unit

        asked = Unit(*unit)
        return dict(
            pack(run_unit(self._state, self._points[asked.point], asked.task, asked.doc_ids))
        )


def _plain_point(point: Point) -> tuple[str, float, Any, str | None, int | None]:
    cut = None if point.cut is None else (point.cut.widths, point.cut.indices)
    return point.criterion, point.fraction, cut, point.control, point.seed


def _point(criterion: str, fraction: float, cut: Any, control: Any, seed: Any) -> Point:
    from ..prune.selection import NeuronSet
    from .sweep_points import Point

    chosen = None if cut is None else NeuronSet(tuple(cut[0]), tuple(cut[1]))
    return Point(criterion, fraction, chosen, control, seed)


def _identity(state: Any) -> dict[str, str]:
    """What workers have to agree on, in words."""
    import torch

    from .sweep_items import fingerprint

    return {
        "weights": state.lm.opened.source.sha256,
        "dtype": str(state.lm.opened.model.dtype),
        "kind of device": state.lm.opened.device.type,
        "torch": torch.__version__.partition("+")[0],
        **{f"data of {task}": found for task, found in fingerprint(state.tasks).items()},
    }


def run_units(job: Job, todo: Sequence[Unit], ray: str) -> Iterator[tuple[Unit, Found]]:
    """Do units of work on a Ray cluster, and give them back as they are done, in any order.

    Args:
        ray: `local` for workers on this machine's cores, or the address of a cluster (`auto`,
            `HOST:PORT`, `ray://HOST:PORT`).

    Raises:
        UsageError: Ray is not installed, or nothing answers at the address.
        ModelError: a worker has other weights or data.
        ResourceError: no worker for ten minutes, or a unit that takes every worker with it.
        GlulensError: what a worker ran into.
    """
    if not todo:
        return
    with _cluster(ray) as found:
        yield from _Crew(found, job, todo).work()


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected; disconnected afterwards if it was not connected before."""
    # Nothing is told to anyone about how Ray is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError("--ray needs Ray: pip install 'glulens[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    _reach(address)
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == LOCAL:
            ray.init(num_cpus=_cores(), include_dashboard=False, **given)
        else:
            ray.init(address=address, **given)
    except Exception as error:  # from no answer to another version of Ray, each with its own class
        raise UsageError(_NOWHERE.format(address, _line(error))) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """See that something listens: Ray itself tries for many minutes.

    Raises:
        UsageError: nothing does, or this is no address.
    """
    import socket

    if address in (LOCAL, "auto"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise UsageError(f"--ray {address!r}; allowed are local, auto, HOST:PORT, ray://HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UsageError(_NOWHERE.format(address, error)) from error


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class _Crew:
    """Workers, what each is at, and what is left to do."""

    def __init__(self, ray: Any, job: Job, todo: Sequence[Unit]) -> None:
        self.ray = ray
        self.left = deque(todo)
        self.losses: Counter[str] = Counter()
        self.unopened = 0  # workers lost at the opening since one opened the model
        self.expected = _identity(job.state)
        options = _elsewhere(job.options)
        points = [_plain_point(point) for point in job.points]
        # Stored once: all workers read the same copy.
        self.given = ray.put(_model_name(job)), ray.put(options), ray.put(points)
        self.at: dict[Any, tuple[Any, Unit | None]] = {}
        gpus = int(ray.cluster_resources().get("GPU", 0))
        on_gpu = job.opened.device.type == "cuda" and gpus > 0
        self.size = gpus if on_gpu else int(ray.cluster_resources().get("CPU", 1))
        self.kind = ray.remote(Worker).options(
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
            max_restarts=0,
            runtime_env={"env_vars": dict.fromkeys(_THREADS, "1")},
        )

    def work(self) -> Iterator[tuple[Unit, Found]]:
        """Give out units until none is left, and take in what comes back."""
        from .sweep_items import unpack

        lonely = 0.0
        try:
            for _ in range(min(self.size, len(self.left))):
                self._hire()
            while self.left or any(unit for _, unit in self.at.values()):
                done, _ = self.ray.wait(list(self.at), timeout=_TICK)
                at_work = any(unit for _, unit in self.at.values())
                lonely = 0.0 if done or at_work else lonely + _TICK
                if lonely >= PATIENCE:
                    raise ResourceError(
                        f"no Ray worker has started for {lonely:.0f} s; the cluster has no core "
                        "free, or its machines are gone. Go on with --resume"
                    )
                for future in done:
                    worker, unit = self.at.pop(future)
                    found = self._take(future, unit)
                    if found is None:
                        self._lose(worker, unit)
                        continue
                    if unit is None:
                        self._check(found)
                        self.unopened = 0  # it can be opened: a long sweep goes on
                    else:
                        yield unit, unpack(found)
                    self._give(worker)
        finally:
            for worker, _ in self.at.values():
                self.ray.kill(worker)

    def _hire(self) -> None:
        worker = self.kind.remote()
        self.at[worker.load.remote(*self.given)] = worker, None

    def _give(self, worker: Any) -> None:
        """The next unit to a worker, or leave to go."""
        if not self.left:
            self.ray.kill(worker)
            return
        unit = self.left.popleft()
        self.at[worker.run.remote(tuple(unit))] = worker, unit

    def _take(self, future: Any, unit: Unit | None) -> Any:
        """What a worker found; None if the worker is lost."""
        from ray import exceptions

        try:
            return self.ray.get(future)
        except exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, GlulensError):
                raise type(cause)(f"a Ray worker: {cause}") from error
            where = "while it opened the model" if unit is None else f"at {unit.name}"
            raise ModelError(f"a Ray worker failed {where}: {_line(cause)}") from error
        except exceptions.RuntimeEnvSetupError as error:
            # Its first line is the same for all reasons.
            said = " ".join(str(error).split())[:300]
            raise ResourceError(f"a Ray worker could not be set up: {said}") from error
        except exceptions.RayError:
            return None

    def _lose(self, worker: Any, unit: Unit | None) -> None:
        """Put a lost worker's unit first in line, and ask for another worker."""
        self.ray.kill(worker)
        name = OPENING if unit is None else unit.name
        self.losses[name] += 1
        self.unopened += unit is None
        lost = self.unopened if unit is None else self.losses[name]
        if lost >= ATTEMPTS * (1 if unit else max(self.size, 1)):
            raise ResourceError(
                f"Ray lost {lost} workers at {name}: most likely memory ran out. "
                "Lower --max-tokens, or give each worker a machine with more; go on with --resume"
            )
        if unit is not None:
            self.left.appendleft(unit)
        self._hire()

    def _check(self, found: Mapping[str, str]) -> None:
        for name, value in self.expected.items():
            if found.get(name) != value:
                raise ModelError(
                    f"a Ray worker has another {name} ({str(found.get(name))[:16]}, here "
                    f"{value[:16]}); every machine needs the same model, data and versions"
                )


def _line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:160]
    return f"{type(error).__name__}: {text}"


def _model_name(job: Job) -> str:
    """What a worker opens the model by: files by their full path."""
    source = job.opened.source
    return str(source.path.resolve()) if source.kind in ("folder", "gguf") else source.name


def _elsewhere(options: SweepOptions) -> dict[str, Any]:
    """Options for a process in another folder."""
    from .harness_tasks import HUB

    data = options.data
    if data is not None and data != HUB:
        options = replace(options, data=str(Path(data).expanduser().resolve()))
    return asdict(options)
