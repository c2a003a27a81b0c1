"""`[http]` of a running daemon: predictions on demand and the status page, beside the stream."""

import contextlib
import http.client
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.load import answered, endless_readings
from tests.support.serving import hear
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """One request to the loopback; the body of the answer is decoded where it is JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patient(20))
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(data) if is_json else data
    finally:
        connection.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A classifier of single readings."""
    return builders.classification().save(tmp_path / "comfort.onnx")


def device(broker: Mosquitto, bundle: Path, port: int, more: str = "") -> str:
    """A climate device that answers requests."""
    return climate_device(broker, bundle) + f'\n[http]\nlisten = "127.0.0.1:{port}"\n{more}'


def test_a_request_is_answered_as_a_subscriber_sees_it(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, bundle: Path, free_port: int
) -> None:
    """The same reading gives the same label and scores, on demand and over MQTT."""
    subscriber = make_subscriber(mosquitto.port, "edge/#")
    make_daemon(device(mosquitto, bundle, free_port)).start()
    subscriber.wait_for_text("edge/room/status", "online")
    reading = b'{"temperature": 21.4, "humidity": 48.2}'
    subscriber.publish("sensors/a/climate", reading)
    published = subscriber.wait_for(1, "edge/room/comfort/a")[0].document
    status, answered = ask(free_port, "POST", "/predict/comfort", reading)
    assert status == 200
    same = ("device", "model", "version", "label", "score", "scores")
    assert [answered[name] for name in same] == [published[name] for name in same]
    assert answered.keys() == published.keys() - {"clock"}  # where the machine does not keep its clock by the network
    assert answered["id"] != published["id"]


def test_online_is_published_only_when_http_listens(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, bundle: Path, free_port: int
) -> None:
    """An address that is in use keeps the daemon up and offline; it says so, and tries again."""
    subscriber = make_subscriber(mosquitto.port, "edge/#")
    with socket.create_server(("127.0.0.1", free_port)):
        daemon = make_daemon(device(mosquitto, bundle, free_port)).start(ready=False)
        daemon.wait_for_log("cannot be listened on: Address already in use")
        subscriber.publish("sensors/a/climate", b'{"temperature": 21.4, "humidity": 48.2}')
        assert all(message.text != "online" for message in subscriber.messages if message.topic.endswith("/status"))
    subscriber.wait_for_text("edge/room/status", "online")
    assert ask(free_port, "GET", "/v2/health/ready")[0] == 200


def test_health_metrics_and_live_predictions_are_shown(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, bundle: Path, free_port: int
) -> None:
    """The status page gets the health document, each reading and each prediction as they come."""
    subscriber = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(device(mosquitto, bundle, free_port)).start()
    connection = http.client.HTTPConnection("127.0.0.1", free_port, timeout=patient(20))
    connection.request("GET", "/events")
    events = connection.getresponse()
    assert events.headers["Content-Type"] == "text/event-stream"
    assert events.readline() == b"retry: 1000\n"
    subscriber.publish("sensors/a/climate", b'{"temperature": 21.5, "humidity": 48.25}')
    seen: dict[str, Any] = {}
    kind = ""
    while {"health", "reading", "prediction"} - seen.keys():
        line = events.readline().decode()
        if line.startswith("event: "):
            kind = line.removeprefix("event: ").strip()
        elif line.startswith("data: "):
            seen[kind] = json.loads(line.removeprefix("data: "))
    assert seen["reading"] == {"source": "climate", "key": "a", "values": {"temperature": 21.5, "humidity": 48.25}}
    assert seen["prediction"]["key"] == "a"
    assert seen["health"]["device"] == "room"
    wait_until(lambda: b"edge_readings_total 1\n" in ask(free_port, "GET", "/metrics")[1], "the reading in /metrics")
    assert ask(free_port, "GET", "/healthz") == (200, {"status": "ok"})
    assert daemon.stop() == 0  # an open page delays nothing
    connection.close()


def test_a_token_is_asked_of_everybody(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, bundle: Path, free_port: int, tmp_path: Path
) -> None:
    """With `token_file`, a request without the token learns nothing."""
    (tmp_path / "token").write_text("s3cret\n")
    make_daemon(device(mosquitto, bundle, free_port, 'token_file = "token"')).start()
    for path in ("/", "/v2", "/metrics", "/nothing"):
        assert ask(free_port, "GET", path)[0] == 401
    assert ask(free_port, "GET", "/v2", Authorization="Bearer wrong")[0] == 401
    assert ask(free_port, "GET", "/v2", Authorization="Bearer s3cret")[0] == 200
    assert ask(free_port, "GET", "/", Authorization="Basic ZWRnZTpzM2NyZXQ=")[0] == 200


def test_a_reload_serves_the_new_configuration(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, bundle: Path, free_port: int
) -> None:
    """After a reload the same address answers for the models of the new file."""
    daemon = make_daemon(device(mosquitto, bundle, free_port)).start()
    assert ask(free_port, "GET", "/v2/models/comfort")[0] == 200
    daemon.config.write_text(daemon.config.read_text().replace('name = "comfort"', 'name = "indoors"'))
    daemon.reload()
    wait_until(lambda: ask_or_none(free_port, "/v2/models/indoors") == 200, "the model of the new file")
    assert ask(free_port, "GET", "/v2/models/comfort")[0] == 404


def ask_or_none(port: int, path: str) -> int | None:
    """The status; None while nothing listens."""
    try:
        return ask(port, "GET", path)[0]
    except (OSError, http.client.HTTPException):
        return None


