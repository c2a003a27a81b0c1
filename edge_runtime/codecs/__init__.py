"""Frames -> columns: readings in any format become float32 rows in the source's channel order.

All frames of a wake-up are decoded together, without a look at each where all are good; only when one is not is
each taken by itself, and the reason of its rejection named and counted. Guarantee: no frame, however hostile, raises
out of `decode`; a frame (or one reading of an array) is either in the result or counted once. Missing channels are
NaN here; range and repair are judged per model further down.

Reasons: `malformed`, `noise`, `wrong_type`, `not_finite`, `missing_channel`, `bad_time`, `bad_key`.
"""

from collections.abc import Sequence
from typing import Protocol

from edge_runtime.codecs.columns import Decoded, Members
from edge_runtime.codecs.csv_codec import CsvDecoder, column_mistakes
from edge_runtime.codecs.frame_codec import CsvFrameDecoder, JsonFrameDecoder
from edge_runtime.codecs.json_codec import JsonDecoder
from edge_runtime.errors import ConfigError
from edge_runtime.health import Counters

__all__ = ["FORMATS", "Decoded", "Decoder", "make_decoder"]

FORMATS = ("json", "csv")


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
    mistakes = list(column_mistakes(columns, members, delimiter))
    if mistakes:
        raise ConfigError(mistakes)
    return CsvDecoder(columns, members, delimiter)
