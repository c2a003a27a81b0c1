"""MessagePack: maps of channels, as in JSON objects; a time may also be a MessagePack timestamp."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec

from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.kind import Decoder
from edge_runtime.stream.codecs.mapping import DocumentTable, object_decoder, refuse_whole_frames
from edge_runtime.stream.codecs.object_codec import UNDECODABLE


class MsgpackTable(DocumentTable, frozen=True, kw_only=True, tag="msgpack"):
    """`format = "msgpack"`: a map of channels, or an array of such maps."""

    is_text: ClassVar[bool] = False

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of maps.

        Raises:
            ConfigError: the model takes whole frames.
        """
        refuse_whole_frames(members, shape, "msgpack")
        return object_decoder(self, members, _Msgpack())


class _Msgpack:
    def decoder(self, type_: Any) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(type_).decode
        return decode

    def plain(self, frame: bytes) -> tuple[Any, str]:
        try:
            return msgspec.msgpack.decode(frame), ""
        except UNDECODABLE:
            return None, "malformed"

    def explain(self, frame: bytes, reason: str) -> str:
        del reason
        return f"expected a map of channels in MessagePack, found {len(frame)} bytes that are none"

    def all_sound(self, frames: Sequence[bytes]) -> bool:
        del frames  # every byte is valid in a binary format
        return True

    def is_sound(self, frame: bytes) -> bool:
        del frame
        return True
