"""What the outbox's file does when the disk fails, the file is damaged, or something else stands in its place."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox_file import SCHEMA_VERSION, OutboxFile
from edge_runtime.delivery.rows import NewRow, OutboxFileError, SetAside


def _row(number: int = 1) -> NewRow:
    return NewRow("m/-", 1, 1e9, "edge/m", b'{"seq":%d}' % number)


def _store(path: Path) -> OutboxFile:
    return OutboxFile(path, 1 << 30, 1e12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sound file with three rows."""
    path = tmp_path / "folder" / "o.db"
    store = _store(path)
    store.open()
    store.commit([_row(number) for number in range(3)], ())
    store.close()
    return path


class _Faulty:
    """A connection that answers some queries in its own way."""

    def __init__(self, connection: sqlite3.Connection, answers: dict[str, Any]) -> None:
        self._connection = connection
        self._answers = answers
        self.asked: list[str] = []
        self.is_closed = False

    def execute(self, query: str, *values: Any) -> Any:
        """The answer, an error, or what SQLite says."""
        self.asked.append(query)
        for start, answer in self._answers.items():
            if query.strip().startswith(start):
                if isinstance(answer, Exception):
                    raise answer
                return self._connection.execute("SELECT ?", (answer,))
        return self._connection.execute(query, *values)

    def executemany(self, query: str, values: Any) -> Any:
        """An error, or as ever."""
        for start, answer in self._answers.items():
            if query.startswith(start):
                raise answer
        return self._connection.executemany(query, values)

    def close(self) -> None:
        """As ever; and an error where one is given for it."""
        self.is_closed = True
        self._connection.close()
        if isinstance(self._answers.get("close"), Exception):
            raise self._answers["close"]


