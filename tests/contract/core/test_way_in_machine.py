"""The way in under any course of events that Hypothesis can think of, against a plain list of what was published.

Everything is real from the source to the outbox's door but the wire, the broker and the model, which answers with its
own window. The broker keeps to MQTT and is as hostile as that allows: it sends again whatever it has no
acknowledgement for, loses acknowledgements and messages with the link, forgets at a restart that it has sent a message,
and sends retained messages at every subscription.
"""

import json
import os
from collections import Counter, deque
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.sources import mqtt
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop
from tests.support.tables import table
from tests.support.way_in import LENGTH, OutboxDoor, make_pipeline

KEYS = ["a", "b"]
BEGIN = 1_795_432_744.0


class _Sent:
    """A message in the broker's care that it has sent at least once; `dup` is what it remembers of that."""

    def __init__(self, number: int, topic: bytes, payload: bytes, *, retained: bool) -> None:
        self.number, self.topic, self.payload, self.retained = number, topic, payload, retained
        self.dup = False


class _Broker:
    """One persistent session with one subscription, QoS 1."""

    def __init__(self) -> None:
        self.queue: deque[tuple[bytes, bytes, bool]] = deque()
        self.in_flight: dict[int, _Sent] = {}
        self.wire: deque[_Sent] = deque()  # sent, not read
        self.acks: deque[int] = deque()  # given, not arrived
        self.kept: dict[bytes, bytes] = {}
        self.link = 0
        self.up = False
        self._number = 0

    def publish(self, topic: bytes, payload: bytes, *, retain: bool) -> None:
        self.queue.append((topic, payload, False))
        if retain:
            self.kept[topic] = payload

    def connect(self) -> None:
        """The session goes on: first what it has no acknowledgement for, then what waits, then what is retained."""
        self.link += 1
        self.up = True
        self.wire.clear()
        self.acks.clear()
        for sent in self.in_flight.values():
            self.wire.append(sent)
        for topic, payload in self.kept.items():
            self.queue.append((topic, payload, True))

    def cut(self, acks_that_arrive: int) -> None:
        for _ in range(min(acks_that_arrive, len(self.acks))):
            self.in_flight.pop(self.acks.popleft(), None)
        self.up = False
        self.wire.clear()
        self.acks.clear()
        for sent in self.in_flight.values():
            sent.dup = True

    def send(self) -> None:
        """Put everything that waits on the wire."""
        while self.queue and self.up:
            topic, payload, retained = self.queue.popleft()
            self._number = self._number % 65_535 + 1
            sent = self.in_flight[self._number] = _Sent(self._number, topic, payload, retained=retained)
            self.wire.append(sent)


