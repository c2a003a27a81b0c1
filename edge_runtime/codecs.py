"""Frames -> columns: JSON and CSV readings become float32 rows in the source's channel order.

All frames of a wake-up are decoded together, without a look at each where all are good; only when one is not is
each taken by itself, and the reason of its rejection named and counted. Guarantee: no frame, however hostile, raises
out of `decode`; a frame (or one reading of an array) is either in the result or counted once. Missing channels are
NaN here, range and repair are judged per model further down. Weak point: of two equal JSON keys the last one wins.

Reasons: `malformed`, `noise`, `wrong_type`, `not_finite`, `missing_channel`, `bad_time`, `bad_key`.
"""

import csv
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np

from edge_runtime.errors import ConfigError
from edge_runtime.framing import is_text
from edge_runtime.health import Counters
from edge_runtime.origin import NO_ORIGIN, Origin, RejectedError, read_identity, read_key, read_time, read_time_text
from edge_runtime.readings import Floats

FORMATS = ("json", "csv")
IGNORED = "_"  # a CSV column that nobody wants

# What cannot be decoded, whatever the reason: also bytes that are no UTF-8, and nesting deeper than the stack.
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NOT_FINITE = re.compile(rb"(?<=[\s:,\[])-?(?:NaN|Infinity)(?=[\s,\]}])|^-?(?:NaN|Infinity)$")


@dataclass(slots=True, eq=False)
class Decoded:
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


