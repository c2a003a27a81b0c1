"""What every format hands over, and the judgement that is the same for all: finite numbers and readable origins."""

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np

from edge_runtime.readings import Floats
from edge_runtime.stream.origin import (
    NO_IDENTITY,
    NO_ORIGIN,
    Origin,
    RejectedError,
    TimeReader,
    identity_text,
    read_any_key,
    read_identity,
    read_key,
)
from edge_runtime.system.counters import Counters

FEW = 4  # up to so many readings a look at each number is cheaper than numpy's calls
Categories = Mapping[str, tuple[str, ...]]  # channel -> its texts, in the order of their indexes
NO_CATEGORIES: Categories = MappingProxyType({})
Units = Mapping[str, str]  # channel -> the unit that the bundle names
NO_UNITS: Units = MappingProxyType({})
UNKNOWN = -1.0  # the index of a text that is no category
_LARGEST = float(np.finfo(np.float32).max)
_FLOAT32 = np.dtype(np.float32)  # the object itself: numpy need not look for it at each call


class Decoded(msgspec.Struct, eq=False):
    """Readings in the order of their frames; every list has one item a reading.

    Attributes:
        values: `[n, channels]` float32, NaN where a channel is missing; `[n, *shape]` of a source of frames.
        rows: the index of the frame that each reading came from.
        keys: the stream; None where the source has no key member.
        times: Unix seconds; None where the reading brought none.
        identities: the reading's own `id`, `seq` or `time`, as text; None where it brought none.
    """

    values: Floats
    rows: list[int]
    keys: list[str | None]
    times: list[float | None]
    identities: list[str | None]

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, start: int, stop: int) -> "Decoded":
        """The readings from `start` up to `stop`."""
        piece = slice(start, stop)
        return Decoded(
            self.values[piece], self.rows[piece], self.keys[piece], self.times[piece], self.identities[piece]
        )

    def chosen(self, keep: list[int]) -> "Decoded":
        """The readings of these indexes."""
        return Decoded(
            self.values[keep],
            [self.rows[i] for i in keep],
            [self.keys[i] for i in keep],
            [self.times[i] for i in keep],
            [self.identities[i] for i in keep],
        )


class Members(msgspec.Struct, frozen=True):
    """Which member of a reading plays which part. A name that is a channel is nothing else.

    Attributes:
        channels: in the order of the source.
        key: the member that names the stream.
        time: the member that holds the time.
        place: where the configuration speaks of it, for messages.
        identity: the member by which a reading is known again; None for `id`, else `seq`, else `time`.
        reader: of the times.
        categories: the texts of channels that hold text, in the order of their indexes.
        any_key: a key need not be fit for a topic, since nothing is published: of a recorded file.
        units: what the bundle measures the channels in.
        many: a frame may hold many readings one after another, where its format has a fixed size.
    """

    channels: tuple[str, ...]
    key: str | None = None
    time: str = "time"
    place: str = "source"
    identity: str | None = None
    reader: TimeReader = TimeReader()
    categories: Categories = NO_CATEGORIES
    any_key: bool = False
    units: Units = NO_UNITS
    many: bool = False

    def category_indexes(self) -> dict[int, Callable[[str | int | None], float | None]]:
        """For each column that holds text, what gives a text its index: -1 where it is no category."""
        return {
            column: CategoryIndex(self.categories[name])
            for column, name in enumerate(self.channels)
            if name in self.categories
        }

    def origin_names(self) -> list[str | None]:
        """The members of `Origin` in its order; None where the source has no such member."""
        taken = {*self.channels, self.key}
        named: tuple[str | None, ...] = ("id", "seq")
        if self.identity is not None:
            named = (None if self.identity in {NO_IDENTITY, self.time} else self.identity, None)
        return [None if name in taken else name for name in (self.time, *named)] + [self.key]

    @property
    def read_key(self) -> Callable[[Any], str]:
        """What reads the key of a reading."""
        return read_any_key if self.any_key else read_key

    @property
    def identify(self) -> Callable[[Origin], str | None]:
        """What reads the identity of a reading."""
        if self.identity is None:
            return read_identity
        if self.identity == NO_IDENTITY:
            return _no_identity
        return _time_as_identity if self.identity == self.time else _id_as_identity


class CategoryIndex:
    """Text -> its index among the categories; -1 for another text, None where there is none.

    A whole number is looked up as JSON writes it, true and false as `true` or, where the list says so, `True`.
    """

    def __init__(self, categories: tuple[str, ...]) -> None:
        self._places = {text: float(place) for place, text in enumerate(categories)}

    def __call__(self, value: str | int | None) -> float | None:
        """The index of one value."""
        if type(value) is str:
            return self._places.get(value, UNKNOWN)
        if value is None:
            return None
        text = str(value)
        if type(value) is bool and text.lower() in self._places:
            text = text.lower()
        return self._places.get(text, UNKNOWN)


def _no_identity(_origin: Origin) -> None:
    return None


