"""One connection of the server: the received part of its request, and the unsent part of its answer.

Guarantee: one request at a time. The next request is not parsed, and no more is read from the socket, until the client
has read the last answer up to `FEW_UNSENT` bytes; so a client that pipelines and does not read costs one answer. After
a refusal further input is dropped for `LINGER_S`, so that the client can still read the refusal.
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
        begun: the start of the current request, by the monotonic clock; None between requests.
        active: the time of the last byte in or out.
        request: the current one, once its head was admitted.
        waits: whether its request waits for a model, or for its answer in this pass.
        answered: whether its request is answered, and the next one is not parsed yet.
        refusal: the answer to its request once the body has been skipped.
        held: bytes of the current request's body.
        watching: the events that it receives.
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
        """The bytes that the client has not read yet."""
        return len(self._unsent) + sum(map(len, self._more))

    @property
    def is_idle(self) -> bool:
        """Whether there is no request, and nothing to send."""
        return not (self.waits or self._unsent or self.watching is not None)

    @property
    def is_unused(self) -> bool:
        """Whether no byte of a request has arrived, and none of an answer is left: closing cuts nothing off."""
        return self.is_idle and self.begun is None and self.request is None and not self._ends

    def interests(self) -> int:
        """The events of the socket to wait for."""
        reads = not self._eof and (self._lingers is not None or self.may_read or self.watching is not None)
        return (select.EPOLLIN if reads else 0) | (select.EPOLLOUT if self._unsent else 0)

    @property
    def may_read(self) -> bool:
        """Whether more bytes of a request can be used."""
        return not (self.waits or self.answered or self._ends or self._lingers is not None) and self.reader.wants

    @property
    def may_begin(self) -> bool:
        """Whether the last answer is sent, or nearly: then the next request may be parsed."""
        return self.is_open and self.answered and not self._ends and self.unsent <= FEW_UNSENT

    @property
    def is_over(self) -> bool:
        """Whether the client has closed its side, and there is nothing more to answer or to send."""
        return self._eof and not (self.waits or self._unsent or self._more or self.reader.complete)

    def receive(self) -> bytes:
        """The received bytes for the reader; empty if there are none, or if they are to be dropped."""
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
        """Short parts joined, so that head and body leave in one packet."""
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
        """After the last byte: close our side, and drop input until the client has closed its side."""
        if self._eof:
            self.close()
            return
        self._lingers = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def sweep(self, now: float, *, head_s: float, request_s: float, idle_s: float) -> bool:
        """Close the connection if a time limit has passed. Return whether it was closed."""
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
        """Send the new events, unless the page does not read."""
        if self.watching is not None and self.unsent < MOST_EVENTS_UNREAD:
            data = self.watching.more()
            if data:
                self.say(data)

    def end_watching(self) -> None:
        """Produce no more events, and close when the existing ones are sent."""
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
