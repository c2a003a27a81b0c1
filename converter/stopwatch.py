"""Where the time of a conversion goes: one part after the other, for the line at the end of `build`'s output."""

import time
from collections.abc import Callable

_SHOWN_S = 0.05


class Stopwatch:
    """Adds up the time of parts, of which one is running at a time.

    Args:
        clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._part, self._began = "", clock()

    def begin(self, part: str) -> None:
        """End the part that is running, and begin another; "" begins none."""
        now = self._clock()
        if self._part:
            self._seconds[self._part] = self._seconds.get(self._part, 0.0) + now - self._began
        self._part, self._began = part, now

    def in_words(self) -> str:
        """The parts in their order, with their seconds; the short ones are left out."""
        self.begin("")
        total = sum(self._seconds.values())
        shown = [f"{part} {seconds:.1f} s" for part, seconds in self._seconds.items() if seconds >= _SHOWN_S]
        return f"took {total:.1f} s: {', '.join(shown)}" if shown else f"took {total:.1f} s"