class Decoder(Protocol):
    """One format, made for the channels of one source."""

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; what is none is counted in `counters.rejected`."""


def make_decoder(
    format: str,  # noqa: A002 - the name of the configuration's key
    channels: Sequence[str],
    *,
    shape: tuple[int, ...] | None = None,
    fields: Sequence[str] = (),
    key_field: str | None = None,
    time_field: str = "time",
    delimiter: str = ",",
    place: str = "source",
) -> Decoder:
    """The decoder of one source.

    Args:
        format: `json` or `csv`.
        channels: the names, in the order of the columns of the result.
        shape: of a source whose readings are whole frames; then there are no channels.
        fields: CSV: what stands in each column; by default the channels. `_` is a column that is ignored.
        key_field: the member or column that names the stream; None for a source with one stream.
        time_field: the member or column that holds the time.
        delimiter: CSV: what stands between the columns.
        place: where the configuration speaks of it, for messages.

    Raises:
        ConfigError: the format is unknown, or the fields do not fit the channels.
    """
    members = Members(tuple(channels), key_field, time_field, place)
    if format == "json":
        return JsonDecoder(members) if shape is None else JsonFrameDecoder(shape, members)
    if format != "csv":
        raise ConfigError(f"{place}.format: expected {' or '.join(FORMATS)}, found {format!r}")
    if shape is not None:
        return CsvFrameDecoder(shape, delimiter)
    columns = tuple(fields) or members.channels
    mistakes = list(_column_mistakes(columns, members, delimiter))
    if mistakes:
        raise ConfigError(mistakes)
    return CsvDecoder(columns, members, delimiter)


@dataclass(frozen=True)
class Members:
    """Which member of a reading plays which part. A name that is a channel is nothing else."""

    channels: tuple[str, ...]
    key: str | None = None
    time: str = "time"
    place: str = "source"

    def origin_names(self) -> list[str | None]:
        """The members of `Origin` in its order; None where the source has no such member."""
        taken = {*self.channels, self.key}
        return [None if name in taken else name for name in (self.time, "id", "seq")] + [self.key]


@dataclass(slots=True)
class Rows:
    """What a format has found, before it is judged: one item a reading.

    Attributes:
        frames: the index of the frame that each reading came from.
        origins: its members that are no channels, as they were sent.
        values: its channels in the order of the source; None or NaN is missing.
    """

    frames: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    values: Any = field(default_factory=list)


class JsonDecoder:
    """An object of channels a frame, or an array of such objects."""

    def __init__(self, members: Members) -> None:
        self._shape = (len(members.channels),)
        self._keyed = members.key is not None
        named = {part: name for part, name in zip(Origin._fields, members.origin_names(), strict=True) if name}
        self._origin_width = len(named)
        self._origin = _origin_maker(tuple(named))
        # Struct members need names that are identifiers, and channels are called whatever their maker liked.
        channels = {f"c{i}": name for i, name in enumerate(members.channels)}
        typed: list[Any] = [(part, Any, None) for part in named]
        typed += [(member, float | None, math.nan) for member in channels]
        try:
            reading: Any = msgspec.defstruct("Reading", typed, rename=named | channels, gc=False)
        except ValueError as error:
            names = ", ".join(repr(name) for name in (named | channels).values())
            raise ConfigError(
                f"{members.place}: JSON members: expected names without quotes, backslashes and control characters, "
                f"found {names}"
            ) from error
        self._reading = reading
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(reading | list.__class_getitem__(reading)).decode

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; what is none is counted in `counters.rejected`."""
        try:
            documents = list(map(self._decode, frames))
        except _UNDECODABLE:
            documents = []
        if documents and list not in set(map(type, documents)) and b"".join(frames).isascii():
            indexes, readings = list(range(len(frames))), documents
        else:
            indexes, readings = self._one_by_one(frames, counters)
        rows = list(map(msgspec.structs.astuple, readings))
        width = self._origin_width
        members = [row[:width] for row in rows]
        if members.count((None,) * width) == len(rows):
            origins = [NO_ORIGIN] * len(rows)
        else:
            origins = [self._origin(*parts) for parts in members]
        found = Rows(indexes, origins, [row[width:] for row in rows])
        return judge(found, self._shape, counters, keyed=self._keyed)

    def _one_by_one(self, frames: Sequence[bytes], counters: Counters) -> tuple[list[int], list[Any]]:
        indexes: list[int] = []
        readings: list[Any] = []
        for index, frame in enumerate(frames):
            try:
                document = self._decode(frame)
            except _UNDECODABLE:
                document = self._salvage(frame, counters)
            else:
                if not frame.isascii() and not is_text(frame):
                    counters.rejected["noise"] += 1
                    continue
            items = document if type(document) is list else [document]
            indexes.extend([index] * len(items))
            readings.extend(items)
        return indexes, readings

    def _salvage(self, frame: bytes, counters: Counters) -> list[Any]:
        """The good readings of a frame that holds a bad one, and the count of the bad."""
        document, reason = _plain_json(frame)
        if reason:
            counters.rejected[reason] += 1
            return []
        items = document if type(document) is list else [document]
        good: list[Any] = []
        for item in items:
            try:
                good.append(self._convert(item))
            except RejectedError as error:
                counters.rejected[error.reason] += 1
        return good

    def _convert(self, item: Any) -> Any:
        if type(item) is not dict:
            raise RejectedError("malformed")
        try:
            return msgspec.convert(item, self._reading)
        except OverflowError:
            raise RejectedError("not_finite") from None
        except msgspec.ValidationError:
            raise RejectedError("wrong_type") from None


