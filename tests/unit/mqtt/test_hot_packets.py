"""The packets that go past paho: whole, split and garbled."""

import itertools
import random
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.whole_socket import WholeSocket
from tests.support.fake_broker import packet, text


class _Noted:
    """A taker that keeps what it is given."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []
        self.repeated: list[bool] = []

    def took_message(
        self, topic: bytes, payload: bytes, packet_id: int, *, retained: bool, repeated: bool = False
    ) -> None:
        self.repeated.append(repeated)
        self.taken.append((topic, payload, packet_id, retained))

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        self.taken.append((packet_id, reason))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        self.taken.append((topic, packet_id, size))


def _message(payload: bytes, packet_id: int = 0, *, retain: bool = False, is_v5: bool = False) -> bytes:
    head = hot_packets.topic_head("a/b")
    return hot_packets.publish(head, payload, packet_id, retain=retain, properties=b"\0" if is_v5 else b"")


def _take(data: bytes, *, is_v5: bool = False) -> tuple[list[tuple[Any, ...]], int, int]:
    noted = _Noted()
    begin, end = hot_packets.take(data, 0, noted, is_v5=is_v5)
    return noted.taken, begin, end


@given(
    st.binary(max_size=300) | st.sampled_from([20_000, 3_000_000]).map(bytes),
    st.integers(0, 65_535),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=100)
def test_a_message_reads_back_as_it_was_written(payload: bytes, packet_id: int, retain: bool, is_v5: bool) -> None:
    """Topic, payload, packet id and the retain flag come through at every length."""
    data = _message(payload, packet_id, retain=retain, is_v5=is_v5)
    assert _take(data, is_v5=is_v5) == ([(b"a/b", payload, packet_id, retain)], len(data), len(data))


def test_an_acknowledgement_is_read_with_and_without_a_reason() -> None:
    """MQTT 5 may add a reason, and properties after it."""
    assert _take(hot_packets.puback(4660) + b"\x40\x03\x12\x34\x87" + b"\x40\x04\x12\x34\x10\x00")[0] == [
        (4660, 0),
        (4660, 0x87),
        (4660, 0x10),
    ]


def test_a_repeated_message_is_taken_like_a_first_one() -> None:
    """The DUP flag only says that it may have come before."""
    data = bytearray(_message(b"x", 7))
    data[0] |= 0x08
    assert _take(bytes(data))[0] == [(b"a/b", b"x", 7, False)]
    noted = _Noted()
    hot_packets.take(bytes(data) + _message(b"y", 8), 0, noted, is_v5=False)
    assert noted.repeated == [True, False]


@pytest.mark.parametrize(
    ("packet", "is_v5"),
    [
        (b"\x34\x08\x00\x03a/b\x00\x01x", False),  # QoS 2
        (b"\x36\x08\x00\x03a/b\x00\x01x", False),  # QoS 3, which there is not
        (b"\x32\x07\x00\x03a/b\x00\x00", False),  # a packet id of 0
        (b"\x30\x02\x00\x00", False),  # no topic
        (b"\x30\x01\x00", False),  # not even its length
        (b"\x30\x03\x00\x09a", False),  # a topic longer than its packet
        (b"\x32\x06\x00\x03a/b\x00", False),  # half a packet id
        (b"\x30\x05\x00\x03a/b", True),  # no length of properties
        (b"\x30\x09\x00\x03a/b\x03\x23\x00\x05", True),  # a property
        (b"\x40\x01\x00", False),  # half an acknowledgement
        (b"\x30\xff\xff\xff\xff\x01", False),  # a length of five digits
        (b"\xd0\x00", False),  # something else
    ],
)
def test_what_is_not_plain_is_left_to_paho(packet: bytes, is_v5: bool) -> None:
    """It is shown whole, after all that came before it, and what comes behind it waits."""
    before, behind = _message(b"1", 1, is_v5=is_v5), _message(b"2", 2, is_v5=is_v5)
    taken, begin, end = _take(before + packet + behind, is_v5=is_v5)
    assert taken == [(b"a/b", b"1", 1, False)]
    assert begin == len(before)
    assert end == len(before) + len(packet) or packet.startswith(b"\x30\xff")


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b", "x" * 65_536])
def test_a_topic_that_no_broker_takes_is_no_topic(topic: str) -> None:
    """It would end the connection."""
    with pytest.raises(ValueError, match="expected a topic"):
        hot_packets.topic_head(topic)


def _feed(pieces: list[bytes], *, is_v5: bool) -> list[tuple[Any, ...]]:
    """Through a real socket; what is paho's is read as paho does, byte by byte first."""
    near, far = socket.socketpair()
    near.setblocking(False)
    whole, noted = WholeSocket(near), _Noted()
    try:
        for piece in pieces:
            far.sendall(piece)
            whole.fill()
            while whole.take(noted, is_v5=is_v5):
                first, length = whole.recv(1), whole.recv(1)
                rest = whole.recv(length[0] + 10) if length[0] else b""
                noted.taken.append(("paho", first + length + rest))
    finally:
        near.close()
        far.close()
    return noted.taken


