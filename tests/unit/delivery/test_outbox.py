"""The outbox step by step: what each sentence of its guarantee means in one course of events."""

import contextlib
import itertools
import json
import sqlite3
from pathlib import Path

import pytest

from edge_runtime.delivery.outbox import (
    MEMORY_OVERHEAD_BYTES,
    PRIORITY_ALARM,
    PRIORITY_ROUTINE,
    PRIORITY_TELEMETRY,
    Outbox,
)
from edge_runtime.system.counters import Counters
from tests.support.outbox_bench import OutboxBench
from tests.support.stepped import SteppedLoop, SteppedStore


def test_with_a_healthy_link_nothing_is_written(path: Path) -> None:
    """Predictions that are acknowledged within the commit interval never touch the disk."""
    bench = OutboxBench(path)
    bench.link_up()
    for _ in range(500):
        bench.offer(receipt=True)
        bench.wait(0.1)
        bench.link.acknowledge(4)
    assert bench.store is not None
    assert bench.store.commits == 0
    assert len(bench.arrived) == len(bench.released) == 500
    assert bench.outbox.queued == bench.outbox.memory_bytes == 0


def test_a_reading_is_released_by_the_acknowledgement_and_not_before(path: Path) -> None:
    """Sent is not delivered."""
    bench = OutboxBench(path)
    bench.link_up()
    name = bench.offer(receipt=True)
    assert bench.released == []
    bench.link.acknowledge()
    assert bench.released == [name]


def test_without_a_link_a_reading_is_released_by_the_commit(path: Path) -> None:
    """After the commit interval the prediction is on disk, and its reading acknowledged."""
    bench = OutboxBench(path)
    name = bench.offer(receipt=True)
    bench.wait(0.5)
    assert bench.released == []
    bench.wait(1.0)
    assert bench.released == [name]
    assert bench.outbox.stored_rows == bench.outbox.queued == 1
    assert bench.outbox.memory_bytes == 0


def test_what_is_made_while_the_link_is_down_is_committed_within_the_interval(path: Path) -> None:
    """At no time is anything uncommitted that is older than the interval and the time of one wake-up."""
    bench = OutboxBench(path, commit_interval=2.0)
    for _ in range(40):
        bench.offer()
        bench.wait(0.3)
        oldest = bench.outbox._oldest()
        assert oldest is None or bench.loop.now - oldest <= 2.0 * 1.25 + 0.1
    assert bench.counters.counts["stored"] >= 30


def test_a_steady_stream_without_a_link_is_committed_once_an_interval(path: Path) -> None:
    """Every commit writes whole pages, so that many small ones would wear the card out."""
    bench = OutboxBench(path, commit_interval=1.0)
    for _ in range(200):
        bench.offer()
        bench.wait(0.1)
        oldest = bench.outbox._oldest()
        assert oldest is None or bench.loop.now - oldest <= 1.0 + 0.1
    assert bench.store is not None
    assert bench.store.committed_rows >= 180
    assert bench.store.commits <= 20


def test_rows_are_delivered_in_order_and_marked_late(path: Path) -> None:
    """After an outage the backlog comes in the order in which it was made, each with `delayed`."""
    bench = OutboxBench(path)
    names = []
    for _ in range(300):
        names.append(bench.offer())
        bench.wait(0.1)
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived == names
    assert all(document["delayed"] is True for document in bench.link.arrived)
    bench.wait(3.0)
    assert bench.outbox.queued == bench.outbox.stored_rows == 0


@pytest.mark.parametrize("with_disk", [False, True])
def test_what_waits_for_a_place_when_the_link_breaks_is_marked_late(with_disk: bool, path: Path) -> None:
    """As what was in flight; also where the link is back before anything was committed."""
    bench = OutboxBench(path if with_disk else None, window=1, commit_interval=60.0)
    bench.link_up()
    names = [bench.offer(), bench.offer("m/b")]
    assert bench.on_wire == names[:1]
    bench.link_down()
    bench.wait(10.0)
    bench.link_up()
    bench.acknowledge_all()
    assert [(each["id"], each.get("delayed")) for each in bench.link.arrived] == [(name, True) for name in names]


