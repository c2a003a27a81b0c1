"""Who shares the interpreter with the event loop lets it go first: the stream's readings before anybody's requests.

Python runs one thread at a time. A thread that answers requests would take the interpreter from the loop whenever the
loop touches a socket or runs its model, and the loop would have to ask for it back each time. So it looks, before each
request and each call of a model, whether the loop is at work, and waits until it is not.

Guarantee: a reading waits for the interpreter until the present step of a request ends, or for `SWITCH_S` where that is
earlier, and for nothing else of a request. Weak points: a single long call in C (reading a large body of JSON) is not
interrupted; and a loop that is always at work is given way to for `MOST_S` only, or no request would be answered.
"""

import sys
import threading
import time
from weakref import WeakKeyDictionary

from edge_runtime.system.loop import Loop, Poll

SWITCH_S = 0.0002  # the interpreter changes hands on demand after so long; the default is 5 ms
MOST_S = 0.02
SHARE = 0.5  # of a core, at the most, for requests while a stream runs
BURST = 8  # sockets that are served in one go: half a millisecond, so that no core is kept from the stream for longer

Events = list[tuple[int, int]]


class Courtesy:
    """Between the loop, which only says when it waits, and those who give way to it."""

    def __init__(self) -> None:
        self._at_work = True
        self._wanted = False
        self._gate = threading.Event()

    def wait(self, poll: Poll, patience: float | None) -> Events:
        """In the loop's thread, around its `poll`: meanwhile others may go ahead."""
        self._at_work = False
        if self._wanted:
            self._wanted = False
            self._gate.set()
        events = poll(patience)
        self._at_work = True
        return events

    def give_way(self) -> None:
        """In another thread: return when the loop waits, or has worked for `MOST_S` on end."""
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


_to: WeakKeyDictionary[Loop, Courtesy] = WeakKeyDictionary()


def courtesy_to(loop: Loop) -> Courtesy:
    """The one that all threads share which give way to this loop. The interpreter changes hands sooner from now on."""
    if loop not in _to:
        _to[loop] = Courtesy()
        loop.wait_through(_to[loop].wait)
        sys.setswitchinterval(SWITCH_S)
    return _to[loop]
