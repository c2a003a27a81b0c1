"""`edge-runtime serve` is stopped, reloaded and started by systemd's rules, and no request is lost by any of it."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import builders
from tests.support.installed import Installed, clean_environment
from tests.support.serving import HEAD, READING, UnixConnection, end, hear, serving
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Version 1.0.0 of a model."""
    return builders.classification(version="1.0.0").save(tmp_path / "activity.onnx")


def exchange(bundle: Path, version: str) -> None:
    """Another version in the place of a bundle, as a rename does it."""
    fresh = builders.classification(version=version).save(bundle.with_suffix(".new"))
    fresh.replace(bundle)


class Client(threading.Thread):
    """Asks without a pause on a connection that it keeps, and closes where the answer says so."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self.answers: Counter[tuple[int, str]] = Counter()
        self.failures: list[str] = []
        self.ids: list[str] = []
        self.is_stopped = False

    def run(self) -> None:
        """Until `is_stopped`."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self.is_stopped:
            try:
                connection.request("POST", "/predict/activity", READING)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            document = json.loads(body)
            self.answers[answer.status, document.get("version", "-")] += 1
            self.ids.append(document.get("id", "-"))
            if answer.getheader("Connection") == "close":
                connection.close()
        connection.close()


def clients_at_work(port: int, meanwhile: Callable[[list[Client]], None]) -> list[Client]:
    """Four of them while something is done."""
    clients = [Client(port) for _ in range(4)]
    for client in clients:
        client.start()
    meanwhile(clients)
    for client in clients:
        client.is_stopped = True
    for client in clients:
        client.join(60)
    ids = [each for client in clients for each in client.ids]
    assert len(ids) == len(set(ids)), "two predictions have one id"
    return clients


def wait_for_answers(clients: list[Client], version: str) -> None:
    """Every client has had an answer of this version since now."""
    before = [client.answers[200, version] for client in clients]
    wait_until(
        lambda: all(client.answers[200, version] > known + 3 for client, known in zip(clients, before, strict=True)),
        f"answers of {version}",
        30,
    )


def test_sigterm_answers_what_is_in_flight(installed: Installed, bundle: Path, tmp_path: Path, free_port: int) -> None:
    """Readiness falls, the rest of a request is waited for and answered with `Connection: close`, and the exit is 0."""
    with serving(installed, bundle, "--listen", f"127.0.0.1:{free_port}", cwd=tmp_path) as server:
        with (
            socket.create_connection(("127.0.0.1", free_port), timeout=20) as slow,
            socket.create_connection(("127.0.0.1", free_port), timeout=20) as probe,
        ):
            slow.sendall(HEAD + READING[:10])
            probe.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert hear(probe)[0] == 200
            server.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 20
            status, connection = 200, ""
            while status == 200:
                assert time.monotonic() < deadline
                status, connection, _ = hear_on(free_port, "/v2/health/ready")
            assert (status, connection) == (503, "close")
            assert server.poll() is None
            slow.sendall(READING[10:])
            assert hear(slow)[:2] == (200, "close")
        assert server.wait(20) == 0