def _time_as_identity(origin: Origin) -> str | None:
    return identity_text(origin.time)


def _id_as_identity(origin: Origin) -> str | None:
    return identity_text(origin.id)


class Rows(msgspec.Struct):
    """What a format has found, before it is judged: one item a reading.

    Attributes:
        frames: the index of the frame that each reading came from.
        origins: its members that are no channels, as they were sent.
        values: its channels in the order of the source. In a list None is missing and NaN is a number that is none;
            in an array, which knows no None, NaN is missing.
    """

    frames: list[int] = msgspec.field(default_factory=list)
    origins: list[Origin] = msgspec.field(default_factory=list)
    values: Any = msgspec.field(default_factory=list)


def judge(
    found: Rows,
    shape: tuple[int, ...],
    counters: Counters,
    members: Members,
    *,
    is_text: bool = False,
) -> Decoded:
    """Numbers that float32 can hold, and origins that can be read: the rest is counted and left out.

    Args:
        found: what a format has found.
        shape: of one reading.
        counters: takes the rejections.
        members: the parts that they play.
        is_text: numbers may be text, as in a row of columns.
    """
    count = len(found.frames)
    values = few_good(found.values) if count <= FEW and len(shape) == 1 else None
    reasons: dict[int, str] = {}
    if values is None:
        with np.errstate(over="ignore"):
            values = _table(found.values).reshape(count, *shape).astype(np.float32)
        reasons = _value_faults(values)
    whys: dict[int, str] = {}
    decoded = Decoded(values, found.frames, [None] * count, [None] * count, [None] * count)
    keyed = members.key is not None
    if keyed or found.origins.count(NO_ORIGIN) != count:
        read_time = members.reader.read_text if is_text else members.reader.read
        identify, read_stream = members.identify, members.read_key
        for index, origin in enumerate(found.origins):
            try:
                decoded.times[index] = read_time(origin.time)
                decoded.identities[index] = identify(origin)
                decoded.keys[index] = read_stream(origin.key) if keyed else None
            except RejectedError as error:
                if index not in reasons:
                    reasons[index], whys[index] = error.reason, error.why
    if not reasons:
        return decoded
    for index, reason in reasons.items():
        why = whys.get(index) or _explain_values(reason, members.channels)
        counters.reject(reason, why, frame=found.frames[index])
    return _without(decoded, reasons.keys())


def few_good(rows: Any) -> Floats | None:
    """The usual case of a device that is not busy: a few readings without a fault. None where there is any doubt."""
    if type(rows) is not list or not rows:
        return None
    for row in rows:
        for value in row:
            if value is None or not -_LARGEST <= value <= _LARGEST:  # NaN is neither
                return None
    return np.array(rows, np.float32)


class OneRow:
    """The usual case of a device that is not busy: one reading, and nothing wrong with it.

    Not `few_good` with one row: packed in the same way, that costs an eighth more instructions for the whole decoding.

    Args:
        width: how many channels.
    """

    def __init__(self, width: int) -> None:
        self._shape = (1, width)
        self._pack = struct.Struct(f"={width}f").pack_into  # without the sign, what is too large becomes infinite

    def take(self, row: Sequence[Any]) -> Floats | None:
        """`[1, width]` float32, or None where there is any doubt: a number is missing, not finite, or too large."""
        try:
            if not math.isfinite(sum(row)):  # one that is not finite makes the sum so
                return None
            values = np.empty(self._shape, _FLOAT32)
            self._pack(values, 0, *row)  # type: ignore[arg-type]  # an array is a buffer, which its stubs do not say
        except (TypeError, OverflowError, struct.error):  # None, or beyond float32
            return None
        return values


def _table(values: Any) -> Any:
    """The channels as float64: NaN where one is missing, and infinite where a sender wrote NaN.

    MessagePack and packed structures can say NaN; to the models further down it would look like a missing channel.
    """
    if isinstance(values, np.ndarray):
        return values
    table = np.array(values, dtype=np.float64)  # None becomes NaN
    if np.isnan(table).any():
        for row, column in np.argwhere(np.isnan(table)).tolist():
            if values[row][column] is not None:
                table[row, column] = math.inf
    return table


def _value_faults(values: Floats) -> dict[int, str]:
    if np.isfinite(values).all():
        return {}
    rows = values.reshape(len(values), -1)
    faults = dict.fromkeys(np.flatnonzero(np.isnan(rows).all(axis=1)).tolist(), "missing_channel")
    faults.update(dict.fromkeys(np.flatnonzero(np.isinf(rows).any(axis=1)).tolist(), "not_finite"))
    return faults


def _explain_values(reason: str, channels: tuple[str, ...]) -> str:
    if reason == "missing_channel":
        return "no " + ", ".join(f"`{name}`" for name in channels)
    return "expected finite numbers that float32 can hold, found one that is not" if reason == "not_finite" else ""


def _without(decoded: Decoded, bad: Iterable[int]) -> Decoded:
    return decoded.chosen(sorted(set(range(len(decoded))).difference(bad)))
