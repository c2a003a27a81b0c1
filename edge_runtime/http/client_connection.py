"""One connection of the server: the received part of its request, and the unsent part of its answer.

Guarantee: one request at a time. The next one is not looked at, nor more read from the socket, before the answer to
the last has been taken by the client up to `FEW_UNSENT` bytes; so a client that sends ahead and does not read costs
one answer. After a refusal what still comes is dropped for `LINGER_S`, so that the client gets to read why.
"""

import contextlib
import select
import socket
import time
from collections.abc import Callable

from edge_runtime.http.event_stream import Watching
from edge_runtime.http.request_reader import RequestReader
from edge_runtime.http.responses import Request, Response

RECEIVE_BYTES = 65_536
FEW_UNSENT = 65_536
LINGER_S = 1.0
MOST_EVENTS_UNREAD = 1 << 18


class ClientConnection:
    """A connection.

    Args:
        accepted: the socket, already accepted.
        address: of the client, without its port.
        on_end: called once, when the connection is closed.

    Attributes:
        begun: since when a request has been coming, by the monotonic clock; None between requests.
        active: when something last came or left.
        request: the present one, once its head was judged.
        waits: its request is with a model, or is to be answered in this pass.
        answered: its request has its answer, and the next one was not looked at.
        refusal: what its request will be answered with once its body has been passed over.
        held: bytes of the present request's body.
        watching: the events that it follows.
    """

    def __init__(self, accepted: socket.socket, address: str, on_end: "Callable[[ClientConnection], None]") -> None:
        self.socket = accepted
        self.fd = accepted.fileno()
        self.address = address
        self.reader = RequestReader()
        self.begun: float | None = None
        self.active = time.monotonic()
        self.request: Request | None = None
        self.waits = False
        self.answered = False
        self.refusal: Response | None = None
        self.held = 0
        self.watching: Watching | None = None
        self._on_end = on_end
        self._unsent = memoryview(b"")
        self._more: list[bytes] = []
        self._lingers: float | None = None
        self._ends = False  # with the last byte of what is unsent
        self._eof = False
        self.is_open = True

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client to read."""
        return len(self._unsent) + sum(map(len, self._more))

    @property
    def is_idle(self) -> bool:
        """Nothing is asked, and nothing is to be sent."""
        return not (self.waits or self._unsent or self.watching is not None)

    @property
    def is_unused(self) -> bool:
        """No byte of a request has come, and none of an answer is left: closing it cuts nothing off."""
        return self.is_idle and self.begun is None and self.request is None and not self._ends

    def interests(self) -> int:
        """What to wait for."""
        reads = not self._eof and (self._lingers is not None or self.may_read or self.watching is not None)
        return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if self._unsent else 0)

    @property
    def may_read(self) -> bool:
        """More of a request can be used."""
        return not (self.waits or self.answered or self._ends or self._lingers is not None) and self.reader.wants

    @property
    def may_begin(self) -> bool:
        """The last answer is out, or nearly: the next request may be looked at."""
        return self.is_open and self.answered and not self._ends and self.unsent <= FEW_UNSENT

    @property
    def is_over(self) -> bool:
        """The client has ended its side, and there is nothing more to answer or to send."""
        return self._eof and not (self.waits or self._unsent or self._more or self.reader.complete)

    def receive(self) -> bytes:
        """What has come for the reader; empty where nothing has, or nothing that counts."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            self.close()
            return b""
        if not data:
            self._eof = True
            if self.watching is not None:
                self.close()
            return b""
        self.active = time.monotonic()
        if self._lingers is not None or self.watching is not None:
            return b""
        if self.begun is None:
            self.begun = self.active
        return data

    def say(self, *parts: bytes) -> None:
        """Send what the socket takes now, and keep the rest for later."""
        if not self.is_open:
            return
        self._more += [part for part in parts if part]
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        while self.is_open and (self._unsent or self._more):
            if not self._unsent:
                self._unsent = memoryview(self._more.pop(0) if len(self._more[0]) > FEW_UNSENT else self._joined())
            try:
                sent = self.socket.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            self.active = time.monotonic()
            self._unsent = self._unsent[sent:]
        if self._ends and self.is_open and self._lingers is None:
            self._finish()

    def _joined(self) -> bytes:
        """What is short, in one piece: head and body leave in one packet."""
        taken, size = [], 0
        while self._more and size + len(self._more[0]) <= FEW_UNSENT:
            taken.append(self._more.pop(0))
            size += len(taken[-1])
        return b"".join(taken)

    def end_after(self) -> None:
        """Close when everything is sent."""
        self._ends = True
        if not self._unsent and not self._more:
            self._finish()

    def _finish(self) -> None:
        """The last byte has left: end our side, and drop what comes until the client has ended its own."""
        if self._eof:
            self.close()
            return
        self._lingers = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def sweep(self, now: float, *, head_s: float, request_s: float, idle_s: float) -> bool:
        """Close it when its time is over; whether it was."""
        begun = self.begun
        late = (
            begun is not None and not self.waits and now - begun > (head_s if self.reader.head is None else request_s)
        )
        silent = not self.waits and self.watching is None and now - self.active > idle_s
        stuck = self.watching is not None and self.unsent > 0 and now - self.active > idle_s
        lingered = self._lingers is not None and now > self._lingers
        if late or silent or stuck or lingered:
            self.close()
        return late

    def send_events(self) -> None:
        """What the page has not seen yet, unless it does not read."""
        if self.watching is not None and self.unsent < MOST_EVENTS_UNREAD:
            data = self.watching.more()
            if data:
                self.say(data)

    def end_watching(self) -> None:
        """Send no more events, and close when those that were made have left."""
        if self.watching is not None:
            self.watching.leave()
            self.watching = None
            self.end_after()

    def close(self) -> None:
        """End it now."""
        if not self.is_open:
            return
        self.is_open = False
        if self.watching is not None:
            self.watching.leave()
            self.watching = None
        self._unsent = memoryview(b"")
        self._more.clear()
        self._on_end(self)
        self.socket.close()
