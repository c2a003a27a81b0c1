"""The bounds of the outbox's file at their limits: bytes, age, the quarantine, its log, and the clock that is set."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.rows import NewRow, OutboxFileError, SetAside

PAYLOAD = b"\x01" + b"x" * 99  # no JSON of ours: kept as it is, in 100 bytes
SIZE = len("m/-") + len("edge/m") + 100 + 64


@dataclass
class _Clock:
    """A wall clock that can be set, and one that cannot."""

    wall: float = 1e9
    monotonic: float = 50.0

    def go_on(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds


def _open(path: Path, clock: _Clock, *, max_bytes: int = 1 << 30, max_age: float = 1e12) -> OutboxFile:
    store = OutboxFile(path, max_bytes, max_age, wall=lambda: clock.wall, monotonic=lambda: clock.monotonic)
    store.open()
    return store


def _row(made: float = 1e9, priority: int = 1) -> NewRow:
    return NewRow("m/-", priority, made, "edge/m", PAYLOAD)


def _aside(number: int, payload: bytes = PAYLOAD) -> SetAside:
    return SetAside("m/-", 1e9, f"t/{number:06}", payload, "why")


def _made(store: OutboxFile) -> list[float]:
    return [row.made for row in store.fetch(0, 10_000)]


# --- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spare", "gone"), [(0, []), (-1, [1]), (-SIZE, [1]), (-SIZE - 1, [1, 2])])
def test_rows_may_fill_the_bound_to_the_last_byte(path: Path, spare: int, gone: list[int]) -> None:
    """A row goes for each byte that is missing, and none for a byte that is there; they are delivered otherwise."""
    store = _open(path, _Clock(), max_bytes=4 * SIZE + spare)
    done = store.commit([_row() for _ in range(4)], ())
    assert done.trimmed.ids == gone
    assert done.trimmed.bytes == len(gone) * SIZE
    assert done.trimmed.by_stream == ({"m/-": len(gone)} if gone else {})
    assert done.rows == len(store.fetch(0, 100)) == 4 - len(gone)
    store.close()


def test_room_that_was_given_back_is_used_again(path: Path) -> None:
    """By rows that were delivered, by rows that went, by rows that were set aside; also over a restart."""
    clock = _Clock()
    store = _open(path, clock, max_bytes=10 * SIZE)
    ids = store.commit([_row() for _ in range(10)], ()).ids
    assert store.commit([_row(), _row()], ids[:2]).trimmed.ids == []
    assert store.commit([_row()], ()).trimmed.ids == [ids[2]]
    assert store.commit([], ids[3:5]).rows == 8
    assert store.commit([_row(), _row()], ()).trimmed.ids == []
    store.close()
    store = _open(path, clock, max_bytes=10 * SIZE)
    assert store.commit([_row()], ()).trimmed.ids == [ids[5]]
    assert store.commit([], [*ids, 10_000]).rows == 6, "what is not there any more gives nothing back"
    assert store.commit([_row() for _ in range(4)], ()).trimmed.ids == []
    assert store.commit([_row()], ()).rows == 10
    store.close()


def test_a_row_that_is_larger_than_the_bound_leaves_nothing(path: Path) -> None:
    """It goes like any other; the outbox does not search for ever."""
    store = _open(path, _Clock(), max_bytes=SIZE - 1)
    assert store.commit([_row()], ()).trimmed.by_reason == {"outbox_full": 1}
    assert store.commit([], ()).rows == 0
    store.close()


def test_rows_of_the_lowest_priority_are_found_again_after_they_were_used_up(path: Path) -> None:
    """The search remembers where it has ended, and forgets that when a priority has no row left."""
    store = _open(path, _Clock(), max_bytes=4 * SIZE)
    alarms = store.commit([_row(priority=0) for _ in range(3)], ()).ids
    for _ in range(3):
        (first,) = store.commit([_row(priority=2)], ()).ids
        done = store.commit([_row(priority=2)], ())
        assert done.trimmed.ids == [first]
        assert store.commit([_row(priority=1)], ()).trimmed.ids == done.ids
        (middle,) = [row.id for row in store.fetch(0, 10) if row.priority == 1]
        assert store.commit([_row(priority=2)], [middle]).trimmed.ids == []
        (low,) = [row.id for row in store.fetch(0, 10) if row.priority == 2]
        store.commit([], [low])
    assert [row.id for row in store.fetch(0, 10)] == alarms
    store.close()


@pytest.mark.parametrize("streams", [["n", "m/-", "n"], ["m/-", "n", "m/-"]])
def test_the_oldest_of_a_priority_goes_first_after_a_restart_whatever_its_stream(
    path: Path, streams: list[str]
) -> None:
    """Rows are counted by stream at the start; the first row of the priority may belong to any of them."""
    clock = _Clock()
    store = _open(path, clock)
    ids = store.commit([NewRow(stream, 1, 1e9, "edge/m", PAYLOAD) for stream in streams], ()).ids
    store.close()
    store = _open(path, clock, max_bytes=2 * SIZE + 2)
    assert store.commit([], ()).trimmed.ids == ids[:1]
    assert store.commit([_row()], ()).trimmed.ids == ids[1:2]
    store.close()


def test_what_is_counted_at_the_start_is_what_stands_there(path: Path) -> None:
    """Rows, their bytes, and how many of each stream, over priorities."""
    clock = _Clock()
    store = _open(path, clock)
    store.commit([_row(), _row(priority=0), NewRow("n", 2, 1e9, "edge/m", PAYLOAD), _row(priority=2)], ())
    store.set_aside([_aside(1)], ())
    found = store.open()
    assert (found.rows, found.streams, found.quarantined) == (4, {"m/-": 3, "n": 1}, 1)
    assert found.bytes == 4 * SIZE - 2
    assert (found.salvaged, found.lost, found.damaged_file) == (0, 0, None)
    store.close()


# --- age --------------------------------------------------------------------------------------------------------------


def test_a_row_goes_when_it_is_older_than_its_age_and_not_before(path: Path) -> None:
    """The oldest first, by reason; younger ones behind it stay."""
    clock = _Clock()
    store = _open(path, clock, max_age=60.0)
    store.commit([_row(clock.wall), _row(clock.wall + 1.0)], ())
    clock.go_on(60.0)
    assert store.commit([], ()).trimmed.ids == []
    clock.go_on(0.5)
    done = store.commit([], ())
    assert (done.trimmed.ids, done.trimmed.by_reason, done.trimmed.bytes) == ([1], {"too_old": 1}, SIZE)
    assert done.rows == 1
    clock.go_on(1.0)
    assert store.commit([], ()).rows == 0
    assert store.commit([], ()).trimmed.ids == []
    store.close()


def test_no_more_than_a_thousand_rows_go_by_their_age_in_one_commit(path: Path) -> None:
    """The others go with the next ones, so that no commit takes long."""
    clock = _Clock()
    store = _open(path, clock, max_age=60.0)
    store.commit([_row(clock.wall) for _ in range(1001)], ())
    clock.go_on(61.0)
    assert store.commit([], ()).trimmed.by_reason == {"too_old": 1000}
    assert store.commit([], ()).trimmed.by_reason == {"too_old": 1}
    store.close()


def test_what_goes_by_its_age_makes_room_for_the_rest(path: Path) -> None:
    """No row goes for want of room that another has just given."""
    clock = _Clock()
    store = _open(path, clock, max_age=60.0, max_bytes=3 * SIZE)
    store.commit([_row(clock.wall) for _ in range(2)], ())
    clock.go_on(61.0)
    done = store.commit([_row(clock.wall) for _ in range(3)], ())
    assert done.trimmed.by_reason == {"too_old": 2}
    assert done.rows == 3
    store.close()


# --- the clock --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [10.5, -10.5, 1.7e9])
def test_rows_move_with_a_clock_that_is_set(path: Path, jump: float) -> None:
    """Once, by what it was set; rows that come later are of the new time."""
    clock = _Clock()
    store = _open(path, clock)
    store.commit([_row(clock.wall)], ())
    clock.go_on(100.0)
    clock.wall += jump
    store.commit([], ())
    assert _made(store) == [1e9 + jump]
    clock.go_on(100.0)
    store.commit([_row(clock.wall)], ())
    store.commit([], ())
    assert _made(store) == [1e9 + jump, 1e9 + 200.0 + jump]
    store.close()


def test_rows_stay_where_they_are_when_the_process_starts_anew(path: Path) -> None:
    """However long the machine has been up."""
    store = _open(path, _Clock())
    store.commit([_row(1e9)], ())
    store.close()
    store = _open(path, _Clock(wall=1e9 + 500.0, monotonic=4e5))
    store.commit([], ())
    assert _made(store) == [1e9]
    store.close()


@pytest.mark.parametrize("step", [10.0, -10.0, 0.5])
def test_rows_stay_where_they_are_while_a_clock_is_steered(path: Path, step: float) -> None:
    """Ten seconds are no jump."""
    clock = _Clock()
    store = _open(path, clock)
    store.commit([_row(clock.wall)], ())
    clock.wall += step
    store.commit([], ())
    assert _made(store) == [1e9]
    store.close()


def test_rows_do_not_move_twice_when_the_commit_fails_in_which_the_clock_was_set(path: Path) -> None:
    """What is undone on the disk is undone in memory."""
    clock = _Clock()
    store = _open(path, clock)
    store.commit([_row(clock.wall)], ())
    clock.wall += 1000.0
    with pytest.raises(OutboxFileError):
        store.commit([NewRow("m/-", 1, None, "t", PAYLOAD)], ())  # type: ignore[arg-type] # the file refuses it
    store.open()
    store.commit([], ())
    assert _made(store) == [1e9 + 1000.0]
    store.close()


# --- reading ----------------------------------------------------------------------------------------------------------


def test_rows_are_read_from_behind_a_number_on_oldest_first(path: Path) -> None:
    """No more than asked for."""
    store = _open(path, _Clock())
    store.commit([_row() for _ in range(5)], ())
    assert [row.id for row in store.fetch(0, 100)] == [1, 2, 3, 4, 5]
    assert [row.id for row in store.fetch(2, 2)] == [3, 4]
    assert store.fetch(5, 2) == []
    store.close()


# --- the quarantine ---------------------------------------------------------------------------------------------------


def _quarantine(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [topic for (topic,) in connection.execute("SELECT topic FROM quarantine ORDER BY id")]


def test_setting_aside_takes_the_rows_out_of_the_queue_in_the_same_transaction(path: Path) -> None:
    """What is left is counted, and their room is free again, but for what the quarantine takes itself."""
    clock = _Clock()
    store = _open(path, clock, max_bytes=1000 * SIZE)
    ids = store.commit([_row() for _ in range(1000)], ()).ids
    clock.go_on(5.0)
    assert store.set_aside([_aside(1)], ids[:2]) == 998
    assert store.set_aside([], [ids[2], ids[2], 5000]) == 997
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT at, stream, made, topic, payload, why FROM quarantine").fetchall()
    assert found == [(1e9 + 5.0, "m/-", 1e9, "t/000001", PAYLOAD, "why")]
    # Three rows went, and the quarantine's one (a topic of 8 instead of 6) takes the room of one and two bytes.
    assert store.commit([_row()], ()).trimmed.ids == []
    assert store.commit([_row()], ()).trimmed.ids == [ids[3]]
    store.close()


def test_the_room_of_the_quarantine_is_counted_after_a_restart(path: Path) -> None:
    """As before it."""
    clock = _Clock()
    store = _open(path, clock, max_bytes=1000 * SIZE)
    store.commit([_row() for _ in range(998)], ())
    store.set_aside([_aside(1)], ())
    store.close()
    store = _open(path, clock, max_bytes=1000 * SIZE)
    assert store.commit([], ()).trimmed.ids == []
    assert store.commit([_row()], ()).trimmed.ids == [1]  # two bytes are missing
    store.close()


def test_the_quarantine_keeps_the_newest_in_16_kib_or_a_fiftieth_of_the_bound(path: Path) -> None:
    """Whichever is more; to the last byte."""
    for max_bytes, room in ((1 << 18, 16_384), (50 * 20_000, 20_000)):
        store = _open(path, _Clock(), max_bytes=max_bytes)
        payload = b"\x01" * (room // 8 - 64 - len("m/-") - len("t/000001"))
        store.set_aside([_aside(number, payload) for number in range(7)], ())
        store.set_aside([_aside(7, payload)], ())
        assert len(_quarantine(path)) == 8
        store.set_aside([_aside(8, payload + b"\x01")], ())
        assert _quarantine(path)[0] == "t/000002"
        store.close()
        path.unlink()


def test_what_the_quarantine_has_lost_takes_no_room(path: Path) -> None:
    """Rows have all that it does not take."""
    store = _open(path, _Clock(), max_bytes=16_384 + 10 * SIZE)
    payload = b"\x01" * (1024 - 64 - len("m/-") - len("t/000001"))
    store.set_aside([_aside(number, payload) for number in range(40)], ())
    assert len(_quarantine(path)) == 16
    assert store.commit([_row() for _ in range(10)], ()).trimmed.ids == []
    assert store.commit([_row()], ()).trimmed.ids == [1]
    store.close()


def test_a_quarantine_that_was_set_aside_with_a_damaged_file_takes_no_room(path: Path) -> None:
    """Rows of the file that takes its place may fill the bound."""
    store = _open(path, _Clock(), max_bytes=10 * SIZE)
    store.set_aside([_aside(1)], ())
    store.close()
    path.write_bytes(b"this is no database" * 1000)
    assert store.open().damaged_file is not None
    assert store.commit([_row() for _ in range(10)], ()).trimmed.ids == []
    store.close()


def test_a_quarantine_that_takes_the_whole_bound_leaves_no_row(path: Path) -> None:
    """The search for a row to drop ends where there is none."""
    store = _open(path, _Clock(), max_bytes=1000)
    store.set_aside([_aside(1, b"\x01" * 2000)], ())
    assert store.commit([_row()], ()).rows == 0
    store.close()


def test_one_that_is_larger_than_the_quarantine_is_kept_alone(path: Path) -> None:
    """The newest is always there to be looked at, and its room is counted."""
    store = _open(path, _Clock(), max_bytes=1 << 18)
    store.commit([_row() for _ in range(10)], ())
    store.set_aside([_aside(1), _aside(2, b"\x01" * 20_000)], ())
    assert _quarantine(path) == ["t/000002"]
    assert store.open().quarantined == 1
    store.close()


def test_the_quarantine_keeps_no_more_than_a_thousand(path: Path) -> None:
    """The newest ones."""
    store = _open(path, _Clock())
    store.set_aside([_aside(number) for number in range(1000)], ())
    assert len(_quarantine(path)) == 1000
    store.set_aside([_aside(1000)], ())
    found = _quarantine(path)
    assert (len(found), found[0], found[-1]) == (1000, "t/000001", "t/001000")
    store.close()


# --- how SQLite is set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_bytes", "pages"),
    [(1 << 16, 16), (50 * 4096 * 17 - 1, 16), (50 * 4096 * 17, 17), (50 * 4096 * 999, 999), (1 << 30, 1000)],
)
def test_the_log_is_a_fiftieth_of_the_bound_and_every_commit_is_synced(path: Path, max_bytes: int, pages: int) -> None:
    """From 16 pages to 1,000, and a log that has grown is cut to as much, or to a mebibyte."""
    store = _open(path, _Clock(), max_bytes=max_bytes)
    assert store._connection is not None

    def pragma(name: str) -> object:
        assert store._connection is not None
        return store._connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 2
    assert pragma("busy_timeout") == 5000
    assert pragma("wal_autocheckpoint") == pages
    assert pragma("journal_size_limit") == min(1 << 20, pages * 4096)
    store.close()
