"""Formats whose frames name their values, so that `[source.channels]` is allowed: their keys and their decoder.

The decoder of paths is in `mapped_codec.py`, which is loaded only if a path is configured.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated

from msgspec import Meta

from edge_runtime.config.rules import Finding, rule
from edge_runtime.config.tables import Text
from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.channel_table import ChannelTable, path_fault
from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.kind import CodecTable, Decoder
from edge_runtime.stream.codecs.object_codec import ObjectDecoder, Syntax

Channels = Annotated[Mapping[Text, ChannelTable], Meta(extra={"elsewhere": "only"})]


class NamedTable(CodecTable, frozen=True, kw_only=True, tag="named"):
    """A format whose frames name their values.

    Attributes:
        channels: The place of each channel of the model. Left out, a channel is the member of its own name.
    """

    channels: Channels | None = None

    @property
    def mapped_channels(self) -> tuple[str, ...] | None:
        """The channels with a configured place; None if each is the member of its own name."""
        return None if self.channels is None else tuple(self.channels)


class DocumentTable(NamedTable, frozen=True, kw_only=True, tag="document"):
    """A format of documents with members and arrays.

    Attributes:
        rows: The path of the array whose items are the readings. Other paths start at the item, and `$.` at the
            document.
    """

    rows: Annotated[Text, Meta(extra={"elsewhere": "only"})] | None = None

    @property
    def reads_paths(self) -> bool:
        """True: `key`, `time` and `identity` of the source are paths."""
        return self.channels is not None or self.rows is not None


def refuse_whole_frames(members: Members, shape: tuple[int, ...] | None, name: str) -> None:
    """Refuse a format that cannot carry a whole frame for a model that takes frames of this shape.

    Raises:
        ConfigError: there is a shape; the message names the formats that can.
    """
    if shape is not None:
        raise ConfigError(
            f"{members.place}.format: expected json, csv or raw for a model of whole frames, found '{name}'"
        )


def object_decoder(table: DocumentTable, members: Members, syntax: Syntax) -> Decoder:
    """Make the decoder of objects of channels; only a source with paths gets the slower one.

    Raises:
        ConfigError: the table does not fit the members.
    """
    names = (members.key, members.time, members.identity)
    if not table.reads_paths and not any(name is not None and ("." in name or "[" in name) for name in names):
        return ObjectDecoder(members, syntax)
    from edge_runtime.stream.codecs.mapped_codec import document_decoder  # noqa: PLC0415 - only where there is a path

    return document_decoder(syntax, members, channels=table.channels, rows=table.rows)


@rule(DocumentTable, keys=("rows",))
def _a_path_of_rows(table: DocumentTable) -> Iterator[Finding]:
    if table.rows is not None:
        for fault in path_fault(table.rows):
            yield "rows", fault


@rule(NamedTable, keys=("channels",))
def _some_channels(table: NamedTable) -> Iterator[Finding]:
    if table.channels is not None and not table.channels:
        yield "channels", "expected at least one channel, found an empty table: add one, or take the table out"