class WayInMachine(RuleBasedStateMachine):
    """Readings, repeats, cuts, restarts of both sides, reloads, stops, kills, rates, clock steps: in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = _Broker()
        self.counters = Counters()
        self.judged = Counters()  # of the models, over all their lives
        self.loop = SteppedLoop()
        self.published: dict[str, list[float]] = {key: [] for key in KEYS}
        self.last: dict[str, bytes] = {}
        self.delivered = 0
        self.made: list[tuple[str, tuple[float, ...], str]] = []
        self.killed_once = False
        self.starts = 0

    @initialize(
        identity=st.sampled_from(["seq", "time", "none"]),
        acknowledge=st.sampled_from(["entry", "window"]),
        stride=st.sampled_from([1, LENGTH]),
        retains=st.booleans(),
        on_rate=st.sampled_from(["warn", "warn", "reject"]),
    )
    def begin(self, identity: str, acknowledge: str, stride: int, retains: bool, *, on_rate: str) -> None:
        self.identity, self.acknowledge, self.stride, self.on_rate = identity, acknowledge, stride, on_rate
        if on_rate == "reject":
            self.identity = "time"  # by which rates are judged, whenever the readings come
        # After a kill nothing tells a retained message that was a reading from one that is news (docs/guarantees.md).
        self.retains = retains
        self.wall, self.moment, self.step = BEGIN, BEGIN, 1.0
        self.old_time = vars(mqtt)["time"]
        vars(mqtt)["time"] = SimpleNamespace(time=lambda: self.wall, perf_counter=self.loop.time)
        self._start()
        self._connect()

    def _start(self) -> None:
        self.starts += 1
        self.outbox = OutboxDoor()
        self.sequences = Sequences()
        self.pipeline = self._make_pipeline()
        self.source = self._make_source()

    def _make_pipeline(self) -> Pipeline:
        return make_pipeline(
            self.loop.as_loop,
            self.outbox,
            stride=self.stride,
            acknowledge=self.acknowledge,
            start=self.starts,
            sequences=self.sequences,
            counters=self.judged,
            on_rate=self.on_rate,
        )

    def _make_source(self) -> MqttSource:
        return MqttSource(
            table(MqttSourceTable, name="s", topics=["s/{key}"], max_ahead=1e9),
            ("v",),
            None,
            connection=cast("Connection", self),
            sink=self._accept,
            counters=self.counters,
            held_at_most=(1000, "it") if self.acknowledge == "window" else None,
        )

    def _accept(self, batch: Batch) -> None:
        self.pipeline.accept(batch)

    # --- what the source sees of a connection -----------------------------------------------------------------------

    ready = True
    state = "connected"

    def subscribe(self, _filters: list[str], _qos: int, handler: Any, *, most_bytes: int) -> None:
        del most_bytes
        self.handler = handler

    def acknowledge_in_any_order(self) -> None:
        """The broker finds them by their numbers."""

    def drop_filters(self, filters: set[str]) -> None:
        """There are none but the present ones."""
        assert not filters

    def _connect(self) -> None:
        self.broker.connect()
        self.owed: deque[Receipt] = deque()

    def _released(self) -> None:
        if self.acknowledge == "window":
            done = [receipt for receipt in self.owed if receipt.is_released]
            self.owed = deque(receipt for receipt in self.owed if not receipt.is_released)
        else:
            done = []
            while self.owed and self.owed[0].is_released:
                done.append(self.owed.popleft())
        self.broker.acks.extend(receipt.number for receipt in done)

    # --- what happens -----------------------------------------------------------------------------------------------

    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 4), step=st.integers(0, 1))
    def publish(self, key: str, count: int, step: int) -> None:
        """Readings of a sensor, which may stand still."""
        for _ in range(count if self.on_rate == "warn" else 5 * count):  # a verdict on a rate needs eight
            readings = self.published[key]
            # where readings may be refused, each is another one, so that a window shows which ones it holds
            readings.append((readings[-1] if readings else 0.0) + (step if self.on_rate == "warn" else 1))
            document: dict[str, Any] = {"v": readings[-1]}
            self.moment += self.step
            if self.identity == "seq":
                document["seq"] = len(readings)
            elif self.identity == "time":
                document["time"] = self.moment
            self.last[key] = json.dumps(document).encode()
            self.broker.publish(f"s/{key}".encode(), self.last[key], retain=self.retains)

    @rule(key=st.sampled_from(KEYS))
    @precondition(lambda self: self.identity != "none" and self.last)
    def sender_repeats(self, key: str) -> None:
        """A sensor did not hear that its broker has the reading."""
        if key in self.last:
            self.broker.publish(f"s/{key}".encode(), self.last[key], retain=False)

    @rule(count=st.integers(1, 6))
    def read(self, count: int) -> None:
        """One wake-up."""
        if not self.broker.up:
            return
        self.broker.send()
        messages = []
        for _ in range(min(count, len(self.broker.wire))):
            sent = self.broker.wire.popleft()
            receipt = Receipt(self._released, sent.number)
            self.owed.append(receipt)
            messages.append(
                Message(
                    sent.topic,
                    sent.payload,
                    receipt,
                    retained=sent.retained,
                    repeated=sent.dup,
                    link=self.broker.link,
                )
            )
        self.delivered += len(messages)
        self.handler(messages)
        for message in messages:
            assert message.receipt is not None
            message.receipt.release()

    @rule(count=st.integers(1, 4))
    def predictions_are_safe(self, count: int) -> None:
        self.outbox.safe(count)

    @rule(count=st.integers(1, 6))
    def acknowledgements_arrive(self, count: int) -> None:
        for _ in range(min(count, len(self.broker.acks))):
            self.broker.in_flight.pop(self.broker.acks.popleft(), None)

    @rule(arriving=st.integers(0, 4))
    def link_is_cut(self, arriving: int) -> None:
        self.broker.cut(arriving)
        self.owed = deque()
        self._connect()

    @rule()
    @precondition(lambda self: self.identity != "none")
    def broker_is_killed(self) -> None:
        """It starts from what it had saved, and does not know what it has sent."""
        self.broker.cut(0)
        for sent in self.broker.in_flight.values():
            sent.dup = False
        self.owed = deque()
        self._connect()

    @rule(seconds=st.sampled_from([0.1, 10.0, 2000.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.advance(seconds)

    @rule(step=st.sampled_from([0.1, 1.0, 20.0]))
    def rate_changes(self, step: float) -> None:
        """Faster or slower than the model's rate: with `on_rate = "warn"` the readings are taken as they are."""
        self.step = step

    @rule(key=st.sampled_from(KEYS), step=st.sampled_from([0.1, 20.0]), count=st.integers(2, 4))
    @precondition(lambda self: self.on_rate == "reject")
    def rate_is_wrong_for_a_while(self, key: str, step: float, count: int) -> None:
        """Long enough to be known, and then right again."""
        for self.step in (1.0, step, 1.0):
            self.publish(key, count, 1)

    @rule(seconds=st.sampled_from([-1e7, -2.0, 3600.0, 1e7]))
    def wall_clock_is_stepped(self, seconds: float) -> None:
        """Where readings bring no times, theirs come from it; their order and their gaps do not."""
        self.wall += seconds

    @rule()
    def source_is_made_anew(self) -> None:
        """A reload that has changed its table: its broker goes on, and so do its models."""
        old = self.source
        self.source = self._make_source()
        self.source.take_over(old)
        old.stop()

    @rule()
    def model_is_made_anew(self) -> None:
        """A reload that has changed its table, but not its window."""
        old = self.pipeline
        self.pipeline = self._make_pipeline()
        self.pipeline.take_over(old)
        old.retire()

    @rule(arriving=st.integers(0, 4))
    def stopped(self, arriving: int) -> None:
        """SIGTERM: what is held is made safe, windows are kept, the last acknowledgements may be lost."""
        self.source.stop()
        self.outbox.safe(len(self.outbox.unsafe))
        owed = OwedReceipts()
        windows, seen = self.pipeline.save_windows(owed), self.source.save(owed)
        self.broker.cut(arriving)
        self._collect()
        self._start()
        back = OwedReceipts()
        self.pipeline.restore_windows(windows, back, 0.0)
        self.source.restore(seen, back)
        self._connect()

    @rule(arriving=st.integers(0, 4))
    @precondition(lambda self: self.acknowledge == "window" and not self.retains and self.on_rate == "warn")
    def killed(self, arriving: int) -> None:
        """SIGKILL: nothing is kept. With windows of their own readings the broker must hold whole windows for us.

        What it has no acknowledgement for since an earlier cut therefore comes first: a kill together with lost
        acknowledgements may begin such windows elsewhere (docs/guarantees.md, "Not promised").
        """
        self.killed_once = True
        if self.stride > 1:
            while self.broker.queue or self.broker.wire:
                self.read(100)
        self.broker.cut(arriving if self.stride == 1 else len(self.broker.acks))
        self._collect()
        self._start()
        self._connect()

    def _collect(self) -> None:
        self.made += self.outbox.made

    # --- the oracle -------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "identity"):
            return
        try:
            self._account()
        finally:
            vars(mqtt)["time"] = self.old_time

    def _account(self) -> None:
        while self.broker.queue or self.broker.wire:
            self.read(100)
        self.outbox.safe(len(self.outbox.unsafe))
        self._collect()
        for key in KEYS if self.on_rate == "warn" else ():
            readings = self.published[key]
            expected = [
                tuple(readings[begin : begin + LENGTH]) for begin in range(0, len(readings) - LENGTH + 1, self.stride)
            ]
            found = [window for name, window, _ in self.made if name == key]
            if not self.killed_once:
                assert found == expected, (key, found, expected)
            else:  # at least once: what was made just before a kill is made again
                assert set(found) == set(expected), (key, found, expected)
                assert Counter(found) >= Counter(expected), (key, found, expected)
        if self.on_rate == "reject":
            self._account_for_the_refused()
        counted = self.counters.counts["readings"] + self.counters.skipped.total() + self.counters.rejected.total()
        assert counted == self.delivered
        if not self.killed_once:
            ids = [identity for _, _, identity in self.made]
            assert len(set(ids)) == len(ids)

    def _account_for_the_refused(self) -> None:
        """Which readings come at a wrong rate is for other tests: a window has neighbours only, and none in two.

        A stride of one shares readings between windows: then no two windows begin with the same one.
        """
        refused, in_windows = self.judged.rejected["wrong_rate"], 0
        for key in KEYS:
            windows = [window for name, window, _ in self.made if name == key]
            begins = [int(window[0]) for window in windows]
            assert all(window == tuple(float(begin + at) for at in range(LENGTH)) for window, begin in
                       zip(windows, begins, strict=True)), windows  # fmt: skip
            assert all(later - earlier >= self.stride for earlier, later in pairwise(begins)), begins
            in_windows += len({begin + at for begin in begins for at in range(LENGTH)})
        published = sum(len(readings) for readings in self.published.values())
        lost = published - in_windows - refused  # in windows that were begun anew at a refusal, and in the open one
        assert 0 <= lost <= (LENGTH - 1) * (refused + len(KEYS))


WayInMachine.TestCase.settings = settings(
    max_examples=3000 if os.environ.get("EDGE_TORTURE") == "long" else 60,
    stateful_step_count=60,
)
TestWayIn = WayInMachine.TestCase
