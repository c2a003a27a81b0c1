"""The outbox's guarantee under any course of events that Hypothesis can think of.

Everything is real but time, the wire and the moment at which the disk works: a `Store` on a real file, a link that
breaks with messages on the wire, a disk that fails before or after it did what it was asked.
"""

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE, Outbox
from edge_runtime.delivery.salvage import salvage
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLink, SteppedLoop, SteppedStore

STREAMS = ["m/a", "m/b", "m/-"]


@dataclass
class _Given:
    """One prediction that was offered."""

    id: str
    stream: str
    number: int
    payload: bytes
    priority: int
    has_receipt: bool
    released: int = 0
    may_be_lost: bool = False
    sent_again: bool = False


class OutboxMachine(RuleBasedStateMachine):
    """Offers, acknowledgements, broken links, failing disks, kills and clean stops, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "outbox.db"
        self.loop = SteppedLoop()
        self.link = SteppedLink()
        self.given: dict[str, _Given] = {}
        self.numbers = Counter[str]()
        self.refused_streams: set[str] = set()
        self.counters = Counters()
        self.commit_interval = 1.0

    @initialize(window=st.integers(1, 5), commit_interval=st.sampled_from([0.0, 0.5, 2.0, 60.0]))
    def begin(self, window: int, commit_interval: float) -> None:
        self.link.window = window
        self.commit_interval = commit_interval
        self._start()

    def _start(self) -> None:
        self.store = SteppedStore(self.path)
        self.outbox = Outbox(
            self.loop.as_loop,
            self.counters,
            store=self.store.as_thread,
            commit_interval=self.commit_interval,
            max_memory_bytes=1 << 30,
        )
        self.outbox.attach(self.link)

    # --- what happens -------------------------------------------------------------------------------------------

    @rule(stream=st.sampled_from(STREAMS), has_receipt=st.booleans(), alarm=st.booleans(), count=st.integers(1, 4))
    def offer(self, stream: str, has_receipt: bool, alarm: bool, count: int) -> None:
        for _ in range(count):
            self.numbers[stream] += 1
            number = self.numbers[stream]
            name = f"{stream}/{number}"
            payload = json.dumps({"id": name, "seq": number}).encode()
            priority = PRIORITY_ALARM if alarm else PRIORITY_ROUTINE
            self.given[name] = _Given(name, stream, number, payload, priority, has_receipt)
            self._hand_over(self.given[name])

    def _hand_over(self, item: _Given) -> None:
        receipt = None
        if item.has_receipt:
            receipt = Receipt(lambda: self._released(item))
        self.outbox.offer(item.stream, f"edge/{item.stream}", item.payload, priority=item.priority, receipt=receipt)

    def _released(self, item: _Given) -> None:
        item.released += 1
        assert item.id in self._arrived_ids() or item.id in self._rows_on_disk(), "released before it was safe"

    @rule(count=st.integers(1, 6))
    def acknowledge(self, count: int) -> None:
        self.link.acknowledge(count)

    @rule()
    @precondition(lambda self: self.link.wire)
    def refuse(self) -> None:
        self.refused_streams.add(json.loads(self.link.wire[0].payload)["id"].rpartition("/")[0])
        self.link.acknowledge(1, accept=False)

    @rule()
    @precondition(lambda self: not self.link.connected)
    def link_up(self) -> None:
        self.link.connected = True
        self.outbox.link_changed()

    @rule(arriving=st.integers(0, 5))
    @precondition(lambda self: self.link.connected)
    def link_down(self, arriving: int) -> None:
        self.link.break_down(arriving)
        self.outbox.link_changed()

    @rule(fault=st.sampled_from(["before", "after", ""]))
    def disk(self, fault: Any) -> None:
        self.store.fault = fault

    @rule(steps=st.integers(1, 3))
    def disk_works(self, steps: int) -> None:
        self.store.work(steps)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule()
    def wake_up_ends(self) -> None:
        self.loop.settle()

    @rule()
    def killed(self) -> None:
        """SIGKILL: memory is gone; the readings' broker sends again what was never acknowledged to it."""
        on_disk, arrived = self._rows_on_disk(), self._arrived_ids()
        for item in self.given.values():
            if not item.has_receipt and item.id not in on_disk and item.id not in arrived:
                item.may_be_lost = True
        self._go_down()
        self._start()
        self._send_again()

    @rule()
    @precondition(lambda self: not self.store.fault)
    def stopped(self) -> None:
        """SIGTERM: everything is safe before the process ends, however the link is."""
        self.outbox.drain()
        for _ in range(20):
            self.loop.settle()
            self.store.work()
            self.loop.settle()
            if self.outbox.is_safe:
                break
            self.loop.advance(0.1)
        assert self.outbox.is_safe, "a clean stop with a good disk took more than two seconds"
        on_disk, arrived = self._rows_on_disk(), self._arrived_ids()
        lost = [i.id for i in self.given.values() if i.id not in on_disk | arrived and not i.may_be_lost]
        assert not lost, "a clean stop lost something"
        self._go_down()
        self._start()
        self._send_again()

    def _go_down(self) -> None:
        self.link.break_down()
        self.store.store.close()
        self.loop = SteppedLoop()

    def _send_again(self) -> None:
        for item in self.given.values():
            if item.has_receipt and not item.released:
                item.sent_again = True
                self._hand_over(item)

    # --- what always holds --------------------------------------------------------------------------------------

    @invariant()
    def receipts_are_released_once(self) -> None:
        assert all(item.released <= 1 for item in self.given.values())

    @invariant()
    def in_flight_is_bounded(self) -> None:
        assert self.link.most_in_flight <= self.link.window

    @invariant()
    def order_is_kept(self) -> None:
        """The first delivery of each prediction comes in the order in which the stream made them."""
        if self.counters.errors["order_given_up"]:
            return  # said aloud: the disk was away for longer than new predictions wait
        seen: dict[str, int] = {}
        known: set[str] = set()
        for document in self.link.arrived:
            name = document["id"]
            assert document["seq"] == self.given[name].number
            if name in known:
                continue
            known.add(name)
            stream = self.given[name].stream
            # a refused prediction, and one whose reading its broker sends again after a kill, may come later
            if stream not in self.refused_streams and not self.given[name].sent_again:
                assert document["seq"] > seen.get(stream, 0), f"{name} came after {stream}/{seen[stream]}"
                seen[stream] = document["seq"]

    @invariant()
    def counts_are_sound(self) -> None:
        assert self.outbox.queued >= 0
        assert self.outbox.memory_bytes >= 0
        assert not self.counters.dropped

    def teardown(self) -> None:
        """In the end the disk is mended and the link stays up: then everything arrives, and nothing is left over."""
        try:
            if hasattr(self, "store"):
                self._deliver_everything()
        finally:
            self._folder.cleanup()

    def _deliver_everything(self) -> None:
        self.store.fault = ""
        self.link.connected = True
        self.outbox.link_changed()
        for _ in range(3000):
            self.store.work()
            self.link.acknowledge(100)
            self.loop.advance(0.5)
            if self.outbox.state == "ok" and self.outbox.queued == 0 and self.store.is_idle and self.outbox.is_safe:
                break
        missing = [i.id for i in self.given.values() if i.id not in self._arrived_ids() and not i.may_be_lost]
        assert not missing, f"never delivered: {missing}; queued {self.outbox.queued}, {self.outbox.state}"
        assert self.outbox.queued == 0
        assert self.outbox.memory_bytes == 0
        assert self.outbox.stored_rows == 0
        assert not self._rows_on_disk()
        assert all(item.released == 1 for item in self.given.values() if item.has_receipt)

    def _arrived_ids(self) -> set[str]:
        return {document["id"] for document in self.link.arrived}

    def _rows_on_disk(self) -> set[str]:
        """What a process that starts now would find."""
        if not self.path.exists():
            return set()
        rows, _ = salvage(self.path)
        return {cast("str", json.loads(row.payload)["id"]) for row in rows}


OutboxMachine.TestCase.settings = settings(
    max_examples=1500 if os.environ.get("EDGE_TORTURE") == "long" else 60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_outbox_keeps_its_guarantee = OutboxMachine.TestCase
