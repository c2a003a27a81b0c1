"""Targets of the two protocols that strangers speak to us: HTTP requests and MQTT packets, each in sequence.

What is read must not depend on how the network has cut it, and nothing that is kept may grow beyond its bound.
"""

import socket
from typing import Any, cast

from edge_runtime.http.request_reader import MAX_HEAD_BYTES, BadRequestError, RequestReader
from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.whole_socket import WholeSocket

LONGEST = 70_000  # of an MQTT packet that is kept


def http_requests(data: bytes) -> None:
    """The same requests come out however the bytes were cut; what follows the end of one belongs to the next."""
    whole, refused = _requests([data])
    step = (data[0] % 7 if data else 0) + len(data) // 200 + 1
    pieces, refused_too = _requests([data[at : at + step] for at in range(0, len(data), step)])
    assert (pieces, refused_too) == (whole, refused), "a cut changes nothing"
    for method, path, headers, body in whole:
        assert method.isascii()
        assert "\n" not in path.replace("%0a", "") or b"%0" in data or b"%0A" in data
        assert all(name == name.lower() and "\r" not in value and "\n" not in value for name, value in headers)
        lengths = [value for name, value in headers if name == "content-length"]
        assert not lengths or int(lengths[0]) == len(body)


def _requests(pieces: list[bytes]) -> tuple[list[tuple[str, str, list[tuple[str, str]], bytes]], bool]:
    reader, found = RequestReader(), []
    try:
        for piece in pieces:
            reader.feed(piece)
            while reader.head is not None:
                if not reader.wants and not reader.complete:
                    reader.accept()
                if not reader.complete:
                    break
                head = reader.head
                found.append((head.method, head.path, sorted(head.headers.items()), bytes(reader.body)))
                reader.next()
            assert reader.head is not None or len(reader._buffer) <= MAX_HEAD_BYTES + len(piece)
    except BadRequestError as error:
        refusal = error
    else:
        return found, False
    assert refusal.status in {400, 431, 501}
    assert str(refusal).isprintable()
    return found, True


class _Wire:
    """Stands in for a socket: gives what is handed to it, a piece a call."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def recv(self, _size: int) -> bytes:
        """The next piece."""
        if not self._pieces:
            raise BlockingIOError
        return self._pieces.pop(0)

    def setsockopt(self, *_: Any) -> None:
        """Nothing to set."""


class _Noting:
    """Takes the packets of the hot path, and what is left to paho."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []

    def took_message(self, topic: bytes, payload: bytes, packet_id: int, **named: Any) -> None:
        """A PUBLISH."""
        assert 0 < len(topic) <= hot_packets.MOST_TOPIC_BYTES
        assert 0 <= packet_id <= hot_packets.LAST_ID
        self.found.append(("message", topic, payload, packet_id, sorted(named.items())))

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        """A PUBACK."""
        self.found.append(("acknowledgement", packet_id, reason))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        """A PUBLISH that is passed over."""
        assert size > LONGEST
        self.found.append(("too long", topic, packet_id, size))


def mqtt_packets(data: bytes) -> None:
    """The same packets come out however the bytes were cut, in both versions; nothing long is kept."""
    step = (data[0] % 7 if data else 0) + len(data) // 200 + 1
    for is_v5 in (False, True):
        whole = _packets([data], is_v5=is_v5)
        pieces = _packets([data[at : at + step] for at in range(0, len(data), step)], is_v5=is_v5)
        assert pieces == whole, "a cut changes nothing"


def _packets(pieces: list[bytes], *, is_v5: bool) -> list[tuple[Any, ...]]:
    pieces = [piece for piece in pieces if piece]  # an empty one would be the end
    count = len(pieces)
    taker = _Noting()
    wrapped = WholeSocket(cast("socket.socket", _Wire(pieces)))
    wrapped.most_bytes = LONGEST
    try:
        for _ in range(count):
            wrapped.fill()
            while wrapped.take(cast("hot_packets.Taker", taker), is_v5=is_v5):
                taker.found.append(("paho", _all_of(wrapped)))
            assert len(wrapped._partial) <= LONGEST + hot_packets.HEAD_BYTES + len(pieces[0] if pieces else b"")
    except ValueError:
        taker.found.append(("not MQTT",))
    return taker.found


def _all_of(wrapped: WholeSocket) -> bytes:
    """The one packet that paho is shown."""
    shown = b""
    try:
        while part := wrapped.recv(7):
            shown += part
    except BlockingIOError:
        return shown
    return shown


_GET = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n"
_POST = b"POST /predict/m HTTP/1.1\r\nHost: a\r\n"
_PUBLISH = b'\x32\x0c\x00\x03a/b\x04\x00{"x":1'
SEEDS: dict[str, list[bytes]] = {
    "http_requests": [
        _GET + b"\r\n" + _POST + b"Content-Length: 3\r\n\r\nabcGET",
        b"\r\n"
        + _POST
        + b"Transfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"GET http://localhost:80/%2e%2e/a?b=c#d HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\n\r\n",
        _GET + b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(40)) + b"Expect: 100-continue\r\n\r\n",
        (_POST + b"Content-Length: 2\r\n\r\n\r\n") * 4,
    ],
    "mqtt_packets": [
        b"\x20\x02\x00\x00" + _PUBLISH + b"\x40\x02\x04\x01" + b"\x90\x03\x00\x01\x01" + b"\xd0\x00",
        b"\x20\x03\x00\x00\x00" + b'\x32\x0d\x00\x03a/b\x04\x00\x00{"x":1' + b"\x40\x03\x04\x01\x87\xe0\x02\x8e\x00",
        b"\x30\x80\x01" + b"\x00\x01a" + b"p" * 125 + b"\x30\xff\xff\xff\x7f\x00\x02ab" + b"q" * 300,
        b"\x40\x02\x04\x01" * 30 + b"\x31\x07\x00\x03a/bcc" * 5,
        b"\x30\x90\xa2\x04\x00\x01z" + b"y" * 69_900,
    ],
}
