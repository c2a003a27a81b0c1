"""A candidate beside the active model, step by step: its process, its thread and the clock are moved by hand."""

import json
import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from edge_runtime.bundle.manifest import Manifest, read_manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.errors import BundleError
from edge_runtime.store import shadow as module
from edge_runtime.store.records import Slot
from edge_runtime.store.shadow import MOST_WAITING, Shadow, sorted_keys
from edge_runtime.store.shadow_process import ShadowError
from tests.support import builders
from tests.support.stepped import SteppedLoop

ACTIVE = Slot("activity", "1.0.0", "aa", Path("a.onnx"), "active")
CANDIDATE = Slot("activity", "1.1.0", "bb", Path("b.onnx"), "staged")


def _manifest(draft: builders.Draft) -> Manifest:
    return read_manifest(json.dumps(draft.manifest), "draft")


def _answer(count: int, took: float = 0.004, **changes: Any) -> tuple[dict[str, Any], bytes]:
    """Scores of a classifier for so many windows: the first label of each."""
    labels, scores = np.zeros(count, np.int64), np.array([[0.75, 0.25]] * count, np.float32)
    arrays = {"label": ["int64", [count]], "scores": ["float32", [count, 2]]}
    return {"took": took, "arrays": arrays, "named": False} | changes, labels.tobytes() + scores.tobytes()


class Process:
    """Stands in for `ShadowProcess`."""

    def __init__(self, scene: "Scene", path: Path, digest: str, *, threads: int) -> None:
        self.made = (path, digest, threads)
        self.asked: list[tuple[Any, ...]] = []
        self.ended = self.killed = 0
        self._scene = scene
        scene.process = self
        if scene.start_fault is not None:
            raise scene.start_fault

    def ask(self, shape: Any, windows: bytes, keys: Any, anew: Any) -> tuple[dict[str, Any], bytes]:
        """As `ShadowProcess.ask`."""
        self.asked.append((tuple(shape), windows, list(keys), list(anew)))
        self._scene.clock += self._scene.takes
        found = self._scene.answers.popleft() if self._scene.answers else _answer(shape[0])
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self) -> None:
        """As `ShadowProcess.kill`."""
        self.killed += 1

    def end(self) -> None:
        """As `ShadowProcess.end`."""
        self.ended += 1


class Scene:
    """A shadow whose thread runs when `serve` is called; whenever its queue is empty, the next step is done."""

    def __init__(self) -> None:
        self.loop = SteppedLoop()
        self.steps: list[Callable[[], object]] = []
        self.items: deque[Any] = deque()
        self.answers: deque[Any] = deque()
        self.rests: list[float] = []
        self.ends: list[str] = []
        self.clock, self.takes = 100.0, 0.25
        self.process: Process | None = None
        self.start_fault: Exception | None = None
        self.candidate: Manifest | Exception = _manifest(builders.classification())
        self.is_stopped = False
        self.work: tuple[Any, ...] = ()
        self.threshold: float | None = None

    # a queue, an event, the clock and a thread

    def put(self, item: object) -> None:
        """As `SimpleQueue.put`."""
        self.items.append(item)

    def get(self) -> object:
        """As `SimpleQueue.get`, which does the test's next step instead of waiting; the end without one."""
        while not self.items:
            if not self.steps:
                return None
            self.steps.pop(0)()
        return self.items.popleft()

    def wait(self, seconds: float) -> bool:
        """As `Event.wait`."""
        self.rests.append(seconds)
        return self.is_stopped

    def set(self) -> None:
        """As `Event.set`."""
        self.is_stopped = True

    def is_set(self) -> bool:
        """As `Event.is_set`."""
        return self.is_stopped

    def check(self) -> Manifest:
        """Examines the candidate."""
        if isinstance(self.candidate, Exception):
            raise self.candidate
        return self.candidate

    def make(self, beside: builders.Draft | None = None) -> Shadow:
        """The shadow itself."""
        return Shadow(
            CANDIDATE,
            ACTIVE,
            _manifest(beside or builders.classification()),
            threshold=self.threshold,
            threads=3,
            check=self.check,
            loop=self.loop.as_loop,
            on_end=self.ends.append,
        )

    def serve(self, *steps: Callable[[], object]) -> None:
        """Run the thread through these steps."""
        self.steps = [*steps]
        _, report, work, more = self.work
        try:
            found = work()
        except Exception as error:  # noqa: BLE001 - as `run_beside` does
            report(lambda error=error: more["failed"](error))
        else:
            report(lambda: more["done"](found))
        self.loop.settle()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    """With everything that waits in the test's hands."""
    made = Scene()

    def beside(name: str, report: Callable[..., Any], work: Callable[[], Any], **more: Any) -> None:
        made.work = (name, report, work, more)

    monkeypatch.setattr(module, "run_beside", beside)
    monkeypatch.setattr(module, "queue", SimpleNamespace(SimpleQueue=lambda: made))
    monkeypatch.setattr("edge_runtime.store.shadow.threading.Event", lambda: made)
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: 1.7e9, perf_counter=lambda: made.clock))
    monkeypatch.setattr(
        module, "ShadowProcess", lambda path, digest, *, threads: Process(made, path, digest, threads=threads)
    )
    return made


