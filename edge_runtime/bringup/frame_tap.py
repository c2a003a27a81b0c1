"""A format that shows each frame to a listener before the real decoder takes it.

It replaces a source's own format, so that every kind of source of frames can be observed without a change. Guarantee:
the source decodes the same readings as without it. Weak point: each frame is decoded twice, so it is for trials only.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import msgspec

from edge_runtime.stream.codecs import CodecTable, Decoded, Decoder, Members
from edge_runtime.stream.sources.kind import FramedSourceTable
from edge_runtime.system.counters import Counters


class FrameRefusal(NamedTuple):
    """The refused readings of a frame: the reason, expectation and finding, and the number."""

    reason: str
    why: str
    number: int


Listener = Callable[[bytes, list[FrameRefusal]], None]


class TappedTable(CodecTable, frozen=True, kw_only=True, tag="tapped"):
    """The keys of another format, with a listener."""

    is_text: ClassVar[bool] = True

    inner: CodecTable
    listener: Listener

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the other format."""
        return self.inner.columns

    @property
    def reads_paths(self) -> bool:
        """As the other format does."""
        return self.inner.reads_paths

    @property
    def mapped_channels(self) -> tuple[str, ...] | None:
        """Those of the other format."""
        return self.inner.mapped_channels

    def decoder(self, members: Members, shape: tuple[int, ...] | None) -> Decoder:
        """The other format's decoder, behind the tap."""
        return _Tap(self.inner.decoder(members, shape), self.inner.decoder(members, shape), self.listener)


class TappedBytesTable(TappedTable, frozen=True, kw_only=True, tag="tapped bytes"):
    """The same for a format whose frames are no text."""

    is_text: ClassVar[bool] = False


class _Tap:
    def __init__(self, real: Decoder, beside: Decoder, listener: Listener) -> None:
        self._real = real
        self._beside = beside
        self._listener = listener

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Show each frame alone, then decode all for the source."""
        for frame in frames:
            alone = Counters()
            self._beside.decode([frame], alone)
            self._listener(
                frame, [FrameRefusal(reason, note.why, alone.rejected[reason]) for reason, note in alone.notes.items()]
            )
        return self._real.decode(frames, counters)


def tapped(source: FramedSourceTable, listener: Listener) -> FramedSourceTable:
    """The same source, whose frames a listener sees."""
    kind = TappedTable if source.codec.is_text else TappedBytesTable
    found: FramedSourceTable = msgspec.structs.replace(source, codec=kind(inner=source.codec, listener=listener))
    return found
