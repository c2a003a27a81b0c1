"""Bytes of a pipe -> frames of a known size, or with their length in front. Pure.

Guarantee: as in `framing.py`, but nothing is dropped at the start, because a pipe begins with a frame. Weak point:
nothing marks the beginning of a frame; after an impossible length the rest of the stream is useless, and its command is
restarted.
"""

from edge_runtime.system.counters import Counters


class FixedFramer:
    """Frames of `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tail = b""

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._tail)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes."""
        data = self._tail + chunk if self._tail else chunk
        whole = len(data) - len(data) % self._size
        self._tail = data[whole:]
        return [data[at : at + self._size] for at in range(0, whole, self._size)]

    def reset(self) -> None:
        """Forget the unfinished frame."""
        self._tail = b""


class LengthFramer:
    """Frames with their length in front: an unsigned integer of `width` bytes, big-endian.

    Attributes:
        is_lost: a length was larger than `most`; the bytes after it cannot be split into frames.
    """

    def __init__(self, width: int, most: int, counters: Counters) -> None:
        self.is_lost = False
        self._width = width
        self._most = most
        self._counters = counters
        self._held = bytearray()

    @property
    def pending_bytes(self) -> int:
        """How much of an unfinished frame is held."""
        return len(self._held)

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that `chunk` completes."""
        if self.is_lost:
            return []
        self._held += chunk
        frames: list[bytes] = []
        at, size = 0, len(self._held)
        while size - at >= self._width:
            length = int.from_bytes(self._held[at : at + self._width], "big")
            if length > self._most:
                why = f"expected a length of at most max_frame_bytes = {self._most}, found {length}"
                self._counters.reject("too_long", why, sample=bytes(self._held[at : at + 64]))
                self.is_lost = True
                self._held.clear()
                return frames
            begin = at + self._width
            if size - begin < length:
                break
            if length:
                frames.append(bytes(self._held[begin : begin + length]))
            at = begin + length
        del self._held[:at]
        return frames

    def reset(self) -> None:
        """Forget the unfinished frame, because a new stream begins."""
        self.is_lost = False
        self._held.clear()