@pytest.fixture(params=[False, True], ids=["3.1.1", "5"])
def course(request: pytest.FixtureRequest) -> tuple[bytes, list[tuple[Any, ...]], bool]:
    """A stream of packets of all kinds, what it says, and the version."""
    is_v5 = request.param
    ping, refusal = b"\xd0\x00", b"\x40\x03\x00\x09\x87"
    second = b"\x34\x09\x00\x03a/b\x00\x05\x00y" if is_v5 else b"\x34\x08\x00\x03a/b\x00\x05y"
    data = b"".join(
        (_message(b"one", 1, is_v5=is_v5), ping, _message(b"z" * 200, is_v5=is_v5), refusal, second, ping,
         hot_packets.puback(300), _message(b"", 65_535, retain=True, is_v5=is_v5))
    )  # fmt: skip
    answered: list[tuple[Any, ...]] = [
        (b"a/b", b"one", 1, False), ("paho", ping), (b"a/b", b"z" * 200, 0, False), (9, 0x87), ("paho", second),
        ("paho", ping), (300, 0), (b"a/b", b"", 65_535, True),
    ]  # fmt: skip
    return data, answered, is_v5


def test_a_stream_may_be_cut_anywhere(course: tuple[bytes, list[tuple[Any, ...]], bool]) -> None:
    """At every single byte, byte by byte, and at random."""
    data, answered, is_v5 = course
    for at in range(len(data) + 1):
        assert _feed([piece for piece in (data[:at], data[at:]) if piece], is_v5=is_v5) == answered, at
    assert _feed([data[i : i + 1] for i in range(len(data))], is_v5=is_v5) == answered
    generator = random.Random(5)
    for _ in range(100):
        cuts = [0, *sorted(generator.sample(range(1, len(data)), generator.randrange(1, 12))), len(data)]
        assert _feed([data[a:b] for a, b in itertools.pairwise(cuts)], is_v5=is_v5) == answered


@given(st.binary(max_size=80), st.booleans())
@settings(max_examples=300)
def test_any_bytes_end_somewhere(data: bytes, is_v5: bool) -> None:
    """Nonsense is never read beyond its end, and never taken twice."""
    taken, begin, end = _take(data, is_v5=is_v5)
    assert 0 <= begin <= len(data)
    assert end >= begin
    assert len(taken) <= len(data) // 4 + 1


@pytest.mark.parametrize("packet_id", [0, 1, 255, 256, 0x1234, 0xFFFF])
def test_the_head_of_a_message_that_is_too_long_names_its_topic_and_its_packet_id(packet_id: int) -> None:
    """Both bytes of the id: an acknowledgement of another id would leave the message with its broker for ever."""
    topic = b"sensors/" + b"x" * 300
    whole = hot_packets.publish(
        hot_packets.topic_head(topic.decode()), bytes(100_000), packet_id, retain=False, properties=b""
    )
    assert hot_packets.head_of_message(whole[: hot_packets.HEAD_BYTES]) == (topic, packet_id)


