"""What every kind of source is: a table of keys, its rules, its facts, and the running source that it makes.

A kind is one file beside this one and one line in `registered.py`. The daemon knows kinds by what stands here alone.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, Protocol, runtime_checkable

import msgspec

from edge_runtime.config.convert import nearest, quote
from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import BrokerTable, Config, SourceTable
from edge_runtime.errors import ConfigError
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, Decoder, Members, Units
from edge_runtime.stream.codecs.kind import CodecTable
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.origin import DAY_S, EARLIEST, NO_IDENTITY, TEN_YEARS_S, TimeReader, zone_of
from edge_runtime.stream.seen import SavedSeen
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop


class AnySource(Protocol):
    """A source at work."""

    @property
    def is_open(self) -> bool:
        """Readings can come."""

    @property
    def state(self) -> str:
        """One line for people."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; nothing more comes."""


@runtime_checkable
class Remembering(Protocol):
    """A source whose readings may come again, so that what it has had must be known over a stop."""

    def take_over(self, other: object) -> None:
        """Know what the source has had that a reload puts this one in the place of."""

    def save(self, owed: OwedReceipts) -> SavedSeen:
        """What a clean stop keeps, beside the windows."""

    def restore(self, saved: SavedSeen, owed: OwedReceipts) -> None:
        """Take back what the last clean stop has kept, after the windows have."""


def _nothing() -> None:
    """For a source whose windows need not know."""


class Wiring(msgspec.Struct, frozen=True, eq=False):
    """What a source is made with, beside its own table.

    Attributes:
        config: the whole device file.
        channels: the order of the columns that it delivers.
        shape: of a source of whole frames; then there are no channels.
        loop: the event loop.
        sink: takes the batches.
        counters: `readings`, `bytes`, and rejections by reason.
        on_state: to be called when `is_open` or `state` changes.
        needed: how many readings can come, at least, before one of them may complete a window, that one included.
        paused: whether the way downstream is full, so that what can wait should.
        max_gap: the shortest of the pauses that a model of it takes for a gap; None where no model does.
        connect: the connection to a broker, under a name for messages; equal brokers share one.
        is_clock_set: whether the wall clock is to be believed.
        interrupted: to be called when readings may be missing from here on, such as after a port was opened.
        holds_windows: a model of it acknowledges readings when their windows need them no more.
        categories: the texts of channels that hold text, in the order of their indexes.
        units: what the bundle measures the channels in.
    """

    config: Config
    channels: tuple[str, ...]
    shape: tuple[int, ...] | None
    loop: Loop
    sink: Callable[[Batch], None]
    counters: Counters
    on_state: Callable[[], None]
    needed: Callable[[], int]
    paused: Callable[[], bool]
    max_gap: float | None
    connect: Callable[[BrokerTable, str], AnyConnection]
    is_clock_set: Callable[[], bool] = lambda: True
    interrupted: Callable[[], None] = _nothing
    holds_windows: bool = False
    categories: Categories = NO_CATEGORIES
    units: Units = NO_UNITS


