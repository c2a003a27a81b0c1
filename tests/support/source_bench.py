"""One source with its own event loop, wired as by the daemon; a test serves it until something is true."""

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from edge_runtime.config.tables import Config
from edge_runtime.readings import Batch
from edge_runtime.stream.sources.kind import AnySource, SourceKindTable, Wiring
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.waiting import Deadline

PATIENCE_S = 60.0
Kind = TypeVar("Kind", bound=AnySource)


class SourceBench(Generic[Kind]):
    """A source, not yet started, and what it has delivered.

    Args:
        kind: the class of the source.
        table: its table.
        channels: what its model takes.
        units: the unit of each channel in the bundle.

    Attributes:
        values: the rows of all readings.
        by_key: the rows of each key.
        ages: how old the first reading of each batch was at its delivery, in seconds.
        interruptions: the number of reported gaps.
        is_paused: set by a test: whether the outbox is full.
    """

    def __init__(
        self,
        kind: type[Kind],
        table: SourceKindTable,
        channels: tuple[str, ...],
        units: dict[str, str] | None = None,
    ) -> None:
        self.loop, self.counters = Loop(), Counters()
        self.values: list[list[float]] = []
        self.by_key: dict[str | None, list[list[float]]] = {}
        self.ages: list[float] = []
        self.interruptions = 0
        self.is_paused = False
        source = table.make(
            Wiring(
                config=cast("Config", None),
                channels=channels,
                shape=None,
                loop=self.loop,
                sink=self._take,
                counters=self.counters,
                on_state=lambda: None,
                needed=lambda: 1,
                paused=lambda: self.is_paused,
                max_gap=None,
                connect=cast("Any", None),
                interrupted=self._interrupted,
                units=units or {},
            )
        )
        assert isinstance(source, kind)
        self.source = source

    def close(self) -> None:
        """Stop the source, and end the loop."""
        self.source.stop()
        self.loop.close()

    def until(self, reached: Callable[[], object]) -> None:
        """Serve until something is true; it has to become so."""
        end = Deadline(PATIENCE_S)
        while not reached():
            assert not end.over, (self.source.state, self.counters, self.by_key.keys())
            self.loop.run_once(0.02)

    def rounds(self, key: str, count: int) -> None:
        """Serve until a key has so many more readings."""
        wanted = len(self.by_key.get(key, ())) + count
        self.until(lambda: len(self.by_key.get(key, ())) >= wanted)

    def _interrupted(self) -> None:
        self.interruptions += 1

    def _take(self, batch: Batch) -> None:
        self.ages.append(time.time() - batch.times[0])
        rows = batch.values.tolist()
        self.values += rows
        for key, row in zip(batch.keys, rows, strict=True):
            self.by_key.setdefault(key, []).append(row)
