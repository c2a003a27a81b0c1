"""Frames -> columns: readings in any format become float32 rows in the source's channel order.

All frames of a wake-up are decoded together, without a look at each where all are good; only when one is not is
each taken by itself, and the reason of its rejection named and counted. Guarantee: no frame, however hostile, raises
out of `decode`; a frame (or one reading of an array) is either in the result or counted once. Missing channels are
NaN here; range and repair are judged per model further down.

Reasons: `malformed`, `noise` (bytes that are no text), `wrong_type`, `wrong_unit`, `not_finite`, `missing_channel`,
`bad_time`, `bad_key`.
"""

from collections.abc import Sequence
from typing import Any

from edge_runtime.errors import ConfigError
from edge_runtime.registered import CODECS
from edge_runtime.stream.codecs.columns import NO_CATEGORIES, NO_UNITS, Categories, Decoded, Members, Units
from edge_runtime.stream.codecs.kind import CodecTable, Decoder
from edge_runtime.stream.origin import TimeReader

__all__ = [
    "NO_CATEGORIES",
    "NO_UNITS",
    "Categories",
    "CodecTable",
    "Decoded",
    "Decoder",
    "Members",
    "Units",
    "make_decoder",
]


def make_decoder(
    format: str,  # noqa: A002 - the name of the configuration's key
    channels: Sequence[str],
    *,
    shape: tuple[int, ...] | None = None,
    key_field: str | None = None,
    time_field: str = "time",
    place: str = "source",
    identity: str | None = None,
    reader: TimeReader | None = None,
    categories: Categories = NO_CATEGORIES,
    units: Units = NO_UNITS,
    **keys: Any,
) -> Decoder:
    """A decoder without a device file.

    Args:
        format: the word of a registered format.
        channels: the names, in the order of the columns of the result.
        shape: of a source whose readings are whole frames; then there are no channels.
        key_field: the member or column that names the stream; None for a source with one stream.
        time_field: the member or column that holds the time.
        place: where the configuration speaks of it, for messages.
        identity: the member or column by which a reading is known again; None for `id`, else `seq`, else the time.
        reader: of the times; None for Unix seconds and UTC.
        categories: the texts of channels that hold text.
        units: what the bundle measures the channels in.
        keys: those of the format's own table, such as `fields` or `delimiter`.

    Raises:
        ConfigError: the format is unknown, or the fields do not fit the channels.
    """
    if format not in CODECS:
        raise ConfigError(f"{place}.format: expected one of {', '.join(CODECS)}, found {format!r}")
    codec: CodecTable = CODECS.load(format)(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in keys.items()}
    )
    members = Members(
        tuple(channels), key_field, time_field, place, identity, reader or TimeReader(), categories, units=units
    )
    return codec.decoder(members, shape)
