"""The server's one thread over real sockets: whatever clients do with theirs, others are answered."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edge_runtime.http import connections as connections_module
from edge_runtime.http import server as server_module
from edge_runtime.http.app import App
from edge_runtime.http.live_view import MOST_WATCHERS, Board
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from edge_runtime.http.yield_to_loop import LoopGate
from edge_runtime.system import watchdog
from edge_runtime.system.loop import Loop
from tests.support.http_server import activity, running
from tests.support.waiting import patient, wait_until

BODY = b'{"temperature": 21.5, "humidity": 48.25}'
POST = b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%b\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model on demand."""
    return activity(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def server(served: Served) -> Iterator[Server]:
    """A server of that model, beside no loop."""
    with running(served, may_fail=True) as made:
        yield made


def dial(server: Server) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=patient(20))


def hear(client: socket.socket, count: int = 1) -> list[tuple[int, bytes]]:
    """So many answers on one connection, as status and body."""
    found = []
    with client.makefile("rb") as file:
        for _ in range(count):
            status = int(file.readline().split()[1])
            length = 0
            while line := file.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            found.append((status, file.read(length)))
    return found


def test_a_connection_is_kept_and_its_answers_keep_their_order(server: Server) -> None:
    """Requests that are sent ahead of their answers are answered one after the other, also byte by byte."""
    with dial(server) as client:
        get = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.sendall((POST % (len(BODY), b"")) + BODY + get + (POST % (len(BODY), b"")) + BODY)
        found = hear(client, 3)
        assert [status for status, _ in found] == [200, 200, 200]
        assert json.loads(found[1][1]) == {"live": True}
        for byte in (POST % (len(BODY), b"")) + BODY:
            client.sendall(bytes([byte]))
        assert hear(client)[0][0] == 200


def test_an_old_client_is_answered_and_left(server: Server) -> None:
    """HTTP/1.0 ends with its answer, unless it asks to go on."""
    with dial(server) as client:
        client.sendall(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert hear(client)[0][0] == 200
        client.sendall(b"GET /v2 HTTP/1.0\r\n\r\n")
        assert hear(client)[0][0] == 200
        assert client.recv(1) == b""


def test_a_body_in_chunks_or_after_a_question_is_taken(server: Server) -> None:
    """A chunked body is a body, and a client that asks before it sends one gets 100 Continue."""
    with dial(server) as client:
        head = b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        assert hear(client)[0][0] == 200
        client.sendall(POST % (len(BODY), b"Expect: 100-continue\r\n"))
        assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(BODY)
        assert hear(client)[0][0] == 200


def test_a_head_that_was_read_before_means_the_same_again(server: Server) -> None:
    """What is remembered of a request's head never leaks into a request with another body or another head."""
    with dial(server) as client:
        for body, status in ((BODY, 200), (BODY[:-1] + b"!", 400), (BODY, 200)):
            client.sendall((POST % (len(body), b"")) + body)
            assert hear(client)[0][0] == status
        client.sendall((POST % (len(BODY), b"Host: evil.example\r\n")) + BODY)
        assert hear(client)[0][0] == 403
        client.sendall((POST % (len(BODY), b"")) + BODY)
        assert hear(client)[0][0] == 200


def test_a_request_that_does_not_arrive_is_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends a byte now and then is cut off when the time for a request is over; others go on."""
    monkeypatch.setattr(connections_module, "REQUEST_S", 0.2)
    monkeypatch.setattr(connections_module, "SWEEP_S", 0.05)
    with dial(server) as slow, dial(server) as silent:
        silent.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert hear(silent)[0][0] == 200
        ended = threading.Event()

        def drip() -> None:
            try:
                while not ended.wait(0.02):
                    slow.sendall(b"X")
            except OSError:
                ended.set()

        slow.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        dripping = threading.Thread(target=drip)
        dripping.start()
        with contextlib.suppress(ConnectionResetError):  # the same, where a byte was on its way
            assert slow.recv(1) == b""
        ended.set()
        dripping.join(patient(20))
        silent.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")  # silent, but nothing of it is missing
        assert hear(silent)[0][0] == 200


def test_a_client_that_does_not_read_keeps_nobody_waiting(server: Server) -> None:
    """A large answer waits for its reader while others are served, and arrives whole."""
    shape = (100_000, 1, 2)
    head = json.dumps(
        {
            "inputs": [
                {"name": "window", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 800_000}}
            ]
        }
    ).encode()
    body = head + np.ones(shape, "<f4").tobytes()
    request = b"POST /v2/models/activity/infer HTTP/1.1\r\nHost: localhost\r\n"
    request += b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n" % (len(head), len(body))
    with dial(server) as lazy, dial(server) as other:
        lazy.sendall(request + body)
        for _ in range(20):
            other.sendall((POST % (len(BODY), b"")) + BODY)
            assert hear(other)[0][0] == 200
        status, answer = hear(lazy)[0]
        assert (status, len(json.loads(answer)["outputs"][0]["data"])) == (200, 100_000)


def test_a_page_that_goes_makes_room_for_another(server: Server) -> None:
    """The number of open pages is bounded, one page more is refused, and one that is closed counts no more."""
    board = server._app.board
    ask = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    pages = [dial(server) for _ in range(MOST_WATCHERS)]
    for page in pages:
        page.sendall(ask)
        assert page.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
    with dial(server) as more:
        more.sendall(ask)
        assert hear(more)[0][0] == 503
    board.post("prediction", b'{"label": "low"}')
    for page in pages:
        with page.makefile("rb") as file:
            assert any(b'{"label": "low"}' in line for line in file)
    pages.pop().close()
    wait_until(lambda: board.watchers == MOST_WATCHERS - 1, "the page to be forgotten")
    with dial(server) as more:
        more.sendall(ask)
        assert more.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
    for page in pages:
        page.close()
    wait_until(lambda: board.watchers == 0, "that nothing watches")


def test_a_stop_tells_those_who_wait_to_come_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that a stopping server has not scored are answered with 503; no client waits for long."""
    entered, go = threading.Event(), threading.Event()
    real = served.model.run

    def slow(*arguments: object) -> object:
        entered.set()
        assert go.wait(patient(20))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(served.model, "run", slow)
    server = Server(App([served], Board()), "127.0.0.1:0")
    server.start()
    states = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=patient(20)) for _ in range(2)]
    states[0].request("POST", "/predict/activity", BODY)
    assert entered.wait(patient(20))
    states[1].request("POST", "/predict/activity", BODY)
    monkeypatch.setattr(server_module, "STOP_S", 0.05)
    server.stop()
    assert not server.is_listening
    go.set()
    statuses = []
    for state in states:
        try:
            statuses.append(state.getresponse().status)
        except (OSError, http.client.HTTPException):
            statuses.append(503)  # its request had not been read yet
        state.close()
    assert statuses == [200, 503]


