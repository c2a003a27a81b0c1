"""The rate of a recorded stream, from the times of its readings. Pure.

Guarantee: the sum of the steps between readings divided by their number, so that readings that arrive in bursts count
as one stream. A step back, as of a clock that was set, and a pause are left out. Memory: four numbers a stream. Weak
point: bursts more than a minute and a thousand readings' time apart are taken for pauses.
"""

import math
import statistics
from collections.abc import Iterable

_FEWEST = 2  # steps
_PAUSE_S = 60.0  # a shorter step is no pause
_PAUSE_STEPS = 1000.0  # times the mean step; a longer one is a pause


class StreamRate:
    """The steps of one stream."""

    __slots__ = ("_last", "_steps", "_total")

    def __init__(self) -> None:
        self._last = math.nan
        self._steps = 0
        self._total = 0.0

    def note(self, moment: float) -> None:
        """Note a reading, by its time in seconds."""
        step = moment - self._last
        self._last = moment
        if not step >= 0.0:  # the first reading, or a clock that was set back
            return
        if self._steps >= _FEWEST and step > max(_PAUSE_S, _PAUSE_STEPS * self._total / self._steps):
            return
        self._steps += 1
        self._total += step

    @property
    def hz(self) -> float | None:
        """Readings in a second; None before it is known."""
        return self._steps / self._total if self._steps >= _FEWEST and self._total > 0.0 else None


def median_rate_hz(streams: Iterable[StreamRate]) -> float | None:
    """The median over the streams, to four digits; None before any is known."""
    rates = [rate for each in streams if (rate := each.hz) is not None]
    return float(f"{statistics.median(rates):.4g}") if rates else None
