"""The connections of the server: one thread reads requests and answers them, on an `epoll` of its own.

It reads from all sockets, then lets the models score the requests together, and checks the sockets again after each
call of a model. Beside a stream it yields to the event loop between any two steps, and works in short bursts with rests
between them (`yield_to_loop.py`).

Guarantee: the thread never waits for a client. A request is admitted by its head before a byte of its body is kept. The
memory that clients can occupy is bounded in sum: connections (`CONNECTIONS`; a new one replaces the one that has been
idle or in the middle of a request for longest), bodies (`MAX_BODIES_BYTES`), answers (`MOST_UNREAD_BYTES`), windows
(`scorer.py`). An exception from one request ends its connection and nothing else. Weak point: clients of one address
share `MOST_OF_ONE_ADDRESS` connections, so a proxy for many clients should keep few open; the loopback is exempt.
"""

import contextlib
import ipaddress
import os
import select
import socket
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate

import msgspec

from edge_runtime.http.app import MAX_BODY_BYTES, App
from edge_runtime.http.client_connection import ClientConnection
from edge_runtime.http.event_stream import EVENTS_EVERY_S
from edge_runtime.http.request_reader import BadRequestError
from edge_runtime.http.responses import REASONS, HttpError, Request, Response, busy
from edge_runtime.http.scorer import HANG_S, Work
from edge_runtime.http.yield_to_loop import BURST, SHARE, LoopGate
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.watchdog import working

HEAD_S = 5.0
REQUEST_S = 30.0
IDLE_S = 60.0
PASS_S = 2 * HANG_S  # a model in a pass may take `HANG_S`
SWEEP_S = 1.0
LONGEST_REST_S = 0.02
CONNECTIONS = 100
MOST_OF_ONE_ADDRESS = 50
MAX_BODIES_BYTES = 16 << 20
SMALL_BODY_BYTES = 1 << 16  # such bodies are bounded by the number of connections
MOST_UNREAD_BYTES = 48 << 20
MOST_AT_ONCE = 64
DRAIN_EVERY_S = 0.05
GRACE_S = 2.0  # of a drain: a client with a request in this time learns that its connection closes

LOCAL = "local"  # the address of a client of a Unix socket, which has none

_log = get_logger("http")


