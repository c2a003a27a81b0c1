"""A request from beginning to end: token, host, size, route, answer. Every refusal is JSON with an `error`.

There are two ways in. The server calls `admit` with a head, to refuse before it reads a body, and `begin`, which
handles a request up to its model, so that waiting requests are scored together. `App` itself is a WSGI callable, which
handles one request from beginning to end. An `App` belongs to one thread, and is tested without a socket. Names in a
path are looked up in a table, and never reach the file system.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edge_runtime.errors import EdgeError
from edge_runtime.http import cors
from edge_runtime.http.access_log import AccessLog
from edge_runtime.http.auth import Access, Gate, Group
from edge_runtime.http.counts import Counts
from edge_runtime.http.live_view import Board
from edge_runtime.http.responses import REASONS, HttpError, Request, Response
from edge_runtime.http.routes import ROUTES
from edge_runtime.http.scorer import Scorer, Work, result
from edge_runtime.http.served_model import Served
from edge_runtime.http.truth_api import TakeTruth
from edge_runtime.system.log import fields, get_logger

MAX_BODY_BYTES = 8 << 20
SMALLEST_GZIP = 1024

_log = get_logger("http")

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}

Handler = Callable[["App", Request, Mapping[str, str]], Response | Work]


class App:
    """The routes over some models. `pause` is called wherever a long piece of work may be interrupted.

    Args:
        models: by the name in the path.
        board: the documents and events of the daemon.
        token: required in every request; None admits every request over the loopback.
        access: the full rules of access, in place of `token`.
        access_log: gets each answer, with its client, request, and the bytes of its body.
        prefix: a path that a proxy may put in front of ours. Requests without it are answered too, so it does not
            matter whether the proxy removes it.
    """

    def __init__(
        self,
        models: Sequence[Served],
        board: Board,
        *,
        token: str | None = None,
        access: Access | None = None,
        prefix: str = "",
        access_log: AccessLog | None = None,
    ) -> None:
        self.models = {served.name: served for served in models}
        self.board = board
        self.scorer = Scorer()
        self.counts = Counts()
        self.requests = self.counts.requests
        self.access_log = access_log
        self.pause: Callable[[], None] = lambda: None
        self.prefix = prefix
        self.is_stopped = False
        self.truth: TakeTruth | None = None
        self.let_in(access or Access(token=token))
        self._groups: dict[str, Group] = {each.pattern: each.group for each in ROUTES if each.group}
        self._routes = [(each.name, re.compile(each.pattern), each.method, each.handler) for each in ROUTES]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle one request by the rules of WSGI. A stream of events ends after the events available now."""
        request = Request(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            _headers(environ),
            environ["wsgi.input"].read(min(int(environ.get("CONTENT_LENGTH") or 0), MAX_BODY_BYTES + 1)),
        )
        begun = self.begin(request)
        while isinstance(begun, Work):
            self.scorer.turn()
            if begun.answer is not None:
                begun = self.end(request, begun)
        if begun.watching is not None:
            begun.body = begun.watching.first()
            begun.watching.leave()
        start_response(f"{begun.status} {REASONS[begun.status]}", list(begun.headers.items()))
        return [] if request.method == "HEAD" else [begun.body]

    def admit(self, request: Request, length: int | None = None) -> Response | None:
        """Judge a request by its head alone, before any of its body is taken; the refusal, or None.

        Args:
            request: its body may still be missing.
            length: of the body as announced; None for a chunked body.
        """
        try:
            path = self._plain(request.path)
            if cors.is_preflight(request.method, request.headers) and self._gate.welcomes(request.headers["origin"]):
                request.route, request.handler = "preflight", cors.preflight
                return None
            self._gate.admit(request.method, request.headers, self._groups.get(path, ""))
            request.route, request.handler, request.parts = self._route(request.method, _path(path))
            if length is not None and length > MAX_BODY_BYTES:
                raise HttpError(413, f"expected at most {MAX_BODY_BYTES} bytes, found {length}")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - as in `begin`
            return self._dressed(request, _refusal(request, error))
        return None

    def begin(self, request: Request) -> Response | Work:
        """Answer a request, or queue it for its model: then its `Work` is in the scorer, and `end` answers it."""
        if request.handler is None:
            refusal = self.admit(request)
            if refusal is not None:
                return refusal
        try:
            assert request.handler is not None
            request.body = _unpacked(request)
            begun = request.handler(self, request, request.parts)
            request.body = b""  # what waits for its model has its windows
            if isinstance(begun, Work):
                if request.model is not None:
                    begun.on_call = self.counts.model(request.model).note_call
                self.scorer.add(begun)
                return begun
        except Exception as error:  # noqa: BLE001 - the stage's edge: the server goes on, the client gets a 500
            begun = _refusal(request, error)
        return self._dressed(request, begun)

    def end(self, request: Request, work: Work) -> Response:
        """The answer to a request after its model has run or failed."""
        try:
            answer = result(work)
        except Exception as error:  # noqa: BLE001 - as above
            answer = _refusal(request, error)
        return self._dressed(request, answer, work)

    def refuse(self, request: Request, error: HttpError) -> Response:
        """The refusal of a request by the server itself, counted like any other."""
        return self._dressed(request, error.answer())

    def forget_waiting(self) -> None:
        """Drop the requests that wait for a model: their connections are closed."""
        self.scorer = Scorer()

    def let_in(self, access: Access) -> None:
        """Use these rules of access from the next request on."""
        self._gate = Gate(access)

    def stop(self) -> None:
        """Report not ready from now on."""
        self.is_stopped = True

    def _dressed(self, request: Request, answer: Response, work: Work | None = None) -> Response:
        """Count it, pack it, and give it its headers."""
        self.requests[request.route, answer.status] += 1
        if request.model is not None:
            self.counts.model(request.model).note_answer(answer.status, request.began, work)
        body = answer.body
        headers = {"Content-Type": answer.type, **_HEADERS, **answer.headers}
        if self._gate.has_origins:
            headers["Vary"] = "Origin"
            origin = request.headers.get("origin")
            if origin is not None and self._gate.welcomes(origin):
                headers.update(cors.answer_headers(origin))
        if answer.status == 204:
            del headers["Content-Type"]
        elif answer.watching is None:
            if len(body) >= SMALLEST_GZIP and _takes_gzip(request.headers):
                packer = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
                answer.body = body = packer.compress(body) + packer.flush()
                headers["Content-Encoding"] = "gzip"
                headers["Vary"] = "Accept-Encoding" if "Vary" not in headers else f"{headers['Vary']}, Accept-Encoding"
            headers["Content-Length"] = str(len(body))
        answer.headers = headers
        return answer

    def _plain(self, path: str) -> str:
        """The path without our prefix, and without a slash at its end."""
        prefix = self.prefix
        if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in {"", "/"}:
            path = path[len(prefix) :] or "/"
        return path[:-1] if len(path) > 1 and path.endswith("/") else path

    def _route(self, method: str, path: str) -> tuple[str, Handler, dict[str, str]]:
        for name, pattern, wanted, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if wanted != ("GET" if method == "HEAD" else method):
                allowed = "GET, HEAD" if wanted == "GET" else wanted
                raise HttpError(405, f"expected {allowed}, found {method[:16]}", headers={"Allow": allowed})
            return name, handler, {key: value for key, value in match.groupdict().items() if value is not None}
        raise HttpError(404, f"there is nothing at {path[:100]}")


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name[:5] == "HTTP_"}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    return headers


