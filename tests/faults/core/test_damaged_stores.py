"""An outbox file that is damaged in every way we can think of: the daemon starts, and nothing wrong is published."""

import random
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from edge_runtime.delivery.outbox_file import SCHEMA_VERSION, OutboxFile
from edge_runtime.delivery.rows import NewRow, OutboxFileError
from tests.support.disk_faults import LONG, report

DAMAGES = 10_000 if LONG else 1_000
ROWS = 120


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where there is one."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="damaged-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def _row(number: int) -> NewRow:
    fill = random.Random(number).randbytes(number * 7 % 400).hex().encode()
    return NewRow(f"m/{number % 3}", 1, 1e9, f"edge/m/{number % 3}", b'{"n":%d,"fill":"%s"}' % (number, fill))


def _store(path: Path) -> OutboxFile:
    return OutboxFile(path, 1 << 30, 1e12)


def _make(folder: Path, *, open_end: bool) -> Path:
    """A sound file; with `open_end` as a killed process leaves it, with rows in the log that stands beside it."""
    path = folder / "outbox.db"
    store = _store(path)
    store.open()
    for start in range(0, ROWS, 10):
        store.commit([_row(number) for number in range(start, start + 10)], ())
    if open_end:
        copy = folder / "copy"
        copy.mkdir()
        for found in folder.glob("outbox.db*"):
            shutil.copy(found, copy / found.name)
        store.close()
        for found in folder.glob("outbox.db*"):
            found.unlink()
        for found in copy.iterdir():
            found.rename(folder / found.name)
        copy.rmdir()
    else:
        store.close()
    return path


def _pick(path: Path, rng: random.Random) -> Path:
    found = [file for file in (path, path.with_name(path.name + "-wal")) if file.exists() and file.stat().st_size]
    return rng.choice(found)


def _truncate(path: Path, rng: random.Random) -> None:
    target = _pick(path, rng)
    with target.open("r+b") as file:
        file.truncate(rng.randrange(target.stat().st_size))