class Connections:
    """The server's thread.

    Args:
        app: the application.
        listener: a listening socket; it stays open when this ends.
        gate: of the event loop; None without one.

    Attributes:
        ended: connections that this side ended, by reason.
    """

    def __init__(self, app: App, listener: socket.socket, gate: LoopGate | None) -> None:
        self._app = app
        self._listener = listener
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._alarm = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._alarm, select.EPOLLIN)
        self._interests: dict[int, int] = {}
        self._clients: dict[int, ClientConnection] = {}
        self._wait_for_loop: Callable[[], None] = (lambda: None) if gate is None else gate.wait_until_idle
        app.pause = self._wait_for_loop
        self._share, self._burst = (1.0, MOST_AT_ONCE) if gate is None else (SHARE, BURST)
        self._asked: list[ClientConnection] = []
        self._waiting: dict[Work, tuple[ClientConnection, Request]] = {}
        self._touched: set[ClientConnection] = set()
        self._held = 0  # bytes of bodies
        self._date = (0, b"")
        self._leave: tuple[float, float] | None = None  # of a drain: the end of its grace, and its own end
        self._accepts = True
        self.ended: Counter[str] = Counter()

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Answer until `stopped`."""
        swept = sent = 0.0
        while not stopped():
            patience = 0.0 if self._waiting or self._asked else self._patience()
            events = self._epoll.poll(patience, self._burst)
            began = time.thread_time()
            with working("the HTTP server", PASS_S):
                self._read(events)
                self._answer()
            now = time.monotonic()
            if (
                self._leave is not None
                and self._has_left(*self._leave, now=now)
                and not (events and now < self._leave[1])
            ):
                return
            if now - swept > SWEEP_S:
                swept = now
                self._sweep(now)
            if now - sent > EVENTS_EVERY_S:
                sent = now
                self._tell()
            for client in self._touched:
                self._review(client)
            self._touched.clear()
            self._rest(time.thread_time() - began)

    def wake(self) -> None:
        """End the present wait; from any thread."""
        os.eventfd_write(self._alarm, 1)

    def leave(self, within: float, *, accepts: bool) -> None:
        """Begin a drain: each answer closes its connection from now on, and `serve` ends when nothing is in flight.

        From any thread. Idle connections are kept for `GRACE_S`, so that clients which use them are notified.

        Args:
            within: seconds after which it ends in any case.
            accepts: take new connections during the grace; else they are left to other holders of the socket.
        """
        now = time.monotonic()
        self._accepts = accepts
        self._leave = now + min(GRACE_S, within), now + within
        self.wake()

    def _has_left(self, grace: float, end: float, *, now: float) -> bool:
        """One pass of a drain. Return whether everything is answered, or the time is up."""
        if not self._accepts or now > grace:
            self._refuse_more()
        clients = list(self._clients.values())
        for client in clients:
            if client.watching is not None:
                client.end_watching()
                self._touched.add(client)
            elif now > grace and client.is_unused:
                client.close()
        if now > end:
            open_still = sum(client.waits or client.begun is not None for client in clients)
            if open_still:
                self.ended["drain_over"] += open_still
                _log.warning("requests are refused: the stop's time is over", extra=fields(requests=open_still))
            return True
        return not self._clients

    def _refuse_more(self) -> None:
        """Accept no more connections; our own socket is closed, a shared one keeps its queue for the other holders."""
        fd = self._listener.fileno()
        if fd >= 0:
            self._epoll.unregister(fd)
            self._listener.close()

    def close(self) -> None:
        """Refuse the waiting requests, and close every connection."""
        stopping = HttpError(503, "the server is stopping", headers={"Retry-After": "1"})
        for work, (client, request) in list(self._waiting.items()):
            work.answer = stopping
            if client.is_open:
                self._guarded(client, lambda: self._finish(client, self._app.end(request, work)))  # noqa: B023 - called at once
        self._waiting.clear()
        for client in list(self._clients.values()):
            client.close()
        self._epoll.close()
        os.close(self._alarm)

    def _patience(self) -> float:
        if self._leave is not None:
            return DRAIN_EVERY_S
        return min(EVENTS_EVERY_S if self._app.board.is_watched else SWEEP_S, SWEEP_S)

    def _rest(self, worked: float) -> None:
        """Sleep so long that `SHARE` holds; requests that arrive meanwhile are then answered together."""
        if self._share < 1.0 and worked > 0.0:
            time.sleep(min(worked / self._share - worked, LONGEST_REST_S))

    # --- accepting and closing connections --------------------------------------------------------------------------

    def _accept(self) -> None:
        for _ in range(self._burst):
            try:
                accepted, address = self._listener.accept()
            except OSError:  # nothing left, or it has gone again
                return
            host = address[0] if address else LOCAL
            if not self._make_room(host):
                accepted.close()
                continue
            accepted.setblocking(False)
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client = ClientConnection(accepted, host, self._forget)
            self._clients[client.fd] = client
            self._interests[client.fd] = select.EPOLLIN
            self._epoll.register(client.fd, select.EPOLLIN)

    def _make_room(self, host: str) -> bool:
        """Whether to accept one more connection from this address; the least useful one may be closed for it."""
        same = [client for client in self._clients.values() if client.address == host]
        if len(same) >= MOST_OF_ONE_ADDRESS and not _is_loopback(host):
            return self._end_least_useful(same, "address_full")
        if len(self._clients) >= CONNECTIONS:
            return self._end_least_useful(list(self._clients.values()), "connections_full")
        return True

    def _end_least_useful(self, clients: list[ClientConnection], reason: str) -> bool:
        """End the one that has been idle or in the middle of a request for longest; False if all wait for an answer."""
        idle = [client for client in clients if client.is_idle]
        if not idle:
            self.ended[reason] += 1
            return False
        self._end(min(idle, key=lambda client: client.begun or client.active), reason)
        return True

    def _end(self, client: ClientConnection, reason: str) -> None:
        if not self.ended[reason]:
            _log.warning("a connection was ended", extra=fields(reason=reason, client=client.address))
        self.ended[reason] += 1
        client.close()

    def _forget(self, client: ClientConnection) -> None:
        self._release(client)
        self._clients.pop(client.fd, None)
        if self._interests.pop(client.fd, None) is not None:
            self._epoll.unregister(client.fd)

    def _review(self, client: ClientConnection) -> None:
        """Register the events that a client's socket now needs."""
        if client.is_open and client.is_over:
            client.close()
        if not client.is_open:
            return
        wanted = client.interests()
        if wanted != self._interests[client.fd]:
            self._interests[client.fd] = wanted
            self._epoll.modify(client.fd, wanted)

    def _guarded(self, client: ClientConnection, step: Callable[[], object]) -> None:
        """Run one step for one client: an exception ends its connection, and nothing else."""
        try:
            step()
        except Exception:  # noqa: BLE001 - the stage's edge: a fault of ours must not end the neighbours
            _log.exception("a connection failed and was ended", extra=fields(client=client.address))
            self.ended["crashed"] += 1
            client.waits = False
            client.close()

    # --- reading ----------------------------------------------------------------------------------------------------

    def _read(self, events: list[tuple[int, int]]) -> None:
        for fd, flags in events:
            client = self._clients.get(fd)
            if client is not None:
                self._wait_for_loop()
                self._touched.add(client)
                self._guarded(client, lambda: self._serve_socket(client, flags))  # noqa: B023 - called at once
            elif fd == self._listener.fileno():
                self._accept()
            elif fd == self._alarm:
                os.eventfd_read(self._alarm)

    def _serve_socket(self, client: ClientConnection, flags: int) -> None:
        if flags & select.EPOLLOUT:
            client.flush()
            self._go_on(client)
        if not flags & ~select.EPOLLOUT or not client.is_open:
            return
        if flags & select.EPOLLIN:
            data = client.receive()
            if data:
                self._look(client, lambda: client.reader.feed(data))
        else:
            client.close()  # reset, or ended on both sides

    def _go_on(self, client: ClientConnection) -> None:
        """Parse the bytes after an answered request, if the answer is sent, or nearly."""
        if client.may_begin:
            client.answered = False
            client.request = None
            self._look(client, client.reader.next)
            if client.reader.has_begun and client.begun is None:
                client.begun = time.monotonic()

    def _look(self, client: ClientConnection, step: Callable[[], None]) -> None:
        """Let the reader take a step, and act on its state: admit a head, bound a body, note a complete request."""
        reader = client.reader
        try:
            step()
            if reader.head is not None and client.request is None:
                self._judge(client)
        except BadRequestError as error:
            self._refuse_bytes(client, error)
        if not client.is_open or client.answered or client.request is None:
            return
        self._hold(client, len(reader.body))
        if reader.complete and not client.answered:
            client.waits = True
            self._asked.append(client)

    def _judge(self, client: ClientConnection) -> None:
        """A head is complete: refuse it, or take its body."""
        reader = client.reader
        head = reader.head
        assert head is not None
        request = client.request = Request(head.method, head.path, head.headers, b"")
        refusal = self._app.admit(request, head.length)
        if refusal is None and self._is_too_much(head.length or 0):
            refusal = self._app.refuse(request, busy("too many bodies are on their way: try again in a second"))
        if refusal is not None:
            passes = head.keeps and not head.expects and head.length is not None and head.length <= SMALL_BODY_BYTES
            if not passes:
                self._send(client, refusal, keep=False)
                return
            client.refusal = refusal
        reader.accept(keep=refusal is None)
        if head.expects and not reader.complete and not reader.body:
            client.say(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _hold(self, client: ClientConnection, size: int) -> None:
        """Count the bytes of a body; refuse it beyond its own limit, or the limit of all bodies."""
        self._held += size - client.held
        client.held = size
        reader, request = client.reader, client.request
        if request is None or reader.complete:
            return
        if size > MAX_BODY_BYTES:
            error = HttpError(413, f"expected at most {MAX_BODY_BYTES} bytes")
        elif size > SMALL_BODY_BYTES and self._held > MAX_BODIES_BYTES:
            error = busy("too many bodies are on their way: try again in a second")
        else:
            return
        self._send(client, self._app.refuse(request, error), keep=False)

    def _is_too_much(self, length: int) -> bool:
        """Whether a body of this length exceeds the limit of all bodies. A small one never does."""
        return length > SMALL_BODY_BYTES and self._held + length > MAX_BODIES_BYTES

    def _release(self, client: ClientConnection) -> None:
        self._held -= client.held
        client.held = 0

    def _refuse_bytes(self, client: ClientConnection, error: BadRequestError) -> None:
        """Answer bytes that are no request with an error, and end."""
        body = msgspec.json.encode({"error": str(error)})
        self._app.requests["-", error.status] += 1
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        self._send(client, Response(error.status, body, headers=headers), keep=False)

    # --- answering --------------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        """Answer requests without a model at once, then run one call of a model for the waiting ones."""
        asked, self._asked = self._asked, []
        for client in asked:
            if client.is_open:
                self._wait_for_loop()
                self._touched.add(client)
                self._guarded(client, lambda: self._begin(client))  # noqa: B023 - called at once
        self._wait_for_loop()
        for work in self._app.scorer.turn():
            client, request = self._waiting.pop(work)
            if client.is_open:
                self._wait_for_loop()
                self._touched.add(client)
                self._guarded(client, lambda: self._finish(client, self._app.end(request, work)))  # noqa: B023

    def _begin(self, client: ClientConnection) -> None:
        request = client.request
        assert request is not None
        if client.refusal is not None:
            refusal, client.refusal = client.refusal, None
            self._finish(client, refusal)
            return
        request.body = bytes(client.reader.body)
        client.reader.body = bytearray()
        begun = self._app.begin(request)
        if isinstance(begun, Work):
            self._waiting[begun] = client, request
        else:
            self._finish(client, begun)

    def _finish(self, client: ClientConnection, answer: Response) -> None:
        """Send the answer to a complete request, and continue with the next."""
        head = client.reader.head
        assert head is not None
        self._send(client, answer, keep=head.keeps and answer.watching is None and self._leave is None)

    def _send(self, client: ClientConnection, answer: Response, *, keep: bool) -> None:
        self._touched.add(client)
        self._release(client)
        head = client.reader.head
        body = b"" if head is not None and head.method == "HEAD" else answer.body
        if self._app.access_log is not None:
            self._app.access_log(client.address, client.request, answer, len(body))
        if answer.watching is not None:
            client.watching = answer.watching
            body = answer.watching.first()
        client.waits = False
        client.answered = True
        client.begun = None
        client.say(self._head(answer, keep=keep, old=head is not None and head.is_old), body)
        if client.watching is not None or not client.is_open:
            return
        if client.unsent and sum(each.unsent for each in self._clients.values()) > MOST_UNREAD_BYTES:
            self._end(max(self._clients.values(), key=lambda each: each.unsent), "answers_unread")
            return
        if not keep:
            client.end_after()
            return
        self._go_on(client)

    def _head(self, answer: Response, *, keep: bool, old: bool) -> bytes:
        lines = [f"HTTP/1.1 {answer.status} {REASONS[answer.status]}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if not keep:
            lines.append("Connection: close")
        elif old:
            lines.append("Connection: keep-alive")
        return "\r\n".join(lines).encode("latin-1") + self._dated()

    def _dated(self) -> bytes:
        """The last header lines of every answer."""
        second = int(time.time())
        if second != self._date[0]:
            date = formatdate(second, usegmt=True)
            self._date = second, f"\r\nServer: edge-runtime\r\nDate: {date}\r\n\r\n".encode()
        return self._date[1]

    # --- periodic checks --------------------------------------------------------------------------------------------

    def _sweep(self, now: float) -> None:
        self._app.counts.publish()
        for client in list(self._clients.values()):
            if client.sweep(now, head_s=min(HEAD_S, REQUEST_S), request_s=REQUEST_S, idle_s=IDLE_S):
                self.ended["request_late"] += 1

    def _tell(self) -> None:
        for client in list(self._clients.values()):
            if client.watching is not None:
                self._wait_for_loop()
                client.send_events()
                self._touched.add(client)


def _is_loopback(host: str) -> bool:
    if host == LOCAL:
        return True
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 client of a socket for both
    return (mapped or address).is_loopback