def _path(raw: str) -> str:
    """The path, decoded: WSGI hands its bytes over as Latin-1."""
    if raw.isascii():
        return raw
    try:
        return raw.encode("latin-1").decode()
    except UnicodeError:
        raise HttpError(400, "expected a path in UTF-8") from None


def _unpacked(request: Request) -> bytes:
    """The body; never more than the limit, packed or unpacked."""
    if request.method not in {"POST", "PUT", "PATCH"}:
        return b""
    body = request.body
    too_large = f"expected at most {MAX_BODY_BYTES} bytes"
    if len(body) > MAX_BODY_BYTES:
        raise HttpError(413, too_large)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in {"identity", ""}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise HttpError(415, f"expected Content-Encoding gzip or deflate, found {encoding[:32]!r}")
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects which of the two it is
    try:
        unpacked = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise HttpError(400, f"expected a body packed with {encoding}, found none: {error}") from error
    if len(unpacked) > MAX_BODY_BYTES:
        raise HttpError(413, too_large)
    if not unpacker.eof:
        raise HttpError(400, f"expected a whole body packed with {encoding}, found a part of one")
    return unpacked


def _refusal(request: Request, error: Exception) -> Response:
    if isinstance(error, HttpError):
        return error.answer()
    if not isinstance(error, EdgeError):
        _log.error("a request failed", extra=fields(route=request.route), exc_info=error)
        error = HttpError(500, "internal error: see the log")
    return HttpError(500, str(error)).answer()


def _takes_gzip(headers: Mapping[str, str]) -> bool:
    for part in headers.get("accept-encoding", "").lower().split(","):
        name, _, quality = part.strip().partition(";")
        if name.strip() == "gzip":
            return quality.strip().replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False
