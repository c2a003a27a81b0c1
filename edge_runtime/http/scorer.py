"""One thread that runs the models for all requests: what waits together is scored together.

Guarantee: at most `MAX_WAITING` requests wait; one more is refused with 503. A call of the model takes at most
`MAX_WINDOWS` windows, so that a large request gives way to small ones. The scores are those that `model.py` gives to
the stream, to the bit.

The daemon's own sessions are used, from a second thread: an onnxruntime session may be run by several threads at a
time, and `Model.run` keeps nothing between calls. Measured beside the alternatives, a session of its own costs the
model's memory once more, and handing the windows to the loop makes the stream wait for each call; this costs neither.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_runtime.http.answers import RefusedError, busy
from edge_runtime.model import Model, ModelError, Scores
from edge_runtime.readings import Floats
from edge_runtime.windows import Carry

MAX_WAITING = 64
MAX_WINDOWS = 256
PATIENCE_S = 10.0
_FIELDS = ("label", "scores", "value", "score")


@dataclass(slots=True, eq=False)
class _Task:
    """Windows of one request, and where its thread waits for the scores."""

    model: Model
    windows: Floats
    carries: Sequence[Carry] | None
    done: threading.Event = field(default_factory=threading.Event)
    scores: Scores | None = None
    error: Exception | None = None
    abandoned: bool = False


class Scorer:
    """Scores windows in a thread of its own, together with those of other requests."""

    def __init__(self) -> None:
        self._waiting: deque[_Task] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self.batches = 0
        self.windows = 0
        self._thread = threading.Thread(target=self._serve, name="http-model", daemon=True)
        self._thread.start()

    def score(self, model: Model, windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
        """The scores of `[n, *shape]` windows; blocks the calling thread, at most for `PATIENCE_S`.

        Raises:
            RefusedError: 503 where too many wait, 422 where the model cannot take the windows.
        """
        task = _Task(model, windows, carries)
        with self._changed:
            if self._stopped or len(self._waiting) >= MAX_WAITING:
                raise busy("too many requests are waiting: try again in a second")
            self._waiting.append(task)
            self._changed.notify()
        if not task.done.wait(PATIENCE_S):
            task.abandoned = True
            raise busy(f"no answer within {PATIENCE_S:g} s: try again later")
        if task.error is not None:
            if isinstance(task.error, ModelError):
                raise RefusedError(422, f"the model cannot score these windows: {task.error}")
            raise task.error
        assert task.scores is not None
        if task.scores.finite_rows() is not None:
            raise RefusedError(422, "the model answered with NaN or infinity")
        return task.scores

    def stop(self) -> None:
        """Let the thread end; what waits is refused."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(5.0)

    def _serve(self) -> None:
        while (tasks := self._next()) is not None:
            self._run(tasks)

    def _next(self) -> list[_Task] | None:
        """The oldest task, and those behind it that the same call of the model can take."""
        with self._changed:
            while not self._waiting and not self._stopped:
                self._changed.wait()
            if self._stopped:
                for task in self._waiting:
                    task.error = busy("the server is stopping")
                    task.done.set()
                return None
            first = self._waiting.popleft()
            tasks, count = [first], len(first.windows)
            while self._waiting and first.carries is None:
                other = self._waiting[0]
                if other.model is not first.model or other.carries is not None:
                    break
                count += len(other.windows)
                if count > MAX_WINDOWS:
                    break
                tasks.append(self._waiting.popleft())
        return [task for task in tasks if not task.abandoned]

    def _run(self, tasks: list[_Task]) -> None:
        if not tasks:
            return
        try:
            windows = tasks[0].windows if len(tasks) == 1 else np.concatenate([task.windows for task in tasks])
            scores = self._in_parts(tasks[0].model, windows, tasks[0].carries)
        except ModelError as error:
            if len(tasks) == 1:
                tasks[0].error = error
            else:
                for task in tasks:  # one request's windows must not spoil another's
                    self._run([task])
        except Exception as error:  # noqa: BLE001 - the stage's edge: the thread goes on, the request is told
            for task in tasks:
                task.error = error
        else:
            _share(tasks, scores)
        self.batches += 1
        self.windows += sum(len(task.windows) for task in tasks)
        for task in tasks:
            task.done.set()

    def _in_parts(self, model: Model, windows: Floats, carries: Sequence[Carry] | None) -> Scores:
        if carries is not None or len(windows) <= MAX_WINDOWS:
            return model.run(windows, carries)
        parts = [model.run(windows[at : at + MAX_WINDOWS]) for at in range(0, len(windows), MAX_WINDOWS)]
        return Scores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in _present(parts[0])})


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
