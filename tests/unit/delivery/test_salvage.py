"""What is taken over from a damaged outbox file, what is counted as lost, and what is kept of it to look at."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.rows import HIGHEST_ID, NewRow
from edge_runtime.delivery.salvage import files_of, keep_newest, salvage


def _row(number: int) -> NewRow:
    return NewRow(f"m/{number}", number % 3, 1e9 + number, f"edge/m/{number}", b'{"seq":%d}' % number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with the rows 1 to 5."""
    path = tmp_path / "outbox.db"
    store = OutboxFile(path, 1 << 30, 1e12)
    store.open()
    assert store.commit([_row(number) for number in range(1, 6)], ()).ids == [1, 2, 3, 4, 5]
    store.close()
    return path


def _change(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def test_a_sound_file_is_read_whole_and_in_order(path: Path) -> None:
    """Every row is as it was written, and none is missing."""
    assert salvage(path) == ([_row(number) for number in range(1, 6)], 0)


def test_rows_between_the_first_and_the_last_that_are_not_there_are_lost(path: Path) -> None:
    """The numbers tell; what was delivered from either end is no loss."""
    _change(path, "DELETE FROM entry WHERE id IN (1, 3)")
    assert salvage(path) == ([_row(2), _row(4), _row(5)], 1)


def test_an_empty_file_has_lost_nothing(path: Path) -> None:
    """No row, no loss; and the same of a file that is none."""
    _change(path, "DELETE FROM entry")
    assert salvage(path) == ([], 0)
    path.write_bytes(b"this is no database" * 1000)
    assert salvage(path) == ([], 0)


@pytest.mark.parametrize("number", [HIGHEST_ID, HIGHEST_ID + 1])
def test_a_number_that_no_device_reaches_counts_no_loss(path: Path, number: int) -> None:
    """Otherwise one flipped bit would be billions of lost rows. The row itself is sound, and goes behind the others."""
    _change(path, f"UPDATE entry SET id = {number} WHERE id = 3")  # noqa: S608
    assert salvage(path) == ([_row(1), _row(2), _row(4), _row(5), _row(3)], 0)


def test_a_number_just_below_the_highest_is_a_row_like_any_other(path: Path) -> None:
    """What lies between is missing, as far as the numbers tell."""
    _change(path, f"UPDATE entry SET id = {HIGHEST_ID - 1} WHERE id = 5")  # noqa: S608
    assert salvage(path)[1] == HIGHEST_ID - 1 - 5


@pytest.mark.parametrize("column", ["topic", "stream"])
def test_a_text_that_is_no_utf_8_any_more_hides_no_other_row(path: Path, column: str) -> None:
    """Two of them, with a sound row between: that row is reached neither from the front nor from the end alone."""
    _change(path, f"UPDATE entry SET {column} = CAST(x'6d2fff' AS TEXT) WHERE id IN (2, 4)")  # noqa: S608
    assert salvage(path) == ([_row(1), _row(3), _row(5)], 2)


def test_a_row_whose_bytes_have_changed_is_lost(path: Path) -> None:
    """In each part that the checksum covers."""
    _change(
        path,
        "UPDATE entry SET stream = 'm/9' WHERE id = 1",
        "UPDATE entry SET topic = 'edge/m/9' WHERE id = 2",
        "UPDATE entry SET payload = x'7b7d' WHERE id = 3",
        "UPDATE entry SET crc = crc + 1 WHERE id = 4",
    )
    assert salvage(path) == ([_row(5)], 4)


def test_nothing_is_written_while_a_damaged_file_is_read(path: Path) -> None:
    """It is opened for reading alone: the evidence stays as it is, and no file is made where there was none."""
    before = path.read_bytes()
    salvage(path)
    assert path.read_bytes() == before
    missing = path.with_name("missing.db")
    assert salvage(missing) == ([], 0)
    assert not missing.exists()


class _Failing:
    """A connection whose reading ends with an error behind the first row."""

    def __init__(self, connection: sqlite3.Connection, error: Exception) -> None:
        self._connection = connection
        self._error = error

    def execute(self, query: str) -> Any:
        """As ever, but for the rows."""
        found = self._connection.execute(query)
        if "FROM entry" not in query:
            return found
        return self._one_and_no_more(found)

    def _one_and_no_more(self, found: Any) -> Any:
        yield next(found)
        raise self._error

    def close(self) -> None:
        """As ever."""
        self._connection.close()


def _error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as SQLite says it")
    error.sqlite_errorcode = code
    return error


def _fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    connect = sqlite3.connect

    def failing(*arguments: Any, **named: Any) -> Any:
        connection = connect(*arguments, **named)
        connection.text_factory = lambda data: data.decode(errors="replace")
        return _Failing(connection, error)

    monkeypatch.setattr(sqlite3, "connect", failing)


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ])
def test_a_disk_that_cannot_be_read_at_present_is_no_loss(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Rows would be thrown away that are there a minute later."""
    _fail_with(monkeypatch, _error(code))
    with pytest.raises(sqlite3.OperationalError, match="as SQLite says it"):
        salvage(path)


@pytest.mark.parametrize(
    "error",
    [
        _error(sqlite3.SQLITE_CORRUPT),
        _error(sqlite3.SQLITE_CORRUPT_INDEX),
        _error(sqlite3.SQLITE_NOTADB),
        sqlite3.DatabaseError("of Python's own, without a number"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "in SQLite's own words"),
    ],
)
def test_what_stands_before_a_damage_is_taken_from_either_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The first row from the front, the last from the end, and three are lost between them."""
    _fail_with(monkeypatch, error)
    assert salvage(path) == ([_row(1), _row(5)], 3)


def test_the_files_of_an_outbox_are_the_file_its_log_and_its_index(tmp_path: Path) -> None:
    """As SQLite names them."""
    assert [found.name for found in files_of(tmp_path / "o.db")] == ["o.db", "o.db-wal", "o.db-shm"]


def test_the_newest_damaged_files_are_kept_with_what_belongs_to_them(tmp_path: Path) -> None:
    """Older ones go, folders that stood in a file's place as well; what has another name is not touched."""
    path = tmp_path / "outbox.db"
    for stamp in (5, 3, 1, 4, 2):
        (tmp_path / f"outbox.db.damaged-{stamp}").write_text("a file")
        (tmp_path / f"outbox.db.damaged-{stamp}-wal").mkdir()
        (tmp_path / f"outbox.db.damaged-{stamp}-wal" / "in it").write_text("a file")
    path.write_text("the present one")
    (tmp_path / "other.db.damaged-0").write_text("of another outbox")
    keep_newest(path, keep=3)
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        "other.db.damaged-0",
        "outbox.db",
        "outbox.db.damaged-3",
        "outbox.db.damaged-3-wal",
        "outbox.db.damaged-4",
        "outbox.db.damaged-4-wal",
        "outbox.db.damaged-5",
        "outbox.db.damaged-5-wal",
    ]


def test_a_damaged_file_that_cannot_be_removed_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cleaning up never keeps the outbox from starting, and goes on with the next."""
    path = tmp_path / "outbox.db"
    for stamp in (1, 2, 3):
        (tmp_path / f"outbox.db.damaged-{stamp}").write_text("a file")
    unlink = Path.unlink

    def fails_for_the_first(self: Path, missing_ok: bool = False) -> None:
        if self.name.endswith("-1"):
            raise OSError(30, "Read-only file system")
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", fails_for_the_first)
    keep_newest(path, keep=1)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["outbox.db.damaged-1", "outbox.db.damaged-3"]
