"""The outbox on disk: a SQLite file that keeps a commit through a power cut, in a thread of its own.

WAL with `synchronous=FULL`; every setting is read back. After any I/O error the file is closed, opened anew and read
before anything more is promised, because Linux reports a failed sync only once. A damaged file is set aside under a
new name, what can still be read is taken over, and the rest is counted; it never stops the daemon.

Weak point: a card that lies about its syncs can lose what it said was written.
"""

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

_Answer = TypeVar("_Answer")

SCHEMA_VERSION = 1
CLOCK_JUMP_S = 10.0  # below this the clock is being steered, not set
BUSY_TIMEOUT_S = 5.0
ROW_OVERHEAD_BYTES = 64  # what SQLite keeps beside the payload of a row, measured with 256-byte payloads

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  stream TEXT NOT NULL,
  priority INTEGER NOT NULL,
  made REAL NOT NULL,
  topic TEXT NOT NULL,
  payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entry_by_priority ON entry (priority, id);
"""


class Row(NamedTuple):
    """One prediction at rest. `id` rises in the order in which predictions were made."""

    id: int
    stream: str
    priority: int
    made: float
    topic: str
    payload: bytes


class NewRow(NamedTuple):
    """One prediction on its way to the disk."""

    stream: str
    priority: int
    made: float
    topic: str
    payload: bytes


@dataclass(slots=True)
class Opened:
    """What was found when the file was opened."""

    rows: int = 0
    bytes: int = 0
    streams: dict[str, int] = field(default_factory=dict)
    salvaged: int = 0
    damaged_file: str | None = None


@dataclass(slots=True)
class Trimmed:
    """Rows that had to go: by reason, and by stream."""

    by_reason: dict[str, int] = field(default_factory=dict)
    by_stream: dict[str, int] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    bytes: int = 0


@dataclass(slots=True)
class Committed:
    """One transaction that is on the disk: the ids of its new rows, what had to go, and how many rows there are now."""

    ids: list[int]
    trimmed: Trimmed
    rows: int


class StoreError(Exception):
    """The disk failed. Nothing of the failed call may be relied on."""


class Store:
    """The file itself; every call blocks. Use it from one thread."""

    def __init__(self, path: Path, max_bytes: int, max_age: float) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._connection: sqlite3.Connection | None = None
        self._bytes = 0
        self._rows = 0
        self._offset = time.time() - time.monotonic()

    def open(self) -> Opened:
        """Open or make the file, and count what it holds.

        Raises:
            StoreError: the folder cannot be written, or the disk fails.
        """
        self.close()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return self._open()
        except sqlite3.DatabaseError as error:
            if _is_damage(error):
                return self._replace_damaged()
            self.close()
            raise StoreError(f"{self._path}: {error}") from error
        except OSError as error:
            self.close()
            raise StoreError(f"{self._path}: {error.strerror or error}") from error

    def commit(self, rows: Sequence[NewRow], delivered: Sequence[int]) -> Committed:
        """In one transaction: put `rows` in, take the delivered ones out, and keep the bounds.

        Raises:
            StoreError: nothing of this may be relied on.
        """
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            ids = []
            for row in rows:
                cursor = connection.execute(
                    "INSERT INTO entry (stream, priority, made, topic, payload) VALUES (?, ?, ?, ?, ?)", row
                )
                assert cursor.lastrowid is not None
                ids.append(cursor.lastrowid)
            deleted, freed = self._delete(connection, delivered)
            added = sum(_size(row.topic, row.payload) for row in rows)
            trimmed = self._trim(connection, self._bytes + added - freed)
            connection.execute("COMMIT")
            self._bytes += added - freed - trimmed.bytes
            self._rows += len(ids) - deleted - len(trimmed.ids)
            return Committed(ids, trimmed, self._rows)

    def fetch(self, after: int, limit: int) -> list[Row]:
        """The oldest rows with an id above `after`.

        Raises:
            StoreError: the disk failed.
        """
        with self._guarded() as connection:
            query = "SELECT id, stream, priority, made, topic, payload FROM entry WHERE id > ? ORDER BY id LIMIT ?"
            return [Row(*row) for row in connection.execute(query, (after, limit))]

    def close(self) -> None:
        """Give the file back. Committed rows stay."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # what is committed is committed; nothing else is owed here
                connection.close()

    def _open(self) -> Opened:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(f"{self._path}: expected the write-ahead log, found journal mode {mode}")
        connection.execute("PRAGMA synchronous=FULL")
        if connection.execute("PRAGMA synchronous").fetchone()[0] != 2:
            raise StoreError(f"{self._path}: synchronous=FULL is not to be had")
        connection.execute("PRAGMA journal_size_limit=1048576")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"malformed: schema {version} is newer than this program")
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("malformed")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        opened = Opened()
        query = "SELECT stream, count(*), sum(length(payload) + length(topic)) FROM entry GROUP BY stream"
        for stream, count, size in connection.execute(query):
            opened.streams[stream] = count
            opened.rows += count
            opened.bytes += size + count * ROW_OVERHEAD_BYTES
        self._bytes, self._rows = opened.bytes, opened.rows
        return opened

    def _replace_damaged(self) -> Opened:
        """Set the file aside, start a new one, and take over every row that can still be read."""
        self.close()
        aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
        try:
            self._path.rename(aside)
            for suffix in ("-wal", "-shm"):
                beside = self._path.with_name(self._path.name + suffix)
                if beside.exists():
                    beside.rename(aside.with_name(aside.name + suffix))
            opened = self._open()
        except (OSError, sqlite3.Error) as error:
            self.close()
            raise StoreError(f"{self._path}: damaged, and cannot be set aside: {error}") from error
        rows = _salvage(aside)
        if rows:
            self.commit(rows, ())
            opened = self._open_again()
        opened.salvaged = len(rows)
        opened.damaged_file = str(aside)
        _keep_newest(self._path, keep=3)
        return opened

    def _open_again(self) -> Opened:
        self.close()
        return self._open()

    def _delete(self, connection: sqlite3.Connection, ids: Sequence[int]) -> tuple[int, int]:
        deleted = freed = 0
        for row_id in ids:
            found = connection.execute("SELECT topic, payload FROM entry WHERE id = ?", (row_id,)).fetchone()
            if found is not None:
                deleted += 1
                freed += _size(*found)
                connection.execute("DELETE FROM entry WHERE id = ?", (row_id,))
        return deleted, freed

    def _trim(self, connection: sqlite3.Connection, size: int) -> Trimmed:
        """Keep the bounds: first what is too old, then the oldest of the lowest priority."""
        trimmed = Trimmed()
        self._follow_clock(connection)
        old = connection.execute(
            "SELECT id, stream, topic, payload FROM entry WHERE made < ? ORDER BY id LIMIT 1000",
            (time.time() - self._max_age,),
        ).fetchall()
        for found in old:
            self._drop(connection, trimmed, "too_old", found)
        while size - trimmed.bytes > self._max_bytes:
            found = connection.execute(
                "SELECT id, stream, topic, payload FROM entry ORDER BY priority DESC, id LIMIT 1"
            ).fetchone()
            if found is None:
                break
            self._drop(connection, trimmed, "outbox_full", found)
        return trimmed

    def _follow_clock(self, connection: sqlite3.Connection) -> None:
        """When the wall clock is set, the rows' times move with it: no row grows old by a jump of the clock."""
        offset = time.time() - time.monotonic()
        jump = offset - self._offset
        if abs(jump) > CLOCK_JUMP_S:
            connection.execute("UPDATE entry SET made = made + ?", (jump,))
            self._offset = offset

    @staticmethod
    def _drop(
        connection: sqlite3.Connection, trimmed: Trimmed, reason: str, found: tuple[int, str, str, bytes]
    ) -> None:
        row_id, stream, topic, payload = found
        connection.execute("DELETE FROM entry WHERE id = ?", (row_id,))
        trimmed.by_reason[reason] = trimmed.by_reason.get(reason, 0) + 1
        trimmed.by_stream[stream] = trimmed.by_stream.get(stream, 0) + 1
        trimmed.ids.append(row_id)
        trimmed.bytes += _size(topic, payload)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            raise StoreError(f"{self._path}: not open")
        try:
            yield self._connection
        except sqlite3.Error as error:
            self.close()  # a failed sync is reported once only: nothing is trusted until the file was read anew
            raise StoreError(f"{self._path}: {error}") from error


