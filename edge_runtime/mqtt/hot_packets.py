"""The packets of the hot path, PUBLISH both ways and PUBACK, decoded and encoded whole. Pure: bytes in, bytes out.

paho makes some twenty objects and takes three locks for each. Packets other than these, well formed and without
properties, are left to paho: QoS 2, MQTT 5 properties, every other type, and malformed ones.
"""

import re
from typing import Protocol

from edge_runtime.config.topics import UNFIT_CHARACTERS

PUBLISH, PUBACK = 0x30, 0x40
PUBACK_BYTES = 4  # shorter than any PUBLISH (MQTT 3.1.1 sections 3.3 and 3.4)
FIRST_ID = 1024  # paho numbers its own packets (SUBSCRIBE) from 1 on; ours do not collide with these
LAST_ID = 65_535
MOST_BYTES = 268_435_455  # MQTT 3.1.1 section 2.2.3
MOST_TOPIC_BYTES = 65_535
MOST_TOPICS = 10_000  # cached in encoded form
HEAD_BYTES = 5 + 2 + MOST_TOPIC_BYTES + 2  # header, topic with its length, packet id
PINGREQ = b"\xc0\x00"
_UNFIT = re.compile(f"[+#{UNFIT_CHARACTERS}]")
_REFUSED = 0x80  # MQTT 5 section 2.4


class Taker(Protocol):
    """Receives the packets."""

    def took_message(
        self, topic: bytes, payload: bytes, packet_id: int, *, retained: bool, repeated: bool = False
    ) -> None:
        """A PUBLISH; `packet_id` is 0 at QoS 0, `repeated` is its DUP flag."""

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        """A PUBACK; a `reason` of 128 and more is a refusal."""

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        """A PUBLISH that is skipped for its size; see `WholeSocket.most_bytes`."""


def topic_head(topic: str) -> bytes:
    """The encoded topic.

    Raises:
        ValueError: no broker would accept a message to it.
    """
    if not topic or _UNFIT.search(topic) or len(raw := topic.encode()) > MOST_TOPIC_BYTES:
        raise ValueError(
            f"expected a topic of 1 to {MOST_TOPIC_BYTES} bytes without wildcards and control characters, "
            f"found {topic[:80]!r}"
        )
    return len(raw).to_bytes(2, "big") + raw


class TopicHeads(dict[str, bytes]):
    """The encoded form of the latest `MOST_TOPICS` topics; a lookup raises as `topic_head` does."""

    def __missing__(self, topic: str) -> bytes:
        if len(self) >= MOST_TOPICS:
            self.clear()
        head = self[topic] = topic_head(topic)
        return head


def publish(head: bytes, payload: bytes, packet_id: int, *, retain: bool, properties: bytes) -> bytes:
    """A PUBLISH: QoS 1 with a packet id, QoS 0 with 0 instead; `properties` are encoded, empty in MQTT 3.1.1.

    Raises:
        ValueError: it is longer than MQTT allows.
    """
    first = PUBLISH | (2 if packet_id else 0) | (1 if retain else 0)
    identifier = packet_id.to_bytes(2, "big") if packet_id else b""
    size = len(head) + len(identifier) + len(properties) + len(payload)
    if size > MOST_BYTES:
        raise ValueError(f"expected at most {MOST_BYTES} bytes, found {size}")
    is_usual = 128 <= size < 16_384  # its length has two digits
    begin = bytes((first, size & 127 | 128, size >> 7)) if is_usual else bytes((first,)) + _length(size)
    return b"".join((begin, head, identifier, properties, payload))


def publish_size(head: bytes, payload_bytes: int, *, is_v5: bool) -> int:
    """The bytes of a PUBLISH of QoS 1 without properties."""
    size = len(head) + 2 + is_v5 + payload_bytes
    return 1 + len(_length(size)) + size


def puback(packet_id: int) -> bytes:
    """A PUBACK of success, the same in both versions."""
    return b"\x40\x02" + packet_id.to_bytes(2, "big")


def head_of_message(data: bytes) -> tuple[bytes, int]:
    """Topic and packet id (0 at QoS 0) of a PUBLISH of which at least `HEAD_BYTES` are present.

    Raises:
        ValueError: it is no PUBLISH, or malformed.
    """
    body, _ = _bounds(data, 0, len(data))
    topic = body + 2
    end = topic + (data[body] << 8 | data[body + 1])
    if data[0] & 0xF0 != PUBLISH or end == topic:
        raise ValueError("expected a PUBLISH, found another packet that is far too long")
    return data[topic:end], data[end] << 8 | data[end + 1] if data[0] & 6 else 0


def take(data: bytes, at: int, taker: Taker, *, is_v5: bool) -> tuple[int, int]:
    """Take the hot packets from `at` on, up to one for paho or an incomplete one.

    Returns:
        Where that packet begins and ends. The end lies beyond `data` where it is incomplete (as far as is known by
        then), and is the beginning where nothing is left.
    """
    size = len(data)
    while at < size:
        if at + 2 <= size and data[at + 1] < 128:  # `_bounds` inlined for short packets
            body = at + 2
            end = body + data[at + 1]
        else:
            body, end = _bounds(data, at, size)
        if end > size:
            return at, end
        first = data[at]
        if first & 0xF4 == PUBLISH:
            taken = _take_message(data, first, body, end, taker=taker, is_v5=is_v5)
        elif first == PUBACK and end - body >= 2:
            reason = data[body + 2] if end - body > 2 else 0
            taker.took_acknowledgement(data[body] << 8 | data[body + 1], reason)
            taken = True
        else:
            taken = False
        if not taken:
            return at, end
        at = end
    return at, at


def _take_message(data: bytes, first: int, body: int, end: int, *, taker: Taker, is_v5: bool) -> bool:
    topic = body + 2
    payload = topic + (data[body] << 8 | data[body + 1]) if topic <= end else end + 1
    after = payload + (2 if first & 2 else 0) + (1 if is_v5 else 0)
    if after > end or payload == topic or (is_v5 and data[after - 1]):  # cut short, without a topic, with properties
        return False
    packet_id = data[payload] << 8 | data[payload + 1] if first & 2 else 0
    if first & 2 and not packet_id:
        return False
    if first & 8:
        taker.took_message(data[topic:payload], data[after:end], packet_id, retained=bool(first & 1), repeated=True)
    else:
        taker.took_message(data[topic:payload], data[after:end], packet_id, retained=bool(first & 1))
    return True


def _bounds(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Where the body of the packet at `at` begins, and where it ends; beyond `size` while that is unknown."""
    start = at + 2
    if start > size:
        return start, size + 1
    remaining = data[at + 1]
    if remaining < 128:
        return start, start + remaining
    remaining &= 127
    for shift in (7, 14, 21):
        if start >= size:
            return start, size + 1
        byte = data[start]
        start += 1
        remaining |= (byte & 127) << shift
        if byte < 128:
            return start, start + remaining
    return start, start  # a fifth digit is no MQTT: paho reports it


def _length(size: int) -> bytes:
    if size < 128:
        return bytes((size,))
    digits = bytearray()
    while size:
        digits.append(size & 127 | 128)
        size >>= 7
    digits[-1] &= 127
    return bytes(digits)


def is_refusal(reason: int) -> bool:
    """Whether a PUBACK's reason code is a refusal."""
    return reason >= _REFUSED
