"""Requests that ended the daemon, filled it, or came from another site; each is refused, and the next served."""

import contextlib
import gc
import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edge_runtime.http import connections as connections_module
from edge_runtime.http import server as server_module
from edge_runtime.http.app import App
from edge_runtime.http.client_connection import FEW_UNSENT
from edge_runtime.http.connections import CONNECTIONS, MAX_BODIES_BYTES, Connections
from edge_runtime.http.live_view import Board
from edge_runtime.http.oip_v2 import MAX_ANSWER_BYTES
from edge_runtime.http.request_reader import BadRequestError, RequestReader
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from edge_runtime.system.memory import resident_bytes
from tests.support.http_server import activity, dial, running
from tests.support.waiting import patient, wait_until

BODY = b'{"temperature": 21.5, "humidity": 48.25}'
GET = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\n"
TOKEN = "secret"  # noqa: S105 - no real one
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model on demand."""
    return activity(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def server(served: Served) -> Iterator[Server]:
    """A server of that model, without a token."""
    with running(served) as made:
        yield made


@pytest.fixture
def guarded(served: Served) -> Iterator[Server]:
    """A server that wants a token."""
    with running(served, TOKEN) as made:
        yield made


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """One request, with `Content-Type: application/json` unless another is given as `content_type=`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=patient(30))
    try:
        named = {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection.request(method, path, body, JSON | named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def raw(server: Server, data: bytes) -> tuple[int, bytes]:
    """Raw bytes, and the first answer to them."""
    with dial(server) as client:
        client.sendall(data)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        return answer.status, answer.read()


def assert_serves(server: Server) -> None:
    """An honest request is answered."""
    assert ask(server, "POST", "/predict/activity", BODY)[0] == 200


def infer(rows: int, outputs: list[str] | None = None, *, binary: bool = True) -> tuple[bytes, dict[str, str]]:
    """A request of so many windows, as binary tensors, and the headers for it."""
    document: dict[str, Any] = {
        "inputs": [
            {
                "name": "window",
                "datatype": "FP32",
                "shape": [rows, 1, 2],
                "parameters": {"binary_data_size": rows * 8},
            }
        ],
        "parameters": {"binary_data_output": not binary},
    }
    if outputs is not None:
        document["outputs"] = [{"name": name} for name in outputs]
    head = json.dumps(document).encode()
    return head + np.ones((rows, 2), "<f4").tobytes(), {"Inference_Header_Content_Length": str(len(head))}


def test_an_answer_that_would_be_too_long_is_refused_before_the_model_runs(server: Server) -> None:
    """300,000 rows with all outputs as text: 413 with the limit, and nothing is scored."""
    body, headers = infer(300_000)
    status, answer = ask(server, "POST", "/v2/models/activity/infer", body, **headers)
    assert status == 413
    assert str(MAX_ANSWER_BYTES) in json.loads(answer)["error"]
    body, headers = infer(100_000)
    status, answer = ask(server, "POST", "/v2/models/activity/infer", body, **headers)
    assert (status, len(json.loads(answer)["outputs"][0]["data"])) == (200, 100_000)


def test_the_same_output_ten_thousand_times_is_refused(server: Server) -> None:
    """Each output once: a small request never asks for a gigabyte."""
    body, headers = infer(1, ["scores"] * 10_000)
    before = resident_bytes()
    status, answer = ask(server, "POST", "/v2/models/activity/infer", body, **headers)
    assert status == 400
    assert "each once" in json.loads(answer)["error"]
    assert resident_bytes() - before < 50 << 20
    assert_serves(server)


def test_requests_sent_ahead_and_never_read_cost_one_answer(server: Server) -> None:
    """2,300 pipelined requests: the answers that fit the socket are sent, the rest is not even made."""
    with dial(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.5)
        with contextlib.suppress(TimeoutError):  # the server does not read on, which is the point
            client.sendall(GET * 2300)
        for _ in range(50):
            assert_serves(server)
        answer = len(ask(server, "GET", "/openapi.json")[1])
        assert max(client.unsent for client in connections(server)._clients.values()) < 2 * FEW_UNSENT + answer
        assert server._app.requests["openapi", 200] < 1000, "no answer is made while the last ones are not read"


def test_pipelined_requests_that_are_read_are_all_answered(server: Server) -> None:
    """The bound on what is unread takes nothing from a client that reads: 500 answers, in their order."""
    with dial(server) as client:
        sender = threading.Thread(target=client.sendall, args=(GET.replace(b"/openapi.json", b"/nowhere") * 499 + GET,))
        sender.start()
        statuses = []
        with client.makefile("rb") as file:
            for _ in range(500):
                statuses.append(int(file.readline().split()[1]))
                lines = [line.lower() for line in iter(lambda: file.readline().strip(), b"")]
                length = next(line for line in lines if line.startswith(b"content-length:"))
                file.read(int(length.split(b":")[1]))
        sender.join(patient(20))
    assert statuses == [404] * 499 + [200]


def test_answers_that_are_not_read_are_bounded_in_sum(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client with the most unread loses its connection, and the others go on."""
    monkeypatch.setattr(connections_module, "MOST_UNREAD_BYTES", 4 << 20)
    body, headers = infer(200_000)
    fields = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    request = (
        f"POST /v2/models/activity/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    ).encode() + body
    clients = [dial(server) for _ in range(4)]
    for client in clients:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request)
    wait_until(lambda: connections(server).ended["answers_unread"] > 0, "a connection to be ended")
    assert_serves(server)
    for client in clients:
        client.close()


def connections(server: Server) -> Connections:
    """The server's connections."""
    found = server._connections
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "Text/Plain;charset=utf-8"])
def test_a_content_type_that_a_page_may_send_without_asking_is_refused(server: Server, kind: str) -> None:
    """Browsers ask before they send JSON to another site, and not before they send a form."""
    assert ask(server, "POST", "/predict/activity", BODY, content_type=kind)[0] == 415
    assert_serves(server)


def test_a_form_is_refused_from_a_page_and_taken_from_a_command_line(server: Server) -> None:
    """`curl -d` calls everything a form; a page's form names its site."""
    form = "application/x-www-form-urlencoded"
    assert ask(server, "POST", "/predict/activity", BODY, content_type=form)[0] == 200
    own = f"http://localhost:{server.port}"
    assert ask(server, "POST", "/predict/activity", BODY, content_type=form, Referer=own)[0] == 415


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "file://"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_token", [False, True])
def test_a_page_of_another_site_gets_nothing(
    server: Server, guarded: Server, headers: dict[str, str], with_token: bool
) -> None:
    """Whether it posts or only looks, and whether or not the browser adds the password that its user once gave."""
    asked = guarded if with_token else server
    sent: dict[str, Any] = headers | ({"Authorization": f"Bearer {TOKEN}"} if with_token else {})
    assert ask(asked, "POST", "/predict/activity", BODY, **sent)[0] == 403
    assert ask(asked, "GET", "/events", **sent)[0] == 403
    assert ask(asked, "GET", "/health.json", **sent)[0] == 403


def test_our_own_page_and_a_link_to_it_work(server: Server) -> None:
    """The status page asks for its events, and a link on another site leads to the page."""
    own: dict[str, Any] = {"Host": f"localhost:{server.port}", "Origin": f"http://localhost:{server.port}"}
    assert ask(server, "GET", "/health.json", **own, Sec_Fetch_Site="same-origin")[0] == 200
    assert ask(server, "GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET http://evil.example/v2 HTTP/1.1\r\nHost: localhost\r\n", 403),
        (b"GET http://localhost@evil.example/v2 HTTP/1.1\r\nHost: localhost\r\n", 403),
        (b"GET http://localhost/v2 HTTP/1.1\r\nHost: localhost\r\n", 200),
        (b"GET /v2 HTTP/1.1\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost:\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: \r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: localhost.evil.example\r\n", 403),
        (b"GET /v2 HTTP/1.1\r\nHost: [::1]:8080\r\n", 200),
        (b"GET /v2 HTTP/1.0\r\n", 200),
        (b"GET /v2 HTTP/1.0\r\nHost:\r\n", 403),
        (b"GET ftp://localhost/v2 HTTP/1.1\r\nHost: localhost\r\n", 400),
    ],
)
def test_only_a_request_that_means_this_machine_is_served(server: Server, head: bytes, status: int) -> None:
    """The host counts wherever it stands: in the header, missing, empty, doubled, or in an absolute URL."""
    assert raw(server, head + b"\r\n")[0] == status


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v2 HTTP/1.1\nHost: localhost\n\n",
        b"GET /v2 HTTP/1.1\r\nHost : localhost\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n X: folded\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: +4\r\n\r\nabcd",
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /predict/activity HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXX0\r\n\r\n",
        b"GET /v2 HTTP/2.0\r\nHost: localhost\r\n\r\n",
        b"GET  /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n",
    ],
)
def test_what_two_readers_could_take_for_different_requests_is_refused(server: Server, data: bytes) -> None:
    """Neither a proxy in front nor we can be made to see another request than the other one does."""
    status, body = raw(server, data)
    assert status in {400, 501}
    assert json.loads(body)["error"]
    assert_serves(server)


