"""The thread of a slow model: its order, the bound of its queue, and its end."""

import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.model import ModelError, Scores
from edge_runtime.config.tables import ModelTable
from edge_runtime.readings import Carry, Floats, Receipt
from edge_runtime.stream.worker import MAX_PENDING_WINDOWS, LoadedBundle, ModelCall, Worker, rehearse
from edge_runtime.system.counters import Counters


class _Thread:
    """Stands in for the background thread: it works when `step` is called."""

    def __init__(self) -> None:
        self.asked: list[tuple[Callable[[], Scores], Callable[[Scores], None], Callable[[Exception], None], str]] = []
        self.stopped = 0

    def submit(
        self,
        work: Callable[[], Scores],
        done: Callable[[Scores], None],
        failed: Callable[[Exception], None],
        *,
        what: str,
    ) -> None:
        """As `BackgroundThread.submit`."""
        assert not self.stopped
        self.asked.append((work, done, failed, what))

    def stop(self) -> None:
        """As `BackgroundThread.stop`."""
        self.stopped += 1

    def step(self) -> None:
        work, done, failed, what = self.asked.pop(0)
        assert what == "model press"
        try:
            scores = work()
        except Exception as error:  # noqa: BLE001 - as the thread does
            failed(error)
        else:
            done(scores)


class _Model:
    """Answers with the first number of each window; fails on a negative one."""

    def run(self, windows: Floats, carries: list[Carry]) -> Scores:
        if windows.min() == -1.0:
            raise ModelError("it cannot take this")
        if windows.min() == -2.0:
            raise ValueError("a bug")
        return Scores(value=windows[:, :1].copy())


