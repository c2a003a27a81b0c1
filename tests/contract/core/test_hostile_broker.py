"""A conformance suite: outbox and connection against a broker that behaves badly in one way at a time.

In every mode all predictions are delivered in the order of their streams, no rule of the protocol is broken by us, and
what is unusual is named. `docs/brokers.md` has the modes as a table; a test holds it to the list that stands here.
"""

import contextlib
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.config.tables import BrokerTable
from edge_runtime.delivery import outbox as outbox_module
from edge_runtime.delivery.outbox import PRIORITY_ROUTINE, Outbox
from edge_runtime.mqtt import connection as connection_module
from edge_runtime.mqtt import subscriptions as subscriptions_module
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message, Will
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.fake_broker import (
    AUTH,
    CONNACK,
    PUBACK,
    PUBLISH,
    SUBACK,
    Client,
    FakeBroker,
    Mode,
    Published,
    packet,
    text,
)
from tests.support.waiting import Deadline

STREAMS, COUNT = 4, 40
STATUS = "edge/d/status"


@dataclass
class _Rig:
    """A connection and an outbox without a disk, on a loop of their own."""

    broker: FakeBroker
    connection: Connection
    outbox: Outbox
    loop: Loop
    counters: Counters
    states: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def until(self, condition: Callable[[], object], what: str, deadline: float = 10.0) -> None:
        """Serve the loop until the condition holds.

        Raises:
            AssertionError: it does not.
        """
        end = Deadline(deadline)
        while not condition():
            assert not end.over, f"{what}: {self.connection.state}; {self.counters.errors}"
            self.loop.run_once(0.02)

    def offer(self, first: int = 0, count: int = COUNT, size: int = 0) -> None:
        """Predictions of several streams, numbered."""
        for number in range(first, first + count):
            payload = b'{"n":%d%b}' % (number, b',"x":"%b"' % (b"x" * size) if size else b"")
            stream = f"m/{number % STREAMS}"
            self.outbox.offer(stream, f"edge/d/{stream}", payload, priority=PRIORITY_ROUTINE, receipt=None)

    def delivered(self) -> list[int]:
        """The numbers that the broker has acknowledged, each once."""
        return _numbers(self.broker.published)

    def arrived(self) -> list[int]:
        """All numbers, each once, in the order of its first arrival."""
        return _numbers(self.broker.seen)


MakeRig = Callable[..., _Rig]


@pytest.fixture
def make_rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRig]:
    """`make_rig(mode, protocol="5")`; settings of `[upstream]` by name."""
    monkeypatch.setattr(outbox_module, "REFUSED_FIRST_S", 0.05)
    monkeypatch.setattr(connection_module, "ACKS_MOST_S", 0.5)
    monkeypatch.setattr(subscriptions_module, "RETRY_FIRST_S", 0.05)
    made: list[_Rig] = []

    def make(mode: Mode, *filters: str, take: Callable[[list[Message]], None] | None = None, **table: Any) -> _Rig:
        broker = FakeBroker(mode)
        pauses = {"reconnect_min": 0.02, "reconnect_max": 0.1, "keepalive": 1}
        settings = msgspec.convert({"url": broker.url, "protocol": "5"} | pauses | table, BrokerTable)
        loop, counters = Loop(), Counters()
        connection = Connection(
            settings,
            name="upstream",
            client_id="edge-d",
            password=lambda: None,
            loop=loop,
            counters=counters,
            will=Will(STATUS, b"offline"),
        )
        outbox = Outbox(
            loop, counters, store=None, commit_interval=1.0, max_memory_bytes=1 << 20, unsendable=connection.unsendable
        )
        outbox.attach(connection)
        rig = _Rig(broker, connection, outbox, loop, counters)
        connection.on_change += [outbox.link_changed, lambda: rig.states.append(connection.state)]
        if filters:
            connection.subscribe(list(filters), 1, take or rig.messages.extend)
        connection.start()
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.connection.stop()
        rig.loop.close()
        rig.broker.close()