class SourceKindTable(SourceTable, frozen=True, kw_only=True, tag="kind"):
    """What the daemon asks of a source's table."""

    extra: ClassVar[str] = ""  # of the package, that a kind needs beside what every device has

    @property
    def named_channels(self) -> tuple[str, ...] | None:
        """The channels that the table names; None where it takes those that its models want."""
        return None

    @property
    def compares_units(self) -> bool:
        """A unit may stand in the table, which is compared with that of the bundle."""
        return False

    @property
    def is_recorded(self) -> bool:
        """Its readings were recorded before: their times are not of now, and their arrival says nothing."""
        return False

    def bound(self, config: Config) -> "SourceKindTable":
        """The table as it is run, where it needs others of the file."""
        del config
        return self

    def describe(self) -> str:
        """What it reads, for a line of the log."""
        raise NotImplementedError

    def most_unacknowledged(self, config: Config) -> tuple[int, str] | None:
        """How many of its readings may be unacknowledged, and the setting that says so; None where none ever is."""
        del config
        return None

    def check_channels(self, channels: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
        """See whether it can deliver what its models want.

        Raises:
            ConfigError: every reason why not, each beginning with `source "NAME".`.
        """
        raise NotImplementedError

    def check_channels_of(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """The same, with what the bundles say of the channels: texts and units, which most kinds need not know."""
        del categories, units
        self.check_channels(channels, shape)

    def make(self, wiring: Wiring) -> AnySource:
        """The source, not yet started."""
        raise NotImplementedError

    def beside_service(self) -> "SourceKindTable":
        """The same source for a trial: it takes nothing away from a daemon that reads it at the same time."""
        return self

    # What a reload asks; a kind that does not answer is made anew where something changes, which is always right.

    def links(self, config: Config) -> tuple[BrokerTable, ...]:  # noqa: ARG002 - the answer of most kinds
        """The brokers that it reads from."""
        return ()

    def rewire(self, source: AnySource, wiring: Wiring) -> bool:  # noqa: ARG002 - as above
        """Have a source of this table go on with other channels or gaps; False when it must be made anew."""
        return False

    def withdraw(self, source: AnySource) -> None:
        """Stop a source that is not wanted any more, or will be made anew; leave nothing of it behind."""
        source.stop()


def as_kind(table: SourceTable) -> SourceKindTable:
    """The same table, as one that can be run: every table that `load_config` makes is."""
    if not isinstance(table, SourceKindTable):
        raise TypeError(f"{type(table).__name__} is no kind of source that can be run")
    return table


class FramedSourceTable(SourceKindTable, frozen=True, kw_only=True, tag="framed"):
    """A source whose readings come in frames of a format.

    Attributes:
        codec: How a frame is written.
    """

    many_readings: ClassVar[bool] = False  # a frame of a fixed structure may hold many, one after another

    codec: CodecTable

    @property
    def named_channels(self) -> tuple[str, ...] | None:
        """The columns, or the channels with a place."""
        return self.codec.mapped_channels or self.codec.columns or None

    @property
    def compares_units(self) -> bool:
        """Where channels have places."""
        return self.codec.mapped_channels is not None

    def decoder(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        is_clock_set: Callable[[], bool] = lambda: True,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> Decoder:
        """The decoder of its frames; `is_clock_set` decides how far ahead a time may be where `max_ahead` does not.

        Raises:
            ConfigError: its fields do not fit the channels.
        """
        place = f'source "{self.name}"'
        if self.identity in channels:
            found = f"found {quote(str(self.identity))}"
            raise ConfigError(f"{place}.identity: expected a member that is no channel of the model, {found}")

        def most_ahead() -> float:
            if self.max_ahead is not None:
                return self.max_ahead
            return DAY_S if is_clock_set() else TEN_YEARS_S

        reader = TimeReader(unit=self.time_unit, zone=zone_of(self.time_zone), earliest=EARLIEST, max_ahead=most_ahead)
        members = Members(
            channels,
            self.key_member,
            self.time,
            place,
            self.identity,
            reader,
            categories,
            units=units,
            many=self.many_readings,
        )
        return self.codec.decoder(members, shape)

    def decoder_for(self, wiring: Wiring) -> Decoder:
        """The decoder of a source that is wired so."""
        return self.decoder(
            wiring.channels,
            wiring.shape,
            is_clock_set=wiring.is_clock_set,
            categories=wiring.categories,
            units=wiring.units,
        )

    def check_channels_of(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """See whether the frames can hold what its models want, with the texts and units of the bundles."""
        self.decoder(channels, shape, categories=categories, units=units)


@rule(SourceTable, keys=("identity", "key"))
def _identity_is_not_key(source: SourceTable) -> Iterator[Finding]:
    if source.identity is not None and source.identity == source.key:
        yield (
            "identity",
            f"expected another field than key, found {quote(source.identity)} in both: every reading of a key has it",
        )


@rule(SourceTable, keys=("time_zone",))
def _time_zone(source: SourceTable) -> Iterator[Finding]:
    if source.time_zone is None:
        return
    from zoneinfo import available_timezones  # noqa: PLC0415 - reads a folder: only where a zone is named

    known = available_timezones()
    if source.time_zone in known:
        return
    near = nearest(source.time_zone, sorted(known))
    remedy = f"did you mean {near}?" if near else "write it as Region/City"
    if not known:
        remedy = "this machine has no time zones at all: install the package tzdata"
    yield (
        "time_zone",
        f'expected the IANA name of a zone, such as "Europe/Berlin", found {quote(source.time_zone)}: {remedy}',
    )


@rule(FramedSourceTable, keys=("format", "fields", "identity"))
def _identity_column(source: FramedSourceTable) -> Iterator[Finding]:
    columns = list(source.codec.columns)
    if source.codec.reads_paths:
        return
    if columns and source.identity is not None and source.identity not in {NO_IDENTITY, *columns}:
        near = nearest(source.identity, columns)
        hint = f": did you mean {near}?" if near else ""
        yield "identity", f'expected one of the fields or "none", found {quote(source.identity)}{hint}'


@rule(FramedSourceTable, keys=("format", "fields", "key"))
def _key_column(source: FramedSourceTable) -> Iterator[Finding]:
    columns = list(source.codec.columns)
    if source.codec.reads_paths:
        return
    if columns and source.key_member is not None and source.key_member not in columns:
        near = nearest(source.key_member, columns)
        hint = f": did you mean {near}?" if near else ""
        yield "key", f"expected one of the fields, found {quote(source.key_member)}{hint}"


@rule(FramedSourceTable, keys=("format", "channels", "rows", "payload", "key", "time", "identity"))
def _members_by_path(source: FramedSourceTable) -> Iterator[Finding]:
    if not source.codec.reads_paths:
        return
    from edge_runtime.stream.codecs.paths import PathError, parse_path  # noqa: PLC0415 - only where there is a path

    for name in ("key", "time", "identity"):
        text = source.key_member if name == "key" else getattr(source, name)
        try:
            parse_path("none" if text is None else text)
        except PathError as error:
            yield name, str(error)
