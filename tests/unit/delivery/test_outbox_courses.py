"""Courses of events in which one forgotten step of the outbox would show: twice, late, out of order, or never."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE
from edge_runtime.readings import Receipt
from tests.support.outbox_bench import OutboxBench

# --- order ------------------------------------------------------------------------------------------------------------


def test_a_prediction_does_not_overtake_one_that_waits_for_a_place() -> None:
    """Though a place is free at the moment when it is made."""
    bench = OutboxBench(None, window=1)
    bench.link_up()
    names = [bench.offer(), bench.offer()]
    bench.work()
    bench.link.acknowledge()
    names.append(bench.offer())  # before the loop has come to the one that waits
    bench.work()
    assert bench.on_wire == [names[1]]
    bench.acknowledge_all()
    assert bench.arrived == names


def test_rows_that_were_in_flight_go_first_when_the_link_is_back(path: Path) -> None:
    """Before those that were read from the disk already and not sent."""
    bench = OutboxBench(path, window=4)
    names = [bench.offer() for _ in range(20)]
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == names[:3]
    bench.link_down()
    bench.link_up()
    assert bench.on_wire == names[:3]
    bench.acknowledge_all()
    assert bench.arrived == names
    bench.wait(3.0)
    assert (bench.outbox.queued, bench.outbox._sent_rows) == (0, set())


def test_entries_that_were_in_flight_go_in_their_old_order_when_the_link_is_back() -> None:
    """Also when they were acknowledged out of order, and before what waited meanwhile."""
    bench = OutboxBench(None, window=3)
    bench.link_up()
    names = [bench.offer() for _ in range(5)]
    bench.link.wire.rotate(1)  # the broker acknowledges the third first
    bench.link.acknowledge()
    bench.work()
    bench.link_down()
    names.append(bench.offer())
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived == [names[2], names[0], names[1], *names[3:]]
    assert [document["seq"] for document in bench.link.arrived if document.get("delayed")] == [1, 2, 4, 5, 6]


def test_a_row_that_was_refused_is_read_again_after_its_pause(path: Path) -> None:
    """Though other rows were read from behind it meanwhile."""
    bench = OutboxBench(path, window=4)
    bad = bench.offer("bad")
    good = [bench.offer("good") for _ in range(10)]
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire[0] == bad
    bench.link.acknowledge(accept=False)
    bench.work()
    bench.acknowledge_all()
    assert bench.arrived == good
    bench.wait(4.5)
    assert bench.on_wire == []
    bench.wait(1.0)
    assert bench.on_wire == [bad]
    bench.acknowledge_all()
    bench.wait(3.0)
    assert (bench.outbox.queued, bench.outbox.stored_rows) == (0, 0)


# --- once -------------------------------------------------------------------------------------------------------------


def test_what_is_acknowledged_while_its_commit_is_under_way_is_not_sent_again(path: Path) -> None:
    """Its row is deleted at once, and its memory counted once."""
    bench = OutboxBench(path)
    bench.link_up()
    name = bench.offer(receipt=True)
    bench.loop.advance(1.1)
    bench.link.acknowledge()
    bench.work()
    assert bench.outbox.memory_bytes == 0
    assert (bench.outbox.queued, bench.outbox.stored_rows) == (0, 1)
    bench.wait(3.0)
    bench.link_down()
    bench.link_up()
    assert bench.on_wire == []
    assert bench.arrived == bench.released == [name]
    assert (bench.outbox.stored_rows, bench.outbox.memory_bytes, bench.outbox._sent_rows) == (0, 0, set())


def test_a_reading_of_two_models_is_released_once_by_each(path: Path) -> None:
    """The commit of one prediction releases it, and its acknowledgement no second time."""
    bench = OutboxBench(path)
    bench.link_up()
    done: list[str] = []
    receipt = Receipt(lambda: done.append("acknowledged"))
    receipt.hold()  # by the other model, which is still at it
    bench.outbox.offer("m/a", "edge/m/a", b'{"id":"x","seq":1}', priority=PRIORITY_ROUTINE, receipt=receipt)
    bench.wait(2.0)
    assert receipt.holds == 1
    bench.acknowledge_all()
    assert (receipt.holds, done) == (1, [])


def test_many_predictions_that_wait_are_looked_at_once_in_a_wake_up() -> None:
    """A burst of acknowledgements costs one pass; where nothing waits, none."""
    bench = OutboxBench(None, window=50)
    bench.link_up()
    for _ in range(100):
        bench.offer()
    bench.work()
    served = bench.loop.served
    bench.link.acknowledge(50)
    bench.work()
    assert bench.loop.served == served + 1
    assert len(bench.link.wire) == 50
    bench.link.acknowledge(50)
    bench.work()
    assert bench.loop.served == served + 1


def test_rows_are_asked_for_once_however_often_the_outbox_looks(path: Path) -> None:
    """While the disk has not answered yet; and without a link not at all."""
    bench = OutboxBench(path)
    for _ in range(3):
        bench.offer()
    bench.wait(2.0)
    asked = bench.note_calls("fetch")
    bench.offer("m/b")
    bench.wait(2.0)
    bench.outbox.link_changed()
    assert asked == []
    bench.link.connected = True
    bench.outbox.link_changed()
    for _ in range(4):
        bench.offer("m/b")
        bench.loop.settle()
    assert len(asked) == 1


def test_a_dead_disk_and_a_live_link_do_not_keep_the_loop_busy(path: Path) -> None:
    """Rows that cannot be read are not asked for again and again."""
    bench = OutboxBench(path)
    for _ in range(5):
        bench.offer()
    bench.wait(2.0)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link_up()
    bench.wait(10.0)
    before = bench.loop.served
    bench.wait(40.0)
    assert bench.loop.served - before < 20


def test_a_link_that_takes_no_row_leaves_it_where_it_is(path: Path) -> None:
    """It breaks in the moment of sending: the row is sent when it is back, in its place."""
    bench = OutboxBench(path)
    names = [bench.offer() for _ in range(5)]
    bench.wait(2.0)
    take = bench.link.publish
    tries: list[str] = []

    def refuse(topic: str, *_: Any, **__: Any) -> bool:
        tries.append(topic)
        return False

    bench.link.publish = refuse  # type: ignore[method-assign]
    bench.link_up()
    assert 1 <= len(tries) < 5
    bench.link.publish = take  # type: ignore[method-assign]
    bench.link_down()
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived == names


# --- a clean stop -----------------------------------------------------------------------------------------------------


def test_a_stop_commits_what_waits_though_nothing_else_happens(path: Path) -> None:
    """Without a link, long before its time."""
    bench = OutboxBench(path, commit_interval=3600.0)
    asked = bench.note_calls("open")
    bench.offer(receipt=True)
    bench.work()
    bench.outbox.drain()
    assert not bench.outbox.is_safe
    bench.work()
    assert bench.outbox.is_safe
    assert (len(bench.released), bench.outbox.stored_rows, asked) == (1, 1, [])


def test_a_stop_sends_nothing_more_from_the_disk(path: Path) -> None:
    """What is sent at the last moment would come a second time after the next start."""
    bench = OutboxBench(path, window=4)
    names = [bench.offer() for _ in range(10)]
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == names[:3]
    bench.outbox.drain()
    bench.work()
    bench.link.acknowledge(2)
    bench.wait(1.0)
    assert bench.on_wire == names[2:3]
    assert bench.outbox.is_safe
    assert bench.outbox.stored_rows == 8


def test_a_row_is_not_safe_to_leave_while_its_deletion_is_under_way(path: Path) -> None:
    """A process that ended now would send it again."""
    bench = OutboxBench(path)
    bench.link_up()
    bench.offer()
    bench.wait(2.0)
    bench.link.acknowledge()
    bench.loop.advance(1.1)  # the deletion is asked for
    assert not bench.outbox.is_safe
    bench.work()
    assert bench.outbox.is_safe


@pytest.mark.parametrize("is_linked", [False, True])
def test_what_is_offered_after_the_stop_has_begun_is_safe_too(path: Path, is_linked: bool) -> None:
    """The last readings are still on their way through the models then."""
    bench = OutboxBench(path, commit_interval=60.0, window=1)
    if is_linked:
        bench.link_up()
    bench.outbox.drain()
    bench.work()
    for _ in range(3):
        bench.offer(receipt=True)
        bench.work()
    assert bench.outbox.is_safe
    assert len(bench.released) == 3
    assert bench.outbox.stored_rows == 3


def test_with_interval_zero_nothing_is_sent_before_it_is_written_during_a_stop_either(path: Path) -> None:
    """It is written, and goes with the next start."""
    bench = OutboxBench(path, commit_interval=0.0)
    bench.link_up()
    bench.outbox.drain()
    bench.work()
    bench.offer()
    assert bench.on_wire == []
    bench.work()
    assert bench.on_wire == []
    assert bench.outbox.is_safe
    assert bench.outbox.stored_rows == 1


def test_what_comes_while_the_last_commit_is_under_way_is_committed_behind_it(path: Path) -> None:
    """A stop does not wait for the interval, nor for anything else to happen."""
    bench = OutboxBench(path, commit_interval=3600.0)
    assert bench.store is not None
    bench.offer()
    bench.outbox.drain()
    bench.offer()
    bench.loop.settle()
    bench.store.work(1)
    bench.work()
    assert bench.outbox.is_safe
    assert bench.outbox.stored_rows == 2


# --- commit_interval = 0 ----------------------------------------------------------------------------------------------


def test_with_interval_zero_what_is_written_goes_on_live_and_is_not_read_back(path: Path) -> None:
    """Its commit is no delay of the link, and each goes from memory, however many are in flight."""
    bench = OutboxBench(path, commit_interval=0.0, window=4)
    asked = bench.note_calls("fetch")
    bench.link_up()
    names = [bench.offer("m/a"), bench.offer("m/a"), bench.offer("m/b")]
    bench.work()
    assert bench.on_wire == names
    bench.acknowledge_all()
    assert [document["id"] for document in bench.link.arrived if "delayed" not in document] == names
    assert asked == []
    bench.wait(0.1)
    assert bench.outbox.stored_rows == 0


def test_with_interval_zero_what_comes_while_a_commit_is_under_way_is_committed_soon(path: Path) -> None:
    """Though no other prediction follows it."""
    bench = OutboxBench(path, commit_interval=0.0)
    bench.link_up()
    assert bench.store is not None
    names = [bench.offer()]
    bench.loop.settle()
    names.append(bench.offer())
    bench.loop.settle()
    bench.store.work(1)
    bench.wait(0.1)
    assert bench.on_wire == names


# --- commits beside a link --------------------------------------------------------------------------------------------


def test_rows_are_numbered_in_the_order_of_their_making(path: Path) -> None:
    """Not in that of their sending: one was refused while the next was in flight."""
    bench = OutboxBench(path, window=2)
    bench.link_up()
    names = [bench.offer(), bench.offer()]
    bench.link.acknowledge(accept=False)
    bench.wait(1.5)
    assert bench.store is not None
    rows = bench.store.store.fetch(0, 10)
    assert [json.loads(row.payload)["id"] for row in rows] == names


def test_what_is_committed_for_want_of_a_place_is_not_sent_beyond_the_window(path: Path) -> None:
    """Its commit gives it no place."""
    bench = OutboxBench(path, window=1)
    bench.link_up()
    names = [bench.offer("m/a"), bench.offer("m/b")]
    bench.wait(2.0)
    assert bench.outbox.stored_rows == 2
    assert bench.on_wire == names[:1]
    bench.acknowledge_all()
    assert bench.arrived == names


def test_what_is_committed_behind_rows_of_its_stream_is_not_sent_before_them(path: Path) -> None:
    """Though there is a place."""
    bench = OutboxBench(path, window=8)
    names = [bench.offer() for _ in range(20)]
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == names[:6]
    names.append(bench.offer())
    bench.wait(2.0)
    assert bench.outbox.stored_rows == 21
    assert bench.on_wire == names[:6]
    bench.acknowledge_all()
    assert bench.arrived == names


def test_a_row_that_goes_to_the_quarantine_is_not_sent_though_it_was_read_meanwhile(path: Path) -> None:
    """The disk answers in its order: commit, rows, and only then the quarantine."""
    bench = OutboxBench(path, window=4, unsendable=lambda topic, _: "never" if "bad" in topic else None)
    good = [bench.offer("good") for _ in range(100)]
    bench.wait(2.0)
    bench.link_up()
    bad = bench.offer("bad")
    assert bench.on_wire == [*good[:3], bad]
    asked = bench.note_calls("fetch")
    bench.loop.advance(1.1)
    while not asked:
        bench.link.acknowledge(accept=bench.on_wire[0] != bad)
        bench.loop.settle()
    bench.work()
    bench.acknowledge_all()
    bench.wait(3.0)
    assert bench.link.refused == [bad]
    assert bench.arrived == good
    assert bench.counters.dropped == {"unsendable": 1}
    assert (bench.outbox.queued, bench.outbox.stored_rows) == (0, 0)


def test_a_row_that_was_acknowledged_during_its_commit_is_not_sent_though_it_was_read_meanwhile(path: Path) -> None:
    """Its deletion comes behind the reading of the rows."""
    bench = OutboxBench(path, window=4)
    rows = [bench.offer("m/a") for _ in range(100)]
    bench.wait(2.0)
    bench.link_up()
    live = bench.offer("m/b")
    asked = bench.note_calls("fetch")
    bench.loop.advance(1.1)
    while not asked or live in bench.on_wire:
        bench.link.acknowledge()
        bench.loop.settle()
    bench.work()
    bench.acknowledge_all()
    assert sorted(bench.arrived) == sorted([*rows, live])
    bench.wait(3.0)
    assert (bench.outbox.queued, bench.outbox.stored_rows) == (0, 0)


def test_a_row_that_went_for_want_of_room_is_not_sent_though_it_was_read_before(path: Path) -> None:
    """It is counted as dropped; only what was in flight at that moment arrives as well."""
    bench = OutboxBench(path, max_bytes=8_000, window=4)
    rows = [bench.offer("m/a", size=100) for _ in range(30)]
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == rows[:3]
    alarms = [bench.offer("m/b", size=100, priority=PRIORITY_ALARM) for _ in range(30)]
    bench.wait(2.0)
    dropped = bench.counters.dropped["outbox_full"]
    assert 15 < dropped < 27
    live = bench.offer("m/a")
    bench.work()
    assert live not in bench.on_wire, "there are rows of its stream"
    for _ in range(20):
        bench.acknowledge_all()
        bench.wait(0.5)
    assert [name for name in bench.arrived if name not in alarms] == [*rows[:3], *rows[dropped:], live]
    assert [name for name in bench.arrived if name in alarms] == alarms
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox._sent_rows) == (0, 0, set())


# --- streams with rows ------------------------------------------------------------------------------------------------


def test_a_stream_whose_rows_are_all_in_flight_goes_on_live(path: Path) -> None:
    """It does not wait for the rows of others; until then it does wait for its own."""
    bench = OutboxBench(path, window=8)
    rows = [bench.offer("m/a") for _ in range(2)]
    for _ in range(300):
        bench.offer("m/b")
    bench.wait(2.0)
    bench.link.connected = True
    bench.outbox.link_changed()
    bench.loop.settle()
    live = bench.offer("m/a")
    assert bench.on_wire == []
    bench.work()
    assert bench.on_wire[:2] == rows
    bench.link.acknowledge(2)
    bench.loop.settle()  # the disk has not worked since
    later = bench.offer("m/a")
    assert [name for name in bench.on_wire if name.startswith("m/a")] == [live, later]


def test_no_row_of_a_refused_stream_is_sent_during_its_pause(path: Path) -> None:
    """Nor does it hold up those behind it."""
    bench = OutboxBench(path, window=4)
    bad = [bench.offer("bad")]
    good = [bench.offer("good") for _ in range(5)]
    bad.append(bench.offer("bad"))
    good += [bench.offer("good") for _ in range(5)]
    bench.wait(2.0)
    bench.link_up()
    bench.link.acknowledge(accept=False)
    bench.work()
    bench.acknowledge_all()
    assert bench.arrived == good
    bench.wait(6.0)
    assert bench.on_wire == bad


def test_a_row_of_a_refused_stream_does_not_stop_those_behind_it(path: Path) -> None:
    """Though nothing is in flight whose end would have the outbox look again."""
    bench = OutboxBench(path, window=1)
    names = [bench.offer("bad"), bench.offer("bad"), bench.offer("good")]
    bench.wait(2.0)
    bench.link_up()
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.on_wire == names[2:]


def test_rows_that_are_read_while_the_link_is_lost_are_not_sent_in_the_place_of_older_ones(path: Path) -> None:
    """A portion from the middle arrives when everything has to begin anew."""
    bench = OutboxBench(path, window=4)
    names = [bench.offer() for _ in range(200)]
    bench.wait(2.0)
    asked = bench.note_calls("fetch")
    bench.link_up()
    while len(asked) < 2:
        bench.link.acknowledge()
        bench.loop.settle()
    bench.link.break_down()
    bench.outbox.link_changed()
    bench.link.connected = True
    bench.outbox.link_changed()
    bench.work()
    assert len(bench.link.wire) == 3, "the right ones are asked for at once"
    for _ in range(300):
        bench.acknowledge_all()
        bench.wait(0.1)
        if not bench.outbox.queued:
            break
    assert bench.arrived == names


def test_what_was_delivered_while_the_disk_was_away_holds_nothing_up_when_it_is_back(path: Path) -> None:
    """Its row is still there, and is deleted in time; it is none that has to go first."""
    bench = OutboxBench(path)
    first = bench.offer()
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == [first]
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link.acknowledge()
    bench.wait(1.2)  # its deletion fails
    bench.store.fault = ""
    while bench.outbox.state != "ok":
        bench.wait(0.1)
    live = bench.offer()
    bench.loop.settle()
    bench.work()
    assert bench.on_wire == [live]
    bench.acknowledge_all()
    bench.wait(3.0)
    assert bench.arrived == [first, live]
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox._sent_rows) == (0, 0, set())


def test_what_waits_for_rows_that_are_gone_goes_as_soon_as_that_is_known(path: Path) -> None:
    """It was offered between the opening of the file and the reading of its rows."""
    bench = OutboxBench(path, commit_interval=20.0)
    first = bench.offer()
    bench.wait(25.0)
    bench.link_up()
    assert bench.on_wire == [first]
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link.acknowledge()
    bench.loop.advance(20.1)  # its deletion fails
    bench.store.work()
    bench.store.fault = ""
    bench.loop.advance(1.1)
    bench.store.work(1)  # opened, and not yet read
    live = bench.offer()
    assert bench.on_wire == []
    bench.work()
    assert bench.on_wire == [live]


def _change_row(path: Path, number: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE entry SET crc = crc + 1 WHERE id = ?", (number,))
        connection.commit()


def test_a_row_that_the_disk_has_changed_is_counted_once_and_deleted_in_time(path: Path) -> None:
    """However often the rows are read before that, and though nothing else is to be written."""
    bench = OutboxBench(path, commit_interval=20.0)
    bench.offer("m/a")
    bench.offer("bad")
    bench.wait(25.0)
    _change_row(path, 1)
    bench.link_up()
    bench.link.acknowledge(accept=False)
    bench.wait(5.5)  # the rows are read again
    assert bench.on_wire == ["bad/2"]
    live = bench.offer("m/a")
    assert bench.on_wire == ["bad/2", live], "it is none that has to go first"
    assert bench.counters.dropped == {"row_damaged": 1}
    assert bench.outbox.stored_rows == 2
    bench.acknowledge_all()
    bench.wait(30.0)
    assert bench.outbox.stored_rows == 0
    assert bench.counters.dropped == {"row_damaged": 1}


def test_a_row_that_the_disk_has_changed_is_deleted_though_it_is_the_only_one(path: Path) -> None:
    """Nothing is acknowledged that would have something written."""
    bench = OutboxBench(path)
    bench.offer()
    bench.wait(2.0)
    _change_row(path, 1)
    bench.link_up()
    bench.wait(3.0)
    assert bench.counters.dropped == {"row_damaged": 1}
    assert (bench.outbox.queued, bench.outbox.stored_rows) == (0, 0)
