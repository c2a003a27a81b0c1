"""Payloads of Sparkplug B as bytes: the few fields of its protobuf definition that an edge node needs. Pure.

The numbers are those of `sparkplug_b.proto` (Eclipse Tahu), the datatypes those of Sparkplug 3.0, section 6.4.16.
Written by hand, so that a device needs no protobuf library; `tests/unit/sparkplug` reads the bytes with two other
libraries.

Guarantee: `asks_for_rebirth` takes any bytes, in time linear in their length.
"""

import struct
from typing import NamedTuple

INT64, FLOAT, BOOLEAN, STRING = 4, 9, 11, 12
REBIRTH = "Node Control/Rebirth"

Value = bool | int | float | str

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types of protobuf
_MASK = (1 << 64) - 1
_DATATYPES: dict[type, int] = {bool: BOOLEAN, int: INT64, float: FLOAT, str: STRING}


class Metric(NamedTuple):
    """One metric: its name, its value, and the time of the value in milliseconds since the epoch."""

    name: str
    value: Value
    timestamp: int

    @property
    def datatype(self) -> int:
        """The number of its type."""
        return _DATATYPES[type(self.value)]


def encode_payload(
    metrics: list[Metric], *, timestamp: int, seq: int | None = None, is_historical: bool = False
) -> bytes:
    """Encode a payload; a death has no `seq`."""
    parts = [_number(1, timestamp)]
    parts += [_field(2, _metric(metric, is_historical=is_historical)) for metric in metrics]
    if seq is not None:
        parts.append(_number(3, seq))
    return b"".join(parts)


def asks_for_rebirth(payload: bytes) -> bool:
    """Whether a command sets `Node Control/Rebirth`; False for bytes that are no payload."""
    try:
        return any(number == 2 and isinstance(part, bytes) and _is_rebirth(part) for number, part in _fields(payload))
    except ValueError:
        return False


def _metric(metric: Metric, *, is_historical: bool) -> bytes:
    parts = [_field(1, metric.name.encode()), _number(3, metric.timestamp), _number(4, metric.datatype)]
    if is_historical:
        parts.append(_number(5, 1))
    value = metric.value
    if isinstance(value, bool):
        parts.append(_number(14, int(value)))
    elif isinstance(value, int):
        parts.append(_number(11, value & _MASK))  # a long, as two's complement
    elif isinstance(value, float):
        parts.append(_tag(12, _FOUR_BYTES) + struct.pack("<f", value))
    else:
        parts.append(_field(15, value.encode()))
    return b"".join(parts)


def _is_rebirth(metric: bytes) -> bool:
    name, value = b"", False
    for number, part in _fields(metric):
        if number == 1 and isinstance(part, bytes):
            name = part
        elif number == 14 and isinstance(part, int):
            value = bool(part)
    return name == REBIRTH.encode() and value


def _fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a message.

    Raises:
        ValueError: the bytes are no message.
    """
    found: list[tuple[int, int | bytes]] = []
    place = 0
    while place < len(data):
        key, place = _read_varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _read_varint(data, place)
            found.append((number, value))
            continue
        if kind == _BYTES:
            length, place = _read_varint(data, place)
        elif kind in {_EIGHT_BYTES, _FOUR_BYTES}:
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError("an unknown wire type")
        if length > len(data) - place:
            raise ValueError("a field is longer than its message")
        found.append((number, data[place : place + length]))
        place += length
    return found


def _read_varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("a number without its end")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number that is too long")


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _tag(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _number(number: int, value: int) -> bytes:
    return _tag(number, _VARINT) + _varint(value)


def _field(number: int, data: bytes) -> bytes:
    return _tag(number, _BYTES) + _varint(len(data)) + data
