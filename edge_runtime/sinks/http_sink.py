"""`type = "http"`: predictions by POST, as an array of JSON objects per request, from an outbox of this sink.

Guarantee: at least once, in order per model and key, with the `id` of the upstream. A prediction leaves the outbox only
after a 2xx response. Without a response, and after 401, 403, 404, 429 or 500 and above, the same batch is sent again
after a pause that doubles up to `retry_max`, and all other predictions wait on disk, within `max_bytes` and `max_age`.
If the server refuses a batch for its content (400, 413, 422), its predictions are sent one by one, and those that are
refused again are set aside. Weak point: a server that takes a batch and fails before it responds gets it twice.
"""

import errno
import http.client
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import SplitResult, urlsplit

from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import FilePath, SomeSeconds, Text
from edge_runtime.delivery.json_payload import mark_delayed
from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE, Outbox
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.sinks.http_post import PostAnswer, Poster
from edge_runtime.sinks.kind import Offered, RunningSink, SinkContext, SinkKindTable, Standing
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.loop import Loop, Timer

BATCH_BYTES = 262_144
COMMIT_S = 1.0
MEMORY_BYTES = 4_194_304
_FIRST_PAUSE_S = 1.0
_OF_CONTENT = frozenset({400, 413, 422})
_STOP_S = 2.0  # time for a request in progress at a stop
_DELAYED = b'"delayed":true}'


class HttpSinkTable(SinkKindTable, frozen=True, kw_only=True, tag="http"):
    """`[[sink]]` with `type = "http"`: a POST of a JSON array of predictions.

    Attributes:
        url: Where to, as `https://HOST:PORT/PATH` or `http://...`, which is not encrypted.
        token_file: A file whose first line is sent as `Authorization: Bearer`. Read anew for each request.
        ca_file: The certificates that are trusted (PEM), instead of those of the operating system. For `https` only.
        max_batch: The most predictions in one request.
        max_bytes (B): How large the file of waiting predictions may grow; then the oldest of the lowest priority goes.
        max_age (s): Older predictions are dropped, and counted.
        timeout (s): How long connecting, and each step of an answer, may take.
        retry_max (s): The longest pause before a batch is sent again.
    """

    url: Text
    token_file: FilePath | None = None
    ca_file: FilePath | None = None
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 100
    max_bytes: Annotated[int, Meta(ge=4096)] = 16_777_216
    max_age: SomeSeconds = 604_800.0
    timeout: Annotated[float, Meta(gt=0, le=300)] = 10.0
    retry_max: SomeSeconds = 60.0

    def make(self, context: SinkContext) -> RunningSink:
        """Start the sink."""
        return HttpSink(self, context)


@rule(HttpSinkTable, keys=("url", "ca_file"))
def _a_url(sink: HttpSinkTable) -> Iterator[Finding]:
    wanted = "expected https://HOST:PORT/PATH or http://HOST:PORT/PATH"
    try:
        url = urlsplit(sink.url)
        port = url.port
    except ValueError as error:
        yield "url", f"{wanted}, found an address that is none ({error})"
        return
    has_odd = any(each.isspace() or not each.isprintable() or not each.isascii() for each in sink.url)
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0 or has_odd:
        yield "url", f"{wanted}, found another address: mend it"
    elif url.username is not None or url.password is not None:
        yield "url", f"{wanted}, found a user or password in it: write a token into a file and name that in token_file"
    elif url.fragment:
        yield "url", f"{wanted}, found a fragment (#...) in it, which no server sees: take it out"
    elif sink.ca_file is not None and url.scheme == "http":
        yield "ca_file", "expected a url with https:// beside it: nothing is encrypted there"


