"""Rows of the outbox's file: their content, packing, checksum and reading.

Guarantee: a row with changed bytes is recognised by its checksum (`OutboxRow.is_sound`).
"""

import contextlib
import functools
import sqlite3
import zlib
from typing import Any, NamedTuple

import msgspec

from edge_runtime.delivery.row_packing import UnpackError, unpack

ROW_OVERHEAD_BYTES = 64  # SQLite's bytes for a row beside its payload, measured with 256-byte payloads
HIGHEST_ID = 1 << 62  # no device makes so many: a higher number is damage, and would leave none to continue with

SCHEMA = """
CREATE TABLE entry (
  id INTEGER PRIMARY KEY,
  stream TEXT NOT NULL,
  priority INTEGER NOT NULL,
  made REAL NOT NULL,
  topic TEXT NOT NULL,
  payload BLOB NOT NULL,
  crc INTEGER NOT NULL,
  packing INTEGER NOT NULL DEFAULT 0
)
"""
QUARANTINE = """
CREATE TABLE IF NOT EXISTS quarantine (
  id INTEGER PRIMARY KEY,
  at REAL NOT NULL,
  stream TEXT NOT NULL,
  made REAL NOT NULL,
  topic TEXT NOT NULL,
  payload BLOB NOT NULL,
  why TEXT NOT NULL
)
"""
COLUMNS = "id, stream, priority, made, topic, payload, crc, packing"
COLUMNS_OF_1 = "id, stream, priority, made, topic, payload, crc, 0"


class OutboxRow(NamedTuple):
    """One stored prediction. `id` rises in the order in which predictions were made.

    `is_sound` is False if its bytes have changed.
    """

    id: int
    stream: str
    priority: int
    made: float
    topic: str
    payload: bytes
    is_sound: bool


class NewRow(NamedTuple):
    """One prediction to be stored."""

    stream: str
    priority: int
    made: float
    topic: str
    payload: bytes


class SetAside(NamedTuple):
    """One prediction that can never be sent, to be put into the quarantine."""

    stream: str
    made: float
    topic: str
    payload: bytes
    why: str


class Opened(msgspec.Struct):
    """The result of opening the file.

    After a damaged file: `salvaged` rows were taken over, `lost` are missing, judged by the row numbers.
    """

    rows: int = 0
    bytes: int = 0
    streams: dict[str, int] = msgspec.field(default_factory=dict)
    salvaged: int = 0
    lost: int = 0
    damaged_file: str | None = None
    quarantined: int = 0


class Trimmed(msgspec.Struct):
    """Dropped rows: by reason, and by stream."""

    by_reason: dict[str, int] = msgspec.field(default_factory=dict)
    by_stream: dict[str, int] = msgspec.field(default_factory=dict)
    ids: list[int] = msgspec.field(default_factory=list)
    bytes: int = 0


class Committed(msgspec.Struct):
    """One committed transaction: the ids of its new rows, the dropped rows, and the number of rows now."""

    ids: list[int]
    trimmed: Trimmed
    rows: int


class OutboxFileError(Exception):
    """The disk failed. Nothing of the failed call may be relied on."""


class DamagedError(sqlite3.DatabaseError):
    """SQLite can read the file, but it is no outbox."""


def read_row(found: tuple[Any, ...]) -> OutboxRow:
    """One result of `SELECT COLUMNS`, unpacked and compared with its checksum."""
    row_id, stream, priority, made, topic, packed, crc, packing = found
    typed = (
        isinstance(stream, str)
        and isinstance(priority, int)
        and isinstance(made, float)
        and isinstance(topic, str)
        and isinstance(packed, bytes)
    )
    if typed:
        with contextlib.suppress(UnpackError):
            payload = unpack(packing, packed)
            return OutboxRow(row_id, stream, priority, made, topic, payload, crc == crc_of(stream, topic, payload))
    return OutboxRow(row_id, stream, priority, made, topic, packed, is_sound=False)


def crc_of(stream: str, topic: str, payload: bytes) -> int:
    """The checksum of a row."""
    return zlib.crc32(payload, _crc_of_place(stream, topic))


@functools.lru_cache(1024)
def _crc_of_place(stream: str, topic: str) -> int:
    return zlib.crc32(f"{stream}\0{topic}\0".encode())


def size_of(stream: str, topic: str, length: int) -> int:
    """The bytes counted for a row; `length` is that of its packed payload."""
    return len(stream) + len(topic) + length + ROW_OVERHEAD_BYTES


def text_of(data: bytes) -> str:
    """The text of a column; bytes that are no UTF-8 any more are caught by the row's checksum."""
    return data.decode(errors="replace")


def is_damage(error: Exception) -> bool:
    """Whether an error of SQLite means that the file is damaged, not that the disk fails."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, DamagedError | UnicodeDecodeError) or (code is not None and code & 0xFF in _DAMAGE)


_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
