"""A sweep's work on Ray: machines may die, and what is wrong is said in one line."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from polars.testing import assert_frame_equal
from tuned_stories import save_stories

from glulens.errors import DataError, ModelError, ResourceError, UsageError
from glulens.interp import sweep_items, sweep_ray
from glulens.interp.sweep_options import make_sweep_options

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'glulens[ray]'")
pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'glulens[eval]'")


@pytest.fixture(scope="module")
def job(stories: Any, official: Path, tmp_path_factory: Any) -> Iterator[Any]:
    """A small sweep of a model on disk, cut into many small units."""
    from glulens.interp.sweep import prepare

    folder = save_stories(stories, tmp_path_factory.mktemp("model") / "stories")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_items, "CHUNK", {"multiple_choice": 2, "loglikelihood": 3})
        options = make_sweep_options(
            criteria="ppm",
            controls="random:1",
            fractions="0.3",
            tasks=("truthfulqa_mc2", "lambada_openai"),
            data=str(official),
            limit=6,
            device="cpu",
        )
        yield prepare(str(folder), options)


@pytest.fixture(scope="module")
def alone(job: Any) -> Any:
    """The same work in this process."""
    from glulens.interp.sweep import _done, collect

    return collect(job, _done(job, job.units, None))


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Crews as they are made; each begins when two workers are ready."""
    made: list[Any] = []
    begin, give = sweep_ray._Crew.__init__, sweep_ray._Crew._give
    ready: list[Any] = []

    def noted(self: Any, *given: Any) -> None:
        begin(self, *given)
        made.append(self)

    def together(self: Any, worker: Any) -> None:
        ready.append(worker)
        if len(ready) == 2:
            give(self, ready[0])
        if len(ready) > 1:
            give(self, worker)

    monkeypatch.setattr(sweep_ray._Crew, "__init__", noted)
    monkeypatch.setattr(sweep_ray._Crew, "_give", together)
    return made


# A cluster that only pretends: workers run here, and die when they are told to


class Call:
    """A call of a worker's method that was not waited for yet."""

    def __init__(self, number: int, own: Any, name: str, given: tuple[Any, ...]) -> None:
        self.number, self.own, self.name, self.given = number, own, name, given