def test_no_byte_of_a_body_is_kept_before_the_token(guarded: Server) -> None:
    """60 connections with large bodies and no token: each hears 401 at once, and nothing is held for any of them."""
    head = b"POST /predict/activity HTTP/1.1\r\nHost: device\r\nContent-Length: 8000000\r\n\r\n"
    clients = [dial(guarded) for _ in range(60)]
    before = resident_bytes()
    for client in clients:
        client.sendall(head + bytes(100_000))
    for client in clients:
        assert client.recv(12) == b"HTTP/1.1 401"
    assert connections(guarded)._held == 0
    assert resident_bytes() - before < 20 << 20
    for client in clients:
        client.close()
    assert ask(guarded, "POST", "/predict/activity", BODY, Authorization=f"Bearer {TOKEN}")[0] == 200


def test_bodies_are_bounded_in_sum_and_small_ones_always_have_room(server: Server) -> None:
    """Many large bodies that stay unfinished fill their share and no more; the next large one is refused for now."""
    size = 6_000_000
    head = b"POST /v2/models/activity/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size
    clients = [dial(server) for _ in range(2)]
    for client in clients:
        client.sendall(head + bytes(size - 1))
    wait_until(lambda: connections(server)._held >= 2 * (size - 1), "the bodies to arrive")
    with dial(server) as late:
        late.sendall(head)
        assert late.recv(12) == b"HTTP/1.1 503"
    assert connections(server)._held <= MAX_BODIES_BYTES
    assert_serves(server)
    for client in clients:
        client.close()
    wait_until(lambda: connections(server)._held == 0, "the room to be free again")


