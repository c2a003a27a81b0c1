"""What a key and a remembered reading cost in memory, measured: the numbers of docs/guarantees.md are upper bounds."""

import gc
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.decide import Sequences
from edge_runtime.stream.seen import GENERATION
from edge_runtime.stream.sources.mqtt import MqttSource, MqttSourceTable
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop
from tests.support.tables import table
from tests.support.way_in import LENGTH, OutboxDoor, make_pipeline

KEYS = 2000
PAGE = Path(__file__).resolve().parents[3] / "docs" / "guarantees.md"


class _Line:
    """One source on a connection that delivers a reading at a time; what is held is released at once, or kept."""

    ready, state = True, "connected"

    def __init__(self, sink: Callable[[Batch], None]) -> None:
        self.number = 0
        self.source = MqttSource(
            table(MqttSourceTable, name="s", topics=["s/{key}"]),
            ("v",),
            None,
            connection=cast("Connection", self),
            sink=sink,
            counters=Counters(),
        )

    def subscribe(self, _filters: list[str], _qos: int, handler: Any, *, most_bytes: int) -> None:
        del most_bytes
        self.handler = handler

    def _released(self) -> None:
        """The acknowledgement of a connection."""

    def deliver(self, key: int) -> None:
        self.number = self.number % 65_535 + 1
        receipt = Receipt(self._released, self.number)
        self.handler([Message(b"s/key-%05d" % key, b'{"v":1,"seq":%d}' % self.number, receipt, link=1)])
        receipt.release()


def _grown(work: Callable[[], None]) -> int:
    """Bytes that are allocated after some work and were not before it."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def _stated(what: str) -> int:
    """The number of bytes that the page states."""
    found = re.search(rf"(\d[\d,]*) bytes {what}", PAGE.read_text())
    assert found is not None, what
    return int(found.group(1).replace(",", ""))


def test_the_page_states_what_a_remembered_reading_costs() -> None:
    """With its identity and the packet id of its message."""
    line = _Line(lambda _batch: None)
    for _ in range(3 * GENERATION):  # both generations are full, and so are the memories of messages
        line.deliver(0)
    known = len(line.source._seen._readings)
    empty = _Line(lambda _batch: None)

    def fill() -> None:
        for _ in range(3 * GENERATION):
            empty.deliver(0)

    grown = _grown(fill) / known
    assert 0.5 * _stated("a remembered reading") < grown <= _stated("a remembered reading"), grown


@pytest.mark.parametrize(("acknowledge", "what"), [("entry", "a key,"), ("window", "a key of")])
def test_the_page_states_what_a_key_costs(acknowledge: str, what: str) -> None:
    """In its source, its window of three numbers, its rate and its sequence number."""
    loop = SteppedLoop()
    pipeline = make_pipeline(
        loop.as_loop, OutboxDoor(), stride=1, acknowledge=acknowledge, start=1, sequences=Sequences()
    )
    line = _Line(pipeline.accept)

    def fill() -> None:
        for key in range(KEYS):
            for _ in range(LENGTH - 1):
                line.deliver(key)

    grown = _grown(fill) / KEYS - (LENGTH - 1) * _stated("a remembered reading")
    assert 0.3 * _stated(what) < grown <= _stated(what), grown