class Pretended:
    """As much of Ray as a crew uses. Work is done when it is waited for, in random order.

    Args:
        dies: whether a worker dies at a call, by the call's number.
        state: what all workers share instead of opening a model.
    """

    def __init__(self, state: Any, *, cores: int = 2, dies: Any = lambda _: False) -> None:
        self.state, self.cores, self.dies = state, cores, dies
        self.calls = self.hired = 0
        self.dead: list[Any] = []  # themselves: the id of one that is gone may be another's
        self.rng = random.Random(0)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.cores)}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: type) -> Any:
        def hire() -> Any:
            self.hired += 1
            own = kind()
            methods = {name: self._method(own, name) for name in ("load", "run")}
            return SimpleNamespace(own=own, **methods)

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=hire))

    def _method(self, own: Any, name: str) -> Any:
        def call(*given: Any) -> Call:
            self.calls += 1
            return Call(self.calls, own, name, given)

        return SimpleNamespace(remote=call)

    def wait(self, futures: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        done = [self.rng.choice(futures)] if futures else []
        return done, [future for future in futures if future not in done]

    def get(self, future: Any) -> Any:
        own, name, given = future.own, future.name, future.given
        if any(own is one for one in self.dead) or self.dies(future.number):
            self.dead.append(own)
            raise ray.exceptions.ActorDiedError()
        try:
            if name == "load":
                own._points = {k: sweep_ray._point(*point) for k, point in enumerate(given[2])}
                own._state = self.state
                return sweep_ray._identity(own._state)
            return own.run(*given)
        except Exception as error:
            raise ray.exceptions.RayTaskError("run", "", error) from error

    def kill(self, worker: Any) -> None:
        self.dead.append(worker.own)


def finished(job: Any, pretended: Any) -> Any:
    from glulens.interp.sweep import collect

    return collect(job, sweep_ray._Crew(pretended, job, job.units).work())


def test_units_of_dead_workers_are_done_by_others(job, alone):
    killed = Pretended(job.state, dies=lambda number: number % 4 == 0)
    found = finished(job, killed)
    assert killed.hired > 5
    assert_frame_equal(found.items, alone.items)
    assert_frame_equal(found.answers, alone.answers)
    assert_frame_equal(found.scores, alone.scores)


def test_openings_that_fail_now_and_then_do_not_stop_a_long_sweep(job, alone):
    # One worker at a time: every other opening fails, and every unit is lost once.
    pretended = Pretended(job.state, cores=1, dies=lambda number: number % 4 in (0, 1))
    found = finished(job, pretended)
    assert pretended.hired >= 2 * sweep_ray.ATTEMPTS
    assert_frame_equal(found.items, alone.items)


def test_a_unit_that_kills_every_worker_stops_the_sweep(job):
    first = job.units[0]
    pretended = Pretended(job.state, cores=1)
    calls: list[Any] = []

    def dies(_: int) -> bool:
        calls.append(1)
        return len(calls) % 2 == 0  # each worker opens the model, and dies at its first unit

    pretended.dies = dies
    with pytest.raises(ResourceError, match=rf"lost 3 workers at {first.name}.*--max-tokens"):
        finished(job, pretended)


def test_no_worker_at_all_is_said(job, monkeypatch):
    pretended = Pretended(job.state)
    monkeypatch.setattr(pretended, "wait", lambda futures, timeout: ([], futures))
    with pytest.raises(ResourceError, match="no Ray worker has started for 600 s"):
        finished(job, pretended)


def test_errors_of_a_worker_arrive_as_they_are(job, monkeypatch):
    def broken(*_: Any) -> Any:
        raise DataError("the file is gone; put it back")

    monkeypatch.setattr(sweep_items, "run_unit", broken)
    with pytest.raises(DataError, match="a Ray worker: the file is gone; put it back"):
        finished(job, Pretended(job.state))
    monkeypatch.setattr(sweep_items, "run_unit", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="a Ray worker failed at .*ZeroDivisionError"):
        finished(job, Pretended(job.state))


def test_a_worker_with_other_weights_is_refused(job, monkeypatch):
    own = sweep_ray._identity(job.state)
    crew = sweep_ray._Crew(Pretended(job.state), job, job.units)
    monkeypatch.setattr(sweep_ray, "_identity", lambda _: {**own, "weights": "f" * 64})
    with pytest.raises(
        ModelError, match="a Ray worker has another weights .ffffffffffffffff, here"
    ):
        list(crew.work())


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "no Ray cluster at '127.0.0.1:1'"),
        ("ray://127.0.0.1:1", "no Ray cluster at 'ray://127.0.0.1:1'"),
        ("somewhere", "--ray 'somewhere'; allowed are local, auto, HOST:PORT"),
    ],
)
def test_an_address_where_nothing_answers_is_said(address, said):
    assert not ray.is_initialized()
    with pytest.raises(UsageError, match=said), sweep_ray._cluster(address):
        pass


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UsageError, match=r"pip install 'glulens\[ray\]'"),
        sweep_ray._cluster("local"),
    ):
        pass


def test_a_worker_opens_the_model_by_name_and_finds_the_same(job):
    """What a process of its own does, in this one: names and options are all that it is given."""
    from glulens.interp.sweep_items import run_unit, unpack

    threads = torch.get_num_threads()
    worker = sweep_ray.Worker()
    points = [sweep_ray._plain_point(point) for point in job.points]
    try:
        said = worker.load(sweep_ray._model_name(job), sweep_ray._elsewhere(job.options), points)
        unit = next(unit for unit in job.units if unit.point == 1)
        found = unpack(worker.run(tuple(unit)))
        ours = run_unit(job.state, job.points[1], unit.task, unit.doc_ids)
    finally:
        torch.set_num_threads(threads)
    assert said == sweep_ray._identity(job.state)
    assert_frame_equal(found.items, ours.items, check_exact=False, abs_tol=1e-5)


def test_the_hubs_data_have_no_place_that_a_worker_must_find(job):
    from dataclasses import replace

    options = replace(job.options, data="hub")
    assert sweep_ray._elsewhere(options)["data"] == "hub"
    assert Path(sweep_ray._elsewhere(job.options)["data"]).is_absolute()