class StoreThread:
    """A `Store` behind a queue: the loop asks, and is told in its own thread.

    Args:
        store: opened in the thread, not before.
        tell: runs a callback in the loop's thread.
    """

    def __init__(self, store: Store, tell: Callable[[Callable[[], None]], None]) -> None:
        self._store = store
        self._tell = tell
        self._busy_since: float | None = None
        self._requests: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="outbox", daemon=True)
        self._thread.start()

    def open(self, answer: Callable[[Opened | StoreError], None]) -> None:
        """Open the file, again if need be."""
        self._ask(self._store.open, answer)

    def commit(
        self,
        rows: Sequence[NewRow],
        delivered: Sequence[int],
        answer: Callable[[Committed | StoreError], None],
    ) -> None:
        """As `Store.commit`."""
        self._ask(lambda: self._store.commit(rows, delivered), answer)

    def fetch(self, after: int, limit: int, answer: Callable[[list[Row] | StoreError], None]) -> None:
        """As `Store.fetch`."""
        self._ask(lambda: self._store.fetch(after, limit), answer)

    def busy_for(self, now: float) -> float:
        """Seconds of monotonic time that the present call has taken; 0 when there is none."""
        since = self._busy_since
        return 0.0 if since is None else now - since

    def stop(self, deadline: float) -> bool:
        """Finish what was asked and close the file; False when that took longer than `deadline` seconds."""
        self._requests.put(None)
        self._thread.join(deadline)
        return not self._thread.is_alive()

    def _ask(self, work: Callable[[], _Answer], answer: Callable[[_Answer | StoreError], None]) -> None:
        def request() -> None:
            found: _Answer | StoreError
            self._busy_since = time.monotonic()
            try:
                found = work()
            except StoreError as error:
                found = error
            self._busy_since = None
            self._tell(lambda: answer(found))

        self._requests.put(request)

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            request()
        self._store.close()


def _size(topic: str, payload: bytes) -> int:
    return len(topic) + len(payload) + ROW_OVERHEAD_BYTES


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    text = str(error)
    return any(word in text for word in ("malformed", "not a database", "corrupt", "file is encrypted"))


def _salvage(path: Path) -> list[NewRow]:
    """Every row of a damaged file that can still be read, in order."""
    rows: list[NewRow] = []
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            for row in connection.execute("SELECT stream, priority, made, topic, payload FROM entry ORDER BY id"):
                if isinstance(row[0], str) and isinstance(row[3], str) and isinstance(row[4], bytes):
                    rows.append(NewRow(*row))
    except sqlite3.Error:
        return rows  # the damage starts here; what stands before it is kept
    return rows


def _keep_newest(path: Path, keep: int) -> None:
    """Damaged files are kept for a person to look at, but only the newest few."""
    stamps = sorted(
        {found.name.split(".damaged-")[1].split("-")[0] for found in path.parent.glob(f"{path.name}.damaged-*")}
    )
    for old in (old for stamp in stamps[:-keep] for old in path.parent.glob(f"{path.name}.damaged-{stamp}*")):
        with contextlib.suppress(OSError):  # tidying is a courtesy; the disk may be read-only
            old.unlink()
