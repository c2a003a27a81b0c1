"""What the outbox does with a link that keeps ending, a broker that refuses, and a file that was replaced meanwhile."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE
from tests.support.outbox_bench import OutboxBench

# --- a link that keeps ending -----------------------------------------------------------------------------------------


def test_nothing_is_sent_beside_one_that_is_suspected() -> None:
    """Neither while the first of a link that keeps ending is tried, nor when one that has ended it is tried again."""
    bench = OutboxBench(None, window=4)
    bench.link_up()
    first, second = bench.offer("m/a"), bench.offer("m/b")
    for _ in range(3):
        assert bench.on_wire == [first, second]
        bench.link_down()
        bench.link_up()
    assert bench.on_wire == [first]
    third = bench.offer("m/c")
    bench.work()
    assert bench.on_wire == [first], "one at a time"
    for _ in range(3):
        bench.link_down()
        bench.link_up()
        assert bench.on_wire == [second, third], "the first pauses, and none of these is suspected"
    bench.acknowledge_all()
    bench.wait(5.1)
    assert bench.on_wire == [first]
    fourth = bench.offer("m/d")
    bench.work()
    assert bench.on_wire == [first]
    bench.acknowledge_all()
    assert bench.arrived == [second, third, first, fourth]
    assert bench.outbox.quarantine.count == 0


def test_an_acknowledgement_opens_the_window_again() -> None:
    """After losses without any, in which one at a time was sent."""
    bench = OutboxBench(None, window=4)
    bench.link_up()
    names = [bench.offer(f"m/{number}") for number in range(8)]
    for _ in range(3):
        bench.link_down()
        bench.link_up()
    assert bench.on_wire == names[:1]
    bench.link.acknowledge()
    bench.work()
    assert bench.on_wire == names[1:5]


def test_losses_of_a_link_over_which_something_was_acknowledged_are_no_suspicion() -> None:
    """A link that carries one prediction each time is a bad link, and no bad prediction."""
    bench = OutboxBench(None, window=4)
    for _ in range(10):
        for number in range(5):
            bench.offer(f"m/{number}")
        bench.link_up()
        assert len(bench.link.wire) == 4
        bench.link.acknowledge()
        bench.work()
        bench.link_down()
    assert bench.outbox.quarantine.count == 0


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_was_refused_says_that_it_comes_late() -> None:
    """It has waited for its broker."""
    bench = OutboxBench(None)
    bench.link_up()
    bench.offer()
    bench.link.acknowledge(accept=False)
    bench.wait(5.1)
    bench.acknowledge_all()
    assert bench.link.arrived[0]["delayed"] is True


def test_a_refusal_gives_its_place_to_another_stream() -> None:
    """At once, though nothing else happens."""
    bench = OutboxBench(None, window=1)
    bench.link_up()
    bench.offer("m/a")
    other = bench.offer("m/b")
    bench.work()
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.on_wire == [other]


def test_refusals_of_one_stream_are_no_pause_of_another() -> None:
    """Each has its own, and its own end."""
    bench = OutboxBench(None, window=4)
    bench.link_up()
    first = bench.offer("m/a")
    bench.link.acknowledge(accept=False)
    bench.wait(2.0)
    second = bench.offer("m/b")
    bench.work()
    bench.link.acknowledge(accept=False)
    bench.wait(3.1)
    assert bench.on_wire == [first]
    bench.acknowledge_all()
    bench.wait(1.5)
    assert bench.on_wire == []
    bench.wait(0.6)
    assert bench.on_wire == [second]


def test_without_a_disk_the_readings_of_a_refused_stream_are_released() -> None:
    """Or those behind them, of every stream, would wait for it."""
    bench = OutboxBench(None, window=2)
    bench.link_up()
    names = [bench.offer(receipt=True), bench.offer(receipt=True), bench.offer("m/b", receipt=True)]
    bench.work()
    bench.link.acknowledge(2, accept=False)
    bench.work()
    assert bench.on_wire == [names[2]]
    assert bench.released == names[:2]
    assert bench.outbox.queued == 3


def test_with_a_disk_the_reading_of_a_refused_stream_is_released_by_the_commit(path: Path) -> None:
    """A crash before it would lose the prediction."""
    bench = OutboxBench(path)
    bench.link_up()
    name = bench.offer(receipt=True)
    bench.link.acknowledge(accept=False)
    bench.work()
    bench.wait(0.5)
    assert bench.released == []
    bench.wait(1.0)
    assert bench.released == [name]


# --- one that the link does not take ----------------------------------------------------------------------------------


def test_what_the_link_does_not_take_is_not_overtaken_by_the_next_of_its_stream() -> None:
    """Others go."""
    bench = OutboxBench(None, window=4)
    names = [bench.offer("m/a"), bench.offer("m/a"), bench.offer("m/b")]
    take = bench.link.publish
    tries: list[str] = []

    def refuse_the_first(topic: str, payload: bytes, **named: Any) -> bool:
        tries.append(topic)
        return len(tries) > 1 and take(topic, payload, **named)

    bench.link.publish = refuse_the_first  # type: ignore[method-assign]
    bench.work()
    bench.link.connected = True
    bench.outbox.link_changed()
    assert bench.on_wire == [names[2]]
    bench.offer("m/c")  # has it look again
    bench.work()
    bench.acknowledge_all()
    assert bench.arrived[:3] == [names[2], *names[:2]]


@pytest.mark.parametrize("with_disk", [False, True])
def test_one_that_is_suspected_is_sent_only_when_nothing_else_is_in_flight(path: Path, with_disk: bool) -> None:
    """Or the next end of the link would say nothing about it."""
    bench = OutboxBench(path if with_disk else None, window=4)
    suspect = bench.offer("m/a")
    if with_disk:
        bench.wait(2.0)
    bench.link_up()
    for _ in range(3):
        assert bench.on_wire == [suspect]
        bench.link_down()
        bench.link_up()
    assert bench.on_wire == []
    other = bench.offer("m/b")
    bench.wait(6.0)
    assert bench.on_wire == [other]
    bench.acknowledge_all()
    bench.wait(0.1)
    bench.acknowledge_all()
    assert bench.arrived == [other, suspect]


def test_one_that_is_suspected_is_not_sent_beside_another_by_its_commit(path: Path) -> None:
    """It waits for its turn, in memory or on the disk; and when it gets through, nothing is remembered of it."""
    bench = OutboxBench(path, window=4, commit_interval=7.0)
    bench.link_up()
    suspect = bench.offer("m/a")
    for _ in range(3):
        bench.link_down()
        bench.link_up()
    other = bench.offer("m/b")
    bench.wait(9.0)
    assert bench.outbox.stored_rows == 2
    assert bench.on_wire == [other]
    bench.acknowledge_all()
    assert bench.arrived == [other, suspect]
    assert not bench.outbox._row_breaks


def test_one_that_was_suspected_and_is_acknowledged_during_its_commit_is_forgotten(path: Path) -> None:
    """It got through."""
    bench = OutboxBench(path, window=4, commit_interval=7.0)
    bench.link_up()
    suspect = bench.offer("m/a")
    for _ in range(3):
        bench.link_down()
        bench.link_up()
    bench.loop.advance(5.1)
    assert bench.on_wire == [suspect]
    bench.loop.advance(2.0)  # its commit is asked for
    bench.link.acknowledge()
    bench.work()
    bench.wait(10.0)
    assert bench.outbox.stored_rows == 0
    assert not bench.outbox._row_breaks


@pytest.mark.parametrize("with_disk", [False, True])
def test_one_that_was_suspected_and_is_dropped_for_want_of_room_is_forgotten(path: Path, with_disk: bool) -> None:
    """In memory as on disk."""
    bench = OutboxBench(path, window=4, max_bytes=3_000) if with_disk else OutboxBench(None, window=4, memory=6_000)
    bench.offer("m/a", priority=PRIORITY_ROUTINE)
    bench.wait(2.0)
    bench.link_up()
    for _ in range(3):
        bench.link_down()
        bench.link_up()
    assert bench.outbox._row_breaks
    bench.link_down()
    for _ in range(30):
        bench.offer("m/b", priority=PRIORITY_ALARM, size=100)
    bench.wait(2.0)
    assert bench.counters.dropped.total() > 0
    assert not bench.outbox._row_breaks


# --- a file that was replaced -----------------------------------------------------------------------------------------


def _replace(bench: OutboxBench, path: Path, content: bytes | None) -> None:
    """Damage the file while it is open, with or without rows that can be read, and let the outbox find out."""
    assert bench.store is not None
    bench.store.store.close()
    if content is None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version=99")
    else:
        path.write_bytes(content)
    bench.offer("m/z")
    while not bench.counters.errors["outbox_damaged"]:
        bench.wait(0.1)


def test_rows_in_flight_whose_file_is_gone_are_kept_in_memory(path: Path) -> None:
    """They are sent again when the link breaks before their acknowledgement: there is no other copy."""
    bench = OutboxBench(path, window=2)
    names = [bench.offer() for _ in range(2)]
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == names
    _replace(bench, path, b"this is no database" * 1000)
    bench.link_down()
    bench.link_up()
    for _ in range(10):
        bench.acknowledge_all()
        bench.wait(0.5)
    assert [name for name in bench.arrived if name in names] == names
    assert (bench.outbox.queued, bench.outbox.memory_bytes, bench.outbox._sent_rows) == (0, 0, set())


def test_nothing_is_remembered_of_the_numbers_of_a_file_that_was_replaced(path: Path) -> None:
    """Neither a suspicion nor a row that was to go to the quarantine: what is salvaged has a new number."""
    bench = OutboxBench(path, window=4, unsendable=lambda topic, _: "never" if "bad" in topic else None)
    bad = bench.offer("bad")
    bench.wait(2.0)
    bench.link_up()
    for _ in range(3):
        bench.link_down()
        bench.link_up()
    assert bench.outbox._row_breaks
    bench.wait(5.1)
    assert bench.on_wire == [bad]
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer("m/y")
    bench.wait(1.2)
    bench.link.acknowledge(accept=False)  # while the disk is away
    bench.store.fault = ""
    _replace(bench, path, None)
    assert not bench.outbox._row_breaks
    for _ in range(10):
        while bench.link.wire:
            bench.link.acknowledge(accept="bad" not in bench.on_wire[0])
            bench.work()
        bench.wait(1.0)
    assert bench.link.refused == [bad, bad]
    assert bench.counters.dropped == {"unsendable": 1}
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox._sent_rows) == (0, 0, set())


def test_what_is_in_flight_when_the_disk_is_back_is_committed_in_time(path: Path) -> None:
    """A broker that does not answer, and no other prediction that would have it looked at."""
    bench = OutboxBench(path, begin=False)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.work()
    bench.link_up()
    name = bench.offer()
    bench.work()
    assert bench.on_wire == [name]
    bench.store.fault = ""
    bench.wait(3.5)
    assert bench.outbox.stored_rows == 1


def test_what_is_on_its_way_to_the_disk_is_not_dropped_for_want_of_memory(path: Path) -> None:
    """Every prediction is either counted as dropped or written, and none is both."""
    bench = OutboxBench(path, memory=6_000, commit_interval=2.0)
    names = [bench.offer() for _ in range(8)]
    bench.loop.settle()  # a commit is asked for, and the disk has not worked
    assert bench.store is not None
    assert bench.store.commits == 1
    names += [bench.offer() for _ in range(20)]
    dropped = bench.counters.dropped["memory_full"]
    assert dropped > 0
    bench.work()
    bench.wait(5.0)
    assert bench.outbox.stored_rows == len(names) - bench.counters.dropped["memory_full"]
    rows = [json.loads(row.payload)["id"] for row in bench.store.store.fetch(0, 100)]
    assert rows[:7] == names[:7]
    assert bench.outbox.memory_bytes == 0
