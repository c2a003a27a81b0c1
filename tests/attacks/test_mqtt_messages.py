"""Messages and brokers that stopped a device; each is counted, named or held back, and what is honest goes on."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from edge_runtime.config.tables import BrokerTable
from edge_runtime.delivery import outbox as outbox_module
from edge_runtime.delivery.outbox import PRIORITY_ROUTINE, Outbox
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.delivery.rows import NewRow
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.conftest import MakeSubscriber
from tests.support.broker import Mosquitto
from tests.support.fake_broker import FakeBroker, Mode
from tests.support.tables import table
from tests.support.waiting import Deadline, patient

MAX_MEMORY = 1 << 20


class _Device:
    """A connection upstream with an outbox, and perhaps a source's connection, on one loop."""

    def __init__(self, url: str, outbox_path: Path | None = None, **settings: Any) -> None:
        self.loop, self.counters = Loop(), Counters()
        self.is_closed = False
        self.upstream = self.connect(url, "edge-d", **settings)
        store = None
        if outbox_path is not None:
            store = OutboxThread(OutboxFile(outbox_path, 1 << 26, 1e9), self.loop.call_soon_threadsafe)
        self.store = store
        self.outbox = Outbox(
            self.loop,
            self.counters,
            store=store,
            commit_interval=0.1,
            max_memory_bytes=MAX_MEMORY,
            unsendable=self.upstream.unsendable,
        )
        self.outbox.attach(self.upstream)
        self.upstream.on_change.append(self.outbox.link_changed)

    def connect(self, url: str, client_id: str, **settings: Any) -> Connection:
        """A connection to another broker."""
        pauses = {"reconnect_min": 0.05, "reconnect_max": 0.2}
        return Connection(
            msgspec.convert({"url": url} | pauses | settings, BrokerTable),
            name=client_id,
            client_id=client_id,
            password=lambda: None,
            loop=self.loop,
            counters=self.counters,
        )

    def offer(self, number: int, topic: str, receipt: Receipt | None = None, size: int = 10) -> None:
        """One prediction."""
        self.outbox.offer(
            topic, topic, b'{"n":%d,"x":"%b"}' % (number, b"x" * size), priority=PRIORITY_ROUTINE, receipt=receipt
        )

    def until(self, condition: Callable[[], object], what: str, deadline: float = 20.0) -> None:
        """Serve the loop until the condition holds."""
        end = Deadline(deadline)
        while not condition():
            assert not end.over, f"{what}: {self.upstream.state}; {self.counters.errors}"
            self.loop.run_once(0.02)

    def close(self) -> None:
        """End it; harmless when it has ended."""
        if self.is_closed:
            return
        self.is_closed = True
        self.upstream.stop()
        if self.store is not None:
            self.store.stop(10)
        self.loop.close()


@pytest.fixture
def make_device() -> Iterator[Callable[..., _Device]]:
    """`make_device(url, outbox_path)`."""
    made: list[_Device] = []

    def make(*arguments: Any, **named: Any) -> _Device:
        made.append(_Device(*arguments, **named))
        return made[-1]

    yield make
    for device in made:
        device.close()


MakeDevice = Callable[..., _Device]


@pytest.mark.parametrize(
    "key",
    [
        b"k" * 65_530,
        b"k" * 201,
        b"a\x01b",
        b"\x7f",
        "a\x85b".encode(),
        "\ufffe".encode(),
        "\U0001ffff".encode(),
        b"",
        "\ufdd0".encode(),
    ],
    ids=repr,
)
def test_a_key_in_a_topic_obeys_the_rules_of_a_key_in_a_payload(key: bytes) -> None:
    """What could stand in no topic of ours is no key: the reading is acknowledged, counted as `bad_key`, and named."""
    handlers: list[Callable[[list[Message]], None]] = []

    class Line:
        ready, state = True, "connected"

        def subscribe(self, _filters: list[str], _qos: int, handler: Any, *, most_bytes: int) -> None:
            handlers.append(handler)

    batches: list[Batch] = []
    counters = Counters()
    MqttSource(
        table(MqttSourceTable, name="s", topics=["s/{key}"]),
        ("t",),
        None,
        connection=cast("Connection", Line()),
        sink=batches.append,
        counters=counters,
    )
    released: list[int] = []
    messages = [Message(b"s/" + each, b'{"t":1}', Receipt(lambda: released.append(1))) for each in (key, b"good")]
    handlers[0](messages)
    for message in messages:
        assert message.claimed
        assert message.receipt is not None
        message.receipt.release()
    assert [batch.keys for batch in batches] == [["good"]]
    assert counters.rejected == {"bad_key": 1}
    assert len(released) == 2