def test_a_live_prediction_is_not_marked_late(path: Path) -> None:
    """`delayed` is for what waited for the link."""
    bench = OutboxBench(path)
    bench.link_up()
    bench.offer()
    bench.acknowledge_all()
    assert "delayed" not in bench.link.arrived[0]


def test_a_long_backlog_does_not_hold_up_other_streams(path: Path) -> None:
    """While stream a drains, a prediction of stream b is among the next in flight."""
    bench = OutboxBench(path, window=8)
    for _ in range(200):
        bench.offer("m/a")
    bench.wait(2.0)
    bench.link_up()
    live = bench.offer("m/b")
    bench.work()
    bench.link.acknowledge(8)
    assert live in bench.arrived


def test_a_prediction_of_a_stream_with_a_backlog_comes_after_it(path: Path) -> None:
    """Order is kept within a stream also from the disk to the live ones."""
    bench = OutboxBench(path)
    names = [bench.offer() for _ in range(10)]
    bench.wait(2.0)
    bench.link_up()
    names += [bench.offer() for _ in range(10)]
    for _ in range(60):
        bench.link.acknowledge(2)
        bench.wait(0.3)
    assert bench.arrived == names


def test_what_was_in_flight_when_the_link_broke_comes_again_with_the_same_id(path: Path) -> None:
    """At least once: repeats are at most what was in flight."""
    bench = OutboxBench(path, window=4)
    bench.link_up()
    names = [bench.offer() for _ in range(6)]
    bench.link_down(arriving=4)
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived == names[:4] + names
    assert bench.outbox.queued == 0


def test_after_a_start_the_old_rows_go_first(path: Path) -> None:
    """A link that is up before the file has been read does not let new predictions overtake the old ones."""
    bench = OutboxBench(path)
    old = bench.offer()
    bench.wait(2.0)
    assert bench.store is not None
    bench.store.store.close()
    again = OutboxBench(path, begin=False)
    again.link.connected = True
    again.outbox.link_changed()
    new = again.offer()
    again.loop.settle()
    assert not again.link.wire
    again.work()
    for _ in range(30):
        again.acknowledge_all()
        again.wait(0.1)
    assert [name.rpartition("/")[0] for name in again.arrived] == ["m/a", "m/a"]
    assert again.link.arrived[0]["delayed"] is True
    assert (old, new) == ("m/a/1", "m/a/1")  # numbers begin anew with a bench: only the marks tell them apart


def test_with_interval_zero_every_prediction_is_committed_before_it_is_sent(path: Path) -> None:
    """`commit_interval = 0` leaves nothing for a power cut."""
    bench = OutboxBench(path, commit_interval=0.0)
    bench.link_up()
    bench.offer(receipt=True)
    bench.loop.settle()
    assert not bench.link.wire
    bench.work()
    assert len(bench.link.wire) == 1
    assert len(bench.released) == 1


@pytest.mark.parametrize("interval", [0.0, 1.0])
def test_a_disk_that_fails_does_not_hold_up_a_healthy_link(path: Path, interval: float) -> None:
    """Predictions go on from memory, and what failed is reported and counted."""
    bench = OutboxBench(path, commit_interval=interval)
    bench.link_up()
    assert bench.store is not None
    bench.store.fault = "before"
    names = []
    for _ in range(30):
        names.append(bench.offer(receipt=True))
        bench.wait(0.3)
        bench.link.acknowledge(2)
    bench.wait(1.0)
    bench.acknowledge_all()
    assert bench.arrived == names
    assert sorted(bench.released) == sorted(names)
    if interval == 0.0:
        assert bench.counters.errors["outbox_disk"] > 0
        assert bench.states[-1] == "the disk failed"


def test_a_disk_that_comes_back_is_used_again(path: Path) -> None:
    """The file is opened anew after a while, and the state says so."""
    bench = OutboxBench(path)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer(receipt=True)
    bench.wait(5.0)
    assert bench.released == []
    bench.store.fault = ""
    bench.wait(35.0)
    assert len(bench.released) == 1
    assert bench.outbox.state == "ok"


