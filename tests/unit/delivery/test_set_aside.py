"""What can never be sent leaves the queue, is kept where there is a disk, is counted once, and holds up nothing."""

import contextlib
import itertools
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.delivery.outbox import PRIORITY_ROUTINE, Outbox
from edge_runtime.system.counters import Counters
from tests.support.outbox_bench import OutboxBench
from tests.support.stepped import SteppedLoop

WHY = "no broker takes it"


def _unsendable(topic: str, _size: int) -> str | None:
    return WHY if "bad" in topic else None


def _bench(path: Path | None, **options: Any) -> OutboxBench:
    return OutboxBench(path, unsendable=_unsendable, **options)


def _settle(bench: OutboxBench) -> None:
    """Everything on the wire is answered: what is bad by a refusal."""
    for _ in range(100):
        if not bench.link.wire:
            return
        bench.link.acknowledge(accept="bad" not in bench.link.wire[0].topic)
        bench.work()
    raise AssertionError("it never ends")


def _rows(path: Path, table: str) -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY id")]  # noqa: S608


def test_what_is_refused_for_good_goes_to_the_quarantine_and_its_reading_is_released(path: Path) -> None:
    """It is kept with its reason; the next ones of its stream and of others are delivered at once."""
    bench = _bench(path, window=8)
    bench.link_up()
    before = bench.offer("good", receipt=True)
    bad = bench.offer("bad", receipt=True)
    after = bench.offer("good", receipt=True)
    bench.link.acknowledge()
    bench.link.acknowledge(accept=False)
    assert (bench.released, bench.outbox.is_safe) == ([before], False), "its reading is released with the commit"
    bench.work()
    assert bench.released == [before, bad]
    _settle(bench)
    assert bench.arrived == [before, after]
    assert bench.released == [before, bad, after]
    assert (bench.outbox.queued, bench.outbox.memory_bytes, bench.outbox.stored_rows) == (0, 0, 0)
    assert bench.outbox.is_safe
    assert bench.counters.dropped == {"unsendable": 1}
    assert not bench.counters.errors, "it is no refusal that is tried again"
    assert bench.outbox.quarantine.count == 1
    (shown,) = bench.outbox.quarantine.last
    (kept,) = _rows(path, "quarantine")
    payload = json.dumps({"id": bad, "seq": 2, "fill": ""}).encode()
    assert (shown["topic"], shown["bytes"], shown["why"]) == ("edge/bad", len(payload), WHY)
    assert (kept["stream"], kept["topic"], kept["payload"], kept["why"]) == ("bad", "edge/bad", payload, WHY)
    assert kept["made"] == pytest.approx(kept["at"], abs=60.0)


def test_a_row_that_is_refused_for_good_leaves_the_queue_on_disk(path: Path) -> None:
    """Its neighbours are delivered, and the outbox is empty in the end."""
    bench = _bench(path)
    names = [bench.offer(stream) for stream in ("good", "bad", "good", "bad")]
    bench.wait(2.0)
    assert bench.outbox.stored_rows == 4
    bench.link_up()
    _settle(bench)
    assert bench.outbox.quarantine.count == bench.counters.dropped["unsendable"] == 2
    assert bench.outbox.stored_rows == 2, "those that were acknowledged, until the next commit"
    bench.wait(2.0)
    assert bench.arrived == [names[0], names[2]]
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox.memory_bytes) == (0, 0, 0)
    assert [json.loads(row["payload"])["id"] for row in _rows(path, "quarantine")] == [names[1], names[3]]
    assert _rows(path, "entry") == []
    assert bench.outbox._sent_rows == set(), "numbers that nothing will ask for again"


def test_without_a_disk_its_number_and_the_latest_are_left() -> None:
    """Memory and reading are given free."""
    bench = _bench(None)
    bench.link_up()
    names = [bench.offer(stream, receipt=True) for stream in ("bad", "good", "good")]
    bench.link.acknowledge(accept=False)
    assert bench.released == names[:1]
    _settle(bench)
    assert bench.arrived == names[1:]
    assert bench.released == names
    assert (bench.outbox.queued, bench.outbox.memory_bytes, bench.outbox.is_safe) == (0, 0, True)
    assert bench.counters.dropped == {"unsendable": 1}
    assert [shown["topic"] for shown in bench.outbox.quarantine.last] == ["edge/bad"]