def _offer(shadow: Shadow, keys: list[str | None], took: float = 0.002, value: float = 1.0) -> None:
    """Windows that the active model has answered with the first label."""
    windows = np.full((len(keys), 1, 2), value, np.float32)
    scores = np.array([[0.75, 0.25]] * len(keys), np.float32)
    shadow.offer(windows, keys, Scores(label=np.zeros(len(keys), np.int64), scores=scores), took)
    windows[:] = -1  # the windower writes into them again


def test_a_shadow_answers_what_the_active_model_has_answered(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The windows are copied; the figures are of both; nothing of it is published while it starts."""
    caplog.set_level(logging.INFO)
    shadow = scene.make()
    assert shadow.document() == {
        "active": {"version": "1.0.0", "digest": "aa"}, "shadow": {"version": "1.1.0", "digest": "bb"},
        "state": "starting", "why": None, "since": 1.7e9, "left_out": 0, "failed": 0, "last_fault": None,
    }  # fmt: skip
    name, _, _, more = scene.work
    assert (name, more["most_s"]) == ("shadow", float("inf"))  # it lives as long as its model
    scene.serve(lambda: _offer(shadow, ["a", "b"]), lambda: _offer(shadow, ["a"], value=2.0))
    process = scene.process
    assert process is not None
    assert process.made == (Path("b.onnx"), "bb", 3)
    assert process.asked == [
        ((2, 1, 2), np.full(4, 1.0, np.float32).tobytes(), [], []),
        ((1, 1, 2), np.full(2, 2.0, np.float32).tobytes(), [], []),
    ]
    assert process.ended == 1
    document = shadow.document()
    assert (document["state"], document["compared"], document["labels"]["same"]) == ("running", 3, 3)
    assert document["latency_ms"] == {"active": {"p50": 2.0, "p99": 2.0}, "shadow": {"p50": 4.0, "p99": 4.0}}
    assert [each.message for each in caplog.records] == ["a shadow runs"]
    assert scene.ends == []


def test_windows_before_it_runs_are_not_taken(scene: Scene) -> None:
    """Nor after its end; they are not counted either."""
    shadow = scene.make()
    _offer(shadow, ["a"])
    assert scene.items == deque()

    def stop_and_offer() -> None:
        shadow.stop()
        _offer(shadow, ["a"])

    scene.serve(stop_and_offer)
    assert scene.items == deque()
    assert scene.process is not None
    assert scene.process.asked == []
    assert shadow.document()["left_out"] == 0


def test_it_rests_three_times_as_long_as_it_worked(scene: Scene) -> None:
    """So it takes a quarter of one core at most, however slow it is."""
    shadow = scene.make()
    scene.serve(lambda: _offer(shadow, ["a"]), lambda: setattr(scene, "takes", 2.0), lambda: _offer(shadow, ["a"]))
    assert scene.rests == [0.75, 6.0]


def test_latencies_are_for_one_window(scene: Scene) -> None:
    """Of a call with four, a quarter of its time."""
    shadow = scene.make()
    scene.answers.append(_answer(4, took=0.008))
    scene.serve(lambda: _offer(shadow, ["a"] * 4, took=0.004))
    assert shadow.document()["latency_ms"] == {"active": {"p50": 1.0, "p99": 1.0}, "shadow": {"p50": 2.0, "p99": 2.0}}


def test_windows_beyond_the_bound_are_left_out_and_counted(scene: Scene) -> None:
    """256 wait at most; one call of more is taken where none waits, since it would never be taken otherwise."""
    assert MOST_WAITING == 256
    shadow = scene.make()

    def flood() -> None:
        _offer(shadow, ["a"] * 200)
        _offer(shadow, ["a"] * 57)
        _offer(shadow, ["a"] * 56)
        _offer(shadow, ["a"])

    scene.serve(flood, lambda: _offer(shadow, ["a"] * 300), lambda: _offer(shadow, ["a"]))
    assert scene.process is not None
    assert [shape[0] for shape, *_ in scene.process.asked] == [200, 56, 300, 1]
    assert shadow.document()["left_out"] == 58


def test_a_recurrent_shadow_begins_anew_where_windows_were_left_out(scene: Scene) -> None:
    """In those streams, once, in a fixed order; the keys of the windows go with them."""
    scene.candidate = _manifest(builders.stateful(length=1))
    shadow = scene.make(builders.stateful(length=1))

    def flood() -> None:
        _offer(shadow, ["a"] * 256)
        _offer(shadow, ["c", None, "b"])

    scene.serve(flood, lambda: _offer(shadow, ["a", None]), lambda: _offer(shadow, ["b"]))
    assert scene.process is not None
    assert [(keys, anew) for _, _, keys, anew in scene.process.asked] == [
        (["a"] * 256, [None, "b", "c"]), (["a", None], []), (["b"], []),
    ]  # fmt: skip


def test_a_shadow_without_memory_is_sent_no_keys(scene: Scene) -> None:
    """They may be long, and mean nothing to it; what was left out is not remembered for it."""
    shadow = scene.make()

    def flood() -> None:
        _offer(shadow, ["a"] * 256)
        _offer(shadow, ["b"])

    scene.serve(flood)
    assert scene.process is not None
    assert [(keys, anew) for _, _, keys, anew in scene.process.asked] == [([], [])]


def test_keys_are_sorted_with_none_first() -> None:
    """An empty key is a key."""
    assert sorted_keys({"b", None, "", "a"}) == [None, "", "a", "b"]
    assert sorted_keys(set()) == []


def test_a_window_on_which_it_fails_is_counted(scene: Scene) -> None:
    """With the last reason; the figures of the others go on."""
    shadow = scene.make()
    scene.answers.extend([({"error": "no memory"}, b""), _answer(1)])
    scene.serve(lambda: _offer(shadow, ["a", "b"]), lambda: _offer(shadow, ["a"]))
    document = shadow.document()
    assert (document["failed"], document["last_fault"], document["compared"]) == (2, "no memory", 1)
    assert scene.ends == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ShadowError("crashed\nhere"), "crashed; here"),
        (ValueError("odd"), "odd"),
        (KeyError("a bug"), "a fault of the runtime, which its log describes"),
    ],
)
def test_a_shadow_that_ends_by_itself_is_reported_once(
    scene: Scene, caplog: pytest.LogCaptureFixture, error: Exception, why: str
) -> None:
    """With the reason; a bug has its traceback in the log. Its process is ended."""
    shadow = scene.make()
    scene.answers.append(error)
    scene.serve(lambda: _offer(shadow, ["a"]), lambda: _offer(shadow, ["a"]))
    assert scene.ends == [why]
    document = shadow.document()
    assert (document["state"], document["why"]) == ("ended", why)
    assert scene.process is not None
    assert (len(scene.process.asked), scene.process.ended) == (1, 1)
    assert any(each.exc_info for each in caplog.records) == isinstance(error, KeyError)
    assert shadow.why == why
    assert scene.is_stopped


def test_a_shadow_that_may_not_run_starts_nothing(scene: Scene) -> None:
    """It is examined before its process is made."""
    scene.candidate = BundleError("its key was revoked")
    scene.make()
    scene.serve()
    assert (scene.ends, scene.process) == (["its key was revoked"], None)


def test_a_process_that_does_not_start_is_the_end(scene: Scene) -> None:
    """There is none to end then."""
    scene.start_fault = ShadowError("cannot be loaded: bad")
    shadow = scene.make()
    scene.serve()
    assert scene.ends == ["cannot be loaded: bad"]
    assert shadow.document()["state"] == "ended"


def test_a_stop_kills_the_process_and_reports_nothing(scene: Scene) -> None:
    """A waiting request ends by that; its error is no fault of the candidate."""
    shadow = scene.make()
    scene.answers.append(ShadowError("was killed"))
    scene.serve(lambda: _offer(shadow, ["a"]), lambda: None)
    assert scene.ends == ["was killed"]
    again = Scene()
    assert again.process is None


def test_an_error_after_the_stop_is_not_reported(scene: Scene) -> None:
    """The kill made it."""
    shadow = scene.make()

    def stop_while_asked() -> None:
        _offer(shadow, ["a"])
        scene.answers.append(ShadowError("was killed"))
        shadow.stop()

    scene.serve(stop_while_asked)
    assert scene.process is not None
    assert scene.process.killed == 1
    assert (scene.ends, shadow.why) == ([], "")
    assert scene.items == deque([None])  # so that a thread that waits for a question ends


def test_a_stop_before_the_process_was_made_ends_the_thread(scene: Scene) -> None:
    """There is nothing to kill; the process is ended as soon as it is there."""
    shadow = scene.make()
    shadow.stop()
    scene.serve()
    assert scene.process is not None
    assert (scene.process.killed, scene.process.ended) == (0, 1)
    assert scene.ends == []


def _named(count: int, **parts: Any) -> tuple[dict[str, Any], bytes]:
    arrays = {name: [str(part.dtype), list(part.shape)] for name, part in parts.items()}
    return {"took": 0.0, "arrays": arrays, "named": True}, b"".join(part.tobytes() for part in parts.values())


def test_named_tensors_are_compared_too(scene: Scene) -> None:
    """Their names are the manifest's; several arrays stand behind one another."""
    scene.candidate = _manifest(builders.tensors())
    shadow = scene.make(builders.tensors())
    heat, peak = np.ones((1, 2, 3), np.float32), np.arange(3, dtype=np.int64).reshape(1, 3)
    scene.answers.append(_named(1, heat=heat + 2, peak=peak))

    def offer() -> None:
        shadow.offer(np.zeros((1, 2, 3), np.float32), [None], Scores(tensors={"heat": heat, "peak": peak}), 0.001)

    scene.serve(offer)
    assert shadow.document()["difference"]["heat"]["max"] == 2.0


@pytest.mark.parametrize(
    "answer",
    [
        _answer(2),  # of another number of windows
        _answer(1, arrays={"label": ["int64", []], "scores": ["float32", [1, 2]]}),
        _answer(1, arrays={"label": ["int64", [1]], "scores": ["float32", [1, 3]]}),  # more than its bytes
        _answer(1, arrays={"label": ["int64", [1]], "secret": ["float32", [1, 2]]}),
    ],
)
def test_an_answer_that_does_not_fit_ends_the_shadow(scene: Scene, answer: Any) -> None:
    """It came out of a process that runs an untrusted model."""
    shadow = scene.make()
    scene.answers.append(answer)
    scene.serve(lambda: _offer(shadow, ["a"]))
    assert scene.ends == ["answers something else than was asked"]


def test_each_array_is_read_at_its_place(scene: Scene) -> None:
    """Two windows with two labels each: the second array begins behind the first, and ends with the body."""
    shadow = scene.make()
    labels, scores = np.array([1, 0], np.int64), np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)
    header = {"took": 0.0, "arrays": {"label": ["int64", [2]], "scores": ["float32", [2, 2]]}, "named": False}
    scene.answers.append((header, labels.tobytes() + scores.tobytes()))
    scene.serve(lambda: _offer(shadow, ["a", "b"]))
    document = shadow.document()
    assert document["labels"]["active_to_shadow"] == {"low": {"low": 1, "high": 1}}
    assert document["difference"]["score"]["max"] == 0.5
    assert scene.ends == []


