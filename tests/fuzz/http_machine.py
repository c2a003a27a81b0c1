"""Requests in sequence on one connection, made so that it is known what has to be read from them.

A sequence is some good requests, framed in every way that HTTP/1.1 has, and in some sequences one that two readers
could understand differently. The oracle is what was meant: the good ones come out with their bodies, whatever the cuts;
the reader refuses at the ambiguous one, and nothing behind it is read. What comes out is answered by the application.
"""

import gzip
import json
import random
import tempfile
import zlib
from pathlib import Path

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.request_reader import BadRequestError, RequestReader
from edge_runtime.http.responses import REASONS, Request
from edge_runtime.http.scorer import Work
from edge_runtime.http.served_model import Served
from tests.fuzz.odd import as_json, odd_document
from tests.support import builders

_PATHS = [
    "/", "/healthz", "/health.json", "/metrics", "/openapi.json", "/docs", "/v2", "/v2/health/live",
    "/v2/health/ready",
    "/v2/models", "/v2/models/activity", "/v2/models/activity/ready", "/v2/models/activity/infer",
    "/predict/activity",
    "/v2/models/activity/versions/1.0.0/infer", "/v2/repository/index", "/ping", "/invocations", "/predict/none",
    "/%2e%2e/x",
    "/predict/a%00b", "//", "/predict/" + "x" * 300, "/events",
]  # fmt: skip
_BODIES = [
    {"temperature": 21.5, "humidity": 48.25},
    [{"temperature": 21.5, "humidity": 48.25}],
    {"inputs": [{"name": "window", "datatype": "FP32", "shape": [1, 1, 2], "data": [21.5, 48.25]}],
     "outputs": [{"name": "scores"}], "parameters": {"binary_data_output": True}},
]  # fmt: skip
_HEADERS = [
    b"Accept: */*", b"Origin: http://evil.example", b"Origin: null", b"Sec-Fetch-Site: cross-site", b"Cookie: a=b",
    b"Content-Type: application/json", b"Content-Type: text/plain", b"Accept-Encoding: gzip, br;q=0",
    b"X: " + b"y" * 999,
    b"Inference-Header-Content-Length: 9999999999", b"Inference-Header-Content-Length: -1",
    b"Authorization: Bearer x",
    b"Connection: keep-alive, Upgrade", b"X-\xe9: 1".replace(b"\xe9", b"e"), b"Content-Encoding: br",
    b"Expect: 100-continue",
]  # fmt: skip
# Each may be understood in two ways; put before the head's end of a good POST that announces no other body.
_AMBIGUOUS_HEADS = [
    b"Content-Length: 0\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    b"Content-Length: 2\r\nContent-Length: 2", b"Content-Length: 2\r\nContent-Length: 3", b"Content-Length: 2, 2",
    b"Content-Length: +2", b"Content-Length: 0x2", b"Content-Length: -1", b"Content-Length: 2 2", b"Content-Length:",
    b"Content-Length: \xb2", b"Content-Length: 1_0", b"Content-Length: 99999999999999999999", b"Content-Length : 2",
    b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", b"Transfer-Encoding:\r\n chunked",
    b"Transfer-Encoding : chunked",
    b'Transfer-Encoding: "chunked"', b"Transfer-Encoding\t: chunked", b"X: y\nContent-Length: 2",
    b"X: y\rContent-Length: 2",
    b"X: a\0b", b" Content-Length: 2", b"Content-Length\0: 2", b"X\r\n: y", b"nothing", b"X: y\r\n\tz",
]  # fmt: skip
_AMBIGUOUS_CHUNKS = [
    b"5g\r\nhello\r\n0\r\n\r\n", b"-5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n0\r\n\r\n",
    b"0x5\r\nhello\r\n0\r\n\r\n",
    b"5\nhello\r\n0\r\n\r\n", b"5\r\nhello0\r\n\r\n\r\n", b"5\r\nhelloxx0\r\n\r\n", b"123456789\r\nhello\r\n",
    b"\r\nhello\r\n0\r\n\r\n",
    b"5 5\r\nhello\r\n0\r\n\r\n", b"5;a\nb\r\nhello\r\n0\r\n\r\n", b"5" + b";" * 300 + b"\r\nhello",
    b"0\r\nX: y\n\nGET / HTTP/1.1\r\n\r\n",
    b"0\r\nGET / HTTP/1.1\r\n\r\n", b"5\r\nhello\n\n0\r\n\r\n", b"\t5\r\nhello\r\n0\r\n\r\n",
    b"5_0\r\nhello\r\n0\r\n\r\n",
]  # fmt: skip
_AMBIGUOUS_LINES = [
    b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1", b"GET / HTTP/2.0", b"GET / http/1.1", b"GET /",
    b"G\0T / HTTP/1.1",
    b"GET /a b HTTP/1.1", b"GET\t/ HTTP/1.1", b"GET / HTTP/1.1\nX: y", b"GET ftp://a/ HTTP/1.1",
    b"GET a HTTP/1.1", b"{} / HTTP/1.1",
]  # fmt: skip