@pytest.mark.parametrize(
    "topic", ["edge/d/m/" + "k" * 65_530, "edge/d/m/a\x01b", "edge/d/+/x", "edge/d/m/\x7f"], ids=len
)
@pytest.mark.parametrize("with_disk", [False, True])
def test_a_topic_that_no_broker_takes_is_set_aside_and_holds_up_no_other(
    topic: str,
    with_disk: bool,
    mosquitto: Mosquitto,
    make_subscriber: MakeSubscriber,
    make_device: MakeDevice,
    tmp_path: Path,
) -> None:
    """In memory as on disk, also as a row of an older release: it goes to the quarantine, and is never in the way."""
    other = make_subscriber(mosquitto.port, "edge/#")
    path = tmp_path / "outbox.db"
    if with_disk:
        file = OutboxFile(path, 1 << 26, 1e9)
        file.open()
        file.commit([NewRow(topic, 1, time.time(), topic, b'{"n":-1}')], ())
        file.close()
    device = make_device(mosquitto.url, path if with_disk else None)
    device.upstream.start()
    poisons = 1 if with_disk else 0
    for number in range(200):
        if number % 50 == 0:
            device.offer(number, topic)
            poisons += 1
        device.offer(number, f"edge/d/m/{number % 8}")
        device.loop.run_once(0.0)
    device.until(lambda: len(other.messages) >= 200 and not device.outbox.queued, "all the others")
    assert len({message.payload for message in other.messages}) == 200
    device.until(lambda: device.outbox.quarantine.count == poisons, "the quarantine")
    assert device.counters.dropped == {"unsendable": poisons}
    assert device.counters.counts["connects"] == 1
    assert "expected a topic" in device.outbox.quarantine.last[-1]["why"]
    device.outbox.drain()
    device.until(lambda: device.outbox.is_safe, "the last commit")
    device.close()
    if with_disk:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            kept = connection.execute("SELECT topic, why FROM quarantine").fetchall()
            assert connection.execute("SELECT count(*) FROM entry").fetchone() == (0,)
        assert len(kept) == poisons
        assert all(found == topic and why for found, why in kept)
        again = make_device(mosquitto.url, path)
        again.until(lambda: again.outbox.quarantine.count == poisons, "the number after a restart")


def test_the_quarantine_is_bounded(tmp_path: Path) -> None:
    """It keeps the newest; ten thousand poisons fill neither the disk nor the room of predictions."""
    from edge_runtime.delivery.rows import SetAside  # noqa: PLC0415 - of this test alone

    file = OutboxFile(tmp_path / "outbox.db", 1 << 20, 1e9)
    file.open()
    for number in range(100):
        file.set_aside([SetAside("s", 1.0, f"t/{number}/{each}", bytes(200), "why") for each in range(100)], ())
    with contextlib.closing(sqlite3.connect(tmp_path / "outbox.db")) as connection:
        rows = connection.execute("SELECT topic, length(payload) FROM quarantine ORDER BY id").fetchall()
    assert rows[-1] == ("t/99/99", 200)
    assert sum(size + 64 for _, size in rows) <= (1 << 20) // 50
    assert len(rows) > 10
    file.close()
    assert file.open().quarantined == len(rows)


