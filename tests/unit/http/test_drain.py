"""A stop of the server: what is in flight is answered, every answer closes its connection, and then it ends."""

import http.client
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.errors import CommandError
from edge_runtime.http import connections as connections_module
from edge_runtime.http.app import App
from edge_runtime.http.listening import ListenError, bind, inherited
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from tests.support.http_server import activity, dial, running
from tests.support.serving import hear
from tests.support.waiting import patient, wait_until

BODY = b'{"temperature": 21.5, "humidity": 48.25}'
HEAD = b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)
READY = b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
LONG_S = 600.0  # within which a drain is never over by time


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model on demand."""
    return activity(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def server(served: Served) -> Iterator[Server]:
    """A server of that model."""
    with running(served) as made:
        yield made


def at_end(client: socket.socket) -> bool:
    """Whether the server has ended its side, without a reset."""
    return client.recv(1) == b""


def test_a_drain_without_connections_is_over_at_once(server: Server) -> None:
    """Nothing is in flight, so that nothing is waited for."""
    server.drain(LONG_S)
    assert server.join(patient(20))


def test_a_request_that_is_being_sent_is_answered(server: Server) -> None:
    """Half of a body has come when the stop begins; the rest is waited for, answered, and the connection closed."""
    with dial(server) as client:
        client.sendall(HEAD + BODY[:10])
        with dial(server) as first:  # answered, so the half above has been read
            first.sendall(READY)
            assert hear(first)[0] == 200
            server.drain(LONG_S)
            first.sendall(READY)
            status, connection, _ = hear(first)
            assert (status, connection) == (503, "close")
            assert at_end(first)
        assert not server.is_over
        client.sendall(BODY[10:])
        status, connection, body = hear(client)
        assert (status, connection, json.loads(body)["model"]) == (200, "close", "activity")
        assert at_end(client)
    assert server.join(patient(20))


def test_a_request_that_is_with_its_model_is_answered(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is at work when the stop begins ends its work, and its client gets the scores."""
    scorer = server._app.scorer
    begun, go_on, turn = threading.Event(), threading.Event(), scorer.turn

    def slow() -> object:
        if len(scorer):
            begun.set()
            assert go_on.wait(patient(20))
        return turn()

    monkeypatch.setattr(scorer, "turn", slow)
    with dial(server) as client:
        client.sendall(HEAD + BODY)
        assert begun.wait(patient(20))
        server.drain(LONG_S)
        go_on.set()
        assert hear(client)[:2] == (200, "close")
    assert server.join(patient(20))


def test_a_connection_that_was_idle_hears_of_the_stop(server: Server) -> None:
    """A client that asks again on its connection gets its answer, and learns that it has to close it."""
    with dial(server) as client:
        client.sendall(HEAD + BODY)
        assert hear(client)[:2] == (200, "")
        server.drain(LONG_S)
        client.sendall(HEAD + BODY)
        assert hear(client)[:2] == (200, "close")
    assert server.join(patient(20))


def test_a_connection_that_stays_idle_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that says nothing more does not keep the process."""
    monkeypatch.setattr(connections_module, "GRACE_S", 0.1)
    with dial(server) as client:
        client.sendall(READY)
        assert hear(client)[0] == 200
        server.drain(LONG_S)
        assert at_end(client)
        assert server.join(patient(20))


def test_an_open_page_is_ended(server: Server) -> None:
    """A page comes back by itself, so its events do not keep the process."""
    with dial(server) as client:
        client.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"text/event-stream" in client.recv(65536)
        server.drain(LONG_S)
        while client.recv(65536):
            pass
    assert server.join(patient(20))


def test_new_clients_are_answered_during_the_grace_and_refused_after_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load balancer that has not yet seen the readiness fall still gets answers; after that nothing listens."""
    with dial(server) as slow:
        slow.sendall(HEAD)
        with dial(server) as first:
            first.sendall(READY)
            assert hear(first)[0] == 200
        server.drain(LONG_S)
        with dial(server) as late:
            late.sendall(HEAD + BODY)
            assert hear(late)[:2] == (200, "close")
        monkeypatch.setattr(connections_module, "GRACE_S", 0.0)
        server.drain(LONG_S)

        def is_refused() -> bool:
            try:
                dial(server).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(is_refused, "nothing listens")
        slow.sendall(BODY)
        assert hear(slow)[0] == 200
    assert server.join(patient(20))


