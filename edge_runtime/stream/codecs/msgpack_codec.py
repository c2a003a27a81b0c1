"""MessagePack: maps of channels, as JSON objects are; a time may be a MessagePack timestamp as well."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.object_codec import UNDECODABLE, ObjectDecoder


def msgpack_decoder(members: Members) -> ObjectDecoder:
    """The decoder of a source that speaks MessagePack."""
    return ObjectDecoder(members, _Msgpack())


class _Msgpack:
    def decoder(self, type_: Any) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(type_).decode
        return decode

    def plain(self, frame: bytes) -> tuple[Any, str]:
        try:
            return msgspec.msgpack.decode(frame), ""
        except UNDECODABLE:
            return None, "malformed"

    def all_sound(self, frames: Sequence[bytes]) -> bool:
        del frames  # there are no bytes that could not stand in a binary format
        return True

    def is_sound(self, frame: bytes) -> bool:
        del frame
        return True
