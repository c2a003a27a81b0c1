"""Recorded files as if they were measured now: at the pace of the recording, faster, or as fast as possible.

Guarantee: every good row is delivered once and in order, at most `BLOCK_READINGS` of them per wake-up, and none while
`paused` is true because a later stage is full; other work of the loop runs between any two blocks. The end is reported
once, in `finished` and `state`. Weak point: after a pause a paced replay catches up in a burst, like a device with a
buffer.
"""

import codecs
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_runtime.config.convert import quote
from edge_runtime.config.rules import Finding, first_repeated, rule
from edge_runtime.config.tables import MAX_PACKET_BYTES, FilePath, NewPath, Table, Text
from edge_runtime.errors import CommandError, ConfigError
from edge_runtime.readings import Batch, Receipt
from edge_runtime.recordings.blocks import Block, Recording, RecordingError, Wanted
from edge_runtime.recordings.files import open_recording
from edge_runtime.recordings.folder import TIME, parts_of, read_about
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, Decoded, Members, Units
from edge_runtime.stream.codecs.csv_codec import Delimiter
from edge_runtime.stream.origin import TimeReader, zone_of
from edge_runtime.stream.rejections import Rejections
from edge_runtime.stream.seen import Seen, log_first
from edge_runtime.stream.sources.kind import SourceKindTable, Wiring
from edge_runtime.stream.sources.placed_channels import check_places, to_bundle
from edge_runtime.stream.sources.silence import SilenceWatch
from edge_runtime.system import log
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer

BLOCK_READINGS = 256
# Seconds between two attempts while a later stage is full.
_PAUSE = 0.01

_logger = log.get_logger("replay")


class ColumnChannelTable(Table, frozen=True, kw_only=True):
    """`[source.channels]` of `type = "replay"`: one channel of the model by its name; a text alone is its `path`.

    Attributes:
        path: The exact name of its column or member. Left out, it is the name of the channel.
        scale: The factor of the number, applied before `offset` is added.
        offset: The number that is added after `scale` is applied.
        unit: The unit of the result. If the bundle names another unit of the same quantity, the value is converted.
    """

    short: ClassVar[str] = "path"

    path: Text | None = None
    scale: float = 1.0
    offset: float = 0.0
    unit: Text | None = None


