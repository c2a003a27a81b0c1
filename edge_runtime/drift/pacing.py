"""How fast the readings of one stream come, and how far their clock is from ours; judged block by block. Pure.

The rate is `off` only where the median interval and the mean one both say so; the clock only where every reading of a
block does. Both have to say so in `TWICE` blocks, so that a pause or a backlog is none.

Weak point: a link that delays every reading looks like a clock that is slow.
"""

import math
from array import array
from operator import sub
from statistics import median
from typing import NamedTuple

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


class SavedPacing(NamedTuple):
    """What outlives a clean stop of rate and clock."""

    rate: int
    clock: int
    found: float | None
    offset: float | None


class Pacing:
    """The rate and the clock of one stream.

    Args:
        interval: seconds from one reading to the next in training; None where that is not known.
        count: readings that came first.
        arrived: when these came, by a monotonic clock.
        is_live: readings without a time are judged by their arrival, and times compared with our clock.

    Attributes:
        wants_times: the readings' own times are still asked for in this block.
        found: the interval as measured last; None before.
        offset: seconds by which the readings' clock is behind ours; None where there is nothing to compare.
    """

    __slots__ = (
        "_ahead", "_arrival", "_early", "_interval", "_is_live", "_late", "_moments", "clock", "found", "offset",
        "rate", "wants_times",
    )  # fmt: skip

    def __init__(self, interval: float | None, count: int, arrived: float, *, is_live: bool) -> None:
        self._interval = interval
        self._is_live = is_live
        self._moments = array("d")
        self._arrival, self._ahead = arrived, count  # readings that had come by then, of the block that is not judged
        self._late, self._early = math.inf, -math.inf
        self.wants_times = interval is not None
        self.rate, self.clock = Level(), Level()
        self.found: float | None = None
        self.offset: float | None = None

    @property
    def state(self) -> int:
        """The worse of the two."""
        return max(self.rate.state, self.clock.state)

    def measure(self, times: list[float], wall: float | None) -> None:
        """Note the readings' own times, in seconds, and how far they are from our own, `wall`; None: not looked at."""
        if self.wants_times:
            self._moments.extend(times[: CHUNK + 1])
            self.wants_times = len(self._moments) <= CHUNK
        if wall is not None:
            self._late = min(self._late, wall - max(times))
            self._early = max(self._early, wall - min(times))

    def judge(self, block: int, ahead: int, arrived: float) -> None:
        """The verdict on a whole block.

        Args:
            block: readings of it.
            ahead: readings that came with its last one, and belong to the next block.
            arrived: when that came.
        """
        if self._interval is not None:
            self._judge_rate(self._interval, arrived - self._arrival, block + ahead - self._ahead)
        self._arrival, self._ahead = arrived, ahead
        if self._late < math.inf:
            self.offset = self._late if self._late > 0.0 else min(self._early, 0.0)
            self.clock.follow(abs(self.offset) / CLOCK_ALARM_S)
            self._late, self._early = math.inf, -math.inf

    def _judge_rate(self, interval: float, span: float, came: int) -> None:
        estimates = []
        moments = self._moments
        if len(moments) >= _FEWEST:
            spans = sorted(map(sub, moments[1:], moments))
            forward = spans if spans[0] > 0.0 else [span for span in spans if span > 0.0]
            if forward:
                estimates = [median(forward), sum(forward) / len(spans)]
        elif self._is_live and not self._moments and came > 0 and span > 0.0:
            estimates = [span / came]
        del self._moments[:]
        self.wants_times = True
        if estimates:
            self.found = min(estimates, key=lambda each: abs(math.log(each / interval)))
            self.rate.follow(abs(math.log(self.found / interval)) / RATE_ALARM)

    def save(self) -> SavedPacing:
        """What is known, to go on with after a restart."""
        return SavedPacing(self.rate.state, self.clock.state, self.found, self.offset)

    def restore(self, saved: SavedPacing) -> None:
        """Go on with what was known."""
        self.rate.state, self.clock.state, self.found, self.offset = saved