# MQTT 3.1.1 section 2.2.3, table 2.4, and one on either side of what a first digit or a second one can hold.
LENGTHS = [
    (127, b"\x7f"),
    (128, b"\x80\x01"),
    (129, b"\x81\x01"),
    (255, b"\xff\x01"),
    (256, b"\x80\x02"),
    (16_383, b"\xff\x7f"),
    (16_384, b"\x80\x80\x01"),
    (16_385, b"\x81\x80\x01"),
    (32_768, b"\x80\x80\x02"),
    (2_097_151, b"\xff\xff\x7f"),
    (2_097_152, b"\x80\x80\x80\x01"),
    (2_097_153, b"\x81\x80\x80\x01"),
]


@pytest.mark.parametrize(("size", "digits"), LENGTHS)
def test_the_lengths_of_the_specification_are_written_and_read(size: int, digits: bytes) -> None:
    """Their bytes stand in the specification; a packet of such a length is taken whole, and no byte behind it."""
    payload = b"\x05" * (size - 5)
    written = hot_packets.publish(b"\0\3a/b", payload, 0, retain=False, properties=b"")
    assert written == b"\x30" + digits + b"\0\3a/b" + payload
    behind = b"\x40\x02\x12\x34"
    assert _take(written + behind) == ([(b"a/b", payload, 0, False), (0x1234, 0)], len(written) + 4, len(written) + 4)
    taken, begin, end = _take(written[:-1])
    assert (taken, begin, end) == ([], 0, len(written))


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("dup", [False, True])
@pytest.mark.parametrize("is_v5", [False, True])
def test_a_message_of_another_writer_is_understood(qos: int, retain: bool, dup: bool, is_v5: bool) -> None:
    """Every flag by itself: retained is not repeated, and neither is a quality of service."""
    identifier = (0x8123).to_bytes(2, "big") if qos else b""
    body = text(b"sensors/a") + identifier + (b"\0" if is_v5 else b"") + b"\x07payload\xff"
    data = packet(0x30 | dup << 3 | qos << 1 | retain, body)
    noted = _Noted()
    assert hot_packets.take(data, 0, noted, is_v5=is_v5) == (len(data), len(data))
    assert noted.taken == [(b"sensors/a", b"\x07payload\xff", 0x8123 if qos else 0, retain)]
    assert noted.repeated == [dup]
    if not dup:
        head, properties = text(b"sensors/a"), b"\0" if is_v5 else b""
        packet_id = 0x8123 if qos else 0
        assert hot_packets.publish(head, b"\x07payload\xff", packet_id, retain=retain, properties=properties) == data


@pytest.mark.parametrize("size", [1, 255, 256, 300, 511, 512, 65_535])
@pytest.mark.parametrize("qos", [0, 1])
def test_a_topic_of_any_length_is_understood(size: int, qos: int) -> None:
    """Both bytes of its length count."""
    topic = b"t" * size
    data = packet(0x30 | qos << 1, text(topic) + (b"\x12\x34" if qos else b"") + b"payload")
    assert _take(data) == ([(topic, b"payload", 0x1234 if qos else 0, False)], len(data), len(data))


@pytest.mark.parametrize(
    ("begun", "known"),
    [
        (b"\xd0", 2),
        (b"\x30", 2),
        (b"\x30\x05", 7),
        (b"\x30\x80", 3),
        (b"\x30\x80\x01", 131),
        (b"\x30\x80\x80", 4),
        (b"\x30\x80\x80\x80", 5),
        (b"\x30\x80\x80\x80\x01", 2_097_157),
    ],
)
def test_the_end_of_what_has_begun_is_as_near_as_it_can_be(begun: bytes, known: int) -> None:
    """Whoever waits for more must not wait for a byte that never comes: a ping has two."""
    assert _take(begun) == ([], 0, known)
    assert _take(b"\x40\x02\x00\x01" + begun) == ([(1, 0)], 4, 4 + known)


def test_an_answer_to_a_ping_is_shown_when_its_second_byte_has_come() -> None:
    """Byte by byte and with nothing behind it: a link is not taken for dead."""
    assert _feed([b"\xd0", b"\x00"], is_v5=False) == [("paho", b"\xd0\x00")]


