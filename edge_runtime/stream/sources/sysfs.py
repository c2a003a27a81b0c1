"""Files with one number each, read at an interval: the sensors of Linux (IIO, hwmon, thermal).

The files are read in a thread, since a driver may measure during a read: a 1-Wire sensor takes a second. Guarantee: at
most one reading is in progress, and one that takes longer than the interval delays only the next one. A file that
cannot be read is a missing channel; one without a number is counted as `wrong_type`.
"""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import SomeSeconds, Table, Text
from edge_runtime.errors import TransientError
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, Units
from edge_runtime.stream.codecs.rows_of_text import number
from edge_runtime.stream.origin import RejectedError
from edge_runtime.stream.rejections import Rejections
from edge_runtime.stream.sources.kind import SourceKindTable, Wiring
from edge_runtime.stream.sources.placed_channels import check_places, to_bundle
from edge_runtime.system import log
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.loop import Timer

_MOST_BYTES = 4096  # a page, sysfs(5)

_logger = log.get_logger("sysfs")


class AbsentFileError(TransientError):
    """A file cannot be read now; the text is the message."""


Found = float | RejectedError | AbsentFileError


class FileChannelTable(Table, frozen=True, kw_only=True):
    """`[source.channels]` of `type = "sysfs"`: one channel of the model by its name; a text alone is its `path`.

    Attributes:
        path: The file, such as `/sys/class/thermal/thermal_zone0/temp`. A `*` matches a part that may change at a
            start, such as the number of a device; exactly one file has to match.
        scale: The factor of the number, applied before `offset` is added: `0.001` for the thousandths of hwmon.
        offset: The number that is added after `scale` is applied.
        unit: The unit of the result. If the bundle names another unit of the same quantity, the value is converted.
    """

    short: ClassVar[str] = "path"

    path: Text
    scale: float = 1.0
    offset: float = 0.0
    unit: Text | None = None


class SysfsSourceTable(SourceKindTable, frozen=True, kw_only=True, tag="sysfs"):
    """`[[source]]` with `type = "sysfs"`: files with one number each, the sensors of Linux.

    Attributes:
        channels: The file of each channel.
        interval (s): How often the files are read.
    """

    channels: Mapping[Text, FileChannelTable]
    interval: SomeSeconds = 1.0

    @property
    def named_channels(self) -> tuple[str, ...]:
        """The channels with a file."""
        return tuple(self.channels)

    @property
    def compares_units(self) -> bool:
        """True: a file may have a unit."""
        return True

    def describe(self) -> str:
        """The number of files, for the log."""
        return f"sysfs, {len(self.channels)} files every {self.interval:g} s"

    def check_channels_of(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """Check that each channel has a file, in a unit that can be converted to that of the bundle."""
        check_places(
            channels,
            shape,
            self.channels,
            place=f'source "{self.name}".channels',
            categories=categories,
            units=units,
            remedy=lambda name: f'add {name} = "/sys/..."',
        )

    def make(self, wiring: Wiring) -> "SysfsSource":
        """Make the source; it is not started yet."""
        return SysfsSource(self, wiring)


@rule(SysfsSourceTable, keys=("channels",))
def _absolute_paths(source: SysfsSourceTable) -> Iterator[Finding]:
    if not source.channels:
        yield "channels", "expected a file for at least one channel, found an empty table"
    for name, channel in source.channels.items():
        if not Path(channel.path).is_absolute():
            yield f"channels.{name}.path", f'expected a path that begins with /, found "{channel.path}"'


class SysfsSource:
    """One `[[source]]` of type `sysfs`.

    Attributes:
        is_open: whether a file could be read at the last attempt.
        state: one line for people.
    """

    def __init__(self, config: SysfsSourceTable, wiring: Wiring) -> None:
        self.is_open = False
        self.state = "not started"
        self._config = config
        self._wiring = wiring
        self._tables = [config.channels[name] for name in wiring.channels]
        self._factors = [
            to_bundle(config.channels[name], wiring.units.get(name, ""), f'source "{config.name}".channels.{name}')
            for name in wiring.channels
        ]
        self._rejections = Rejections(config.name, wiring.counters)
        self._thread = BackgroundThread("sysfs", wiring.loop.call_soon_threadsafe)
        self._timer: Timer | None = None
        self._stopped = False
        self._faults: dict[str, str] = {}

    def start(self) -> None:
        """Start."""
        self._tick()

    def stop(self) -> None:
        """Stop; no batch is delivered after this."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._thread.stop()
        self._show("stopped", is_open=False)

    def _tick(self) -> None:
        due = self._wiring.loop.time() + self._config.interval
        paths = [table.path for table in self._tables]
        self._thread.submit(lambda: [read_number(path) for path in paths], lambda found: self._take(found, due))

    def _take(self, found: list[Found], due: float) -> None:
        if self._stopped:
            return
        self._timer = self._wiring.loop.call_at(max(due, self._wiring.loop.time()), self._tick)
        values = np.full((1, len(found)), np.nan, np.float32)
        faults: dict[str, str] = {}
        for column, (value, (factor, offset)) in enumerate(zip(found, self._factors, strict=True)):
            if isinstance(value, AbsentFileError):
                faults["absent"] = str(value)
                continue
            if isinstance(value, RejectedError):
                faults[value.reason] = value.why
                continue
            values[0, column] = value * factor + offset
        self._note(faults, anything=len(found) > len(faults))
        if not np.isnan(values).all():
            self._wiring.counters.counts["readings"] += 1
            where = ", ".join(table.path for table in self._tables)

            def refuse(_row: int, reason: str, why: str, count: int) -> None:
                self._rejections.refuse(reason, why, where=where, frame=str(values[0].tolist()), count=count)

            self._wiring.sink(
                Batch(
                    self._config.name, values, [None], [time.time()], [None], [None], time.perf_counter(),
                    refuse=refuse,
                )
            )  # fmt: skip

    def _note(self, faults: dict[str, str], *, anything: bool) -> None:
        """Count the files that could not be read, and log new faults."""
        for reason, why in faults.items():
            if reason == "absent":
                self._wiring.counters.errors["absent"] += 1
                if self._faults.get(reason) != why:
                    _logger.warning(why, extra=log.fields(source=self._config.name))
            else:
                self._wiring.counters.reject(reason, why)
                self._rejections.report((), lambda _: "sysfs")
        self._faults = faults
        self._show(next(iter(faults.values()), "reading"), is_open=anything)

    def _show(self, state: str, *, is_open: bool) -> None:
        if (state, is_open) != (self.state, self.is_open):
            self.state, self.is_open = state, is_open
            self._wiring.on_state()


def read_number(pattern: str) -> Found:
    """The number in the one file that matches, or why there is none."""
    paths = sorted(map(str, Path("/").glob(pattern.lstrip("/")))) if "*" in pattern else [pattern]
    if len(paths) != 1:
        return AbsentFileError(f"{pattern}: expected one file that fits, found {len(paths)}")
    try:
        with Path(paths[0]).open("rb", buffering=0) as file:
            text = file.read(_MOST_BYTES).decode(errors="replace")
        found = number(text.strip())
    except OSError as error:
        return AbsentFileError(f"{paths[0]}: cannot be read ({error.strerror}): look at the driver and its path")
    except RejectedError as error:
        return RejectedError(error.reason, f"{paths[0]}: {error.why}")
    if found is None or not math.isfinite(found):
        return RejectedError("wrong_type", f"{paths[0]}: expected a number, found nothing")
    return found
