"""How fast the readings of one stream come, and how far their clock is from ours; judged block by block. Pure.

The rate is `off` only where the median interval and the mean one both say so; the clock only where every reading of a
block does. Both have to say so in `TWICE` blocks, so that a pause or a backlog is none.

Weak point: a link that delays every reading looks like a clock that is slow.
"""

import math
from array import array

import numpy as np

from edge_runtime.stream.rate import TOLERANCE

CHUNK = 32  # moments for one median
TWICE = 2  # blocks that say so, before a state rises or falls
CLOCK_ALARM_S = 60.0  # half of it to watch
RATE_ALARM = 2.0 * math.log(TOLERANCE)  # 1.21 times too fast or too slow; half of it to watch
_RELEASE = 0.7
_FEWEST = 8  # moments for a median


class Level:
    """A state that follows a severity: 0.5 and more to watch, 1 and more for an alarm."""

    __slots__ = ("_other", "state")

    def __init__(self) -> None:
        self.state = 0
        self._other = 0

    def follow(self, severity: float) -> None:
        """The severity of one more block."""
        release = _RELEASE if self.state else 1.0
        level = int(severity >= 0.5 * release) + int(severity >= (_RELEASE if self.state == 2 else 1.0))
        self._other = self._other + 1 if level != self.state else 0
        if self._other >= TWICE:
            self.state, self._other = level, 0


class Pacing:
    """The rate and the clock of one stream.

    Args:
        interval: seconds from one reading to the next in training; None where that is not known.
        by_arrival: readings without a time are judged by their arrival.
        has_clock: the readings' own times can be compared with ours.

    Attributes:
        found: the interval as measured last; None before.
        offset: seconds by which the readings' clock is behind ours; None where there is nothing to compare.
    """

    __slots__ = (
        "_arrival", "_by_arrival", "_count", "_early", "_has_clock", "_interval", "_late", "_moments", "_span",
        "clock", "found", "offset", "rate",
    )  # fmt: skip

    def __init__(self, interval: float | None, *, by_arrival: bool, has_clock: bool) -> None:
        self._interval = interval
        self._by_arrival = by_arrival
        self._has_clock = has_clock
        self._moments = array("d")
        self._arrival = math.nan
        self._span, self._count = 0.0, 0
        self._late, self._early = math.inf, -math.inf
        self.rate, self.clock = Level(), Level()
        self.found: float | None = None
        self.offset: float | None = None

    @property
    def state(self) -> int:
        """The worse of the two."""
        return max(self.rate.state, self.clock.state)

    def arrive(self, count: int, moment: float) -> None:
        """So many readings came together, at a monotonic moment."""
        if moment > self._arrival:
            self._span += moment - self._arrival
            self._count += count
        elif self._count:
            self._count += count
        self._arrival = moment

    def note(self, times: list[float]) -> None:
        """Note the readings' own times, in seconds, of which the first ones of a block are enough."""
        if self._interval is not None and len(self._moments) <= CHUNK:
            self._moments.extend(times[: CHUNK + 1])

    def measure(self, times: list[float], wall: float | None) -> None:
        """The same, and how far they are from our own time, `wall`; None where that is not set."""
        self.note(times)
        if self._has_clock and wall is not None:
            self._late = min(self._late, wall - max(times))
            self._early = max(self._early, wall - min(times))

    def judge(self) -> None:
        """The verdict on a whole block."""
        if self._interval is not None:
            self._judge_rate(self._interval)
        if self._late < math.inf:
            self.offset = self._late if self._late > 0.0 else min(self._early, 0.0)
            self.clock.follow(abs(self.offset) / CLOCK_ALARM_S)
            self._late, self._early = math.inf, -math.inf

    def _judge_rate(self, interval: float) -> None:
        estimates = []
        if len(self._moments) >= _FEWEST:
            spans = np.diff(np.array(self._moments))
            forward = spans[spans > 0.0]
            if len(forward):
                estimates = [float(np.median(forward)), float(forward.sum()) / len(spans)]
        elif self._by_arrival and self._count:
            estimates = [self._span / self._count]
        del self._moments[:]
        self._span, self._count = 0.0, 0
        if estimates:
            self.found = min(estimates, key=lambda each: abs(math.log(each / interval)))
            self.rate.follow(abs(math.log(self.found / interval)) / RATE_ALARM)
