"""`edge-runtime serve` over real sockets: hostile clients, limits, and the end."""

import errno
import http.client
import json
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import builders
from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient

pytestmark = pytest.mark.system

READING = b'{"temperature": 21.5, "humidity": 48.25}'


@pytest.fixture
def port(installed: Installed, tmp_path: Path, free_port: int) -> Iterator[int]:
    """The port of a server with one model; it ends well when the test has ended."""
    bundle = builders.classification().save(tmp_path / "activity.onnx")
    command = [str(installed.edge_runtime), "serve", str(bundle), "--listen", f"127.0.0.1:{free_port}"]
    server = subprocess.Popen(command, cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        assert server.stderr.readline() == f"serving activity on http://127.0.0.1:{free_port}/\n"
        yield free_port
        assert server.poll() is None, "it died"
        server.send_signal(signal.SIGTERM)
        assert server.wait(patient(10)) == 0
        assert "Traceback" not in server.stderr.read()
    finally:
        server.kill()
        server.wait(patient(10))
        server.stderr.close()


def predict(port: int) -> int:
    """The status of a sound request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
    connection.request("POST", "/predict/activity", READING)
    status = connection.getresponse().status
    connection.close()
    return status


def send(port: int, data: bytes) -> tuple[int, bytes]:
    """Raw bytes; the status and body of what comes back, 0 where the connection just ends.

    A server that closes with bytes unread resets the connection, and that may meet us at any of the three calls:
    as a broken pipe, as a reset, or (ENOTCONN, which has no class of its own) as a connection that is gone.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as client:
        answer = b""
        try:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while part := client.recv(65536):
                answer += part
        except OSError as error:
            if error.errno not in {errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN}:
                raise
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: five\r\n\r\n",
        b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
        b"GET /" + b"../" * 50 + b"etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_a_hostile_request_is_refused_and_the_server_goes_on(port: int, data: bytes) -> None:
    """Headers and bodies that are too large or make no sense are refused as JSON, and cost other clients nothing."""
    status, body = send(port, data)
    assert status == 0 or 400 <= status < 500
    assert status == 0 or json.loads(body)["error"]
    assert predict(port) == 200


def test_clients_that_hang_cost_nobody_else_anything(port: int) -> None:
    """Connections that say half of something, and nothing more, do not keep others waiting."""
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    for client in idle:
        client.sendall(b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n{")
    assert predict(port) == 200
    for client in idle:
        client.close()


def test_open_pages_leave_room_for_requests(port: int) -> None:
    """Four pages may watch at a time, a fifth is asked to wait, and requests are answered beside them."""
    pages = []
    for _ in range(4):
        page = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
        page.request("GET", "/events")
        events = page.getresponse()
        assert events.status == 200
        pages.append(events)  # an answer that is dropped takes its connection with it
    fifth = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
    fifth.request("GET", "/events")
    assert fifth.getresponse().status == 503
    assert predict(port) == 200
    for events in pages:
        events.close()
    fifth.close()


def test_many_clients_at_once_are_all_answered(port: int) -> None:
    """Fifty clients that ask at the same time each get their answer, or are asked to come back."""
    found: list[int] = []

    def client() -> None:
        found.extend(predict(port) for _ in range(4))

    threads = [threading.Thread(target=client) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 200
    assert set(found) <= {200, 503}
    assert found.count(200) > 100


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["absent.onnx"], "absent.onnx: expected a bundle, found no such file"),
        (["activity.onnx", "--listen", "8080"], "--listen: expected HOST:PORT"),
        (["activity.onnx", "--listen", "0.0.0.0:8080"], "open to other machines: name a file with a token"),
        (["activity.onnx", "activity.onnx"], "a bundle of the name activity is served already"),
        (["activity.onnx", "--listen", "192.0.2.1:8080", "--token-file", "token"], "cannot be listened on"),
        (["activity.onnx", "--token-file", "absent"], "absent: the token cannot be read"),
    ],
)
def test_a_mistake_is_one_line(installed: Installed, tmp_path: Path, words: list[str], error: str) -> None:
    """What a user can get wrong ends in exit 1 and a line that names it."""
    builders.classification().save(tmp_path / "activity.onnx")
    (tmp_path / "token").write_text("s3cret\n")
    done = installed.run(installed.edge_runtime, "serve", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
