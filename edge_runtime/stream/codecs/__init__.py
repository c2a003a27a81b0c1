"""Frames -> columns: readings in any format become float32 rows in the source's channel order.

All frames of a wake-up are decoded together, without a look at each where all are good; only when one is not is
each taken by itself, and the reason of its rejection named and counted. Guarantee: no frame, however hostile, raises
out of `decode`; a frame (or one reading of an array) is either in the result or counted once. Missing channels are
NaN here; range and repair are judged per model further down.

Reasons: `malformed`, `noise` (bytes that are no text), `wrong_type`, `not_finite`, `missing_channel`, `bad_time`,
`bad_key`.
"""

from collections.abc import Sequence
from typing import Protocol

from edge_runtime.config.tables import MqttSourceTable, SerialSourceTable
from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.columns import Decoded, Members
from edge_runtime.stream.codecs.csv_codec import CsvDecoder, column_mistakes, delimiter_mistakes
from edge_runtime.stream.codecs.frame_codec import CsvFrameDecoder, JsonFrameDecoder, RawFrameDecoder
from edge_runtime.stream.codecs.json_codec import json_decoder
from edge_runtime.stream.codecs.msgpack_codec import msgpack_decoder
from edge_runtime.stream.codecs.raw_codec import RawDecoder, layout_mistakes
from edge_runtime.system.counters import Counters

__all__ = ["FORMATS", "Decoded", "Decoder", "make_decoder", "source_decoder"]

FORMATS = ("json", "csv", "msgpack", "raw")


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
    layout: Sequence[str] = (),
    scale: Sequence[float] = (),
    byte_order: str = "little",
    place: str = "source",
) -> Decoder:
    """The decoder of one source.

    Args:
        format: `json`, `csv`, `msgpack` or `raw`.
        channels: the names, in the order of the columns of the result.
        shape: of a source whose readings are whole frames; then there are no channels.
        fields: CSV and raw: what stands in each column; by default the channels. `_` is a column that is ignored.
        key_field: the member or column that names the stream; None for a source with one stream.
        time_field: the member or column that holds the time.
        delimiter: CSV: what stands between the columns.
        layout: raw: the type of each field, such as `int16`; of a whole frame the one type of its numbers.
        scale: raw: what each field is multiplied by to become a unit; one for all, or none at all.
        byte_order: raw: `little` or `big`.
        place: where the configuration speaks of it, for messages.

    Raises:
        ConfigError: the format is unknown, or the fields do not fit the channels.
    """
    members = Members(tuple(channels), key_field, time_field, place)
    if format == "json":
        return json_decoder(members) if shape is None else JsonFrameDecoder(shape, members)
    if format == "msgpack" and shape is None:
        return msgpack_decoder(members)
    if format == "csv":
        return _csv(members, shape, tuple(fields), delimiter)
    if format == "raw":
        return _raw(members, shape, tuple(fields), layout, scale, big_endian=byte_order == "big")
    if format == "msgpack":
        raise ConfigError(f"{place}.format: expected json, csv or raw for a model of whole frames, found 'msgpack'")
    raise ConfigError(f"{place}.format: expected one of {', '.join(FORMATS)}, found {format!r}")


def source_decoder(
    source: SerialSourceTable | MqttSourceTable, channels: Sequence[str], shape: tuple[int, ...] | None
) -> Decoder:
    """The decoder that a source's table asks for.

    Raises:
        ConfigError: its fields do not fit the channels.
    """
    return make_decoder(
        source.format,
        channels,
        shape=shape,
        fields=source.fields,
        key_field=source.key,
        time_field=source.time,
        delimiter=source.delimiter,
        layout=source.layout,
        scale=source.scale,
        byte_order=source.byte_order,
        place=f'source "{source.name}"',
    )


def _csv(members: Members, shape: tuple[int, ...] | None, fields: tuple[str, ...], delimiter: str) -> Decoder:
    mistakes = list(delimiter_mistakes(delimiter, members.place))
    columns = fields or members.channels
    if shape is None:
        mistakes.extend(column_mistakes(columns, members))
    if mistakes:
        raise ConfigError(mistakes)
    return CsvDecoder(columns, members, delimiter) if shape is None else CsvFrameDecoder(shape, delimiter)


def _raw(
    members: Members,
    shape: tuple[int, ...] | None,
    fields: tuple[str, ...],
    layout: Sequence[str],
    scale: Sequence[float],
    *,
    big_endian: bool,
) -> Decoder:
    columns = (fields or members.channels) if shape is None else ("frame",)
    mistakes = [f"{members.place}.{key}: {text}" for key, text in layout_mistakes(columns, layout, scale)]
    if shape is None:
        mistakes.extend(column_mistakes(columns, members))
    if mistakes:
        raise ConfigError(mistakes)
    if shape is None:
        return RawDecoder(columns, members, layout, scale=scale, big_endian=big_endian)
    return RawFrameDecoder(shape, layout[0], scale=scale[0] if scale else 1.0, big_endian=big_endian)
