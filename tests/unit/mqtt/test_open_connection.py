"""One open connection, byte by byte: what is acknowledged and when, packet ids, a broker's limits, the last words."""

import socket
from collections.abc import Callable, Iterator
from typing import Any, cast

import paho.mqtt.client as paho
import pytest

from edge_runtime.mqtt import hot_packets, hot_path
from edge_runtime.mqtt.hot_path import HotPath
from edge_runtime.mqtt.messages import Message
from edge_runtime.mqtt.paho_client import PahoClient
from edge_runtime.mqtt.routes import Routes
from edge_runtime.mqtt.send_queue import MOST_QUEUED_BYTES, Grant, Queued, SendQueue
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

FIRST = hot_packets.FIRST_ID + 1  # the first that is given


class _Client:
    """Stands in for paho, which is left nothing to do but the goodbye."""

    on_message: object = None
    on_disconnect: object = None

    def __init__(self, wrapped: WholeSocket) -> None:
        self._wrapped = wrapped

    def want_write(self) -> bool:
        return False

    def loop_read(self) -> int:
        return int(paho.MQTT_ERR_SUCCESS)

    def socket(self) -> object:
        return self._wrapped

    def disconnect(self) -> None:
        self._wrapped.send(b"\xe0\x00")

    def loop_write(self) -> None:
        """Nothing of its own."""


class _Bench:
    """A connection, and the broker's end of it."""

    def __init__(self) -> None:
        near, self.broker = socket.socketpair()
        near.setblocking(False)
        self.broker.settimeout(0.0)
        self.loop, self.counters, self.routes = Loop(), Counters(), Routes()
        self.messages: list[Message] = []
        self.outcomes: list[bool] = []
        self.routes.set([(["in/#"], self._hold)])
        self.wrapped = WholeSocket(near)
        self.path = HotPath(
            cast("PahoClient", _Client(self.wrapped)),
            self.wrapped,
            url="mqtt://b",
            is_v5=False,
            loop=self.loop,
            counters=self.counters,
            routes=self.routes,
            heads=hot_packets.TopicHeads(),
            ack_patience=0.0,
            on_state=lambda _state: None,
            on_end=lambda _why: None,
        )
        self.path.grant = Grant(window=20)

    def _hold(self, messages: list[Message]) -> None:
        for message in messages:
            message.claimed = True
            if message.receipt is not None:
                message.receipt.hold()
        self.messages += messages

    def send(self, *numbers: int, payload: bytes = b"x") -> None:
        """The broker sends messages with these packet ids."""
        head = hot_packets.topic_head("in/a")
        for number in numbers:
            data = memoryview(hot_packets.publish(head, payload, number, retain=False, properties=b""))
            while data:
                data = data[self.broker.send(data[:30_000]) :]
                self.path.read()

    def publish(self, payload: bytes, **given: Any) -> bool:
        return self.path.publish(
            "t", payload, qos=1, retain=False, outcome=self.outcomes.append, properties=None, **given
        )

    @property
    def calls(self) -> bytes:
        """The bytes that the broker has got since the last look."""
        self.loop.run_once(0.0)
        self.path.flush()
        found = b""
        try:
            while piece := self.broker.recv(65_536):
                found += piece
        except BlockingIOError:
            return found
        return found

    def close(self) -> None:
        self.path.end()
        self.broker.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[_Bench]:
    """A connection that is up."""
    made = _Bench()
    yield made
    made.close()


def _release(bench: _Bench, *places: int) -> None:
    for place in places:
        receipt = bench.messages[place].receipt
        assert receipt is not None
        receipt.release()


def test_a_message_is_acknowledged_when_it_is_released_and_those_before_it_are(bench: _Bench) -> None:
    """MQTT 3.1.1 section 4.6: in the order of arrival; none before its own release."""
    bench.send(7, 8, 9)
    assert bench.calls == b""
    _release(bench, 1)
    assert bench.calls == b""
    _release(bench, 0)
    assert bench.calls == hot_packets.puback(7) + hot_packets.puback(8)
    _release(bench, 2)
    assert bench.calls == hot_packets.puback(9)


def test_where_windows_hold_readings_each_message_is_acknowledged_by_itself(bench: _Bench) -> None:
    """Released ones leave, and the others wait."""
    bench.path.acks_in_order = False
    bench.send(7, 8, 9)
    _release(bench, 1)
    assert bench.calls == hot_packets.puback(8)
    _release(bench, 2, 0)
    assert bench.calls == hot_packets.puback(7) + hot_packets.puback(9)


def test_a_message_that_is_far_too_long_is_acknowledged_in_its_turn(bench: _Bench) -> None:
    """Its broker would send it again at each connection; its id may need both bytes."""
    bench.wrapped.most_bytes = 70_000
    bench.send(7)
    bench.send(0x1234, payload=bytes(200_000))
    bench.send(9)
    assert [message.receipt is not None and message.receipt.number for message in bench.messages] == [7, 9]
    assert bench.counters.rejected == {"too_long": 1}
    assert bench.calls == b""
    _release(bench, 0)
    assert bench.calls == hot_packets.puback(7) + hot_packets.puback(0x1234)


