"""The edge node over a link that a test holds: births, numbers, what waits, and what is asked of it."""

from typing import Any, cast

import pytest

from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.sparkplug import node as node_module
from edge_runtime.sparkplug.metrics import device_name
from edge_runtime.sparkplug.node import EdgeNode
from edge_runtime.sparkplug.wire import REBIRTH, Metric
from edge_runtime.system.counters import Counters
from tests.support.sparkplug_reader import command, read, values
from tests.support.stepped import SteppedLoop


class _Link:
    """Stands in for the connection: up or down, with room or without."""

    def __init__(self) -> None:
        self.ready = False
        self.state = "connecting"
        self.has_room = True
        self.sent: list[tuple[str, bytes]] = []
        self.on_change: list[Any] = []
        self.filters: list[str] = []
        self.handler: Any = None

    def subscribe(self, filters: list[str], qos: int, handler: Any) -> None:
        """As of a connection."""
        assert qos == 1
        self.filters, self.handler = filters, handler

    def publish(self, topic: str, payload: bytes, *, qos: int, outcome: None, retain: bool = False) -> bool:
        """Kept, unless there is no room; Sparkplug wants QoS 0 and nothing retained."""
        assert (qos, retain, outcome) == (0, False, None)
        if not (self.ready and self.has_room):
            return False
        self.sent.append((topic, payload))
        return True

    def up(self, *, is_up: bool = True) -> None:
        """The link came up, or went down."""
        self.ready = is_up
        for listener in self.on_change:
            listener()


class Bench:
    """A node with everything around it."""

    def __init__(self) -> None:
        self.loop, self.link, self.counters = SteppedLoop(), _Link(), Counters()
        self.node = EdgeNode("plant", "press", self.loop.as_loop, self.counters, wall=lambda: 1000.0)
        self.node.attach(cast("AnyConnection", self.link))

    def connect(self) -> dict[str, Any]:
        """A session begins: its last will."""
        will = self.node.will()
        assert (will.topic, will.retain) == ("spBv1.0/plant/NDEATH/press", False)
        self.link.up()
        return read(will.payload)

    def kinds(self) -> list[str]:
        """What was sent, as its type and device."""
        found = [topic.removeprefix("spBv1.0/plant/").replace("/press", "") for topic, _ in self.link.sent]
        assert all(topic.startswith("spBv1.0/plant/") for topic, _ in self.link.sent)
        return found

    def numbers(self) -> list[int | None]:
        """Their `seq`."""
        return [read(payload)["seq"] for _, payload in self.link.sent]

    def ask(self, payload: bytes) -> None:
        """A command comes."""
        message = Message(b"spBv1.0/plant/NCMD/press", payload, None)
        self.link.handler([message])
        assert message.claimed


def metrics(score: float, label: str = "ok") -> list[Metric]:
    """Those of a prediction."""
    return [Metric("score", score, 7), Metric("label", label, 7)]


def test_births_come_before_data_and_numbers_have_no_gap() -> None:
    """NBIRTH with 0 and the number of the will; each device is born before its first data; 255 is followed by 0."""
    bench = Bench()
    will = bench.connect()
    assert bench.link.filters == ["spBv1.0/plant/NCMD/press"]
    for number in range(300):
        bench.node.take("m" if number % 2 else "m:k", metrics(number))
    kinds = bench.kinds()
    assert kinds[:5] == ["NBIRTH", "DBIRTH/m:k", "DDATA/m:k", "DBIRTH/m", "DDATA/m"]
    assert set(kinds[5:]) == {"DDATA/m:k", "DDATA/m"}
    assert bench.numbers() == [number % 256 for number in range(303)]
    born = read(bench.link.sent[0][1])["metrics"]
    assert born["bdSeq"]["value"] == will["metrics"]["bdSeq"]["value"] == 0
    assert born[REBIRTH]["value"] is False
    assert (will["seq"], list(will["metrics"])) == (None, ["bdSeq"])
    assert values(bench.link.sent[1][1]) == {"score": 0.0, "label": "ok"}


def test_a_new_session_has_the_next_number_and_what_waited_is_historical() -> None:
    """In order, behind the births, which hold the last values; live data follows as live."""
    bench = Bench()
    bench.connect()
    bench.node.take("m", metrics(1))
    bench.link.up(is_up=False)
    bench.node.take("m", metrics(2))
    bench.node.take("other", metrics(3))
    bench.link.sent.clear()
    will = bench.connect()
    bench.node.take("m", metrics(4))
    assert will["metrics"]["bdSeq"]["value"] == 1
    assert values(bench.link.sent[0][1])["bdSeq"] == 1
    assert bench.kinds() == ["NBIRTH", "DBIRTH/m", "DDATA/m", "DBIRTH/other", "DDATA/other", "DDATA/m"]
    assert bench.numbers() == list(range(6))
    late = [read(payload)["metrics"]["score"] for topic, payload in bench.link.sent if "DDATA" in topic]
    assert [(each["value"], each["historical"]) for each in late] == [(2, True), (3, True), (4, False)]
    assert values(bench.link.sent[1][1])["score"] == 1