def hear_on(port: int, path: str) -> tuple[int, str, bytes]:
    """A question on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return hear(client)


def test_a_stop_is_over_when_its_time_is(installed: Installed, bundle: Path, tmp_path: Path, free_port: int) -> None:
    """`--stop-timeout` bounds what a client that never sends its body can keep."""
    words: list[str | Path] = [bundle, "--listen", f"127.0.0.1:{free_port}", "--stop-timeout", "0.3"]
    with (
        serving(installed, *words, cwd=tmp_path) as server,
        socket.create_connection(("127.0.0.1", free_port), timeout=20) as slow,
    ):
        slow.sendall(HEAD)
        assert hear_on(free_port, "/healthz")[0] == 200
        assert "requests are refused: the stop's time is over" in end(server)


def test_sighup_exchanges_the_bundle_under_clients(
    installed: Installed, bundle: Path, tmp_path: Path, free_port: int
) -> None:
    """Clients that ask all the while get an answer each, at first of the one version, then of the other."""
    with serving(installed, bundle, "--listen", f"127.0.0.1:{free_port}", cwd=tmp_path) as server:

        def meanwhile(clients: list[Client]) -> None:
            wait_for_answers(clients, "1.0.0")
            exchange(bundle, "1.1.0")
            server.send_signal(signal.SIGHUP)
            wait_for_answers(clients, "1.1.0")
            bundle.write_bytes(b"no bundle")
            server.send_signal(signal.SIGHUP)
            assert server.stderr is not None
            while "not reloaded, serving on as before" not in server.stderr.readline():
                pass
            wait_for_answers(clients, "1.1.0")

        clients = clients_at_work(free_port, meanwhile)
        for client in clients:
            assert client.failures == []
            assert set(client.answers) == {(200, "1.0.0"), (200, "1.1.0")}
        end(server)


def test_a_token_is_exchanged_by_sighup(installed: Installed, bundle: Path, tmp_path: Path, free_port: int) -> None:
    """A secret is changed without a restart."""
    token = tmp_path / "token"
    token.write_text("old\n")
    words: list[str | Path] = [bundle, "--listen", f"127.0.0.1:{free_port}", "--token-file", token]

    def status(secret: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=20)
        connection.request("GET", "/v2", headers={"Authorization": f"Bearer {secret}"})
        found = connection.getresponse().status
        connection.close()
        return found

    with serving(installed, *words, cwd=tmp_path) as server:
        assert (status("old"), status("new")) == (200, 401)
        token.write_text("new\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: status("new") == 200, "the new token", 30)
        assert status("old") == 401
        end(server)


def test_restarts_with_a_socket_of_systemd_lose_no_request(installed: Installed, bundle: Path, tmp_path: Path) -> None:
    """The socket stays while the process is exchanged: clients wait for the next one, and none is refused or reset."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as held:
        port = held.getsockname()[1]

        def meanwhile(clients: list[Client]) -> None:
            for _ in range(3):
                with serving(installed, bundle, cwd=tmp_path, sockets=[held]) as server:
                    wait_for_answers(clients, "1.0.0")
                    end(server)
            with serving(installed, bundle, cwd=tmp_path, sockets=[held]):
                wait_for_answers(clients, "1.0.0")
                for client in clients:
                    client.is_stopped = True
                for client in clients:
                    client.join(60)

        clients = clients_at_work(port, meanwhile)
    for client in clients:
        assert client.failures == []
        assert set(client.answers) == {(200, "1.0.0")}


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_systemd_itself_hands_a_socket_over(installed: Installed, bundle: Path, tmp_path: Path, free_port: int) -> None:
    """The first client starts the server, and is answered by it."""
    tool = shutil.which("systemd-socket-activate")
    words = [str(tool), f"--listen=127.0.0.1:{free_port}", str(installed.edge_runtime), "serve", str(bundle)]
    server = subprocess.Popen(words, cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        assert "Listening on" in server.stderr.readline()
        assert hear_on(free_port, "/v2/health/ready")[0] == 200
        end(server)
    finally:
        server.kill()
        server.wait(20)
        server.stderr.close()


def test_a_unix_socket_is_served(installed: Installed, bundle: Path, tmp_path: Path) -> None:
    """A path takes the place of host and port, and is gone with the server."""
    path = tmp_path / "edge.sock"
    with serving(installed, bundle, "--listen", "unix:edge.sock", cwd=tmp_path) as server:
        connection = UnixConnection(path)
        connection.request("POST", "/predict/activity", READING)
        assert connection.getresponse().status == 200
        connection.close()
        end(server)
    assert not path.exists()


def children(pid: int) -> list[int]:
    """The processes of a parent."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_several_processes_answer_on_one_port(
    installed: Installed, bundle: Path, tmp_path: Path, free_port: int
) -> None:
    """Each is reloaded; one that is killed is started again; all end with their parent, and no client is refused."""
    words: list[str | Path] = [bundle, "--listen", f"127.0.0.1:{free_port}", "--processes", "2"]
    with serving(installed, *words, cwd=tmp_path) as server:
        pids = children(server.pid)
        assert len(pids) == 2

        def meanwhile(clients: list[Client]) -> None:
            wait_for_answers(clients, "1.0.0")
            exchange(bundle, "1.1.0")
            server.send_signal(signal.SIGHUP)
            wait_for_answers(clients, "1.1.0")

        clients = clients_at_work(free_port, meanwhile)
        assert [client.failures for client in clients] == [[]] * 4
        os.kill(pids[0], signal.SIGKILL)
        wait_until(lambda: len(set(children(server.pid)) - {pids[0]}) == 2, "another process", 30)
        for _ in range(20):
            assert hear_on(free_port, "/v2/health/ready")[0] == 200
        last = children(server.pid)
        answered = end(server)
        assert "a process has ended and is started again" in answered
    assert not any(Path(f"/proc/{pid}").exists() for pid in last)


def test_processes_end_when_their_parent_is_killed(
    installed: Installed, bundle: Path, tmp_path: Path, free_port: int
) -> None:
    """No process is left behind on the port."""
    words: list[str | Path] = [bundle, "--listen", f"127.0.0.1:{free_port}", "--processes", "2"]
    with serving(installed, *words, cwd=tmp_path) as server:
        pids = children(server.pid)
        server.kill()
        server.wait(20)
        wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in pids), "the processes' end", 30)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--processes", "0"], "--processes: expected 1 to 64, found 0"),
        (["--processes", "2", "--listen", "192.0.2.1:8080", "--token-file", "token"], "cannot be listened on"),
        (["--listen", "unix:"], "--listen: expected unix: and an absolute path"),
        (["--listen", "unix:activity.onnx"], "there is a file of that name, and it is no socket"),
        (["--hosts", "http://x"], "--hosts: expected the name or address of a host"),
        (["--origins", "*"], "each site is named"),
        (["--prefix", "edge/"], '--prefix: expected a path such as "/edge"'),
        (["--stop-timeout", "-1"], "--stop-timeout: expected 0 to 600 seconds"),
    ],
)
def test_a_mistake_is_one_line(
    installed: Installed, bundle: Path, tmp_path: Path, words: list[str], error: str
) -> None:
    """What a user can get wrong ends in exit 1 and a line that names it."""
    (tmp_path / "token").write_text("s3cret\n")
    done = installed.run(installed.edge_runtime, "serve", bundle, *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert error in done.stderr


def test_processes_refuse_a_bundle_once(installed: Installed, tmp_path: Path, free_port: int) -> None:
    """The first process finds the mistake, and the others are not started."""
    words = ["absent.onnx", "--listen", f"127.0.0.1:{free_port}", "--processes", "4"]
    done = installed.run(installed.edge_runtime, "serve", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("absent.onnx: expected a bundle, found no such file") == 1