class ReplaySourceTable(SourceKindTable, frozen=True, kw_only=True, tag="replay"):
    """`[[source]]` with `type = "replay"`: recorded files, played as if they were measured now.

    Attributes:
        files: The recordings, played one after the other.
        path: A folder that `edge-runtime record` has made, instead of `files`; its times and its key are used.
        speed: `recorded` keeps the pace of the recording, a number plays it that many times faster, `full` as fast as
            the device can.
        rate_hz (Hz): The pace of a recording without times.
        loop: Whether to start again after the last file.
        format: The format of the files; `auto` decides by the suffix.
        delimiter: The separator of the columns of a CSV file; left out, a comma, and in a `.tsv` a tab.
        index_column: The rows of a CSV file begin with a column that its header does not name, as R writes row names.
        trailing_delimiter: The rows of a CSV file end with a delimiter that its header lacks.
        decimal: The decimal sign of the numbers in a CSV file.
        encoding: The Python name of the encoding of text files.
        times: Whether predictions have the time of the recording or the time of the replay.
        max_frame_bytes (B): A longer line is skipped and counted as `too_long`.
        channels: The column of each channel of the model. Left out, a channel is the column of its own name.
    """

    files: tuple[FilePath, ...] = ()
    path: NewPath | None = None
    speed: Literal["recorded", "full"] | Annotated[float, Meta(gt=0)] = "recorded"
    rate_hz: Annotated[float, Meta(gt=0)] | None = None
    loop: bool = False
    format: Literal["auto", "csv", "jsonl", "parquet", "numpy"] = "auto"
    delimiter: Delimiter | None = None
    index_column: bool = False
    trailing_delimiter: bool = False
    decimal: Literal[".", ","] = "."
    encoding: Text = "utf-8"
    times: Literal["recorded", "now"] = "recorded"
    max_frame_bytes: Annotated[int, Meta(ge=16, le=MAX_PACKET_BYTES)] = 65536
    channels: Mapping[Text, ColumnChannelTable] | None = None

    @property
    def named_channels(self) -> tuple[str, ...] | None:
        """The channels with a configured column."""
        return None if self.channels is None else tuple(self.channels)

    @property
    def compares_units(self) -> bool:
        """Whether channels have configured columns."""
        return self.channels is not None

    @property
    def is_recorded(self) -> bool:
        """True: all readings are recorded."""
        return True

    def describe(self) -> str:
        """The files and the speed, for the log."""
        what = f"{len(self.files)} files" if self.path is None else self.path
        return f"replay of {what} at speed {msgspec.to_builtins(self.speed)}"

    def check_channels_of(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """Check the head of every file."""
        if self.channels is not None:
            check_places(
                channels,
                shape,
                self.channels,
                place=f'source "{self.name}".channels',
                categories=categories,
                units=units,
                remedy=lambda name: f'add {name} = "COLUMN"',
            )
        open_recordings(self, channels, shape, categories)

    def make(self, wiring: Wiring) -> "ReplaySource":
        """Make the source, which waits while a later stage is full."""
        return ReplaySource(
            self,
            wiring.channels,
            wiring.shape,
            wiring.loop,
            sink=wiring.sink,
            counters=wiring.counters,
            on_state=wiring.on_state,
            paused=wiring.paused,
            categories=wiring.categories,
            units=wiring.units,
        )


@rule(ReplaySourceTable, keys=("channels",))
def _columns(source: ReplaySourceTable) -> Iterator[Finding]:
    if source.channels is None:
        return
    if not source.channels:
        yield "channels", "expected at least one channel, found an empty table: add one, or take the table out"
    twice = first_repeated([each.path or name for name, each in source.channels.items()])
    if twice is not None:
        yield "channels", f"expected every column once, found {quote(twice)} twice"
    for name, channel in source.channels.items():
        if channel.scale == 0:
            yield f"channels.{name}.scale", "expected a factor other than 0, found 0: the channel would never change"


@rule(ReplaySourceTable, keys=("files", "path", "encoding"))
def _recordings(source: ReplaySourceTable) -> Iterator[Finding]:
    if source.path is None and not source.files:
        yield "files", "expected at least one recording, or the folder of one in `path`, found neither"
    if source.path is not None and source.files:
        yield "path", "expected it instead of `files`, found both: take one out"
    try:
        codecs.lookup(source.encoding)
    except LookupError:
        yield "encoding", f'expected an encoding, such as "latin-1" or "utf-16", found "{source.encoding}"'


class ReplaySource:
    """One `[[source]]` of type `replay`.

    Attributes:
        is_open: whether it has been started; the end of a replay is not a fault.
        finished: whether everything has been delivered.
        state: one line for people.
        on_state: called when one of these changes.
    """

    def __init__(
        self,
        config: ReplaySourceTable,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        loop: Loop,
        *,
        sink: Callable[[Batch], None],
        counters: Counters,
        on_state: Callable[[], None] | None = None,
        paused: Callable[[], bool] = lambda: False,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """Check every file.

        Raises:
            ConfigError: one of them cannot be played; the message lists every mistake.
        """
        self.is_open = False
        self.finished = False
        self.state = "not started"
        self.on_state = on_state
        self._config = config
        self._loop = loop
        self._sink = sink
        self._counters = counters
        self._paused = paused
        self._recordings = open_recordings(config, channels, shape, categories)
        self._scaling = _scaling(config, channels, units)
        self._pace = _Pace(config, loop.time)
        # A reading that is played again counts as another reading, and must not be dropped as a repeat.
        self._seen = Seen(
            counters, late=config.late, late_tolerance=config.late_tolerance, notice=log_first(config.name)
        )
        self._keeps_identity = config.times == "recorded" and not config.loop
        self._blocks: Iterator[Decoded] = iter(())
        self._block: Decoded | None = None
        self._due: list[float] = []
        self._timer: Timer | None = None
        self._rejections = Rejections(config.name, counters)
        self._silence = SilenceWatch(
            loop,
            config.silent_after,
            counters,
            source=config.name,
            where=f"{len(config.files)} files",
            remedy="their times have a pause, or what is behind takes no more readings",
            changed=self._silence_changed,
        )

    def start(self) -> None:
        """Start playing."""
        self._blocks = self._play()
        self._silence.start()
        self._show("playing", is_open=True)
        self._timer = self._loop.call_later(0.0, self._step)

    def stop(self) -> None:
        """Stop at the present position."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._blocks, self._block = iter(()), None
        self._silence.stop()
        self._show("stopped", is_open=False)

    def _step(self) -> None:
        """Deliver the readings that are due, at most a block, and schedule the next step."""
        self._timer = None
        if self._paused():
            self._timer = self._loop.call_later(_PAUSE, self._step)
            return
        if self._block is None:
            self._block = next(self._blocks, None)
            if self._block is None:
                self._finish()
                return
            self._due = self._pace.due(self._block)
        ready = bisect_right(self._due, self._loop.time())
        part, rest = self._block.part(0, ready), self._block.part(ready, len(self._block))
        self._block, self._due = (rest, self._due[ready:]) if len(rest) else (None, [])
        # The timer is set first, since the sink may stop the source. `call_soon` would delay other work of the loop.
        self._timer = self._loop.call_at(self._due[0] if self._due else self._loop.time(), self._step)
        if len(part):
            self._deliver(part)

    def _deliver(self, part: Decoded) -> None:
        if self._keeps_identity:
            going = self._seen.admit(part, part.keys)
            if going is not None:
                part = part.chosen(going)
                if not going:
                    return
        count, now = len(part), time.time()
        self._silence.heard()
        self._counters.counts["readings"] += count
        recorded = self._config.times == "recorded"
        times = [moment if recorded and moment is not None else now for moment in part.times]
        identities: list[str | None] = part.identities if self._keeps_identity else [None] * count
        nothing_owed: list[Receipt | None] = [None] * count
        self._sink(
            Batch(
                self._config.name,
                part.values,
                part.keys,
                times,
                identities,
                nothing_owed,
                time.perf_counter(),
                own_times=recorded and None not in part.times,
            )
        )

    def _play(self) -> Iterator[Decoded]:
        """The blocks of all files, repeated with `loop` unless no file has a reading."""
        while True:
            found = 0
            for path, recording in self._recordings:
                self._pace.restart(recording)
                try:
                    for block in self._blocks_of(recording):
                        found += len(block)
                        yield block
                except RecordingError as error:
                    self._counters.errors["read_failed"] += 1
                    _logger.warning(str(error), extra=log.fields(source=self._config.name, file=str(path)))
            if not found or not self._config.loop:
                return

    def _blocks_of(self, recording: Recording) -> Iterator[Decoded]:
        for piece in recording.pieces(None):
            for block in recording.blocks(piece, BLOCK_READINGS):
                if recording.counts_bytes:
                    self._counters.counts["bytes"] += block.done
                for fault in block.faults:
                    self._counters.rejected[fault.reason] += 1
                    where = f"{piece.path}, {'line' if recording.counts_bytes else 'row'} {fault.row}"
                    self._rejections.refuse(fault.reason, fault.why, where=where, frame=fault.text)
                yield _readings(block, self._scaling)

    def _finish(self) -> None:
        if not self.finished:
            self.finished = True
            self._silence.stop()
            _logger.info("replay finished", extra=log.fields(source=self._config.name))
            self._show("finished", is_open=True)

    def _silence_changed(self) -> None:
        self._show(self._silence.text if self._silence.is_silent else "playing", is_open=True)

    def _show(self, state: str, *, is_open: bool) -> None:
        self.state, self.is_open = state, is_open
        if self.on_state is not None:
            self.on_state()


Scaling = tuple[NDArray[np.float64], NDArray[np.float64]]


def _scaling(config: ReplaySourceTable, channels: tuple[str, ...], units: Units) -> Scaling | None:
    """Factors and offsets of the columns; None if no column has any."""
    if config.channels is None:
        return None
    place = f'source "{config.name}".channels'
    pairs = [to_bundle(config.channels[name], units.get(name, ""), f"{place}.{name}") for name in channels]
    if all(pair == (1.0, 0.0) for pair in pairs):
        return None
    factors, offsets = zip(*pairs, strict=True)
    return np.array(factors), np.array(offsets)


class _Pace:
    """Calculates when each reading is due, in the loop's time."""

    def __init__(self, config: ReplaySourceTable, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full = config.speed == "full"
        self._factor = config.speed if isinstance(config.speed, float | int) else 1.0
        self._step = None if config.rate_hz is None else 1.0 / config.rate_hz
        self._by_step = False
        self._first: float | None = None
        self._last = 0.0

    def restart(self, recording: Recording) -> None:
        """Begin a file: its first reading is due when the last one of the previous file was, or now."""
        self._first = None
        self._by_step = recording.has_time is False
        self._last = max(self._last, self._clock())

    def due(self, block: Decoded) -> list[float]:
        """The time of each reading, never before that of the previous one."""
        if self._full or not len(block):
            return [0.0] * len(block)
        begin = self._last
        if self._by_step or block.times[0] is None:
            step = (self._step or 0.0) / self._factor
            due = [begin + step * (i + 1) for i in range(len(block))]
        else:
            if self._first is None:
                self._first, self._anchor = block.times[0], begin
            first, anchor = self._first, self._anchor
            wanted = [begin if t is None else anchor + (t - first) / self._factor for t in block.times]
            due = list(accumulate(wanted, max, initial=begin))[1:]
        self._last = due[-1]
        return due


def _readings(block: Block, scaling: Scaling | None) -> Decoded:
    """Convert a block of a file to readings of a source."""
    values = block.values
    if scaling is not None:
        factors, offsets = scaling
        values = (values.astype(np.float64) * factors + offsets).astype(np.float32)
    nothing: list[None] = [None] * len(block)
    return Decoded(
        values,
        list(range(len(block))),
        block.keys or [*nothing],
        block.times or [*nothing],
        block.identities or [*nothing],
    )


def _of_folder(config: ReplaySourceTable, folder: Path) -> ReplaySourceTable:
    """The same table with the files of a recording, which names its columns itself.

    Raises:
        ConfigError: it is not a recording.
    """
    try:
        about = read_about(folder)
    except CommandError as error:
        raise ConfigError(f'source "{config.name}".path: {error}') from error
    files = tuple(map(str, parts_of(folder)))
    if not files:
        raise ConfigError(f'source "{config.name}".path: {folder}: expected readings, found a recording without any')
    return msgspec.structs.replace(config, files=files, key=config.key or about.key, time=TIME, time_unit="s")


def open_recordings(
    config: ReplaySourceTable,
    channels: tuple[str, ...],
    shape: tuple[int, ...] | None,
    categories: Categories = NO_CATEGORIES,
) -> list[tuple[Path, Recording]]:
    """Check every file of a source, and prepare to play them.

    Raises:
        ConfigError: one of them cannot be played; the message lists every mistake.
    """
    recordings: list[tuple[Path, Recording]] = []
    mistakes: list[str] = []
    if config.path is not None:
        config = _of_folder(config, Path(config.path))
    reader = TimeReader(unit=config.time_unit, zone=zone_of(config.time_zone))
    if config.channels is not None:
        columns = {name: config.channels[name].path or name for name in channels}
        channels = tuple(columns.values())
        categories = {columns[name]: texts for name, texts in categories.items()}
    for name in config.files:
        path = Path(name)
        wanted = Wanted(
            channels,
            shape,
            framed=shape is not None,
            key=config.key,
            delimiter=config.delimiter,
            format=config.format,
            decimal=config.decimal,
            encoding=codecs.lookup(config.encoding).name,
            index_column=config.index_column,
            trailing_delimiter=config.trailing_delimiter,
            max_line_bytes=config.max_frame_bytes,
            categories=dict(categories),
            members=Members(channels, config.key, config.time, name, config.identity, reader, categories),
        )
        try:
            recording = open_recording(path, wanted)
        except RecordingError as error:
            text = (
                str(error)
                .replace("--index-column", "index_column = true")
                .replace("--trailing-delimiter", "trailing_delimiter = true")
                .replace("add --encoding utf-16", 'set `encoding = "utf-16"`')
                .replace("add --encoding", "set `encoding`")
                .replace("add --delimiter", "set `delimiter`")
                .replace("say it with --format", "set `format`")
            )
            mistakes.extend(text.splitlines())
            continue
        if recording.has_time is False and config.rate_hz is None and config.speed != "full":
            mistakes.append(
                f"{path}: expected a column {config.time!r} to keep the pace by, found none: set `rate_hz`, `time` or "
                '`speed = "full"`'
            )
        recordings.append((path, recording))
    if mistakes:
        raise ConfigError([f'source "{config.name}".files: {mistake}' for mistake in mistakes])
    return recordings