def test_a_successor_takes_the_socket_over(server: Server, served: Served) -> None:
    """Clients reach the successor at once, while the one before answers what it has begun."""
    with dial(server) as slow:
        slow.sendall(HEAD + BODY[:7])
        listener = server.hand_over()
        assert listener is not None
        before = server._connections
        assert before is not None
        server.drain(LONG_S, accepts=False)
        assert server.hand_over() is None
        wait_until(lambda: before._listener.fileno() < 0, "the one before takes no more clients")
        successor = Server(App([served], Board()), "127.0.0.1:0", listener=listener, inherits=True)
        successor.start()
        try:
            assert successor.port == server.port
            with dial(successor) as client:
                client.sendall(READY)
                assert hear(client)[:2] == (200, "")
            slow.sendall(BODY[7:])
            assert hear(slow)[:2] == (200, "close")
            assert server.join(LONG_S)
        finally:
            successor.stop()


def test_time_is_up_for_a_request_that_never_comes(server: Server) -> None:
    """A client that stops in the middle of its request does not keep the process beyond the stop's time."""
    with dial(server) as client:
        client.sendall(HEAD + BODY[:10])
        with dial(server) as first:
            first.sendall(READY)
            assert hear(first)[0] == 200
        server.drain(0.2)
        assert server.join(patient(20))
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            hear(client)


def test_a_queue_that_another_process_holds_is_left_to_it(served: Served) -> None:
    """With a socket of systemd, clients that come during a stop are neither refused nor reset: the next one answers."""
    held = bind("127.0.0.1:0")
    port = held.getsockname()[1]
    old = Server(App([served], Board()), "systemd", listener=held.dup())
    old.start()
    with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as slow:
        slow.sendall(HEAD)
        with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as first:
            first.sendall(READY)
            assert hear(first)[0] == 200
        old.drain(LONG_S, accepts=False)
        slow.sendall(BODY)
        assert hear(slow)[0] == 200
        assert old.join(patient(20))
    with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as waits:
        waits.sendall(HEAD + BODY)
        new = Server(App([served], Board()), "systemd", listener=held)
        new.start()
        assert hear(waits)[:2] == (200, "")
    new.stop()


def test_a_unix_socket_is_served_and_taken_away(served: Served, tmp_path: Path) -> None:
    """The group may connect; the file goes with the server, and one that a killed server left is replaced."""
    path = tmp_path / "edge.sock"
    left = bind(f"unix:{path}")
    with pytest.raises(ListenError, match="another process listens"):
        bind(f"unix:{path}")
    left.close()
    server = Server(App([served], Board()), f"unix:{path}")
    server.start()
    assert path.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(patient(20))
        client.connect(str(path))
        client.sendall(HEAD + BODY)
        assert hear(client)[0] == 200
    server.stop()
    assert not path.exists()


def test_a_file_in_the_place_of_a_unix_socket_is_left_alone(tmp_path: Path) -> None:
    """A path that was mistyped must not cost a file."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(ListenError, match="it is no socket"):
        bind(f"unix:{path}")
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}],
)
def test_sockets_for_another_process_are_none_of_ours(environ: dict[str, str]) -> None:
    """LISTEN_PID names whom they are meant for; either way no child sees the variables."""
    assert inherited(environ) is None
    assert environ == {}


def test_several_sockets_of_systemd_are_refused() -> None:
    """One server listens on one socket."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}
    with pytest.raises(CommandError, match="expected one socket, found 2"):
        inherited(environ)
