"""The outbox's limits, to the byte and to the second: memory, places in flight, pauses of a disk that fails."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox import (
    FETCH_ROWS,
    MEMORY_OVERHEAD_BYTES,
    PRIORITY_ALARM,
    PRIORITY_ROUTINE,
    PRIORITY_TELEMETRY,
    Entry,
)
from edge_runtime.delivery.outbox_thread import OutboxThread
from tests.support.outbox_bench import OutboxBench

SIZE = len('{"id": "m/a/1", "seq": 1, "fill": ""}') + len("edge/m/a") + MEMORY_OVERHEAD_BYTES


# --- memory -----------------------------------------------------------------------------------------------------------


def test_memory_may_be_filled_to_the_last_byte_and_loses_a_tenth_at_once() -> None:
    """So that a flood does not sort what waits for every prediction; nine tenths are the mark, to the byte."""
    bench = OutboxBench(None, memory=9 * SIZE)
    names = [bench.offer() for _ in range(9)]
    assert bench.counters.dropped == {}
    assert bench.outbox.memory_bytes == 9 * SIZE
    names.append(bench.offer())  # a byte more than the others, its number having two digits twice
    assert bench.counters.dropped == {"memory_full": 2}
    assert bench.outbox.queued == 8
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived == names[2:]
    assert bench.outbox.memory_bytes == 0
    exact = OutboxBench(None, memory=10 * SIZE)
    for number in range(10):
        exact.offer(size=0 if number < 9 else 8)
    dropped = exact.counters.dropped["memory_full"]
    assert dropped == 2, "nine of ten and some bytes are more than nine tenths"
    even = OutboxBench(None, memory=20 * SIZE)
    for _ in range(20):
        even.numbers = itertools.count(1)
        even.offer()
    even.numbers = itertools.count(1)
    even.offer()
    assert even.counters.dropped == {"memory_full": 3}, "18 of 20 are nine tenths, and no more has to go"


def test_what_goes_first_is_the_oldest_of_the_lowest_priority() -> None:
    """An alarm goes only where nothing else is left, and what a reading's broker can send again not at all."""
    bench = OutboxBench(None, memory=10 * SIZE)
    kinds = [PRIORITY_ALARM, PRIORITY_TELEMETRY, PRIORITY_ROUTINE] * 3
    names = [bench.offer(priority=kind) for kind in kinds]
    names.append(bench.offer(receipt=True, priority=PRIORITY_TELEMETRY))
    assert bench.outbox.queued == 8
    bench.offer(priority=PRIORITY_ALARM)
    bench.link_up()
    bench.acknowledge_all()
    gone = [kinds[names.index(name)] for name in names if name not in bench.arrived]
    assert gone == [PRIORITY_TELEMETRY, PRIORITY_TELEMETRY]
    assert names[1] not in bench.arrived
    assert names[4] not in bench.arrived


@pytest.mark.parametrize("spare", [0, 4])
def test_sources_wait_at_half_of_the_memory_and_go_on_below_a_quarter(spare: int) -> None:
    """What is held for a reading counts, and nothing else; a byte decides."""
    bench = OutboxBench(None, memory=8 * SIZE + spare, window=100)
    heard: list[bool] = []
    bench.outbox.on_full.append(heard.append)
    for _ in range(4):
        bench.offer()  # without a reading that could wait
    assert heard == []
    bench = OutboxBench(None, memory=8 * SIZE + spare, window=100)
    bench.outbox.on_full.append(heard.append)
    for _ in range(3):
        bench.offer(receipt=True)
    assert heard == []
    bench.offer(receipt=True)
    assert heard == ([] if spare else [True])
    bench.offer(receipt=True)
    assert heard == [True]
    bench.link_up()
    bench.link.acknowledge(2)
    assert heard == [True]
    bench.link.acknowledge(1)
    assert heard == ([True, False] if spare else [True])  # two of eight are a quarter, which is still full
    bench.link.acknowledge(1)
    assert heard == [True, False]


