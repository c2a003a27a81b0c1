"""Bytes -> frames: the first step behind a port, with no port in sight.

Guarantee: every line that arrives whole comes out once, unchanged and in order, however its bytes were split or
merged; memory is bounded by `max_frame_bytes` plus one chunk under endless nonsense, and the line after a bad one
is found. Weak point: what stands before the first line end after opening is dropped, whole or not, since a number
whose first digits are missing still reads as a number.
Whether a line is sensible is the codec's question; `is_text` names the difference between noise and a typing error.
"""

from typing import Protocol

from edge_runtime.health import Counters

# Characters that no text frame holds: the C0 controls without tab, line feed and carriage return, and DEL.
_CONTROLS = bytes(set(range(32)) - {9, 10, 13}) + b"\x7f"


class Framer(Protocol):
    """What a source asks of a framing."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes, in order."""

    def reset(self) -> None:
        """Forget everything: the port has been opened anew."""


class LineFramer:
    r"""Frames that end with a line feed; a carriage return before it belongs to the line end.

    Counts `too_long` (a line over `max_frame_bytes`, skipped up to its line end). Blank lines are no frames.
    """

    def __init__(self, max_frame_bytes: int, counters: Counters) -> None:
        self._most = max_frame_bytes
        self._counters = counters
        self._tail = bytearray()
        self._skipping = True

    def reset(self) -> None:
        """Forget the unfinished line, and drop what comes before the next line end."""
        self._tail.clear()
        self._skipping = True

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished line is held."""
        return len(self._tail)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their line ends."""
        if b"\n" not in chunk:
            self._keep(chunk)
            return []
        lines = self._with_tail(chunk).split(b"\n")
        self._tail.clear()
        rest = lines.pop()
        if self._skipping:
            self._skipping = False
            del lines[0]
        self._keep(rest)
        return self._checked(lines)

    def _with_tail(self, chunk: bytes) -> bytes:
        data = bytes(self._tail) + chunk if self._tail else chunk
        return data.replace(b"\r\n", b"\n") if b"\r" in data else data

    def _keep(self, rest: bytes) -> None:
        if self._skipping:
            return
        self._tail += rest
        if len(self._tail) > self._most + 1:  # one more, for the carriage return of a line of just the right length
            self._counters.rejected["too_long"] += 1
            self._tail.clear()
            self._skipping = True

    def _checked(self, lines: list[bytes]) -> list[bytes]:
        if not lines:
            return lines
        lengths = list(map(len, lines))
        if max(lengths) > self._most:
            self._counters.rejected["too_long"] += sum(length > self._most for length in lengths)
            lines = [line for line in lines if len(line) <= self._most]
        if 0 in lengths:
            lines = [line for line in lines if line]
        return lines


def is_text(frame: bytes) -> bool:
    """Whether a frame is text at all: UTF-8 without control characters."""
    if frame.translate(None, _CONTROLS) != frame:
        return False
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True
