"""A payload as a row of the outbox keeps it: the words that every prediction has are one byte each.

An outage is paid in bytes of flash, and a third of a prediction is the same words again. zlib would leave a third less,
and takes three times as long: more than the missing index saves. Each row stands for itself: all that it takes to
unpack it is the table below, so that a damage costs the rows that it hits and no other. What is no JSON of ours is
kept as it is.
"""

from collections.abc import Sequence

AS_IS, WORDS = 0, 1  # written into rows: another table needs another number, and this one has to stay for old rows

_AT_ONCE = 64  # a copy of so many payloads is made, and no copy of a whole memory full of them

# As `publish/json_payload.py` writes them. A word costs a quarter of a microsecond for each payload, whether it is
# there or not: these are the long ones, and the one that comes with every class.
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
_FREE = bytes(number for number in range(1, 32) if number not in b"\t\n\r")  # JSON has to escape these
_CODES = [(word, bytes([code])) for word, code in zip(_TABLE, _FREE, strict=False)]
_RESERVED = _BETWEEN + _FREE


class UnpackError(ValueError):
    """These bytes are not what `pack` made."""


def pack(payloads: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """How each payload is kept, and its bytes."""
    packed: list[tuple[int, bytes]] = []
    for start in range(0, len(payloads), _AT_ONCE):
        packed += _pack_together(payloads[start : start + _AT_ONCE])
    return packed


def _pack_together(payloads: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """All in one text, since a search of a long text costs little more than one of a short one."""
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