Break = Callable[[dict[str, Any]], list[_Faulty]]


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Make every connection from now on answer in this way."""
    connect = sqlite3.connect

    def give(answers: dict[str, Any]) -> list[_Faulty]:
        made: list[_Faulty] = []

        def connecting(*arguments: Any, **named: Any) -> Any:
            assert all(each.is_closed for each in made), "two connections to one file"
            made.append(_Faulty(connect(*arguments, **named), answers))
            return made[-1]

        monkeypatch.setattr(sqlite3, "connect", connecting)
        return made

    return give


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


# --- opening ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"PRAGMA journal_mode": "delete"}, "expected the write-ahead log, found journal mode delete"),
        ({"PRAGMA synchronous": 1}, "synchronous=FULL is not to be had"),
        ({"PRAGMA synchronous": 3}, "synchronous=FULL is not to be had"),
        ({"PRAGMA quick_check": "unable to get the page. error code=266"}, "error code=266"),
        ({"PRAGMA user_version": _error("disk I/O error", sqlite3.SQLITE_IOERR_READ)}, "disk I/O error"),
        ({"BEGIN": _error("database or disk is full", sqlite3.SQLITE_FULL), "PRAGMA user_version": 1}, "full"),
    ],
    ids=str,
)
def test_a_disk_that_does_not_keep_what_is_asked_is_refused_and_nothing_set_aside(
    path: Path, faulty: Break, answers: dict[str, Any], expected: str
) -> None:
    """SQLite reports a failed change of a setting by the old value and by no error: each is read back."""
    before = path.read_bytes()
    made = faulty(answers)
    store = _store(path)
    with pytest.raises(OutboxFileError, match=expected) as caught:
        store.open()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir() if "damaged" in found.name] == []
    with pytest.raises(OutboxFileError, match="not open"):
        store.commit([_row()], ())
    assert made[-1].is_closed
    answers.clear()
    assert store.open().rows == 3
    store.close()
    assert made[-1].is_closed


@pytest.mark.parametrize(
    "answers",
    [
        {"PRAGMA quick_check": "row 2 missing from index"},
        {"PRAGMA user_version": SCHEMA_VERSION + 1},
        {"PRAGMA quick_check": _error("malformed", sqlite3.SQLITE_CORRUPT_INDEX)},
        {"SELECT sql": _error("no such column", sqlite3.SQLITE_ERROR)},
        {"SELECT sql": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "in SQLite's own words")},
    ],
    ids=str,
)
def test_a_damaged_file_is_set_aside_and_what_it_holds_taken_over(
    path: Path, faulty: Break, answers: dict[str, Any]
) -> None:
    """Whichever way the damage shows."""
    faulty(dict(answers))
    store = _store(path)
    original = sqlite3.connect
    calls = 0

    def first_only(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        found = original(*arguments, **named)
        if calls > 1:
            found._answers.clear()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", first_only)
        opened = store.open()
    assert (opened.salvaged, opened.lost, opened.rows) == (3, 0, 3)
    assert opened.damaged_file is not None
    assert Path(opened.damaged_file).exists()
    assert [row.payload for row in store.fetch(0, 10)] == [_row(number).payload for number in range(3)]
    store.close()


def test_a_file_of_a_later_program_is_set_aside(path: Path) -> None:
    """Its columns may mean something else; the present version is taken as it is."""
    for version, is_aside in ((SCHEMA_VERSION, False), (SCHEMA_VERSION + 1, True)):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version={version}")
        store = _store(path)
        assert (store.open().damaged_file is not None) is is_aside
        store.close()


def test_a_sound_file_is_not_written_when_it_is_opened(path: Path) -> None:
    """Every start would cost the card a page otherwise."""
    store = _store(path)
    before = path.read_bytes()
    store.open()
    assert path.read_bytes() == before
    assert path.with_name("o.db-wal").stat().st_size == 0
    store.close()
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made_is_an_error_of_the_file(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OutboxFileError, match=r"o.db: (Not a directory|File exists)"):
        _store(tmp_path / "folder" / "o.db").open()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_folder_in_the_place_of_a_file_makes_room(path: Path, suffix: str) -> None:
    """With all that is in it, under a name that says so; rows in the file itself stay."""
    place = path.with_name(f"o.db{suffix}")
    place.unlink(missing_ok=True)
    place.mkdir()
    (place / "in it").write_text("something")
    store = _store(path)
    opened = store.open()
    (aside,) = [found for found in path.parent.iterdir() if "damaged" in found.name]
    assert (aside / "in it").read_text() == "something"
    assert opened.rows == (3 if suffix else 0)
    assert opened.damaged_file == (None if suffix else str(aside))
    assert store.commit([_row()], ()).rows == opened.rows + 1
    store.close()


def test_only_the_newest_three_damaged_files_are_kept(path: Path) -> None:
    """A card that fails again and again does not fill itself with them."""
    kept = []
    for _ in range(5):
        path.write_bytes(b"this is no database" * 1000)
        store = _store(path)
        opened = store.open()
        assert (opened.salvaged, opened.lost, opened.rows) == (0, 0, 0)
        kept.append(opened.damaged_file)
        store.close()
    found = sorted(str(found) for found in path.parent.iterdir() if "damaged" in found.name)
    assert found == sorted(str(name) for name in kept[-3:])


def test_a_damaged_file_that_cannot_be_set_aside_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk cannot be written; when it can, the rows are taken over."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")

    def fail(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    store = _store(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(OutboxFileError, match=r"o.db: damaged, and cannot be set aside: .*Read-only file system"):
            store.open()
    with pytest.raises(OutboxFileError, match="not open"):
        store.fetch(0, 1)
    assert store.open().salvaged == 3
    store.close()


def _damage(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=99")


@pytest.mark.parametrize("at", ["INSERT", "COMMIT", "CREATE TABLE"])
def test_a_disk_that_fails_while_rows_are_taken_over_loses_none(path: Path, faulty: Break, at: str) -> None:
    """The damaged file stays where it is until the new one is whole."""
    _damage(path)
    answers: dict[str, Any] = {at: _error("database or disk is full", sqlite3.SQLITE_FULL)}
    connections = faulty(answers)
    for _ in range(2):
        with pytest.raises(OutboxFileError, match="disk is full"):
            _store(path).open()
        assert [found.name for found in path.parent.iterdir() if "damaged" in found.name] == []
    answers.clear()
    store = _store(path)
    opened = store.open()
    assert (opened.salvaged, opened.lost, opened.rows) == (3, 0, 3)
    assert [row.payload for row in store.fetch(0, 10)] == [_row(number).payload for number in range(3)]
    store.close()
    assert connections
    assert not list(path.parent.glob("*.new*"))


@pytest.mark.parametrize("is_same_process", [False, True])
def test_a_process_that_ends_while_a_damaged_file_is_replaced_loses_no_row(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_same_process: bool
) -> None:
    """Between the two renames neither file has its name: the next start goes on from there."""
    _damage(path)
    rename = Path.rename

    def ends_at_the_second(self: Path, target: Path) -> Path:
        if self.name.endswith(".new"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    store = _store(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", ends_at_the_second)
        with pytest.raises(OutboxFileError, match="cannot be set aside"):
            store.open()
    assert not path.exists()
    if not is_same_process:
        store = _store(path)
    opened = store.open()
    assert (opened.rows, opened.damaged_file) == (3, None)
    assert [row.payload for row in store.fetch(0, 10)] == [_row(number).payload for number in range(3)]
    assert not list(path.parent.glob("*.new*"))
    store.close()


def test_what_an_earlier_try_has_left_is_no_part_of_the_new_file(path: Path) -> None:
    """It may hold half of the rows, or something else altogether."""
    _damage(path)
    path.with_name("o.db.new").write_bytes(b"this is no database" * 1000)
    path.with_name("o.db.new-wal").write_bytes(b"nor is this a log" * 1000)
    store = _store(path)
    assert store.open().salvaged == 3
    assert [row.payload for row in store.fetch(0, 10)] == [_row(number).payload for number in range(3)]
    store.close()
    assert len(list(path.parent.glob("*.damaged-*[0-9]"))) == 1


def test_rows_that_are_too_old_to_be_taken_over_are_counted_as_lost(path: Path) -> None:
    """What is salvaged is what is there afterwards."""
    store = _store(path)
    store.open()
    store.commit([_row(9)._replace(made=2e9)], ())
    store.close()
    _damage(path)
    store = OutboxFile(path, 1 << 30, 1e6, wall=lambda: 2e9)
    opened = store.open()
    assert (opened.salvaged, opened.lost, opened.rows) == (1, 3, 1)
    store.close()


def test_numbers_go_on_when_a_damaged_file_is_replaced(path: Path) -> None:
    """A number that the outbox still holds means no other row."""
    store = _store(path)
    store.open()
    assert store.commit([_row()], ()).ids == [4]
    store.close()
    _damage(path)
    assert store.open().salvaged == 4
    assert [row.id for row in store.fetch(0, 10)] == [5, 6, 7, 8]
    store.close()


# --- at work ----------------------------------------------------------------------------------------------------------


def test_nothing_can_be_asked_of_a_file_that_is_not_open(path: Path) -> None:
    """Neither before it was opened nor after it was closed; closing twice does no harm."""
    store = _store(path)
    for _ in range(2):
        with pytest.raises(OutboxFileError, match=r"o\.db: not open"):
            store.commit([_row()], ())
        with pytest.raises(OutboxFileError, match=r"o\.db: not open"):
            store.fetch(0, 1)
        with pytest.raises(OutboxFileError, match=r"o\.db: not open"):
            store.set_aside([SetAside("m", 1.0, "t", b"", "why")], ())
        store.open()
        store.close()
        store.close()


@pytest.mark.parametrize("call", ["commit", "set_aside"])
@pytest.mark.parametrize("at", ["BEGIN", "DELETE FROM entry", "COMMIT"])
def test_a_call_that_fails_has_done_nothing_and_closes_the_file(path: Path, faulty: Break, call: str, at: str) -> None:
    """A failed sync is reported once only: nothing is trusted until the file was read anew."""
    answers: dict[str, Any] = {}
    made = faulty(answers)
    store = _store(path)
    store.open()

    def run() -> Any:
        if call == "commit":
            return store.commit([_row(7)], [1])
        return store.set_aside([SetAside("m", 1.0, "t", b"x", "why")], [1])

    answers[at] = _error("disk I/O error", sqlite3.SQLITE_IOERR_FSYNC)
    with pytest.raises(OutboxFileError, match=r"o\.db: disk I/O error"):
        run()
    assert made[-1].is_closed
    with pytest.raises(OutboxFileError, match="not open"):
        run()
    answers.clear()
    opened = store.open()
    assert (opened.rows, opened.quarantined, opened.damaged_file) == (3, 0, None)
    run()
    opened = store.open()
    assert opened.rows == (3 if call == "commit" else 2)
    assert opened.quarantined == (0 if call == "commit" else 1)
    store.close()


def test_a_damage_that_shows_at_work_has_the_file_set_aside_when_it_is_opened_again(path: Path, faulty: Break) -> None:
    """Though the check at the start finds nothing; once, and not at every later start."""
    answers: dict[str, Any] = {}
    faulty(answers)
    store = _store(path)
    store.open()
    answers["SELECT id"] = _error("malformed", sqlite3.SQLITE_CORRUPT)
    with pytest.raises(OutboxFileError, match="malformed"):
        store.fetch(0, 10)
    answers.clear()
    opened = store.open()
    assert opened.damaged_file is not None
    assert (opened.salvaged, opened.rows) == (3, 3)
    assert store.open().damaged_file is None
    answers["BEGIN"] = _error("disk I/O error", sqlite3.SQLITE_IOERR_WRITE)
    with pytest.raises(OutboxFileError, match="I/O"):
        store.commit([_row()], ())
    answers.clear()
    assert store.open().damaged_file is None, "a disk that fails is no damage"
    store.close()


def test_an_error_of_closing_is_none_of_what_was_committed(path: Path, faulty: Break) -> None:
    """What is committed is committed."""
    faulty({"close": _error("disk I/O error", sqlite3.SQLITE_IOERR)})
    store = _store(path)
    store.open()
    store.close()
    assert store.open().rows == 3


def test_a_file_that_was_opened_in_one_thread_can_be_used_in_another(path: Path) -> None:
    """By one at a time: the outbox's thread is made anew in tests and tools."""
    store = _store(path)
    store.open()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(store.commit([_row()], ()).rows))
    thread.start()
    thread.join(30.0)
    assert found == [4]
    store.close()


