"""Bytes -> frames: the first step after a port, independent of the port.

Guarantee: every frame that arrives whole comes out once, unchanged and in order, however its bytes were split or
merged; memory is bounded by `max_frame_bytes` plus one chunk, whatever arrives; the frame after a bad one is found.
Weak point: the bytes before the first frame end after opening are dropped, even if they were a whole frame, since a
number whose first digits are missing still reads as a number. The codec checks the content of a line.
"""

import binascii
from typing import Literal, Protocol, assert_never

from edge_runtime.system.counters import Counters

LineEnd = Literal["lf", "cr", "any"]
_SAMPLE_BYTES = 200  # of a refused frame, for messages
_MOST_FOREIGN_ENDS = 2  # of the other kind since the last line end: "\\r\\r\\n" has two and is accepted


class Framer(Protocol):
    """The interface of a framing."""

    @property
    def pending_bytes(self) -> int:
        """Bytes held of an unfinished frame."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, in order."""

    def reset(self) -> None:
        """After a reopening: drop the unfinished frame and the bytes before the next frame end."""


def make_framer(
    framing: Literal["lines", "cobs"],
    max_frame_bytes: int,
    counters: Counters,
    *,
    checksum: bool = True,
    line_end: LineEnd = "lf",
) -> Framer:
    """Make the framing of one source; `checksum` is whether a COBS frame ends with a CRC-16."""
    match framing:
        case "lines":
            return LineFramer(max_frame_bytes, counters, line_end=line_end)
        case "cobs":
            return CobsFramer(max_frame_bytes, counters, checksum=checksum)
        case _:
            assert_never(framing)


class _DelimitedFramer:
    """Frames that end with a byte which never occurs inside them. Empty frames are ignored.

    Counts `too_long` (a frame over `max_frame_bytes`, skipped up to its end).
    """

    _end = b"\n"
    _spare = 1  # bytes of a possible frame end that may be held until it is recognised

    def __init__(self, max_frame_bytes: int, counters: Counters) -> None:
        self._most = max_frame_bytes
        self._counters = counters
        self._tail = bytearray()
        self._skipping = True

    @property
    def pending_bytes(self) -> int:
        """Bytes held of an unfinished frame."""
        return len(self._tail)

    def reset(self) -> None:
        """Drop the unfinished frame and the bytes before the next frame end."""
        self._tail.clear()
        self._skipping = True

    def begin(self) -> None:
        """Drop nothing: the stream begins with a frame."""
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, without their ends."""
        if self._end not in chunk:
            self._keep(chunk)
            return []
        frames = self._with_tail(chunk).split(self._end)
        self._tail.clear()
        rest = frames.pop()
        if self._skipping:
            self._skipping = False
            del frames[0]
        self._keep(rest)
        return self._checked(frames)

    def _with_tail(self, chunk: bytes) -> bytes:
        return bytes(self._tail) + chunk if self._tail else chunk

    def _keep(self, rest: bytes) -> None:
        if self._skipping:
            return
        self._tail += rest
        if len(self._tail) > self._most + self._spare:
            self._counters.reject("too_long", self._too_long(), sample=bytes(self._tail[:_SAMPLE_BYTES]))
            self._tail.clear()
            self._skipping = True

    def _too_long(self) -> str:
        return f"expected at most max_frame_bytes = {self._most} bytes up to the end of a frame, found more"

    def _checked(self, frames: list[bytes]) -> list[bytes]:
        if not frames:
            return frames
        lengths = list(map(len, frames))
        if max(lengths) > self._most:
            long = [frame for frame in frames if len(frame) > self._most]
            self._counters.reject("too_long", self._too_long(), sample=long[-1][:_SAMPLE_BYTES], count=len(long))
            frames = [frame for frame in frames if len(frame) <= self._most]
        if 0 in lengths:
            frames = [frame for frame in frames if frame]
        return frames


class LineFramer(_DelimitedFramer):
    """Frames that end with a line feed; a carriage return before it belongs to the line end.

    With `line_end` they end with a carriage return (a line feed after it belongs to it), or with either of the two.
    Lines that end only with the other character are not frames; they are counted as `wrong_line_end` once three of them
    have arrived without a correct line end between them.
    """

    def __init__(self, max_frame_bytes: int, counters: Counters, *, line_end: LineEnd = "lf") -> None:
        super().__init__(max_frame_bytes, counters)
        self._line_end = line_end
        self._end = b"\r" if line_end == "cr" else b"\n"
        self._other = {"lf": b"\r", "cr": b"\n", "any": b""}[line_end]
        self._foreign = 0

    def reset(self) -> None:
        """Drop the unfinished frame and the bytes before the next frame end."""
        super().reset()
        self._foreign = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, without their ends."""
        if self._line_end == "any":
            chunk = chunk.replace(b"\r", b"\n")  # of CR LF the second one ends an empty frame, which is ignored
        elif self._other in chunk:
            self._watch(chunk)
        elif self._foreign and self._end in chunk:
            self._foreign = 0
        return super().feed(chunk)

    def _watch(self, chunk: bytes) -> None:
        """Count line ends of the other kind if there is no correct one among them."""
        behind = chunk.rpartition(self._end)[2]
        before = 0 if len(behind) < len(chunk) else self._foreign
        self._foreign = before + behind.count(self._other)
        if self._foreign > _MOST_FOREIGN_ENDS:
            found = self._foreign - (before if before > _MOST_FOREIGN_ENDS else 0)
            wanted, other = (
                ("line feed", "carriage return") if self._line_end == "lf" else ("carriage return", "line feed")
            )
            word = "cr" if self._line_end == "lf" else "lf"
            self._counters.reject(
                "wrong_line_end",
                f'expected lines that end with a {wanted}, found a {other} alone: set line_end = "{word}" or "any"',
                sample=behind[:_SAMPLE_BYTES],
                count=found,
            )

    def _with_tail(self, chunk: bytes) -> bytes:
        data = super()._with_tail(chunk)
        match self._line_end:
            case "lf":
                return data.replace(b"\r\n", b"\n") if b"\r" in data else data
            case "cr" | "any":
                return data
            case _:
                assert_never(self._line_end)

    def _checked(self, frames: list[bytes]) -> list[bytes]:
        if self._line_end == "cr":
            frames = [frame.removeprefix(b"\n") for frame in frames]  # the rest of a CR LF
        return super()._checked(frames)


