"""A candidate beside the active model, on the same windows: only the agreement of the two is published.

Guarantee: the active model never waits for its shadow, and never fails with it. The shadow runs in its own process
(`shadow_process.py`). Windows are queued without waiting; while `MOST_WAITING` of them wait, further ones are skipped
and counted. Between two requests the process rests for `REST` times the duration of the last one, so that it uses at
most a quarter of one core, however slow it is. A shadow that crashes, hangs or cannot be loaded ends, and `on_end` gets
the reason.

Weak points: it costs the memory of a second runtime (60 to 100 MB). A recurrent shadow restarts with the zero state in
a stream with skipped windows, so that under load it is compared with less memory than it would have.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.bundle.open import one_line
from edge_runtime.errors import EdgeError
from edge_runtime.readings import Floats
from edge_runtime.store.agreement import Agreement
from edge_runtime.store.records import Slot
from edge_runtime.store.shadow_process import ShadowError, ShadowProcess
from edge_runtime.system.background import run_beside
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

MOST_WAITING = 256
REST = 3.0

_log = get_logger("shadow")


class Question:
    """Windows that the active model has answered: copies, since the originals are overwritten."""

    __slots__ = ("keys", "scores", "windows")

    def __init__(self, windows: Floats, keys: Sequence[str | None], scores: Scores) -> None:
        self.windows = windows.copy()
        self.keys = list(keys)
        self.scores = scores


class Shadow:
    """One candidate that runs beside one active bundle.

    Args:
        slot: the candidate.
        active: the slot of the active bundle.
        beside: the manifest of the active bundle.
        threshold: of the configuration, if it sets one.
        threads: of onnxruntime.
        check: called in the shadow's thread before anything is started; returns the candidate's manifest.
        loop: the event loop.
        on_end: called on the loop with the reason when it has ended by itself.
    """

    def __init__(
        self,
        slot: Slot,
        active: Slot,
        beside: Manifest,
        *,
        threshold: float | None,
        threads: int,
        check: Callable[[], Manifest],
        loop: Loop,
        on_end: Callable[[str], None],
    ) -> None:
        self.slot = slot
        self.active = active
        self._beside = beside
        self._threshold = threshold
        self._threads = threads
        self._check = check
        self._on_end = on_end
        self._since = time.time()
        self._agreement: Agreement | None = None
        self._lock = threading.Lock()  # around the statistics: the thread adds, the loop reads
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._waiting = 0
        self._left_out = 0
        self._failed = 0
        self._last_fault = ""
        self._remembers = False  # a recurrent model
        self._anew: set[str | None] = set()
        self._process: ShadowProcess | None = None
        self._stopped = threading.Event()
        self.why = ""
        run_beside(
            "shadow",
            loop.call_soon_threadsafe,
            self._serve,
            done=lambda _: None,
            failed=self._given_up,
            most_s=float("inf"),
        )

    def offer(self, windows: Floats, keys: Sequence[str | None], scores: Scores, took: float) -> None:
        """Take windows that the active model has just answered; on the loop. Never waits.

        Args:
            windows: float32 `[n, *shape]`, copied here.
            keys: the stream of each.
            scores: the active model's answers.
            took: seconds for all of them.
        """
        agreement = self._agreement
        if agreement is None or self._stopped.is_set():
            return
        count = len(keys)
        with self._lock:
            agreement.took("active", took / count)
            if self._waiting and self._waiting + count > MOST_WAITING:
                self._left_out += count
                if self._remembers:
                    self._anew.update(keys)
                return
            self._waiting += count
        self._questions.put(Question(windows, keys, scores))

    def document(self) -> dict[str, Any]:
        """The document of `edge/{device}/shadow/{model}`."""
        with self._lock:
            agreement = self._agreement
            figures = {} if agreement is None else agreement.document()
            counts = {"left_out": self._left_out, "failed": self._failed, "last_fault": self._last_fault or None}
        state = "ended" if self.why else "starting" if agreement is None else "running"
        return {
            "active": {"version": self.active.version, "digest": self.active.digest},
            "shadow": {"version": self.slot.version, "digest": self.slot.digest},
            "state": state,
            "why": self.why or None,
            "since": self._since,
            **counts,
            **figures,
        }

    def stop(self) -> None:
        """End it; nothing more is published."""
        self._stopped.set()
        self._questions.put(None)
        if self._process is not None:
            self._process.kill()

    def _given_up(self, error: Exception) -> None:
        """Handle a failure that ended the thread; the active model continues."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        if isinstance(error, EdgeError | ValueError):
            self.why = one_line(str(error))
        else:
            _log.error("a shadow is given up", exc_info=error)
            self.why = "a fault of the runtime, which its log describes"
        self._on_end(self.why)

    # --- in the shadow's thread -------------------------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._run()
        finally:
            if self._process is not None:
                self._process.end()

    def _run(self) -> None:
        candidate = self._check()
        self._process = ShadowProcess(self.slot.path, self.slot.digest, threads=self._threads)
        self._remembers = bool(candidate.state)
        with self._lock:
            self._agreement = Agreement(self._beside, candidate, self._threshold)
        _log.info(
            "a shadow runs",
            extra=fields(model=self.slot.name, version=self.slot.version, beside=self.active.version),
        )
        while not self._stopped.is_set():
            question = self._questions.get()
            if question is None:
                return
            self._stopped.wait(REST * self._ask(self._process, question))

    def _ask(self, process: ShadowProcess, question: Question) -> float:
        """Send one request, add its answer, and return the seconds that it took."""
        count = len(question.keys)
        with self._lock:
            self._waiting -= count
            anew, self._anew = self._anew, set()
        began = time.perf_counter()
        keys = question.keys if self._remembers else []
        header, body = process.ask(question.windows.shape, question.windows.tobytes(), keys, sorted_keys(anew))
        took = time.perf_counter() - began
        agreement = self._agreement
        assert agreement is not None
        with self._lock:
            if "error" in header:
                self._failed += count
                self._last_fault = str(header["error"])
            else:
                agreement.took("shadow", float(header["took"]) / count)
                agreement.add(question.scores, _scores(header, body, count))
        return took


def sorted_keys(keys: set[str | None]) -> list[str | None]:
    """In a fixed order, None first."""
    return sorted(keys, key=lambda key: (key is not None, key or ""))


def _scores(header: dict[str, Any], body: bytes, count: int) -> Scores:
    """The arrays of an answer.

    Raises:
        ShadowError: it does not fit the request.
    """
    found: dict[str, Any] = {}
    at = 0
    for name, (dtype, shape) in header["arrays"].items():
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        known = header["named"] or name in Scores.__struct_fields__
        if not known or not shape or shape[0] != count or at + size > len(body):
            raise ShadowError("answers something else than was asked")
        found[name] = np.frombuffer(body, np.dtype(dtype), count=int(np.prod(shape)), offset=at).reshape(shape)
        at += size
    return Scores.of(found, named=header["named"])
