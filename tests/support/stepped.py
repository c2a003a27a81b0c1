"""A loop, a link and a disk thread that move only when a test says so, for everything that waits.

`SteppedLoop` keeps the contract of `edge_runtime.system.loop.Loop` with a clock of its own; `SteppedStore` stands in
for `OutboxThread` around a real `OutboxFile`, and can fail before or after the disk did its work; `SteppedLink` is a
broker's end of the wire. `tests/unit/support/test_stepped.py` holds them to their word.
"""

import heapq
import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.delivery.rows import Committed, NewRow, Opened, OutboxFileError, OutboxRow, SetAside
from edge_runtime.system.loop import Callback, Loop, Timer

MOST_CALLBACKS = 100_000  # a pass that runs longer is a hot loop, which is a fault


class SteppedLoop:
    """A loop whose clock is moved by `advance`, with every timer served at its own time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.served = 0
        self._soon: deque[Callback] = deque()
        self._timers: list[Timer] = []
        self._order = itertools.count()

    @property
    def as_loop(self) -> Loop:
        """For those that ask for the real one."""
        return cast("Loop", self)

    def time(self) -> float:
        """The clock."""
        return self.now

    def call_soon(self, callback: Callback) -> None:
        """As `Loop.call_soon`."""
        self._soon.append(callback)

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """As `Loop.call_later`."""
        return self.call_at(self.now + delay, callback)

    def call_at(self, when: float, callback: Callback) -> Timer:
        """As `Loop.call_at`."""
        timer = Timer(when, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def settle(self) -> None:
        """Serve everything that is due now.

        Raises:
            AssertionError: it never ends.
        """
        for _ in range(MOST_CALLBACKS):
            if not self._soon:
                return
            self.served += 1
            self._soon.popleft()()
        raise AssertionError("the loop is kept busy for ever")

    def advance(self, seconds: float) -> None:
        """Let time pass, serving each timer at its own time."""
        until = self.now + seconds
        self.settle()
        for _ in range(MOST_CALLBACKS):
            if not self._timers or self._timers[0].when > until:
                self.now = until
                return
            timer = heapq.heappop(self._timers)
            self.now = max(self.now, timer.when)
            if timer.callback is not None:
                self.served += 1
                timer.callback()
            self.settle()
        raise AssertionError("the timers keep the loop busy for ever")


class SteppedThread:
    """A `BackgroundThread` that works when `work` is called, in the thread of the test."""

    def __init__(
        self, name: str, report: Callable[[Callback], object], *, at_end: Callable[[], None] | None = None
    ) -> None:
        self.name = name
        self.asked: deque[Callable[[], None]] = deque()
        self.bounds: list[tuple[str, float | None]] = []
        self.stopped = False
        self._report = report
        self._at_end = at_end

    def submit(
        self,
        work: Callable[[], Any],
        done: Callable[[Any], object],
        failed: Callable[[Exception], object] | None = None,
        *,
        what: str = "",
        most_s: float | None = None,
    ) -> None:
        """As `BackgroundThread.submit`; `bounds` has the name and the bound of each piece."""
        if self.stopped:
            return
        self.bounds.append((what or self.name, most_s))

        def run() -> None:
            try:
                found = work()
            except Exception as error:
                if failed is None:
                    raise
                self._report(partial(failed, error))
            else:
                self._report(partial(done, found))

        self.asked.append(run)

    def work(self, most: int = 1000) -> int:
        """Do what was submitted, one piece after the other; returns how many pieces there were."""
        done = 0
        while self.asked and done < most:
            self.asked.popleft()()
            done += 1
        return done

    def stop(self, deadline: float = 0.0) -> bool:
        """As `BackgroundThread.stop`; what was submitted stays for `work`."""
        assert deadline >= 0
        if not self.stopped and self._at_end is not None:
            self.asked.append(self._at_end)
        self.stopped = True
        return not self.asked


Fault = Literal["", "before", "after"]


class SteppedStore:
    """A `OutboxThread` that works when `work` is called; `fault` makes the disk fail before or after its work."""

    def __init__(self, path: Path, *, max_bytes: int = 1 << 30, max_age: float = 1e12) -> None:
        self.store = OutboxFile(path, max_bytes, max_age)
        self.fault: Fault = ""
        self.commits = 0
        self.committed_rows = 0
        self._requests: deque[Callable[[], None]] = deque()

    @property
    def as_thread(self) -> OutboxThread:
        """For those that ask for the real one."""
        return cast("OutboxThread", self)

    @property
    def is_idle(self) -> bool:
        """Nothing is asked for."""
        return not self._requests

    def open(self, answer: Callable[[Opened | OutboxFileError], None]) -> None:
        """As `OutboxThread.open`."""
        self._requests.append(lambda: answer(self._try(self.store.open)))

    def commit(
        self, rows: Sequence[NewRow], delivered: Sequence[int], answer: Callable[[Committed | OutboxFileError], None]
    ) -> None:
        """As `OutboxThread.commit`."""
        self.commits += 1
        self.committed_rows += len(rows)
        self._requests.append(lambda: answer(self._try(lambda: self.store.commit(rows, delivered))))

    def fetch(self, after: int, limit: int, answer: Callable[[list[OutboxRow] | OutboxFileError], None]) -> None:
        """As `OutboxThread.fetch`."""
        self._requests.append(lambda: answer(self._try(lambda: self.store.fetch(after, limit))))

    def set_aside(
        self, rows: Sequence[SetAside], taken: Sequence[int], answer: Callable[[int | OutboxFileError], None]
    ) -> None:
        """As `OutboxThread.set_aside`."""
        self._requests.append(lambda: answer(self._try(lambda: self.store.set_aside(rows, taken))))

    def work(self, most: int = 1000) -> None:
        """Do what was asked for, one after the other."""
        for _ in range(most):
            if not self._requests:
                return
            self._requests.popleft()()

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            if self.fault == "before":
                self._fail()
            found = call()
            if self.fault == "after":
                self._fail()
        except OutboxFileError as error:
            return error
        return found

    def _fail(self) -> None:
        self.store.close()  # as the real one does: nothing is trusted until the file was read anew
        raise OutboxFileError("the disk failed")


@dataclass
class Sent:
    """One message on the wire: not yet acknowledged, perhaps not yet arrived."""

    topic: str
    payload: bytes
    outcome: Callable[[bool], None] | None


@dataclass
class SteppedLink:
    """The broker's end. `arrived` is what it has got, in order, repeats included."""

    connected: bool = False
    window: int = 4
    wire: deque[Sent] = field(default_factory=deque)
    arrived: list[dict[str, Any]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    most_in_flight: int = 0

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Callable[[bool], None] | None
    ) -> bool:
        """As `Connection.publish`."""
        if not self.connected:
            return False
        self.wire.append(Sent(topic, payload, outcome))
        self.most_in_flight = max(self.most_in_flight, len(self.wire))
        return True

    def acknowledge(self, count: int = 1, *, accept: bool = True) -> int:
        """The oldest messages arrive, and are acknowledged or refused; returns how many there were."""
        done = 0
        while done < count and self.wire:
            sent = self.wire.popleft()
            document = json.loads(sent.payload)
            (self.arrived if accept else self.refused).append(document if accept else document["id"])
            if sent.outcome is not None:
                sent.outcome(accept)
            done += 1
        return done

    def break_down(self, arriving: int = 0) -> None:
        """The link is gone: so many of the messages on the wire have arrived, but their acknowledgements have not."""
        for sent in itertools.islice(self.wire, arriving):
            self.arrived.append(json.loads(sent.payload))
        self.wire.clear()
        self.connected = False
