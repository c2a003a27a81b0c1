"""The one event loop: sockets, ports and timers in one thread, on a plain `epoll`.

At paced rates, where wake-ups are the main cost, it is cheaper than asyncio's loop. The method names are asyncio's, so
that readers know them and a stage can be tested on either. Guarantee: callbacks run one at a time, in this thread; an
exception in a callback ends the loop and is raised from `run` (a stage that can handle it catches it itself).
"""

import contextlib
import heapq
import itertools
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

_TO_READ = ~select.EPOLLOUT  # hang-ups too: reading gives the reason
_TO_WRITE = select.EPOLLOUT | select.EPOLLERR

Callback = Callable[[], object]
Poll = Callable[[float | None], list[tuple[int, int]]]


class Timer:
    """A callback that is due at a monotonic time; `cancel` makes it never run."""

    __slots__ = ("_order", "callback", "when")

    def __init__(self, when: float, order: int, callback: Callback) -> None:
        self.when = when
        self.callback: Callback | None = callback
        self._order = order

    def cancel(self) -> None:
        """Make the timer never run. Harmless when it has run already."""
        self.callback = None

    def __lt__(self, other: "Timer") -> bool:
        return (self.when, self._order) < (other.when, other._order)


class Loop:
    """Readers, writers, timers, and calls from other threads.

    `progress` counts the passes, so that the watchdog can be fed by real progress only.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._readers: dict[int, Callback] = {}
        self._writers: dict[int, Callback] = {}
        self._timers: list[Timer] = []
        self._order = itertools.count()
        self._soon: deque[Callback] = deque()
        self._from_threads: deque[Callback] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = threading.RLock()  # a signal handler may wake the loop that is being closed in its thread
        self._wakes_on_signals = False
        self._running = False
        self._wait: Poll = self._epoll.poll
        self.progress = 0
        self.add_reader(self._wake_read, self._drain_wake_pipe)

    time = staticmethod(time.monotonic)

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` can be read, or has hung up."""
        self._readers[fd] = callback
        self._update(fd)

    def remove_reader(self, fd: int) -> None:
        """Forget the reader of `fd`; harmless when there is none."""
        if self._readers.pop(fd, None) is not None:
            self._withdraw(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` can be written."""
        self._writers[fd] = callback
        self._update(fd)

    def remove_writer(self, fd: int) -> None:
        """Forget the writer of `fd`; harmless when there is none."""
        if self._writers.pop(fd, None) is not None:
            self._withdraw(fd)

    def call_soon(self, callback: Callback) -> None:
        """Run `callback` at the end of this pass, after everything that the wake-up brought."""
        self._soon.append(callback)

    def call_later(self, delay: float, callback: Callback) -> Timer:
        """Run `callback` after `delay` seconds."""
        return self.call_at(time.monotonic() + delay, callback)

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Run `callback` at the monotonic time `when`."""
        timer = Timer(when, next(self._order), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Run `callback` in the loop's thread; the only method that another thread or a signal handler may call."""
        self._from_threads.append(callback)
        self.wake()

    def wake(self) -> None:
        """End the current wait."""
        with self._closing:  # else a late thread could write into another file with the pipe's former number
            if self._wake_write < 0:
                return  # closed: the report of a late thread is dropped
            try:
                os.write(self._wake_write, b"\0")
            except BlockingIOError:
                return  # the pipe is full of wake-ups, so the loop wakes up anyway

    def wake_on_signals(self) -> None:
        """Let every signal that has a handler end the wait; only for the loop of the main thread, until `close`.

        The interpreter writes into the pipe when the signal arrives. A handler's own `wake` comes too late for a signal
        just before the wait: the handler runs between two instructions of Python, thus only after the wait.
        """
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._wakes_on_signals = True

    def stop(self) -> None:
        """Leave `run` after the current pass."""
        self._running = False
        self.wake()

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            Exception: whatever a callback raised.
        """
        self._running = True
        while self._running:
            self.run_once()

    def run_once(self, most: float | None = None) -> None:
        """Wait for the next event, at most `most` seconds, and serve everything that is due."""
        self.progress += 1
        for fd, events in self._wait(self._patience(most)):
            if events & _TO_READ:
                reader = self._readers.get(fd)
                if reader is not None:
                    reader()
            if events & _TO_WRITE:
                writer = self._writers.get(fd)
                if writer is not None:
                    writer()
        if self._timers:
            self._run_timers()
        while self._soon:
            self._soon.popleft()()

    def wait_through(self, around: Callable[[Poll, float | None], list[tuple[int, int]]]) -> None:
        """Replace the blocking wait by `around(poll, patience)`, so that the caller sees when the loop is idle."""
        self._wait = partial(around, self._epoll.poll)

    def close(self) -> None:
        """Give the descriptors back."""
        if self._wakes_on_signals:
            signal.set_wakeup_fd(-1)
        self._epoll.close()
        with self._closing:
            wake_write, self._wake_write = self._wake_write, -1
            os.close(self._wake_read)
            os.close(wake_write)

    def _patience(self, most: float | None) -> float | None:
        if self._soon or self._from_threads:
            return 0.0
        while self._timers and self._timers[0].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return most
        wait = self._timers[0].when - time.monotonic()
        if wait < 0.0:
            return 0.0
        return wait if most is None or wait < most else most

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].when <= now:
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()

    def _drain_wake_pipe(self) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass  # an earlier pass has read it
        while self._from_threads:
            self._from_threads.popleft()()

    def _mask(self, fd: int) -> int:
        return (select.EPOLLIN if fd in self._readers else 0) | (select.EPOLLOUT if fd in self._writers else 0)

    def _update(self, fd: int) -> None:
        try:
            self._epoll.modify(fd, self._mask(fd))
        except FileNotFoundError:
            self._epoll.register(fd, self._mask(fd))

    def _withdraw(self, fd: int) -> None:
        mask = self._mask(fd)
        with contextlib.suppress(OSError):  # closed already: the kernel has removed it
            if mask:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.unregister(fd)