def _numbers(found: list[Published]) -> list[int]:
    matches = (re.match(rb'{"n":(\d+)', each.payload) for each in list(found))
    return list(dict.fromkeys(int(match[1]) for match in matches if match))


def prop(identifier: int, value: bytes) -> bytes:
    """One property."""
    return bytes([identifier]) + value


def u16(value: int) -> bytes:
    """Two bytes."""
    return struct.pack(">H", value)


def _acknowledge_with(reason: int) -> Callable[[Client, Published], bool]:
    def treat(client: Client, found: Published) -> bool:
        client.broker.published.append(found)
        if found.identifier:
            client.acknowledge(found.identifier, reason)
        return True

    return treat


def _first_times(count: int, step: Callable[[Client, Published], object]) -> Callable[[Client, Published], bool]:
    """The first so many PUBLISHes of QoS 1 are treated so, the others well."""
    left = [count]

    def treat(client: Client, found: Published) -> bool:
        if not left[0] or not found.identifier:
            return False
        left[0] -= 1
        step(client, found)
        return True

    return treat


def _refuses(reason: int) -> Mode:
    return Mode(on_publish=_first_times(6, lambda client, found: client.acknowledge(found.identifier, reason)))


def _sends_behind_the_connack(data: bytes, times: int = 2) -> Mode:
    def treat(client: Client) -> bool:
        connack = packet(CONNACK, b"\0\0" + client.properties(b""))
        client.send(connack + (data if client.number < times else b""))
        return True

    return Mode(on_connect=treat)


def _unknown_acknowledgements(client: Client, found: Published) -> bool:
    for identifier in (1, 999, 65_535):
        client.send(packet(PUBACK, u16(identifier)))
    client.broker.published.append(found)
    client.acknowledge(found.identifier)
    client.acknowledge(found.identifier)
    return True


def _out_of_order() -> Callable[[Client, Published], bool]:
    waiting: list[Published] = []
    lock = threading.Lock()

    def treat(client: Client, found: Published) -> bool:
        waiting.append(found)
        if len(waiting) == 5:
            turn(client)
        else:
            threading.Timer(0.05, turn, args=(client,)).start()
        return True

    def turn(client: Client) -> None:
        with lock:
            mine, waiting[:] = list(reversed(waiting)), []
            for each in mine:
                client.broker.published.append(each)
                with contextlib.suppress(OSError):
                    client.acknowledge(each.identifier, properties=prop(0x1F, text(b"well received")))

    return treat


def _drip(client: Client) -> bool:
    for byte in packet(CONNACK, b"\0\0" + client.properties(prop(0x21, u16(7)))):
        client.send(bytes([byte]))
        time.sleep(0.001)
    return True


def _ends_before_acknowledging(times: int) -> Callable[[Client, Published], bool]:
    return _first_times(times, lambda client, _found: client.close())


EVERYTHING = b"".join(
    [
        prop(0x11, struct.pack(">I", 60)),  # session expiry
        prop(0x21, u16(5)),  # receive maximum
        prop(0x24, b"\1"),  # maximum QoS
        prop(0x25, b"\1"),  # retain available
        prop(0x27, struct.pack(">I", 5000)),  # maximum packet size
        prop(0x12, text(b"another-id")),  # assigned client id
        prop(0x22, u16(10)),  # topic alias maximum
        prop(0x1F, text(b"welcome")),  # reason string
        prop(0x26, text(b"a") + text(b"b")),  # user property
        prop(0x28, b"\1"),  # wildcards
        prop(0x29, b"\1"),  # subscription identifiers
        prop(0x2A, b"\0"),  # shared subscriptions
        prop(0x13, u16(20)),  # server keep-alive
        prop(0x1A, text(b"answers")),  # response information
        prop(0x1C, text(b"other.example")),  # server reference
    ]
)