def test_a_cluster_is_left_as_it_was_found(job, monkeypatch):
    """One that the caller began goes on; one that a sweep began ends with it."""
    did: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda **given: did.append(given))
    monkeypatch.setattr(ray, "shutdown", lambda: did.append("shut down"))
    with sweep_ray._cluster("local") as found:
        assert found is ray
    (begun, ended) = did
    assert begun["num_cpus"] == len(os.sched_getaffinity(0))
    assert ended == "shut down"
    did.clear()
    with pytest.raises(ZeroDivisionError), sweep_ray._cluster("auto"):
        did.append(1 / 0)
    assert [entry["address"] for entry in did[:-1]] == ["auto"]
    assert did[-1] == "shut down"
    did.clear()
    with monkeypatch.context() as patched:
        patched.setattr(ray, "is_initialized", lambda: True)
        with sweep_ray._cluster("auto") as found:
            assert found is ray
    assert did == []


def test_a_cluster_that_refuses_is_one_line(monkeypatch):
    def refuses(**_: Any) -> None:
        raise RuntimeError("Version mismatch: 2.1 there\nand a long story")

    monkeypatch.setattr(ray, "init", refuses)
    with (
        pytest.raises(UsageError, match="no Ray cluster at 'auto' .*mismatch: 2.1 there") as caught,
        sweep_ray._cluster("auto"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_the_whole_sweep_goes_through_a_cluster_and_none_is_begun_for_nothing(
    job, alone, monkeypatch
):
    from contextlib import nullcontext

    from glulens.interp.sweep import _done, collect

    asked: list[str] = []

    def cluster(address: str) -> Any:
        asked.append(address)
        return nullcontext(Pretended(job.state))

    monkeypatch.setattr(sweep_ray, "_cluster", cluster)
    assert list(_done(job, [], "auto")) == []
    assert asked == []
    found = collect(job, _done(job, job.units, "auto"))
    assert asked == ["auto"]
    assert_frame_equal(found.scores, alone.scores)


def test_a_worker_whose_place_cannot_be_made_is_said(job, monkeypatch):
    pretended = Pretended(job.state)

    def fails(_: Any) -> None:
        raise ray.exceptions.RuntimeEnvSetupError("no such folder")

    monkeypatch.setattr(pretended, "get", fails)
    with pytest.raises(ResourceError, match="could not be set up: .*no such folder"):
        finished(job, pretended)


# The real thing


@pytest.mark.slow
def test_a_machine_that_dies_in_mid_sweep_changes_nothing(job, alone, crews):
    """Two nodes of one core each; the second is killed when both are at work."""
    from ray.cluster_utils import Cluster

    from glulens.interp.sweep import collect

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        busy: list[int] = []

        def watched() -> Iterator[Any]:
            for unit, found in sweep_ray.run_units(job, job.units, str(cluster.address)):
                if not busy:
                    busy.append(len([at for _, at in crews[0].at.values() if at]))
                    cluster.remove_node(second, allow_graceful=False)
                    # Its worker outlives it for a moment, in which small units can all be done.
                    until = time.monotonic() + 60
                    while sum(node["Alive"] for node in ray.nodes()) > 1:
                        assert time.monotonic() < until
                        time.sleep(0.1)
                yield unit, found

        found = collect(job, watched())
        # One worker had just done its unit, the other was at it; one of them is gone.
        assert busy == [1]
        assert sum(crews[0].losses.values()) == 1
        assert set(crews[0].losses) <= {unit.name for unit in job.units}
    finally:
        cluster.shutdown()
    assert_frame_equal(found.items, alone.items, check_exact=False, rel_tol=1e-5, abs_tol=1e-6)
    assert_frame_equal(found.scores, alone.scores, check_exact=False, rel_tol=1e-5, abs_tol=1e-6)
    assert_frame_equal(found.points, alone.points)


@pytest.mark.slow
def test_ray_on_this_machine_writes_the_same_run(job, alone, tmp_path):
    from glulens.interp.sweep import sweep

    folder = str(job.opened.source.path)
    given = {k: getattr(job.options, k) for k in ("criteria", "controls", "fractions", "tasks",
                                                  "data", "limit", "device")}  # fmt: skip
    result = sweep(folder, ray="local", output=tmp_path / "run", **given)
    assert result.manifest["ray"] == "local"
    assert_frame_equal(result.items, alone.items, check_exact=False, rel_tol=1e-5, abs_tol=1e-6)
    assert not ray.is_initialized()
