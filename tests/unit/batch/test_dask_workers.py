"""What is asked of Dask's workers before anything is submitted, and how a lost cluster ends a run: with stand-ins."""

import hashlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime import __version__
from edge_runtime.batch import dask_engine
from edge_runtime.batch.dask_engine import NO_WORKER_S, PROBE, _Cluster, _mistake, _patiently
from edge_runtime.batch.score import Job
from edge_runtime.errors import CommandError
from edge_runtime.recordings.blocks import Wanted

GOOD = {"runtime": __version__, "onnxruntime": version("onnxruntime"), "pyarrow": None, "bundle": "d"}
JOB = Job("/b.onnx", "d", Wanted(("a",), (1, 1)))


def test_the_probe_finds_what_is_here(tmp_path: Path) -> None:
    """What a worker evaluates gives releases, and the digest of the bundle at the path."""
    (tmp_path / "b.onnx").write_bytes(b"bundle")
    found = eval(f"(lambda BUNDLE: {PROBE})({str(tmp_path / 'b.onnx')!r})")  # noqa: S307 - as a worker does
    assert found["runtime"] == __version__
    assert found["onnxruntime"] == version("onnxruntime")
    assert found["bundle"] == hashlib.sha256(b"bundle").hexdigest()
    assert eval(f"(lambda BUNDLE: {PROBE})('/nowhere')")["bundle"] is None  # noqa: S307


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"runtime": None}, "expected edge-inference-runtime in its environment, found none: pip install"),
        ({"onnxruntime": None}, "expected onnxruntime in its environment, found none"),
        ({"runtime": "0.0.1"}, f"expected runtime {__version__} as here, found 0.0.1"),
        ({"onnxruntime": "1.0"}, "as here, found 1.0: install the same release there"),
        ({"bundle": None}, "expected the bundle /b.onnx, found no such file: put it at the same path"),
        ({"bundle": "other"}, "found another one: copy it there"),
    ],
)
def test_a_worker_that_could_not_do_it_is_refused(change: dict[str, Any], words: str) -> None:
    """Package, releases and bundle are those of the machine that asks."""
    assert words in _mistake(JOB, GOOD | change, None, 1)
    assert bool(words) == bool(_mistake(JOB, GOOD | change, None, 1))


def test_memory_is_judged() -> None:
    """A limit below what a part needs is named with both; no limit is enough."""
    assert "expected a memory limit of 200 MiB or more, found 100 MiB" in _mistake(JOB, GOOD, 100 << 20, 200 << 20)
    assert _mistake(JOB, GOOD, 300 << 20, 200 << 20) == ""
    assert _mistake(JOB, GOOD, 0, 200 << 20) == ""


class StandIn:
    """As much of a client and its future as is used."""

    def __init__(self, *, workers: int = 1, status: str = "running", pending: int = 0) -> None:
        self.status = status
        self.workers = dict.fromkeys(range(workers))
        self.pending = pending
        self.answers: Any = ("result", {})

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        """Whom the scheduler knows."""
        assert n_workers == -1
        return {"workers": self.workers}

    def result(self) -> Any:
        """What came of the part; asked once and without a timeout, which would cancel what is on its way."""
        if isinstance(self.answers, Exception):
            raise self.answers
        return self.answers


class Future:
    """A part that is pending for some looks."""

    def __init__(self, client: StandIn) -> None:
        self._client = client
        self.result = client.result

    @property
    def status(self) -> str:
        """Of the part."""
        self._client.pending -= 1
        return "pending" if self._client.pending >= 0 else "finished"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between two looks."""
    monkeypatch.setattr(dask_engine, "POLL_S", 0)


def test_a_result_is_waited_for() -> None:
    """Progress is shown while a part is pending; its result is then taken whole."""
    shown: list[int] = []
    client = StandIn(pending=3)
    found: Any = _patiently(_Cluster(client, "x"), Future(client), lambda: shown.append(1))
    assert (found, len(shown)) == (("result", {}), 3)


def test_a_lost_scheduler_is_one_sentence() -> None:
    """Whether it is noticed while a part is pending, or by the fetching of one."""
    for client in (StandIn(pending=99, status="connecting"), StandIn(status="closed")):
        client.answers = RuntimeError("cannot access local variable 'response'")
        with pytest.raises(CommandError, match=r"^tcp://x: the Dask scheduler was lost: run the same command again"):
            _patiently(_Cluster(client, "tcp://x"), Future(client), lambda: None)


def test_a_scheduler_that_does_not_answer_is_lost() -> None:
    """Also where the client still believes that it is connected."""
    client = StandIn(pending=9)

    def gone(n_workers: int) -> dict[str, Any]:
        raise OSError(f"closed, asked for {n_workers}")

    client.scheduler_info = gone  # type: ignore[method-assign]
    with pytest.raises(CommandError, match=r"^x: the Dask scheduler was lost: run the same command again"):
        _patiently(_Cluster(client, "x"), Future(client), lambda: None)


def test_lost_workers_are_one_sentence() -> None:
    """A cluster whose workers are all gone is given a while to bring others, and then up."""
    client = StandIn(workers=0, pending=9)
    times = iter([0.0, 1.0, NO_WORKER_S + 2.0])
    with pytest.raises(CommandError, match="all Dask workers were lost"):
        _patiently(_Cluster(client, "x", lambda: next(times)), Future(client), lambda: None)


def test_a_worker_that_joins_later_is_checked(tmp_path: Path) -> None:
    """A worker of another release that joins during the run ends it, and is named; a good one is welcome."""
    bundle = tmp_path / "b.onnx"
    bundle.write_bytes(b"bundle")
    job, answers, asked = replace(JOB, bundle=str(bundle)), {"old": GOOD}, list[Any]()

    def run(function: Any, source: str, workers: list[str] | None, on_error: str) -> dict[str, Any]:
        assert (function, on_error) == (eval, "return")
        asked.append(workers)
        return {name: answers[name] for name in workers or answers}

    client: Any = SimpleNamespace(
        status="running",
        wait_for_workers=lambda count, timeout: None,
        run=run,
        scheduler_info=lambda n_workers: {"workers": {name: {"memory_limit": 0} for name in answers}},
    )
    times = iter([0.0, 10.0, 20.0, 30.0])
    cluster = _Cluster(client, "x", lambda: next(times))
    cluster.check_workers(job)
    answers["good"] = GOOD
    cluster.look()
    answers["bad"] = GOOD | {"runtime": "0.0.1"}
    with pytest.raises(CommandError, match=r"^worker bad: expected runtime .* found 0\.0\.1: install the same release"):
        cluster.look()
    assert asked == [None, ["good"], ["bad"]]


def test_a_part_that_fails_is_named() -> None:
    """What a part of the cluster's own raises is one sentence with its first line."""
    client = StandIn()
    client.answers = ValueError("broken\nand more")
    with pytest.raises(CommandError, match=r"^the Dask cluster gave a part up: broken: run the same command again"):
        _patiently(_Cluster(client, "x"), Future(client), lambda: None)


def test_a_cluster_without_workers_is_refused() -> None:
    """Nothing is submitted without workers."""

    def no_workers(count: int, timeout: int) -> None:
        raise TimeoutError

    client = SimpleNamespace(wait_for_workers=no_workers, status="running")
    with pytest.raises(CommandError, match="expected workers, found none: start some"):
        _Cluster(client, "x").check_workers(JOB)
