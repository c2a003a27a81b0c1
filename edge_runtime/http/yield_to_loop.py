"""Threads that answer requests yield the interpreter to the event loop, so that readings go before requests.

Because of the GIL one thread runs at a time. A thread that answers requests would take the GIL whenever the loop
touches a socket or runs its model, and the loop would have to wait for it. So the thread checks, before each request
and each call of a model, whether the loop is busy, and waits until it is idle.

Guarantee: a reading waits for the GIL until the current step of a request ends, or for `SWITCH_S` where that is
earlier, and for nothing else of a request. Weak points: a single long call in C (reading a large body of JSON) is not
interrupted; a thread waits at most `MOST_S` for a loop that is always busy, so that requests are still answered.
"""

import sys
import threading
import time
from weakref import WeakKeyDictionary

from edge_runtime.system.loop import Loop, Poll

SWITCH_S = 0.0002  # the GIL's switch interval; Python's default is 5 ms
MOST_S = 0.02
SHARE = 0.5  # of a core, at the most, for requests while a stream runs
BURST = 8  # sockets served before the next look at the loop: about half a millisecond

Events = list[tuple[int, int]]


class LoopGate:
    """Shared by the loop, which marks when it is idle, and the threads that yield to it."""

    def __init__(self) -> None:
        self._at_work = True
        self._wanted = False
        self._gate = threading.Event()

    def wait(self, poll: Poll, patience: float | None) -> Events:
        """In the loop's thread, around its `poll`: other threads may run meanwhile."""
        self._at_work = False
        if self._wanted:
            self._wanted = False
            self._gate.set()
        events = poll(patience)
        self._at_work = True
        return events

    def wait_until_idle(self) -> None:
        """In another thread: return when the loop is idle, after `MOST_S` at the latest."""
        if not self._at_work:
            return
        end = time.monotonic() + MOST_S
        while (left := end - time.monotonic()) > 0:
            self._gate.clear()
            self._wanted = True
            if not self._at_work:
                return
            self._gate.wait(left)
            if not self._at_work:
                return


_gates: WeakKeyDictionary[Loop, LoopGate] = WeakKeyDictionary()


def install_gate(loop: Loop) -> LoopGate:
    """The gate of this loop. The first call installs it and sets the process's switch interval to `SWITCH_S`."""
    if loop not in _gates:
        _gates[loop] = LoopGate()
        loop.wait_through(_gates[loop].wait)
        sys.setswitchinterval(SWITCH_S)
    return _gates[loop]
