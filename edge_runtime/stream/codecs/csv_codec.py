"""CSV: a row of columns, decimal numbers with a point, whatever the locale."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from operator import itemgetter
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edge_runtime.config.convert import nearest, quote
from edge_runtime.config.rules import Finding, rule
from edge_runtime.stream.codecs.columns import Decoded, Members, Rows, judge
from edge_runtime.stream.codecs.frame_codec import CsvFrameDecoder
from edge_runtime.stream.codecs.kind import IGNORED, ColumnsTable, Decoder, column_mistakes, refuse
from edge_runtime.stream.codecs.mapping import Channels
from edge_runtime.stream.codecs.object_codec import UNDECODABLE
from edge_runtime.stream.codecs.rows_of_text import SPACES, number, number_with, row_columns
from edge_runtime.stream.origin import NO_ORIGIN, Origin, RejectedError
from edge_runtime.system.counters import Counters

Delimiter = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=5,
        pattern=r"""^(?:[^\r\n"0-9A-Za-z.+\-]|space)$""",
        extra={
            "expected": 'one character that cannot be part of a number, such as "," or ";" or "\\t", or "space"',
        },
    ),
]

_decode_number: Callable[[str], int | float] = msgspec.json.Decoder(int | float).decode


class CsvDecoder:
    """Decodes a row of columns per frame: decimal numbers with a point, whatever the locale; quotes are removed.

    Args:
        columns: in their order.
        members: their purposes.
        delimiter: between columns.
        decimal: the decimal sign; a recorded file may have a comma.
    """

    def __init__(self, columns: tuple[str, ...], members: Members, delimiter: str, *, decimal: str = ".") -> None:
        self._shape = (len(members.channels),)
        self._members = members
        self._width = len(columns)
        self._delimiter = delimiter
        self._number = number if decimal == "." else partial(number_with, decimal)
        self._may_be_json = decimal == "."
        self._channels = [columns.index(name) for name in members.channels]
        self._origin = [columns.index(name) if name in columns else None for name in members.origin_names()]
        self._categories = members.category_indexes()
        self._has_origin = any(column is not None for column in self._origin)
        # Rows of plain numbers are JSON arrays without brackets, and msgspec reads them four times faster than float().
        # A bracket inside a frame can only add rows, never remove one, so that comparing the number of rows detects it.
        row: Any = tuple.__class_getitem__(tuple(self._column_type(column) for column in range(self._width)))
        self._decode_numbers: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list.__class_getitem__(row)).decode
        self._in_order = self._channels == list(range(self._width))
        self._pick: Callable[[Any], Sequence[Any]] = (
            itemgetter(*self._channels) if len(self._channels) > 1 else self._few
        )

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        found = self._all_numbers(frames) if self._may_be_json and not self._categories else None
        if found is None:
            found = self._one_by_one(frames, counters)
        return judge(found, self._shape, counters, self._members, is_text=True)

    def _few(self, row: Sequence[Any]) -> Sequence[Any]:
        return [row[column] for column in self._channels]  # itemgetter returns no sequence for one column

    def _column_type(self, column: int) -> Any:
        """The type of a number in this column; rows with a `seq`, `id` or key that is not whole are read as text."""
        if column == self._origin[0]:
            return int | float
        return int if column in self._origin else float

    def _all_numbers(self, frames: Sequence[bytes]) -> Rows | None:
        """All rows at once; None if they contain anything but plain numbers."""
        if self._delimiter == SPACES:
            if any(b"," in frame for frame in frames):
                return None
            frames = [b",".join(frame.split()) for frame in frames]
        joined = b"],[".join(frames)
        if self._delimiter not in {",", SPACES}:
            if joined.count(b",") != len(frames) - 1:
                return None  # a decimal comma must not become a separator of columns
            joined = joined.replace(self._delimiter.encode(), b",")
        try:
            rows = self._decode_numbers(b"[[" + joined + b"]]")
        except UNDECODABLE:
            return None
        if len(rows) != len(frames):
            return None
        values = rows if self._in_order else list(map(self._pick, rows))
        if self._has_origin:
            parts = (repeat(None) if column is None else map(itemgetter(column), rows) for column in self._origin)
            origins = list(map(Origin, *parts))
        else:
            origins = [NO_ORIGIN] * len(rows)
        return Rows(list(range(len(rows))), origins, values)

    def _value(self, place: int, text: str) -> float | None:
        """The number of a channel, or the index of its category."""
        index = self._categories.get(place)
        return self._number(text) if index is None else index(text.strip() or None)

    def _one_by_one(self, frames: Sequence[bytes], counters: Counters) -> Rows:
        found = Rows()
        for index, frame in enumerate(frames):
            try:
                columns = row_columns(frame, self._delimiter, self._width)
                values = [self._value(place, columns[column]) for place, column in enumerate(self._channels)]
            except RejectedError as error:
                counters.reject(error.reason, error.why, frame=index)
                continue
            found.frames.append(index)
            found.values.append(values)
            time, *others = (None if column is None else columns[column].strip() for column in self._origin)
            found.origins.append(Origin(number_or_text(time), *others))
        return found


