"""One connection to a real mosquitto, and to servers that behave badly."""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.mqtt import ack_coalescing, hot_packets
from edge_runtime.mqtt import connection as connection_module
from edge_runtime.mqtt.messages import Message, Will
from edge_runtime.mqtt.whole_socket import WholeSocket
from tests.conftest import MakeBroker, MakeSubscriber
from tests.support.broker import CertificateAuthority, Mosquitto
from tests.support.linked import LinkedClient
from tests.support.waiting import patient

PROTOCOLS = ["3.1.1", "5"]


MakeClient = Callable[..., LinkedClient]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """Connect: `make_client(mosquitto.url, "a/#", protocol="5")`; settings of `[upstream]` by name."""
    made: list[LinkedClient] = []

    def make(url: str, *filters: str, **settings: Any) -> LinkedClient:
        client = LinkedClient(url, *filters, **settings)
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("qos", [0, 1])
def test_messages_go_both_ways(
    protocol: str, qos: int, mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """Every message arrives once and in order, and each of ours is settled exactly once."""
    other = make_subscriber(mosquitto.port, "out/#")
    client = make_client(mosquitto.url, "in/#", protocol=protocol, qos=qos).up()
    outcomes: list[bool] = []
    for number in range(100):
        assert client.connection.publish(f"out/{number}", b"%d" % number, qos=qos, outcome=outcomes.append)
        other.publish(f"in/{number}", b"%d" % number, qos=qos)
    client.until(lambda: len(outcomes) == 100 and len(client.messages) == 100, "both hundreds")
    assert outcomes == [True] * 100
    assert [message.payload for message in client.messages] == [b"%d" % n for n in range(100)]
    assert [(message.receipt is None) for message in client.messages] == [qos == 0] * 100
    assert [message.payload for message in other.wait_for(100)] == [b"%d" % n for n in range(100)]
    client.until(lambda: not client.path.owed, "every acknowledgement to be given")


def test_an_optional_handler_sees_only_what_is_not_claimed(
    mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """Readings pass it by; what neither claims is counted once, and every message is acknowledged."""
    seen: list[bytes] = []

    def take_readings(messages: list[Message]) -> None:
        for message in messages:
            message.claimed = message.topic.startswith(b"in/")

    def take_truth(messages: list[Message]) -> None:
        for message in messages:
            seen.append(message.topic)
            message.claimed = message.topic == b"truth/m"

    client = make_client(mosquitto.url)
    client.connection.subscribe(["truth/+"], 1, take_truth, optional=True)
    client.connection.subscribe(["in/#"], 1, take_readings)
    client.up()
    other = make_subscriber(mosquitto.port)
    for topic in ("in/1", "truth/m", "in/2", "truth/strange", "in/3"):
        other.publish(topic, b"x")
    client.until(lambda: client.counters.rejected and not client.path.owed, "every message")
    assert seen == [b"truth/m", b"truth/strange"]
    assert client.counters.rejected == {"unmatched_topic": 1}


def test_in_a_rush_no_acknowledgement_waits(
    mosquitto: Mosquitto, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more than a quarter of the places taken each acknowledgement wakes; when it is calm again, none does."""
    monkeypatch.setattr(ack_coalescing, "CALM_S", 0.05)
    client = make_client(mosquitto.url, ack_patience=600.0).up()
    outcomes: list[bool] = []

    def publish() -> None:
        assert client.connection.publish("out/x", b"x", qos=1, outcome=outcomes.append)

    def again(accepted: bool) -> None:
        outcomes.append(accepted)
        if len(outcomes) < 300:
            assert client.connection.publish("out/x", b"x", qos=1, outcome=again)

    for _ in range(client.connection.window // ack_coalescing.PATIENT_SHARE + 1):
        assert client.connection.publish("out/x", b"x", qos=1, outcome=again)
    client.connection.poke()
    assert not client.path.acks.holding
    client.until(lambda: len(outcomes) >= 300 and not client.path.outcomes, "every acknowledgement")
    client.until(lambda: client.path.acks.holding, "the calm")
    publish()
    assert client.path.acks.holding


def test_an_answer_leaves_before_acknowledgements_and_before_the_books_are_kept(
    mosquitto: Mosquitto,
    make_client: MakeClient,
    make_subscriber: MakeSubscriber,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message's publications go out first; our PUBACK behind them; then the broker's answers are settled."""
    events: list[bytes] = []
    client = make_client(mosquitto.url, ack_patience=600.0)
    client.answer(1, lambda _: events.append(b"settled"))
    client.up()
    flush = WholeSocket.flush

    def noting(wrapped: WholeSocket) -> bool:
        events.append(bytes(wrapped._unsent))
        return flush(wrapped)

    monkeypatch.setattr(WholeSocket, "flush", noting)
    other = make_subscriber(mosquitto.port, "out/#")
    for number in range(1, 4):
        other.publish("in/x", b"")
        client.until(lambda number=number: len(other.messages) == number, "the answer")  # type: ignore[misc]
    head = b"\x32\x0a\x00\x05out/x"
    first, second, settled, third, settled_too = events
    assert first.startswith(head)
    assert len(first) == 12
    assert second.startswith(head)
    assert second[12:] == hot_packets.puback(1)
    assert third.startswith(head)
    assert third[12:] == hot_packets.puback(2)
    assert settled == settled_too == b"settled"


@pytest.mark.parametrize("qos", [0, 1])
def test_a_write_that_fails_settles_what_was_acknowledged_and_nothing_else(
    qos: int,
    mosquitto: Mosquitto,
    make_client: MakeClient,
    make_subscriber: MakeSubscriber,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An acknowledgement that was read with the message counts, though the answer to that message breaks the link."""
    outcomes: list[str] = []
    client = make_client(mosquitto.url, ack_patience=600.0)
    client.answer(qos, lambda _: outcomes.append("after"))
    client.up()
    other = make_subscriber(mosquitto.port, "out/#")
    assert client.connection.publish("out/x", b"x", qos=1, outcome=lambda _: outcomes.append("before"))
    client.until(lambda: len(other.messages) == 1, "the first message to be delivered")
    for _ in range(3):
        client.loop.run_once(0.05)  # its acknowledgement comes, and waits in the socket
    assert not outcomes

    def broken(_: WholeSocket) -> bool:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(WholeSocket, "flush", broken)
    other.publish("in/x", b"")
    client.until(lambda: client.counters.errors["disconnected"], "the loss")
    assert outcomes == ["before"]
    monkeypatch.undo()
    client.until(lambda: outcomes == ["before", "after"], "the answer, once the broker has sent the message again")


def test_an_acknowledgement_waits_for_company_but_not_for_ever(
    mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """One that comes alone is read with the next message, at once if acknowledged so, or after `ack_patience`."""
    other = make_subscriber(mosquitto.port, "out/#")
    client = make_client(mosquitto.url, "in/#", ack_patience=600.0).up()
    outcomes: list[bool] = []

    def publish() -> None:
        had = len(other.messages)
        assert client.connection.publish("out/1", b"x", qos=1, outcome=outcomes.append)
        client.until(lambda: len(other.messages) > had, "the message to be delivered")
        for _ in range(3):
            client.loop.run_once(0.05)

    publish()
    assert outcomes == []
    other.publish("in/1", b"reading", qos=1)
    client.until(lambda: client.messages, "a reading")
    assert outcomes == [True]
    publish()
    assert outcomes == [True]
    client.connection.acknowledge_at_once()
    client.until(lambda: len(outcomes) == 2, "the acknowledgement, at once")
    patient = make_client(mosquitto.url, "in/#", client_id="edge-other").up()
    patient.connection.publish("out/2", b"x", qos=1, outcome=outcomes.append)
    patient.until(lambda: len(outcomes) == 3, "the acknowledgement, after a while")


def test_tls_with_the_right_authority_connects(
    make_mosquitto: MakeBroker, authority: CertificateAuthority, make_client: MakeClient
) -> None:
    """`mqtts://` with the broker's authority in `ca_file`, large messages included."""
    broker = make_mosquitto(tls=authority)
    client = make_client(broker.url, "t", ca_file=str(authority.certificate)).up()
    outcomes: list[bool] = []
    payload = os.urandom(3_000_000)
    client.connection.publish("t", payload, qos=1, outcome=outcomes.append)
    client.until(lambda: client.messages and outcomes, "the large message to come round")
    assert client.messages[0].payload == payload


@pytest.mark.parametrize("fault", ["wrong authority", "wrong host", "expired", "clear text"])
def test_a_certificate_that_is_not_right_is_refused_in_clear_words(
    fault: str, make_mosquitto: MakeBroker, tmp_path: Path, make_client: MakeClient
) -> None:
    """There is no way around it and no clear text instead: the state names the broker and what is wrong."""
    authority = CertificateAuthority(tmp_path / "own")
    trusted = authority.certificate
    if fault == "wrong authority":
        trusted = CertificateAuthority(tmp_path / "other", name="stranger").certificate
    if fault == "clear text":
        broker = make_mosquitto()
        url = f"mqtts://localhost:{broker.port}"
    else:
        if fault == "wrong host":
            _answer_for_another_name(authority)
        if fault == "expired":
            _issue_expired(authority)
        broker = make_mosquitto(tls=authority)
        url = broker.url
    client = make_client(url, ca_file=str(trusted))
    client.until(lambda: client.counters.errors["connect_failed"] >= 3, "three refusals")
    assert client.counters.counts["connects"] == 0
    words = {"expired": "certificate has expired", "wrong host": "Hostname mismatch", "clear text": "localhost"}
    assert any(words.get(fault, "is not trusted") in state for state in client.states), client.states
    assert all(str(broker.port) in state for state in client.states)


def _answer_for_another_name(authority: CertificateAuthority) -> None:
    issue = authority.issue
    authority.issue = lambda name, alternatives="": issue(name, "DNS:elsewhere.example")  # type: ignore[method-assign]


def _issue_expired(authority: CertificateAuthority) -> None:
    issue = authority.issue

    def expired(name: str, alternatives: str = "DNS:localhost,IP:127.0.0.1") -> tuple[Path, Path]:
        certificate, key = issue(name, alternatives)
        folder = authority.folder
        sign: list[str | Path] = [
            "openssl",
            "x509",
            "-req",
            "-in",
            folder / f"{name}.csr",
            "-CA",
            authority.certificate,
        ]
        sign += ["-CAkey", authority._key, "-CAcreateserial", "-days", "-1", "-extfile", folder / f"{name}.ext"]
        subprocess.run([*sign, "-out", certificate], check=True, capture_output=True)
        return certificate, key

    authority.issue = expired  # type: ignore[method-assign]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_wrong_password_is_said_and_tried_again(
    protocol: str, make_mosquitto: MakeBroker, make_client: MakeClient
) -> None:
    """The state names the client id and the broker's reason; with the right password, the next attempt succeeds."""
    broker = make_mosquitto(users={"press": "right"})
    passwords = ["wrong"]
    client = make_client(broker.url, protocol=protocol, username="press")
    client.connection._password = lambda: passwords[0]
    client.until(lambda: client.counters.errors["refused"] >= 3, "three refusals")
    assert any("refused the login of 'edge-test': Not authorized" in state for state in client.states), client.states
    assert not client.connection.connected
    passwords[0] = "right"
    client.up()


def test_a_refused_subscription_is_said(make_server: Any, make_client: MakeClient) -> None:
    """The connection stays up, but is not ready: the daemon does not call itself online."""

    def treat(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"\x20\x02\x00\x00")  # CONNACK, accepted
        subscribe = connection.recv(1024)
        connection.sendall(b"\x90\x04" + subscribe[2:4] + b"\x01\x80")  # SUBACK: one granted, one refused

    client = make_client(make_server(treat).url, "allowed/a", "forbidden/b")
    client.until(lambda: client.counters.errors["subscription_refused"], "the refusal")
    client.until(lambda: "refused a subscription" in client.states[-1], "the refusal to be reported")
    assert client.connection.connected
    assert not client.connection.ready


def test_a_refused_message_is_settled_as_refused(make_mosquitto: MakeBroker, make_client: MakeClient) -> None:
    """With MQTT 5 the broker says no, and the sender learns it; what is allowed goes through."""
    broker = make_mosquitto(users={"press": "right"}, acl="user press\ntopic readwrite allowed/#\n")
    client = make_client(broker.url, protocol="5", username="press", password="right").up()  # noqa: S106
    outcomes: list[bool] = []
    client.connection.publish("forbidden/x", b"1", qos=1, outcome=outcomes.append)
    client.until(lambda: outcomes, "the refusal")

    def through() -> bool:  # mosquitto 2.0 closes the connection behind a refusal, so that one has to try again
        client.connection.publish("allowed/x", b"1", qos=1, outcome=outcomes.append)
        return True in outcomes

    client.until(through, "the acknowledgement")
    assert outcomes.count(False) == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("persistence", [False, True])
def test_a_broker_that_dies_and_comes_back_is_found_again(
    protocol: str,
    persistence: bool,
    make_mosquitto: MakeBroker,
    make_client: MakeClient,
    make_subscriber: MakeSubscriber,
) -> None:
    """With or without its session: subscriptions are made again, and messages flow."""
    broker = make_mosquitto(persistence=persistence)
    client = make_client(broker.url, "in/#", protocol=protocol).up()
    for turn in range(3):
        broker.kill()
        client.until(lambda: not client.connection.connected, "the loss to be noticed")
        assert not client.connection.publish("out", b"", qos=1, outcome=None)
        broker.start()
        client.up()
        make_subscriber(broker.port).publish(f"in/{turn}", b"")
        client.until(lambda turn=turn: len(client.messages) > turn, "the message")  # type: ignore[misc]
    assert client.counters.errors["disconnected"] == 3


def test_what_came_while_we_were_away_is_delivered(
    make_mosquitto: MakeBroker, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """The session stays with the broker: readings of an outage are not lost."""
    broker = make_mosquitto()
    client = make_client(broker.url, "in/#").up()
    client.connection.stop()
    other = make_subscriber(broker.port)
    for number in range(50):
        other.publish("in/x", b"%d" % number)
    other.flush()
    again = make_client(broker.url, "in/#").up()
    again.until(lambda: len(again.messages) == 50, "what was kept for us")
    assert [message.payload for message in again.messages] == [b"%d" % n for n in range(50)]


@pytest.mark.parametrize("busy", [False, True])
def test_a_half_open_link_is_found_within_two_keep_alives(
    busy: bool, mosquitto: Mosquitto, make_client: MakeClient
) -> None:
    """A broker that is frozen answers nothing, with no reset to tell of it; whether we send or not."""
    client = make_client(mosquitto.url, keepalive=4).up()
    process = mosquitto._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:

        def lost() -> bool:
            if busy:
                client.connection.publish("t", b"x", qos=1, outcome=None)
            return not client.connection.connected

        client.until(lost, "the loss to be noticed", deadline=8.0)
    finally:
        process.send_signal(signal.SIGCONT)
    client.up()


class _Server:
    """A server on loopback that treats every connection in one way."""

    def __init__(self, treat: Callable[[socket.socket], None]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._socket.getsockname()[1]}"
        self.accepted = 0
        self._treat = treat
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(connection)
            self._treat(connection)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5.0)
        for connection in self._open:
            connection.close()


@pytest.fixture
def make_server() -> Iterator[Callable[[Callable[[socket.socket], None]], _Server]]:
    """Start a server of one's own: `make_server(treat)`."""
    servers: list[_Server] = []

    def make(treat: Callable[[socket.socket], None]) -> _Server:
        servers.append(_Server(treat))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_a_server_that_says_nothing_is_left(
    make_server: Any, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program's port accepts the connection and sends nothing: the state says so, and it tries again."""
    monkeypatch.setattr(connection_module, "CONNECT_TIMEOUT_S", 0.3)
    server = make_server(lambda _: None)
    client = make_client(server.url)
    client.until(lambda: server.accepted >= 3, "three attempts")
    assert any("does not speak MQTT to us" in state for state in client.states)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x20\xff\xff\xff\xff\xff",
        bytes(range(0x1B, 0x5B)),
    ],
    ids=["http", "zeros", "ones", "length", "noise"],
)
def test_a_server_that_speaks_something_else_does_no_harm(
    answer: bytes, make_server: Any, make_client: MakeClient
) -> None:
    """Whatever bytes come, the attempt ends and another follows."""

    def treat(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.close()

    server = make_server(treat)
    client = make_client(server.url)
    client.until(lambda: server.accepted >= 3, "three attempts")
    assert not client.connection.connected


def _accept_login_and_leave(connection: socket.socket) -> None:
    connection.recv(1024)
    connection.sendall(b"\x20\x02\x00\x00")  # CONNACK, accepted
    connection.close()


def test_two_hundred_lost_connections_leave_nothing_behind(make_server: Any, make_client: MakeClient) -> None:
    """Neither threads nor descriptors nor timers pile up."""
    server = make_server(_accept_login_and_leave)
    client = make_client(server.url, reconnect_min=0.001, reconnect_max=0.001)
    client.until(lambda: client.counters.errors["disconnected"] >= 10, "the first ten")

    def held() -> tuple[int, int]:
        gc.collect()
        ours = [thread for thread in threading.enumerate() if thread.name == "mqtt-connect"]
        of_server = sum(1 for each in list(server._open) if each.fileno() >= 0)
        return len(os.listdir("/proc/self/fd")) - of_server, len(ours)  # noqa: PTH208

    fds, _ = held()
    client.until(lambda: client.counters.errors["disconnected"] >= 210, "two hundred more", deadline=60.0)
    now, threads = held()
    assert threads <= 1
    assert now - fds <= 2
    assert len(client.connection._timers) < 10


def test_pauses_between_attempts_grow_with_jitter_up_to_the_limit(make_client: MakeClient, free_port: int) -> None:
    """A broker that is away is asked less and less often; devices do not all ask at the same time."""
    client = make_client(f"mqtt://127.0.0.1:{free_port}", reconnect_min=0.01, reconnect_max=0.08)
    pauses: list[float] = []
    later = client.loop.call_later

    def call_later(delay: float, callback: Callable[[], object]) -> Any:
        if callback == client.connection._connect:
            pauses.append(delay)
        return later(delay, callback)

    client.loop.call_later = call_later  # type: ignore[method-assign]
    client.until(lambda: len(pauses) >= 30, "thirty attempts")
    assert all(0.01 <= pause <= 0.08 for pause in pauses)
    assert sum(pauses[:3]) / 3 < sum(pauses[-20:]) / 20
    assert len(set(pauses[-20:])) > 10


@pytest.mark.parametrize(
    ("lasted_s", "attempts"), [(connection_module.STABLE_S, 1), (connection_module.STABLE_S - 5, 6)]
)
def test_a_link_that_lasted_half_a_minute_resets_the_pause_and_a_shorter_one_does_not(
    lasted_s: float, attempts: int, mosquitto: Mosquitto, make_client: MakeClient
) -> None:
    """The fifth attempt succeeded; how long until the next one depends on how long that link held."""
    client = make_client(mosquitto.url, reconnect_min=60.0, reconnect_max=3600.0).up()
    client.connection._attempts = 5
    client.connection._connected_at = client.loop.time() - lasted_s
    client.path.wrapped._wrapped.shutdown(socket.SHUT_RDWR)
    client.until(lambda: not client.connection.connected, "the loss to be noticed")
    assert client.connection._attempts == attempts


def test_the_receipt_of_an_old_connection_acknowledges_nothing_on_a_new_one(
    make_mosquitto: MakeBroker, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """A message that was not acknowledged over its own connection comes again."""
    broker = make_mosquitto(persistence=True)
    client = make_client(broker.url, "in/#", hold=True).up()
    make_subscriber(broker.port).publish("in/x", b"precious")
    client.until(lambda: len(client.messages) == 1, "the message")
    old = client.messages[0].receipt
    assert old is not None
    for count in (2, 3):
        wrapped = client.path.wrapped
        wrapped._wrapped.shutdown(socket.SHUT_RDWR)
        client.until(lambda: not client.connection.connected, "the loss")
        client.up()
        client.until(lambda count=count: len(client.messages) >= count, "the message again")  # type: ignore[misc]
        if count == 2:
            old.release()
            for _ in range(5):
                client.loop.run_once(0.02)
    newest = client.messages[-1].receipt
    assert newest is not None
    newest.release()
    client.until(lambda: not client.path.owed, "the acknowledgement")
    client.connection.stop()
    again = make_client(broker.url, "in/#").up()
    make_subscriber(broker.port).publish("in/y", b"next")
    again.until(lambda: again.messages, "the next message")
    assert [message.payload for message in again.messages] == [b"next"]


def test_acknowledgements_go_in_the_order_of_arrival(
    mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """A later message that is done earlier waits for the ones before it."""
    client = make_client(mosquitto.url, "in/#", hold=True).up()
    other = make_subscriber(mosquitto.port)
    for number in range(3):
        other.publish("in/x", b"%d" % number)
    client.until(lambda: len(client.messages) == 3, "the messages")
    receipts = [message.receipt for message in client.messages]
    for index in (2, 1):
        receipt = receipts[index]
        assert receipt is not None
        receipt.release()
    assert len(client.path.owed) == 3
    first = receipts[0]
    assert first is not None
    first.release()
    assert not client.path.owed


@pytest.mark.parametrize("clean", [True, False])
def test_the_will_is_for_those_who_vanish(
    clean: bool, mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """A clean stop says goodbye, and what was published before it arrives; a broken link has the will published."""
    other = make_subscriber(mosquitto.port, "status", "last")
    client = make_client(mosquitto.url, will=Will("status", b"offline")).up()
    client.connection.publish("last", b"words", qos=1, outcome=None)
    if clean:
        client.connection.stop()
    else:
        client.connection.poke()
        wrapped = client.path.wrapped
        wrapped._wrapped.shutdown(socket.SHUT_RDWR)
    assert other.wait_for(1, "last")[0].payload == b"words"
    if not clean:
        assert other.wait_for(1, "status")[0].payload == b"offline"
    else:
        make_subscriber(mosquitto.port).publish("last", b"mark")
        other.wait_for(2, "last")
        assert not other.on("status")


@pytest.mark.parametrize("closes", [True, False])
def test_a_clean_stop_is_not_reset_by_what_is_unread(
    closes: bool, make_server: Any, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last words and the goodbye arrive though the broker is still sending; a broker that never closes is left."""
    monkeypatch.setattr("edge_runtime.mqtt.hot_path.GOODBYE_TIMEOUT_S", 10.0 if closes else 0.2)
    flooded, stopping, heard = threading.Event(), threading.Event(), threading.Event()
    received = bytearray()

    def treat(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"\x20\x02\x00\x00")  # CONNACK, accepted
        connection.sendall(b"\x30\x06\x00\x01tabc" * 20_000)  # PUBLISH, QoS 0
        flooded.set()
        stopping.wait(patient(20))
        with contextlib.suppress(TimeoutError):
            connection.settimeout(0.5)
            while data := connection.recv(4096):  # a reset would raise here
                received.extend(data)
        heard.set()
        if not closes:
            time.sleep(1.0)
        connection.close()

    client = make_client(make_server(treat).url)
    client.until(lambda: client.connection.connected, "the connection")
    flooded.wait(patient(20))
    assert client.connection.publish("status", b"offline", qos=0, outcome=None)
    stopping.set()
    client.connection.stop()
    assert heard.wait(patient(20))
    assert bytes(received).endswith(b"\x30\x0f\x00\x06statusoffline\xe0\x00")


def test_a_topic_that_no_broker_takes_is_refused_and_does_no_harm(
    mosquitto: Mosquitto, make_client: MakeClient
) -> None:
    """A wildcard in a topic is refused at once, as an acknowledgement would be."""
    client = make_client(mosquitto.url).up()
    outcomes: list[bool] = []
    assert client.connection.publish("a/+/b", b"", qos=1, outcome=outcomes.append)
    client.until(lambda: outcomes, "the refusal")
    assert outcomes == [False]
    assert client.connection.connected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_packet_ids_begin_again_and_pass_over_those_in_use(
    protocol: str, mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """After 65,535 comes the first of ours, and an id that the broker still holds is not given twice."""
    other = make_subscriber(mosquitto.port, "out/#")
    client = make_client(mosquitto.url, protocol=protocol).up()
    connection = client.connection
    client.path.last_id = hot_packets.LAST_ID - 5
    client.path.outcomes[hot_packets.FIRST_ID + 1] = lambda _ok: None
    outcomes: list[bool] = []
    for number in range(20):
        connection.publish("out/x", b"%d" % number, qos=1, outcome=outcomes.append)
    assert client.path.in_flight == 21
    client.until(lambda: len(outcomes) == 20, "twenty acknowledgements")
    assert list(client.path.outcomes) == [hot_packets.FIRST_ID + 1]
    assert client.path.last_id == hot_packets.FIRST_ID + 15, "five up to the last, and fifteen without the one in use"
    assert [message.payload for message in other.wait_for(20)] == [b"%d" % n for n in range(20)]


def test_messages_with_properties_keep_their_place_among_those_without(
    mosquitto: Mosquitto, make_client: MakeClient
) -> None:
    """Those with properties are paho's, those without go past it; order, receipts and acknowledgements are one."""
    sender = make_client(mosquitto.url, protocol="5", client_id="edge-test-sender").up()
    client = make_client(mosquitto.url, "in/#", protocol="5").up()
    outcomes: list[bool] = []
    for number in range(15):
        properties = None
        if number % 3:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = ("number", str(number))
        sender.connection.publish("in/x", b"%d" % number, qos=1, outcome=outcomes.append, properties=properties)
    sender.until(lambda: outcomes == [True] * 15, "the sender's acknowledgements")
    client.until(lambda: len(client.messages) == 15, "all of them")
    assert [message.payload for message in client.messages] == [b"%d" % n for n in range(15)]
    found = [getattr(message.properties, "UserProperty", None) for message in client.messages]
    assert found == [[("number", str(n))] if n % 3 else None for n in range(15)]
    assert all(message.receipt is not None for message in client.messages)
    client.until(lambda: not client.path.owed, "every acknowledgement to be given")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_retained_message_says_so(protocol: str, mosquitto: Mosquitto, make_client: MakeClient) -> None:
    """Retained messages are distinguished from what is sent now."""
    sender = make_client(mosquitto.url, protocol=protocol, client_id="edge-test-sender").up()
    outcomes: list[bool] = []
    sender.connection.publish("kept", b"old", qos=1, retain=True, outcome=outcomes.append)
    sender.until(lambda: outcomes, "the acknowledgement")
    client = make_client(mosquitto.url, "kept", protocol=protocol).up()
    client.until(lambda: client.messages, "the retained message")
    sender.connection.publish("kept", b"new", qos=1, retain=True, outcome=outcomes.append)
    sender.until(lambda: len(outcomes) == 2, "the second acknowledgement")
    client.until(lambda: len(client.messages) == 2, "the new message")
    assert [(message.payload, message.retained) for message in client.messages] == [(b"old", True), (b"new", False)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_session_that_another_client_takes_over_is_taken_back_more_and_more_slowly(
    protocol: str, mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """Two devices with one client id throw each other out; neither does so without a pause."""
    client = make_client(mosquitto.url, "in/#", protocol=protocol, reconnect_min=0.01, reconnect_max=60.0).up()
    for turn in range(1, 5):
        rival = make_subscriber(mosquitto.port, client_id="edge-test")
        client.until(lambda: not client.connection.connected, "the loss to be noticed")
        rival.close()
        assert client.connection._attempts == turn, "a link that did not last does not shorten the next pause"
        client.up()
    assert client.counters.errors == {"disconnected": 4}
    if protocol == "3.1.1":  # mosquitto 2.0 closes without a word: the first time may have any cause
        named = [state for state in client.states if "another client of this broker probably uses" in state]
        assert named
        assert all(state.endswith("the client id 'edge-test' too, give each a client_id of its own") for state in named)
        assert "probably" not in next(state for state in client.states if "closed the connection" in state)


def test_why_a_broker_ends_the_connection_is_said(make_server: Any, make_client: MakeClient) -> None:
    """MQTT 5 has words for it, which the state shows (mosquitto 2.0 keeps them to itself)."""

    def treat(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"\x20\x03\x00\x00\x00")  # CONNACK, accepted
        connection.sendall(b"\xe0\x02\x8e\x00")  # DISCONNECT, session taken over
        connection.close()

    client = make_client(make_server(treat).url, protocol="5")
    client.until(lambda: client.counters.errors["disconnected"] >= 2, "two losses")
    assert any("ended the connection: Session taken over; next attempt" in state for state in client.states)
    hint = "another client of this broker probably uses the client id 'edge-test' too, give each a client_id of its own"
    assert any(state.endswith(hint) for state in client.states)


@pytest.mark.parametrize("qos", [0, 1])
def test_a_message_that_is_far_too_long_is_passed_over(
    qos: int, mosquitto: Mosquitto, make_client: MakeClient, make_subscriber: MakeSubscriber
) -> None:
    """It is counted, acknowledged and never kept; its neighbours arrive in order, over the same connection."""
    client = make_client(mosquitto.url, "in/#", qos=qos)
    client.connection._most_bytes = 200_000
    client.up()
    other = make_subscriber(mosquitto.port)
    for number in range(10):
        other.publish("in/x", b"%d" % number, qos=qos)
        if number in {3, 4, 7}:
            other.publish("in/long", bytes(5_000_000), qos=qos)
    held = []

    def all_there() -> bool:
        wrapped = client.path.wrapped
        held.append(len(wrapped._partial))
        return len(client.messages) == 10 and client.counters.rejected["too_long"] == 3

    client.until(all_there, "ten messages and three that are passed over")
    assert [message.payload for message in client.messages] == [b"%d" % n for n in range(10)]
    assert max(held) < 200_000
    client.until(lambda: not client.path.owed, "every acknowledgement to be given")
    other.flush()
    assert client.counters.counts["connects"] == 1


def test_a_message_beyond_what_the_broker_takes_is_refused_by_us(
    make_mosquitto: MakeBroker, make_client: MakeClient
) -> None:
    """MQTT 5 says what it takes; sending more would cost the connection, again and again."""
    client = make_client(make_mosquitto(extra="max_packet_size 1000").url, protocol="5").up()
    outcomes: list[bool] = []
    for size in (2000, 100):
        client.connection.publish("t", bytes(size), qos=1, outcome=outcomes.append)
    client.until(lambda: len(outcomes) == 2, "both to be settled")
    assert sorted(outcomes) == [False, True]
    assert client.counters.errors == {"publish_refused": 1}


def test_a_handshake_that_drips_is_given_up(
    make_server: Any, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that sends a byte now and then keeps within every time-out, and ends with the attempt as a whole."""
    monkeypatch.setattr(connection_module, "CONNECT_PATIENCE_S", 0.5)
    done = threading.Event()

    def drip(connection: socket.socket) -> None:
        def run() -> None:
            with contextlib.suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of TLS that never ends
                while not done.wait(0.02):
                    connection.sendall(b"\x00")

        threading.Thread(target=run, daemon=True).start()

    server = make_server(drip)
    client = make_client(server.url.replace("mqtt:", "mqtts:"))
    try:
        client.until(lambda: server.accepted >= 3, "three attempts")
    finally:
        done.set()
    assert client.counters.errors["connect_failed"] >= 2