def test_without_a_disk_what_waits_for_a_place_is_sent_when_one_is_set_aside() -> None:
    """Nothing else would wake the outbox: no acknowledgement is on its way."""
    bench = _bench(None, window=1)
    bench.link_up()
    bench.offer("bad")
    good = bench.offer("good")
    bench.work()
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.on_wire == [good]


def test_with_a_disk_what_waits_for_a_place_is_sent_when_one_is_set_aside(path: Path) -> None:
    """As without one, once the quarantine has it."""
    bench = _bench(path, window=1, commit_interval=60.0)
    bench.link_up()
    bench.offer("bad")
    good = bench.offer("good")
    bench.work()
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.on_wire == [good]


def test_what_is_on_its_way_to_the_quarantine_is_not_safe_yet(path: Path) -> None:
    """A process that ended now would lose it."""
    bench = _bench(path)
    bench.link_up()
    bench.offer("bad")
    bench.link.acknowledge(accept=False)
    assert not bench.outbox.is_safe
    bench.work()
    assert bench.outbox.is_safe


def test_in_memory_it_goes_at_once_while_the_disk_is_away(path: Path) -> None:
    """There is nowhere to keep it; its reading is released and its place given free."""
    bench = _bench(path, window=1)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer("good")
    bench.wait(1.2)
    bench.link_up()
    bench.acknowledge_all()
    bad = bench.offer("bad", receipt=True)
    bench.link.acknowledge(accept=False)
    assert bench.released == [bad]
    assert bench.counters.dropped == {"unsendable": 1}
    assert (bench.outbox.queued, bench.outbox.memory_bytes) == (0, 0)


def test_a_row_that_waits_for_the_disk_gives_its_place_in_flight_to_others(path: Path) -> None:
    """And another of its stream waits behind what is on the disk, as ever."""
    bench = _bench(path, window=1)
    bench.offer("bad")
    bench.wait(2.0)
    bench.link_up()
    assert bench.store is not None
    bench.store.fault = "before"
    other = bench.offer("other")
    bench.wait(1.2)
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.on_wire == [other]


def test_a_row_whose_quarantine_failed_holds_up_its_stream_until_the_disk_is_back(path: Path) -> None:
    """It is still the first of its stream; and what is no longer unsendable then is delivered in its order."""
    verdicts = {"edge/bad": WHY}
    bench = OutboxBench(path, window=4, unsendable=lambda topic, _: verdicts.get(topic))
    names = [bench.offer("bad")]
    bench.wait(2.0)
    bench.link_up()
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link.acknowledge(accept=False)
    bench.work()
    names.append(bench.offer("bad"))
    bench.work()
    assert bench.on_wire == []
    verdicts.clear()  # another broker has taken over, which takes it
    bench.store.fault = ""
    for _ in range(10):
        bench.wait(1.0)
        bench.acknowledge_all()
    assert bench.arrived == names
    assert bench.counters.dropped == {}


def test_one_whose_quarantine_failed_keeps_its_place_in_memory(path: Path) -> None:
    """Before those that were made after it."""
    verdicts = {"edge/bad": WHY}
    bench = OutboxBench(path, window=1, unsendable=lambda topic, _: verdicts.get(topic))
    bench.link_up()
    names = [bench.offer("bad") for _ in range(3)]
    bench.work()
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link.acknowledge(accept=False)
    verdicts.clear()  # another broker has taken over, which takes it
    bench.work()
    bench.acknowledge_all()
    assert sorted(bench.arrived) == sorted(names)
    assert bench.arrived.index(names[0]) < bench.arrived.index(names[2])


def test_what_is_refused_for_good_while_its_commit_is_under_way_goes_as_a_row(path: Path) -> None:
    """It becomes a row at this moment: one place in the quarantine, none in the queue, and its reading is released."""
    bench = _bench(path)
    bench.link_up()
    bad = bench.offer("bad", receipt=True)
    bench.loop.advance(1.1)  # the commit is asked for, and the disk has not worked yet
    bench.link.acknowledge(accept=False)
    assert bench.counters.dropped == {}
    bench.work()
    assert bench.released == [bad]
    assert bench.counters.dropped == {"unsendable": 1}
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox.memory_bytes) == (0, 0, 0)
    assert [json.loads(row["payload"])["id"] for row in _rows(path, "quarantine")] == [bad]
    assert _rows(path, "entry") == []
    assert not bench.link.wire


