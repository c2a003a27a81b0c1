"""A whole socket over a stand-in for the system's, call by call: what it asks of the kernel, and each of its limits."""

import socket
from typing import Any, cast

import pytest

from edge_runtime.mqtt import hot_packets, whole_socket
from edge_runtime.mqtt.whole_socket import MOST_BYTES, RECEIVE_BYTES, WholeSocket

LOW = (socket.SOL_SOCKET, socket.SO_RCVLOWAT)


class _WantReadError(OSError):
    """Stands in for `ssl.SSLWantReadError`."""


class _WantWriteError(OSError):
    """Stands in for `ssl.SSLWantWriteError`."""


class _Tls:
    SSLWantReadError, SSLWantWriteError = _WantReadError, _WantWriteError


class _Socket:
    """Gives what a test has put in, and notes what it is asked for."""

    def __init__(self, *arriving: bytes | OSError) -> None:
        self.arriving = list(arriving)
        self.sent: list[bytes] = []
        self.takes = 1000
        self.fault: OSError | None = None
        self.calls: list[tuple[Any, ...]] = []
        self.decoded = 0

    def recv(self, size: int) -> bytes:
        self.calls.append(("recv", size))
        found = self.arriving.pop(0) if self.arriving else BlockingIOError()
        if isinstance(found, OSError):
            raise found
        return found

    def send(self, data: bytes | bytearray) -> int:
        if self.fault is not None:
            raise self.fault
        self.sent.append(bytes(data[: self.takes]))
        return len(self.sent[-1])

    def sendall(self, data: bytes | bytearray) -> None:
        if self.fault is not None:
            raise self.fault
        self.sent.append(bytes(data))

    def setsockopt(self, *option: int) -> None:
        if self.fault is not None:
            raise self.fault
        self.calls.append(option)

    def pending(self) -> int:
        return self.decoded

    def setblocking(self, flag: bool) -> None:
        self.calls.append(("setblocking", flag))

    def settimeout(self, seconds: float) -> None:
        self.calls.append(("settimeout", seconds))

    def shutdown(self, how: int) -> None:
        self.calls.append(("shutdown", how))

    def close(self) -> None:
        self.calls.append(("close",))

    def take_calls(self) -> list[tuple[Any, ...]]:
        """Those since the last look, but for reads."""
        calls, self.calls = self.calls, []
        return [call for call in calls if call[0] != "recv"]


class _Taker:
    """Notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def took_message(
        self, topic: bytes, payload: bytes, packet_id: int, *, retained: bool, repeated: bool = False
    ) -> None:
        self.calls.append((topic, payload))

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        self.calls.append(("ack", packet_id))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        self.calls.append(("too long", topic, size))


def _whole(under: _Socket, *, tls: bool = False, shows_bytes: bool = True) -> WholeSocket:
    return WholeSocket(cast("Any", under), cast("Any", _Tls) if tls else None, shows_bytes=shows_bytes)


def _message(size: int) -> bytes:
    """A PUBLISH of QoS 1 of so many bytes in all, on the topic `t`."""
    for length in range(size):
        packet = hot_packets.publish(hot_packets.topic_head("t"), bytes(length), 5, retain=False, properties=b"")
        if len(packet) == size:
            return packet
    raise AssertionError(size)


def _length(number: int) -> bytes:
    """A variable byte integer (MQTT section 2.2.3), by arithmetic."""
    parts = []
    while True:
        number, part = divmod(number, 128)
        parts.append(part | (128 if number else 0))
        if not number:
            return bytes(parts)


def _long(size: int) -> bytes:
    """A PUBLISH of QoS 1 of so many bytes in all, from 16 KB to 2 MB, on the topic `t`."""
    return b"\x32" + _length(size - 4) + b"\x00\x01t\x00\x05" + bytes(size - 4 - 5)


def _fed(whole: WholeSocket, under: _Socket, taker: _Taker, *pieces: bytes) -> None:
    """Each piece is one read."""
    for piece in pieces:
        under.arriving.append(piece)
        whole.fill()
        assert not whole.take(taker, is_v5=False), "nothing is for paho"


def test_one_read_asks_for_64_kib_and_says_that_it_heard_something() -> None:
    """And the end, or nothing, is no sign of life."""
    under = _Socket(BlockingIOError(), b"x", b"")
    whole = _whole(under)
    assert (whole.fill(), whole.heard) == (False, False)
    assert (whole.fill(), whole.heard) == (False, True)
    assert under.calls == [("recv", 65_536)] * 2
    whole.heard = False
    assert whole.recv(5) == b"x"
    assert (whole.fill(), whole.heard, whole.has_received) == (False, False, True)
    assert RECEIVE_BYTES == 65_536
    assert whole.most_bytes == MOST_BYTES == 16 * 1024 * 1024


def test_reads_are_confirmed_where_it_is_wanted() -> None:
    """By the option that sends TCP's acknowledgement at once; it does not last, and is set with each read."""
    under = _Socket(b"x", b"y", b"z")
    whole = _whole(under)
    whole.fill()
    assert under.take_calls() == []
    whole.confirms = True
    whole.fill()
    whole.fill()
    assert under.take_calls() == [(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)] * 2


