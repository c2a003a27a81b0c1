"""What every source promises, whatever it reads from; the fake keeps the same promises."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from edge_runtime.readings import Batch
from edge_runtime.stream.sources.replay import ReplaySource, ReplaySourceTable
from edge_runtime.stream.sources.serial import SerialSource, SerialSourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.fakes import FakeSource
from tests.support.ports import VirtualPort
from tests.support.tables import table
from tests.support.waiting import Deadline

CHANNELS = ("x", "y")
ROWS = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]


class Source(Protocol):
    """What the daemon knows of a source."""

    is_open: bool
    state: str
    on_state: Callable[[], None] | None

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Rig:
    """A source, and how to make it read `ROWS`."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.loop = Loop()
        self.counters = Counters()
        self.batches: list[Batch] = []
        self.changes: list[tuple[bool, str]] = []
        self.port = VirtualPort(folder / "port")
        self.source: Source
        self.feed: Callable[[], None] = lambda: None
        more: Any = {"sink": self.batches.append, "counters": self.counters}
        if kind == "fake":
            fake = FakeSource(CHANNELS, self.batches.append, self.counters)
            self.source, self.feed = fake, lambda: fake.deliver(ROWS)
        elif kind == "serial":
            self.port.plug()
            self.source = SerialSource(
                table(SerialSourceTable, name="port", port=str(self.port.path)), CHANNELS, None, self.loop, **more
            )
            self.feed = lambda: self.port.write(b"\n" + b"".join(b"%f,%f\n" % (x, y) for x, y in ROWS))
        else:
            tape = folder / "tape.csv"
            tape.write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in ROWS))
            self.source = ReplaySource(
                table(ReplaySourceTable, name="tape", files=(str(tape),), speed="full"),
                CHANNELS,
                None,
                self.loop,
                **more,
            )
        self.source.on_state = lambda: self.changes.append((self.source.is_open, self.source.state))

    def run_until(self, condition: Callable[[], object]) -> None:
        """Run the loop until something is true."""
        until = Deadline(20.0)
        while not condition():
            assert not until.over, "in vain"
            self.loop.run_once(0.02)


@pytest.fixture(params=["fake", "serial", "replay"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """Each kind of source in turn."""
    made = Rig(request.param, tmp_path)
    yield made
    made.source.stop()
    made.port.unplug()
    made.loop.close()


def test_a_source_is_open_between_start_and_stop(rig: Rig) -> None:
    """A source says that it is open, in a flag for programs and a line for people, and announces each change."""
    assert not rig.source.is_open
    rig.source.start()
    assert rig.source.is_open
    rig.source.stop()
    assert not rig.source.is_open
    assert [is_open for is_open, _ in rig.changes] == [True, False]
    assert all(state and "\n" not in state for _, state in rig.changes)


def test_readings_come_as_columns_in_the_order_of_the_channels(rig: Rig) -> None:
    """A batch holds float32 rows, and one key, time, identity and receipt for each."""
    rig.source.start()
    before = time.time()
    rig.feed()
    rig.run_until(lambda: sum(map(len, rig.batches)) == len(ROWS))
    np.testing.assert_array_equal(np.concatenate([batch.values for batch in rig.batches]), np.array(ROWS, np.float32))
    for batch in rig.batches:
        assert batch.values.dtype == np.float32
        lengths = {len(item) for item in (batch.values, batch.keys, batch.times, batch.identities, batch.receipts)}
        assert lengths == {len(batch)}
        assert all(before - 1 <= moment <= time.time() + 1 for moment in batch.times)
        assert 0 < batch.arrived <= time.perf_counter()
    assert rig.counters.counts["readings"] == len(ROWS)
    assert not rig.counters.rejected


def test_a_stopped_source_delivers_nothing(rig: Rig) -> None:
    """After `stop` nothing comes any more, and stopping twice is no error."""
    rig.source.start()
    rig.source.stop()
    rig.source.stop()
    rig.feed()
    for _ in itertools.repeat(None, 5):
        rig.loop.run_once(0.01)
    assert not rig.batches
