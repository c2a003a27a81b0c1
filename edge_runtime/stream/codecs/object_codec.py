"""Objects of named members, or arrays of such objects: the common part of JSON and MessagePack.

The members are decoded directly into a typed structure made for the source's channels; only a frame that does not fit
is decoded a second time, to find the reason. `plain_json` returns the reason why a frame is not JSON.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.columns import Decoded, Members, OneRow, Rows, judge
from edge_runtime.stream.codecs.plain_text import BYTE_ORDER_MARK, is_text
from edge_runtime.stream.origin import NO_ORIGIN, Origin, RejectedError
from edge_runtime.system.counters import Counters

# All errors of decoding, including bytes that are not UTF-8, and nesting deeper than the stack.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NOT_FINITE = re.compile(rb"(?<=[\s:,\[])-?(?:NaN|Infinity)(?=[\s,\]}])|^-?(?:NaN|Infinity)$")


class Syntax(Protocol):
    """The interface of a format of objects."""

    def decoder(self, type_: Any) -> Callable[[bytes], Any]:
        """The function that decodes frames into a type."""

    def plain(self, frame: bytes) -> tuple[Any, str]:
        """The document of a frame, decoded without a type, or the reason why there is none."""

    def explain(self, frame: bytes, reason: str) -> str:
        """The expected and the found content, for a frame without a document."""

    def all_sound(self, frames: Sequence[bytes]) -> bool:
        """Whether all bytes of decoded frames are valid, including those of skipped members."""

    def is_sound(self, frame: bytes) -> bool:
        """The same for one frame, with a full check."""


class ObjectDecoder:
    """Decodes frames that are an object of channels, or an array of such objects."""

    def __init__(self, members: Members, syntax: Syntax) -> None:
        self._shape = (len(members.channels),)
        self._one = OneRow(len(members.channels))
        self._members = members
        self._keyed = members.key is not None
        self._read_time, self._identify = members.reader.read, members.identify
        self._channels = members.channels
        self._categories = members.category_indexes()
        self._syntax = syntax
        named = {part: name for part, name in zip(Origin._fields, members.origin_names(), strict=True) if name}
        self._origin_width = len(named)
        self._no_origin = (None,) * len(named)
        self._origin = _origin_maker(tuple(named))
        # Members of a structure need identifiers as names; names of channels are arbitrary.
        channels = {f"c{i}": name for i, name in enumerate(members.channels)}
        typed: list[Any] = [(part, Any, None) for part in named]
        typed += [
            (member, (str | bool | int | None) if column in self._categories else (float | None), None)
            for column, member in enumerate(channels)
        ]
        try:
            reading: Any = msgspec.defstruct("Reading", typed, rename=named | channels, gc=False)
        except ValueError as error:
            names = ", ".join(repr(name) for name in (named | channels).values())
            raise ConfigError(
                f"{members.place}: expected member names without quotes, backslashes and control characters, "
                f"found {names}"
            ) from error
        self._reading = reading
        self._decode = syntax.decoder(reading | list.__class_getitem__(reading))

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        if len(frames) == 1 and (single := self._plain_reading(frames)) is not None:
            return single
        try:
            documents = list(map(self._decode, frames))
        except UNDECODABLE:
            documents = []
        if documents and list not in set(map(type, documents)) and self._syntax.all_sound(frames):
            indexes, readings = list(range(len(frames))), documents
        else:
            indexes, readings = self._one_by_one(frames, counters)
        rows = list(map(msgspec.structs.astuple, readings))
        width = self._origin_width
        members = [row[:width] for row in rows]
        if members.count(self._no_origin) == len(rows):
            origins = [NO_ORIGIN] * len(rows)
        else:
            origins = [self._origin(*parts) for parts in members]
        values: list[Any] = [self._numbers(row[width:]) for row in rows]
        return judge(Rows(indexes, origins, values), self._shape, counters, self._members)

    def _numbers(self, row: tuple[Any, ...]) -> Sequence[Any]:
        """The channels, with the index of a category instead of its text."""
        if not self._categories:
            return row
        values = list(row)
        for column, index in self._categories.items():
            values[column] = index(values[column])
        return values

    def _plain_reading(self, frames: Sequence[bytes]) -> Decoded | None:
        """The result for a single reading of good numbers, the usual case at low load. None in any other case."""
        try:
            document = self._decode(frames[0])
        except UNDECODABLE:
            return None
        if type(document) is not self._reading or self._keyed or not self._syntax.all_sound(frames):
            return None
        row = msgspec.structs.astuple(document)
        width = self._origin_width
        values = self._one.take(self._numbers(row[width:]))
        if values is None:
            return None
        if row[:width] == self._no_origin:
            return Decoded(values, [0], [None], [None], [None])
        origin = self._origin(*row[:width])
        try:
            return Decoded(values, [0], [None], [self._read_time(origin.time)], [self._identify(origin)])
        except RejectedError:
            return None

    def _one_by_one(self, frames: Sequence[bytes], counters: Counters) -> tuple[list[int], list[Any]]:
        indexes: list[int] = []
        readings: list[Any] = []
        for index, sent in enumerate(frames):
            frame = sent.removeprefix(BYTE_ORDER_MARK)
            try:
                document = self._decode(frame)
            except UNDECODABLE:
                document = self._salvage(frame, index, counters)
            else:
                if not self._syntax.is_sound(frame):
                    counters.reject("noise", "expected text, found bytes that are none", frame=index)
                    continue
                if document == []:
                    counters.reject("malformed", "expected readings, found an empty array", frame=index)
            items = document if type(document) is list else [document]
            indexes.extend([index] * len(items))
            readings.extend(items)
        return indexes, readings

    def _salvage(self, frame: bytes, index: int, counters: Counters) -> list[Any]:
        """Return the good readings of a frame with a bad one, and count the bad ones."""
        document, reason = self._syntax.plain(frame)
        if reason:
            counters.reject(reason, self._syntax.explain(frame, reason), frame=index)
            return []
        items = document if type(document) is list else [document]
        good: list[Any] = []
        for item in items:
            try:
                good.append(self._convert(item))
            except RejectedError as error:
                counters.reject(error.reason, error.why, frame=index)
        return good

    def _convert(self, item: Any) -> Any:
        if type(item) is not dict:
            raise RejectedError("malformed", f"expected an object of channels, found {_kind(item)}")
        try:
            return msgspec.convert(item, self._reading)
        except OverflowError:
            raise RejectedError("not_finite", "expected numbers that float64 can hold, found a larger one") from None
        except msgspec.ValidationError:
            raise RejectedError("wrong_type", self._wrong_type(item)) from None

    def _wrong_type(self, item: dict[str, Any]) -> str:
        for column, name in enumerate(self._channels):
            value = item.get(name)
            if value is None:
                continue
            if column in self._categories:
                if type(value) not in {str, bool, int}:
                    return f"`{name}`: expected a text, found {_kind(value)}"
            elif type(value) not in {int, float}:
                return f"`{name}`: expected a number, found {_kind(value)}"
        return ""


_KINDS = {str: "text", bool: "true or false", list: "an array", dict: "an object", type(None): "null"}


def _kind(value: Any) -> str:
    """The JSON name of a member's type."""
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _origin_maker(parts: tuple[str, ...]) -> Callable[..., Origin]:
    """The function that makes an `Origin` from the values of some of its parts."""
    if parts == Origin._fields[: len(parts)]:
        return Origin
    return lambda *values: Origin(**dict(zip(parts, values, strict=True)))