def test_over_tls_there_may_be_more_and_later_is_no_fault() -> None:
    """As long as decoded bytes are left."""
    under = _Socket(b"x", b"y", b"z", _WantReadError(), _WantWriteError(), BlockingIOError())
    whole = _whole(under, tls=True)
    found = []
    for decoded in (2, 1, 0):
        under.decoded = decoded
        found.append(whole.fill())
    assert found == [True, True, False]
    assert [whole.fill() for _ in range(3)] == [False] * 3
    assert whole.recv(9) == b"xyz"
    whole.send(b"a")
    for fault in (_WantReadError(), _WantWriteError(), BlockingIOError()):
        under.fault = fault
        assert not whole.flush()
    assert whole.has_unsent
    under.fault = ConnectionResetError()
    with pytest.raises(ConnectionResetError):
        whole.flush()
    plain = _Socket(_WantReadError())
    with pytest.raises(_WantReadError):
        _whole(plain).fill()


@pytest.mark.parametrize(("tls", "shows"), [(True, True), (False, False), (True, False)])
def test_where_the_kernel_does_not_see_packets_every_byte_wakes(*, tls: bool, shows: bool) -> None:
    """Over TLS and over WebSockets."""
    under = _Socket()
    whole = _whole(under, tls=tls, shows_bytes=shows)
    assert whole.let_wait(5) is False
    _fed(whole, under, _Taker(), _message(20))
    assert under.take_calls() == []


def test_a_system_without_the_option_wakes_for_every_byte() -> None:
    """It is not asked again."""
    under = _Socket()
    whole = _whole(under)
    under.fault = OSError()
    assert whole.let_wait(5) is False
    under.fault = None
    taker = _Taker()
    _fed(whole, under, taker, _message(20), _message(20)[:9], _message(20)[9:])
    assert under.take_calls() == []
    assert len(taker.calls) == 2


def test_only_whole_packets_let_it_wait() -> None:
    """The option is set when it changes: 1 while a packet is incomplete or skipped."""
    under, taker = _Socket(), _Taker()
    whole = _whole(under)
    whole.most_bytes = 70_000
    packet = _message(20)
    _fed(whole, under, taker, packet[:9])
    assert whole.let_wait(5)
    assert under.take_calls() == [], "one is incomplete"
    _fed(whole, under, taker, packet[9:])
    assert under.take_calls() == [(*LOW, 5)]
    assert whole.let_wait(5)
    _fed(whole, under, taker, packet, packet + packet)
    assert under.take_calls() == []
    _fed(whole, under, taker, packet[:1])
    assert under.take_calls() == [(*LOW, 1)]
    _fed(whole, under, taker, packet[1:2], packet[2:])
    assert under.take_calls() == [(*LOW, 5)]
    long = _long(100_004)
    _fed(whole, under, taker, long[:66_000])
    assert under.take_calls() == [(*LOW, 1)]
    assert whole.let_wait(9)
    assert under.take_calls() == [], "one is skipped"
    _fed(whole, under, taker, long[66_000:])
    assert under.take_calls() == [(*LOW, 9)]
    assert whole.let_wait(2)
    _fed(whole, under, taker, packet[:3], packet[3:])
    assert under.take_calls() == [(*LOW, 2), (*LOW, 1), (*LOW, 2)]
    assert whole.let_wait(1)
    assert under.take_calls() == [(*LOW, 1)]
    assert taker.calls[-2:] == [("too long", b"t", 100_004), (b"t", bytes(20 - 7))]


@pytest.mark.parametrize("cut", [1, 500, 69_000, 69_999])
def test_the_longest_message_is_kept_and_one_more_byte_is_skipped(cut: int) -> None:
    """At `most_bytes` exactly, however it is cut; a short one behind it waits for nothing."""
    under, taker = _Socket(), _Taker()
    whole = _whole(under)
    whole.most_bytes = 70_000
    longest, longer, short = _long(70_000), _long(70_001), _message(20)
    assert (len(longest), len(longer)) == (70_000, 70_001)
    _fed(whole, under, taker, longest[:cut], longest[cut:])
    assert taker.calls == [(b"t", bytes(70_000 - 9))]
    _fed(whole, under, taker, short[:9], short[9:])
    assert taker.calls[1:] == [(b"t", bytes(13))]
    _fed(whole, under, taker, longer[:69_500], longer[69_500:], short)
    assert taker.calls[2:] == [("too long", b"t", 70_001), (b"t", bytes(13))]


