"""JSON objects. Of two equal keys the last one wins.

`plain_json` names what keeps a frame from being JSON.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge_runtime.stream.codecs.columns import Members
from edge_runtime.stream.codecs.object_codec import UNDECODABLE, ObjectDecoder
from edge_runtime.stream.framing import is_text

_NOT_FINITE = re.compile(rb"(?<=[\s:,\[])-?(?:NaN|Infinity)(?=[\s,\]}])|^-?(?:NaN|Infinity)$")


def json_decoder(members: Members) -> ObjectDecoder:
    """The decoder of a source that speaks JSON."""
    return ObjectDecoder(members, _Json())


class _Json:
    def decoder(self, type_: Any) -> Callable[[bytes], Any]:
        decode: Callable[[bytes], Any] = msgspec.json.Decoder(type_).decode
        return decode

    def plain(self, frame: bytes) -> tuple[Any, str]:
        return plain_json(frame)

    def all_sound(self, frames: Sequence[bytes]) -> bool:
        return b"".join(frames).isascii()  # msgspec skips members that nobody wants without looking at their bytes

    def is_sound(self, frame: bytes) -> bool:
        return frame.isascii() or is_text(frame)


def plain_json(frame: bytes) -> tuple[Any, str]:
    """The document, or the reason why there is none."""
    if not is_text(frame):
        return None, "noise"
    try:
        return msgspec.json.decode(frame), ""
    except msgspec.ValidationError:  # without a type to check, only a number beyond float64 gets here
        return None, "not_finite"
    except msgspec.DecodeError:
        return None, "not_finite" if _holds_not_finite(frame) else "malformed"
    except RecursionError:
        return None, "malformed"


def _holds_not_finite(frame: bytes) -> bool:
    """Whether nothing but the literals NaN and Infinity, which some senders write, keeps a frame from being JSON."""
    mended, count = _NOT_FINITE.subn(b"0", frame)
    if not count:
        return False
    try:
        msgspec.json.decode(mended)
    except UNDECODABLE:
        return False
    return True
