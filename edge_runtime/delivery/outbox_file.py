"""The outbox on disk: a SQLite file that keeps a commit through a power cut.

WAL with `synchronous=FULL`; every setting is read back. After any I/O error the file is closed, reopened and read
before anything more counts as written, because Linux reports a failed sync only once. A damaged file is renamed, its
readable rows are taken over, and the rest is counted; it never stops the daemon. Every row carries a checksum, since
SQLite has none: a row changed by a failing card is dropped and counted, never published.

It writes little: payloads are packed, rows are numbered here and not by SQLite, and the table has no index, since each
of these would add pages to every commit (`docs/decisions/0012-rows-are-packed-and-have-no-index.md`).

Weak points: a card that lies about its syncs can lose what it reported as written. Rows in a write-ahead log that was
deleted are lost without a sign.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from edge_runtime.delivery.row_packing import pack
from edge_runtime.delivery.rows import (
    COLUMNS,
    COLUMNS_OF_1,
    HIGHEST_ID,
    QUARANTINE,
    ROW_OVERHEAD_BYTES,
    SCHEMA,
    Committed,
    DamagedError,
    NewRow,
    Opened,
    OutboxFileError,
    OutboxRow,
    SetAside,
    Trimmed,
    crc_of,
    is_damage,
    read_row,
    size_of,
    text_of,
)
from edge_runtime.delivery.salvage import files_of, keep_newest, salvage

SCHEMA_VERSION = 2
CLOCK_JUMP_S = 10.0  # below this the clock is being slewed, not set
BUSY_TIMEOUT_S = 5.0
DAMAGED_FILES_KEPT = 3  # for inspection
PAGE_BYTES = 4096
MOST_SET_ASIDE = 1000
LEAST_ASIDE_BYTES = 16_384


class OutboxFile:
    """The database file; every call blocks. Use it from one thread."""

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        max_age: float,
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._fresh = path.with_name(f"{path.name}.new")
        self._max_bytes = max_bytes
        self._max_age = max_age
        self._connection: sqlite3.Connection | None = None
        self._bytes = 0
        self._rows = 0
        self._aside_bytes = 0
        self._next_id = 1  # never lowered, so that a number held by the outbox is not reused for another row
        self._first: dict[int, int] = {}  # by priority: no row of it has a lower number; no entry: it has no row
        self._wall = wall
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._is_suspect = False

    def open(self) -> Opened:
        """Open or make the file, and count what it holds.

        Raises:
            OutboxFileError: the folder cannot be written, or the disk fails.
        """
        self.close()
        try:
            return self._open_or_replace()
        except OutboxFileError:
            self.close()
            raise

    def _open_or_replace(self) -> Opened:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            folder = self._set_folders_aside()
            if self._fresh.exists() and not self._path.exists():  # the process ended between the two renames
                self._fresh.rename(self._path)
            opened = self._replace_damaged() if self._is_suspect else self._open()
            opened.damaged_file = opened.damaged_file or folder
        except sqlite3.Error as error:
            is_foreign = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR  # tables that are not ours
            if is_damage(error) or is_foreign:
                return self._replace_damaged()
            raise OutboxFileError(f"{self._path}: {error}") from error
        except UnicodeDecodeError:  # SQLite's message quotes bytes of a damaged schema, which Python cannot decode
            return self._replace_damaged()
        except OSError as error:
            raise OutboxFileError(f"{self._path}: {error.strerror or error}") from error
        return opened

    def commit(self, rows: Sequence[NewRow], delivered: Sequence[int]) -> Committed:
        """In one transaction: insert `rows`, delete the delivered ones, and keep the bounds.

        Raises:
            OutboxFileError: nothing of this may be relied on.
        """
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            jump = self._follow_clock(connection)
            added = self._insert(connection, rows)
            deleted, freed = self._delete(connection, delivered)
            trimmed = self._trim(connection, self._bytes + added - freed)
            connection.execute("COMMIT")
            ids = list(range(self._next_id, self._next_id + len(rows)))
            self._next_id += len(rows)
            self._offset += jump
            self._bytes += added - freed - trimmed.bytes
            self._rows += len(rows) - deleted - len(trimmed.ids)
            return Committed(ids, trimmed, self._rows)

    def set_aside(self, rows: Sequence[SetAside], taken: Sequence[int]) -> int:
        """In one transaction: insert `rows` into the quarantine, delete `taken` from the queue; returns the rows left.

        The quarantine keeps the newest, up to `MOST_SET_ASIDE` rows and a fiftieth of the bound of the file.

        Raises:
            OutboxFileError: nothing of this may be relied on.
        """
        with self._guarded() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(QUARANTINE)
            connection.executemany(
                "INSERT INTO quarantine (at, stream, made, topic, payload, why) VALUES (?, ?, ?, ?, ?, ?)",
                [(self._wall(), row.stream, row.made, row.topic, row.payload, row.why) for row in rows],
            )
            deleted, freed = self._delete(connection, taken)
            aside = self._trim_quarantine(connection)
            connection.execute("COMMIT")
            self._aside_bytes = aside
            self._bytes -= freed
            self._rows -= deleted
            return self._rows

    def _trim_quarantine(self, connection: sqlite3.Connection) -> int:
        """Keep the bounds of the quarantine; its bytes."""
        sizes = connection.execute(
            "SELECT id, length(stream) + length(topic) + length(payload) FROM quarantine ORDER BY id DESC"
        ).fetchall()
        total = kept = 0
        for place, (row_id, size) in enumerate(sizes):
            total += int(size) + ROW_OVERHEAD_BYTES
            if place and (place >= MOST_SET_ASIDE or total > max(LEAST_ASIDE_BYTES, self._max_bytes // 50)):
                connection.execute("DELETE FROM quarantine WHERE id <= ?", (row_id,))
                break
            kept = total
        return kept

    def fetch(self, after: int, limit: int) -> list[OutboxRow]:
        """The oldest rows with an id above `after`.

        Raises:
            OutboxFileError: the disk failed.
        """
        with self._guarded() as connection:
            query = f"SELECT {COLUMNS} FROM entry WHERE id > ? ORDER BY id LIMIT ?"  # noqa: S608
            return [read_row(found) for found in connection.execute(query, (after, limit))]

    def close(self) -> None:
        """Close the file. Committed rows stay."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):  # committed rows are safe; nothing else is guaranteed
                connection.close()

    def _open(self) -> Opened:
        connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._connection = connection
        connection.text_factory = text_of
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise OutboxFileError(f"{self._path}: expected the write-ahead log, found journal mode {mode}")
        connection.execute("PRAGMA synchronous=FULL")
        if connection.execute("PRAGMA synchronous").fetchone()[0] != 2:
            raise OutboxFileError(f"{self._path}: synchronous=FULL is not to be had")
        # The log has a bound of its own: a fiftieth of the file's bound, and never more than SQLite's default.
        log_pages = min(1000, max(16, self._max_bytes // 50 // PAGE_BYTES))
        connection.execute(f"PRAGMA wal_autocheckpoint={log_pages}")
        connection.execute(f"PRAGMA journal_size_limit={min(1 << 20, log_pages * PAGE_BYTES)}")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise DamagedError(f"schema {version} is newer than this program")
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if "error code=" in verdict:  # it does not raise errors of the disk: a read error is no damage
            raise sqlite3.OperationalError(verdict)
        if verdict != "ok":
            raise DamagedError("its pages contradict one another")
        self._bring_up_to_date(connection, version)
        return self._take_stock(connection)

    @staticmethod
    def _bring_up_to_date(connection: sqlite3.Connection, version: int) -> None:
        """Make the table, or upgrade an older one in place, in one transaction.

        Nothing is copied, so that a large file on a full disk can be upgraded. In a table of version 1 SQLite assigns
        the numbers, which only a new table changes: it is made as soon as the old one has no rows.
        """
        found = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entry'").fetchone()
        if found is not None:
            connection.execute(f"SELECT {COLUMNS_OF_1} FROM entry LIMIT 1").fetchone()  # noqa: S608
        numbers_rows = found is not None and "AUTOINCREMENT" in str(found[0])
        is_spent = numbers_rows and connection.execute("SELECT 1 FROM entry LIMIT 1").fetchone() is None
        if version == SCHEMA_VERSION and found is not None and not is_spent:
            connection.execute(f"SELECT {COLUMNS} FROM entry LIMIT 1").fetchone()  # noqa: S608
            return
        connection.execute("BEGIN IMMEDIATE")
        if is_spent:
            connection.execute("DROP TABLE entry")
        if found is None or is_spent:
            connection.execute(SCHEMA)
        else:
            connection.execute("DROP INDEX IF EXISTS entry_by_worth")
            if not any(name == "packing" for _, name, *_ in connection.execute("PRAGMA table_info(entry)")):
                connection.execute("ALTER TABLE entry ADD COLUMN packing INTEGER NOT NULL DEFAULT 0")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def _take_stock(self, connection: sqlite3.Connection) -> Opened:
        opened = Opened()
        self._aside_bytes = 0
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'quarantine'").fetchone() is not None:
            opened.quarantined, size = connection.execute(
                "SELECT count(*), coalesce(sum(length(stream) + length(topic) + length(payload)), 0) FROM quarantine"
            ).fetchone()
            self._aside_bytes = size + opened.quarantined * ROW_OVERHEAD_BYTES
        self._first = {}
        query = (
            "SELECT stream, priority, count(*), sum(length(payload) + length(topic) + length(stream)), min(id), max(id)"
            " FROM entry GROUP BY stream, priority"
        )
        for stream, priority, count, size, first, last in connection.execute(query):
            if not isinstance(last, int) or last >= HIGHEST_ID:  # no number: damage has made `id` a plain column
                raise DamagedError(f"row {last} was never written")
            opened.streams[stream] = opened.streams.get(stream, 0) + count
            opened.rows += count
            opened.bytes += size + count * ROW_OVERHEAD_BYTES
            if isinstance(priority, int):  # anything else is damage: such a row is dropped when it is read
                self._first[priority] = min(first, self._first.get(priority, first))
            self._next_id = max(self._next_id, last + 1)
        self._bytes, self._rows = opened.bytes, opened.rows
        return opened

    def _set_folders_aside(self) -> str | None:
        """Rename a folder that has the name of one of the files."""
        aside = self._aside()
        for found, target in zip(files_of(self._path), files_of(aside), strict=True):
            if found.is_dir():
                found.rename(target)
        return str(aside) if aside.exists() else None

    def _aside(self) -> Path:
        return self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")

    def _replace_damaged(self) -> Opened:
        """Copy every readable row into a new file, then rename the damaged one.

        In this order, so that a full disk or the end of the process loses no row that can be read.
        """
        self.close()
        aside = self._aside()
        try:
            rows, lost = salvage(self._path)
            taken = self._write_anew(rows) if rows else 0
            for found, target in zip(files_of(self._path), files_of(aside), strict=True):
                if found.exists():
                    found.rename(target)
            self._is_suspect = False
            if rows:
                self._fresh.rename(self._path)
            opened = self._open()
        except (OSError, sqlite3.Error) as error:
            raise OutboxFileError(f"{self._path}: damaged, and cannot be set aside: {error}") from error
        opened.salvaged, opened.lost = taken, lost + len(rows) - taken
        opened.damaged_file = str(aside)
        keep_newest(self._path, keep=DAMAGED_FILES_KEPT)
        return opened

    def _write_anew(self, rows: Sequence[NewRow]) -> int:
        """Write a file with these rows; returns how many fit its bounds."""
        for leftover in files_of(self._fresh):
            leftover.unlink(missing_ok=True)
        fresh = OutboxFile(self._fresh, self._max_bytes, self._max_age, wall=self._wall, monotonic=self._monotonic)
        fresh._next_id = self._next_id
        fresh.open()
        try:
            return fresh.commit(rows, ()).rows
        finally:
            fresh.close()

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[NewRow]) -> int:
        """Insert rows, numbered from `_next_id` on; returns the bytes that they add."""
        added = 0
        values = []
        packed = pack([row.payload for row in rows])
        for number, ((stream, priority, made, topic, payload), (packing, kept)) in enumerate(
            zip(rows, packed, strict=True), self._next_id
        ):
            values.append((number, stream, priority, made, topic, kept, crc_of(stream, topic, payload), packing))
            added += size_of(stream, topic, len(kept))
            if priority not in self._first:
                self._first[priority] = number
        connection.executemany(f"INSERT INTO entry ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608
        return added

    def _delete(self, connection: sqlite3.Connection, ids: Sequence[int]) -> tuple[int, int]:
        deleted = freed = 0
        for row_id in ids:
            query = "SELECT stream, topic, length(payload) FROM entry WHERE id = ?"
            found = connection.execute(query, (row_id,)).fetchone()
            if found is not None:
                deleted += 1
                freed += size_of(*found)
                connection.execute("DELETE FROM entry WHERE id = ?", (row_id,))
        return deleted, freed

    def _trim(self, connection: sqlite3.Connection, size: int) -> Trimmed:
        """Keep the bounds: drop rows that are too old, then the oldest of the lowest priority."""
        trimmed = Trimmed()
        oldest = "SELECT id, stream, topic, length(payload), made FROM entry ORDER BY id LIMIT 1"
        limit = self._wall() - self._max_age
        for _ in range(1000):
            head = connection.execute(oldest).fetchone()
            if head is None or head[4] >= limit:
                break
            self._drop(connection, trimmed, "too_old", head[:4])
        while size + self._aside_bytes - trimmed.bytes > self._max_bytes:
            found = self._least_worth(connection)
            if found is None:
                break
            self._drop(connection, trimmed, "outbox_full", found)
        return trimmed

    def _least_worth(self, connection: sqlite3.Connection) -> tuple[int, str, str, int] | None:
        """The oldest row of the lowest priority.

        Without an index, but without a scan of the whole table: a search continues where the last one of its priority
            ended, since new rows have higher numbers. So it passes each row at most once.
        """
        query = (
            "SELECT id, stream, topic, length(payload) FROM entry WHERE id >= ? AND priority = ? ORDER BY id LIMIT 1"
        )
        for priority in sorted(self._first, reverse=True):
            found: tuple[int, str, str, int] | None = connection.execute(
                query, (self._first[priority], priority)
            ).fetchone()
            if found is not None:
                self._first[priority] = found[0]
                return found
            del self._first[priority]
        return None

    def _follow_clock(self, connection: sqlite3.Connection) -> float:
        """Shift the rows' times when the wall clock is set, so that a jump of the clock makes no row too old."""
        jump = self._wall() - self._monotonic() - self._offset
        if abs(jump) <= CLOCK_JUMP_S:
            return 0.0
        connection.execute("UPDATE entry SET made = made + ?", (jump,))
        return jump

    @staticmethod
    def _drop(connection: sqlite3.Connection, trimmed: Trimmed, reason: str, found: tuple[int, str, str, int]) -> None:
        row_id, stream, topic, length = found
        connection.execute("DELETE FROM entry WHERE id = ?", (row_id,))
        trimmed.by_reason[reason] = trimmed.by_reason.get(reason, 0) + 1
        trimmed.by_stream[stream] = trimmed.by_stream.get(stream, 0) + 1
        trimmed.ids.append(row_id)
        trimmed.bytes += size_of(stream, topic, length)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            raise OutboxFileError(f"{self._path}: not open")
        try:
            yield self._connection
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._is_suspect = self._is_suspect or is_damage(error)
            self.close()  # a failed sync is reported only once: nothing is trusted until the file is read again
            raise OutboxFileError(f"{self._path}: {error}") from error