def test_a_request_that_hangs_would_starve_the_watchdog(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a model answers, the register of the watchdog names the server and the model; behind it, neither."""
    seen: list[set[str]] = []
    real = served.model.run

    def looking(*arguments: object) -> object:
        seen.append({what for what, _ in watchdog._process_register.values()})
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(served.model, "run", looking)
    server = Server(App([served], Board()), "127.0.0.1:0")
    server.start()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=patient(20))) as client:
        client.request("POST", "/predict/activity", BODY)
        assert client.getresponse().status == 200
    server.stop()
    assert seen
    assert all({"the HTTP server", "a model that answers a request"} <= names for names in seen)
    assert not {"the HTTP server", "a model that answers a request"} & {
        what for what, _ in watchdog._process_register.values()
    }


def test_requests_give_way_to_a_loop_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loop is at work others wait, for a bounded time; while it waits they go ahead."""
    loop, gate = Loop(), LoopGate()
    loop.wait_through(gate.wait)
    order: list[str] = []
    go = threading.Event()

    def other() -> None:
        go.wait(patient(20))
        gate.wait_until_idle()
        order.append("request")
        loop.wake()

    monkeypatch.setattr("edge_runtime.http.yield_to_loop.MOST_S", 20.0)
    thread = threading.Thread(target=other)

    def reading() -> None:
        thread.start()
        go.set()
        thread.join(0.05)  # it gets every chance
        order.append("stream")

    loop.call_soon(reading)
    loop.run_once(0.0)
    loop.run_once(20.0)
    thread.join(patient(20))
    assert order == ["stream", "request"]
    monkeypatch.setattr("edge_runtime.http.yield_to_loop.MOST_S", 0.01)
    gate.wait_until_idle()  # the loop is "at work" now, and does not come back: the request goes on
    loop.close()
