"""The models behind requests: requests that wait for the same model are scored together, one call at a time.

Guarantee: at most `MAX_WAITING` requests wait; a further one is refused with 503, and so is one that has waited for
`PATIENCE_S`. A call of the model takes at most `MAX_WINDOWS` windows: a larger request is scored in parts, in turns
with others. The windows of one request never affect the answer of another. The scores equal those of `model.py` in the
stream, bit for bit.

A `Scorer` has no thread: its owner calls `turn` until nothing waits, and checks its sockets in between. It uses the
sessions of the daemon, beside the loop's thread: an onnxruntime session may be run by several
threads at a time, and `Model.run` keeps nothing between calls. A session of its own would cost the model's memory once
more, and windows handed to the loop would make the stream wait for each call; this costs neither.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_runtime.bundle.model import Model, ModelError, Scores
from edge_runtime.http.responses import HttpError, Response, busy
from edge_runtime.readings import Carry, Floats
from edge_runtime.system.watchdog import working

MAX_WAITING = 64
MAX_WINDOWS = 256
MAX_WAITING_BYTES = 32 << 20  # of windows; one request alone may hold more
PATIENCE_S = 10.0
HANG_S = 600.0  # a slow model may need minutes for `MAX_WINDOWS`, and no request may starve the watchdog


@dataclass(slots=True, eq=False)
class Work:
    """The windows of one request, and the function that turns their scores into an answer.

    Attributes:
        model: that scores them.
        windows: float32 `[n, *shape]`.
        finish: turns the scores into an answer.
        carries: the states of a recurrent model, one for each window.
        answer: the answer, or the refusal; None before either.
        on_call: gets the windows and the nanoseconds of each call of the model in which this request is the first.
        asked: the time of its creation, by `time.perf_counter_ns`.
        begun: the start of its first call of the model; 0 before that.
        model_ns: the duration of its calls.
    """

    model: Model
    windows: Floats
    finish: Callable[[Scores], Response]
    carries: Sequence[Carry] | None = None
    answer: Response | HttpError | Exception | None = None
    since: float = field(default_factory=time.monotonic)
    parts: list[Scores] = field(default_factory=list)
    scored: int = 0
    on_call: Callable[[int, int], None] | None = None
    asked: int = field(default_factory=time.perf_counter_ns)
    begun: int = 0
    model_ns: int = 0


class Scorer:
    """The requests that wait for a model, in order of arrival."""

    def __init__(self) -> None:
        self._waiting: deque[Work] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting_for(self, model: Model) -> int:
        """The number of requests that wait for a model."""
        return sum(work.model is model for work in self._waiting)

    def add(self, work: Work) -> None:
        """Queue it.

        Raises:
            HttpError: 503 if too many wait already.
        """
        held = sum(waiting.windows.nbytes for waiting in self._waiting)
        if len(self._waiting) >= MAX_WAITING or (held and held + work.windows.nbytes > MAX_WAITING_BYTES):
            raise busy("too many requests are waiting: try again in a second")
        self._waiting.append(work)

    def turn(self) -> list[Work]:
        """Run one call of a model, for the oldest request and others that fit. Return the requests it completes."""
        if not self._waiting:
            return []
        works = self._next()
        late = time.monotonic() - PATIENCE_S
        if works[0].since < late and not works[0].scored:
            works[0].answer = busy(f"no turn within {PATIENCE_S:g} s: try again later")
        else:
            with working("a model that answers a request", HANG_S):
                self._call(works)
        return [work for work in works if work.answer is not None]

    def score(self, work: Work) -> Response:
        """Score one request by itself, to its end.

        Raises:
            HttpError: 422 where the model cannot take the windows.
        """
        self.add(work)
        while work.answer is None:
            self.turn()
        return result(work)

    def _call(self, works: list[Work]) -> None:
        if len(works) == 1:
            self._part(works[0])
        else:
            _together(works)

    def _next(self) -> list[Work]:
        first = self._waiting.popleft()
        works, count = [first], len(first.windows)
        while self._waiting and first.carries is None:
            other = self._waiting[0]
            count += len(other.windows)
            if other.model is not first.model or other.carries is not None or count > MAX_WINDOWS:
                break
            works.append(self._waiting.popleft())
        return works

    def _part(self, work: Work) -> None:
        """Score a small request, or the next part of a large one, which then waits behind the others."""
        at, stop = work.scored, work.scored + MAX_WINDOWS
        carries = None if work.carries is None else work.carries[at:stop]
        try:
            work.parts.append(_run([work], work.windows[at:stop], carries))
        except Exception as error:  # noqa: BLE001 - one request's fault; `result` tells ModelError from others
            work.answer = error
            return
        work.scored = stop
        if stop < len(work.windows):
            self._waiting.append(work)
        else:
            _finish(work, work.parts[0] if len(work.parts) == 1 else Scores.joined(work.parts))


def result(work: Work) -> Response:
    """The answer.

    Raises:
        HttpError: the model cannot take the windows, or the request was refused.
        Exception: a fault of ours.
    """
    answer = work.answer
    assert answer is not None
    if isinstance(answer, ModelError):
        raise HttpError(422, f"the model cannot score these windows: {answer}")
    if isinstance(answer, Exception):
        raise answer
    return answer


def _run(works: list[Work], windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
    """Run one call of the model for these requests; each of them counts its whole time."""
    began = time.perf_counter_ns()
    try:
        return works[0].model.run(windows, carries) if carries is not None else works[0].model.run(windows)
    finally:
        took = time.perf_counter_ns() - began
        for work in works:
            work.begun = work.begun or began
            work.model_ns += took
        if works[0].on_call is not None:
            works[0].on_call(len(windows), took)


def _together(works: list[Work]) -> None:
    try:
        scores = _run(works, np.concatenate([work.windows for work in works]))
    except ModelError:
        for work in works:  # one request's windows must not spoil another's
            try:
                _finish(work, _run([work], work.windows))
            except ModelError as error:
                work.answer = error
    except Exception as error:  # noqa: BLE001 - each of the requests gets it
        for work in works:
            work.answer = error
    else:
        start = 0
        for work in works:
            stop = start + len(work.windows)
            _finish(work, scores.rows(slice(start, stop)))
            start = stop


def _finish(work: Work, scores: Scores) -> None:
    try:
        if scores.finite_rows() is not None:
            raise HttpError(422, "the model answered with NaN or infinity")  # noqa: TRY301 - as any other refusal
        work.answer = work.finish(scores)
    except Exception as error:  # noqa: BLE001 - one request's fault must not keep its neighbours waiting
        work.answer = error
