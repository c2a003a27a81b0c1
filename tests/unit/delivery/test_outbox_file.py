"""The outbox's file: numbers, bounds, and files of older releases."""

import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path

import pytest

from edge_runtime.delivery.outbox_file import SCHEMA_VERSION, OutboxFile
from edge_runtime.delivery.rows import HIGHEST_ID, NewRow, Opened, OutboxFileError
from tests.support.older_outbox import OLDER_ROWS, copy_older_file

PAYLOAD = b'{"id":"a/m/-/1/2","seq":2,"device":"a","model":"m","version":"1.0.0","source":"s","key":null}'


def _row(priority: int, payload: bytes = PAYLOAD) -> NewRow:
    return NewRow("m/-", priority, 1e9, "edge/a/m/-", payload)


def _open(path: Path, max_bytes: int = 1 << 30) -> OutboxFile:
    store = OutboxFile(path, max_bytes, 1e12)
    store.open()
    return store


def test_a_new_file_holds_nothing(tmp_path: Path) -> None:
    """No row, no loss, nothing set aside."""
    opened = OutboxFile(tmp_path / "a" / "folder" / "o.db", 1 << 30, 1e12).open()
    assert opened == Opened(rows=0, bytes=0, streams={}, salvaged=0, lost=0, damaged_file=None, quarantined=0)


def test_a_number_is_never_given_twice_while_somebody_may_hold_it(tmp_path: Path) -> None:
    """The newest row is delivered, the file is closed after an error and opened anew: the next row has a new number."""
    store = _open(tmp_path / "o.db")
    first = store.commit([_row(1), _row(1)], ()).ids
    store.commit((), first)
    store.close()
    assert store.open().rows == 0
    (second,) = store.commit([_row(1)], ()).ids
    assert second > max(first)
    store.close()


def test_rows_that_went_leave_no_gap_in_the_numbers(tmp_path: Path) -> None:
    """What failed takes no numbers along, so that salvage counts what is missing and nothing else."""
    store = _open(tmp_path / "o.db")
    (first,) = store.commit([_row(1)], ()).ids
    broken = NewRow("m/-", 1, None, "edge/a/m/-", PAYLOAD)  # type: ignore[arg-type] # the file refuses it
    with pytest.raises(OutboxFileError, match="NOT NULL"):
        store.commit([_row(1), broken], ())
    store.open()
    assert store.commit([_row(1)], ()).ids == [first + 1]
    store.close()


def test_the_search_for_room_passes_each_row_once(tmp_path: Path) -> None:
    """Among alarms that stay, the rows that have to go are found without looking at all alarms for each of them."""
    store = _open(tmp_path / "o.db", max_bytes=60_000)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    store.commit([_row(1), *(_row(0) for _ in range(300))], ())
    connection = store._connection
    assert connection is not None
    kept = 0
    used = []
    for _ in range(40):
        connection.set_progress_handler(count, 10)
        steps = 0
        done = store.commit([_row(2), *(_row(1) for _ in range(9))], ())
        connection.set_progress_handler(None, 0)
        used.append(steps)
        kept += 10 - len(done.trimmed.ids)
    rows = store.fetch(0, 10_000)
    assert sum(row.priority == 0 for row in rows) == 300
    assert len(rows) == 301 + kept
    assert not [row for row in rows if row.priority == 2]
    late = used[-10:]
    assert max(late) < 2 * min(late)  # of the same work, however many alarms stand before
    assert max(late) < 300
    store.close()


