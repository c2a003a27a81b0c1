"""`[source.channels]`: where one channel stands in a frame, and how its value is written. The table and its rules."""

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import Table, Text


class ChannelTable(Table, frozen=True, kw_only=True):
    """`[source.channels]`: one channel of the model by its name; a text alone is its `path`.

    Attributes:
        path: Where the value stands, such as `sensor.values[0]`; `.` is the whole, `$.` starts at the document where
            `rows` is set. A member with a dot or a blank is put in quotes: `sensor."air temp"`. Left out, it is the
            member of the channel's name.
        type: How the value is written: a number, a number as `text` (a unit behind it is allowed), or true and false,
            which become 1 and 0.
        decimal: The decimal sign of a number in a text.
        scale: What the number is multiplied by, before `offset` is added.
        offset: What is added to it.
        unit: The unit of the result. Where the bundle names another one of the same quantity, the value is converted.
        values: A number for each word that the sender uses, such as `{off = 0, on = 1}`.
    """

    short: ClassVar[str] = "path"  # the key that a text alone stands for

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
    """Why a text is no path; nothing where it is one."""
    from edge_runtime.stream.codecs.paths import PathError, parse_path  # noqa: PLC0415 - only where there is a path

    try:
        parse_path(text)
    except PathError as error:
        yield str(error)
