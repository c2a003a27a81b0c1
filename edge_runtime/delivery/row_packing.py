"""Packs a payload for a row of the outbox: words common to all predictions become one byte each.

An outage costs bytes of flash, and a third of a prediction is repeated words. zlib would give a third less, but takes
three times as long: more than the missing index saves. Each row is independent: unpacking needs only the table below,
so that damage costs only the rows that it hits. Bytes that are not such JSON are stored unchanged.
"""

from collections.abc import Sequence

AS_IS, WORDS = 0, 1  # written into rows: another table needs another number, and this one has to stay for old rows

_AT_ONCE = 64  # payloads copied at a time, instead of a copy of everything in memory

# As `delivery/json_payload.py` writes them. A word costs a quarter of a microsecond for each payload, whether it
# occurs or not: so only the long ones are here, and the one that occurs with every class.
_TABLE = (
    b',"device":"',
    b'","model":"',
    b'","version":"',
    b'","source":"',
    b',"time":"20',
    b'Z","label":"',
    b',"scores":{"',
    b'":0.',
)
_BETWEEN = b"\0"
_FREE = bytes(number for number in range(1, 32) if number not in b"\t\n\r")  # never literal in JSON
_CODES = [(word, bytes([code])) for word, code in zip(_TABLE, _FREE, strict=False)]
_RESERVED = _BETWEEN + _FREE


class UnpackError(ValueError):
    """These bytes are not what `pack` made."""


def pack(payloads: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """The packing and the packed bytes of each payload."""
    packed: list[tuple[int, bytes]] = []
    for start in range(0, len(payloads), _AT_ONCE):
        packed += _pack_together(payloads[start : start + _AT_ONCE])
    return packed


def _pack_together(payloads: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Pack all in one text, since a search in a long text costs little more than in a short one."""
    joined = _BETWEEN.join(payloads)
    reserved = len(joined) - len(joined.translate(None, _RESERVED))
    if reserved == len(payloads) - 1:
        for word, code in _CODES:
            joined = joined.replace(word, code)
        return [(WORDS, packed) for packed in joined.split(_BETWEEN)]
    if len(payloads) == 1:
        return [(AS_IS, payloads[0])]
    return [packed for payload in payloads for packed in _pack_together([payload])]


def unpack(packing: int, packed: bytes) -> bytes:
    """The payload.

    Raises:
        UnpackError: the row was damaged, or comes from a later program.
    """
    if packing == AS_IS:
        return packed
    if packing != WORDS:
        raise UnpackError(f"packing {packing} is not known here")
    payload = packed
    for word, code in _CODES:
        payload = payload.replace(code, word)
    return payload
