"""The base of every kind of source: a table of keys, its rules, its facts, and the running source that it makes.

A kind is one file in this folder and one line in `registered.py`. The daemon uses only the interfaces of this module.
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
    """A running source."""

    @property
    def is_open(self) -> bool:
        """Whether readings can arrive."""

    @property
    def state(self) -> str:
        """The state, one line for people."""

    def start(self) -> None:
        """Start."""

    def stop(self) -> None:
        """Stop; no batch is delivered after this."""


@runtime_checkable
class Remembering(Protocol):
    """A source whose readings may be sent again, so that it must remember earlier readings over a stop."""

    def take_over(self, other: object) -> None:
        """Take over the memory of the source that this one replaces at a reload."""

    def save(self, owed: OwedReceipts) -> SavedSeen:
        """The state that a clean stop saves, beside the windows."""

    def restore(self, saved: SavedSeen, owed: OwedReceipts) -> None:
        """Restore the state that the last clean stop saved, after the windows were restored."""


def _nothing() -> None:
    """The default of `interrupted`, for sources whose windows do not depend on interruptions."""


class Wiring(msgspec.Struct, frozen=True, eq=False):
    """The arguments of a source, beside its own table.

    Attributes:
        config: the whole device file.
        channels: the order of the columns that it delivers.
        shape: of a source of whole frames; then there are no channels.
        loop: the event loop.
        sink: takes the batches.
        counters: `readings`, `bytes`, and rejections by reason.
        on_state: the source calls it when `is_open` or `state` changes.
        needed: the least number of readings until a window may be complete, the completing one included.
        paused: whether a later stage is full, so that sources that can wait should.
        max_gap: the shortest pause that one of its models takes for a gap; None if no model does.
        connect: the connection to a broker, under a name for messages; equal brokers share one.
        is_clock_set: whether the wall clock is set.
        interrupted: the source calls it when readings may be missing, such as after a port was opened.
        holds_windows: whether one of its models acknowledges readings only when no window needs them any more.
        categories: the texts of channels that hold text, in the order of their indexes.
        units: the units of the channels in the bundle.
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
    """The interface of a source's table for the daemon."""

    extra: ClassVar[str] = ""  # the extra of the package that a kind needs

    @property
    def named_channels(self) -> tuple[str, ...] | None:
        """The channels that the table names; None if it takes those of its models."""
        return None

    @property
    def compares_units(self) -> bool:
        """Whether the table may contain a unit, which is compared with that of the bundle."""
        return False

    @property
    def is_recorded(self) -> bool:
        """Whether its readings are recorded: their times are past, and their arrival times have no meaning."""
        return False

    def bound(self, config: Config) -> "SourceKindTable":
        """The table for running, including other tables of the file that it needs."""
        del config
        return self

    def describe(self) -> str:
        """The input of the source, for a line of the log."""
        raise NotImplementedError

    def most_unacknowledged(self, config: Config) -> tuple[int, str] | None:
        """How many of its readings may be unacknowledged, and the setting of this limit; None if it has no receipts."""
        del config
        return None

    def check_channels(self, channels: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
        """Check that it can deliver the channels or frames of its models.

        Raises:
            ConfigError: lists every reason why it cannot, each beginning with `source "NAME".`.
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
        """The same, with the texts and units of the channels in the bundles, which most kinds do not need."""
        del categories, units
        self.check_channels(channels, shape)

    def make(self, wiring: Wiring) -> AnySource:
        """Make the source; it is not started yet."""
        raise NotImplementedError

    def beside_service(self) -> "SourceKindTable":
        """The same source for a trial: it must not take readings from a daemon that reads it at the same time."""
        return self

    # For a reload. A kind without these methods is made anew if something changes, which is always correct.

    def links(self, config: Config) -> tuple[BrokerTable, ...]:  # noqa: ARG002 - the answer of most kinds
        """The brokers that it reads from."""
        return ()

    def rewire(self, source: AnySource, wiring: Wiring) -> bool:  # noqa: ARG002 - as above
        """Let a source of this table continue with other channels or gaps; False if it must be made anew."""
        return False

    def withdraw(self, source: AnySource) -> None:
        """Stop a source that was removed or will be made anew, and clean up after it."""
        source.stop()


def as_kind(table: SourceTable) -> SourceKindTable:
    """The same table with the type of one that can be run, which every table from `load_config` has."""
    if not isinstance(table, SourceKindTable):
        raise TypeError(f"{type(table).__name__} is no kind of source that can be run")
    return table


class FramedSourceTable(SourceKindTable, frozen=True, kw_only=True, tag="framed"):
    """A source whose readings arrive in frames of a format.

    Attributes:
        codec: The format of a frame.
    """

    many_readings: ClassVar[bool] = False  # whether a frame of a fixed structure may hold many, one after another

    codec: CodecTable

    @property
    def named_channels(self) -> tuple[str, ...] | None:
        """The columns, or the channels with a configured place."""
        return self.codec.mapped_channels or self.codec.columns or None

    @property
    def compares_units(self) -> bool:
        """Whether channels have configured places."""
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
        """Make the decoder of its frames; without `max_ahead`, the bound of future times depends on `is_clock_set`.

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
        """Make the decoder of a source with this wiring."""
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
        """Check that the frames can hold the channels of its models, with the texts and units of the bundles."""
        self.decoder(channels, shape, categories=categories, units=units)


@rule(SourceTable, keys=("identity", "key"))
def _identity_is_not_key(source: SourceTable) -> Iterator[Finding]:
    if source.identity is not None and source.identity == source.key:
        yield (
            "identity",
            f"expected another field than key, found {quote(source.identity)} in both: every reading of a key has it",
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