@pytest.mark.parametrize("retain", [False, True])
@pytest.mark.parametrize("packet_id", [0, 1, 0x0100, 0xFFFF])
def test_the_longest_head_there_is_holds_the_packet_id_and_no_byte_more(packet_id: int, retain: bool) -> None:
    """A topic of 65,535 bytes, and at QoS 0 no id although its payload stands in that place."""
    topic, payload = b"t" * 65_535, b"\x01" * 3_000_000
    identifier = packet_id.to_bytes(2, "big") if packet_id else b""
    whole = packet(0x30 | (2 if packet_id else 0) | retain, text(topic) + identifier + payload)
    assert hot_packets.head_of_message(whole[: hot_packets.HEAD_BYTES]) == (topic, packet_id)
    if packet_id:
        assert whole[hot_packets.HEAD_BYTES :] == payload
    head = hot_packets.topic_head(topic.decode())
    assert hot_packets.publish(head, payload, packet_id, retain=retain, properties=b"") == whole


@pytest.mark.parametrize("first", [0x90, 0x40, 0xF0, 0x20])
def test_only_a_message_may_be_too_long(first: int) -> None:
    """Of any other packet, and of a message to no topic, the rest is not understood without the beginning."""
    with pytest.raises(ValueError, match="far too long"):
        hot_packets.head_of_message(packet(first, text(b"a/b") + bytes(100_000))[: hot_packets.HEAD_BYTES])
    with pytest.raises(ValueError, match="far too long"):
        hot_packets.head_of_message(packet(0x32, text(b"") + bytes(100_000))[: hot_packets.HEAD_BYTES])


def test_a_reason_from_128_on_is_a_refusal() -> None:
    """MQTT 5 section 2.4: below that it is a success, such as "no matching subscribers" (16)."""
    assert [reason for reason in range(256) if hot_packets.is_refusal(reason)] == list(range(128, 256))


class _Claims(bytes):
    """Says that it is longer than it is: the longest packets need not be made."""

    claimed = 0

    def __len__(self) -> int:
        return self.claimed


def test_a_message_longer_than_mqtt_can_say_is_refused() -> None:
    """268,435,455 bytes behind the length, of which the topic takes 5; its four digits are then all full."""
    payload = _Claims(b"x")
    payload.claimed = 268_435_450
    head = hot_packets.topic_head("a/b")
    packet_of_most = hot_packets.publish(head, payload, 0, retain=False, properties=b"")
    assert packet_of_most.startswith(b"\x30\xff\xff\xff\x7f\x00\x03a/b")
    payload.claimed += 1
    with pytest.raises(ValueError, match="at most 268435455 bytes, found 268435456"):
        hot_packets.publish(head, payload, 0, retain=False, properties=b"")


def test_packet_ids_end_with_the_last_that_two_bytes_hold() -> None:
    """One more would be no packet (MQTT 3.1.1 section 2.3.1)."""
    assert hot_packets.puback(hot_packets.LAST_ID) == b"\x40\x02\xff\xff"
    assert len(hot_packets.puback(1)) == hot_packets.PUBACK_BYTES


def test_the_encoded_topics_that_are_kept_have_a_bound() -> None:
    """Ten thousand, whatever devices invent; each is right, also when the others have been forgotten."""
    heads = hot_packets.TopicHeads()
    most = 0
    for number in range(20_001):
        topic = f"t/{number}"
        assert heads[topic] == text(topic.encode())
        assert heads[topic] is heads[topic]
        most = max(most, len(heads))
    assert most == 10_000
    with pytest.raises(ValueError, match="expected a topic"):
        heads["#"]


@pytest.mark.parametrize("is_v5", [False, True])
@pytest.mark.parametrize("size", [0, 1, 116, 117, 118, 16_000, 16_371, 16_372, 16_373, 2_097_100])
def test_the_size_of_a_packet_is_known_before_it_is_made(size: int, is_v5: bool) -> None:
    """To the byte, whatever length its length needs."""
    head = hot_packets.topic_head("edge/m/a")
    made = hot_packets.publish(head, bytes(size), 1024, retain=False, properties=b"\0" if is_v5 else b"")
    assert hot_packets.publish_size(head, size, is_v5=is_v5) == len(made)