def test_what_is_refused_for_good_while_its_commit_fails_is_set_aside_when_the_disk_is_back(path: Path) -> None:
    """Until then it waits in our care; it is not lost between the two."""
    bench = _bench(path)
    bench.link_up()
    bad = bench.offer("bad", receipt=True)
    bench.loop.advance(1.1)
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.released == []
    bench.store.fault = ""
    for _ in range(50):
        bench.wait(1.0)
        _settle(bench)
    assert bench.released == [bad]
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox.memory_bytes) == (0, 0, 0)
    assert bench.counters.dropped == {"unsendable": 1}
    assert bench.outbox.quarantine.count == 1


@pytest.mark.parametrize("is_row", [False, True])
def test_a_quarantine_that_cannot_be_written_loses_nothing(path: Path, is_row: bool) -> None:
    """The disk fails in that moment: the prediction waits, in its place, and is set aside when the disk is back."""
    bench = _bench(path, window=2)
    names = []
    if is_row:
        names = [bench.offer("bad"), bench.offer("good")]
        bench.wait(2.0)
        bench.link_up()
    else:
        bench.link_up()
        names = [bench.offer("bad"), bench.offer("good")]
    assert bench.store is not None
    bench.store.fault = "before"
    bench.link.acknowledge(accept=False)
    bench.work()
    assert bench.counters.errors["outbox_disk"] > 0
    assert bench.outbox.queued == 2
    assert bench.counters.dropped == {}
    bench.store.fault = ""
    for _ in range(50):
        bench.wait(1.0)
        _settle(bench)
    assert bench.arrived == names[1:]
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox.memory_bytes) == (0, 0, 0)
    assert bench.counters.dropped == {"unsendable": 1}
    assert len(_rows(path, "quarantine")) == 1


def test_a_row_that_is_refused_for_good_while_the_disk_is_away_is_set_aside_when_it_is_back(path: Path) -> None:
    """It is not sent again meanwhile, counted once, and does not stay on the disk until the next start."""
    bench = _bench(path, window=4)
    bad = bench.offer("bad")
    good = bench.offer("good")
    bench.wait(2.0)
    bench.link_up()
    assert bench.on_wire == [bad, good]
    assert bench.store is not None
    bench.store.fault = "before"
    bench.offer("other")
    bench.wait(1.2)  # the commit of the third fails
    assert bench.counters.errors["outbox_disk"] > 0
    bench.link.acknowledge(accept=False)
    _settle(bench)
    bench.store.fault = ""
    for _ in range(10):
        bench.wait(10.0)
        _settle(bench)
    assert good in bench.arrived
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox.memory_bytes) == (0, 0, 0)
    assert bench.counters.dropped == {"unsendable": 1}
    assert bench.outbox.quarantine.count == 1
    assert [json.loads(row["payload"])["id"] for row in _rows(path, "quarantine")] == [bad]
    assert _rows(path, "entry") == []


def test_what_an_earlier_start_has_set_aside_is_counted(path: Path) -> None:
    """The number outlives the process, the dropped of this process do not."""
    bench = _bench(path)
    bench.link_up()
    bench.offer("bad")
    bench.offer("bad")
    _settle(bench)
    assert bench.store is not None
    bench.store.store.close()
    again = _bench(path)
    assert again.outbox.quarantine.count == 2
    assert again.counters.dropped == {}
    again.link_up()
    again.offer("bad")
    _settle(again)
    assert again.outbox.quarantine.count == 3


