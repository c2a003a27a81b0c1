"""Frames that are one bare number or word, for one topic per value."""

from collections.abc import Iterator
from typing import Any

import msgspec

from edge_runtime.config.rules import Finding, rule
from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.kind import Decoder
from edge_runtime.stream.codecs.mapping import NamedTable, refuse_whole_frames
from edge_runtime.stream.codecs.object_codec import UNDECODABLE
from edge_runtime.stream.codecs.paths import kind_of
from edge_runtime.stream.codecs.plain_text import BYTE_ORDER_MARK, is_text
from edge_runtime.stream.origin import RejectedError


class ValueTable(NamedTable, frozen=True, kw_only=True, tag="value"):
    """`format = "value"`: one bare number or word, for topics with `{channel}` or a model of one channel."""

    @property
    def reads_paths(self) -> bool:
        """False: a frame holds only the value."""
        return False

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of one channel."""
        from edge_runtime.stream.codecs.mapped_codec import MappedDecoder, OriginPlaces, channel_places  # noqa: PLC0415 - only where it is used

        refuse_whole_frames(members, shape, "value")
        if len(members.channels) != 1:
            raise ConfigError(
                f"{members.place}.format: expected topics with {{channel}}, because a frame holds one of the channels "
                f"{', '.join(members.channels)}"
            )
        places = channel_places(members, self.channels, is_text=True, whole=True)
        origins = OriginPlaces(members, frozenset(), lenient=True)
        return MappedDecoder(members, places, origins, _bare, is_text=True)


@rule(ValueTable, keys=("channels",))
def _whole_values(table: ValueTable) -> Iterator[Finding]:
    for name, channel in (table.channels or {}).items():
        if channel.path not in {None, "."}:
            yield f"channels.{name}", f'expected the path ".", found "{channel.path}": a bare value has no members'


def _bare(frame: bytes) -> Any:
    """The value of a frame: the JSON value if it is a quoted text, true, false or null; else the text itself."""
    if not is_text(frame):
        raise RejectedError("noise", "expected text, found bytes that are none")
    text = frame.removeprefix(BYTE_ORDER_MARK).decode().strip()
    if text[:1] not in {"{", "[", '"'} and text not in {"true", "false", "null"}:
        return text or None
    try:
        found = msgspec.json.decode(text)
    except UNDECODABLE:
        raise RejectedError("malformed", f"expected one value, found {text[:60]!r}") from None
    if type(found) in {dict, list}:
        raise RejectedError("malformed", f'expected one value, found {kind_of(found)}: set format = "json"')
    return found
