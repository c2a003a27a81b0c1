"""A format that takes its channels from the first frames, for a source without a model.

Every member of the first wake-up's frames that holds a number becomes a channel, but for time, key and identity.
Guarantee: the channels are fixed then, in the order of their first appearance. Weak point: a later member is no
channel; it is counted as `unknown_member`, and has to be named with `--channels`.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from edge_runtime.stream.codecs import CodecTable, Decoded, Decoder, Members
from edge_runtime.stream.codecs.object_codec import any_document
from edge_runtime.stream.sources.kind import FramedSourceTable
from edge_runtime.system.counters import Counters

_NEVER_CHANNELS = ("id", "seq")

OnFound = Callable[[tuple[str, ...]], None]


class FindingTable(CodecTable, frozen=True, kw_only=True, tag="finding"):
    """The keys of a format that names its values."""

    is_text: ClassVar[bool] = True

    inner: CodecTable
    found: OnFound

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """A decoder that makes the real one when the first frames come."""
        del shape
        return _Finder(self.inner, members, self.found)


class FindingBytesTable(FindingTable, frozen=True, kw_only=True, tag="finding bytes"):
    """The same for a format whose frames are no text."""

    is_text: ClassVar[bool] = False


class _Finder:
    def __init__(self, inner: CodecTable, members: Members, found: OnFound) -> None:
        self._inner = inner
        self._members = members
        self._found = found
        self._real: Decoder | None = None

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Decode nothing before a frame with a number; then use the real decoder."""
        if self._real is None:
            channels = self._channels(frames)
            if not channels:
                for place, frame in enumerate(frames):
                    counters.reject("missing_channel", "no member with a number", frame=place, sample=frame[:200])
                return Decoded(np.empty((0, 0), np.float32), [], [], [], [])
            self._real = self._inner.decoder(msgspec.structs.replace(self._members, channels=channels), None)
            self._found(channels)
        return self._real.decode(frames, counters)

    def _channels(self, frames: Sequence[bytes]) -> tuple[str, ...]:
        members = self._members
        others = {members.time, members.key, members.identity, *_NEVER_CHANNELS}
        found: dict[str, None] = {}
        for frame in frames:
            for each in _objects(frame):
                names = [name for name, value in each.items() if _is_number(value) and name not in others]
                found.update(dict.fromkeys(names))
        return tuple(found)


def _objects(frame: bytes) -> list[dict[str, Any]]:
    document = any_document(frame)
    items = document if isinstance(document, list) else [document]
    return [each for each in items if isinstance(each, dict)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finding(source: FramedSourceTable, found: OnFound) -> FramedSourceTable:
    """The same source, whose channels are found."""
    kind = FindingTable if source.codec.is_text else FindingBytesTable
    made: FramedSourceTable = msgspec.structs.replace(source, codec=kind(inner=source.codec, found=found))
    return made