@dataclass(frozen=True)
class Case:
    """A mode of the table: what the device says about it, in a state or as a counter."""

    mode: Callable[[], Mode]
    says: str = ""
    counts: str = ""
    protocols: tuple[str, ...] = ("5",)


BOTH = ("3.1.1", "5")
CASES: dict[str, Case] = {
    "receive maximum 1": Case(lambda: Mode(properties=prop(0x21, u16(1)), receive_maximum=1, ack_delay_s=0.01)),
    "receive maximum 2": Case(lambda: Mode(properties=prop(0x21, u16(2)), receive_maximum=2, ack_delay_s=0.02)),
    "receive maximum 10": Case(lambda: Mode(properties=prop(0x21, u16(10)), receive_maximum=10, ack_delay_s=0.15)),
    "maximum QoS 0": Case(lambda: Mode(properties=prop(0x24, b"\0"), most_qos=0), counts="broker_takes_qos_0"),
    "no retained messages": Case(
        lambda: Mode(properties=prop(0x25, b"\0"), retains=False), counts="broker_retains_nothing"
    ),
    "maximum packet size": Case(
        lambda: Mode(properties=prop(0x27, struct.pack(">I", 200)), packet_bytes=200), counts="publish_refused"
    ),
    "every property at once": Case(lambda: Mode(properties=EVERYTHING, receive_maximum=5, packet_bytes=5000)),
    "PUBACK: unspecified error": Case(
        lambda: _refuses(0x80), "refused a message: Unspecified error", "publish_refused"
    ),
    "PUBACK: implementation specific": Case(lambda: _refuses(0x83), "Implementation specific error", "publish_refused"),
    "PUBACK: not authorized": Case(lambda: _refuses(0x87), "refused a message: Not authorized", "publish_refused"),
    "PUBACK: topic name invalid": Case(lambda: _refuses(0x90), "Topic name invalid", "publish_refused"),
    "PUBACK: packet id in use": Case(lambda: _refuses(0x91), "Packet identifier in use", "publish_refused"),
    "PUBACK: quota exceeded": Case(lambda: _refuses(0x97), "refused a message: Quota exceeded", "publish_refused"),
    "PUBACK: payload format invalid": Case(lambda: _refuses(0x99), "Payload format invalid", "publish_refused"),
    "PUBACK: a code that MQTT does not have": Case(lambda: _refuses(0xFF), "reason code 0xff", "publish_refused"),
    "PUBACK: no matching subscribers": Case(lambda: Mode(on_publish=_acknowledge_with(0x10))),
    "PUBACKs for nothing, and twice": Case(lambda: Mode(on_publish=_unknown_acknowledgements), protocols=BOTH),
    "PUBACKs in the wrong order, with properties": Case(lambda: Mode(on_publish=_out_of_order()), protocols=BOTH),
    "the end before a PUBACK": Case(lambda: Mode(on_publish=_ends_before_acknowledging(7)), protocols=BOTH),
    "DISCONNECT: server moved": Case(
        lambda: Mode(
            on_publish=_first_times(
                2,
                lambda client, _: client.disconnect(
                    0x9D, prop(0x1C, text(b"other.example")) + prop(0x1F, text(b"bye"))
                ),
            )
        ),
        "Server moved (bye) (it names another server: other.example)",
    ),
    "DISCONNECT: session taken over": Case(
        lambda: Mode(on_publish=_first_times(2, lambda client, _: client.disconnect(0x8E))), "Session taken over"
    ),
    "CONNACK: server busy, then yes": Case(
        lambda: Mode(connack=lambda n: 0x89 if n < 2 else 0), "refused the login of 'edge-d': Server busy", "refused"
    ),
    "CONNACK: quota exceeded, then yes": Case(lambda: Mode(connack=lambda n: 0x97 if n < 2 else 0), "Quota exceeded"),
    "CONNACK: byte by byte": Case(lambda: Mode(on_connect=_drip)),
    "CONNACK twice": Case(lambda: _sends_behind_the_connack(packet(CONNACK, b"\0\0\0"))),
    "AUTH without being asked": Case(lambda: _sends_behind_the_connack(packet(AUTH, b"\x18\0")), counts="disconnected"),
    "a topic alias that we did not allow": Case(
        lambda: _sends_behind_the_connack(packet(PUBLISH, text(b"") + b"\x03" + prop(0x23, u16(1)) + b"x")),
        "used a topic alias",
        "disconnected",
    ),
    "a PUBLISH of QoS 3": Case(
        lambda: _sends_behind_the_connack(packet(PUBLISH | 6, text(b"in/x") + u16(1) + b"\0x")), counts="disconnected"
    ),
    "a SUBACK for nothing": Case(lambda: _sends_behind_the_connack(packet(SUBACK, u16(77) + b"\0\x80"))),
    "no MQTT at all": Case(
        lambda: _sends_behind_the_connack(b"HTTP/1.1 400 Bad Request\r\n\r\n"), counts="disconnected", protocols=BOTH
    ),
    "half a packet, then nothing": Case(lambda: _sends_behind_the_connack(b"\x30\x7f\x00"), protocols=BOTH),
    "a session that is lost": Case(
        lambda: Mode(session=lambda _n: False, on_publish=_ends_before_acknowledging(1)), counts="session_lost"
    ),
    "SUBSCRIBE refused, later granted": Case(
        lambda: Mode(on_subscribe=lambda n, filters: [0x87 if n < 2 else 1] * len(filters)),
        "refused a subscription to 'in/#': Not authorized",
        "subscription_refused",
    ),
    "SUBSCRIBE granted at QoS 0": Case(
        lambda: Mode(on_subscribe=lambda _n, filters: [0] * len(filters)),
        counts="subscription_at_qos_0",
        protocols=BOTH,
    ),
    "SUBACK with too few answers": Case(
        lambda: Mode(on_subscribe=lambda n, filters: [1] * (len(filters) - (n < 1))), counts="subscription_refused"
    ),
}


