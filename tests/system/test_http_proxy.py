"""The recipes of `examples/proxy` with the real nginx and the real Caddy in front of the installed server."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from tests.support import builders
from tests.support.installed import Installed
from tests.support.ports import find_free_port as another_port
from tests.support.proxies import caddy, nginx
from tests.support.serving import READING, end, serving
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system

LONG = os.environ.get("EDGE_TORTURE") == "long"
# The long form is a day: a restart a minute. Most of a restart is waiting, so that several services share it.
RESTARTS = int(os.environ.get("EDGE_RESTARTS", "1440" if LONG else "4"))
BESIDE = 12 if LONG else 1
PAUSES = (0.02, 0.05, 0.7) if LONG else (0.0, 0.0, 0.05, 0.7)  # of the clients of each service
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A model."""
    return builders.classification().save(tmp_path / "activity.onnx")


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """One request through the proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(60))
    try:
        connection.request(method, path, body, JSON | headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def nginx_on(folder: Path, port: int, upstream: str) -> AbstractContextManager[None]:
    """Its main recipe."""
    return nginx("nginx.conf", folder, port, upstream)


PROXIES = pytest.mark.parametrize("proxy", [nginx_on, caddy], ids=["nginx", "caddy"])
Proxy = Callable[[Path, int, str], AbstractContextManager[None]]


@PROXIES
def test_a_recipe_serves_pages_predictions_and_tensors(
    installed: Installed, bundle: Path, tmp_path: Path, free_port: int, proxy: Proxy
) -> None:
    """Whatever the server answers itself comes through, its refusals too, and its own pages count as its own."""
    port = another_port()
    words: list[str | Path] = [bundle, "--listen", f"127.0.0.1:{free_port}", "--hosts", "ml.example.org"]
    with serving(installed, *words, cwd=tmp_path) as server, proxy(tmp_path, port, f"127.0.0.1:{free_port}"):
        status, body = ask(port, "POST", "/predict/activity", READING)
        assert (status, json.loads(body)["model"]) == (200, "activity")
        assert ask(port, "GET", "/", Host="ml.example.org")[0] == 200
        assert ask(port, "GET", "/v2/health/ready", Host="evil.example")[0] == 403
        own = {"Host": f"ml.example.org:{port}", "Origin": f"http://ml.example.org:{port}"}
        assert ask(port, "POST", "/predict/activity", READING, **own)[0] == 200
        assert ask(port, "POST", "/predict/activity", READING, Origin="http://evil.example")[0] == 403
        large = b'{"inputs": [' + b" " * (2 << 20) + b"]}"
        assert ask(port, "POST", "/v2/models/activity/infer", large)[0] == 400
        if proxy is nginx_on:  # Caddy sends a body on as it comes, and breaks off with its client when it is refused
            assert ask(port, "POST", "/predict/activity", b" " * ((8 << 20) + 1))[0] == 413
        end(server)


@PROXIES
def test_an_event_comes_through_at_once(bundle: Path, tmp_path: Path, proxy: Proxy) -> None:
    """No proxy keeps events until its buffer is full: the second one is read while nothing else follows it."""
    board = Board()
    server = Server(App([Served("activity", Model(open_bundle(bundle)), device="d", start=1)], board), "127.0.0.1:0")
    server.start()
    port = another_port()
    with (
        proxy(tmp_path, port, f"127.0.0.1:{server.port}"),
        socket.create_connection(("127.0.0.1", port), timeout=patient(30)) as page,
        page.makefile("rb") as read,
    ):
        page.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in read.readline()
        while b"event: health" not in read.readline():
            pass
        board.post("prediction", b'{"label": "first"}')
        while b"first" not in read.readline():
            pass
    server.stop()


def test_the_runtime_lives_below_a_path(installed: Installed, bundle: Path, tmp_path: Path, free_port: int) -> None:
    """The status page, its parts and the routes' page are found below the path, and so is every other route."""
    port = another_port()
    words: list[str | Path] = [bundle, "--listen", f"127.0.0.1:{free_port}", "--prefix", "/edge"]
    with (
        serving(installed, *words, cwd=tmp_path) as server,
        nginx("nginx-prefix.conf", tmp_path, port, f"127.0.0.1:{free_port}"),
    ):
        assert ask(port, "GET", "/edge")[0] == 308
        for path in ("/edge/", "/edge/health.json", "/edge/docs", "/edge/v2/models/activity/", "/edge/healthz"):
            assert ask(port, "GET", path)[0] == 200
        assert ask(port, "POST", "/edge/predict/activity", READING)[0] == 200
        assert json.loads(ask(port, "GET", "/edge/openapi.json")[1])["servers"] == [{"url": "/edge"}]
        end(server)


class Client(threading.Thread):
    """Asks through the proxy all the while, each time a little later after an answer than the last time."""

    def __init__(self, port: int, pause: float) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._pause = pause
        self.answered = 0
        self.failures: list[str] = []
        self.is_stopped = False

    def run(self) -> None:
        """Until `is_stopped`; a connection is closed where an answer says so."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=patient(60))
        while not self.is_stopped:
            try:
                connection.request("POST", "/predict/activity", READING, JSON)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            if answer.status == 200:
                self.answered += 1
            else:
                self.failures.append(str(answer.status))
            if answer.getheader("Connection") == "close":
                connection.close()
            time.sleep(self._pause)
        connection.close()


@PROXIES
def test_restarts_behind_a_proxy_fail_no_request(
    installed: Installed, bundle: Path, tmp_path: Path, proxy: Proxy
) -> None:
    """The socket is systemd's, the process is exchanged again and again, and every request is answered by 200.

    `make restarts` does it 1,440 times, as often as a restart a minute in a day.
    """
    ports = [another_port() for _ in range(BESIDE)]
    asking = [[Client(port, pause) for pause in PAUSES] for port in ports]
    with ThreadPoolExecutor(BESIDE) as pool:
        services = [
            pool.submit(_restart_often, installed, bundle, tmp_path / str(port), proxy, port=port, asking=clients)
            for port, clients in zip(ports, asking, strict=True)
        ]
        for service in services:
            service.result()
    failures = [failure for clients in asking for client in clients for failure in client.failures]
    answered = sum(client.answered for clients in asking for client in clients)
    print(f"{RESTARTS} restarts, {answered} requests answered, {len(failures)} failed")  # noqa: T201 - the figure of a long run
    assert failures == []
    assert answered > RESTARTS


def _restart_often(
    installed: Installed, bundle: Path, folder: Path, proxy: Proxy, *, port: int, asking: list[Client]
) -> None:
    folder.mkdir()
    with (
        socket.create_server(("127.0.0.1", 0), backlog=512) as held,
        proxy(folder, port, f"127.0.0.1:{held.getsockname()[1]}"),
    ):
        restarts = RESTARTS // BESIDE
        for restart in range(restarts):
            with serving(installed, bundle, cwd=folder, sockets=[held]) as server:
                if not restart:
                    for client in asking:
                        client.start()
                wait_for_answers(asking)
                if restart == restarts - 1:
                    for client in asking:
                        client.is_stopped = True
                    for client in asking:
                        client.join(90)
                end(server)


def wait_for_answers(asking: list[Client]) -> None:
    """Each client, also the slow one, has had another answer."""
    before = [client.answered for client in asking]
    wait_until(
        lambda: all(client.answered > known for client, known in zip(asking, before, strict=True)),
        lambda: f"an answer for each: {[client.failures for client in asking]}",
        60,
    )