def test_the_lowest_priority_goes_first_and_the_oldest_of_it(tmp_path: Path) -> None:
    """Also for rows that an earlier process has written."""
    store = _open(tmp_path / "o.db")
    ids = store.commit([_row(priority) for priority in (1, 0, 2, 1, 2, 0)], ()).ids
    size = store._bytes
    store.close()
    store = _open(tmp_path / "o.db", max_bytes=size // 6 * 2)
    trimmed = store.commit((), ()).trimmed
    assert trimmed.ids == [ids[2], ids[4], ids[0], ids[3]]
    assert trimmed.by_reason == {"outbox_full": 4}
    store.close()


@pytest.mark.parametrize("number", [HIGHEST_ID, HIGHEST_ID + 5])
def test_a_row_number_that_no_device_reaches_is_a_damage(tmp_path: Path, number: int) -> None:
    """Numbers go on from the highest: a flipped bit must not leave none to go on with."""
    store = _open(tmp_path / "o.db")
    store.commit([_row(1), _row(1)], ())
    store.close()
    with closing(sqlite3.connect(tmp_path / "o.db")) as connection:
        connection.execute("UPDATE entry SET id = ? WHERE id = 2", (number,))
        connection.commit()
    store = OutboxFile(tmp_path / "o.db", 1 << 30, 1e12)
    opened = store.open()
    assert opened.damaged_file is not None
    assert (opened.salvaged, opened.lost) == (2, 0)
    assert store.commit([_row(1)], ()).ids[0] < 100
    store.close()


def test_a_file_of_version_1_is_taken_over_with_every_row(tmp_path: Path) -> None:
    """As a killed process left it, with rows in the log: none is missing, and new ones go behind them."""
    path = copy_older_file(tmp_path)
    store = OutboxFile(path, 1 << 30, 1e12)
    opened = store.open()
    assert (opened.damaged_file, opened.rows) == (None, len(OLDER_ROWS))
    assert {row.id: row.payload for row in store.fetch(0, 1000)} == OLDER_ROWS
    assert all(row.is_sound for row in store.fetch(0, 1000))
    (new,) = store.commit([_row(1)], [max(OLDER_ROWS)]).ids
    assert new > max(OLDER_ROWS)
    assert store.fetch(new - 1, 1)[0].payload == PAYLOAD
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'index'").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_table_of_version_1_is_made_anew_when_it_is_empty(tmp_path: Path) -> None:
    """From then on SQLite counts no rows any more: that is a page less in every commit."""
    path = copy_older_file(tmp_path)
    store = _open(path)
    store.commit((), list(OLDER_ROWS))
    assert store.open().rows == 0
    store.commit([_row(1)], ())
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert "AUTOINCREMENT" not in connection.execute("SELECT sql FROM sqlite_master").fetchone()[0]
        assert connection.execute("SELECT count(*) FROM entry").fetchone() == (1,)


def test_a_damaged_file_of_version_1_is_salvaged(tmp_path: Path) -> None:
    """What can be read of it is taken over like anything else."""
    path = copy_older_file(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entry_by_worth'").fetchone()[0]
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = bytes(4096)
    path.write_bytes(data)
    store = OutboxFile(path, 1 << 30, 1e12)
    opened = store.open()
    assert opened.damaged_file is not None
    assert opened.salvaged == len(OLDER_ROWS)
    assert [row.payload for row in store.fetch(0, 1000)] == list(OLDER_ROWS.values())
    store.close()


def test_a_program_of_version_1_takes_no_packed_row_for_its_own(tmp_path: Path) -> None:
    """The checksum is that of the payload before it was packed: an older salvage counts such a row as lost."""
    store = _open(tmp_path / "o.db")
    store.commit([_row(1), _row(1, b"\x01 as it is")], ())
    store.close()
    with closing(sqlite3.connect(tmp_path / "o.db")) as connection:
        found = connection.execute("SELECT stream, topic, payload, crc FROM entry ORDER BY id").fetchall()
    sound = [crc == zlib.crc32(kept, zlib.crc32(f"{stream}\0{topic}\0".encode())) for stream, topic, kept, crc in found]
    assert sound == [False, True]


def test_the_older_file_of_these_tests_is_one(tmp_path: Path) -> None:
    """It says version 1, has the index, and rows in its log."""
    path = copy_older_file(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM entry").fetchone() == (len(OLDER_ROWS),)
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        assert names == {"entry", "sqlite_sequence", "entry_by_worth"}
    alone = tmp_path / "alone.db"
    shutil.copy(copy_older_file(tmp_path), alone)
    with closing(sqlite3.connect(alone)) as connection:
        assert connection.execute("SELECT count(*) FROM entry").fetchone()[0] < len(OLDER_ROWS)


def test_rows_without_numbers_are_a_damage(tmp_path: Path) -> None:
    """A bit of the schema has flipped, so that SQLite no longer takes `id` for the row's number."""
    store = _open(tmp_path / "o.db")
    store.commit([_row(1)], ())
    store.close()
    data = (tmp_path / "o.db").read_bytes()
    broken = data.replace(b"PRIMARY KEY,", b"/*MARY KE*/,", 1)
    assert broken != data
    assert len(broken) == len(data)
    (tmp_path / "o.db").write_bytes(broken)
    opened = OutboxFile(tmp_path / "o.db", 1 << 30, 1e12).open()
    assert opened.damaged_file is not None
