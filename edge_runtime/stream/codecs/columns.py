"""The common result of every format, and the checks common to all: finite numbers and readable origins."""

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

FEW = 4  # up to this many readings, checking each number in Python is cheaper than numpy's calls
Categories = Mapping[str, tuple[str, ...]]  # channel -> its texts, in the order of their indexes
NO_CATEGORIES: Categories = MappingProxyType({})
Units = Mapping[str, str]  # channel -> its unit in the bundle
NO_UNITS: Units = MappingProxyType({})
UNKNOWN = -1.0  # the index of a text that is not a category
_LARGEST = float(np.finfo(np.float32).max)
_FLOAT32 = np.dtype(np.float32)  # the dtype object, which saves numpy a lookup at each call


class Decoded(msgspec.Struct, eq=False):
    """Readings in the order of their frames; every list has one item for each reading.

    Attributes:
        values: `[n, channels]` float32, NaN for a missing channel; `[n, *shape]` of a source of frames.
        rows: the index of the frame that each reading came from.
        keys: the stream; None if the source has no key member.
        times: Unix seconds; None if the reading has no time.
        identities: the reading's own `id`, `seq` or `time`, as text; None if it has none.
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
    """The members of a reading by their purpose. The name of a channel serves no other purpose.

    Attributes:
        channels: in the order of the source.
        key: the member that names the stream.
        time: the member that holds the time.
        place: its key in the configuration, for messages.
        identity: the member that identifies a reading; None for `id`, else `seq`, else `time`.
        reader: of the times.
        categories: the texts of channels that hold text, in the order of their indexes.
        any_key: True for recorded files: keys may be unfit for topics, since nothing is published.
        units: the units of the channels in the bundle.
        many: whether a frame of a format of fixed size may hold many readings one after another.
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
        """For each column that holds text, the function from a text to its index: -1 if it is not a category."""
        return {
            column: CategoryIndex(self.categories[name])
            for column, name in enumerate(self.channels)
            if name in self.categories
        }

    def origin_names(self) -> list[str | None]:
        """The members of `Origin` in its order; None if the source has no such member."""
        taken = {*self.channels, self.key}
        named: tuple[str | None, ...] = ("id", "seq")
        if self.identity is not None:
            named = (None if self.identity in {NO_IDENTITY, self.time} else self.identity, None)
        return [None if name in taken else name for name in (self.time, *named)] + [self.key]

    @property
    def read_key(self) -> Callable[[Any], str]:
        """The function that reads the key of a reading."""
        return read_any_key if self.any_key else read_key

    @property
    def identify(self) -> Callable[[Origin], str | None]:
        """The function that reads the identity of a reading."""
        if self.identity is None:
            return read_identity
        if self.identity == NO_IDENTITY:
            return _no_identity
        return _time_as_identity if self.identity == self.time else _id_as_identity


class CategoryIndex:
    """Text -> its index among the categories; -1 for another text, None for no text.

    A whole number is looked up by its JSON text, true and false as `true` or, if the categories contain it, `True`.
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
    """The values that a format has extracted, before `judge`: one item for each reading.

    Attributes:
        frames: the index of the frame that each reading came from.
        origins: its members that are not channels, as received.
        values: its channels in the order of the source. In a list, None is a missing value and NaN a received NaN; in
            an array, which cannot hold None, NaN is a missing value.
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
    """Keep the readings whose numbers fit float32 and whose origins are readable; count the others and leave them out.

    Args:
        found: the values that a format has extracted.
        shape: of one reading.
        counters: takes the rejections.
        members: the purposes of the members.
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
    """The values of a few readings without a fault, the usual case at low load. None if a full check is needed."""
    if type(rows) is not list or not rows:
        return None
    for row in rows:
        for value in row:
            if value is None or not -_LARGEST <= value <= _LARGEST:  # NaN fails both comparisons
                return None
    return np.array(rows, np.float32)


class OneRow:
    """Converts one reading without a fault, the usual case at low load.

    Used instead of `few_good` with one row, which costs an eighth more instructions for the whole decoding, even with
    the same packing.

    Args:
        width: the number of channels.
    """

    def __init__(self, width: int) -> None:
        self._shape = (1, width)
        self._pack = struct.Struct(f"={width}f").pack_into  # without `=`, numbers that are too large become infinite

    def take(self, row: Sequence[Any]) -> Floats | None:
        """`[1, width]` float32; None if a number is missing, not finite or too large."""
        try:
            if not math.isfinite(sum(row)):  # a number that is not finite makes the sum not finite
                return None
            values = np.empty(self._shape, _FLOAT32)
            self._pack(values, 0, *row)  # type: ignore[arg-type]  # its stubs do not declare that an array is a buffer
        except (TypeError, OverflowError, struct.error):  # None, or beyond float32
            return None
        return values


def _table(values: Any) -> Any:
    """The channels as float64: NaN for a missing one, and infinity for a NaN of the sender.

    MessagePack and packed structures can hold NaN, which the models would otherwise take for a missing channel.
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
