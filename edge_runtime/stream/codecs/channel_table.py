"""`[source.channels]`: the place of one channel in a frame, and the format of its value. The table and its rules."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import Table, Text


class ChannelTable(Table, frozen=True, kw_only=True):
    """`[source.channels]`: one channel of the model by its name; a text alone is its `path`.

    Attributes:
        path: The place of the value, such as `sensor.values[0]`; `.` is the whole document. If `rows` is set, a path
            starts at the item, and `$.` starts at the document. A member with a dot or a blank is put in quotes:
            `sensor."air temp"`. Left out, it is the member of the channel's name.
        type: The type of the value: a number, a number as `text` (a unit after it is allowed), or true and false, which
            become 1 and 0.
        decimal: The decimal sign of a number in a text.
        scale: The factor of the number, applied before `offset` is added.
        offset: The number that is added after `scale` is applied.
        unit: The unit of the result. If the bundle names another unit of the same quantity, the value is converted.
        values: A number for each word that the sender uses, such as `{off = 0, on = 1}`.
    """

    short: ClassVar[str] = "path"  # the key that is meant by a text instead of a table

    path: Text | None = None
    type: Literal["number", "text", "boolean"] = "number"
    decimal: Literal[".", ","] = "."
    scale: float = 1.0
    offset: float = 0.0
    unit: Text | None = None
    values: dict[str, float] | None = None


@rule(ChannelTable, keys=("path",))
def _a_path(channel: ChannelTable) -> Iterator[Finding]:
    if channel.path is not None:
        for fault in path_fault(channel.path):
            yield "path", fault


@rule(ChannelTable, keys=("type", "decimal", "scale", "offset", "values"))
def _how_it_is_written(channel: ChannelTable) -> Iterator[Finding]:
    if channel.decimal != "." and channel.type != "text":
        yield "decimal", f'expected it only with type = "text", found it with "{channel.type}": set type = "text"'
    if channel.scale == 0 or not math.isfinite(channel.scale):
        yield "scale", "expected a factor other than 0, found 0: the channel would never change"
    if channel.values is not None:
        if not channel.values:
            yield "values", "expected a number for at least one word, found an empty table"
        if channel.type == "boolean":
            yield "values", 'expected none with type = "boolean", which is 1 and 0: take one of them out'
        if channel.scale != 1.0 or channel.offset != 0.0:
            yield (
                "values",
                "expected no scale or offset beside it, found one: write the numbers as the model wants them",
            )


def path_fault(text: str) -> Iterator[str]:
    """Why a text is not a valid path; empty if it is valid."""
    from edge_runtime.stream.codecs.paths import PathError, parse_path  # noqa: PLC0415 - only where there is a path

    try:
        parse_path(text)
    except PathError as error:
        yield str(error)