def number_or_text(text: str | None) -> int | float | str | None:
    """A time as `_all_numbers` reads it, so that both ways give a row the same identity."""
    try:
        return _decode_number(text) if text else None
    except UNDECODABLE:
        return text


class CsvTable(ColumnsTable, frozen=True, kw_only=True, tag="csv"):
    """`format = "csv"`: a line of columns.

    Attributes:
        delimiter: The separator of the columns of a CSV line: one character, or `space` for any run of blanks and tabs.
        channels: The field of each channel of the model, and the format of its value. Left out, a channel is the field
            of its own name, and a plain number.
    """

    delimiter: Delimiter = ","
    channels: Channels | None = None

    @property
    def mapped_channels(self) -> tuple[str, ...] | None:
        """The channels with a field; None if each is the field of its own name."""
        return None if self.channels is None else tuple(self.channels)

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of rows, or of whole frames as one row each."""
        mistakes = list(delimiter_mistakes(self.delimiter, members.place))
        if self.channels is not None:
            refuse(mistakes)
            return self._mapped_decoder(members, shape)
        columns = self.fields or members.channels
        if shape is None:
            mistakes.extend(column_mistakes(columns, members))
        refuse(mistakes)
        return CsvDecoder(columns, members, self.delimiter) if shape is None else CsvFrameDecoder(shape, self.delimiter)

    def _mapped_decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        from edge_runtime.stream.codecs.mapped_codec import MappedDecoder, OriginPlaces, channel_places  # noqa: PLC0415 - only where it is used

        if shape is not None:
            refuse([f"{members.place}.channels: expected none for a model of whole frames: take the table out"])
        places = channel_places(members, self.channels, is_text=True)
        origins = OriginPlaces(members, frozenset(str(place.path.steps[0]) for place in places), lenient=True)

        def columns(frame: bytes) -> dict[str, str]:
            return dict(zip(self.fields, row_columns(frame, self.delimiter, len(self.fields)), strict=True))

        return MappedDecoder(members, places, origins, columns, is_text=True)


@rule(CsvTable, keys=("fields", "channels"))
def _channels_are_fields(table: CsvTable) -> Iterable[Finding]:
    if table.channels is not None and not table.channels:
        yield "channels", "expected at least one channel, found an empty table: add one, or take the table out"
    for name, channel in (table.channels or {}).items() if table.fields else ():
        wanted = name if channel.path is None else field_of(channel.path)
        if wanted is not None and wanted not in table.fields:
            near = nearest(wanted, [each for each in table.fields if each != IGNORED])
            hint = f": did you mean {near}?" if near else ""
            yield f"channels.{name}", f"expected one of the fields, found {quote(wanted)}{hint}"


def field_of(path: str) -> str | None:
    """The name of the column at a path; None for an invalid path, which is reported elsewhere."""
    from edge_runtime.stream.codecs.paths import PathError, parse_path  # noqa: PLC0415 - only where there is a path

    try:
        steps = parse_path(path).steps
    except PathError:
        return None
    return str(steps[0]) if len(steps) == 1 else path


@rule(CsvTable, keys=("fields",))
def _columns_are_named(table: CsvTable) -> Iterable[Finding]:
    if not table.fields:
        yield (
            "fields",
            'expected the columns of a line in order, such as ["time", "temperature"], because format = "csv"',
        )


def delimiter_mistakes(delimiter: str, place: str) -> Iterable[str]:
    """Why a character cannot separate columns."""
    if delimiter == SPACES:
        return
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '\r\n+-.eE_[]"0123456789':
        yield f"{place}.delimiter: expected one character that no number holds, such as , or ;, found {delimiter!r}"