class CsvDecoder:
    """A row of columns a frame: decimal numbers with a point, whatever the locale; quotes are taken off."""

    def __init__(self, columns: tuple[str, ...], members: Members, delimiter: str) -> None:
        self._shape = (len(members.channels),)
        self._keyed = members.key is not None
        self._width = len(columns)
        self._delimiter = delimiter
        self._channels = [columns.index(name) for name in members.channels]
        self._origin = [columns.index(name) if name in columns else None for name in members.origin_names()]
        self._has_origin = any(column is not None for column in self._origin)
        # Rows of plain numbers are JSON in all but brackets, and msgspec reads them four times faster than float().
        # A bracket inside a frame could only add rows, never take one away, so that the number of rows unmasks it.
        row: Any = tuple.__class_getitem__((float,) * self._width)
        self._decode_numbers: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list.__class_getitem__(row)).decode
        self._in_order = self._channels == list(range(self._width))

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; what is none is counted in `counters.rejected`."""
        found = self._all_numbers(frames)
        if found is None:
            found = self._one_by_one(frames, counters)
        return judge(found, self._shape, counters, keyed=self._keyed, read_time=read_time_text)

    def _all_numbers(self, frames: Sequence[bytes]) -> Rows | None:
        if self._has_origin or not frames:
            return None
        if self._delimiter == ",":
            text = b"[[" + b"],[".join(frames) + b"]]"
        else:
            joined = b"],[".join(frames)
            if joined.count(b",") != len(frames) - 1:
                return None  # a decimal comma must not become a border between columns
            text = b"[[" + joined.replace(self._delimiter.encode(), b",") + b"]]"
        try:
            values = self._decode_numbers(text)
        except _UNDECODABLE:
            return None
        if len(values) != len(frames):
            return None
        if not self._in_order:
            values = [[row[column] for column in self._channels] for row in values]
        return Rows(list(range(len(frames))), [NO_ORIGIN] * len(frames), values)

    def _one_by_one(self, frames: Sequence[bytes], counters: Counters) -> Rows:
        found = Rows()
        for index, frame in enumerate(frames):
            try:
                columns = _columns(frame, self._delimiter, self._width)
                values = [_number(columns[column]) for column in self._channels]
            except RejectedError as error:
                counters.rejected[error.reason] += 1
                continue
            found.frames.append(index)
            found.values.append(values)
            found.origins.append(Origin(*(None if c is None else columns[c].strip() for c in self._origin)))
        return found


class JsonFrameDecoder:
    """A whole frame (an image, a spectrogram) as nested or flat rows: bare, or as the member `frame` of an object."""

    def __init__(self, shape: tuple[int, ...], members: Members) -> None:
        self._shape = shape
        self._members = members

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; what is none is counted in `counters.rejected`."""
        found = Rows()
        for index, frame in enumerate(frames):
            document, reason = _plain_json(frame)
            if reason:
                counters.rejected[reason] += 1
                continue
            try:
                origin, values = self._read(document)
            except RejectedError as error:
                counters.rejected[error.reason] += 1
                continue
            found.frames.append(index)
            found.origins.append(origin)
            found.values.append(values)
        return judge(found, self._shape, counters, keyed=self._members.key is not None)

    def _read(self, document: Any) -> tuple[Origin, list[float]]:
        origin = NO_ORIGIN
        if type(document) is dict:
            names = self._members.origin_names()
            origin = Origin(*(None if name is None else document.get(name) for name in names))
            document = document.get("frame")
            if document is None:
                raise RejectedError("missing_channel")
        if type(document) is not list:
            raise RejectedError("malformed")
        return origin, _flat_numbers(document, math.prod(self._shape))