@contextlib.contextmanager
def half_a_request(port: int) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection on which half of a request was sent and arrived, and the other half."""
    reading = b'{"temperature": 21.4, "humidity": 48.2}'
    head = b"POST /predict/comfort HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(reading)
    with socket.create_connection(("127.0.0.1", port), timeout=patient(20)) as client:
        client.sendall(head + reading[:9])
        assert ask(port, "GET", "/healthz")[0] == 200
        yield client, reading[9:]


def test_a_stop_of_the_daemon_answers_what_is_in_flight(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, bundle: Path, free_port: int
) -> None:
    """SIGTERM lets a request of which half has come be sent to its end, and answers it with `Connection: close`."""
    daemon = make_daemon(device(mosquitto, bundle, free_port)).start()
    wait_until(lambda: ask(free_port, "GET", "/v2/health/ready")[0] == 200, "readiness", 30)
    with half_a_request(free_port) as (slow, rest):
        os.kill(daemon.pid, signal.SIGTERM)
        daemon.wait_for_log("stopping")
        slow.sendall(rest)
        assert hear(slow)[:2] == (200, "close")
    assert daemon.stop() == 0


def test_a_reload_that_changes_http_answers_what_is_in_flight(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, bundle: Path, free_port: int
) -> None:
    """SIGHUP with another `[http]`: the address answers all the while, and the half of a request is waited for."""
    daemon = make_daemon(device(mosquitto, bundle, free_port)).start()
    wait_until(lambda: ask(free_port, "GET", "/v2/health/ready")[0] == 200, "readiness", 30)
    with half_a_request(free_port) as (slow, rest):
        daemon.config.write_text(daemon.config.read_text() + 'prefix = "/edge"\n')
        daemon.reload()
        wait_until(lambda: ask(free_port, "GET", "/edge/healthz")[0] == 200, "the new prefix", 30)  # never refused
        slow.sendall(rest)
        assert hear(slow)[:2] == (200, "close")
    changed = daemon.config.read_text().replace(
        f'listen = "127.0.0.1:{free_port}"', f'listen = "localhost:{free_port}"'
    )
    daemon.config.write_text(changed.replace("/edge", "/other"))
    daemon.reload()
    wait_until(lambda: ask_or_none(free_port, "/other/healthz") == 200, "the same address by another name", 30)


@pytest.mark.parametrize(("more", "status"), [("", 200), ('health = "token"', 401)])
def test_probes_of_a_daemon_need_the_token_by_choice_only(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, bundle: Path, free_port: int, tmp_path: Path, more: str, status: int
) -> None:
    """Health is open without the secret unless it is closed; everything else wants it."""
    (tmp_path / "token").write_text("s3cret\n")
    text = device(mosquitto, bundle, free_port, f'token_file = "token"\n{more}\n')
    make_daemon(text).start()
    for path in ("/healthz", "/v2/health/ready", "/v2/health/live", "/ping"):
        assert ask(free_port, "GET", path)[0] == status
    for path in ("/metrics", "/v2/models/comfort/ready", "/"):
        assert ask(free_port, "GET", path)[0] == 401


FAILS_ON_ASKING = """
import os
import edge_runtime.http.connections as connections

serve = connections.Connections.serve


def failing(self, stopped):
    def asked():
        if os.path.exists(FLAG):
            os.unlink(FLAG)
            raise RuntimeError("a fault of the server's own")
        return stopped()

    return serve(self, asked)


connections.Connections.serve = failing
"""


def test_a_failing_server_begins_anew_and_the_stream_goes_on(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    bundle: Path,
    free_port: int,
    tmp_path: Path,
) -> None:
    """Three failures of the whole server: each is counted and ended by a restart, and no reading notices."""
    flag = tmp_path / "fail"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(f"FLAG = {str(flag)!r}\n{FAILS_ON_ASKING}")
    subscriber = make_subscriber(mosquitto.port, "edge/#")
    daemon = make_daemon(device(mosquitto, bundle, free_port), PYTHONPATH=str(tmp_path / "broken")).start()
    subscriber.wait_for_text("edge/room/status", "online")
    pid = daemon.pid

    def serves() -> bool:
        try:
            return ask(free_port, "POST", "/predict/comfort", b'{"temperature": 21.4, "humidity": 48.2}')[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def failures() -> int:
        health = subscriber.on("edge/room/health")
        return int(health[-1].document["errors"].get("http_failed", 0)) if health else 0

    with endless_readings(make_subscriber(mosquitto.port), 0.005) as sent:
        for number in (1, 2, 3):
            assert serves()
            flag.touch()
            wait_until(lambda number=number: failures() == number, "the failure in health")  # type: ignore[misc]
            wait_until(serves, "the server, begun anew")
        begun = len(sent)
        wait_until(lambda: len(sent) > begun + 50, "readings behind the last failure")
    wait_until(lambda: len(answered(subscriber)) == len(sent), "every answer")
    assert set(answered(subscriber).values()) == {1}
    assert daemon.pid == pid
    assert daemon.returncode is None
    assert {message.text for message in subscriber.on("edge/room/status")} == {"online"}
    assert daemon.stop() == 0
    predicted = daemon.log.count(
        "the HTTP server failed and begins anew"
    )  # the same again and again is logged a few times
    assert 1 <= predicted <= 3
    assert (
        daemon.log.count("Traceback") == predicted
    )  # a fault of ours, which the log has to show; no other one is allowed
    daemon.config.with_suffix(".log").write_text("")
