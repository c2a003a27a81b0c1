"""A format that takes its channels from the first frames, for a source without a model.

Every member of the first wake-up's frames that holds a number becomes a channel, but for time, key and identity.
Guarantee: the channels are fixed then, in the order of their first appearance. A later member with a number is no
channel, and neither is one whose name no column can have: such readings are counted as `unknown_member`, and the first
of each name is logged.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from edge_runtime.stream.codecs import CodecTable, Decoded, Decoder, Members
from edge_runtime.stream.codecs.object_codec import any_document
from edge_runtime.stream.sources.kind import FramedSourceTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

_NEVER_CHANNELS = ("id", "seq")
_UNFIT = re.compile(r'["\\\x00-\x1f]')  # no structure of msgspec has such a member
_MOST_NAMED = 50  # members that are logged

_log = get_logger("record")

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
        self._known: frozenset[str | None] = frozenset()
        self._left_out: set[str] = set()

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Decode nothing before a frame with a number; then use the real decoder."""
        if self._real is None:
            channels = self._channels(frames)
            if not channels:
                for place, frame in enumerate(frames):
                    counters.reject("missing_channel", "no member with a number", frame=place, sample=frame[:200])
                return Decoded(np.empty((0, 0), np.float32), [], [], [], [])
            self._real = self._inner.decoder(msgspec.structs.replace(self._members, channels=channels), None)
            self._known = frozenset(channels) | self._others
            self._found(channels)
        for frame in frames:
            self._count_unknown(frame, counters)
        return self._real.decode(frames, counters)

    @property
    def _others(self) -> frozenset[str | None]:
        """The members that are no channels by their purpose."""
        return frozenset({self._members.time, self._members.key, self._members.identity, *_NEVER_CHANNELS})

    def _channels(self, frames: Sequence[bytes]) -> tuple[str, ...]:
        others = self._others
        found: dict[str, None] = {}
        for frame in frames:
            for each in _objects(frame):
                names = [name for name, value in each.items() if _is_number(value) and name not in others]
                found.update(dict.fromkeys(name for name in names if _UNFIT.search(name) is None))
        return tuple(found)

    def _count_unknown(self, frame: bytes, counters: Counters) -> None:
        """Count the readings of a frame that have a number under another name."""
        for each in _objects(frame):
            unknown = [name for name in each.keys() - self._known if _is_number(each[name])]
            counters.counts["unknown_member"] += bool(unknown)
            for name in unknown:
                if name not in self._left_out and len(self._left_out) < _MOST_NAMED:
                    self._left_out.add(name)
                    why = "its name holds quotes, a backslash or a control character"
                    if _UNFIT.search(name) is None:
                        why = "the first message has no number of that name: name the channels with --channels"
                    _log.warning("a member is left out of the recording", extra=fields(member=name[:60], why=why))


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