class CsvFrameDecoder:
    """A whole frame as one row of numbers, row-major."""

    def __init__(self, shape: tuple[int, ...], delimiter: str) -> None:
        self._shape = shape
        self._size = math.prod(shape)
        self._delimiter = delimiter

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; what is none is counted in `counters.rejected`."""
        found = Rows()
        for index, frame in enumerate(frames):
            try:
                values = [_number(column) for column in _columns(frame, self._delimiter, self._size)]
            except RejectedError as error:
                counters.rejected[error.reason] += 1
                continue
            found.frames.append(index)
            found.origins.append(NO_ORIGIN)
            found.values.append(values)
        return judge(found, self._shape, counters, keyed=False)


def _origin_maker(parts: tuple[str, ...]) -> Callable[..., Origin]:
    """What makes an `Origin` of the values of some of its parts."""
    if parts == Origin._fields[: len(parts)]:
        return Origin
    return lambda *values: Origin(**dict(zip(parts, values, strict=True)))


def judge(
    found: Rows,
    shape: tuple[int, ...],
    counters: Counters,
    *,
    keyed: bool,
    read_time: Callable[[Any], float | None] = read_time,
) -> Decoded:
    """Numbers that float32 can hold, and origins that can be read: the rest is counted and left out."""
    count = len(found.frames)
    table = np.array(found.values, dtype=np.float64).reshape(count, *shape)  # None becomes NaN
    with np.errstate(over="ignore"):
        values = table.astype(np.float32)
    decoded = Decoded(values, found.frames, [None] * count, [None] * count, [None] * count)
    reasons = _value_faults(values)
    if keyed or found.origins.count(NO_ORIGIN) != count:
        for index, origin in enumerate(found.origins):
            try:
                decoded.times[index] = read_time(origin.time)
                decoded.identities[index] = read_identity(origin)
                decoded.keys[index] = read_key(origin.key) if keyed else None
            except RejectedError as error:
                reasons.setdefault(index, error.reason)
    if not reasons:
        return decoded
    counters.rejected.update(reasons.values())
    return _without(decoded, reasons.keys())


def _value_faults(values: Floats) -> dict[int, str]:
    if np.isfinite(values).all():
        return {}
    rows = values.reshape(len(values), -1)
    faults = dict.fromkeys(np.flatnonzero(np.isnan(rows).all(axis=1)).tolist(), "missing_channel")
    faults.update(dict.fromkeys(np.flatnonzero(np.isinf(rows).any(axis=1)).tolist(), "not_finite"))
    return faults


def _without(decoded: Decoded, bad: Iterable[int]) -> Decoded:
    keep = sorted(set(range(len(decoded))).difference(bad))
    return Decoded(
        decoded.values[keep],
        [decoded.rows[i] for i in keep],
        [decoded.keys[i] for i in keep],
        [decoded.times[i] for i in keep],
        [decoded.identities[i] for i in keep],
    )


def _plain_json(frame: bytes) -> tuple[Any, str]:
    """The document, or the reason why there is none."""
    if not is_text(frame):
        return None, "noise"
    try:
        return msgspec.json.decode(frame), ""
    except msgspec.ValidationError:  # without a type to check, only a number beyond float64 gets here
        return None, "not_finite"
    except msgspec.DecodeError:
        return None, "not_finite" if _holds_not_finite(frame) else "malformed"
    except RecursionError:
        return None, "malformed"


def _holds_not_finite(frame: bytes) -> bool:
    """Whether nothing but the literals NaN and Infinity, which some senders write, keeps a frame from being JSON."""
    mended, count = _NOT_FINITE.subn(b"0", frame)
    if not count:
        return False
    try:
        msgspec.json.decode(mended)
    except _UNDECODABLE:
        return False
    return True


def _columns(frame: bytes, delimiter: str, width: int) -> list[str]:
    if not is_text(frame):
        raise RejectedError("noise")
    text = frame.decode()
    columns = text.split(delimiter) if '"' not in text else unquoted_columns(text, delimiter)
    if len(columns) != width:
        raise RejectedError("malformed")
    return columns


def unquoted_columns(text: str, delimiter: str) -> list[str]:
    """The columns of a row in which some stand in quotes; a row that does not close its quotes has none."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return []
    return rows[0] if len(rows) == 1 else []


def _number(text: str) -> float | None:
    """The number of one column; None where it is empty."""
    try:
        value = float(text)
    except ValueError:
        if not text.strip():
            return None
        raise RejectedError("wrong_type") from None
    if "_" in text or not text.isascii():  # Python reads 1_0 as ten, and the digits of every script
        raise RejectedError("wrong_type")
    if not math.isfinite(value):
        raise RejectedError("not_finite")
    return value


def _flat_numbers(document: list[Any], size: int) -> list[float]:
    """The numbers of nested lists of equal lengths, row-major."""
    level: list[Any] = document
    while level and all(type(item) is list for item in level):
        if len({len(item) for item in level}) != 1:
            raise RejectedError("malformed")
        level = list(itertools.chain.from_iterable(level))
    if any(type(item) is list for item in level) or len(level) != size:
        raise RejectedError("malformed")
    if any(type(item) is not float and type(item) is not int for item in level):
        raise RejectedError("wrong_type")
    try:
        return list(map(float, level))
    except OverflowError:
        raise RejectedError("not_finite") from None


def _column_mistakes(columns: tuple[str, ...], members: Members, delimiter: str) -> Iterable[str]:
    place = members.place
    named = [column for column in columns if column != IGNORED]
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '\r\n+-.eE_[]"0123456789':
        yield f"{place}.delimiter: expected one character that no number holds, such as , or ;, found {delimiter!r}"
    if len(set(named)) != len(named):
        yield f"{place}.fields: expected different names, found {', '.join(columns)}"
    missing = [channel for channel in members.channels if channel not in named]
    if missing:
        yield f"{place}.fields: expected every channel of the model, found no {', '.join(missing)}: add it to `fields`"
    if members.key is not None and members.key not in named:
        yield f"{place}.key: expected one of the fields ({', '.join(named)}), found {members.key!r}"