def test_the_number_of_sessions_wraps() -> None:
    """A byte, as Sparkplug has it."""
    bench = Bench()
    found = [values(bench.node.will().payload)["bdSeq"] for _ in range(258)]
    assert found == [*range(256), 0, 1]


def test_metrics_that_change_are_born_again() -> None:
    """Another bundle with other labels: a new DBIRTH before the data."""
    bench = Bench()
    bench.connect()
    bench.node.take("m", metrics(1))
    bench.node.take("m", [Metric("score", 2.0, 7), Metric("scores/new", 2.0, 7)])
    bench.node.take("m", [Metric("score", 3.0, 7), Metric("scores/new", 3.0, 7)])
    assert bench.kinds() == ["NBIRTH", "DBIRTH/m", "DDATA/m", "DBIRTH/m", "DDATA/m", "DDATA/m"]


def test_a_rebirth_is_a_whole_birth_and_many_commands_are_one() -> None:
    """With the same session's number and `seq` from 0; a command that asks for something else is counted."""
    bench = Bench()
    bench.connect()
    bench.node.take("m", metrics(1))
    bench.link.sent.clear()
    for _ in range(100):
        bench.ask(command(REBIRTH, value=True))
    bench.loop.advance(node_module.REBIRTH_S)
    assert bench.kinds() == ["NBIRTH", "DBIRTH/m"]
    assert bench.numbers() == [0, 1]
    assert values(bench.link.sent[0][1])["bdSeq"] == 0
    bench.ask(b"\xff\xfe")
    bench.ask(command(REBIRTH, value=False))
    bench.loop.advance(5)
    assert len(bench.link.sent) == 2
    assert bench.counters.errors["unknown_command"] == 2
    assert bench.counters.counts["rebirths"] == 1


def test_a_message_without_room_takes_no_number_and_is_sent_later() -> None:
    """In order; nothing is missing afterwards."""
    bench = Bench()
    bench.connect()
    bench.node.take("m", metrics(1))
    bench.link.has_room = False
    bench.node.take("m", metrics(2))
    bench.node.take("n", metrics(3))
    bench.link.has_room = True
    bench.loop.advance(node_module.RETRY_S)
    assert bench.kinds() == ["NBIRTH", "DBIRTH/m", "DDATA/m", "DDATA/m", "DBIRTH/n", "DDATA/n"]
    assert bench.numbers() == list(range(6))


def test_what_waits_is_bounded_and_the_oldest_go_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is away for a day costs a bounded memory."""
    monkeypatch.setattr(node_module, "MOST_WAITING", 10)
    monkeypatch.setattr(node_module, "MOST_DEVICES", 2)
    bench = Bench()
    for number in range(25):
        bench.node.take("m", metrics(number))
    bench.connect()
    data = [read(payload)["metrics"]["score"]["value"] for topic, payload in bench.link.sent if "DDATA" in topic]
    assert data == list(range(15, 25))
    assert bench.counters.dropped == {"sparkplug_full": 15}
    for name in ("n", "o", "p"):
        bench.node.take(name, metrics(1))
    assert bench.counters.dropped == {"sparkplug_full": 15, "sparkplug_devices": 2}


def test_a_model_that_is_gone_takes_its_devices_along() -> None:
    """DDEATH for each of its keys, and for no device of another model."""
    bench = Bench()
    bench.connect()
    for device in ("m", "m:k", "mm", "m%3Ak"):
        bench.node.take(device, metrics(1))
    bench.link.sent.clear()
    bench.node.forget_model("m")
    assert bench.kinds() == ["DDEATH/m", "DDEATH/m:k"]
    assert read(bench.link.sent[0][1])["metrics"] == {}
    bench.link.up(is_up=False)
    bench.link.sent.clear()
    bench.connect()
    assert bench.kinds() == ["NBIRTH", "DBIRTH/mm", "DBIRTH/m%3Ak"]


def test_a_clean_end_is_a_death_of_its_own() -> None:
    """The broker sends no last will behind a DISCONNECT."""
    bench = Bench()
    bench.connect()
    bench.node.end()
    assert bench.kinds() == ["NBIRTH", "NDEATH"]
    death = read(bench.link.sent[1][1])
    assert (death["seq"], death["metrics"]["bdSeq"]["value"]) == (None, 0)


def test_no_two_models_and_keys_are_one_device() -> None:
    """And each is one level of a topic."""
    pairs = [
        ("a", None),
        ("a", "b"),
        ("a:b", None),
        ("a", "b/c"),
        ("a", "b%2Fc"),
        ("a", "+"),
        ("a", ":"),
        ("a%3Ab", None),
    ]
    names = [device_name(model, key) for model, key in pairs]
    assert len(set(names)) == len(pairs)
    assert not any(set("/+#") & set(name) for name in names)