def test_half_of_the_memory_is_committed_before_its_time_when_a_byte_more_is_taken(path: Path) -> None:
    """At half itself the interval holds."""
    for memory, commits in ((4 * SIZE, 0), (4 * SIZE - 2, 1)):
        bench = OutboxBench(path, memory=memory, commit_interval=60.0)
        bench.offer()
        bench.offer()
        bench.work()
        assert bench.store is not None
        assert bench.store.commits == commits
        bench.store.store.close()


@pytest.mark.parametrize("interval", [0.1, 0.5, 3.0])
def test_what_has_no_link_is_written_after_the_interval(path: Path, interval: float) -> None:
    """Be it short or long; and not before."""
    bench = OutboxBench(path, commit_interval=interval)
    bench.offer()
    bench.loop.advance(interval - 0.01)
    bench.work()
    assert bench.outbox.stored_rows == 0
    bench.loop.advance(0.02)
    bench.work()
    assert bench.outbox.stored_rows == 1


@pytest.mark.parametrize("is_linked", [False, True])
@pytest.mark.parametrize("interval", [0.2, 1.0, 5.0])
def test_a_steady_stream_without_an_answer_is_never_older_in_memory_than_the_interval_and_a_quarter(
    path: Path, interval: float, is_linked: bool
) -> None:
    """At whatever moment it begins, without a link or with a broker that does not acknowledge."""
    bench = OutboxBench(path, commit_interval=interval, window=1000)
    if is_linked:
        bench.link_up()
    made: list[float] = []
    for step in range(200):
        if step % 3 == 0:
            bench.offer()
            made.append(bench.loop.now)
        bench.loop.advance(interval / 20)
        bench.work()
        stored = bench.outbox.stored_rows
        assert all(bench.loop.now - since <= interval * 1.25 + interval / 20 for since in made[stored:])


def test_one_transaction_is_under_way_at_a_time(path: Path) -> None:
    """However full the memory is; what comes meanwhile goes with the next."""
    bench = OutboxBench(path, memory=100 * SIZE, commit_interval=60.0)
    assert bench.store is not None
    for _ in range(80):
        bench.offer()
        bench.loop.settle()
    assert bench.store.commits == 1
    bench.work()
    bench.offer()
    bench.work()
    assert bench.store.commits <= 3
    assert bench.counters.dropped == {}


def test_a_disk_that_is_away_is_asked_for_nothing(path: Path) -> None:
    """A full memory does not count an error for every prediction."""
    bench = OutboxBench(path, memory=20 * SIZE, begin=False)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.work()
    for _ in range(60):
        bench.offer()
        bench.work()
    assert bench.counters.errors["outbox_disk"] == 1
    assert bench.store.commits == 0
    assert bench.counters.dropped["memory_full"] > 30


# --- a disk that fails ------------------------------------------------------------------------------------------------


def test_a_disk_that_fails_is_tried_again_after_1_to_30_seconds_and_from_1_on_after_a_success(path: Path) -> None:
    """Each try doubles the pause; one that succeeds ends that."""
    bench = OutboxBench(path, begin=False)
    asked = bench.note_calls("open")
    assert bench.store is not None
    bench.store.fault = "before"
    bench.work()
    began = bench.loop.now
    bench.wait(130.0)
    assert [round(at - began) for at in asked] == [1, 3, 7, 15, 31, 61, 91, 121]
    assert bench.counters.errors["outbox_disk"] == 9
    bench.store.fault = ""
    bench.wait(30.0)
    assert bench.outbox.state == "ok"
    asked.clear()
    bench.store.fault = "before"
    bench.offer()
    bench.wait(1.2)
    failed = bench.loop.now
    bench.wait(10.0)
    assert [round(at - failed) for at in asked] == [1, 3, 7]