def test_a_disk_that_stays_away_gives_new_predictions_free(path: Path) -> None:
    """After a minute new predictions of a stream no longer wait for its rows on a dead disk."""
    bench = OutboxBench(path)
    bench.offer()
    bench.wait(2.0)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link_up()
    live = bench.offer()
    bench.wait(20.0)
    bench.acknowledge_all()
    assert bench.arrived == []
    bench.wait(90.0)
    bench.acknowledge_all()
    assert bench.arrived == [live]
    assert bench.counters.errors["order_given_up"] == 1


def test_a_disk_that_cannot_be_read_at_the_start_is_said_to_cost_the_order(path: Path) -> None:
    """Which streams have rows that should go first is unknown: new predictions go, and that is counted once."""
    before = OutboxBench(path)
    old = before.offer()
    before.wait(2.0)
    assert before.store is not None
    before.store.store.close()
    bench = OutboxBench(path, begin=False)
    bench.numbers = itertools.count(2)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.work()
    bench.link_up()
    live = bench.offer()
    bench.wait(20.0)
    bench.acknowledge_all()
    assert bench.arrived == [live]
    assert bench.counters.errors["order_given_up"] == 1
    bench.store.fault = ""
    bench.wait(40.0)
    bench.acknowledge_all()
    assert bench.arrived == [live, old]
    assert bench.link.arrived[-1]["delayed"] is True


def test_an_idle_outbox_with_a_dead_disk_does_not_keep_the_loop_busy(path: Path) -> None:
    """A thousand waiting predictions, no link, no disk: next to no work is done."""
    bench = OutboxBench(path, commit_interval=0.0)
    assert bench.store is not None
    bench.store.fault = "before"
    for _ in range(1000):
        bench.offer()
    bench.wait(60.0)
    before = bench.loop.served
    bench.wait(60.0)
    assert bench.loop.served - before < 20


def test_a_stream_that_the_broker_refuses_does_not_hold_up_the_others(path: Path) -> None:
    """A topic that the ACL forbids is tried now and then; everything else flows."""
    bench = OutboxBench(path, window=4)
    bench.link_up()
    for _ in range(20):
        bench.offer("forbidden/a")
    delivered = []
    for _ in range(200):
        delivered.append(bench.offer("good/b"))
        bench.wait(0.1)
        while bench.link.wire:
            accept = not json.loads(bench.link.wire[0].payload)["id"].startswith("forbidden")
            bench.link.acknowledge(accept=accept)
        bench.work()
    assert [name for name in bench.arrived if name.startswith("good")] == delivered
    assert 0 < len(bench.link.refused) < 60
    assert bench.outbox.queued == 20
    bench.wait(600.0)
    bench.acknowledge_all()
    bench.wait(2.0)
    assert bench.outbox.queued == 0


def test_a_refused_stream_is_tried_again_after_5_to_300_seconds_and_from_5_on_after_a_success() -> None:
    """Each refusal doubles the pause; an acknowledgement ends that."""
    bench = OutboxBench(None, window=4)
    bench.link_up()
    bench.offer()
    pauses = []
    for _ in range(8):
        bench.link.acknowledge(accept=False)
        since = bench.loop.now
        while not bench.link.wire:
            bench.loop.advance(0.5)
        pauses.append(bench.loop.now - since)
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert bench.counters.errors["refused_by_broker"] == 8
    assert bench.counters.counts["published"] == 0
    bench.link.acknowledge()
    assert bench.counters.counts["published"] == 1
    bench.offer()
    bench.link.acknowledge(accept=False)
    bench.loop.advance(4.5)
    assert not bench.link.wire
    bench.loop.advance(0.5)
    assert bench.link.wire


def test_a_refused_prediction_goes_before_those_of_its_stream_that_were_not_sent_yet() -> None:
    """And one of another stream goes at once, though nothing is in flight whose end would wake the outbox."""
    bench = OutboxBench(None, window=1)
    bench.link_up()
    names = [bench.offer() for _ in range(3)]
    bench.link.acknowledge(accept=False)
    bench.work()
    assert not bench.link.wire
    other = bench.offer("m/b")
    bench.work()
    assert [json.loads(sent.payload)["id"] for sent in bench.link.wire] == [other]
    bench.acknowledge_all()
    bench.loop.advance(5.0)
    bench.acknowledge_all()
    assert bench.arrived == [other, *names]


