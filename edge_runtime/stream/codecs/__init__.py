"""Frames -> columns: readings in any format become float32 rows in the source's channel order.

All frames of a wake-up are decoded together. Only if one of them is bad is each frame decoded by itself, and each
rejection counted by its reason. Guarantee: no frame, however hostile, makes `decode` raise; a frame (or one reading of
an array) is either in the result or counted once. Missing channels are NaN here; each model checks ranges and repairs
values later (`contract.py`).

Reasons: `malformed`, `noise` (bytes that are not text), `wrong_type`, `wrong_unit`, `not_finite`, `missing_channel`,
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
    """Make a decoder without a device file.

    Args:
        format: the word of a registered format.
        channels: the names, in the order of the columns of the result.
        shape: of a source whose readings are whole frames; then there are no channels.
        key_field: the member or column that names the stream; None for a source with one stream.
        time_field: the member or column that holds the time.
        place: its key in the configuration, for messages.
        identity: the member or column that identifies a reading; None for `id`, else `seq`, else the time.
        reader: of the times; None for Unix seconds and UTC.
        categories: the texts of channels that hold text.
        units: the units of the channels in the bundle.
        keys: of the format's own table, such as `fields` or `delimiter`.

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