@pytest.mark.parametrize("spare", [0, -1])
def test_a_message_of_the_longest_size_is_taken_and_a_byte_more_is_passed_over(bench: _Bench, spare: int) -> None:
    """The size is that of the whole packet, its header with it."""
    head = hot_packets.topic_head("in/a")
    size = len(hot_packets.publish(head, bytes(100_000), 7, retain=False, properties=b""))
    bench.wrapped.most_bytes = size + spare
    bench.send(7, payload=bytes(100_000))
    assert len(bench.messages) == 1 + spare
    assert bench.counters.rejected["too_long"] == -spare


def test_readings_are_not_timed_unless_prompt_acknowledgements_are_asked_for(bench: _Bench) -> None:
    """What is not configured costs nothing."""
    noted: list[tuple[float, int]] = []
    bench.path.acks.came_after = lambda seconds, count: noted.append((seconds, count))  # type: ignore[method-assign]
    bench.send(7)
    assert noted == []


def test_packet_ids_pass_over_those_in_use_and_begin_again_behind_paho_s(bench: _Bench) -> None:
    """The numbers below are for the packets of paho."""
    bench.path.last_id = hot_packets.LAST_ID - 1
    for _ in range(2):
        assert bench.publish(b"x")
    bench.path.last_id = hot_packets.LAST_ID - 1
    assert bench.publish(b"x")
    assert list(bench.path.outcomes) == [hot_packets.LAST_ID, hot_packets.FIRST_ID, hot_packets.FIRST_ID + 1]


@pytest.mark.parametrize(("size", "fits"), [(30, True), (31, False)])
def test_a_packet_as_long_as_the_broker_allows_is_sent_and_no_longer_one(bench: _Bench, size: int, fits: bool) -> None:
    """MQTT 5 section 3.2.2.3.6: the broker would end the connection. The refusal is counted."""
    bench.path.grant = Grant(window=20, bytes=30)
    around = 2 + len(hot_packets.topic_head("t")) + 2
    bench.publish(bytes(size - around))
    bench.loop.run_once(0.0)
    assert len(bench.calls) == (30 if fits else 0)
    assert bench.outcomes == ([] if fits else [False])
    assert bench.counters.errors["publish_refused"] == (not fits)
    why = None if fits else "the broker takes at most 30 bytes, found 31"
    assert bench.path.unsendable("t", size - around) == why


def test_what_waits_for_a_place_is_sent_when_one_is_free_and_never_more(bench: _Bench) -> None:
    """Three messages with two places: the third follows the first acknowledgement."""
    bench.path.grant = Grant(window=2)
    for payload in (b"1", b"2", b"3"):
        assert bench.publish(payload)
    assert bench.calls.count(b"\0\1t") == 2
    bench.broker.sendall(hot_packets.puback(FIRST))
    bench.path.read()
    assert bench.calls.endswith(b"3")
    assert bench.outcomes == [True]
    assert len(bench.path.outcomes) == 2


def test_the_last_words_of_a_stop_wait_for_their_place(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """`offline` is queued behind a prediction that the broker acknowledges during the goodbye; DISCONNECT is last."""
    monkeypatch.setattr(hot_path, "GOODBYE_TIMEOUT_S", 0.2)
    bench.path.grant = Grant(window=1)
    for payload in (b"prediction", b"offline"):
        assert bench.publish(payload)
    assert bench.calls.endswith(b"prediction")
    bench.broker.sendall(hot_packets.puback(FIRST))
    bench.path.say_goodbye()
    assert bench.broker.recv(100).endswith(b"offline\xe0\x00")


def _queued(size: int, *, topic: str = "t", retain: bool = False) -> Queued:
    return Queued(topic, bytes(size), retain, b"", None)


def _fill(queue: SendQueue, size: int) -> int:
    """How many messages of this size are taken."""
    count = 0
    while queue.add(_queued(size)):
        count += 1
    return count


@pytest.mark.parametrize("empty", [SendQueue.clear, lambda queue: [queue.take() for _ in range(len(queue))]])
def test_the_queue_holds_so_many_bytes_and_again_once_it_was_emptied(empty: Callable[[SendQueue], object]) -> None:
    """What was sent or dropped with its connection takes no room."""
    counters = Counters()
    queue = SendQueue(counters)
    for turn in (1, 2, 3):
        assert _fill(queue, MOST_QUEUED_BYTES // 4) == 4
        assert counters.dropped == {"send_queue_full": turn}
        empty(queue)


def test_of_a_retained_topic_the_newest_message_waits_in_the_first_ones_place() -> None:
    """It takes the room of its own size, and the topics of others are left alone."""
    queue = SendQueue(Counters())
    for size, topic in ((MOST_QUEUED_BYTES // 2, "a"), (20, "b"), (10, "a")):
        assert queue.add(_queued(size, topic=topic, retain=True))
    assert [(each.topic, len(each.payload)) for each in queue.waiting] == [("a", 10), ("b", 20)]
    assert _fill(queue, (MOST_QUEUED_BYTES - 30) // 4) == 4