class HttpSink:
    """One `[[sink]]` of type `http`."""

    def __init__(self, table: HttpSinkTable, context: SinkContext) -> None:
        self._name = table.name
        self._context = context
        self._standing = Standing(table.name, f"{_shown(table.url)}: ready", context)
        store = None
        if context.folder is not None:
            file = OutboxFile(context.folder / _file_name(table.name), table.max_bytes, table.max_age)
            store = OutboxThread(file, context.loop.call_soon_threadsafe)
        self._store = store
        self._link = HttpLink(table, context, self._standing, self._link_changed)
        self.outbox = Outbox(
            context.loop,
            context.counters,
            store=store,
            commit_interval=COMMIT_S,
            max_memory_bytes=MEMORY_BYTES,
            unsendable=self._link.why_unsendable,
        )
        self.outbox.on_state = self._disk_changed
        self.outbox.attach(self._link)

    @property
    def state(self) -> str:
        """The state as one line of text."""
        disk = self.outbox.state
        waiting = self.outbox.queued
        more = "" if disk in {"ok", "opening", "memory only"} else f"; outbox: {disk}"
        return self._standing.text + (f"; {waiting} wait" if waiting else "") + more

    @property
    def is_safe(self) -> bool:
        """Whether everything is acknowledged or on disk, and no request is in progress."""
        return self.outbox.is_safe and not self._link.is_busy

    def take(self, offered: Offered) -> None:
        """Take a prediction."""
        priority = PRIORITY_ALARM if offered.alarm else PRIORITY_ROUTINE
        self.outbox.offer(offered.stream, "", offered.payload, priority=priority, receipt=None)

    def drain(self) -> None:
        """Send nothing new, and commit what is not acknowledged."""
        self._link.drain()
        self.outbox.drain()

    def stop(self, within: float) -> None:
        """Close connection and file."""
        self._link.stop()
        if self._store is not None:
            self._store.stop(within)
        else:
            self._standing.lost("stopped", self.outbox.queued)

    def _link_changed(self) -> None:
        self.outbox.link_changed()

    def _disk_changed(self, state: str) -> None:
        if state not in {"ok", "opening"}:
            self._standing.note(f"the outbox of the sink: {state}")


class _Sent(NamedTuple):
    """One prediction that is being sent."""

    payload: bytes
    outcome: Callable[[bool], None]


def _late(sent: _Sent) -> _Sent:
    """The same, marked as late."""
    payload = sent.payload
    return _Sent(payload if payload.endswith(_DELAYED) else mark_delayed(payload) or payload, sent.outcome)