def test_a_fault_that_fails_several_calls_opens_the_file_once(path: Path) -> None:
    """A fetch and a commit that were under way count two errors and make one new try."""
    bench = OutboxBench(path)
    bench.offer()
    bench.wait(2.0)
    asked = bench.note_calls("open")
    assert bench.store is not None
    bench.link.connected = True
    bench.outbox.link_changed()  # asks for the rows
    bench.offer("m/b")
    bench.loop.advance(1.1)  # asks for a commit
    bench.store.fault = "before"
    bench.store.work()
    assert bench.counters.errors["outbox_disk"] == 2
    failed = bench.loop.now
    bench.wait(8.0)
    assert [round(at - failed) for at in asked] == [1, 3, 7]
    bench.store.fault = ""
    bench.wait(10.0)
    assert len(asked) == 4
    bench.acknowledge_all()
    bench.wait(2.0)
    assert sorted(bench.arrived) == ["m/a/1", "m/b/2"]


def test_a_disk_that_failed_in_service_does_not_keep_the_loop_busy(path: Path) -> None:
    """What waits in memory is looked at when the disk is back, and not at every interval."""
    bench = OutboxBench(path, commit_interval=1.0)
    bench.offer()
    bench.wait(0.5)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.wait(5.0)
    bench.offer()
    before = bench.loop.served
    bench.wait(40.0)
    assert bench.loop.served - before < 20


def test_a_stop_tries_no_disk_again_by_itself(path: Path) -> None:
    """One more chance at once, and then the process ends."""
    bench = OutboxBench(path)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer()
    bench.wait(1.3)
    asked = bench.note_calls("open")
    bench.outbox.drain()
    bench.work()
    bench.wait(60.0)
    assert len(asked) == 1


def test_a_stop_waits_for_a_file_that_is_being_opened(path: Path) -> None:
    """It is asked for once."""
    bench = OutboxBench(path, begin=False)
    asked = bench.note_calls("open")
    bench.offer()
    bench.outbox.drain()
    bench.work()
    assert asked == []
    assert bench.outbox.is_safe
    assert bench.outbox.stored_rows == 1


def test_states_are_told_once_each(path: Path) -> None:
    """From the start over a failure to the disk's return."""
    bench = OutboxBench(path, begin=False)
    assert bench.outbox.state == "opening"
    bench.work()
    bench.offer()
    bench.wait(2.0)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer()
    bench.wait(10.0)
    bench.store.fault = ""
    bench.wait(10.0)
    assert bench.states == ["ok", "the disk failed", "ok"]
    assert OutboxBench(None).outbox.state == "memory only"


def test_a_damage_is_told_until_the_first_commit(path: Path) -> None:
    """Then everything is as it should be; the counter stays."""
    path.write_bytes(b"this is no database" * 1000)
    bench = OutboxBench(path)
    assert bench.outbox.state.startswith(f"damaged file set aside as {path}.damaged-")
    bench.offer()
    bench.wait(2.0)
    assert bench.outbox.state == "ok"
    assert len(bench.states) == 2
    assert bench.counters.errors == {"outbox_damaged": 1}


