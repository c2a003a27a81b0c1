"""Readings -> windows, per key. Pure: no clock of its own, no I/O.

Every key has one ring of exactly `length` readings, written in place: memory is `keys x length x channels x 4 bytes`. A
window is copied out once, time first, oldest reading first, when its last reading arrives. A pause of more than
`max_gap` seconds, or a step of the readings' time back by more than `max_back`, restarts the key's window, unless the
policy is to keep it. Readings without times of their own are judged by their arrival on the caller's monotonic clock,
so that setting the wall clock empties no window.

Weak points: without times of their own, lost readings look the same as a slow sensor; a late reading is placed by its
arrival, not by its time.
"""

import heapq
import math
from collections.abc import Iterator

import msgspec
import numpy as np

from edge_runtime.readings import Carry, Floats

FEW_STREAMS = 16
_SILENT_SHARE = 16  # one scan lists one key in so many, the most silent ones, so that not every new key scans all
_NEVER = -math.inf


class Completed(msgspec.Struct, eq=False):
    """The windows that a batch completed, in the order of their last readings.

    Attributes:
        windows: `[m, *shape]` float32. It is the windower's own buffer: valid until the next `push`.
        rows: for each window, the index in the batch of the reading that completed it.
        carries: for each window, the place where a recurrent model reads and writes the state of its stream.
        anew: the indexes of readings that started a new window: after a gap, or of a new key.
    """

    windows: Floats
    rows: list[int]
    carries: list[Carry]
    anew: list[int] = []


class Stream:
    """One key's ring, and the state of a recurrent model."""

    __slots__ = ("carry", "filled", "is_new", "key", "last_time", "position", "ring", "touched", "until")

    def __init__(self, key: str | None, shape: tuple[int, ...]) -> None:
        self.key = key
        self.ring: Floats = np.zeros(shape, np.float32)
        self.is_new = True
        self.last_time = _NEVER
        self.touched = 0.0
        self.reset(shape[0])

    def reset(self, length: int) -> None:
        """Forget the readings so far; the next window is complete after `length` more."""
        self.position = 0
        self.filled = 0
        self.until = length
        self.carry = Carry()


class SavedStream(msgspec.Struct, array_like=True):
    """A stream saved over a restart; `ring` and `state` are raw float32.

    `ring` is a view: of the stream's own ring until that changes, or of the bytes that it was read from. A copy would
    not fit on a device whose windows take half of its memory.
    """

    key: str | None
    ring: memoryview
    filled: int
    position: int
    until: int
    last_time: float
    state: list[bytes] | None
    held: list[int] = []  # the receipts of the readings in it, if the model acknowledges by windows