class HttpLink:
    """The server, with the interface of a link for the outbox: it takes messages and acknowledges them.

    The link itself keeps a failed batch and sends it again. So the outbox does not see an outage as a lost link, after
    which it would search for a message that breaks the link.
    """

    def __init__(
        self, table: HttpSinkTable, context: SinkContext, standing: Standing, changed: Callable[[], None]
    ) -> None:
        self._table = table
        self._loop: Loop = context.loop
        self._counts = context.counters.counts
        self._standing = standing
        self._changed = changed
        self._url: SplitResult = urlsplit(table.url)
        self._poster = Poster(self._url, table.ca_file, table.timeout)
        self._thread = BackgroundThread("sink", context.loop.call_soon_threadsafe, at_end=self._poster.close)
        self._next: deque[_Sent] = deque()
        self._batch: list[_Sent] = []  # in progress, or to be sent again
        self._alone: deque[_Sent] = deque()  # of a refused batch: each is sent by itself
        self._is_posting = False
        self._is_due = False
        self._is_draining = False
        self._timers: list[Timer] = []
        self._pause = _FIRST_PAUSE_S
        self._refusal: str | None = None
        self.connected = True
        self.window = 2 * table.max_batch

    @property
    def is_busy(self) -> bool:
        """Whether a request is in progress."""
        return self._is_posting

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Callable[[bool], None] | None
    ) -> bool:
        """Take a prediction for the next request; return False while the server does not respond."""
        del topic, qos, retain
        if not self.connected or self._is_draining or outcome is None:
            return False
        self._next.append(_Sent(payload, outcome))
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._post_next)
        return True

    def why_unsendable(self, topic: str, size: int) -> str | None:
        """The reason to set aside the prediction that was just refused."""
        del topic, size
        return self._refusal

    def drain(self) -> None:
        """Begin no further request."""
        self._is_draining = True
        self._cancel()
        self._timers.append(self._loop.call_later(_STOP_S, self._poster.abort))

    def stop(self) -> None:
        """End a request in progress, and the thread."""
        self._cancel()
        self._poster.abort()
        self._thread.stop(0.5)

    def _cancel(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _post_next(self) -> None:
        """Send the waiting predictions, unless a request or a pause is in progress."""
        self._is_due = False
        if self._is_posting or self._batch or self._is_draining:
            return
        if self._alone:
            self._batch = [self._alone.popleft()]
        else:
            size = 0
            while self._next and len(self._batch) < self._table.max_batch:
                size += len(self._next[0].payload) + 1
                if self._batch and size > BATCH_BYTES:
                    break
                self._batch.append(self._next.popleft())
        if self._batch:
            self._post()

    def _post(self) -> None:
        payloads = [each.payload for each in self._batch]
        self._is_posting = True
        # this also ends a response that trickles in and keeps within every single timeout
        self._timers.append(self._loop.call_later(3 * self._table.timeout, self._poster.abort))
        self._thread.submit(partial(self._send, payloads), self._answered, self._failed, most_s=math.inf)

    def _send(self, payloads: list[bytes]) -> PostAnswer:
        """In the thread."""
        headers = {"Content-Type": "application/json", "User-Agent": "edge-runtime"}
        if self._table.token_file is not None:
            headers["Authorization"] = f"Bearer {_token(Path(self._table.token_file))}"
        return self._poster.post(b"[" + b",".join(payloads) + b"]", headers)

    def _answered(self, answer: PostAnswer) -> None:
        self._is_posting = False
        self._cancel()
        if 200 <= answer.status < 300:
            self._counts["requests"] += 1
            self._settle(accepted=True)
            self._come_back()
        elif answer.status in _OF_CONTENT:
            if len(self._batch) > 1:
                self._alone.extend(self._batch)
                self._batch = []
            else:
                quoted = f" ({answer.body})" if answer.body else ""
                self._refusal = f"the server answered {answer.status}{quoted}"
                self._standing.fault("refused_by_server", f"{_shown(self._table.url)}: {self._refusal}")
                self._settle(accepted=False)
                self._refusal = None
            self._come_back(well=False)
        else:
            quoted = f" ({answer.body})" if answer.body else ""
            self._try_later(f"answered {answer.status}{quoted}", answer.retry_after)

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, OSError | http.client.HTTPException):
            raise error
        self._is_posting = False
        self._cancel()
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self._try_later(why if isinstance(error, OSError) else f"{type(error).__name__}: {why}", 0.0)

    def _settle(self, *, accepted: bool) -> None:
        batch, self._batch = self._batch, []
        for each in batch:
            each.outcome(accepted)

    def _come_back(self, *, well: bool = True) -> None:
        """The server responds again: continue with the waiting predictions."""
        self._pause = _FIRST_PAUSE_S
        if well:
            self._standing.well()
        if not self.connected:
            self.connected = True
            self._changed()
        self._post_next()

    def _try_later(self, why: str, at_least: float) -> None:
        """Keep the batch, and send it again after a pause."""
        pause = max(at_least, min(self._pause, self._table.retry_max) * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        self._pause = min(2 * self._pause, self._table.retry_max)
        self._standing.fault("no_answer", f"{_shown(self._table.url)}: {why}; next attempt in {pause:.0f} s")
        self.connected = False
        self._batch = [_late(each) for each in self._batch]
        self._next = deque(_late(each) for each in self._next)
        if not self._is_draining:
            self._timers.append(self._loop.call_later(pause, self._post))


def _token(path: Path) -> str:
    """The first line of a file.

    Raises:
        OSError: it cannot be read, or holds no token; the message contains nothing of the file.
    """
    line = path.read_bytes()[:65_536].partition(b"\n")[0].strip()
    if not line or not all(0x20 < each < 0x7F for each in line):
        raise OSError(errno.EINVAL, f"{path}: expected a token without blanks as its first line, found none")
    return line.decode("ascii")


def _shown(url: str) -> str:
    """An address without its query, which may hold a secret."""
    return url.partition("?")[0]


def _file_name(name: str) -> str:
    """The name of a sink's file in the state folder; a `Name` has no path separator."""
    return f"sink-{name}.db"
