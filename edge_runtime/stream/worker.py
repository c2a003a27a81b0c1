"""Runs a model: a loaded bundle with its dependent parts, and the worker thread of a slow model.

Guarantee: a `Worker` answers calls in order; its queue is bounded, and windows dropped at the bound are counted.
Windows whose readings have receipts are never dropped, since their unacknowledged readings slow the broker down.
"""

import time
from collections import deque
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np

from edge_runtime.bundle.model import Model, ModelError, Scores
from edge_runtime.config.tables import ModelTable
from edge_runtime.delivery.payloads import FurtherPayloads, Payload
from edge_runtime.readings import Carry, Floats, Receipt
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.score_drift import ScoreSample
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.counters import Counters, Latencies
from edge_runtime.system.loop import Loop

SLOW_MODEL_S = 0.005  # above this a call would delay keep-alives and other sources noticeably
MAX_PENDING_WINDOWS = 1024


class LoadedBundle(msgspec.Struct, eq=False):
    """One bundle with its dependent parts, which turn windows into payloads. A swap makes a new one.

    Attributes:
        answered: windows that this bundle gave numbers for.
        failed: windows on which it failed, or which it answered with NaN; without those of its predecessor.
        latencies: from bytes to payload.
        sample: its last answers, if drift is watched.
        further: the payload conventions beside the first.
    """

    model: Model
    decider: Decider
    payload: Payload | None
    answered: int = 0
    failed: int = 0
    latencies: Latencies = msgspec.field(default_factory=Latencies)
    sample: ScoreSample | None = None
    further: FurtherPayloads | None = None


class TriedModel(msgspec.Struct, frozen=True, eq=False):
    """A loaded bundle that has run once; `slow` if the loop must not wait for it."""

    model: Model
    slow: bool


class ModelCall(msgspec.Struct, eq=False):
    """Windows for one call of the model; every list has one item a window."""

    loaded: LoadedBundle
    windows: Floats
    keys: list[str | None]
    times: list[float]
    identities: list[str | None]
    receipts: list[Receipt | None]
    carries: list[Carry]
    arrived: float
    took: float = 0.0  # seconds that the model needed for all of them

    def run(self) -> Scores:
        """Run the model; the answers are copies, and `took` is set.

        Raises:
            ModelError: the model failed.
        """
        began = time.perf_counter()
        scores = self.loaded.model.run(self.windows, self.carries)
        self.took = time.perf_counter() - began
        return scores

    def alone(self, row: int) -> "ModelCall":
        """The call of one of the windows, which is copied."""
        one = slice(row, row + 1)
        return ModelCall(
            self.loaded,
            self.windows[one].copy(),
            self.keys[one],
            self.times[one],
            self.identities[one],
            self.receipts[one],
            self.carries[one],
            self.arrived,
        )


class Worker:
    """One thread that runs a slow model, so that the loop is not delayed. Calls stay in order."""

    def __init__(
        self,
        model: str,
        loop: Loop,
        finish: Callable[[ModelCall, Scores], None],
        failed: Callable[[ModelCall, ModelError], None],
        *,
        counters: Counters,
    ) -> None:
        self._finish = finish
        self._failed = failed
        self._counters = counters
        self._waiting: deque[ModelCall] = deque()
        self._pending_windows = 0
        self._running: ModelCall | None = None
        self._retiring = False
        self._what = f"model {model}"
        self._thread = BackgroundThread("model", loop.call_soon_threadsafe)

    @property
    def is_idle(self) -> bool:
        """Nothing is running or waiting."""
        return self._running is None and not self._waiting

    @property
    def has_room(self) -> bool:
        """Less than half of the bound is waiting."""
        return self._pending_windows < MAX_PENDING_WINDOWS // 2

    def submit(self, call: ModelCall) -> None:
        """Queue a call; its windows are copied, since the windower overwrites them."""
        call.windows = call.windows.copy()
        self._waiting.append(call)
        self._pending_windows += len(call.keys)
        while self._pending_windows > MAX_PENDING_WINDOWS and len(self._waiting) > 1:
            if not self._drop_oldest():
                break
        self._next()

    def retire(self) -> None:
        """Let the thread end when nothing is left to do."""
        self._retiring = True
        if self.is_idle:
            self.stop()

    def stop(self) -> None:
        """Let the thread end after its present call."""
        self._thread.stop()

    def _drop_oldest(self) -> bool:
        """Drop the oldest windows without receipts; windows whose readings have receipts stay."""
        for call in self._waiting:
            if all(receipt is None for receipt in call.receipts):
                self._waiting.remove(call)
                self._pending_windows -= len(call.keys)
                self._counters.dropped["model_busy"] += len(call.keys)
                return True
        return False

    def _next(self) -> None:
        if self._retiring and self.is_idle:
            self.stop()
        if self._running is None and self._waiting:
            self._running = self._waiting.popleft()
            self._pending_windows -= len(self._running.keys)
            call = self._running
            self._thread.submit(call.run, partial(self._done, call), partial(self._could_not, call), what=self._what)

    def _done(self, call: ModelCall, scores: Scores) -> None:
        self._running = None
        self._finish(call, scores)
        self._next()

    def _could_not(self, call: ModelCall, error: Exception) -> None:
        if not isinstance(error, ModelError):
            raise error  # a bug
        self._running = None
        self._failed(call, error)
        self._next()


def rehearse(model: Model, config: ModelTable) -> TriedModel:
    """Run a model on zeros, which also fills its caches, and measure whether it would delay the loop. In any thread.

    Raises:
        ModelError: it fails even on zeros.
    """
    zeros = np.zeros((1, *model.manifest.input.tensor_shape), np.float32)
    model.run(zeros)
    model.run_borrowed(zeros)
    started = time.perf_counter()
    model.run(zeros)
    took = time.perf_counter() - started
    return TriedModel(model, config.run == "worker" or (config.run == "auto" and took > SLOW_MODEL_S))
