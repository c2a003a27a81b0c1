"""Several sources as one: `type = "join"` makes readings of the latest values of its parts, for each key.

The parts are sources of the same file, of any kind but this one. The join makes and runs them, and takes their batches,
in which the channels of other parts are missing; `joining.py` makes the readings. Guarantee: as there. Weak points: the
parts share their counters, under the name of the join; a key of one part is joined with the same key of the others, so
that parts without keys are joined only with each other.
"""

from collections.abc import Iterator

import msgspec
import numpy as np

from edge_runtime.config.rules import Finding, first_repeated, rule
from edge_runtime.config.tables import BrokerTable, Config, SomeSeconds, Text
from edge_runtime.errors import ConfigError
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, Units
from edge_runtime.stream.joining import ALL, ANY, Joiner
from edge_runtime.stream.rejections import Rejections
from edge_runtime.stream.sources.kind import AnySource, SourceKindTable, Wiring


class JoinSourceTable(SourceKindTable, frozen=True, kw_only=True, tag="join"):
    """`[[source]]` with `type = "join"`: readings of the latest values of other sources.

    Attributes:
        of: The names of the sources that it joins. A model uses the join instead of these.
        when: When a reading is made: with `any` at each new value once every channel has one, with `all` when every
            channel has a new value, with the name of a source or channel at each new value of it.
        max_age (s): An older value makes no reading, which is counted as `stale`. Left out, values never become stale.
    """

    of: tuple[Text, ...]
    when: Text = "any"
    max_age: SomeSeconds | None = None

    @property
    def compares_units(self) -> bool:
        """True: a part may name a unit."""
        return True

    def describe(self) -> str:
        """The names of the joined sources, for the log."""
        return f"join of {', '.join(self.of)}, when {self.when}"

    def bound(self, config: Config) -> "BoundJoinTable":
        """The table together with the tables of its parts."""
        by_name = {each.name: each for each in config.source}
        parts = tuple(each for name in self.of if isinstance(each := by_name.get(name), SourceKindTable))
        return BoundJoinTable(**{name: getattr(self, name) for name in self.__struct_fields__}, parts=parts)


class BoundJoinTable(JoinSourceTable, frozen=True, kw_only=True, tag="join"):
    """A join with the tables of its parts, so that a change of a part is a change of the join."""

    parts: tuple[SourceKindTable, ...]

    @property
    def is_recorded(self) -> bool:
        """Whether one of its parts is recorded, so that the time of a reading may be that of the recording."""
        return any(part.is_recorded for part in self.parts)

    def channels_of(self, channels: tuple[str, ...]) -> list[tuple[str, ...]]:
        """The channels of each part: those that it names; if it names none, those that no other part names."""
        named = [None if (names := part.named_channels) is None else set(names) for part in self.parts]
        taken = set().union(*(names for names in named if names is not None))
        return [
            tuple(name for name in channels if (name in names if names is not None else name not in taken))
            for names in named
        ]

    def check_channels_of(
        self,
        channels: tuple[str, ...],
        shape: tuple[int, ...] | None,
        *,
        categories: Categories = NO_CATEGORIES,
        units: Units = NO_UNITS,
    ) -> None:
        """Check that the parts together provide every channel, in a unit that fits that of the bundle."""
        place = f'source "{self.name}"'
        if shape is not None:
            raise ConfigError(f"{place}.of: expected a model of channels, found one of whole frames")
        mistakes = []
        parts = self.channels_of(channels)
        missing = [name for name in channels if not any(name in part for part in parts)]
        if missing:
            mistakes.append(f"{place}.of: expected sources with every channel, found none with {', '.join(missing)}")
        if self.when not in {ANY, ALL, *self.of, *channels}:
            mistakes.append(f'{place}.when: expected "any", "all", a source or a channel, found "{self.when}"')
        for table, names in zip(self.parts, parts, strict=True):
            if not names:
                mistakes.append(f'{place}.of: expected sources that bring a channel of the model, found "{table.name}"')
                continue
            try:
                table.check_channels_of(names, None, categories=categories, units=units)
            except ConfigError as error:
                mistakes.extend(error.mistakes)
        if mistakes:
            raise ConfigError(mistakes)

    def beside_service(self) -> "BoundJoinTable":
        """The join with each part as used for a trial."""
        return msgspec.structs.replace(self, parts=tuple(part.beside_service() for part in self.parts))

    def links(self, config: Config) -> tuple[BrokerTable, ...]:
        """The brokers of its parts."""
        return tuple(link for part in self.parts for link in part.links(config))

    def make(self, wiring: Wiring) -> "JoinSource":
        """Make the source with its parts; they are not started yet."""
        return JoinSource(self, wiring)

    def withdraw(self, source: AnySource) -> None:
        """Withdraw each part."""
        assert isinstance(source, JoinSource)
        for table, part in zip(self.parts, source.parts, strict=True):
            table.withdraw(part)


@rule(JoinSourceTable, keys=("of",))
def _parts(source: JoinSourceTable) -> Iterator[Finding]:
    if not source.of:
        yield "of", "expected the names of sources, found an array of 0"
    twice = first_repeated(source.of)
    if twice is not None:
        yield "of", f'expected every source once, found "{twice}" twice'


class JoinSource:
    """One `[[source]]` of type `join`.

    Attributes:
        parts: the sources that it joins.
    """

    def __init__(self, table: BoundJoinTable, wiring: Wiring) -> None:
        self._table = table
        self._counters = wiring.counters
        self._rejections = Rejections(table.name, wiring.counters)
        self._joiner = Joiner(wiring.channels, table.when, table.max_age, wiring.sink, stale=self._stale)
        self.parts: list[AnySource] = []
        for part, names in zip(table.parts, table.channels_of(wiring.channels), strict=True):
            columns = [wiring.channels.index(name) for name in names]
            sink = _Widened(part.name, columns, len(wiring.channels), self._joiner)
            own = msgspec.structs.replace(
                wiring, channels=names, shape=None, sink=sink, needed=lambda: 1, max_gap=None, holds_windows=False
            )
            self.parts.append(part.make(own))

    @property
    def is_open(self) -> bool:
        """Whether every part is open."""
        return all(part.is_open for part in self.parts)

    @property
    def state(self) -> str:
        """The states of the parts."""
        pairs = zip(self._table.parts, self.parts, strict=True)
        return "; ".join(f"{table.name}: {part.state}" for table, part in pairs)

    def start(self) -> None:
        """Start."""
        for part in self.parts:
            part.start()

    def stop(self) -> None:
        """Stop; no batch is delivered after this."""
        for part in self.parts:
            part.stop()

    def _stale(self, key: str | None, why: str) -> None:
        self._counters.reject("stale", why)
        self._rejections.report((), lambda _: self._table.name if key is None else f"key {key}")


class _Widened:
    """Widens batches of one part to all channels; those of the other parts are missing."""

    def __init__(self, name: str, columns: list[int], width: int, joiner: Joiner) -> None:
        self._name = name
        self._columns = columns
        self._width = width
        self._joiner = joiner

    def __call__(self, batch: Batch) -> None:
        values = np.full((len(batch), self._width), np.nan, np.float32)
        values[:, self._columns] = batch.values
        self._joiner.take(msgspec.structs.replace(batch, values=values), self._name)