MODES = [(name, protocol) for name, case in CASES.items() for protocol in case.protocols]


@pytest.mark.parametrize(("name", "protocol"), MODES)
def test_every_prediction_is_delivered_whatever_the_broker_does(name: str, protocol: str, make_rig: MakeRig) -> None:
    """None is lost, streams keep their order, the protocol is kept, and what is unusual is reported and counted."""
    case = CASES[name]
    rig = make_rig(case.mode(), "in/#", protocol=protocol)
    rig.offer()
    rig.until(lambda: rig.connection.connected, "the connection")
    for number in range(12):  # what the device says of itself shares the places in flight
        rig.connection.publish(STATUS, b"%d" % number, qos=1, retain=True, outcome=None)
        rig.connection.publish("edge/d/health", b"%d" % number, qos=1, outcome=None)
    rig.offer(COUNT)
    if name == "maximum packet size":
        rig.offer(2 * COUNT, 4, size=500)
    rig.until(lambda: len(rig.delivered()) == 2 * COUNT, f"all predictions, found {len(rig.delivered())}")
    rig.until(lambda: not rig.outbox.queued, "the acknowledgements")
    for stream in range(STREAMS):
        mine = [number for number in rig.arrived() if number % STREAMS == stream]
        assert mine == sorted(mine) or case.counts == "publish_refused", "a refused one is tried behind the next ones"
    assert rig.broker.violations == []
    if case.says:
        rig.until(lambda: any(case.says in state for state in [*rig.states, rig.connection.state]), case.says)
    if case.counts:
        assert rig.counters.errors[case.counts] > 0
    rig.until(lambda: rig.connection.ready, "every subscription")
    dropped = 4 if name == "maximum packet size" else 0
    assert rig.outbox.quarantine.count == rig.counters.dropped["unsendable"] == dropped
    assert rig.counters.dropped.total() == dropped


