"""The hot path over a real socket, with a loop and a paho that move only when the test says so: each byte."""

import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.mqtt import hot_packets, hot_path
from edge_runtime.mqtt.ack_coalescing import KERNEL_DELAY_S
from edge_runtime.mqtt.hot_path import MOST_AT_ONCE, MOST_OWED, MOST_OWED_BY_WINDOWS, HotPath
from edge_runtime.mqtt.messages import Message
from edge_runtime.mqtt.routes import Routes
from edge_runtime.mqtt.send_queue import Grant
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop

PATIENCE_S = 0.2
FIRST = 1025  # the first packet id of ours


class _Loop(SteppedLoop):
    """Also notes who waits for the socket."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: dict[int, Callable[[], object]] = {}
        self.writers: dict[int, Callable[[], object]] = {}

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """As `Loop.add_reader`."""
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """As `Loop.remove_reader`."""
        self.readers.pop(fd, None)

    def add_writer(self, fd: int, callback: Callable[[], object]) -> None:
        """As `Loop.add_writer`."""
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        """As `Loop.remove_writer`."""
        self.writers.pop(fd, None)


class _Paho:
    """Takes what is not of the hot path."""

    def __init__(self, wrapped: WholeSocket) -> None:
        self.wrapped: WholeSocket | None = wrapped
        self.read: list[bytes] = []
        self.written = 0
        self.wants = False
        self.closes = False
        self.fault: Exception | None = None
        self.result = paho.MQTT_ERR_SUCCESS
        self.on_message: Any = None
        self.on_disconnect: Any = "set"

    def loop_read(self) -> int:
        """One packet."""
        if self.fault is not None:
            raise self.fault
        assert self.wrapped is not None
        self.read.append(self.wrapped.recv(1000))
        if self.closes:
            self.wrapped = None
        return int(self.result)

    def loop_write(self) -> None:
        """An answer of its own."""
        assert self.wrapped is not None
        self.wants = False
        self.written += 1
        self.wrapped.send(b"\xee\x00")

    def want_write(self) -> bool:
        return self.wants

    def socket(self) -> WholeSocket | None:
        return self.wrapped

    def disconnect(self) -> None:
        """The packet that ends a connection."""
        assert self.wrapped is not None
        self.wrapped.send(b"\xe0\x00")


class _Bench:
    """A hot path, and the broker's end of the wire."""

    def __init__(self, *, is_v5: bool = False, prompt: bool = False) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.far.setblocking(False)
        self.loop, self.counters, self.routes = _Loop(), Counters(), Routes()
        self.wrapped = WholeSocket(near)
        self.client = _Paho(self.wrapped)
        self.states: list[str] = []
        self.ends: list[str | None] = []
        self.messages: list[Message] = []
        self.outcomes: list[tuple[str, bool]] = []
        self.parts: list[int] = []
        self.routes.set([(["in/#"], self.take)])
        self.path = HotPath(
            cast("Any", self.client),
            self.wrapped,
            url="mqtt://b",
            is_v5=is_v5,
            loop=self.loop.as_loop,
            counters=self.counters,
            routes=self.routes,
            heads=hot_packets.TopicHeads(),
            ack_patience=PATIENCE_S,
            prompt=prompt,
            on_state=self.states.append,
            on_end=self._end,
        )
        self.path.grant = Grant(window=100)

    def _end(self, fault: str | None) -> None:
        self.ends.append(fault)
        self.path.end()

    def take(self, messages: list[Message]) -> None:
        self.messages += messages
        self.parts.append(len(messages))
        for message in messages:
            message.claimed = True
            if message.receipt is not None:
                message.receipt.hold()

    def outcome(self, name: str) -> Callable[[bool], None]:
        return lambda accepted: self.outcomes.append((name, accepted))

    def publish(
        self,
        payload: bytes,
        *,
        qos: int = 1,
        retain: bool = False,
        topic: str = "t",
        properties: Properties | None = None,
    ) -> bool:
        """With an outcome of the payload's name."""
        return self.path.publish(
            topic,
            payload,
            qos=qos,
            retain=retain,
            outcome=self.outcome(payload[:9].decode()),
            properties=properties,
        )

    def sent(self) -> bytes:
        """What the broker has received since the last call."""
        self.loop.settle()
        data = b""
        while True:
            try:
                found = self.far.recv(65_536)
            except BlockingIOError:
                return data
            if not found:
                return data
            data += found

    def bring(self, *packets: bytes) -> None:
        """The broker sends, and the loop finds the socket readable."""
        self.far.sendall(b"".join(packets))
        fd = self.wrapped.fileno()
        if fd in self.loop.readers:
            self.loop.readers[fd]()


def _publish(
    payload: bytes, number: int = 0, *, topic: bytes = b"in/a", retain: bool = False, dup: bool = False
) -> bytes:
    """A PUBLISH of MQTT 3.1.1, shorter than 128 bytes."""
    first = 0x30 | (8 if dup else 0) | (2 if number else 0) | retain
    body = len(topic).to_bytes(2, "big") + topic + (number.to_bytes(2, "big") if number else b"") + payload
    return bytes((first, len(body))) + body


def _puback(number: int, reason: int | None = None) -> bytes:
    if reason is None:
        return b"\x40\x02" + number.to_bytes(2, "big")
    return b"\x40\x03" + number.to_bytes(2, "big") + bytes((reason,))


