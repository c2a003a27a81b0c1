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


class _Noted:
    """A taker that keeps what it is told."""

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
    said: list[tuple[Any, ...]] = [
        (b"a/b", b"one", 1, False), ("paho", ping), (b"a/b", b"z" * 200, 0, False), (9, 0x87), ("paho", second),
        ("paho", ping), (300, 0), (b"a/b", b"", 65_535, True),
    ]  # fmt: skip
    return data, said, is_v5


def test_a_stream_may_be_cut_anywhere(course: tuple[bytes, list[tuple[Any, ...]], bool]) -> None:
    """At every single byte, byte by byte, and at random."""
    data, said, is_v5 = course
    for at in range(len(data) + 1):
        assert _feed([piece for piece in (data[:at], data[at:]) if piece], is_v5=is_v5) == said, at
    assert _feed([data[i : i + 1] for i in range(len(data))], is_v5=is_v5) == said
    generator = random.Random(5)
    for _ in range(100):
        cuts = [0, *sorted(generator.sample(range(1, len(data)), generator.randrange(1, 12))), len(data)]
        assert _feed([data[a:b] for a, b in itertools.pairwise(cuts)], is_v5=is_v5) == said


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