def test_a_server_keep_alive_is_kept(make_rig: MakeRig) -> None:
    """A broker that wants to hear from us more often than we had in mind does; the link stays."""
    rig = make_rig(Mode(properties=prop(0x13, u16(1))), keepalive=120)
    rig.until(lambda: rig.connection.connected, "the connection")
    rig.until(lambda: rig.broker.pings >= 3, "three packets, each after one and a half times the second", deadline=4.5)
    assert rig.broker.connects == 1
    assert rig.broker.violations == []


def test_a_ping_that_is_not_answered_ends_the_link_within_two_keep_alives_of_the_server(make_rig: MakeRig) -> None:
    """The server's keep-alive counts for finding a dead link as well."""
    rig = make_rig(Mode(properties=prop(0x13, u16(1)), answers_pings=False), keepalive=120)
    rig.until(lambda: rig.connection.connected, "the connection")
    rig.until(lambda: rig.counters.errors["disconnected"] > 0, "the loss", deadline=10)
    assert any("does not answer" in state for state in rig.states)


@pytest.mark.parametrize("protocol", BOTH)
def test_a_message_that_makes_the_broker_end_the_link_holds_up_nothing_for_good(
    protocol: str, make_rig: MakeRig
) -> None:
    """A limit that is not announced: the one message is found out, set aside and counted, all others are delivered."""

    def treat(client: Client, found: Published) -> bool:
        if len(found.payload) > 300:
            client.close()
            return True
        return False

    rig = make_rig(Mode(on_publish=treat), protocol=protocol)
    rig.until(lambda: rig.connection.connected, "the connection")
    rig.offer(0, 10)
    rig.offer(10, 1, size=500)
    rig.offer(11, 50)
    rig.until(lambda: len(rig.delivered()) == 60, "all the others")
    rig.until(lambda: rig.outbox.quarantine.count == 1, "the quarantine")
    rig.until(lambda: not rig.outbox.queued, "an empty outbox")
    assert "ended the connection" in rig.outbox.quarantine.last[0]["why"]
    assert rig.counters.dropped == {"unsendable": 1}
    connects = rig.broker.connects
    rig.offer(100, 20)
    rig.until(lambda: len(rig.delivered()) == 80, "the next ones")
    assert rig.broker.connects == connects


@pytest.mark.parametrize("protocol", BOTH)
def test_a_link_that_often_breaks_sets_nothing_aside(protocol: str, make_rig: MakeRig) -> None:
    """Sixty broken links before a PUBACK are a bad network: everything is delivered, nothing taken for a poison."""
    rig = make_rig(Mode(on_publish=_ends_before_acknowledging(60)), protocol=protocol)
    rig.offer()
    rig.until(lambda: len(rig.delivered()) == COUNT, "all predictions", deadline=120)
    assert rig.outbox.quarantine.count == 0


def test_a_topic_that_is_refused_holds_up_no_other_without_a_disk(make_rig: MakeRig) -> None:
    """One topic of four is denied for good: the readings behind it are acknowledged, and all other streams go on."""

    def deny(client: Client, found: Published) -> bool:
        if found.topic != "edge/d/m/0":
            return False
        client.acknowledge(found.identifier, 0x87)
        return True

    def predict(messages: list[Message]) -> None:
        for message in messages:
            number = int(message.payload)
            if message.receipt is not None:
                message.receipt.hold()
            stream = f"m/{number % STREAMS}"
            payload = b'{"n":%d}' % number
            rig.outbox.offer(stream, f"edge/d/{stream}", payload, priority=PRIORITY_ROUTINE, receipt=message.receipt)

    rig = make_rig(Mode(on_publish=deny), "in/#", take=predict)
    rig.until(lambda: rig.connection.ready, "the subscription")
    client = rig.broker.present
    assert client is not None
    sent = 0
    while sent < 400:
        if sent - len(rig.broker.acknowledged) < 20:  # a broker that keeps the order and a window of 20
            sent += 1
            client.publish(b"in/x", b"%d" % sent, sent)
        rig.loop.run_once(0.001)
        assert rig.outbox.memory_bytes < 1 << 20
    rig.until(lambda: len(rig.delivered()) == 300, "all of the other streams")
    rig.until(lambda: len(rig.broker.acknowledged) == 400, "every reading's acknowledgement")
    assert all(number % STREAMS for number in rig.delivered())


