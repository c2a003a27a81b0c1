"""A source -> a recording: every reading that decodes, with its time, key and label, before any model exists.

The source is the daemon's, read beside it as in `try`. Guarantee: written numbers read back to the same float32, so a
replay gives the bits of the live run; a kill loses at most a second. Ranges are not checked: a recording shows what the
sensor sent. A reading whose key holds a line break is rejected, since a torn line could then not be told from a whole
one.
"""

import math
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.bringup.found_channels import finding
from edge_runtime.bringup.part_writer import PART_BYTES, WRITE_S, PartWriter
from edge_runtime.bringup.recorded_rate import StreamRate, median_rate_hz
from edge_runtime.config.tables import BrokerTable, Config, SourceTable
from edge_runtime.daemon.links import Links
from edge_runtime.errors import CommandError
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.readings import Batch
from edge_runtime.recordings.folder import KEY, LABEL, TIME, About, ClockState, RecordedChannel
from edge_runtime.stream.codecs.kind import IGNORED
from edge_runtime.stream.codecs.mapping import NamedTable
from edge_runtime.stream.sources.kind import AnySource, FramedSourceTable, SourceKindTable, Wiring, as_kind
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

_MOST_STREAMS = 10_000  # keys whose rates are shown
SHOW_S = 1.0
DESCRIBE_S = 10.0  # after the first reading: then a kill leaves the rate in the description