def test_by_default_nothing_is_taken_to_be_unsendable() -> None:
    """A refusal is tried again, unless the link knows better."""
    loop = SteppedLoop()
    counters = Counters()
    outbox = Outbox(loop.as_loop, counters, store=None, commit_interval=1.0, max_memory_bytes=1 << 20)
    bench = OutboxBench(None)
    bench.link.connected = True
    outbox.attach(bench.link)
    outbox.offer("bad", "edge/bad", b'{"id":"x"}', priority=PRIORITY_ROUTINE, receipt=None)
    bench.link.acknowledge(accept=False)
    assert (outbox.queued, counters.errors["refused_by_broker"]) == (1, 1)


# --- a broker that ends the link at a message ------------------------------------------------------------------------


class _Broker:
    """Acknowledges what comes, in its order, but ends the link at a message of `poison`; is there again at once."""

    def __init__(self, bench: OutboxBench, poison: set[str]) -> None:
        self.bench = bench
        self.poison = poison
        self.met: list[float] = []  # when it ended the link

    def run(self, seconds: float) -> None:
        """So long."""
        bench = self.bench
        until = bench.loop.now + seconds
        while bench.loop.now < until:
            for _ in range(200):
                if not bench.link.wire:
                    break
                if bench.on_wire[0] in self.poison:
                    self.met.append(bench.loop.now)
                    bench.link_down()
                    bench.link_up()
                else:
                    bench.link.acknowledge()
                    bench.work()
            bench.wait(0.5)

    @property
    def pauses(self) -> list[float]:
        """Between the ends of the link."""
        return [round(later - earlier) for earlier, later in itertools.pairwise(self.met)]


@pytest.mark.parametrize("place", [0, 7])
@pytest.mark.parametrize("with_disk", [False, True])
def test_a_message_at_which_the_link_ends_is_found_out_among_others(path: Path, with_disk: bool, place: int) -> None:
    """Three losses without an acknowledgement, then one at a time; when it alone ends the link thrice, it goes."""
    bench = OutboxBench(path if with_disk else None, window=4)
    bench.link_up()
    names = [bench.offer(f"m/{number % 5}", receipt=True) for number in range(20)]
    broker = _Broker(bench, {names[place]})
    broker.run(120.0)
    assert sorted(bench.arrived) == sorted(set(names) - {names[place]})
    assert bench.outbox.quarantine.count == 1
    assert "ended the connection 3 times when it was sent alone" in bench.outbox.quarantine.last[0]["why"]
    assert bench.outbox.quarantine.last[0]["topic"] == f"edge/m/{place % 5}"
    assert bench.counters.dropped == {"unsendable": 1}
    assert (bench.outbox.queued, bench.outbox.stored_rows, bench.outbox.memory_bytes) == (0, 0, 0)
    assert sorted(bench.released) == sorted(names)
    # A loss of a link over which others were acknowledged before is none of the first three.
    assert broker.pauses == [0] * (4 if place else 3) + [5, 10]
    for stream in range(5):
        mine = [name for name in bench.arrived if name.startswith(f"m/{stream}/")]
        assert mine == [name for name in names if name in mine]
    bench.offer("m/2")
    losses = len(broker.met)
    broker.run(2.0)
    assert len(broker.met) == losses
    assert not bench.outbox._row_breaks


def test_a_message_that_is_alone_is_set_aside_when_it_has_ended_the_link_ten_times() -> None:
    """There is no other by which to tell a bad message from a bad link, so it is tried longer, with longer pauses."""
    bench = OutboxBench(None, window=4)
    bench.link_up()
    broker = _Broker(bench, {bench.offer(receipt=True)})
    broker.run(2000.0)
    assert broker.pauses == [0, 0, 5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert bench.outbox.quarantine.count == 1
    assert "10 times" in bench.outbox.quarantine.last[0]["why"]
    assert len(bench.released) == 1


def test_a_message_is_no_poison_when_it_gets_through_in_the_end(path: Path) -> None:
    """Whatever the link did before; and what was counted of it is forgotten."""
    for place in (None, path):
        bench = OutboxBench(place, window=4)
        bench.link_up()
        name = bench.offer(receipt=True)
        broker = _Broker(bench, {name})
        broker.run(100.0)
        assert bench.outbox._row_breaks
        broker.poison.clear()
        broker.run(500.0)
        assert bench.arrived == bench.released == [name]
        assert bench.outbox.quarantine.count == 0
        assert not bench.outbox._row_breaks