@pytest.mark.parametrize("protocol", ["3.1.1", "5"])
@pytest.mark.parametrize("size", [20, 6_000, 60_000])
def test_readings_of_qos_1_fill_no_more_memory_than_is_allowed(
    protocol: str, size: int, make_device: MakeDevice
) -> None:
    """With the upstream away and no disk, the network holds a source back that sends without end; nothing is lost."""
    source_broker = FakeBroker(Mode())
    upstream_broker = FakeBroker(Mode())
    url = upstream_broker.url
    device = make_device("mqtt://127.0.0.1:1")
    source = device.connect(source_broker.url, "edge-d-source", protocol=protocol)
    device.outbox.on_full.append(lambda full: source.hold(held=full))
    taken: list[int] = []

    def predict(messages: list[Message]) -> None:
        for message in messages:
            message.claimed = True
            taken.append(int(message.payload[:10]))
            if message.receipt is not None:
                message.receipt.hold()
            device.offer(taken[-1], "edge/d/m/-", message.receipt, size=len(message.payload))

    source.subscribe(["in/#"], 1, predict)
    source.start()
    device.until(lambda: source.ready, "the source")
    client = source_broker.present
    assert client is not None

    def flood() -> None:
        with contextlib.suppress(OSError):  # the test is over
            for number in range(1, 60_000):
                client.publish(b"in/x", b"%010d" % number + b"x" * size, number)

    flooding = threading.Thread(target=flood)
    flooding.start()
    highest = 0
    began = time.monotonic()
    while time.monotonic() - began < 3.0:
        device.loop.run_once(0.01)
        highest = max(highest, device.outbox.memory_bytes)
    assert highest <= MAX_MEMORY, "the bound is what it says"
    assert highest > MAX_MEMORY // 4
    held = len(taken)
    assert device.counters.dropped == {}
    device.upstream.stop()
    device.upstream = device.connect(url, "edge-d", protocol=protocol)
    device.outbox.attach(device.upstream)
    device.upstream.on_change.append(device.outbox.link_changed)
    device.upstream.start()
    device.until(lambda: len(upstream_broker.published) >= held, "what was held")
    device.until(lambda: len(taken) > held, "that the source goes on")
    source.stop()
    source_broker.close()
    flooding.join(patient(10))
    device.upstream.stop()
    upstream_broker.close()


def test_every_message_of_qos_1_counts_against_the_receive_maximum(make_device: MakeDevice) -> None:
    """100 predictions beside status, models, health and answers, ten in flight at the most: one connection."""
    broker = FakeBroker(Mode(properties=b"\x21\x00\x0a", receive_maximum=10, ack_delay_s=0.15))
    device = make_device(broker.url, protocol="5")
    device.upstream.start()
    device.until(lambda: device.upstream.connected, "the connection")
    for number in range(100):
        device.offer(number, f"edge/d/m/{number % 5}")
        device.upstream.publish("edge/d/health", b"{}", qos=1, outcome=None)
    device.until(lambda: len(broker.published) == 200, "everything")
    assert broker.violations == []
    assert broker.connects == 1
    device.upstream.stop()
    broker.close()


def test_what_the_device_says_of_itself_is_bounded_where_a_broker_acknowledges_nothing(make_device: MakeDevice) -> None:
    """Health goes on against a broker without acknowledgements: memory stays level, the newest status waits."""
    broker = FakeBroker(Mode(properties=b"\x21\x00\x02", on_publish=lambda _client, _found: True))
    device = make_device(broker.url, protocol="5")
    device.upstream.start()
    device.until(lambda: device.upstream.connected, "the connection")
    for number in range(5_000):
        device.upstream.publish("edge/d/health", bytes(1000), qos=1, outcome=None)
        device.upstream.publish("edge/d/status", b"%d" % number, qos=1, retain=True, outcome=None)
    path = device.upstream._path
    assert path is not None
    assert len(path.queue) <= 256
    assert [each.payload for each in path.queue.waiting if each.retain] == [b"4999"]
    assert device.counters.dropped["send_queue_full"] > 4_000
    device.upstream.stop()
    broker.close()


def test_one_denied_topic_of_eight_with_mosquittos_access_list(
    make_mosquitto: Any, make_subscriber: MakeSubscriber, make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MQTT 5, memory only: 1,140 predictions of the other seven arrive, whatever becomes of the eighth."""
    monkeypatch.setattr(outbox_module, "REFUSED_FIRST_S", 0.2)
    broker = make_mosquitto(users={"d": "d", "s": "s"}, acl="user d\ntopic write edge/d/open/#\nuser s\ntopic read #\n")
    other = make_subscriber(broker.port, "edge/#", login=("s", "s"))
    device = make_device(broker.url, protocol="5", username="d")
    device.upstream._password = lambda: "d"
    device.upstream.start()
    held: list[int] = []
    for number in range(1300):
        topic = "edge/d/denied/x" if number % 8 == 0 else f"edge/d/open/{number % 8}"
        held.append(1)
        receipt = Receipt(held.pop)
        receipt.hold()
        device.offer(number, topic, receipt)
        receipt.release()
        device.loop.run_once(0.0)
    wanted = sum(1 for number in range(1300) if number % 8)
    device.until(lambda: len({message.payload for message in other.messages}) == wanted, "all of the other seven")
    device.until(lambda: not held, "every reading to be released")
