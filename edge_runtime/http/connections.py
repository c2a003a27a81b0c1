"""The connections of the server: waitress reads requests and keeps its limits, one thread answers them on `epoll`.

waitress would hand each request to a thread and wake its own thread for each answer; on a small device those hand-offs
cost more than the models do. Here the thread that reads also answers: it takes what all sockets have brought, then
lets the models score it together, and looks at the sockets again after each call of a model. Beside a stream it gives
way to the event loop between any two steps, and works in short bursts with rests between them (`yield_to_loop.py`).

Guarantee: no client is waited for; what a client does not read is kept up to `MOST_UNREAD`, then it is cut off.
"""

import select
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import msgspec
from waitress import wasyncore
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import FixedStreamReceiver
from waitress.server import TcpWSGIServer

from edge_runtime.http.app import App
from edge_runtime.http.event_stream import EVENTS_EVERY_S, Watching
from edge_runtime.http.responses import REASONS, Answer, RefusedError, Request
from edge_runtime.http.scorer import HANG_S, Work
from edge_runtime.http.yield_to_loop import BURST, SHARE, Courtesy
from edge_runtime.system.watchdog import working

REQUEST_S = 30.0
PASS_S = 2 * HANG_S  # a model inside it is given `HANG_S`
SWEEP_S = 1.0
LONGEST_REST_S = 0.02
MOST_UNREAD = 32 << 20
MOST_EVENTS_UNREAD = 1 << 18
MOST_AT_ONCE = 64
HEADS = 64  # of requests that are remembered, since a client says the same with each
HEAD_BYTES = 2048


class Watched(dict[int, Any]):
    """What waitress knows by its descriptor, and `epoll` with it."""

    def __init__(self) -> None:
        super().__init__()
        self.epoll = select.epoll()
        self._interests: dict[int, int] = {}

    def __setitem__(self, fd: int, channel: Any) -> None:
        super().__setitem__(fd, channel)
        self._interests[fd] = select.EPOLLIN
        self.epoll.register(fd, select.EPOLLIN)

    def __delitem__(self, fd: int) -> None:
        super().__delitem__(fd)
        del self._interests[fd]
        self.epoll.unregister(fd)

    def review(self, channel: Any) -> None:
        """Wait for what a channel now wants."""
        fd = channel._fileno  # noqa: SLF001 - waitress has no other name for it
        if fd is None:
            return
        wanted = (select.EPOLLIN if channel.readable() else 0) | (select.EPOLLOUT if channel.writable() else 0)
        if wanted != self._interests[fd]:
            self._interests[fd] = wanted
            self.epoll.modify(fd, wanted)


class Head:
    """What the head of a request says, for all requests with the same head."""

    __slots__ = ("headers", "keep", "said")

    def __init__(self, parser: HTTPRequestParser) -> None:
        self.said = {name: value for name, value in vars(parser).items() if name not in _OF_ONE_REQUEST}
        self.headers = {name.replace("_", "-").lower(): value for name, value in parser.headers.items()}
        connection = self.headers.get("connection", "").lower()
        self.keep = connection != "close" if parser.version == "1.1" else connection == "keep-alive"


_OF_ONE_REQUEST = frozenset({"adj", "body_rcv", "header_plus", "header_bytes_received", "completed", "empty"})


class Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """Reads a request; a head that has been read before is not read again."""

    head: Head | None = None
    _known: dict[bytes, Head] = {}  # noqa: RUF012 - of all requests

    def parse_header(self, header_plus: bytes) -> None:
        """As waitress does, or from memory."""
        known = self._known.get(header_plus)
        if known is None:
            super().parse_header(header_plus)
            self.head = Head(self)
            if len(header_plus) <= HEAD_BYTES and not self.chunked and not self.expect_continue:
                if len(self._known) >= HEADS:
                    del self._known[next(iter(self._known))]
                self._known[header_plus] = self.head
            return
        self.__dict__.update(known.said)
        self.head = known
        if self.content_length > 0:
            self.body_rcv = FixedStreamReceiver(self.content_length, OverflowableBuffer(self.adj.inbuf_overflow))

    def request(self) -> Request:
        """What was asked."""
        assert self.head is not None
        return Request(self.command, self.path, self.head.headers, self.get_body_stream().read())


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection."""

    parser_class = Parser
    requests: list[Parser]
    begun: float | None = None
    watching: Watching | None = None

    def received(self, data: bytes) -> bool:
        """Take what has come, and note since when a request has been coming."""
        taken = bool(super().received(data))
        if self.request is None:
            self.begun = None
        elif self.begun is None:
            self.begun = time.monotonic()
        return taken

    def handle_read(self) -> None:
        """Read, and see when the client has gone."""
        super().handle_read()
        if not self.connected:
            self.handle_close()

    def handle_close(self) -> None:
        """Forget it, and that it was watching."""
        if self.watching is not None:
            self.watching.leave()
            self.watching = None
        self.requests = []
        super().handle_close()

    def say(self, data: bytes) -> None:
        """Send what the socket takes now, and keep the rest for later."""
        if not self.total_outbufs_len:
            try:
                data = data[self.send(data, do_close=False) :]
            except OSError:
                self.handle_close()
                return
        self.last_activity = time.time()
        if data:
            self.outbufs[-1].append(data)
            self.total_outbufs_len += len(data)
            if self.total_outbufs_len > MOST_UNREAD:
                self.handle_close()

    def answered(self, *, keep: bool) -> None:
        """The first of its requests has its answer: go on with the next, or end."""
        self.requests.pop(0).close()
        if not self.connected:
            return
        if not keep:
            self.requests = []
            self.close_when_flushed = True
            if not self.total_outbufs_len:
                self.handle_close()
        elif self.requests:
            self.server.add_task(self)
        elif self._waits_for_continue():
            self.send_continue()

    def _waits_for_continue(self) -> bool:
        coming = self.request
        return coming is not None and coming.expect_continue and coming.headers_finished and not self.sent_continue

    def sweep(self, now: float) -> None:
        """End it when a request takes too long to arrive, or waitress has given it up."""
        if self.will_close or (self.begun is not None and now - self.begun > REQUEST_S):
            self.handle_close()

    def send_events(self) -> None:
        """What the page has not seen yet, unless it does not read."""
        if self.watching is not None and self.total_outbufs_len < MOST_EVENTS_UNREAD:
            data = self.watching.more()
            if data:
                self.say(data)


class Listener(TcpWSGIServer):  # type: ignore[misc]
    """The socket that clients come to; what they ask gathers in `asked`."""

    channel_class = Channel

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.asked: list[Channel] = []
        super().__init__(*arguments, **named)

    def add_task(self, channel: Channel) -> None:
        """A request is complete."""
        self.asked.append(channel)


class _NoThreads:
    """In the place of waitress's threads, of which there are none."""

    def add_task(self, _task: object) -> None:
        raise AssertionError