class Recorder:
    """Records one source.

    Args:
        config: the device file; its models are ignored.
        source: which source of it.
        folder: where to.
        label: of every reading of this run; None for none.
        channels: to record; by default all fields, or those of the first frames.
        loop: the event loop.
        part_bytes: the size of a part.

    Attributes:
        counters: of the source: readings, and what was rejected.
        streams: readings of each key.
    """

    def __init__(
        self,
        config: Config,
        source: SourceTable,
        folder: Path,
        *,
        label: str | None,
        channels: tuple[str, ...] | None,
        loop: Loop,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self.counters = Counters()
        self.streams: Counter[str | None] = Counter()
        self._config = config
        self._table: SourceKindTable = as_kind(source).bound(config).beside_service()
        self._folder = folder
        self._label = label
        self._loop = loop
        self._part_bytes = part_bytes
        self._writer: PartWriter | None = None
        self._describe_at: float | None = None
        self._clock = Clock()
        self._stopping = False
        self._last_state = ""
        self._fault: CommandError | None = None
        self._rates: dict[str | None, StreamRate] = {}
        self._present: NDArray[np.int64] | None = None
        self._source: AnySource | None = None
        self._channels = self._known(channels)
        self._links = Links(
            loop, lambda _: Counters(), commit_interval=1.0, on_change=lambda: None, keeps_session=False
        )

    @property
    def state(self) -> str:
        """The state of the source, for people."""
        return "not started" if self._source is None else self._last_state or self._source.state

    @property
    def channels(self) -> tuple[str, ...]:
        """The columns of numbers; none before they are found."""
        return self._channels

    @property
    def about(self) -> About | None:
        """The description of the recording; None before the first reading."""
        return None if self._writer is None else self._writer.about

    @property
    def bytes(self) -> int:
        """How much was written."""
        return 0 if self._writer is None else self._writer.written

    def rate_hz(self) -> float | None:
        """Readings of a stream in a second, the median over the streams; None before it is known."""
        return median_rate_hz(self._rates.values())

    def rate_of(self, key: str | None) -> float | None:
        """Readings of one stream in a second; None before it is known."""
        return median_rate_hz([self._rates[key]] if key in self._rates else [])

    @property
    def values(self) -> dict[str, int]:
        """For each channel, the number of readings of this run that have a value for it."""
        found = [0] * len(self._channels) if self._present is None else self._present.tolist()
        return dict(zip(self._channels, found, strict=True))

    def run(self, seconds: float | None, each_second: Callable[[], None]) -> None:
        """Record for so many seconds; None: until `stop`, or until a recording that is replayed has ended.

        Raises:
            CommandError: the folder cannot be written.
        """
        self._source = source = self._table.make(self._wiring())
        self._links.start()
        source.start()
        self._loop.call_later(WRITE_S, self._flush)
        self._loop.call_later(SHOW_S, lambda: self._show(each_second))
        until = None if seconds is None else self._loop.time() + seconds
        while not self._stopping and (until is None or self._loop.time() < until):
            self._loop.run_once(WRITE_S if until is None else min(WRITE_S, max(0.0, until - self._loop.time())))
            if getattr(source, "finished", False):
                break
        self._last_state = source.state
        source.stop()
        self._links.keep(())
        if self._fault is not None:
            raise self._fault
        if self._writer is not None:
            self._writer.about.rate_hz = self.rate_hz()
            self._writer.close(time.time())

    def stop(self) -> None:
        """End `run` soon; a signal handler may call it."""
        self._stopping = True
        self._loop.wake()

    # --- making -----------------------------------------------------------------------------------------------------

    def _known(self, named: tuple[str, ...] | None) -> tuple[str, ...]:
        """The channels that are known before the first frame; empty where the frames name them."""
        table = self._table
        if named is not None:
            return named
        columns = table.codec.columns if isinstance(table, FramedSourceTable) else ()
        if columns:
            others = {table.key, table.time, table.identity, IGNORED, "id", "seq"}
            return tuple(name for name in columns if name not in others)
        if not columns and table.named_channels is not None:
            return table.named_channels
        if not isinstance(table, FramedSourceTable) or getattr(table, "joins", False):
            raise CommandError(f'source "{table.name}": expected --channels, since a {_kind(table)} names none itself')
        self._table = finding(table, self._found)
        return ()

    def _found(self, channels: tuple[str, ...]) -> None:
        self._channels = channels

    def _wiring(self) -> Wiring:
        return Wiring(
            config=self._config,
            channels=self._channels,
            shape=None,
            loop=self._loop,
            sink=self._take,
            counters=self.counters,
            on_state=lambda: None,
            needed=lambda: 1,
            paused=lambda: False,
            max_gap=None,
            connect=self._connect,
            is_clock_set=lambda: self._clock.is_synchronised,
            interrupted=lambda: None,
        )

    def _connect(self, broker: BrokerTable, name: str) -> AnyConnection:
        return self._links.get(msgspec.structs.replace(broker, client_id=f"edge-rec-{secrets.token_hex(4)}"), name)

    # --- what comes -------------------------------------------------------------------------------------------------

    def _take(self, batch: Batch) -> None:
        if self._fault is not None or not len(batch):
            return
        try:
            writer = self._writer or self._begin(batch)
        except CommandError as error:
            self._fault = error
            self.stop()
            return
        keyed, labelled = writer.about.key is not None, self._label
        present = np.count_nonzero(~np.isnan(batch.values), axis=0)
        self._present = present if self._present is None else self._present + present
        for row in range(len(batch)):
            key, moment = batch.keys[row], batch.times[row]
            if key is not None and ("\n" in key or "\r" in key):
                self.counters.reject(
                    "bad_key", f"expected a key on one line, found {key[:60]!r}", sample=key[:200].encode()
                )
                continue
            numbers = ["" if math.isnan(value) else str(value) for value in batch.values[row]]
            cells = [repr(moment), *([key or ""] if keyed else []), *numbers]
            writer.add(cells if labelled is None else [*cells, labelled])
            self._note(key, moment)

    def _note(self, key: str | None, moment: float) -> None:
        if key in self.streams or len(self.streams) < _MOST_STREAMS:
            self.streams[key] += 1
            rate = self._rates.get(key)
            if rate is None:
                self._rates[key] = rate = StreamRate()
            rate.note(moment)

    def _begin(self, batch: Batch) -> PartWriter:
        taken = {*self._channels}
        units = _units(self._table)
        key = None if batch.keys[0] is None else self._table.key or KEY
        while key in taken:
            key = f"_{key}"  # a channel of that name has its own column
        clock: ClockState = "synchronised" if self._clock.is_synchronised else "unsynchronised"
        for name in (TIME, LABEL):
            if name in taken:
                raise CommandError(
                    f"expected no channel named {name}, which a recording has itself: rename it, "
                    "or leave it out with --channels"
                )
        about = About(
            device=self._config.device.id,
            source=self._table.name,
            channels=[RecordedChannel(name, units.get(name, "")) for name in self._channels],
            key=key,
            label=None if self._label is None else LABEL,
            clock=clock,
            own_times=batch.own_times,
            started=time.time(),
        )
        self._writer = PartWriter(self._folder, about, self._part_bytes)
        self._describe_at = self._loop.time() + DESCRIBE_S
        return self._writer

    def _flush(self) -> None:
        if self._writer is not None and self._fault is None:
            try:
                self._writer.flush()
                if self._describe_at is not None and self._loop.time() >= self._describe_at:
                    self._describe_at = None
                    self._writer.about.rate_hz = self.rate_hz()
                    self._writer.describe()
            except CommandError as error:
                self._fault = error
                self.stop()
                return
        self._loop.call_later(WRITE_S, self._flush)

    def _show(self, each_second: Callable[[], None]) -> None:
        each_second()
        self._loop.call_later(SHOW_S, lambda: self._show(each_second))


def _units(table: SourceKindTable) -> dict[str, str]:
    """The units of the channels that the device file names."""
    parts = getattr(table, "parts", None) or (table,)  # of a source that joins others
    codecs = [part.codec for part in parts if isinstance(part, FramedSourceTable)]
    named = [codec.channels for codec in codecs if isinstance(codec, NamedTable) and codec.channels]
    return {name: each.unit for channels in named for name, each in channels.items() if each.unit}


def _kind(table: SourceKindTable) -> str:
    return str(table.__struct_config__.tag)