def test_the_configured_threshold_is_that_of_both(scene: Scene) -> None:
    """Else each has its own."""
    scene.candidate = _manifest(builders.anomaly(threshold=9.0))
    scene.threshold = 0.5
    shadow = scene.make(builders.anomaly(threshold=8.0))
    one = np.array([1.0], np.float32)
    scene.answers.append(({"took": 0.0, "arrays": {"score": ["float32", [1]]}, "named": False}, one.tobytes()))
    scene.serve(lambda: shadow.offer(np.zeros((1, 1, 3), np.float32), [None], Scores(score=one), 0.001))
    assert shadow.document()["labels"]["active_to_shadow"] == {"anomaly": {"anomaly": 1}}


def test_figures_are_read_under_the_lock(scene: Scene) -> None:
    """The thread adds while the loop reads."""
    shadow = scene.make()
    held: list[bool] = []

    class Lock:
        """Notes whether it is held."""

        is_held = False

        def __enter__(self) -> None:
            assert not self.is_held
            self.is_held = True

        def __exit__(self, *_: object) -> None:
            self.is_held = False

    lock = Lock()
    shadow._lock = cast("Any", lock)

    def watched(real: Callable[..., object]) -> Callable[..., object]:
        def call(*each: object) -> object:
            held.append(lock.is_held)
            return real(*each)

        return call

    def watch() -> None:
        agreement = cast("Any", shadow._agreement)
        for name in ("took", "add", "document"):
            setattr(agreement, name, watched(getattr(agreement, name)))
        _offer(shadow, ["a"])

    scene.serve(watch, shadow.document)
    assert held == [True] * 4
