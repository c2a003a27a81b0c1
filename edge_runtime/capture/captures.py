"""The captures of a daemon: selects windows, queues them, and has a thread write them.

Guarantee: the loop never waits for the card. Selected windows are copied into a queue of at most `MOST_WAITING_BYTES`.
The thread writes the queue `WRITE_S` after its first window, or earlier when it holds `WRITE_BYTES`; so with few
captures the card gets one `fdatasync` in ten seconds. Windows that do not fit the queue, the budget or the disk are
counted in `lost` by reason, and the first of each reason is logged; predictions continue.

Weak points: a kill loses the queue; requests and alarms in progress end with the daemon; the states of a recurrent
model are not stored.
"""

import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.capture.entries import Captured, Labelled
from edge_runtime.capture.requests import CaptureRequests
from edge_runtime.capture.ring import CaptureItem, CaptureRing, RingWrite
from edge_runtime.capture.tap import CaptureTap, TapContext
from edge_runtime.config.tables import CaptureTable
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

WRITE_S = 10.0
WRITE_BYTES = 262_144
LABEL_BYTES = 256  # of a label in the queue, about
MOST_WAITING_BYTES = 1_048_576
CLOSE_S = 2.0

_log = get_logger("capture")


class Captures:
    """The captures of one device. Every method must be called in the loop's thread.

    Args:
        table: `[capture]` of the device file.
        folder: of the files.
        device: the device's id.
        start: the number of this start.
        connection: to the upstream broker.
        loop: the event loop.
        clock: shows whether the wall clock is set.
        counters: for captures.
        chance: returns a random number from 0 (included) to 1 (excluded).
    """

    def __init__(
        self,
        table: CaptureTable,
        folder: Path,
        *,
        device: str,
        start: int,
        connection: AnyConnection,
        loop: Loop,
        clock: Clock,
        counters: Counters,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._table = table
        self._device = device
        self._start = start
        self._chance = chance
        self._loop = loop
        self._clock = clock
        self._counters = counters
        self._taps: dict[str, CaptureTap] = {}
        self._queue: list[CaptureItem] = []
        self._queued_bytes = 0
        self._writing_bytes = 0
        self._is_writing = False
        self._timer: Timer | None = None
        self._ended = False
        self._state = "ok"
        self._bytes = 0
        self._chosen: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._evicted_bytes = 0
        self._ring = CaptureRing(folder, table.max_bytes)
        self._reports: deque[Callable[[], object]] = deque()  # from the writing thread to the loop's
        self._thread = BackgroundThread("capture", self._report, at_end=self._ring.close)
        self._requests = CaptureRequests(device, connection, self._ask, counters)
        self._submit([])

    # --- calls of the daemon ----------------------------------------------------------------------------------------

    def begin(self, models: Iterable[str], *, labels_come: bool = False) -> None:
        """From now on capture for exactly these models; a model that was in use before continues.

        Args:
            models: their names.
            labels_come: truth may arrive, so the last windows of each model stay in memory for it.
        """
        context = TapContext(
            table=self._table,
            device=self._device,
            start=self._start,
            chance=self._chance,
            now=self._loop.time,
            is_clock_set=self._is_clock_set,
        )
        self._taps = {name: self._taps.get(name) or CaptureTap(name, context, self._keep) for name in models}
        for tap in self._taps.values():
            tap.remember_recent(wanted=labels_come)

    def tap(self, model: str) -> CaptureTap:
        """The tap on the answers of a model."""
        return self._taps[model]

    def note_alarm(self, model: str, key: str | None = None, *, every_key: bool = False) -> None:
        """An alarm about the input of a model began: capture the next windows of this key, or of every key."""
        if model in self._taps:
            self._taps[model].follow_alarm(key, every_key=every_key)

    def label(self, model: str, identity: str, label: str | None, values: Sequence[float] = ()) -> None:
        """Take the truth of a prediction, and capture its window if it is still in memory.

        Args:
            model: the model's name.
            identity: the prediction's id.
            label: the right label; None for a regression and for several labels.
            values: the right numbers, in the order of a regression's targets, or of a multi-label model's labels.
        """
        names: tuple[str, ...] = ()
        if (tap := self._taps.get(model)) is not None:
            tap.keep_recent(identity)
            names = tap.value_names
        named = dict(zip(names, values, strict=False))
        entry = Labelled(id=identity, model=model, label=label, time=time.time(), values=named)
        self._keep(CaptureItem(entry), LABEL_BYTES)

    def document(self) -> dict[str, Any]:
        """The part of the health document."""
        wanted = {name: found for name, tap in self._taps.items() if (found := tap.requested) is not None}
        return {
            "state": self._state,
            "bytes": self._bytes,
            "max_bytes": self._table.max_bytes,
            "chosen": dict(self._chosen),
            "written": self._counters.counts["written"],
            "lost": dict(self._lost),
            "evicted_bytes": self._evicted_bytes,
            "requested": wanted,
        }

    def leave(self) -> None:
        """End for good, while the link stays up."""
        self._requests.leave()
        self.end()

    def end(self) -> None:
        """Write the queue, and unlock the folder."""
        if self._ended:
            return
        if self._queue:
            self._submit(self._taken())
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._thread.stop(CLOSE_S):
            _log.warning("the last captures may not be written", extra=fields(folder=self._ring.folder))
        self._take_reports()  # the loop may not run again

    # --- queue and writes -------------------------------------------------------------------------------------------

    def _is_clock_set(self) -> bool:
        return self._clock.is_synchronised

    def _keep(self, item: CaptureItem, size: int) -> None:
        """Queue an item of about `size` bytes for writing."""
        if self._ended:
            return
        if self._queued_bytes + self._writing_bytes + size > MOST_WAITING_BYTES and self._queued_bytes:
            self._lose("busy", 1, f"more than {MOST_WAITING_BYTES} bytes wait to be written")
            return
        if isinstance(item.entry, Captured):
            self._chosen.update(item.entry.reasons)
        self._queue.append(item)
        self._queued_bytes += size
        if self._queued_bytes >= WRITE_BYTES and not self._is_writing:
            self._write()
        elif self._timer is None:
            self._timer = self._loop.call_later(WRITE_S, self._write)

    def _write(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue and not self._is_writing and not self._ended:
            self._submit(self._taken())

    def _taken(self) -> list[CaptureItem]:
        items, self._queue = self._queue, []
        self._writing_bytes, self._queued_bytes = self._queued_bytes, 0
        return items

    def _submit(self, items: list[CaptureItem]) -> None:
        self._is_writing = True
        self._thread.submit(
            lambda: _write_to(self._ring, items),
            self._written,
            lambda error: self._refused(error, len(items)),
            what="captures",
        )

    def _report(self, report: Callable[[], object]) -> None:
        """In the writing thread: pass the result of a write to the loop."""
        self._reports.append(report)
        self._loop.call_soon_threadsafe(self._take_reports)

    def _take_reports(self) -> None:
        while self._reports:
            self._reports.popleft()()

    def _written(self, found: tuple[RingWrite, int]) -> None:
        written, self._bytes = found
        self._evicted_bytes += written.evicted_bytes
        self._counters.counts["written"] += written.kept
        if written.too_large:
            self._lose("too_large", written.too_large, f"one is larger than max_bytes = {self._table.max_bytes}")
        if written.error is None:
            self._set_state("ok")
            self._go_on()
        else:
            self._refused(written.error, written.lost)

    def _refused(self, error: Exception, lost: int) -> None:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        self._counters.errors["capture_disk"] += 1
        self._set_state(f"{self._ring.folder}: {why}")
        if lost:
            self._lose("disk", lost, why)
        self._go_on()

    def _go_on(self) -> None:
        self._writing_bytes, self._is_writing = 0, False
        if self._queued_bytes >= WRITE_BYTES and self._state == "ok":
            self._write()
        elif self._queue and self._timer is None and not self._ended:
            self._timer = self._loop.call_later(WRITE_S, self._write)

    def _lose(self, reason: str, count: int, why: str) -> None:
        if not self._lost[reason]:
            _log.warning(
                "captures are lost; predictions are not",
                extra=fields(reason=reason, folder=self._ring.folder, why=why),
            )
        self._lost[reason] += count

    def _set_state(self, state: str) -> None:
        if state != self._state:
            (_log.info if state == "ok" else _log.error)("captures", extra=fields(state=state))
        self._state = state

    def _ask(self, model: str, windows: int) -> bool:
        if model not in self._taps:
            return False
        self._taps[model].follow_request(windows)
        _log.info("captures are asked for", extra=fields(model=model, windows=windows))
        return True


def _write_to(ring: CaptureRing, items: list[CaptureItem]) -> tuple[RingWrite, int]:
    """In the writing thread: write the items. Return the result, and the size of all files in bytes."""
    if not ring.is_open:
        ring.open()
    written = ring.write(items)
    if isinstance(written.error, FileNotFoundError):
        ring.close()  # the folder was removed: the next write creates it again
        return written, 0
    return written, ring.size_on_disk()
