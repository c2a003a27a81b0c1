"""What every kind of source is: a table of keys, its rules, its facts, and the running source that it makes.

A kind is one file beside this one and one line in `registered.py`. The daemon knows kinds by what stands here alone.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from edge_runtime.config.convert import nearest, quote
from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import BrokerTable, Config, SourceTable
from edge_runtime.mqtt.failover import AnyConnection
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import Decoder, Members
from edge_runtime.stream.codecs.kind import CodecTable
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


class SourceKindTable(SourceTable, frozen=True, kw_only=True, tag="kind"):
    """What the daemon asks of a source's table."""

    def describe(self) -> str:
        """What it reads, for a line of the log."""
        raise NotImplementedError

    def check_channels(self, channels: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
        """See whether it can deliver what its models want.

        Raises:
            ConfigError: every reason why not, each beginning with `source "NAME".`.
        """
        raise NotImplementedError

    def make(self, wiring: Wiring) -> AnySource:
        """The source, not yet started."""
        raise NotImplementedError


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

    codec: CodecTable

    def decoder(self, channels: tuple[str, ...], shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of its frames.

        Raises:
            ConfigError: its fields do not fit the channels.
        """
        return self.codec.decoder(Members(channels, self.key, self.time, f'source "{self.name}"'), shape)

    def check_channels(self, channels: tuple[str, ...], shape: tuple[int, ...] | None) -> None:
        """See whether the frames can hold what its models want."""
        self.decoder(channels, shape)


@rule(FramedSourceTable, keys=("format", "fields", "key"))
def _key_column(source: FramedSourceTable) -> Iterator[Finding]:
    columns = list(source.codec.columns)
    if columns and source.key is not None and source.key not in columns:
        near = nearest(source.key, columns)
        hint = f": did you mean {near}?" if near else ""
        yield "key", f"expected one of the fields, found {quote(source.key)}{hint}"
