"""Measure the parts of a conversion, for the line of times at the end of `build`'s output."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from numpy.typing import NDArray

_SHOWN_S = 0.05
_SAID_EVERY_S = 5.0
_AT_ONCE = 512


class RowProgress:
    """Prints the progress of a long part every few seconds; a short part prints nothing.

    Args:
        say: takes lines.
        what: the name of the part, which begins each line.
        clock: monotonic seconds.
    """

    def __init__(self, say: Callable[[str], None], what: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self._say, self._what, self._clock = say, what, clock
        self._reported_at = clock()

    def pieces(self, rows: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """The rows in pieces, with a line of progress between pieces after some seconds."""
        for start in range(0, len(rows), _AT_ONCE):
            now = self._clock()
            if start and now - self._reported_at >= _SAID_EVERY_S:
                self._reported_at = now
                self._say(f"{self._what}: {start:,} of {len(rows):,} rows")
            yield rows[start : start + _AT_ONCE]
        if not len(rows):
            yield rows


class Stopwatch:
    """Adds up the time of parts; one part runs at a time.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._part, self._began = "", clock()

    def begin(self, part: str) -> None:
        """End the running part and begin another; "" begins none."""
        now = self._clock()
        if self._part:
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._began
        self._part, self._began = part, now

    def in_words(self) -> str:
        """The parts in their order, with their seconds; short ones are left out."""
        self.begin("")
        total = sum(self._seconds.values())
        shown = [f"{part} {seconds:.1f} s" for part, seconds in self._seconds.items() if seconds >= _SHOWN_S]
        return f"took {total:.1f} s: {', '.join(shown)}" if shown else f"took {total:.1f} s"