def test_what_is_committed_while_it_is_in_flight_is_not_sent_a_second_time(path: Path) -> None:
    """A slow broker costs a row for each prediction, and no repeat."""
    bench = OutboxBench(path)
    bench.link_up()
    names = [bench.offer() for _ in range(3)]
    bench.wait(3.0)
    assert (len(bench.link.wire), bench.outbox.stored_rows, bench.outbox.queued) == (3, 3, 3)
    bench.link.acknowledge(1)
    assert (bench.outbox.stored_rows, bench.outbox.queued) == (3, 2), "its row is there until the next commit"
    bench.acknowledge_all()
    bench.wait(3.0)
    assert bench.arrived == names
    assert bench.outbox.stored_rows == 0


def test_what_the_link_does_not_take_waits() -> None:
    """A connection that breaks in the moment of sending takes nothing, before it is known to be lost."""
    bench = OutboxBench(None)
    bench.link_up()
    take = bench.link.publish
    bench.link.publish = lambda *_, **__: False  # type: ignore[method-assign]
    names = [bench.offer(), bench.offer()]
    bench.work()
    assert bench.outbox.queued == 2
    bench.link.publish = take  # type: ignore[method-assign]
    bench.link_down()
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived == names


def test_without_a_link_predictions_are_kept(path: Path) -> None:
    """Before there is any connection, the outbox takes, commits and counts."""
    store = SteppedStore(path)
    loop = SteppedLoop()
    outbox = Outbox(loop.as_loop, Counters(), store=store.as_thread, commit_interval=1.0, max_memory_bytes=1 << 20)
    store.work()
    outbox.link_changed()
    outbox.offer("m/a", "edge/m/a", b"{}", priority=PRIORITY_ROUTINE, receipt=None)
    for _ in range(30):
        loop.advance(0.1)
        store.work()
    assert (outbox.queued, outbox.stored_rows, outbox.memory_bytes) == (1, 1, 0)


def test_a_full_outbox_says_so_at_half_of_its_memory() -> None:
    """An entry costs its payload, its topic and what its objects take; a byte below half is not full."""
    size = len('{"id": "m/a/1", "seq": 1, "fill": ""}') + len("edge/m/a") + MEMORY_OVERHEAD_BYTES
    for memory, is_full in ((2 * size, True), (2 * size + 2, False)):
        bench = OutboxBench(None, memory=memory)
        assert not bench.outbox.is_full
        bench.offer()
        assert bench.outbox.memory_bytes == size
        assert bench.outbox.is_full is is_full


def test_less_than_half_of_the_memory_is_not_committed_before_its_time(path: Path) -> None:
    """Only beyond half a flood is written at once; until then the commit interval holds."""
    bench = OutboxBench(path, memory=10_000, commit_interval=60.0)
    while bench.outbox.memory_bytes < 4_400:
        bench.offer()
    bench.work()
    assert bench.store is not None
    assert bench.store.committed_rows == 0
    bench.offer()
    bench.offer()
    bench.work()
    assert bench.store.committed_rows > 0


def test_a_stop_gives_a_disk_that_failed_one_more_chance(path: Path) -> None:
    """It is opened at once, and not after the pause that a failing disk gets."""
    bench = OutboxBench(path)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer()
    bench.wait(40.0)
    assert not bench.outbox.is_safe
    bench.store.fault = ""
    bench.outbox.drain()
    bench.work()
    assert bench.outbox.is_safe
    assert bench.outbox.stored_rows == 1


def test_without_a_disk_only_what_was_delivered_is_safe() -> None:
    """In memory nothing outlives the process, in flight or not."""
    bench = OutboxBench(None, window=1)
    assert (bench.outbox.is_safe, bench.outbox.is_delivered) == (True, True)
    bench.offer()
    assert (bench.outbox.is_safe, bench.outbox.is_delivered) == (False, False)
    bench.link_up()
    assert bench.link.wire
    assert (bench.outbox.is_safe, bench.outbox.is_delivered) == (False, False)
    bench.outbox.drain()
    bench.work()
    assert not bench.outbox.is_safe
    bench.acknowledge_all()
    assert (bench.outbox.is_safe, bench.outbox.is_delivered) == (True, True)