class CobsFramer(_DelimitedFramer):
    """Frames in Consistent Overhead Byte Stuffing, which end with a zero byte.

    With `checksum` the last two bytes of a frame are its CRC-16 (CCITT-FALSE: polynomial 0x1021, start 0xFFFF, high
    byte first). Counts `malformed` (no such encoding) and `bad_checksum`. `max_frame_bytes` counts encoded bytes.
    """

    _end = b"\0"
    _spare = 0

    def __init__(self, max_frame_bytes: int, counters: Counters, *, checksum: bool = True) -> None:
        super().__init__(max_frame_bytes, counters)
        self._checksum = checksum

    def _checked(self, frames: list[bytes]) -> list[bytes]:
        decoded = []
        for encoded in super()._checked(frames):
            frame = cobs_decode(encoded)
            if frame is None:
                why = "expected a frame in COBS, found a code that leads out of it: look at framing, baudrate and cable"
                self._counters.reject("malformed", why, sample=encoded[:_SAMPLE_BYTES])
            elif not self._checksum:
                decoded.append(frame)
            elif len(frame) > 2 and binascii.crc_hqx(frame, 0xFFFF) == 0:  # the CRC over data and checksum is zero
                decoded.append(frame[:-2])
            else:
                why = (
                    "expected a CRC-16 over the frame at its end, found another one: look at the cable, and at checksum"
                )
                self._counters.reject("bad_checksum", why, sample=frame[:_SAMPLE_BYTES])
        return decoded


def cobs_decode(encoded: bytes) -> bytes | None:
    """The decoded bytes of a frame without its final zero; None if it is not valid COBS."""
    pieces: list[bytes] = []
    at, size = 0, len(encoded)
    while at < size:
        code = encoded[at]
        end = at + code
        if code == 0 or end > size:
            return None
        pieces.append(encoded[at + 1 : end])
        if code < 0xFF and end < size:
            pieces.append(b"\0")
        at = end
    return b"".join(pieces)


def cobs_encode(data: bytes) -> bytes:
    """Encode any bytes, without the final zero: for tests, demonstrations and senders in Python."""
    pieces: list[bytes] = []
    blocks = data.split(b"\0")
    for last, block in enumerate(blocks, 1 - len(blocks)):
        full, rest = divmod(len(block), 254)
        pieces += [b"\xff" + block[i * 254 : i * 254 + 254] for i in range(full)]
        if rest or not full or last < 0:
            pieces.append(bytes([rest + 1]) + block[full * 254 :])
    return b"".join(pieces)


def crc16(data: bytes) -> bytes:
    """The two bytes of the checksum at the end of a frame."""
    return binascii.crc_hqx(data, 0xFFFF).to_bytes(2, "big")
