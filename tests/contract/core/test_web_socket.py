"""MQTT over WebSockets: with a real mosquitto, and with a server that is as strict as the specification."""

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge_runtime.config.addresses import parse_endpoint
from edge_runtime.mqtt.messages import Will
from tests.conftest import MakeBroker, MakeSubscriber
from tests.support.broker import CertificateAuthority, Mosquitto
from tests.support.cloud_brokers import SecuredBroker, server_context
from tests.support.fake_broker import Mode
from tests.support.linked import LinkedClient
from tests.support.ports import find_free_port, wait_for_listener

SIZES = (0, 1, 125, 126, 1000, 65_535, 65_536, 200_000)
Connect = Callable[..., LinkedClient]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connect to a URL."""
    made: list[LinkedClient] = []

    def make(url: str, *filters: str, **settings: Any) -> LinkedClient:
        made.append(LinkedClient(url, *filters, **settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


def send(client: LinkedClient, topic: str, payload: bytes, settled: list[bool]) -> None:
    """Publish, as soon as there is room."""
    client.until(lambda: client.connection.publish(topic, payload, qos=1, outcome=settled.append), "room to send")


def with_web_sockets(make: MakeBroker, **options: Any) -> tuple[Mosquitto, int]:
    """A mosquitto that speaks MQTT on one port and WebSockets on another."""
    port = find_free_port()
    broker = make(extra=f"listener {port} 127.0.0.1\nprotocol websockets\n", **options)
    wait_for_listener(port)
    return broker, port


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
def test_messages_of_every_size_go_both_ways_over_web_sockets(
    protocol: str, make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber, connect: Connect
) -> None:
    """Through a real broker, whose other side is a plain connection: each once, whole, and in order."""
    broker, port = with_web_sockets(make_mosquitto)
    other = make_subscriber(broker.port, "out/#")
    client = connect(f"ws://127.0.0.1:{port}/mqtt", "in/#", protocol=protocol).up()
    settled: list[bool] = []
    for size in SIZES:
        payload = bytes(index % 251 for index in range(size))
        send(client, "out/x", payload, settled)
        other.publish("in/x", payload)
    client.until(lambda: len(settled) == len(SIZES) == len(client.messages), "all of them")
    assert settled == [True] * len(SIZES)
    assert [len(message.payload) for message in client.messages] == list(SIZES)
    assert all(bytes(each.payload) == bytes(i % 251 for i in range(len(each.payload))) for each in client.messages)
    other.wait_for(len(SIZES), "out/x")
    assert [len(message.payload) for message in other.on("out/x")] == list(SIZES)


def test_the_last_will_comes_and_a_goodbye_takes_it_away(
    make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber, connect: Connect
) -> None:
    """The end of a WebSocket is the end of a connection, in both ways that there are."""
    broker, port = with_web_sockets(make_mosquitto)
    other = make_subscriber(broker.port, "will/#")
    first = connect(f"ws://127.0.0.1:{port}", client_id="a", will=Will("will/a", b"gone")).up()
    second = connect(f"ws://127.0.0.1:{port}", client_id="b", will=Will("will/b", b"gone")).up()
    second.connection.stop()
    first.path.wrapped._wrapped.shutdown(socket.SHUT_RDWR)
    other.wait_for_text("will/a", "gone")
    assert not other.on("will/b")


def test_a_broker_that_comes_back_is_met_again(
    make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber, connect: Connect
) -> None:
    """With the session that it has kept."""
    broker, port = with_web_sockets(make_mosquitto, persistence=True)
    client = connect(f"ws://127.0.0.1:{port}", "in/#").up()
    broker.kill()
    client.until(lambda: not client.connection.connected, "the end")
    broker.start()
    wait_for_listener(port)
    client.up()
    make_subscriber(broker.port).publish("in/x", b"again")
    client.until(lambda: client.messages, "the message")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """An authority of these tests."""
    return CertificateAuthority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize("is_secured", [False, True], ids=["ws", "wss"])
def test_a_strict_server_finds_nothing_wrong(
    is_secured: bool, authority: CertificateAuthority, connect: Connect
) -> None:
    """Every frame of ours is masked, pings are answered between our messages, and frames may come in pieces."""
    context = server_context(*authority.issue("strict"), authority.certificate) if is_secured else None
    broker = SecuredBroker(Mode(), context, path="/$iothub/websocket?x=1")
    scheme, more = ("wss", {"ca_file": str(authority.certificate)}) if is_secured else ("ws", {})
    client = connect(f"{scheme}://localhost:{broker.port}/$iothub/websocket?x=1", "in/#", **more).up()
    settled: list[bool] = []
    for number in range(50):
        payload = b"%d" % number * (1 + 97 * number % 300)
        send(client, "out", payload, settled)
        client.until(lambda number=number: len(settled) == number + 1, "its answer")  # type: ignore[misc]
        assert broker.present is not None
        broker.present.publish(b"in/x", payload, number + 1)
        client.until(lambda number=number: len(client.messages) == number + 1, "the message")  # type: ignore[misc]
    client.until(lambda: len(settled) == len(client.messages) == len(broker.acknowledged) == 50, "all of them")
    assert [each.payload for each in broker.published] == [bytes(each.payload) for each in client.messages]
    client.until(lambda: broker.present.socket.pongs > 20, "the pongs")  # type: ignore[union-attr]
    broker.close()
    assert broker.violations == []


def test_a_server_without_web_sockets_is_named(mosquitto: Mosquitto, connect: Connect) -> None:
    """A wrong path, and a port that speaks plain MQTT: a sentence with the address and what to look at."""
    broker = SecuredBroker(Mode(), None, path="/mqtt")
    wrong = connect(f"ws://localhost:{broker.port}/other")
    sentence = "the server does not let us speak MQTT over WebSockets there: look at the path of the url"
    wrong.until(lambda: sentence in wrong.connection.state, "the sentence")
    plain = connect(f"ws://localhost:{mosquitto.port}")
    plain.until(lambda: plain.counters.errors["connect_failed"], "a refusal")
    assert "ws://localhost" in plain.connection.state
    broker.close()


def test_the_protocol_of_tls_is_asked_for(authority: CertificateAuthority, connect: Connect) -> None:
    """A server that shares a port by ALPN sees what the device file says, and nothing where it says nothing."""
    context = server_context(*authority.issue("alpn"), authority.certificate)
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca"])
    broker = SecuredBroker(Mode(), context)
    ca_file = str(authority.certificate)
    connect(f"mqtts://localhost:{broker.port}", ca_file=ca_file, alpn="x-amzn-mqtt-ca").up()
    connect(f"mqtts://localhost:{broker.port}", ca_file=ca_file).up()
    assert broker.alpn == ["x-amzn-mqtt-ca", None]
    broker.close()


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("ws://broker", "broker", 80, "/mqtt"),
        ("ws://broker:8083/", "broker", 8083, "/mqtt"),
        ("wss://broker/a/b?c=d", "broker", 443, "/a/b?c=d"),
        ("wss://[::1]:8084/mqtt", "::1", 8084, "/mqtt"),
    ],
)
def test_addresses(url: str, host: str, port: int, path: str) -> None:
    """Ports and path that are left out are those that brokers have."""
    found = parse_endpoint(url)
    assert (found.host, found.port, found.path, found.tls) == (host, port, path, url.startswith("wss"))
    assert parse_endpoint(str(found)) == found
    assert found.transport == "websockets"