def test_with_a_disk_what_is_in_flight_is_safe_once_it_is_written_and_its_row_is_gone_when_delivered(
    path: Path,
) -> None:
    """`is_safe` waits for the commit of what is in flight, and for the deletion of what was acknowledged."""
    bench = OutboxBench(path)
    bench.link_up()
    bench.offer()
    assert (bench.outbox.is_safe, bench.outbox.is_delivered) == (False, False)
    bench.wait(2.0)
    assert (bench.outbox.is_safe, bench.outbox.is_delivered) == (True, True)
    bench.link.acknowledge()
    assert not bench.outbox.is_safe
    bench.wait(2.0)
    assert bench.outbox.is_safe


def test_memory_is_bounded_without_a_disk_and_the_oldest_of_the_lowest_priority_goes_first() -> None:
    """Telemetry goes before routine, routine before an alarm, and every loss is counted."""
    bench = OutboxBench(None, memory=100_000)
    kept = [bench.offer(priority=PRIORITY_ALARM) for _ in range(20)]
    for _ in range(100):
        bench.offer(priority=PRIORITY_TELEMETRY)
    for _ in range(400):
        bench.offer(priority=PRIORITY_ROUTINE)
        assert bench.outbox.memory_bytes <= 100_000
    bench.link_up()
    bench.acknowledge_all()
    assert bench.arrived[:20] == kept
    assert len(bench.arrived) + bench.counters.dropped["memory_full"] == 520
    numbers = [int(name.rpartition("/")[2]) for name in bench.arrived[20:]]
    assert 121 < numbers[0] < 520, "all telemetry is gone, and routine in part"
    assert numbers == list(range(numbers[0], 521)), "the oldest went, and none between two that are left"


def test_a_prediction_whose_reading_can_be_asked_for_is_never_dropped_from_memory() -> None:
    """Its broker stops sending instead, so that memory cannot grow for ever."""
    bench = OutboxBench(None, memory=10_000)
    for _ in range(100):
        bench.offer(receipt=True)
    assert bench.outbox.is_full
    assert bench.outbox.queued == 100
    assert not bench.counters.dropped


def test_a_flood_is_committed_rather_than_dropped(path: Path) -> None:
    """While the disk works, memory's bound makes the outbox commit early; nothing is lost to it."""
    bench = OutboxBench(path, memory=100_000, commit_interval=10.0)
    for _ in range(1000):
        bench.offer()
        bench.work()
    bench.wait(11.0)
    assert not bench.counters.dropped
    assert bench.outbox.stored_rows == 1000


def test_a_full_disk_bound_drops_the_oldest_of_the_lowest_priority(path: Path) -> None:
    """`max_bytes` holds, alarms stay, every loss is counted, and what is left is delivered in order."""
    bench = OutboxBench(path, max_bytes=40_000)
    alarms = [bench.offer("m/alarm", priority=PRIORITY_ALARM, size=100) for _ in range(10)]
    for _ in range(500):
        bench.offer("m/a", size=100)
        bench.wait(0.1)
    bench.wait(2.0)
    dropped = bench.counters.dropped["outbox_full"]
    assert dropped > 200
    assert bench.outbox.queued == 510 - dropped
    bench.link_up()
    bench.acknowledge_all()
    bench.wait(3.0)
    bench.acknowledge_all()
    assert [name for name in bench.arrived if name.startswith("m/alarm")] == alarms
    assert len(bench.arrived) == 510 - dropped
    assert bench.outbox.queued == 0


def test_the_bound_may_drop_rows_that_are_in_flight(path: Path) -> None:
    """Counts stay sound when a row goes for want of room while it is on the wire."""
    bench = OutboxBench(path, max_bytes=8_000, window=4)
    for _ in range(40):
        bench.offer("m/a", size=100)
    bench.wait(2.0)
    bench.link_up()
    assert bench.link.wire
    for _ in range(40):
        bench.offer("m/b", size=100, priority=PRIORITY_ALARM)
    bench.link_down()
    bench.wait(3.0)
    bench.link_up()
    for _ in range(30):
        bench.acknowledge_all()
        bench.wait(0.5)
    assert bench.outbox.queued == bench.outbox.stored_rows == bench.outbox.memory_bytes == 0
    assert len(set(bench.arrived)) + bench.counters.dropped["outbox_full"] == 80