# --- files of other programs ------------------------------------------------------------------------------------------


def _make(path: Path, *statements: str) -> None:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


COLUMNS = "stream TEXT, priority INTEGER, made REAL, topic TEXT, payload BLOB, crc INTEGER"


@pytest.mark.parametrize(
    ("statements", "is_taken"),
    [
        ([f"CREATE TABLE entry (id INTEGER PRIMARY KEY, {COLUMNS})"], True),
        ([f"CREATE TABLE entry (id INTEGER PRIMARY KEY AUTOINCREMENT, {COLUMNS})"], True),
        ([f"CREATE TABLE entry (id INTEGER PRIMARY KEY, {COLUMNS}, packing INTEGER NOT NULL DEFAULT 0)"], True),
        (["CREATE TABLE other (a)"], True),  # a table beside ours does no harm
        (["CREATE TABLE other (a)", "PRAGMA user_version=2"], True),
        (["CREATE TABLE entry (a, b)"], False),
        ([f"CREATE TABLE entry (id INTEGER PRIMARY KEY, {COLUMNS})", "PRAGMA user_version=2"], False),
    ],
)
def test_a_table_that_has_our_columns_is_ours(path: Path, statements: list[str], is_taken: bool) -> None:
    """One of an older program is brought up to date where it stands; one that has others is set aside."""
    _make(path, *statements)
    store = _store(path)
    opened = store.open()
    assert (opened.damaged_file is None) is is_taken
    if opened.damaged_file is not None:  # to be looked at as it was
        with closing(sqlite3.connect(opened.damaged_file)) as connection:
            (made,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entry'").fetchone()
        assert made == statements[0]
    store.commit([_row(7)], ())
    assert store.open().rows == 1
    assert store.fetch(0, 1)[0].payload == _row(7).payload
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        assert (
            "AUTOINCREMENT" not in connection.execute("SELECT sql FROM sqlite_master WHERE name='entry'").fetchone()[0]
        )


@pytest.mark.parametrize("column", ["stream", "topic"])
def test_a_text_that_is_no_utf_8_any_more_is_met_when_its_row_is_read(path: Path, column: str) -> None:
    """The file opens, and the other rows are read."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE entry SET {column} = CAST(x'6d2fff' AS TEXT) WHERE id = 2")  # noqa: S608
        connection.commit()
    store = _store(path)
    opened = store.open()
    assert (opened.rows, opened.damaged_file) == (3, None)
    assert [row.is_sound for row in store.fetch(0, 10)] == [True, False, True]
    store.close()


def test_a_row_without_a_number_or_priority_is_a_damage_and_the_others_stay(path: Path) -> None:
    """A priority that is no number is met when the row is read; its row is unsound, and goes then."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE entry SET priority = 'high' WHERE id = 2")
        connection.commit()
    store = _store(path)
    opened = store.open()
    assert (opened.rows, opened.damaged_file) == (3, None)
    assert [row.is_sound for row in store.fetch(0, 10)] == [True, False, True]
    store.close()