def test_a_chunked_body_without_end_is_refused(server: Server) -> None:
    """Its length is not announced, so it is ended where the limit is met."""
    with dial(server) as client:
        client.sendall(b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                client.sendall(b"10000\r\n" + bytes(0x10000) + b"\r\n")
        except OSError:
            pass  # ended in the middle, which is the point
        answer = b""
        try:
            answer = client.recv(12)
        except OSError:
            answer = b"HTTP/1.1 413"  # reset before it could be read
        assert answer in {b"HTTP/1.1 413", b""}
    assert server._app.requests["predict", 413] == 1
    assert_serves(server)


@pytest.mark.parametrize(
    "half", [b"", b"GET /v2 HT", b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"]
)
def test_half_requests_of_strangers_do_not_keep_an_honest_one_waiting(server: Server, half: bytes) -> None:
    """With every place taken by half a request the oldest of them makes room: an honest one is answered at once."""
    strangers = [dial(server) for _ in range(CONNECTIONS + 20)]
    for stranger in strangers:
        if half:
            try:
                stranger.sendall(half)
            except OSError:
                continue  # ended already, to make room
    assert_serves(server)
    assert connections(server).ended["connections_full"] >= 20
    for stranger in strangers:
        stranger.close()


def test_a_head_has_less_time_than_a_body(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not finish a head within seconds is ended, though a request as a whole may take longer."""
    monkeypatch.setattr(connections_module, "HEAD_S", 0.1)
    monkeypatch.setattr(connections_module, "SWEEP_S", 0.05)
    with dial(server) as slow, dial(server) as long:
        long.sendall(b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        slow.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        assert slow.recv(1) == b""
        long.sendall(BODY)
        assert long.recv(12) == b"HTTP/1.1 200"


def test_a_fault_of_ours_in_one_request_ends_that_connection_alone(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nothing expected costs the client that caused it its connection, and is logged."""
    real = App.begin

    def begin(app: App, request: Any) -> Any:
        if request.headers.get("x-bad"):
            raise RuntimeError("a fault of ours")
        return real(app, request)

    monkeypatch.setattr(App, "begin", begin)
    with dial(server) as good, dial(server) as bad:
        bad.sendall(GET.replace(b"Host", b"X-Bad: 1\r\nHost"))
        assert bad.recv(1) == b""
        good.sendall(GET)
        assert good.recv(12) == b"HTTP/1.1 200"
    assert connections(server).ended["crashed"] == 1


def test_a_failure_of_the_server_begins_it_anew(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not die: every connection is closed, it is counted and reported, and the same port serves."""
    monkeypatch.setattr(server_module, "RESTART_S", 0.05)
    failed = threading.Event()
    server = Server(App([served], Board()), "127.0.0.1:0", None, failed.set)
    server.start()
    assert_serves(server)
    answer = Connections._answer

    def fail(_self: Connections) -> None:
        monkeypatch.setattr(Connections, "_answer", answer)
        raise IndexError("pop from empty list")

    monkeypatch.setattr(Connections, "_answer", fail)
    connections(server).wake()
    assert failed.wait(patient(20))
    assert_serves(server)
    assert server.failures == 1
    server.stop()


def test_windows_that_wait_for_a_model_are_bounded_in_bytes(served: Served) -> None:
    """Many large requests at once: those beyond the bound hear 503, whatever their number."""
    app = App([served], Board())
    body, _ = infer(100_000)
    head = body.index(b"}}") + 2 if b"}}" in body else 0
    assert head
    from edge_runtime.http.responses import Request  # noqa: PLC0415 - beside the one that asks over sockets

    statuses = []
    size = str(len(body) - 800_000)
    for _ in range(60):
        headers = {"host": "localhost", "inference-header-content-length": size}
        begun = app.begin(Request("POST", "/v2/models/activity/infer", headers, body))
        statuses.append(getattr(begun, "status", 200))
    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert sum(work.windows.nbytes for work in app.scorer._waiting) <= 33 << 20


def test_nothing_grows_under_hostile_clients(server: Server) -> None:
    """After two rounds of all kinds of nonsense there is as much as after one: no client leaves a single object."""
    kinds = [
        b"\x16\x03\x01",
        GET[:20],
        GET * 50,
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\n",
        b"A" * 20_000,
    ]

    def round_of() -> int:
        for number in range(150):
            with dial(server) as client:
                try:
                    client.sendall(kinds[number % len(kinds)])
                except OSError:
                    continue
        assert_serves(server)
        wait_until(lambda: not connections(server)._clients, "every client to be forgotten")
        assert connections(server)._held == 0
        gc.collect()
        return sys.getallocatedblocks()

    round_of()
    first, resident = round_of(), resident_bytes()
    assert round_of() - first < 150 // 2
    assert resident_bytes() - resident < 8 << 20


@pytest.mark.parametrize(
    "trailer",
    [b"X: y\n\nGET /evil HTTP/1.1", b"X: y\rZ: 1", b"X : y", b" folded", b"X: a\0b", b"no header", b"X: y\r\n: z",
     b"X\t: y", b"GET /evil HTTP/1.1"],
)  # fmt: skip
def test_trailers_are_read_as_strictly_as_heads(trailer: bytes) -> None:
    """What one reader takes for a trailer and another for the next request is refused, however it is cut."""
    chunked = POST[:-2] + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    data = chunked + trailer + b"\r\n\r\n"

    def read(step: int) -> None:
        reader = RequestReader()
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
            if reader.head is not None and not reader.wants:
                reader.accept()

    for step in (1, 7, 10_000):
        with pytest.raises(BadRequestError, match="expected headers"):
            read(step)
    reader = RequestReader()
    reader.feed(chunked + b"X-Sum: 7\r\nY:\r\n\r\n")
    reader.accept()
    assert reader.complete