def test_the_last_words_of_a_stop_wait_for_their_places(make_rig: MakeRig) -> None:
    """A stop sends what is queued as places become free, the status last: nothing of it stays behind."""
    rig = make_rig(Mode(properties=prop(0x21, u16(1)), receive_maximum=1, ack_delay_s=0.02))
    rig.until(lambda: rig.connection.connected, "the connection")
    for number in range(5):
        rig.connection.publish("edge/d/health", b"%d" % number, qos=1, outcome=None)
    rig.connection.publish(STATUS, b"offline", qos=1, retain=True, outcome=None)
    rig.connection.stop()
    rig.until(lambda: rig.broker.disconnects == [0] and len(rig.broker.published) == 6, "the goodbye")
    assert [each.payload for each in rig.broker.published] == [b"0", b"1", b"2", b"3", b"4", b"offline"]
    assert rig.broker.violations == []


def test_the_table_of_modes_is_the_list_of_these_tests() -> None:
    """`docs/brokers.md` has a row for each mode, and none that is not tried."""
    page = (Path(__file__).resolve().parents[3] / "docs" / "brokers.md").read_text()
    rows = re.findall(r"^\| ([^|]+?) \|", page, re.MULTILINE)
    named = [row for row in rows if row != "the broker" and not set(row) <= {"-", ":"}]
    others = {
        "server keep-alive",
        "a ping without an answer",
        "ends the link at one message",
        "one topic of four denied",
        "an optional subscription refused",
        "ends the link at an optional subscription",
    }
    assert set(named) == set(CASES) | others


@pytest.mark.parametrize("protocol", BOTH)
def test_an_optional_subscription_that_is_refused_holds_up_nothing(protocol: str, make_rig: MakeRig) -> None:
    """Counted and reported once; the link is ready, and what is needed is asked for in a packet of its own."""
    refusal = 0x87 if protocol == "5" else 0x80

    def answer(_number: int, filters: list[bytes]) -> list[int]:
        return [refusal if each == b"own/truth" else 1 for each in filters]

    rig = make_rig(Mode(on_subscribe=answer), "in/#", protocol=protocol)
    rig.connection.subscribe(["own/truth"], 1, rig.messages.extend, optional=True)
    rig.until(lambda: rig.counters.errors["optional_subscription_refused"], "the refusal")
    rig.until(lambda: rig.connection.ready, "a link that is ready")
    assert rig.counters.errors["subscription_refused"] == 0
    assert rig.broker.subscribes == [[b"in/#"], [b"own/truth"]]


def test_a_broker_that_ends_the_link_at_an_optional_subscription_is_not_asked_again(make_rig: MakeRig) -> None:
    """As some brokers do instead of an answer: after three connections the device goes on without."""

    def answer(_number: int, filters: list[bytes]) -> list[int]:
        if b"own/truth" in filters:
            raise ConnectionAbortedError
        return [1] * len(filters)

    rig = make_rig(Mode(on_subscribe=answer), "in/#")
    rig.connection.subscribe(["own/truth"], 1, rig.messages.extend, optional=True)
    rig.offer()
    rig.until(lambda: rig.counters.errors["optional_subscription_refused"], "what is reported")
    rig.until(lambda: rig.connection.ready, "a link that stays")
    rig.until(lambda: len(rig.delivered()) == COUNT, "all predictions")
    assert rig.broker.connects == 4