def _flip(path: Path, rng: random.Random) -> None:
    target = _pick(path, rng)
    data = bytearray(target.read_bytes())
    for _ in range(rng.choice([1, 1, 3, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    target.write_bytes(data)


def _zero_page(path: Path, rng: random.Random) -> None:
    target = _pick(path, rng)
    data = bytearray(target.read_bytes())
    page = rng.randrange(max(1, len(data) // 4096)) * 4096
    data[page : page + 4096] = bytes(len(data[page : page + 4096]))
    target.write_bytes(data)


def _noise_page(path: Path, rng: random.Random) -> None:
    target = _pick(path, rng)
    data = bytearray(target.read_bytes())
    page = rng.randrange(max(1, len(data) // 512)) * 512
    data[page : page + 512] = rng.randbytes(len(data[page : page + 512]))
    target.write_bytes(data)


def _no_log(path: Path, rng: random.Random) -> None:
    for suffix in rng.choice([("-wal",), ("-shm",), ("-wal", "-shm")]):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _random_file(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(rng.choice([0, 1, 15, 16, 100, 4096, 50_000])))


def _random_log(path: Path, rng: random.Random) -> None:
    path.with_name(path.name + rng.choice(["-wal", "-shm", "-journal"])).write_bytes(rng.randbytes(8192))


def _directory(path: Path, rng: random.Random) -> None:
    target = path.with_name(path.name + rng.choice(["", "", "-wal"]))
    target.unlink(missing_ok=True)
    target.mkdir()
    if rng.random() < 0.5:
        (target / "something").write_text("in it")


def _newer_schema(path: Path, rng: random.Random) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version={rng.randint(SCHEMA_VERSION + 1, 1000)}")


def _foreign_table(path: Path, rng: random.Random) -> None:
    for file in path.parent.glob("outbox.db*"):
        file.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            rng.choice(["CREATE TABLE entry (a, b)", "CREATE TABLE other (a)", "CREATE VIEW entry AS SELECT 1"])
        )


KINDS: list[Callable[[Path, random.Random], None]] = [
    _truncate,
    _flip,
    _flip,
    _flip,
    _zero_page,
    _noise_page,
    _no_log,
    _random_file,
    _random_log,
    _directory,
    _newer_schema,
    _foreign_table,
]


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 280)
def test_a_damaged_file_never_keeps_the_outbox_from_starting_and_never_speaks_falsely(folder: Path) -> None:
    """It opens at once, gives back only rows that were written, says what it set aside, and takes new rows."""
    masters = {}
    for open_end in (False, True):
        masters[open_end] = folder / f"master-{open_end}"
        masters[open_end].mkdir()
        _make(masters[open_end], open_end=open_end)
    rng = random.Random(20261123)
    written = {(row.stream, row.topic, row.payload) for row in map(_row, range(ROWS))}
    tally = Counter[str]()
    for turn in range(DAMAGES):
        kind = KINDS[turn % len(KINDS)]
        place = folder / "work"
        shutil.copytree(masters[rng.random() < 0.5], place)
        path = place / "outbox.db"
        kind(path, rng)
        what = f"turn {turn}, {kind.__name__}"
        store = _store(path)
        opened = store.open()
        rows = store.fetch(0, 1000)
        if any(not row.is_sound for row in rows):
            tally["rows dropped by their checksum"] += sum(not row.is_sound for row in rows)
        sound = [(row.stream, row.topic, row.payload) for row in rows if row.is_sound]
        assert set(sound) <= written, what
        assert len(set(sound)) == len(sound), what
        if sound != sorted(sound, key=lambda row: int(row[2].partition(b":")[2].partition(b",")[0])):
            tally["orders changed by a flipped row number"] += 1  # the one thing that no checksum covers
        if opened.damaged_file is not None:
            tally["files set aside"] += 1
            tally["rows taken over from them"] += opened.salvaged
            assert Path(opened.damaged_file).exists(), what
        new = NewRow("m/new", 0, 2e9, "edge/m/new", b'{"n":9999}')
        try:
            (number,) = store.commit([new], [row.id for row in rows[:5]]).ids
        except OutboxFileError:  # a damage that shows only here: the outbox opens the file anew, as after any error
            tally["found in use"] += 1
            assert store.open().damaged_file is not None, what
            (number,) = store.commit([new], ()).ids
        assert store.fetch(number - 1, 1)[0].payload == new.payload, what
        store.close()
        again = _store(path)
        assert again.open().damaged_file is None, what
        assert again.fetch(number - 1, 1)[0].payload == new.payload, what
        again.close()
        shutil.rmtree(place)
    report(f"{DAMAGES} damaged stores, 0 failed starts, 0 wrong rows; {dict(tally)}")
    assert tally["files set aside"] > DAMAGES // 10
    assert tally["orders changed by a flipped row number"] <= DAMAGES // 500
    assert tally["rows taken over from them"] > 0


def test_what_stands_behind_a_bad_page_is_taken_over(folder: Path) -> None:
    """A file is read from both ends; what is missing is counted."""
    path = _make(folder, open_end=False)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = bytes(4096)
    path.write_bytes(data)
    opened = _store(path).open()
    assert opened.damaged_file is not None
    assert opened.salvaged > ROWS // 2
    assert opened.lost > 0
    assert opened.salvaged + opened.lost == ROWS


def test_only_the_newest_damaged_files_are_kept(folder: Path) -> None:
    """A card that fails again and again does not fill itself with what was set aside."""
    path = folder / "outbox.db"
    for _ in range(6):
        for file in folder.glob("outbox.db*"):
            if "damaged" not in file.name:
                file.unlink()
        path.write_bytes(b"this is no database, and was never one" * 100)
        store = _store(path)
        assert store.open().damaged_file is not None
        store.close()
    assert len([file for file in folder.iterdir() if "damaged" in file.name]) == 3


def test_rows_never_grow_old_by_a_clock_that_is_set(folder: Path) -> None:
    """A device without a clock wakes up in 1970; when the time is set, its rows are as old as before."""
    wall, mono = [100.0], [10.0]
    store = OutboxFile(folder / "outbox.db", 1 << 30, 3600.0, wall=lambda: wall[0], monotonic=lambda: mono[0])
    store.open()
    store.commit([NewRow("m/a", 1, 100.0, "t", b"{}")], ())
    wall[0] += 1.7e9
    assert not store.commit([NewRow("m/a", 1, wall[0], "t", b"{}")], ()).trimmed.ids
    wall[0] += 3500.0
    mono[0] += 3500.0
    assert not store.commit((), ()).trimmed.ids
    wall[0] += 200.0
    mono[0] += 200.0
    assert store.commit((), ()).trimmed.by_reason == {"too_old": 2}
    store.close()


def test_a_schema_that_is_no_text_any_more_is_damage(folder: Path) -> None:
    """SQLite quotes the damaged bytes in its message; the file is set aside like any other."""
    path = _make(folder, open_end=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"tableentryentry", b"tableentr\xeeentr\xee", 1))
    assert path.read_bytes() != data
    assert _store(path).open().damaged_file is not None


def test_a_file_of_an_older_schema_is_taken_over_as_it_stands(folder: Path) -> None:
    """Its rows are kept, it is not set aside, and it is marked as the present one."""
    path = _make(folder, open_end=False)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version=0")
    store = _store(path)
    opened = store.open()
    assert (opened.damaged_file, opened.rows) == (None, ROWS)
    assert [row.payload for row in store.fetch(0, ROWS)] == [_row(number).payload for number in range(ROWS)]
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