def _properties() -> Properties:
    return Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]


@pytest.fixture
def bench() -> Iterator[_Bench]:
    """One of MQTT 3.1.1."""
    made = _Bench()
    yield made
    made.path.end()
    made.far.close()


@pytest.fixture
def v5() -> Iterator[_Bench]:
    """One of MQTT 5."""
    made = _Bench(is_v5=True)
    yield made
    made.path.end()
    made.far.close()


# --- out ----------------------------------------------------------------------------------------------------------


def test_a_message_of_qos_0_is_delivered_when_it_is_written(bench: _Bench) -> None:
    """Its outcome is called behind the write, in the loop."""
    assert bench.publish(b"x", qos=0, retain=True)
    assert bench.outcomes == []
    assert bench.sent() == b"\x31\x04\x00\x01tx"
    assert bench.outcomes == [("x", True)]
    assert bench.path.in_flight == 0
    bench.loop.settle()
    assert bench.outcomes == [("x", True)]


def test_a_message_of_qos_1_is_delivered_when_the_broker_acknowledges_it(bench: _Bench) -> None:
    """By its packet id; an acknowledgement that nothing waits for changes nothing."""
    assert bench.publish(b"x")
    assert bench.publish(b"y", retain=True)
    assert bench.sent() == b"\x32\x06\x00\x01t\x04\x01x" + b"\x33\x06\x00\x01t\x04\x02y"
    assert (bench.path.in_flight, bench.path.answered, bench.outcomes) == (2, False, [])
    bench.bring(_puback(FIRST + 1))
    assert (bench.path.in_flight, bench.path.answered, bench.outcomes) == (1, True, [("y", True)])
    bench.bring(_puback(FIRST + 1), _puback(7))
    assert (bench.path.in_flight, bench.outcomes) == (1, [("y", True)])
    bench.bring(_puback(FIRST))
    assert bench.outcomes == [("y", True), ("x", True)]


def test_messages_of_one_pass_leave_in_one_write(bench: _Bench) -> None:
    """With one callback of the loop, whatever their number."""
    for _ in range(5):
        bench.publish(b"x", qos=0)
    before = bench.loop.served
    assert len(bench.sent()) == 5 * 6
    assert bench.loop.served == before + 2  # the write, and the outcomes
    assert bench.sent() == b""


def test_packet_ids_begin_behind_those_of_paho_and_none_is_used_twice(bench: _Bench) -> None:
    """After 65,535 comes 1,024, but for those that wait for an acknowledgement."""
    bench.path.last_id = 65_533
    bench.path.outcomes[1024] = None
    for _ in range(3):
        bench.publish(b"x")
    assert list(bench.path.outcomes) == [1024, 65_534, 65_535, 1025]


def test_messages_beyond_the_brokers_window_wait_for_a_place(bench: _Bench) -> None:
    """In their order; each acknowledgement sends the next."""
    bench.path.grant = Grant(window=2)
    assert bench.path.window == 2
    for payload in (b"1", b"2", b"3", b"4"):
        assert bench.publish(payload)
    assert bench.publish(b"0", qos=0)  # takes no place
    assert bench.path.in_flight == 4
    data = bench.sent()
    assert (len(data), data[7:8], data[15:16], data[21:]) == (22, b"1", b"2", b"0")
    bench.bring(_puback(FIRST))
    assert bench.sent() == b"\x32\x06\x00\x01t\x04\x033"
    assert bench.path.in_flight == 3
    bench.bring(_puback(FIRST + 1), _puback(FIRST + 2))
    assert bench.sent() == b"\x32\x06\x00\x01t\x04\x044"
    bench.bring(_puback(FIRST + 3))
    assert bench.outcomes == [("0", True), ("1", True), ("2", True), ("3", True), ("4", True)]


def test_a_message_that_waits_keeps_its_flag_and_its_properties(v5: _Bench) -> None:
    """As it was given."""
    v5.path.grant = Grant(window=0)
    properties = _properties()
    properties.ContentType = "a"
    assert v5.publish(b"x", retain=True, properties=properties)
    assert v5.publish(b"y")
    v5.path.grant = Grant(window=9)
    v5.path.took_acknowledgement(5, 0)  # of nothing
    v5.path.outcomes[9] = None
    v5.path.took_acknowledgement(9, 0)
    expected = b"\x33\x0b\x00\x01t\x04\x01" + b"\x04\x03\x00\x01a" + b"x" + b"\x32\x07\x00\x01t\x04\x02\x00y"
    assert v5.sent() == expected


def test_what_a_broker_does_not_offer_is_done_without_and_counted(bench: _Bench) -> None:
    """QoS 1, and retained messages."""
    bench.path.grant = Grant(window=100, qos=0, retains=False)
    bench.publish(b"x", retain=True)
    bench.publish(b"y", qos=0)
    assert bench.sent() == b"\x30\x04\x00\x01tx\x30\x04\x00\x01ty"
    assert bench.counters.counts == {"sent_at_qos_0": 1, "sent_unretained": 1}
    assert bench.outcomes == [("x", True), ("y", True)]