def test_a_long_message_is_parsed_at_its_begin_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at each of its pieces, which would cost the square of its length."""
    parsed: list[int] = []
    take = hot_packets.take

    def noted(data: bytes, *arguments: Any, **options: Any) -> tuple[int, int]:
        parsed.append(len(data))
        return take(data, *arguments, **options)

    monkeypatch.setattr(hot_packets, "take", noted)
    under, taker = _Socket(), _Taker()
    whole = _whole(under)
    whole.most_bytes = 70_000
    longest = _long(70_000)
    _fed(whole, under, taker, *(longest[at : at + 1000] for at in range(0, 70_000, 1000)))
    assert taker.calls == [(b"t", bytes(70_000 - 9))]
    assert [size for size in parsed if size] == [1000, 70_000]


def test_a_skipped_message_is_named_when_its_head_is_there() -> None:
    """Not before: the topic is a part of it."""
    under, taker = _Socket(), _Taker()
    whole = _whole(under)
    whole.most_bytes = 70_000
    topic = b"t" * 40_000
    body = len(topic).to_bytes(2, "big") + topic + b"\x00\x05" + bytes(60_000)
    long = b"\x32" + _length(len(body)) + body
    head = hot_packets.HEAD_BYTES
    assert len(long) > head
    _fed(whole, under, taker, long[:30_000], long[30_000 : head - 1])
    assert taker.calls == []
    _fed(whole, under, taker, long[head - 1 : head])
    assert taker.calls == [("too long", topic, len(long))]
    _fed(whole, under, taker, long[head:] + _message(20))
    assert taker.calls[1:] == [(b"t", bytes(13))]


def test_what_does_not_go_is_kept_for_later() -> None:
    """In order; a flush says whether all is written."""
    under = _Socket()
    whole = _whole(under)
    under.takes = 2
    assert whole.send(b"abc") == 3
    assert whole.flush() is False
    assert whole.flush() is True
    assert under.sent == [b"ab", b"c"]
    assert not whole.has_unsent


def test_it_blocks_as_the_socket_does() -> None:
    """The call is passed on."""
    under = _Socket()
    _whole(under).setblocking(False)
    assert under.calls == [("setblocking", False)]


def test_a_close_without_patience_waits_for_nothing() -> None:
    """What is unsent gets one attempt, once."""
    under = _Socket()
    whole = _whole(under)
    whole.send(b"bye")
    whole.close()
    whole.close()
    assert (under.sent, under.calls) == ([b"bye"], [("close",), ("close",)])
    under = _Socket()
    whole = _whole(under)
    whole.send(b"bye")
    under.fault = BrokenPipeError()
    whole.close()
    assert under.calls == [("close",)]
    assert not whole.has_unsent


class _Time:
    """A clock that goes on by a quarter of a second at each look."""

    now = 100.0

    def monotonic(self) -> float:
        self.now += 0.25
        return self.now - 0.25


def test_a_clean_end_reads_until_the_peer_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what is left of the patience as the limit of each read."""
    monkeypatch.setattr(whole_socket, "time", _Time())
    under = _Socket(b"late", b"later", b"")
    whole = _whole(under)
    whole.set_patience(3.0)
    whole.close()
    assert under.calls == [
        ("settimeout", 3.0), ("shutdown", socket.SHUT_WR), ("settimeout", 2.75), ("recv", 65_536), ("settimeout", 2.5),
        ("recv", 65_536), ("settimeout", 2.25), ("recv", 65_536), ("close",),
    ]  # fmt: skip


def test_a_clean_end_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a peer that sends for ever, and against one that is gone; no timeout of 0, which would not block."""
    monkeypatch.setattr(whole_socket, "time", _Time())
    under = _Socket(*[b"x"] * 9)
    whole = _whole(under)
    whole.set_patience(1.0)
    whole.close()
    limits = [call[1] for call in under.calls if call[0] == "settimeout"]
    assert limits == [1.0, 0.75, 0.5, 0.25]
    assert under.calls[-1] == ("close",)
    for fault in (TimeoutError(), ConnectionResetError()):
        under = _Socket(fault)
        whole = _whole(under)
        whole.set_patience(1.0)
        whole.close()
        assert under.calls[-2:] == [("recv", 65_536), ("close",)]