class _Bench:
    """A worker, and what it has finished."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.began = time.perf_counter()
        self.finished: list[float] = []
        self.failed: list[float] = []
        loop = cast("Any", type("_Loop", (), {"call_soon_threadsafe": None}))
        self.worker = Worker("press", loop, self._finish, self._fail, counters=self.counters)
        self.thread = _Thread()
        self.worker._thread = cast("Any", self.thread)
        self.loaded = LoadedBundle(cast("Any", _Model()), cast("Any", None), None)

    def _finish(self, call: ModelCall, scores: Scores) -> None:
        assert scores.value is not None
        assert 0.0 <= call.took <= time.perf_counter() - self.began
        self.finished.append(float(scores.value[0, 0]))

    def _fail(self, call: ModelCall, error: ModelError) -> None:
        assert str(error) == "it cannot take this"
        self.failed.append(float(call.windows[0, 0]))

    def submit(self, number: float, count: int = 1, *, receipt: Receipt | None = None) -> Floats:
        windows = np.full((count, 1), number, np.float32)
        call = ModelCall(
            self.loaded,
            windows,
            [None] * count,
            [0.0] * count,
            [None] * count,
            [receipt] * count,
            [Carry()] * count,
            0.0,
        )
        self.worker.submit(call)
        return windows


def test_calls_are_answered_one_after_the_other_in_their_order() -> None:
    """One is in the thread at a time; the windows are those of the call, whatever is written over them since."""
    bench = _Bench()
    assert bench.worker.is_idle
    for number in (1.0, 2.0, 3.0):
        bench.submit(number)[:] = 9.0
        assert len(bench.thread.asked) == 1
    assert not bench.worker.is_idle
    for expected in (1, 2, 3):
        bench.thread.step()
        assert len(bench.finished) == expected
    assert bench.finished == [1.0, 2.0, 3.0]
    assert bench.worker.is_idle


def test_a_call_that_fails_is_handed_back_and_the_next_one_runs() -> None:
    """In its place among the others."""
    bench = _Bench()
    for number in (1.0, -1.0, 3.0):
        bench.submit(number)
    for _ in range(3):
        bench.thread.step()
    assert (bench.finished, bench.failed) == ([1.0, 3.0], [-1.0])
    assert bench.worker.is_idle


def test_a_bug_in_the_thread_is_raised_in_the_loop() -> None:
    """It is no failure of the model."""
    bench = _Bench()
    bench.submit(-2.0)
    with pytest.raises(ValueError, match="a bug"):
        bench.thread.step()
    assert bench.failed == []


def test_beyond_the_bound_the_oldest_windows_are_dropped_and_counted() -> None:
    """Those that wait: the one in the model is answered, and the newest too."""
    bench = _Bench()
    bench.submit(0.0, 100)
    bench.submit(1.0, 500)
    bench.submit(2.0, 524)
    assert bench.counters.dropped == {}  # the bound itself
    bench.submit(3.0, 10)
    assert bench.counters.dropped == {"model_busy": 500}
    bench.submit(4.0, 491)
    assert bench.counters.dropped == {"model_busy": 1024}
    for _ in range(3):
        bench.thread.step()
    assert bench.finished == [0.0, 3.0, 4.0]


def test_as_many_calls_are_dropped_as_one_needs_the_room_of() -> None:
    """And no more."""
    bench = _Bench()
    for number, count in ((0.0, 1), (1.0, 400), (2.0, 400), (3.0, 200), (4.0, 800)):
        bench.submit(number, count)
    assert bench.counters.dropped == {"model_busy": 800}
    for _ in range(3):
        bench.thread.step()
    assert bench.finished == [0.0, 3.0, 4.0]


def test_one_call_beyond_the_bound_waits_alone() -> None:
    """It is the newest: all that waits before it is dropped."""
    bench = _Bench()
    for number, count in ((0.0, 1), (1.0, 1), (2.0, 2 * MAX_PENDING_WINDOWS)):
        bench.submit(number, count)
    assert bench.counters.dropped == {"model_busy": 1}
    bench.thread.step()
    bench.thread.step()
    assert bench.finished == [0.0, 2.0]
    assert bench.worker.has_room


def test_windows_that_a_broker_would_send_again_are_never_dropped() -> None:
    """Those without receipts go first; if there are none, all stay."""
    bench = _Bench()
    receipt = Receipt(lambda: None)
    bench.submit(0.0)
    bench.submit(1.0, 600, receipt=receipt)
    bench.submit(2.0, 300)
    bench.submit(3.0, 600, receipt=receipt)
    assert bench.counters.dropped == {"model_busy": 300}
    bench.submit(4.0, 600, receipt=receipt)
    assert bench.counters.dropped == {"model_busy": 300}
    for _ in range(4):
        bench.thread.step()
    assert bench.finished == [0.0, 1.0, 3.0, 4.0]


def test_a_source_may_read_on_while_less_than_half_of_the_bound_waits() -> None:
    """What is in the model does not wait."""
    bench = _Bench()
    bench.submit(0.0, 900)
    bench.submit(1.0, 511)
    assert bench.worker.has_room
    bench.submit(2.0, 1)
    assert not bench.worker.has_room
    bench.thread.step()
    assert bench.worker.has_room


def test_the_thread_of_a_retired_worker_ends_with_its_last_call() -> None:
    """At once where there is none."""
    bench = _Bench()
    bench.submit(1.0)
    bench.submit(2.0)
    bench.worker.retire()
    bench.thread.step()
    assert bench.thread.stopped == 0
    bench.thread.step()
    assert bench.thread.stopped == 1
    assert bench.finished == [1.0, 2.0]
    idle = _Bench()
    idle.worker.retire()
    assert idle.thread.stopped == 1


def test_a_worker_that_is_not_retired_keeps_its_thread() -> None:
    """The next call needs it; a stop ends it at once."""
    bench = _Bench()
    bench.submit(1.0)
    bench.thread.step()
    assert bench.thread.stopped == 0
    bench.worker.stop()
    assert bench.thread.stopped == 1


class _Timed:
    """A model whose third run takes so many seconds, by a clock of the test."""

    def __init__(self, seconds: float, start: float) -> None:
        self.now, self.seconds, self.runs = start - 120.0, seconds, 0
        self.manifest = cast("Any", type("_Manifest", (), {"input": type("_Input", (), {"tensor_shape": (2, 3)})}))

    def run(self, windows: Floats) -> None:
        assert windows.shape == (1, 2, 3)
        assert not windows.any()
        self.runs += 1
        self.now += self.seconds if self.runs == 2 else 60.0  # the first one fills caches

    def run_borrowed(self, windows: Floats) -> None:
        assert windows.shape == (1, 2, 3)
        self.now += 60.0


@pytest.mark.parametrize(
    ("run", "seconds", "start", "slow"),
    [
        ("auto", 0.005, 0.0, False),
        ("auto", 0.0049, 50.0, False),
        ("auto", 0.0051, 50.0, True),
        ("loop", 9.0, 50.0, False),
        ("worker", 0.0, 50.0, True),
    ],
)
def test_a_model_slower_than_five_milliseconds_is_kept_off_the_loop(
    run: str, seconds: float, start: float, monkeypatch: pytest.MonkeyPatch, *, slow: bool
) -> None:
    """Measured behind the first runs; the table may decide it."""
    model = _Timed(seconds, start)
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    config = ModelTable(name="m", bundle="m.onnx", source="s", run=cast("Any", run))
    found = rehearse(cast("Any", model), config)
    assert found.slow == slow
    assert found.model is cast("Any", model)
    assert model.runs == 2