class Connections:
    """The server's thread.

    Args:
        app: answers.
        listener: a bound socket.
        options: waitress's `Adjustments`.
        courtesy: to the event loop; None where there is none.
    """

    def __init__(self, app: App, listener: Any, options: Any, courtesy: Courtesy | None) -> None:
        self._app = app
        self._map = Watched()
        sockinfo = (listener.family, listener.type, listener.proto, listener.getsockname())
        self._listener = Listener(
            app,
            map=self._map,
            _sock=listener,
            bind_socket=False,
            adj=options,
            sockinfo=sockinfo,
            dispatcher=_NoThreads(),
        )
        self._give_way: Callable[[], None] = (lambda: None) if courtesy is None else courtesy.give_way
        app.pause = self._give_way
        self._share, self._burst = (1.0, MOST_AT_ONCE) if courtesy is None else (SHARE, BURST)
        self._waiting: dict[Work, tuple[Channel, Request]] = {}
        self._touched: set[Any] = set()
        self._date = (0, b"")

    def wake(self) -> None:
        """End the present wait; from any thread."""
        self._listener.pull_trigger()

    def serve(self, stopped: Callable[[], bool]) -> None:
        """Answer until `stopped`."""
        swept = told = 0.0
        while not stopped():
            patience = 0.0 if self._waiting or self._listener.asked else self._patience()
            events = self._map.epoll.poll(patience, self._burst)
            began = time.thread_time()
            with working("the HTTP server", PASS_S):
                self._read(events)
                self._answer()
            now = time.monotonic()
            if now - swept > SWEEP_S:
                swept = now
                self._sweep(now)
            if now - told > EVENTS_EVERY_S:
                told = now
                self._tell()
            for channel in self._touched:
                self._map.review(channel)
            self._touched.clear()
            self._rest(time.thread_time() - began)
        self._end()

    def _patience(self) -> float:
        return EVENTS_EVERY_S if self._app.board.is_watched else SWEEP_S

    def _rest(self, worked: float) -> None:
        """Leave the core to others for as long as the share asks; what comes meanwhile is then answered together."""
        if self._share < 1.0 and worked > 0.0:
            time.sleep(min(worked / self._share - worked, LONGEST_REST_S))

    def _read(self, events: list[tuple[int, int]]) -> None:
        for fd, flags in events:
            channel = self._map.get(fd)
            if channel is not None:
                self._give_way()
                wasyncore.readwrite(channel, flags)
                self._touched.add(channel)
        self._touched.add(self._listener)

    def _answer(self) -> None:
        """What needs no model at once, then one call of a model for those that wait."""
        asked, self._listener.asked = self._listener.asked, []
        for channel in asked:
            if channel.requests:
                self._give_way()
                self._begin(channel, channel.requests[0])
        self._give_way()
        for work in self._app.scorer.turn():
            channel, request = self._waiting.pop(work)
            if channel.connected:
                self._give_way()
                self._finish(channel, self._app.end(request, work))

    def _begin(self, channel: Channel, parser: Parser) -> None:
        self._touched.add(channel)
        if parser.error is not None:
            reason = f"{parser.error.reason}: {parser.error.body}".strip(": ")
            body = msgspec.json.encode({"error": reason})
            head = f"HTTP/1.1 {parser.error.code} {parser.error.reason}\r\n".encode()
            channel.say(
                head + b"Content-Type: application/json\r\nConnection: close\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            channel.answered(keep=False)
            return
        request = parser.request()
        begun = self._app.begin(request)
        if isinstance(begun, Work):
            self._waiting[begun] = channel, request
        else:
            self._finish(channel, begun)

    def _finish(self, channel: Channel, answer: Answer) -> None:
        self._touched.add(channel)
        parser = channel.requests[0]
        assert parser.head is not None
        keep = parser.head.keep and answer.watching is None
        body = b"" if parser.command == "HEAD" else answer.body
        if answer.watching is not None:
            channel.watching = answer.watching
            body = answer.watching.first()
        channel.say(self._head(answer, keep=keep, old=parser.version == "1.0") + body)
        if channel.watching is not None and channel.connected:
            channel.requests.pop(0).close()
            return
        channel.answered(keep=keep)

    def _head(self, answer: Answer, *, keep: bool, old: bool) -> bytes:
        lines = [f"HTTP/1.1 {answer.status} {REASONS[answer.status]}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if not keep:
            lines.append("Connection: close")
        elif old:
            lines.append("Connection: keep-alive")
        return "\r\n".join(lines).encode("latin-1") + self._dated()

    def _dated(self) -> bytes:
        """The lines that end every head."""
        second = int(time.time())
        if second != self._date[0]:
            date = formatdate(second, usegmt=True)
            self._date = second, f"\r\nServer: edge-runtime\r\nDate: {date}\r\n\r\n".encode()
        return self._date[1]

    def _sweep(self, now: float) -> None:
        for channel in list(self._listener.active_channels.values()):
            channel.sweep(now)

    def _tell(self) -> None:
        for channel in list(self._listener.active_channels.values()):
            if channel.watching is not None:
                self._give_way()
                channel.send_events()
                self._touched.add(channel)

    def _end(self) -> None:
        """Those who wait are told to come again; then everything is closed."""
        stopping = RefusedError(503, "the server is stopping", headers={"Retry-After": "1"})
        for work, (channel, request) in self._waiting.items():
            work.answer = stopping
            if channel.connected:
                self._finish(channel, self._app.end(request, work))
        self._listener.close()
        wasyncore.close_all(self._map, ignore_all=True)
        self._map.epoll.close()
