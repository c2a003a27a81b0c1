"""`type = "file"`: predictions as JSON Lines in a file and its predecessor, within a bound.

Guarantee: complete lines, in the order of the predictions; written at once, synchronised within `SYNC_S`. While the
disk is full or fails, up to `WAITING_BYTES` wait in memory, alarms longest, and every loss is counted. A thread of the
sink writes the file, and no watchdog depends on it.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import NewPath
from edge_runtime.sinks.json_lines import JsonLinesFile
from edge_runtime.sinks.kind import Offered, RunningSink, SinkContext, SinkKindTable, Standing
from edge_runtime.sinks.waiting import Waiting
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.loop import Timer

SYNC_S = 1.0
WAITING_BYTES = 1_048_576
MOST_WAITING = 10_000
SLOW_S = 10.0  # a write that takes longer is shown in the state
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class FileSinkTable(SinkKindTable, frozen=True, kw_only=True, tag="file"):
    """`[[sink]]` with `type = "file"`: a line of JSON for each prediction.

    Attributes:
        path: The file. When it has reached half of `max_bytes`, it becomes `PATH.1`, in place of the one before it.
        max_bytes (B): How much both files may hold together; then the oldest lines go.
    """

    path: NewPath
    max_bytes: Annotated[int, Meta(ge=512)] = 67_108_864

    def make(self, context: SinkContext) -> RunningSink:
        """Start the sink."""
        return FileSink(self, context)


@rule(FileSinkTable, keys=("path",))
def _a_file(sink: FileSinkTable) -> Iterator[Finding]:
    if Path(sink.path).is_dir():
        yield "path", f"expected the path of a file, found the folder {sink.path}: name a file in it"


class FileSink:
    """One `[[sink]]` of type `file`."""

    def __init__(self, table: FileSinkTable, context: SinkContext) -> None:
        self._path = table.path
        self._loop = context.loop
        self._counts = context.counters.counts
        self._standing = Standing(table.name, f"{table.path}: open", context)
        self._file = JsonLinesFile(Path(table.path), table.max_bytes)
        self._waiting = Waiting(MOST_WAITING, WAITING_BYTES)
        self._thread = BackgroundThread("sink", context.loop.call_soon_threadsafe, at_end=self._file.close)
        self._busy_since: float | None = None
        self._is_dirty = False
        self._is_stopping = False
        self._timer: Timer | None = None
        self._pause = _FIRST_PAUSE_S

    @property
    def state(self) -> str:
        """The state as one line of text."""
        since = self._busy_since
        waited = 0.0 if since is None else time.monotonic() - since
        return self._standing.text if waited < SLOW_S else f"{self._path}: the disk does not answer for {waited:.0f} s"

    @property
    def is_safe(self) -> bool:
        """Whether everything is on the disk, or cannot be written."""
        is_failing = self._timer is not None and self._is_stopping
        return self._busy_since is None and (is_failing or not (self._waiting or self._is_dirty))

    def take(self, offered: Offered) -> None:
        """Take a prediction."""
        if len(offered.payload) >= self._file.longest_line:
            self._standing.lost("too_long", 1)
            return
        self._standing.lost("sink_full", self._waiting.add(offered))
        if self._timer is None:
            self._go_on()

    def drain(self) -> None:
        """Write and synchronise the waiting predictions now."""
        self._is_stopping = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._go_on()

    def stop(self, within: float) -> None:
        """End the thread and close the file."""
        if self._timer is not None:
            self._timer.cancel()
        self._standing.lost("stopped", len(self._waiting))
        self._thread.stop(within)

    def _go_on(self) -> None:
        """Give the thread its next task, if it has none."""
        if self._busy_since is not None:
            return
        if self._waiting:
            taken = self._waiting.take()
            self._busy_since = time.monotonic()
            self._thread.submit(
                lambda: self._file.write([each.payload for each in taken]),
                lambda count: self._written(taken, count),
                lambda error: self._failed(error, taken),
                most_s=math.inf,
            )
        elif self._is_dirty and self._is_stopping:
            self._sync()

    def _written(self, taken: list[Offered], count: int) -> None:
        self._busy_since = None
        self._counts["written"] += count
        self._count_rotations()
        self._pause = _FIRST_PAUSE_S
        self._standing.well()
        if count < len(taken):
            self._standing.lost("sink_full", self._waiting.put_back(taken[count:]))
        if not self._is_dirty:
            self._is_dirty = True
            self._loop.call_later(SYNC_S, self._sync)
        self._go_on()

    def _sync(self) -> None:
        if not self._is_dirty:
            return
        if self._busy_since is not None:
            self._loop.call_later(SYNC_S / 4, self._sync)
            return
        self._busy_since = time.monotonic()
        self._thread.submit(self._file.sync, self._synced, self._failed, most_s=math.inf)

    def _synced(self, _: None) -> None:
        self._busy_since = None
        self._is_dirty = False
        self._go_on()

    def _failed(self, error: Exception, taken: list[Offered] | None = None) -> None:
        """After an error of the disk or the path: try again after a pause."""
        if not isinstance(error, OSError):
            raise error
        self._busy_since = None
        self._is_dirty = False
        self._count_rotations()
        why = error.strerror or str(error)
        self._standing.fault("sink_disk", f"{self._path}: cannot be written ({why}): tried again until it can")
        if taken:
            self._standing.lost("sink_full", self._waiting.put_back(taken))
        self._timer = self._loop.call_later(self._pause, self._try_again)
        self._pause = min(_LONGEST_PAUSE_S, self._pause * 2)

    def _try_again(self) -> None:
        self._timer = None
        self._go_on()

    def _count_rotations(self) -> None:
        """Count the file's rotations and its torn lines."""
        self._counts["rotated"] = self._file.rotated
        self._counts["torn_lines"] = self._file.torn