def test_a_message_that_no_broker_accepts_is_refused_in_the_loop(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted, shown, and logged once; its packet id is not taken."""
    bench.path.grant = Grant(window=100, bytes=8)
    bench.publish(b"12")
    bench.publish(b"x", topic="a/+")
    bench.publish(b"1", qos=0)
    assert bench.outcomes == []
    assert bench.sent() == b"\x30\x04\x00\x01t1"
    bench.publish(b"1")
    assert bench.sent()[5:7] == (FIRST + 2).to_bytes(2, "big")
    assert bench.outcomes[:2] == [("12", False), ("x", False)]
    assert bench.path.in_flight == 1
    assert bench.counters.errors == {"publish_refused": 2}
    assert bench.states[0] == "mqtt://b: a message cannot be sent: the broker takes at most 8 bytes, found 9"
    assert [record.message for record in caplog.records] == ["a message was refused"]


def test_a_refusal_is_reported_although_nothing_else_happens(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The first one of a connection is logged, and the caller hears of it in the loop."""
    assert bench.publish(b"x", topic="a/+")
    assert bench.outcomes == []
    bench.loop.settle()
    assert bench.outcomes == [("x", False)]
    assert [record.message for record in caplog.records] == ["a message was refused"]


@pytest.mark.parametrize("is_v5", [False, True])
def test_a_message_that_can_never_be_sent_is_known_beforehand(*, is_v5: bool) -> None:
    """To the byte: exactly what fits into a packet of the length that the broker takes."""
    made = _Bench(is_v5=is_v5)
    head, extra = hot_packets.topic_head("topic"), b"\0" if is_v5 else b""
    for most in (100, 1000):
        made.path.grant = Grant(window=1000, bytes=most)
        sizes = [size for size in range(most) if made.path.unsendable("topic", size) is None]
        packets = [hot_packets.publish(head, bytes(n), 1024, retain=False, properties=extra) for n in range(most)]
        assert sizes == [size for size, packet in enumerate(packets) if len(packet) <= most]
        for size in sizes[-3:]:
            assert made.publish(bytes(size), topic="topic")
    assert made.counters.errors == {}
    assert made.path.unsendable("topic", 989 - is_v5) == "the broker takes at most 1000 bytes, found 1001"
    assert "expected a topic" in str(made.path.unsendable("a/#", 1))
    made.path.grant = Grant(window=1, bytes=1 << 40)
    assert made.path.unsendable("topic", 268_435_455 - 14 - is_v5) is None
    assert made.path.unsendable("topic", 268_435_455 - 13 - is_v5) is not None
    made.path.end()
    made.far.close()


def test_a_refused_message_is_not_delivered(v5: _Bench) -> None:
    """128 and more is a refusal; its reason is shown, also one that MQTT does not define for a PUBACK."""
    for _ in range(3):
        v5.publish(b"x")
    v5.sent()
    v5.bring(_puback(FIRST, 0x10), _puback(FIRST + 1, 0x87), _puback(FIRST + 2, 0xFE))
    assert v5.outcomes == [("x", True), ("x", False), ("x", False)]
    assert v5.counters.errors == {"publish_refused": 2}
    assert v5.states == ["mqtt://b refused a message: Not authorized", "mqtt://b refused a message: reason code 0xfe"]


def test_a_ping_is_sent_with_the_next_write(bench: _Bench) -> None:
    """By itself if there is nothing else."""
    bench.path.ping()
    assert bench.sent() == b"\xc0\x00"


def test_what_does_not_fit_is_written_when_the_socket_takes_more(bench: _Bench) -> None:
    """A writer waits exactly while something is left."""
    fd = bench.wrapped.fileno()
    payload = bytes(200_000)
    bench.publish(payload, qos=0)
    bench.loop.settle()
    assert fd in bench.loop.writers
    assert bench.outcomes != []  # the bytes are the connection's
    received = 0
    while fd in bench.loop.writers:
        received += len(bench.sent())
        bench.loop.writers[fd]()
    received += len(bench.sent())
    assert received == 200_000 + 3 + 4
    bench.publish(b"x", qos=0)
    bench.loop.settle()
    assert fd not in bench.loop.writers


def test_a_write_that_fails_ends_the_connection_behind_what_was_acknowledged(bench: _Bench) -> None:
    """An acknowledgement that was read counts; what was only written does not."""
    bench.publish(b"x")
    bench.sent()
    bench.path.took_acknowledgement(FIRST, 0)
    bench.publish(b"0", qos=0)
    bench.far.close()
    bench.loop.settle()
    assert bench.ends == ["mqtt://b: Broken pipe"]
    assert bench.outcomes == [("x", True)]


def test_an_answer_of_paho_leaves_with_the_next_write(bench: _Bench) -> None:
    """With our packets, or by itself."""
    bench.client.wants = True
    bench.path.ping()
    assert bench.sent() == b"\xc0\x00\xee\x00"
    bench.client.wants = True
    bench.bring(_publish(b"x"))
    assert bench.sent() == b"\xee\x00"
    assert bench.client.written == 2


# --- in -----------------------------------------------------------------------------------------------------------


def test_messages_are_delivered_with_what_their_header_says(bench: _Bench) -> None:
    """Topic, payload, DUP, retain, and a receipt for QoS 1; all of one read together."""
    bench.bring(_publish(b"1"), _publish(b"2", 7, retain=True), _publish(b"3", 8, dup=True))
    found = [(each.topic, each.payload, each.retained, each.repeated) for each in bench.messages]
    assert found == [(b"in/a", b"1", False, False), (b"in/a", b"2", True, False), (b"in/a", b"3", False, True)]
    assert [each.receipt and each.receipt.number for each in bench.messages] == [None, 7, 8]
    assert len({each.link for each in bench.messages}) == 1
    assert (bench.path.delivered, bench.parts) == (3, [3])
    other = _Bench()
    other.bring(_publish(b"1"))
    assert other.messages[0].link != bench.messages[0].link
    other.path.end()
    other.far.close()


def test_each_handler_gets_its_own_messages(bench: _Bench) -> None:
    """One that nothing claims is counted, and acknowledged."""
    others: list[bytes] = []
    bench.routes.set(
        [
            (["in/#"], bench.take),
            (["both/#"], bench.take),
            (["both/#"], lambda found: others.extend(m.payload for m in found)),
        ]
    )
    bench.bring(_publish(b"1"), _publish(b"2", topic=b"both/x"), _publish(b"3", 9, topic=b"none"))
    bench.bring(_publish(b"4", topic=b"both/x"))
    assert [each.payload for each in bench.messages] == [b"1", b"2", b"4"]
    assert others == [b"2", b"4"]
    assert bench.counters.rejected == {"unmatched_topic": 1}
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == _puback(9)


def test_a_message_is_acknowledged_when_its_receipt_is_released_in_the_order_of_arrival(bench: _Bench) -> None:
    """One that is held keeps the later ones back; they leave together after a while."""
    bench.bring(*(_publish(b"x", number) for number in (1, 2, 3)))
    receipts = [each.receipt for each in bench.messages]
    assert all(receipt is not None and receipt.holds == 1 for receipt in receipts)
    for receipt in receipts[1:]:
        assert receipt is not None
        receipt.release()
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == b""
    assert receipts[0] is not None
    receipts[0].release()
    assert bench.sent() == b""
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == _puback(1) + _puback(2) + _puback(3)
    assert not bench.path.owed


def test_acknowledgements_leave_behind_a_published_message(bench: _Bench) -> None:
    """In the same write."""
    bench.bring(_publish(b"x", 1))
    receipt = bench.messages[0].receipt
    assert receipt is not None
    receipt.release()
    bench.publish(b"y", qos=0)
    assert bench.sent() == b"\x30\x04\x00\x01ty" + _puback(1)
    assert bench.sent() == b""


def test_five_acknowledgements_do_not_wait(bench: _Bench) -> None:
    """A quarter of the 20 messages that a broker usually allows."""
    bench.bring(*(_publish(b"x", number) for number in range(1, 6)))
    for number, message in enumerate(bench.messages, 1):
        assert bench.sent() == b""
        assert message.receipt is not None
        message.receipt.release()
        assert number < 5 or bench.sent() == b"".join(_puback(each) for each in range(1, 6))


def test_receipts_of_windows_are_acknowledged_out_of_order(bench: _Bench) -> None:
    """All that were released in a pass, with one look; the others keep their places."""
    bench.path.acks_in_order = False
    bench.bring(*(_publish(b"x", number) for number in (1, 2, 3, 4)))
    for index in (2, 0):
        receipt = bench.messages[index].receipt
        assert receipt is not None
        receipt.release()
    assert bench.loop.served == 0
    bench.loop.settle()
    assert bench.loop.served == 1
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == _puback(1) + _puback(3)
    assert [receipt.number for receipt in bench.path.owed] == [2, 4]
    receipt = bench.messages[3].receipt
    assert receipt is not None
    receipt.release()
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == _puback(4)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_receipt_of_a_lost_connection_acknowledges_nothing(bench: _Bench, *, in_order: bool) -> None:
    """Its broker sends the message again."""
    bench.path.acks_in_order = in_order
    bench.bring(_publish(b"x", 1), _publish(b"y", 2))
    first, second = (each.receipt for each in bench.messages)
    assert first is not None
    assert second is not None
    first.release()
    bench.path.end()
    second.release()
    bench.loop.advance(10.0)
    assert bytes(bench.path.acks.ours) == b""
    assert bench.sent() == b""


@pytest.mark.parametrize(("in_order", "most"), [(True, MOST_OWED), (False, MOST_OWED_BY_WINDOWS)])
def test_reading_stops_while_too_many_messages_wait_for_us(bench: _Bench, most: int, *, in_order: bool) -> None:
    """A broker without a limit is stopped by TCP; below half of it reading goes on."""
    assert most == (10_000 if in_order else 65_000)
    bench.path.acks_in_order = in_order
    fd = bench.wrapped.fileno()
    number = 0
    while number < most - 1:
        bench.path.took_message(b"in/a", b"x", 1 + number % 60_000, retained=False)
        number += 1
    bench.path.read()
    assert (bench.path.is_paused, fd in bench.loop.readers) == (False, True)
    bench.bring(_publish(b"x", 1))
    assert (bench.path.is_paused, fd in bench.loop.readers) == (True, False)
    receipts = [each.receipt for each in bench.messages]
    for receipt in receipts[: most // 2]:
        assert receipt is not None
        receipt.release()
    bench.loop.settle()
    assert len(bench.path.owed) == most // 2
    assert bench.path.is_paused
    last = receipts[most // 2]
    assert last is not None
    last.release()
    bench.loop.settle()
    assert (bench.path.is_paused, fd in bench.loop.readers) == (False, True)


def test_a_paused_connection_that_is_held_is_not_read_when_there_is_room_again(bench: _Bench) -> None:
    """Nor one that is let go while it is paused."""
    fd = bench.wrapped.fileno()
    bench.bring(_publish(b"x", 1))
    bench.path.is_paused = True
    bench.path.hold(held=True)
    receipt = bench.messages[0].receipt
    assert receipt is not None
    receipt.release()
    assert (bench.path.is_paused, fd in bench.loop.readers) == (False, False)
    bench.path.is_paused = True
    bench.path.hold(held=False)
    bench.loop.settle()
    assert fd not in bench.loop.readers


def test_a_held_connection_keeps_its_messages_and_reads_none(bench: _Bench) -> None:
    """A handler without room: what was read is delivered when it has some, 256 at most at a time."""
    fd = bench.wrapped.fileno()
    taken = bench.take

    def full(messages: list[Message]) -> None:
        taken(messages)
        if len(bench.messages) < 600:
            bench.path.hold(held=True)

    bench.routes.set([(["in/#"], full)])
    for number in range(600):
        bench.path.took_message(b"in/a", b"%d" % number, 0, retained=False)
    bench.path.read()
    assert (bench.parts, fd in bench.loop.readers) == ([MOST_AT_ONCE], False)
    bench.path.hold(held=True)  # it is already
    bench.path.hold(held=False)
    bench.path.hold(held=False)
    assert bench.parts == [256]
    bench.loop.settle()
    assert (bench.parts, fd in bench.loop.readers) == ([256, 256], False)
    bench.path.hold(held=False)
    bench.loop.settle()
    assert (bench.parts, fd in bench.loop.readers) == ([256, 256, 88], True)
    assert [message.payload for message in bench.messages] == [b"%d" % number for number in range(600)]


def test_exactly_256_messages_are_one_delivery(bench: _Bench) -> None:
    """One more is a second one."""
    for count, parts in ((256, [256]), (257, [256, 1])):
        bench.parts.clear()
        for _ in range(count):
            bench.path.took_message(b"in/a", b"x", 0, retained=False)
        bench.path.read()
        assert bench.parts == parts


def test_what_a_delivery_publishes_leaves_in_one_write_behind_it(bench: _Bench) -> None:
    """Without a further pass of the loop; in the next delivery as well."""

    def answer(messages: list[Message]) -> None:
        for message in messages:
            message.claimed = True
            bench.publish(message.payload, qos=0)
        with pytest.raises(BlockingIOError):
            bench.far.recv(1)

    bench.routes.set([(["in/#"], answer)])
    for _ in range(2):
        served = bench.loop.served
        bench.bring(_publish(b"1"), _publish(b"2"))
        assert bench.far.recv(100) == b"\x30\x04\x00\x01t1\x30\x04\x00\x01t2"
        assert bench.loop.served == served
    bench.publish(b"3", qos=0)
    assert bench.sent()[:6] == b"\x30\x04\x00\x01t3"


def test_acknowledgements_of_the_broker_count_before_messages_are_delivered(bench: _Bench) -> None:
    """Unless they were held back for the messages: then predictions leave first."""
    order: list[str] = []
    bench.routes.set([(["in/#"], lambda _: order.append("message"))])
    for holding in (False, True):
        order.clear()
        bench.path.publish("t", b"x", qos=1, retain=False, outcome=lambda _: order.append("outcome"), properties=None)
        bench.sent()
        bench.path.acks.holding = holding
        bench.bring(_puback(bench.path.last_id), _publish(b"1"))
        assert order == (["message", "outcome"] if holding else ["outcome", "message"])
        order.clear()
        bench.path.publish("t", b"x", qos=1, retain=False, outcome=lambda _: order.append("outcome"), properties=None)
        bench.sent()
        bench.bring(_puback(bench.path.last_id))
        assert order == ["outcome"]


def test_an_acknowledgement_counts_although_the_connection_ends_in_the_same_read(bench: _Bench) -> None:
    """The messages beside it are sent again by the broker."""
    bench.publish(b"x")
    bench.sent()
    bench.path.acks.holding = True
    bench.client.closes = True
    bench.bring(_puback(FIRST), _publish(b"1"), b"\xd0\x00")
    assert bench.outcomes == [("x", True)]
    assert (bench.ends, bench.messages) == ([None], [])


def test_other_packets_are_given_to_paho(bench: _Bench) -> None:
    """One after the other, with ours between them."""
    bench.bring(_publish(b"1"), b"\xd0\x00", _publish(b"2"), b"\x90\x03\x00\x01\x01")
    assert bench.client.read == [b"\xd0\x00", b"\x90\x03\x00\x01\x01"]
    assert [message.payload for message in bench.messages] == [b"1", b"2"]
    assert bench.ends == []
    bench.client.result = paho.MQTT_ERR_NOMEM
    bench.bring(b"\xd0\x00", b"\xd0\x00")
    assert len(bench.client.read) == 3
    assert bench.ends == []


@pytest.mark.parametrize(
    ("fault", "text", "counted"),
    [
        (OSError(104, "Connection reset by peer"), "mqtt://b: Connection reset by peer", {}),
        (OSError("no number"), "mqtt://b: no number", {}),
        (IndexError("x"), "mqtt://b sent something that is not MQTT (IndexError)", {"not_mqtt": 1}),
    ],
)
def test_a_fault_in_a_read_ends_the_connection_with_its_reason(
    bench: _Bench, fault: Exception, text: str, counted: dict[str, int]
) -> None:
    """Bytes that are no MQTT are counted."""
    bench.client.fault = fault
    bench.bring(b"\xd0\x00")
    assert bench.ends == [text]
    assert bench.counters.errors == counted
    bench.path.read()  # a callback that was under way
    assert len(bench.ends) == 1


def test_a_message_too_long_to_keep_is_acknowledged_and_counted(bench: _Bench) -> None:
    """So that it is not sent again; at QoS 0 there is nothing to acknowledge."""
    bench.path.took_too_long(b"in/a", 9, 5000)
    bench.path.took_too_long(b"in/b", 0, 6000)
    assert bench.counters.rejected == {"too_long": 2}
    assert bench.states == [
        "mqtt://b sent 5000 bytes on b'in/a': passed over",
        "mqtt://b sent 6000 bytes on b'in/b': passed over",
    ]
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == _puback(9)
    assert not bench.path.owed


def _of_paho(topic: bytes, *, qos: int) -> paho.MQTTMessage:
    message = paho.MQTTMessage(mid=44, topic=topic)
    message.payload, message.qos, message.retain, message.dup = b"p", qos, True, True
    message.properties = _properties()
    return message


def test_a_message_that_paho_has_read_is_one_as_any_other(v5: _Bench) -> None:
    """With its properties; at QoS 1 with a receipt."""
    for qos in (0, 1):
        v5.client.on_message(None, None, _of_paho(b"in/a", qos=qos))
    v5.path.read()
    assert [(each.topic, each.payload, each.retained, each.repeated) for each in v5.messages] == [
        (b"in/a", b"p", True, True)
    ] * 2
    assert [each.receipt and each.receipt.number for each in v5.messages] == [None, 44]
    assert all(each.properties is not None for each in v5.messages)


def test_a_topic_alias_ends_the_connection(v5: _Bench) -> None:
    """It was not allowed: the topic of its message is not known."""

    def read() -> int:
        v5.client.on_message(None, None, _of_paho(b"", qos=0))
        return 0

    v5.client.loop_read = read  # type: ignore[method-assign]
    v5.bring(b"\xd0\x00")
    assert v5.ends == ["mqtt://b used a topic alias, which was not allowed"]
    assert v5.counters.errors == {"not_mqtt": 1}


# --- what the delay of acknowledgements is given ------------------------------------------------------------------


def test_the_delay_of_readings_is_measured_from_our_last_write() -> None:
    """Every one that is not alone, and a single one only if it comes late or others did."""
    made = _Bench(prompt=True)
    noted: list[tuple[float, int]] = []
    made.path.acks.came_after = lambda seconds, count: noted.append((round(seconds, 6), count))  # type: ignore[method-assign]
    made.publish(b"x", qos=0)
    made.sent()
    made.loop.now += 0.01
    made.bring(_publish(b"1"))
    made.bring(_publish(b"1"), _publish(b"2"))
    made.bring(b"\xd0\x00")
    made.loop.now += 0.03
    made.bring(_publish(b"1"))
    made.path.acks.is_counting = True
    made.publish(b"x", qos=0)
    made.sent()
    made.bring(_publish(b"1"))
    assert noted == [(0.01, 2), (0.04, 1), (0.0, 1)]
    made.path.end()
    made.far.close()


def test_a_write_reports_the_places_taken_while_acknowledgements_are_held(bench: _Bench) -> None:
    """Those in flight and those that wait for a place."""
    noted: list[tuple[int, int]] = []
    bench.path.acks.wrote = lambda taken, window: noted.append((taken, window))  # type: ignore[method-assign]
    bench.path.grant = Grant(window=2)
    bench.publish(b"x")
    bench.sent()
    assert noted == []
    bench.path.acks.holding = True
    for _ in range(3):
        bench.publish(b"x")
    bench.sent()
    bench.path.acks.holding = False
    bench.path.acks.rush_timer = bench.loop.call_later(9.0, lambda: None)
    bench.path.ping()
    bench.sent()
    assert noted == [(4, 2), (4, 2)]


def test_a_write_of_nothing_is_no_write(bench: _Bench) -> None:
    """The delay of a reading counts from the last byte that was sent."""
    noted: list[tuple[float, int]] = []
    bench.path.acks.came_after = lambda seconds, count: noted.append((round(seconds, 6), count))  # type: ignore[method-assign]
    bench.path.acks.watches_delay = True
    bench.publish(b"x", qos=0)
    bench.sent()
    bench.loop.now += 0.01
    bench.path.flush()
    bench.loop.now += 0.02
    bench.bring(_publish(b"1"), _publish(b"2"))
    assert noted == [(0.03, 2)]


def test_a_packet_without_a_reading_and_a_connection_that_is_not_watched_give_no_delay(bench: _Bench) -> None:
    """An answer to a ping says nothing of how long readings wait."""
    noted: list[tuple[float, int]] = []
    bench.path.acks.came_after = lambda seconds, count: noted.append((seconds, count))  # type: ignore[method-assign]
    bench.publish(b"x", qos=0)
    bench.sent()
    bench.loop.now += 0.05
    bench.bring(_publish(b"1"), _publish(b"2"))
    bench.path.acks.watches_delay = True
    bench.bring(b"\xd0\x00")
    assert noted == []


def test_a_single_reading_after_exactly_the_kernels_delay_counts(bench: _Bench) -> None:
    """36 ms, and not a little less."""
    noted: list[tuple[float, int]] = []
    bench.path.acks.came_after = lambda seconds, count: noted.append((seconds, count))  # type: ignore[method-assign]
    bench.path.acks.watches_delay = True
    for delay in (KERNEL_DELAY_S[0] - 0.001, KERNEL_DELAY_S[0]):
        bench.loop.now = 0.0
        bench.publish(b"x", qos=0)
        bench.sent()
        bench.loop.now = delay
        bench.bring(_publish(b"1"))
    assert noted == [(0.036, 1)]


# --- what costs a pass of the loop, or a call of the kernel -------------------------------------------------------


def test_a_delivery_that_publishes_costs_no_further_pass(bench: _Bench) -> None:
    """Its write follows at once, and none is scheduled beside it."""

    def answer(messages: list[Message]) -> None:
        for message in messages:
            message.claimed = True
            bench.path.publish("t", b"1", qos=0, retain=False, outcome=None, properties=None)

    bench.routes.set([(["in/#"], answer)])
    bench.bring(_publish(b"1"), _publish(b"2"))
    assert bench.far.recv(100) == b"\x30\x04\x00\x01t1" * 2
    bench.loop.settle()
    assert bench.loop.served == 0


def test_two_messages_of_different_topics_go_to_their_own_handlers(bench: _Bench) -> None:
    """Each to those of its own topic."""
    others: list[Message] = []
    bench.routes.set([(["in/#"], bench.take), (["other/#"], others.extend)])
    bench.bring(_publish(b"1"), _publish(b"2", topic=b"other/x"))
    assert [message.payload for message in bench.messages] == [b"1"]
    assert [message.payload for message in others] == [b"2"]


def test_a_hold_that_changes_nothing_costs_no_pass(bench: _Bench) -> None:
    """Nor does the beginning of one."""
    bench.path.hold(held=False)
    bench.path.hold(held=True)
    bench.path.hold(held=True)
    bench.loop.settle()
    assert bench.loop.served == 0


def test_an_acknowledgement_registers_nothing_while_reading_goes_on(bench: _Bench) -> None:
    """The connection is registered once, when it opens, and again only after a pause."""
    bench.bring(_publish(b"x", 1))
    bench.loop.readers.clear()
    receipt = bench.messages[0].receipt
    assert receipt is not None
    receipt.release()
    bench.loop.advance(PATIENCE_S)
    assert bench.sent() == _puback(1)
    assert bench.loop.readers == {}


# --- end ----------------------------------------------------------------------------------------------------------


def test_a_clean_end_sends_everything_and_a_disconnect(bench: _Bench) -> None:
    """Acknowledgements behind messages; paho's own answer too. Afterwards nothing waits for the socket."""
    bench.bring(_publish(b"x", 1))
    receipt = bench.messages[0].receipt
    assert receipt is not None
    receipt.release()
    bench.publish(b"y", qos=0)
    bench.client.wants = True
    bench.far.setblocking(True)
    bench.far.shutdown(socket.SHUT_WR)
    bench.path.say_goodbye()
    data = b""
    while found := bench.far.recv(1000):
        data += found
    assert data == b"\x30\x04\x00\x01ty" + _puback(1) + b"\xee\x00\xe0\x00"
    assert (bench.loop.readers, bench.loop.writers) == ({}, {})
    assert bench.client.on_disconnect is None


def test_the_last_messages_of_a_stop_are_sent_as_places_become_free(bench: _Bench) -> None:
    """The broker's acknowledgements are read until the queue is empty."""
    bench.path.grant = Grant(window=1)
    for payload in (b"1", b"2", b"3"):
        bench.publish(payload)
    bench.far.setblocking(True)
    bench.far.sendall(_puback(FIRST) + b"\xd0\x00" + _puback(FIRST + 1))
    bench.far.shutdown(socket.SHUT_WR)
    bench.path.say_goodbye()
    data = b""
    while found := bench.far.recv(1000):
        data += found
    assert data == b"".join(
        b"\x32\x06\x00\x01t" + (FIRST + n).to_bytes(2, "big") + b"%d" % (n + 1) for n in range(3)
    ) + (b"\xe0\x00")
    assert bench.client.read[0] == b"\xd0\x00"


def test_a_fault_while_the_last_messages_are_sent_is_logged(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The connection ends in any case."""
    bench.path.grant = Grant(window=1)
    for payload in (b"1", b"2", b"3"):
        bench.publish(payload)
    bench.client.fault = IndexError("x")
    bench.far.sendall(b"\xd0\x00")
    bench.far.shutdown(socket.SHUT_WR)
    bench.path.say_goodbye()
    (record,) = caplog.records
    assert record.message == "the last messages of a stop are not sent"
    assert record.__dict__["fields"]["left"] == 2


def test_after_the_end_nothing_is_called(bench: _Bench) -> None:
    """No outcome, no delivery, no acknowledgement, and no byte."""
    bench.path.grant = Grant(window=1)
    bench.publish(b"1")
    bench.publish(b"2")
    bench.publish(b"0", qos=0)
    bench.path.took_message(b"in/a", b"x", 1, retained=False)
    bench.path.took_acknowledgement(FIRST, 0)
    bench.path.end()
    bench.path.flush()
    bench.path.hold(held=True)
    bench.loop.advance(10.0)
    assert (bench.outcomes, bench.messages, bench.path.in_flight, len(bench.path.owed)) == ([], [], 0, 0)
    assert (bench.loop.readers, bench.loop.writers) == ({}, {})
    assert not bench.path.is_held


def test_what_was_under_way_at_the_end_is_not_gone_on_with(bench: _Bench) -> None:
    """The next pass delivers nothing of before, reports nothing, and does not read a closed socket."""
    bench.path.hold(held=True)
    bench.path.took_message(b"in/a", b"x", 1, retained=False)
    bench.path.hold(held=False)
    bench.publish(b"1", topic="a/+")
    bench.path.end()
    bench.loop.settle()
    assert (bench.messages, bench.outcomes) == ([], [])
    assert (bench.loop.readers, bench.loop.writers) == ({}, {})


def test_a_receipt_that_is_released_after_the_end_does_not_resume_a_pause(bench: _Bench) -> None:
    """There is nothing to read from any more."""
    bench.bring(_publish(b"x", 1))
    bench.path.is_paused = True
    bench.path.end()
    receipt = bench.messages[0].receipt
    assert receipt is not None
    receipt.release()
    bench.loop.settle()
    assert bench.loop.readers == {}


def test_at_the_end_nothing_waits_for_a_place_or_for_the_socket(bench: _Bench) -> None:
    """Neither the queue nor half a message."""
    bench.path.grant = Grant(window=1)
    bench.publish(bytes(200_000))
    bench.publish(b"2")
    bench.loop.settle()
    assert bench.loop.writers != {}
    assert bench.path.in_flight == 2
    bench.path.end()
    assert (bench.loop.readers, bench.loop.writers, bench.path.in_flight) == ({}, {}, 0)


def test_before_a_disconnect_the_loop_is_left_and_acknowledgements_are_waited_for(bench: _Bench) -> None:
    """Paho closes the socket with it; and what paho still has to say leaves behind it."""
    found: list[Any] = []
    settimeout = bench.wrapped.set_patience

    def set_patience(seconds: float) -> None:
        found.append(seconds)
        settimeout(seconds)

    def disconnect() -> None:
        found.append((dict(bench.loop.readers), dict(bench.loop.writers), bench.path.acks.holding))
        bench.wrapped.send(b"\xe0\x00")
        bench.client.wants = True
        bench.far.shutdown(socket.SHUT_WR)

    bench.wrapped.set_patience = set_patience  # type: ignore[method-assign]
    bench.client.disconnect = disconnect  # type: ignore[method-assign]
    bench.path.acks.allow()
    assert bench.path.acks.holding
    bench.path.say_goodbye()
    assert found == [hot_path.GOODBYE_TIMEOUT_S, ({}, {}, False)]
    assert bench.far.recv(100) == b"\xe0\x00\xee\x00"


def test_a_broker_that_acknowledges_what_it_has_received_gets_the_last_messages(bench: _Bench) -> None:
    """Each is written before its acknowledgement is waited for."""
    bench.path.grant = Grant(window=1)
    for payload in (b"1", b"2", b"3"):
        bench.publish(payload)
    received = bytearray()
    fill = bench.wrapped.fill

    def answer_then_fill() -> bool:
        packet = bench.far.recv(100)  # raises where nothing was written
        received.extend(packet)
        bench.far.sendall(_puback(int.from_bytes(packet[5:7], "big")))
        if packet.endswith(b"2"):
            bench.far.shutdown(socket.SHUT_WR)
        return fill()

    bench.wrapped.fill = answer_then_fill  # type: ignore[method-assign]
    bench.path.say_goodbye()
    assert [received[7:8], received[15:16]] == [b"1", b"2"]
    assert bench.far.recv(100) == b"\x32\x06\x00\x01t\x04\x033\xe0\x00"


def test_a_broker_that_sends_other_packets_is_not_listened_to_for_ever(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A stop takes no longer than it may, whatever comes, where no place becomes free."""
    clock = [50.0]
    monkeypatch.setattr(hot_path, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    bench.path.grant = Grant(window=1)
    bench.publish(b"1")
    bench.publish(b"2")
    loop_read = bench.client.loop_read

    def read() -> int:
        assert len(bench.client.read) < 10
        clock[0] += hot_path.GOODBYE_TIMEOUT_S / 4
        bench.far.sendall(b"\xd0\x00")
        return loop_read()

    def disconnect() -> None:
        bench.far.shutdown(socket.SHUT_WR)

    bench.client.loop_read = read  # type: ignore[method-assign]
    bench.client.disconnect = disconnect  # type: ignore[method-assign]
    bench.far.sendall(b"\xd0\x00")
    bench.path.say_goodbye()
    assert len(bench.client.read) == 4
    assert caplog.records == []


def test_a_broker_that_ends_the_connection_is_not_waited_for(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No place becomes free on it."""
    monkeypatch.setattr(hot_path, "GOODBYE_TIMEOUT_S", 0.2)
    bench.path.grant = Grant(window=1)
    bench.publish(b"1")
    bench.publish(b"2")
    bench.client.closes = True
    bench.client.disconnect = lambda: bench.far.shutdown(socket.SHUT_WR)  # type: ignore[method-assign]
    bench.far.sendall(b"\xe0\x00")
    bench.path.say_goodbye()
    assert bench.client.read == [b"\xe0\x00"]
    assert caplog.records == []
