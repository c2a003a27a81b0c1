"""A sink with a loop of its own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from edge_runtime.config.tables import SinkTable
from edge_runtime.registered import SINKS
from edge_runtime.sinks.kind import Offered, SinkContext
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.waiting import Deadline

PATIENCE_S = 60.0


class Bench:
    """One sink at work.

    Attributes:
        changes: how often a fault began or ended.
    """

    def __init__(self, table: SinkTable, folder: Path | None) -> None:
        self.loop, self.counters, self.changes = Loop(), Counters(), 0
        self.sink = table.make(SinkContext(self.loop, self.counters, folder, self._changed))  # type: ignore[attr-defined]

    def _changed(self) -> None:
        self.changes += 1

    def offer(self, *payloads: bytes, alarm: bool = False, stream: str = "m/-") -> None:
        """Predictions, one after the other."""
        for payload in payloads:
            self.sink.take(Offered(stream, payload, alarm))

    def until(self, reached: Callable[[], object]) -> None:
        """Serve the loop until something is true; it has to become so."""
        end = Deadline(PATIENCE_S)
        while not reached():
            assert not end.over, (self.sink.state, self.counters.counts, self.counters.errors)
            self.loop.run_once(0.02)

    def end(self) -> None:
        """As the daemon ends it."""
        self.sink.drain()
        self.until(lambda: self.sink.is_safe)
        self.sink.stop(5.0)


Begin = Callable[..., Bench]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """`begin("file", path=...)`: a sink of a kind, ended after the test."""
    begun: list[Bench] = []

    def make(kind: str, folder: Path | None = None, **keys: object) -> Bench:
        table = msgspec.convert({"name": "s", "type": kind, **keys}, SINKS.load(kind))
        begun.append(Bench(table, folder))
        return begun[-1]

    yield make
    for bench in begun:
        bench.sink.drain()
        bench.sink.stop(5.0)
        bench.loop.close()
