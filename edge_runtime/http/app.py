"""The WSGI callable: token, host, size, route, answer. Every refusal is JSON with an `error`; nothing gets past as 500.

Pure but for the scorer's thread: it is tested without a socket. What a path names is looked up in a table, and never
reaches a file system.
"""

import queue
import re
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import msgspec

from edge_runtime import __version__
from edge_runtime.errors import EdgeError
from edge_runtime.http import metrics, named, tensors
from edge_runtime.http.access import Gate
from edge_runtime.http.answers import REASONS, Answer, RefusedError, Request, busy, json_answer
from edge_runtime.http.board import Board, Event
from edge_runtime.http.scorer import Scorer
from edge_runtime.http.served import Served, find
from edge_runtime.log import fields, get_logger

MAX_BODY_BYTES = 8 << 20
STREAM = "/events"
MAX_QUEUED = 64  # requests that have arrived and wait for a thread
STALE_S = 30.0  # a loop that has not answered for so long is not healthy
SMALLEST_GZIP = 1024
EVENTS_EVERY_S = 0.25
KEEP_ALIVE_S = 10.0

_log = get_logger("http")

Handler = Callable[[Request, Mapping[str, str]], Answer]


class App:
    """The routes over some models.

    Args:
        models: by the name in the path.
        board: what the daemon shows.
        token: what every request must bring; None lets everybody ask who can reach the loopback.
        server: its name and version, for `/v2`.
    """

    def __init__(self, models: Sequence[Served], board: Board, *, token: str | None = None) -> None:
        self.models = {served.name: served for served in models}
        self.board = board
        self.scorer = Scorer()
        self.requests: Counter[tuple[str, int]] = Counter()
        self.queued: Callable[[], int] = lambda: 0
        self.on_streams: Callable[[int], object] = lambda _count: None
        self._gate = Gate(token)
        self._stopped = threading.Event()
        model = r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?"
        table: list[tuple[str, str, str, Handler]] = [
            ("predict", r"/predict/(?P<model>[^/]+)", "POST", self._predict),
            ("infer", model + r"/infer", "POST", self._infer),
            ("page", r"/", "GET", self._page),
            ("openapi", r"/openapi\.json", "GET", self._openapi),
            ("events", STREAM, "GET", self._events),
            ("health", r"/health\.json", "GET", self._health),
            ("healthz", r"/healthz", "GET", self._healthz),
            ("metrics", r"/metrics", "GET", self._metrics),
            ("server", r"/v2/?", "GET", self._server),
            ("live", r"/v2/health/live", "GET", self._live),
            ("ready", r"/v2/health/ready", "GET", self._ready),
            ("index", r"/v2/models", "GET", self._index),
            ("repository", r"/v2/repository/index", "POST", self._index),
            ("model", model, "GET", self._model),
            ("model_ready", model + r"/ready", "GET", self._model_ready),
        ]
        self._routes = [(name, re.compile(pattern), method, handler) for name, pattern, method, handler in table]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One request, by the rules of WSGI."""
        method, headers = environ["REQUEST_METHOD"], _headers(environ)
        route = "-"
        try:
            self._gate.admit(headers)
            route, handler, parts = self._route(method, _path(environ))
            self._make_way(route)
            request = Request(method, environ["PATH_INFO"], environ.get("QUERY_STRING", ""), headers, _body(environ))
            answer = handler(request, parts)
        except RefusedError as error:
            answer = error.answer()
        except EdgeError as error:
            answer = RefusedError(500, str(error)).answer()
        except Exception:  # noqa: BLE001 - the stage's edge: the server goes on, the log has the traceback
            _log.exception("a request failed", extra=fields(route=route))
            answer = RefusedError(500, "internal error: see the log").answer()
        self.requests[route, answer.status] += 1
        return _respond(answer, method, headers, start_response)

    def stop(self) -> None:
        """End the streams of events and the scorer."""
        self._stopped.set()
        self.board.post("stopping", b"{}")  # wakes those who wait for an event
        self.scorer.stop()

    def _make_way(self, route: str) -> None:
        """Refuse work at once, when more of it waits for a thread than will be served soon."""
        if route in {"predict", "infer"} and self.queued() > MAX_QUEUED:
            raise busy("too many requests are waiting: try again in a second")

    def _route(self, method: str, path: str) -> tuple[str, Handler, dict[str, str]]:
        for name, pattern, wanted, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if wanted != ("GET" if method == "HEAD" else method):
                allowed = "GET, HEAD" if wanted == "GET" else wanted
                raise RefusedError(405, f"expected {allowed}, found {method[:16]}", headers={"Allow": allowed})
            return name, handler, {key: value for key, value in match.groupdict().items() if value is not None}
        raise RefusedError(404, f"there is nothing at {path[:100]}")

    def _page(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return Answer(
            body=_file("page.html"),
            type="text/html; charset=utf-8",
            headers={
                "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
                "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                "Cache-Control": "no-cache",
            },
        )

    def _openapi(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return Answer(body=_file("openapi.json"))

    def _events(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        watcher = self.board.watch()
        if watcher is None:
            raise busy("enough pages are open already: close one of them")
        return Answer(body=self._stream(watcher), type="text/event-stream", headers={"Cache-Control": "no-store"})

    def _stream(self, watcher: "queue.SimpleQueue[Event]") -> Iterator[bytes]:
        """Events as they come, a few times a second at most; the health document every now and then."""
        self.on_streams(self.board.watchers)
        try:
            yield b"retry: 1000\n\n" + _event("health", msgspec.json.encode(self.board.health()))
            while not self._stopped.is_set():
                try:
                    events = [watcher.get(timeout=KEEP_ALIVE_S / 5)]
                except queue.Empty:
                    events = []
                while not watcher.empty():
                    events.append(watcher.get())
                if self._stopped.is_set():
                    break  # the loop is waiting for us: it has no health to tell
                events.append(("health", msgspec.json.encode(self.board.health())))
                yield b"".join(_event(kind, document) for kind, document in events)
                self._stopped.wait(EVENTS_EVERY_S)
        finally:
            self.board.leave(watcher)
            self.on_streams(self.board.watchers)

    def _health(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return json_answer(self.board.health())

    def _live(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return json_answer({"live": True})

    def _healthz(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        self.board.health()
        if self.board.age_s > STALE_S:
            raise RefusedError(503, f"the daemon has not answered for {self.board.age_s:.0f} s")
        return json_answer({"status": "ok"})

    def _metrics(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return Answer(body=metrics.render(self.board.health(), dict(self.requests)), type=metrics.TYPE)

    def _server(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return json_answer({"name": "edge-runtime", "version": __version__, "extensions": ["binary_tensor_data"]})

    def _ready(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        if self._stopped.is_set() or not self.models:
            raise RefusedError(503, "no model is ready")
        return json_answer({"ready": True, "live": True})

    def _index(self, _request: Request, _parts: Mapping[str, str]) -> Answer:
        return json_answer(
            [
                {"name": served.name, "version": served.manifest.version, "state": "READY", "reason": ""}
                for served in self.models.values()
            ]
        )

    def _model(self, _request: Request, parts: Mapping[str, str]) -> Answer:
        return json_answer(tensors.metadata(self._find(parts)))

    def _model_ready(self, _request: Request, parts: Mapping[str, str]) -> Answer:
        return json_answer({"name": self._find(parts).name, "ready": True})

    def _infer(self, request: Request, parts: Mapping[str, str]) -> Answer:
        header = request.headers.get(tensors.LENGTH_HEADER.lower())
        return tensors.infer(self._find(parts), request.body, header, self.scorer)

    def _predict(self, request: Request, parts: Mapping[str, str]) -> Answer:
        return named.predict(self._find(parts), request.body, self.scorer)

    def _find(self, parts: Mapping[str, str]) -> Served:
        return find(self.models, parts["model"], parts.get("version"))


def _file(name: str) -> bytes:
    """A file of this package."""
    return resources.files("edge_runtime.http").joinpath(name).read_bytes()


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers


def _path(environ: Mapping[str, Any]) -> str:
    """The path, decoded: WSGI hands its bytes over as Latin-1."""
    raw: str = environ["PATH_INFO"]
    try:
        return raw.encode("latin-1").decode()
    except UnicodeError:
        raise RefusedError(400, "expected a path in UTF-8") from None


def _body(environ: Mapping[str, Any]) -> bytes:
    """The body, unpacked; never more than the limit, packed or unpacked."""
    if environ["REQUEST_METHOD"] not in {"POST", "PUT", "PATCH"}:
        return b""
    too_large = RefusedError(413, f"expected at most {MAX_BODY_BYTES} bytes")
    if int(environ.get("CONTENT_LENGTH") or 0) > MAX_BODY_BYTES:
        raise too_large
    body: bytes = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise too_large
    encoding = environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower()
    if encoding in {"identity", ""}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise RefusedError(415, f"expected Content-Encoding gzip or deflate, found {encoding[:32]!r}")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # finds out for itself which of the two it is
    try:
        unpacked = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise RefusedError(400, f"expected a body packed with {encoding}, found none: {error}") from error
    if len(unpacked) > MAX_BODY_BYTES:
        raise too_large
    if not unpacker.eof:
        raise RefusedError(400, f"expected a whole body packed with {encoding}, found a part of one")
    return unpacked


def _respond(
    answer: Answer, method: str, headers: Mapping[str, str], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    head = {
        "Content-Type": answer.type,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        **answer.headers,
    }
    body = answer.body
    if isinstance(body, bytes):
        if len(body) >= SMALLEST_GZIP and _takes_gzip(headers):
            packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
            body = packer.compress(body) + packer.flush()
            head["Content-Encoding"] = "gzip"
            head["Vary"] = "Accept-Encoding"
        head["Content-Length"] = str(len(body))
        body = [body]
    start_response(f"{answer.status} {REASONS.get(answer.status, 'Unknown')}", list(head.items()))
    return [] if method == "HEAD" else body


def _takes_gzip(headers: Mapping[str, str]) -> bool:
    for part in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = part.strip().partition(";")
        if name.strip() == "gzip":
            return quality.strip().replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _event(kind: str, document: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + document.replace(b"\n", b"") + b"\n\n"
