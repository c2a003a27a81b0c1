"""The little of MQTT 3.1.1 that the load generator and the bare floor need: bytes in, bytes out, no socket.

No client: no keep-alive, no resend, no reconnection. It exists so that the generator costs little beside its
target, and as the floor below which no client in Python can be expected to come.
"""

PUBLISH = 0x30
PUBACK = 0x40

Packet = tuple[int, int, int]


def connect(client_id: str) -> bytes:
    """CONNECT with a clean session and keep-alive switched off."""
    body = _text("MQTT") + bytes([4, 0b0000_0010, 0, 0]) + _text(client_id)
    return bytes([0x10]) + _length(len(body)) + body


def subscribe(topic: str, qos: int) -> bytes:
    """SUBSCRIBE to one topic filter, as packet 1."""
    body = bytes([0, 1]) + _text(topic) + bytes([qos])
    return bytes([0x82]) + _length(len(body)) + body


def suback(subscription: bytes) -> bytes:
    """SUBACK that grants QoS 1 for every filter in the body of a SUBSCRIBE."""
    at, filters = 2, 0
    while at < len(subscription):
        at += 2 + int.from_bytes(subscription[at : at + 2], "big") + 1
        filters += 1
    body = subscription[:2] + bytes([1]) * filters
    return bytes([0x90]) + _length(len(body)) + body


def publish(topic: str, payload: bytes, packet_id: int | None) -> bytes:
    """PUBLISH at QoS 1, or at QoS 0 when there is no packet id."""
    identifier = b"" if packet_id is None else packet_id.to_bytes(2, "big")
    body = _text(topic) + identifier + payload
    return bytes([PUBLISH | (0 if packet_id is None else 2)]) + _length(len(body)) + body


def packets(data: bytes | bytearray) -> tuple[list[Packet], int]:
    """The complete packets in `data` as (first byte, start of body, end), and how many bytes they take."""
    found: list[Packet] = []
    at, size = 0, len(data)
    while size - at >= 2:
        length = shift = 0
        cursor = at + 1
        while True:
            if cursor >= size:
                return found, at
            byte = data[cursor]
            cursor += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        end = cursor + length
        if end > size:
            break
        found.append((data[at], cursor, end))
        at = end
    return found, at


def _text(value: str) -> bytes:
    raw = value.encode()
    return len(raw).to_bytes(2, "big") + raw


def _length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, digit = divmod(size, 128)
        out.append(digit | (0x80 if size else 0))
        if not size:
            return bytes(out)