class Windows:
    """The windows of one model over one source.

    Args:
        shape: of one window: `(length, channels)`; for a model of whole frames its own shape.
        length: readings in a window; 1 for whole frames and for models that take each reading by itself.
        stride: readings from the start of one window to the start of the next; 1 for whole frames.
        max_gap: seconds; None to watch no gaps.
        max_back: seconds by which a reading's own time may lie before that of an earlier one without a gap.
        keep: True keeps a window over a gap.
        max_keys: the most keys at a time; at the limit the one silent longest is forgotten, counted in `evicted`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        length: int,
        stride: int,
        max_gap: float | None = None,
        max_back: float = 0.0,
        keep: bool = False,
        max_keys: int = 10_000,
    ) -> None:
        self._shape = shape
        self._length = length
        self._stride = stride
        self._is_single = length == 1 and stride == 1  # every reading is a window: nothing to collect
        self._keep = keep
        self._max_gap = None if keep else max_gap
        self._max_back = max_back
        self._max_keys = max_keys
        self._streams: dict[str | None, Stream] = {}
        self._out: Floats = np.empty((8, *shape), np.float32)
        self._silent: list[tuple[float, Stream]] = []  # the most silent at the last scan, the most silent last
        self._evicted: set[str | None] = set()
        self.gaps = 0
        self.evicted = 0

    def __len__(self) -> int:
        """How many keys have a stream at present."""
        return len(self._streams)

    def watch_gaps(self, max_gap: float | None) -> None:
        """Treat a jump of more than `max_gap` seconds as a gap from now on; None for no gaps."""
        self._max_gap = None if self._keep else max_gap

    def interrupt(self) -> None:
        """Restart every non-empty window, because readings may be missing, unless gaps are kept."""
        if self._keep:
            return
        for stream in self._streams.values():
            if stream.filled or stream.carry.parts is not None:
                self.gaps += 1
                stream.reset(1 if self._is_single else self._length)
                stream.is_new = True

    def take_over(self, other: "Windows") -> None:
        """Take over the streams of other windows of the same shape, length and stride, which are not used any more."""
        self._streams = other._streams  # noqa: SLF001 - of our own kind
        self.gaps = other.gaps
        self._silent.clear()
        while len(self._streams) > self._max_keys:
            self._evict()

    def restart(self, key: str | None) -> None:
        """Restart the window of a key."""
        stream = self._streams.get(key)
        if stream is not None:
            stream.reset(self._length)
            stream.is_new = True

    def push(self, values: Floats, keys: list[str | None], times: list[float] | None, now: float) -> Completed:
        """Take a batch of readings, and return the windows that it completed.

        Args:
            values: `[n, channels]`, or `[n, *shape]` for whole frames.
            keys: the stream of each reading.
            times: the readings' own, in seconds; only differences within a key matter. None if they have none.
            now: monotonic seconds: when they arrived.
        """
        if self._is_single:
            return self._push_single(values, keys, times, now)
        done = Completed(self._out, [], [], [])
        total = len(keys)
        start = 0
        while start < total:  # a run of one key is written at once; a batch of a serial port is one run
            key = keys[start]
            stop = start + 1
            while stop < total and keys[stop] == key:
                stop += 1
            stream = self._stream(key, now)
            if stream.is_new:
                stream.is_new = False
                done.anew.append(start)
            for begin, end in self._without_gaps(stream, times, start, stop, now=now):
                self._fill(stream, values, begin, end, done=done)
            start = stop
        done.windows = self._out[: len(done.rows)]
        return done

    @property
    def needed(self) -> int:
        """The least number of readings until one may complete a window, that one included."""
        if self._is_single or len(self._streams) > FEW_STREAMS:
            return 1  # among many keys one is nearly always close
        return min((stream.until for stream in self._streams.values()), default=self._length)

    def expire(self, before: float) -> list[str | None]:
        """Forget the keys that were silent since the monotonic time `before`.

        Returns:
            Every key forgotten since the last call, evicted or silent.
        """
        silent = [key for key, stream in self._streams.items() if stream.touched < before]
        for key in silent:
            del self._streams[key]
        return self.take_evicted() + silent

    def take_evicted(self) -> list[str | None]:
        """Every key evicted since the last call of this or of `expire`."""
        gone = [key for key in self._evicted if key not in self._streams]
        self._evicted.clear()
        return gone

    def open(self) -> Iterator[tuple[str | None, int]]:
        """Every key, and how many readings complete its window."""
        return ((key, stream.until) for key, stream in self._streams.items())

    def holds(self, key: str | None) -> bool:
        """Whether this key has a stream."""
        return key in self._streams

    def save(self) -> list[SavedStream]:
        """The streams that a clean stop saves: the non-empty ones."""
        return [
            SavedStream(
                stream.key,
                stream.ring.data.cast("B") if not self._is_single else memoryview(b""),
                stream.filled,
                stream.position,
                stream.until,
                stream.last_time,
                None if stream.carry.parts is None else [part.tobytes() for part in stream.carry.parts],
            )
            for stream in self._streams.values()
            if stream.filled or stream.carry.parts is not None
        ]

    def restore(self, saved: list[SavedStream], state_shapes: list[tuple[int, ...]], now: float) -> int:
        """Restore saved streams; returns how many fitted this model's shape.

        Args:
            saved: the result of `save`.
            state_shapes: of the model's state.
            now: monotonic seconds, less the age of what was saved.
        """
        self._silent.clear()
        restored = 0
        expected = 4 * math.prod(self._shape) if not self._is_single else 0
        for item in saved[: self._max_keys]:
            if len(item.ring) != expected or not self._is_plausible(item):
                continue
            stream = Stream(item.key, self._ring_shape)
            stream.is_new = False
            if expected:
                stream.ring[:] = np.frombuffer(item.ring, np.float32).reshape(self._shape)
            stream.filled, stream.position, stream.until = item.filled, item.position, item.until
            stream.last_time, stream.touched = item.last_time, now
            sizes = [4 * math.prod(shape) for shape in state_shapes]
            if item.state is not None and [len(part) for part in item.state] == sizes:
                stream.carry.parts = [
                    np.frombuffer(part, np.float32).reshape(shape).copy()
                    for part, shape in zip(item.state, state_shapes, strict=True)
                ]
            self._streams[item.key] = stream
            restored += 1
        return restored

    def _is_plausible(self, item: SavedStream) -> bool:
        """Whether the numbers of a saved stream stay inside the ring and end no window early: a file may be damaged."""
        length = self._length
        is_begun = 0 <= item.filled < length and item.filled + item.until == length
        is_full = item.filled == length and 1 <= item.until <= max(length, self._stride)
        return 0 <= item.position < length and (is_begun or is_full)

    @property
    def _ring_shape(self) -> tuple[int, ...]:
        return (1,) if self._is_single else self._shape

    def _push_single(self, values: Floats, keys: list[str | None], times: list[float] | None, now: float) -> Completed:
        carries = []
        for index, key in enumerate(keys):
            stream = self._stream(key, now)
            if self._max_gap is not None and self._is_gap(stream, None if times is None else times[index], now):
                self.gaps += 1
                stream.reset(1)
            stream.touched = now
            carries.append(stream.carry)
        return Completed(values.reshape(len(keys), *self._shape), list(range(len(keys))), carries)

    def _stream(self, key: str | None, now: float) -> Stream:
        stream = self._streams.get(key)
        if stream is None:
            if len(self._streams) >= self._max_keys:
                self._evict()
            stream = self._streams[key] = Stream(key, self._ring_shape)
            stream.touched = now
        return stream

    def _evict(self) -> None:
        """Drop the key that has been silent longest.

        One scan lists a share of the keys in this order. Listed keys without a reading since are still the next to
        drop, because all other keys have newer readings.
        """
        while True:
            while self._silent:
                touched, stream = self._silent.pop()
                if stream.touched == touched and self._streams.get(stream.key) is stream:
                    del self._streams[stream.key]
                    self.evicted += 1
                    self._evicted.add(stream.key)
                    return
            count = 1 + len(self._streams) // _SILENT_SHARE
            found = heapq.nsmallest(count, self._streams.values(), key=lambda each: each.touched)
            self._silent = [(each.touched, each) for each in reversed(found)]

    def _is_gap(self, stream: Stream, time: float | None, now: float) -> bool:
        """Whether this reading comes after a gap; its time is noted."""
        assert self._max_gap is not None
        last, stream.last_time = stream.last_time, _NEVER if time is None else time
        if time is None or last == _NEVER:  # no two times of its own to compare
            return now - stream.touched > self._max_gap
        if -self._max_back <= time - last < 0.0:
            stream.last_time = last  # late, but no gap: the next one is compared with the newest time
            return False
        return not 0.0 <= time - last <= self._max_gap

    def _without_gaps(
        self, stream: Stream, times: list[float] | None, start: int, stop: int, *, now: float
    ) -> list[tuple[int, int]]:
        """Cut the run `start:stop` where time jumps; the stream is reset at each cut."""
        if self._max_gap is None:
            stream.last_time = _NEVER if times is None else times[stop - 1]
            stream.touched = now
            return [(start, stop)]
        pieces = []
        begin = start
        for index in range(start, stop):
            if self._is_gap(stream, None if times is None else times[index], now):
                self.gaps += 1
                if index > begin:
                    pieces.append((begin, index))
                pieces.append((index, index))  # an empty piece: the window restarts here
                begin = index
            stream.touched = now
        pieces.append((begin, stop))
        return pieces

    def _fill(self, stream: Stream, values: Floats, begin: int, end: int, *, done: Completed) -> None:
        if begin == end:
            stream.reset(self._length)
            done.anew.append(begin)
            return
        length = self._length
        while begin < end:
            count = min(end - begin, stream.until)
            self._write(stream, values, begin, begin + count)
            stream.until -= count
            begin += count
            if stream.until == 0:
                stream.until = self._stride
                self._emit(stream, length, begin - 1, done)

    def _write(self, stream: Stream, values: Floats, begin: int, end: int) -> None:
        length, ring = self._length, stream.ring
        begin = max(begin, end - length)  # readings beyond the ring (stride > length) are not written
        position = stream.position
        first = min(end - begin, length - position)
        ring[position : position + first] = values[begin : begin + first]
        rest = end - begin - first
        if rest:
            ring[:rest] = values[begin + first : end]
        stream.position = (position + end - begin) % length
        stream.filled = min(length, stream.filled + end - begin)

    def _emit(self, stream: Stream, length: int, row: int, done: Completed) -> None:
        index = len(done.rows)
        if index == len(self._out):
            grown = np.empty((2 * index, *self._shape), np.float32)
            grown[:index] = self._out
            self._out = grown
        oldest = stream.position
        out = self._out[index]
        out[: length - oldest] = stream.ring[oldest:]
        if oldest:
            out[length - oldest :] = stream.ring[:oldest]
        done.rows.append(row)
        done.carries.append(stream.carry)
