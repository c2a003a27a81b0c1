"""A file over HTTP: what is asked of the server, and which of its answers are taken. The server is scripted."""

import http.client
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from edge_runtime.errors import TransientError
from edge_runtime.store.http_file import TIMEOUT_S, HttpFile

CONTENT = bytes(range(256)) * 1000
SIZE = len(CONTENT)


class Response:
    """One answer; it gives at most `most` bytes a read where that is set, and breaks off after `ends`."""

    def __init__(self, status: int = 200, begin: int = 0, **more: Any) -> None:
        self.status, self.reason = status, more.get("reason", "Fine")
        self._rest = more.get("content", CONTENT[begin:])[: more.get("ends")]
        self.length: int | None = more.get("length", SIZE - begin)
        self._range = more.get("range", f"bytes {begin}-{SIZE - 1}/{SIZE}" if status == 206 else None)
        self._fault: Exception | None = more.get("fault")
        self.reads: list[int] = []

    def getheader(self, name: str) -> str | None:
        """As `HTTPResponse.getheader`."""
        assert name == "Content-Range"
        return self._range

    def read(self, count: int) -> bytes:
        """As `HTTPResponse.read`."""
        self.reads.append(count)
        if self._fault is not None and not self._rest:
            raise self._fault
        found, self._rest = self._rest[:count], self._rest[count:]
        return bytes(found)


class Connection:
    """Stands in for `HTTPConnection`."""

    def __init__(self, server: "Server", kind: str, host: str, port: int | None, **more: Any) -> None:
        self._server = server
        self.kind, self.host, self.port, self.more = kind, host, port, more
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.closed = 0

    def request(self, method: str, path: str, headers: dict[str, str]) -> None:
        """As `HTTPConnection.request`."""
        self.asked.append((method, path, headers))

    def getresponse(self) -> Response:
        """As `HTTPConnection.getresponse`."""
        found = self._server.answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """As `HTTPConnection.close`."""
        self.closed += 1
        if self._server.close_fault is not None:
            raise self._server.close_fault


class Server:
    """What it answers, one after the other, and the connections that were made to it."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = [*answers]
        self.connections: list[Connection] = []
        self.close_fault: Exception | None = None

    def make(self, kind: str) -> Callable[..., Connection]:
        """Of one kind of connection."""

        def connect(host: str, port: int | None, **more: Any) -> Connection:
            self.connections.append(Connection(self, kind, host, port, **more))
            return self.connections[-1]

        return connect


Serve = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A server in the place of the network."""

    def made(*answers: Response | Exception) -> Server:
        server = Server(*answers)
        monkeypatch.setattr(http.client, "HTTPConnection", server.make("http"))
        monkeypatch.setattr(http.client, "HTTPSConnection", server.make("https"))
        return server

    return made


def test_a_file_is_read_on_by_one_request(serve: Serve) -> None:
    """Piece after piece from one answer; nothing is compressed on the way."""
    server = serve(Response())
    file = HttpFile("http://depot:8080/a/b.onnx?x=1&y", SIZE)
    found = b"".join(file.read(at, min(50_000, SIZE - at)) for at in range(0, SIZE, 50_000))
    assert found == CONTENT
    (connection,) = server.connections
    assert (connection.kind, connection.host, connection.port) == ("http", "depot", 8080)
    assert connection.more == {"timeout": 20.0}
    assert connection.asked == [("GET", "/a/b.onnx?x=1&y", {"Accept-Encoding": "identity"})]
    assert TIMEOUT_S == 20.0
    file.close()
    assert connection.closed == 1
    file.close()
    assert connection.closed == 1