def explain_json(frame: bytes, reason: str) -> str:
    """Why a frame is not JSON."""
    if reason == "noise":
        return "expected text, found bytes that are none"
    if reason == "not_finite":
        return "expected finite numbers, found NaN, Infinity or a number beyond float64"
    try:
        msgspec.json.decode(frame.removeprefix(BYTE_ORDER_MARK))
    except UNDECODABLE as error:
        return f"expected an object in JSON, found none ({str(error)[:100]})"
    return "expected an object in JSON"


def plain_json(frame: bytes) -> tuple[Any, str]:
    """The document of a frame, or the reason why there is none."""
    if not is_text(frame):
        return None, "noise"
    frame = frame.removeprefix(BYTE_ORDER_MARK)
    try:
        return msgspec.json.decode(frame), ""
    except msgspec.ValidationError:  # without a type, only a number beyond float64 raises this
        return None, "not_finite"
    except msgspec.DecodeError:
        return None, "not_finite" if _holds_not_finite(frame) else "malformed"
    except RecursionError:
        return None, "malformed"


def any_document(frame: bytes) -> Any:
    """The document of a frame in JSON or MessagePack, for messages about it; None if it is neither."""
    document, reason = plain_json(frame)
    if not reason:
        return document
    try:
        return msgspec.msgpack.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _holds_not_finite(frame: bytes) -> bool:
    """Whether a frame is JSON except for the literals NaN and Infinity, which some senders write."""
    repaired, count = _NOT_FINITE.subn(b"0", frame)
    if not count:
        return False
    try:
        msgspec.json.decode(repaired)
    except UNDECODABLE:
        return False
    return True
