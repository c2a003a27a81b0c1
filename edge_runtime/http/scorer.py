"""The models behind requests: one call at a time, and what waits together is scored together.

Guarantee: at most `MAX_WAITING` requests wait; one more is refused with 503. A call of the model takes at most
`MAX_WINDOWS` windows, so that a large request gives way to small ones. The scores are those that `model.py` gives to
the stream, to the bit.

There is no thread for it: of the threads that bring requests, the first runs the model for itself and for those who
have come meanwhile, and then the next one does. Handing each request to a thread and back took more time than the
models of small devices.

The daemon's own sessions are used, beside the loop's thread: an onnxruntime session may be run by several threads at a
time, and `Model.run` keeps nothing between calls. A session of its own would cost the model's memory once more, and
windows handed to the loop would make the stream wait for each call; this costs neither.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_runtime.http.answers import RefusedError, busy
from edge_runtime.model import Model, ModelError, Scores
from edge_runtime.progress import working
from edge_runtime.readings import Floats
from edge_runtime.windows import Carry

MAX_WAITING = 64
MAX_WINDOWS = 256
PATIENCE_S = 10.0
HANG_S = 600.0  # a slow model may need minutes for `MAX_WINDOWS`, and no request may starve the watchdog
_FIELDS = ("label", "scores", "value", "score")


@dataclass(slots=True, eq=False)
class _Task:
    """Windows of one request, and where its thread waits: for the scores, or for its turn to run the model."""

    model: Model
    windows: Floats
    carries: Sequence[Carry] | None
    woken: threading.Event = field(default_factory=threading.Event)
    leads: bool = False
    scores: Scores | None = None
    error: Exception | None = None

    @property
    def is_done(self) -> bool:
        """There is an answer."""
        return self.scores is not None or self.error is not None


class Scorer:
    """Scores windows in the thread that brings them, or in that of another request."""

    def __init__(self) -> None:
        self._waiting: deque[_Task] = deque()
        self._lock = threading.Lock()
        self._led = False
        self._stopped = False

    def score(self, model: Model, windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
        """The scores of `[n, *shape]` windows; waits for its turn, at most for `PATIENCE_S`.

        Raises:
            RefusedError: 503 where too many wait, 422 where the model cannot take the windows.
        """
        task = _Task(model, windows, carries)
        with self._lock:
            if self._stopped or len(self._waiting) >= MAX_WAITING:
                raise busy("too many requests are waiting: try again in a second")
            self._waiting.append(task)
            if not self._led:
                self._led = task.leads = True
        if not task.leads and not task.woken.wait(PATIENCE_S):
            self._give_up(task)
        if task.leads:
            try:
                while not task.is_done:
                    self._run(self._next())
            finally:
                self._pass_on()
        if isinstance(task.error, ModelError):
            raise RefusedError(422, f"the model cannot score these windows: {task.error}")
        if task.error is not None:
            raise task.error
        assert task.scores is not None
        if task.scores.finite_rows() is not None:
            raise RefusedError(422, "the model answered with NaN or infinity")
        return task.scores

    def stop(self) -> None:
        """Refuse everything from now on."""
        with self._lock:
            self._stopped = True
            while self._waiting:
                task = self._waiting.popleft()
                task.error = busy("the server is stopping")
                task.woken.set()

    def _give_up(self, task: _Task) -> None:
        """Leave the queue, unless the answer or the turn has come at the last moment."""
        with self._lock:
            if task in self._waiting and not task.leads:
                self._waiting.remove(task)
                task.error = busy(f"no turn within {PATIENCE_S:g} s: try again later")
        if not task.leads and not task.is_done and not task.woken.wait(PATIENCE_S):
            task.error = busy(f"no answer within {2 * PATIENCE_S:g} s: try again later")

    def _pass_on(self) -> None:
        """Let the request that has waited longest run the model."""
        with self._lock:
            if not self._waiting:
                self._led = False
                return
            heir = self._waiting[0]
            heir.leads = True
        heir.woken.set()

    def _next(self) -> list[_Task]:
        """The oldest task, and those behind it that the same call of the model can take."""
        with self._lock:
            if not self._waiting:
                return []
            first = self._waiting.popleft()
            tasks, count = [first], len(first.windows)
            while self._waiting and first.carries is None:
                other = self._waiting[0]
                count += len(other.windows)
                if other.model is not first.model or other.carries is not None or count > MAX_WINDOWS:
                    break
                tasks.append(self._waiting.popleft())
        return tasks

    def _run(self, tasks: list[_Task]) -> None:
        if not tasks:
            return
        try:
            windows = tasks[0].windows if len(tasks) == 1 else np.concatenate([task.windows for task in tasks])
            scores = self._in_parts(tasks[0].model, windows, tasks[0].carries)
        except ModelError as error:
            if len(tasks) > 1:
                for task in tasks:  # one request's windows must not spoil another's
                    self._run([task])
                return
            tasks[0].error = error
        except Exception as error:  # noqa: BLE001 - another request's thread must not die of it: each raises its own
            for task in tasks:
                task.error = error
        else:
            _share(tasks, scores)
        for task in tasks:
            task.woken.set()

    def _in_parts(self, model: Model, windows: Floats, carries: Sequence[Carry] | None) -> Scores:
        if carries is not None or len(windows) <= MAX_WINDOWS:
            return _score(model, windows, carries)
        parts = [_score(model, windows[at : at + MAX_WINDOWS], None) for at in range(0, len(windows), MAX_WINDOWS)]
        return Scores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _present(parts[0])})


def _score(model: Model, windows: Floats, carries: Sequence[Carry] | None) -> Scores:
    with working("a model that answers a request", HANG_S):
        return model.run(windows, carries)


def _share(tasks: list[_Task], scores: Scores) -> None:
    if len(tasks) == 1:
        tasks[0].scores = scores
        return
    start = 0
    for task in tasks:
        stop = start + len(task.windows)
        parts: dict[str, Any] = {name: getattr(scores, name)[start:stop] for name in _present(scores)}
        task.scores = Scores(**parts)
        start = stop


def _present(scores: Scores) -> list[str]:
    return [name for name in _FIELDS if getattr(scores, name) is not None]