def test_https_verifies_the_server(serve: Serve) -> None:
    """By the system's certificates and the name in the address; the timeout is the caller's."""
    server = serve(Response())
    HttpFile("https://depot", SIZE, 3.0).read(0, 10)
    (connection,) = server.connections
    assert (connection.kind, connection.host, connection.port) == ("https", "depot", None)
    assert connection.more["timeout"] == 3.0
    context = connection.more["context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert connection.asked[0][1] == "/"


@pytest.mark.parametrize("url", ["ftp://depot/x", "file:///etc/passwd", "depot/x", ""])
def test_other_addresses_are_refused(serve: Serve, url: str) -> None:
    """Nothing is contacted."""
    server = serve(Response())
    with pytest.raises(TransientError, match="expected http:// or https://, found"):
        HttpFile(url, SIZE).read(0, 10)
    assert server.connections == []


def test_after_a_break_the_rest_is_asked_for(serve: Serve) -> None:
    """By a range, on a new connection; the old one is closed."""
    server = serve(Response(ends=70_000, fault=ConnectionResetError("reset")), Response(206, 60_000))
    file = HttpFile("http://depot/x", SIZE)
    assert file.read(0, 60_000) == CONTENT[:60_000]
    assert file.read(60_000, 10_000) == CONTENT[60_000:70_000]
    with pytest.raises(TransientError, match="http://depot/x: reset"):
        file.read(70_000, 10_000)
    assert server.connections[0].closed == 1
    assert file.read(60_000, 10_000) == CONTENT[60_000:70_000]
    assert server.connections[1].asked[0][2] == {"Accept-Encoding": "identity", "Range": "bytes=60000-"}
    assert file.read(70_000, 1) == CONTENT[70_000:70_001]
    assert len(server.connections) == 2


def test_another_place_is_another_request(serve: Serve) -> None:
    """Whatever the present answer would give next, the caller's place decides."""
    server = serve(Response(), Response(206, 500), Response())
    file = HttpFile("http://depot/x", SIZE)
    file.read(0, 100)
    assert file.read(500, 100) == CONTENT[500:600]
    assert file.read(0, 100) == CONTENT[:100]
    assert [each.closed for each in server.connections] == [1, 1, 0]
    assert "Range" not in server.connections[2].asked[0][2]


@pytest.mark.parametrize("offset", [1, 65_535, 65_536, 65_537, 200_000])
def test_a_server_without_ranges_is_read_from_the_beginning(serve: Serve, offset: int) -> None:
    """What is here already is passed over, at most 64 KiB of it in memory."""
    response = Response()
    serve(response)
    assert HttpFile("http://depot/x", SIZE).read(offset, 1000) == CONTENT[offset : offset + 1000]
    assert max(response.reads[:-1]) <= 65_536
    assert sum(response.reads[:-1]) == offset


def test_a_server_whose_whole_file_is_shorter_is_given_up(serve: Serve) -> None:
    """Instead of waiting for bytes that do not come."""
    serve(Response(ends=1000))
    with pytest.raises(TransientError, match="the file ends early"):
        HttpFile("http://depot/x", SIZE).read(2000, 10)


@pytest.mark.parametrize("status", [100, 201, 204, 301, 302, 304, 403, 404, 416, 500, 503])
def test_any_other_answer_is_a_refusal(serve: Serve, status: int) -> None:
    """Redirections too: only the signed address is contacted."""
    server = serve(Response(status, reason="Other"))
    with pytest.raises(TransientError, match=f"the server answers {status} Other"):
        HttpFile("http://depot/x", SIZE).read(0, 10)
    assert server.connections[0].closed == 1


@pytest.mark.parametrize("header", [None, "", "bytes 0-255999/256000", "bytes 1000", "bytes 10000-255999/256000"])
def test_another_part_than_was_asked_for_is_refused(serve: Serve, header: str | None) -> None:
    """Its bytes would stand at the wrong place; the digest would find that only at the end."""
    serve(Response(206, 1000, range=header))
    with pytest.raises(TransientError, match="the server sends another part than was asked for"):
        HttpFile("http://depot/x", SIZE).read(1000, 10)


def test_a_part_from_the_beginning_is_one(serve: Serve) -> None:
    """A server may answer 206 to a request without a range; its place is checked as well."""
    serve(Response(206, 0), Response(206, 0, range="bytes 5-9/10"))
    assert HttpFile("http://depot/x", SIZE).read(0, 10) == CONTENT[:10]
    with pytest.raises(TransientError, match="another part"):
        HttpFile("http://depot/x", SIZE).read(0, 10)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (Response(length=SIZE + 1), SIZE + 1),
        (Response(206, 1000, length=SIZE - 999), SIZE + 1),
        (Response(length=0), 0),
    ],
)
def test_a_file_of_another_length_is_refused(serve: Serve, response: Response, found: int) -> None:
    """At the head of the answer; a server that names no length is read on."""
    serve(response, Response(length=None))
    offset = 1000 if response.status == 206 else 0
    with pytest.raises(TransientError, match=f"expected {SIZE} bytes, found {found}"):
        HttpFile("http://depot/x", SIZE).read(offset, 10)
    assert HttpFile("http://depot/x", SIZE).read(0, 10) == CONTENT[:10]


def test_an_end_before_the_end_is_told_with_its_place(serve: Serve) -> None:
    """And the connection is not used again."""
    server = serve(Response(length=None, ends=1500), Response(206, 1000))
    file = HttpFile("http://depot/x", SIZE)
    file.read(0, 1000)
    with pytest.raises(TransientError, match=f"expected {SIZE} bytes, found the end after 1500"):
        file.read(1000, 1000)
    assert server.connections[0].closed == 1
    assert file.read(1000, 1000) == CONTENT[1000:2000]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (OSError("no route"), "no route"),
        (TimeoutError("timed out"), "timed out"),
        (http.client.BadStatusLine("x"), "x"),
        (http.client.HTTPException(), "HTTPException"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_a_server_that_cannot_be_reached_is_told_by_its_address(serve: Serve, fault: Exception, words: str) -> None:
    """An error without a text by the name of its kind; closing the connection may fail too."""
    server = serve(fault)
    server.close_fault = OSError("again")
    with pytest.raises(TransientError, match=f"^http://depot/x: {words}$"):
        HttpFile("http://depot/x", SIZE).read(0, 10)
    assert server.connections[0].closed == 1