class HttpMachine:
    """One application, asked by one connection after the other."""

    name = "HTTP requests"

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = builders.classification().save(Path(folder) / "activity.onnx")
            self._app = App([Served("activity", Model(open_bundle(path)), device="d", start=1)], Board())

    def run(self, seed: int) -> tuple[int, set[str]]:
        """One sequence: how many requests it held, and what it has reached."""
        rng = random.Random(seed)
        meant: list[tuple[str, bytes]] = []
        stream, reached = bytearray(), set()
        count = rng.randrange(1, 9)
        for _ in range(count):
            method = rng.choice(("GET", "POST", "POST", "HEAD", "PUT", "OPTIONS"))
            body = self._body(rng) if method != "GET" or rng.random() < 0.2 else b""
            made, sent = _framed(method, body, rng)
            stream += b"\r\n" * rng.choice((0, 0, 0, 1)) + made
            meant.append((method, sent))
        ambiguous = rng.random() < 0.4
        if ambiguous:
            stream += _ambiguous(rng) + b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n" * 2
            reached.add("ambiguous")
        found, refusal = self._read(bytes(stream), rng, reached)
        assert found == meant, (found, meant)
        assert (refusal is not None) == ambiguous, refusal
        return count + ambiguous, reached

    def _body(self, rng: random.Random) -> bytes:
        kind = rng.randrange(5)
        if kind == 0:
            return b""
        document = rng.choice(_BODIES)
        if kind == 1:
            return json.dumps(document).encode()
        if kind == 2:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        return as_json(odd_document(document, rng))[:20_000]

    def _read(self, stream: bytes, rng: random.Random, reached: set[str]) -> tuple[list[tuple[str, bytes]], str | None]:
        reader, found, at = RequestReader(), [], 0
        step = rng.choice((1, 2, 5, 17, 300, 100_000)) if len(stream) < 3000 else rng.choice((97, 1000, 100_000))
        try:
            while at < len(stream):
                reader.feed(stream[at : at + step])
                at += step
                while reader.head is not None:
                    head = reader.head
                    if not reader.wants and not reader.complete:
                        reader.accept()
                    if not reader.complete:
                        break
                    found.append((head.method, bytes(reader.body)))
                    reached.add(self._answer(Request(head.method, head.path, head.headers, bytes(reader.body))))
                    reader.next()
        except BadRequestError as error:
            refusal = error
        else:
            return found, None
        assert refusal.status in {400, 431, 501}
        assert str(refusal).isprintable()
        reached.add(f"refused: {str(refusal)[:40]}")
        return found, str(refusal)

    def _answer(self, request: Request) -> str:
        answer = self._app.begin(request)
        while isinstance(answer, Work):
            self._app.scorer.turn()
            if answer.answer is not None:
                answer = self._app.end(request, answer)
        if answer.watching is not None:
            answer.watching.leave()
            return "200 events"
        assert answer.status in REASONS
        assert answer.status != 500, (request.method, request.path, request.headers, request.body[:500])
        assert all(value.isprintable() for value in answer.headers.values())
        body = answer.body
        if answer.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if answer.headers.get("Content-Type") == "application/json" and body and request.method != "HEAD":
            binary = answer.headers.get("Inference-Header-Content-Length")
            json.loads(body[: int(binary)] if binary else body)
        return f"{answer.status} {request.route}"


def _framed(method: str, body: bytes, rng: random.Random) -> tuple[bytes, bytes]:
    """A good request with this body, and the body as it has to come out."""
    path = rng.choice(_PATHS).encode()
    if rng.random() < 0.05:
        path = b"http://localhost" + path
    lines = [b"%s %s HTTP/1.1" % (method.encode(), path), b"Host: localhost"]
    extra = {line.partition(b":")[0]: line for line in rng.sample(_HEADERS, rng.choice((0, 0, 1, 2)))}
    lines += extra.values()
    if body and b"Content-Encoding" not in extra and rng.random() < 0.1:
        packed = zlib.compress(body) if rng.random() < 0.5 else gzip.compress(body)
        lines.append(b"Content-Encoding: " + rng.choice((b"gzip", b"deflate")))
        body = packed
    if rng.random() < 0.4:
        lines.append(b"Transfer-Encoding: " + rng.choice((b"chunked", b"CHUNKED", b"chunked ")))
        return b"\r\n".join(lines) + b"\r\n\r\n" + _chunked(body, rng), body
    if body or rng.random() < 0.5:
        lines.append(b"Content-Length: %s%d" % (rng.choice((b"", b"", b"00")), len(body)))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body, body


def _chunked(body: bytes, rng: random.Random) -> bytes:
    made, at = bytearray(), 0
    while at < len(body):
        size = min(rng.choice((1, 3, 100, 5000)), len(body) - at)
        made += (b"%x" if rng.random() < 0.5 else b"%04X") % size
        made += rng.choice((b"", b"", b";a", b" ;a=b", b';q="\t~"', b"  ")) + b"\r\n" + body[at : at + size] + b"\r\n"
        at += size
        if len(made) > 50_000:
            made += b"%x\r\n" % (len(body) - at) + body[at:] + b"\r\n" if at < len(body) else b""
            break
    return (
        bytes(made)
        + b"0" * rng.choice((1, 1, 3))
        + b"\r\n"
        + rng.choice((b"", b"", b"X: y\r\n", b"X: y\r\nZ:\r\n"))
        + b"\r\n"
    )


def _ambiguous(rng: random.Random) -> bytes:
    kind = rng.randrange(3)
    head = b"POST /predict/activity HTTP/1.1\r\nHost: a\r\n"
    if kind == 0:
        return head + rng.choice(_AMBIGUOUS_HEADS) + b"\r\n\r\n0\r\n\r\n"  # as chunks it would end here
    if kind == 1:
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + rng.choice(_AMBIGUOUS_CHUNKS)
    return rng.choice(_AMBIGUOUS_LINES) + b"\r\nHost: a\r\n\r\n"


def hostile_bytes(rng: random.Random) -> bytes:
    """What a stranger may send over one connection: good requests, an ambiguous one, noise, or the half of any."""
    kind = rng.randrange(4)
    if kind == 0:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 400)))
    made = b"".join(
        _framed(rng.choice(("GET", "POST", "PUT")), b"x" * rng.choice((0, 9, 9000)), rng)[0] for _ in range(3)
    )
    if kind == 1:
        return made + _ambiguous(rng)
    return made[: rng.randrange(1, len(made) + 1)]
