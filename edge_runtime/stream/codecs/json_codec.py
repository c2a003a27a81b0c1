"""JSON objects. Of two equal keys the last one wins."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.kind import Decoder
from edge_runtime.stream.codecs.mapping import DocumentTable, object_decoder
from edge_runtime.stream.codecs.object_codec import explain_json, plain_json
from edge_runtime.stream.codecs.plain_text import is_text


class JsonTable(DocumentTable, frozen=True, kw_only=True, tag="json"):
    """`format = "json"`: an object of channels, or an array of such objects."""

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The decoder of objects, or of whole frames as rows of numbers."""
        if shape is None:
            return object_decoder(self, members, _Json())
        if self.reads_paths:
            key = "channels" if self.channels is not None else "rows"
            raise ConfigError(f"{members.place}.{key}: expected none for a model of whole frames: take it out")
        from edge_runtime.stream.codecs.frame_codec import JsonFrameDecoder  # noqa: PLC0415 - few models take frames

        return JsonFrameDecoder(shape, members)


class _Json:
    def decoder(self, type_: Any) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(type_).decode
        return decode

    def plain(self, frame: bytes) -> tuple[Any, str]:
        return plain_json(frame)

    def explain(self, frame: bytes, reason: str) -> str:
        return explain_json(frame, reason)

    def all_sound(self, frames: Sequence[bytes]) -> bool:
        return b"".join(frames).isascii()  # msgspec skips unwanted members without checking their bytes

    def is_sound(self, frame: bytes) -> bool:
        return frame.isascii() or is_text(frame)
