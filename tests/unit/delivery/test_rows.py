"""A row of the outbox's file: what a damage makes of it is recognised, whatever it hits."""

import sqlite3
import zlib
from typing import Any

import pytest

from edge_runtime.delivery.rows import DamagedError, OutboxRow, is_damage, read_row, size_of, text_of

PAYLOAD = b'{"id":"a/m/-/1/2"}'


def _crc(stream: str, topic: str, payload: bytes = PAYLOAD) -> int:
    return zlib.crc32(stream.encode() + b"\0" + topic.encode() + b"\0" + payload)


def _found(**changed: Any) -> tuple[Any, ...]:
    """What SQLite hands out for one row, kept as it is, with the checksum of these texts."""
    values = {"id": 7, "stream": "5", "priority": 1, "made": 1e9, "topic": "6", "payload": PAYLOAD}
    values |= {"crc": _crc("5", "6"), "packing": 0}
    return tuple((values | changed).values())


def test_a_row_that_was_not_changed_is_sound() -> None:
    """And is handed out as it was written."""
    assert read_row(_found()) == OutboxRow(7, "5", 1, 1e9, "6", PAYLOAD, True)


@pytest.mark.parametrize(
    "changed",
    [
        {"stream": 5},  # the same text, and so the same checksum, but no text any more
        {"topic": 6},
        {"priority": "1"},
        {"priority": 1.0},
        {"made": "1e9"},
        {"made": 1_000_000_000},
        {"made": None},
        {"payload": PAYLOAD.decode()},
        {"payload": None},
        {"packing": 7},  # of a later program, or of a flipped bit
        {"packing": None},
        {"crc": _crc("5", "6") ^ 1},
        {"crc": None},
        {"stream": "m"},
        {"topic": "m"},
        {"payload": PAYLOAD[:-1]},
    ],
    ids=str,
)
def test_a_column_that_was_changed_makes_the_row_unsound_and_raises_nothing(changed: dict[str, Any]) -> None:
    """SQLite keeps any type in any column, and a checksum says nothing of types."""
    row = read_row(_found(**changed))
    assert row.is_sound is False
    assert row.id == 7


def test_the_place_of_a_row_belongs_to_its_checksum() -> None:
    """What is taken from the end of the stream and put before the topic is another row."""
    moved = read_row(_found(stream="", topic="56"))
    assert moved.is_sound is False


def test_a_text_that_is_no_utf_8_any_more_is_read_and_unsound() -> None:
    """Nothing is raised in the middle of a result."""
    assert text_of("grün".encode()) == "grün"
    assert read_row(_found(topic=text_of(b"6\xff"))).is_sound is False


def test_a_row_counts_its_texts_its_payload_and_64_bytes() -> None:
    """What SQLite keeps beside the payload was measured."""
    assert size_of("ab", "cde", 100) == 2 + 3 + 100 + 64


def _error(code: int | None) -> sqlite3.Error:
    error = sqlite3.DatabaseError("as SQLite says it")
    if code is not None:
        error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_error(sqlite3.SQLITE_CORRUPT), True),
        (_error(sqlite3.SQLITE_CORRUPT_INDEX), True),  # the kind stands in the lowest eight bits
        (_error(sqlite3.SQLITE_CORRUPT_VTAB), True),
        (_error(sqlite3.SQLITE_NOTADB), True),
        (_error(sqlite3.SQLITE_FORMAT), True),
        (DamagedError("schema 99 is newer"), True),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "in SQLite's own words"), True),
        (_error(sqlite3.SQLITE_IOERR_READ), False),
        (_error(sqlite3.SQLITE_FULL), False),
        (_error(sqlite3.SQLITE_BUSY), False),
        (_error(sqlite3.SQLITE_READONLY_DBMOVED), False),
        (_error(None), False),  # of Python's own, for example of a connection that is closed
        (OSError(5, "Input/output error"), False),
    ],
)
def test_a_damage_is_told_from_a_disk_that_fails(error: Exception, expected: bool) -> None:
    """The file of a disk that fails is kept, and opened again later."""
    assert is_damage(error) is expected