def test_order_is_given_up_a_minute_after_the_first_failure_and_only_where_rows_wait(path: Path) -> None:
    """Without rows there is no order to give up; each outage counts for itself."""
    bench = OutboxBench(path)
    assert bench.store is not None
    for rows, expected in ((0, 0), (1, 1), (1, 2)):
        if rows:
            bench.offer()
            bench.wait(2.0)
        bench.store.fault = "before"
        bench.offer("m/b")
        bench.wait(55.0)
        before = bench.counters.errors["order_given_up"]
        bench.wait(40.0)
        assert (before, bench.counters.errors["order_given_up"]) == (max(0, expected - 1), expected)
        bench.store.fault = ""
        bench.wait(40.0)
        assert bench.outbox.state == "ok"
        bench.link_up()
        bench.acknowledge_all()
        bench.wait(3.0)
        assert bench.outbox.stored_rows == 0
        bench.link_down()


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_fetched_in_portions_before_the_last_one_is_used_up(path: Path) -> None:
    """A long backlog is never in memory as a whole, and the link does not wait for the disk."""
    bench = OutboxBench(path, window=8)
    names = [bench.offer() for _ in range(5 * FETCH_ROWS)]
    bench.wait(2.0)
    assert bench.outbox.memory_bytes == 0
    asked = bench.note_calls("fetch")
    bench.link_up()
    while bench.link.acknowledge():
        bench.work()
        assert len(bench.outbox._fetched) < 2 * FETCH_ROWS
        left = bench.outbox.stored_rows - len(bench.arrived) - len(bench.link.wire)
        assert len(bench.link.wire) == 6 or left <= 0
    assert bench.arrived == names
    assert len(asked) <= 5 + 1 + FETCH_ROWS // 2  # nothing is behind the last half of a portion


def test_a_quarter_of_the_places_is_kept_for_streams_without_rows(path: Path) -> None:
    """And one place at least for rows, however small the window."""
    for window, rows_in_flight in ((8, 6), (7, 6), (4, 3), (3, 3), (1, 1)):
        bench = OutboxBench(path, window=window)
        for _ in range(20):
            bench.offer()
        bench.wait(2.0)
        bench.link_up()
        assert len(bench.link.wire) == rows_in_flight
        live = [bench.offer("m/b") for _ in range(window)]
        bench.work()
        assert bench.on_wire[rows_in_flight:] == live[: window - rows_in_flight]
        bench.acknowledge_all()
        bench.wait(2.0)
        bench.acknowledge_all()
        bench.wait(3.0)
        assert bench.outbox.stored_rows == 0
        assert bench.store is not None
        bench.store.store.close()


def test_a_row_is_as_old_as_its_prediction_though_the_clock_was_set_since(path: Path) -> None:
    """The time that is written is that of the clock as it stands at the commit, so that no row grows old by a jump."""
    wall = [100.0]
    bench = OutboxBench(path, wall=lambda: wall[0])
    bench.offer()
    bench.loop.advance(0.5)
    wall[0] = 1.7e9
    bench.wait(0.6)
    assert bench.store is not None
    (row,) = bench.store.store.fetch(0, 10)
    assert row.made == pytest.approx(1.7e9 - 1.0, abs=0.15)


def test_an_entry_begins_as_one_that_waits() -> None:
    """In memory, not sent, not done, and nothing known against it."""
    entry = Entry("m/a", "edge/m/a", b"{}", PRIORITY_ROUTINE, None, 1, 2.0)
    assert (entry.since, entry.row, entry.breaks, entry.size, entry.aside) == (0.0, None, 0, 0, "")
    assert not any([entry.in_flight, entry.committing, entry.done, entry.delayed])


def test_a_message_is_sent_with_the_qos_of_the_outbox() -> None:
    """1 unless a user asks for 0; never kept by the broker."""
    cases: list[tuple[dict[str, Any], int]] = [({}, 1), ({"qos": 0}, 0)]
    for options, expected in cases:
        bench = OutboxBench(None, **options)
        sent: list[tuple[int, bool]] = []

        def publish(
            topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Any, sent: Any = sent
        ) -> bool:
            sent.append((qos, retain))
            assert topic == "edge/m/a"
            assert json.loads(payload)["id"] == "m/a/1"
            outcome(True)
            return True

        bench.link.publish = publish  # type: ignore[method-assign]
        bench.link_up()
        bench.offer()
        assert sent == [(expected, False)]


def test_the_outbox_needs_no_more_of_its_disk_than_the_stand_in_has(path: Path) -> None:
    """What the tests here use in the place of the thread has every call that it has."""
    bench = OutboxBench(path)
    calls = {name for name in vars(OutboxThread) if not name.startswith("_")} - {"stop"}
    assert calls <= set(dir(bench.store))