def test_a_clean_stop_commits_everything_at_once(path: Path) -> None:
    """However long the commit interval, a stop waits for the disk and for nothing else."""
    bench = OutboxBench(path, commit_interval=3600.0)
    bench.link_up()
    for _ in range(10):
        bench.offer(receipt=True)
    bench.outbox.drain()
    bench.work()
    bench.link.acknowledge(2)
    bench.offer()
    bench.work()
    assert bench.outbox.is_safe
    assert bench.outbox.queued == 9


def test_a_row_that_the_disk_has_changed_is_counted_and_never_published(path: Path) -> None:
    """Its neighbours are delivered, and it is taken off the disk."""
    bench = OutboxBench(path)
    names = [bench.offer() for _ in range(4)]
    bench.wait(2.0)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (payload,) = connection.execute("SELECT payload FROM entry WHERE id = 2").fetchone()
        changed = payload.replace(b"m/a/2", b"m/a/7")
        assert changed != payload
        connection.execute("UPDATE entry SET payload = ? WHERE id = 2", (changed,))
        connection.commit()
    bench.link_up()
    bench.acknowledge_all()
    bench.wait(3.0)
    assert bench.arrived == [names[0], *names[2:]]
    assert bench.counters.dropped == {"row_damaged": 1}
    assert (bench.outbox.queued, bench.outbox.stored_rows) == (0, 0)


def test_rows_that_are_missing_in_a_damaged_file_are_counted(path: Path) -> None:
    """What can be read is taken over and counted as salvaged, and each row that cannot is one loss."""
    before = OutboxBench(path)
    for _ in range(6):
        before.offer()
    before.wait(2.0)
    assert before.store is not None
    before.store.store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE entry SET payload = x'00' WHERE id IN (2, 4)")
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
    bench = OutboxBench(path)
    assert bench.counters.errors["outbox_damaged"] == 1
    assert bench.counters.counts["outbox_salvaged"] == 4
    assert bench.counters.dropped == {"outbox_damaged": 2}
    assert bench.outbox.queued == 4


def test_a_file_that_was_replaced_is_not_read_by_its_old_numbers(path: Path) -> None:
    """When a damaged file is set aside while rows are in flight, their acknowledgements delete no other row."""
    bench = OutboxBench(path, window=2)
    for _ in range(6):
        bench.offer()
    bench.wait(2.0)
    bench.link_up()
    assert bench.link.wire
    assert bench.store is not None
    bench.store.store.close()
    path.write_bytes(b"this is no database" * 1000)
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    bench.outbox.offer("m/b", "edge/m/b", b'{"id":"m/b/x","seq":1}', priority=PRIORITY_ROUTINE, receipt=None)
    on_wire = sum(len(sent.payload) + len(sent.topic) + MEMORY_OVERHEAD_BYTES for sent in bench.link.wire)
    while not bench.counters.errors["outbox_damaged"]:
        bench.wait(0.1)
    marks = 2 * len(',"delayed":true')
    new = len('{"id":"m/b/x","seq":1}') + len("edge/m/b") + MEMORY_OVERHEAD_BYTES
    assert bench.outbox.memory_bytes == on_wire - marks + new, "what is in flight is in memory alone now"
    bench.wait(5.0)
    for _ in range(20):
        bench.acknowledge_all()
        bench.wait(0.5)
    assert bench.counters.errors["outbox_damaged"] == 1
    assert "m/b/x" in bench.arrived
    assert bench.outbox.queued == bench.outbox.stored_rows == 0


def test_sources_wait_from_half_of_the_memory_until_a_quarter_is_left() -> None:
    """They hear of each change once, however many readings come while it stands."""
    bench = OutboxBench(None, memory=40_000)
    heard: list[bool] = []
    bench.outbox.on_full.append(heard.append)
    while not heard:
        bench.offer(receipt=True)
    assert bench.outbox.memory_bytes >= 20_000
    for _ in range(9):
        bench.offer(receipt=True)
    assert heard == [True]
    bench.link_up()
    while bench.outbox.memory_bytes > 11_000:
        bench.link.acknowledge(1)
        bench.work()
        assert heard == [True]
    bench.acknowledge_all()
    assert heard == [True, False]
