"""The rate of the readings of one stream, and the offset of their clock from ours; judged block by block. Pure.

The rate is `off` only if both the median interval and the mean interval are off, the clock only if every reading of a
block is off. Either must be off in `TWICE` blocks, so that a pause or a backlog raises nothing.

Weak point: a link that delays every reading looks like a slow clock.
"""

import math
from array import array
from operator import sub
from statistics import median
from typing import NamedTuple

from edge_runtime.stream.rate import TOLERANCE

CHUNK = 32  # moments for one median
TWICE = 2  # blocks with the same result, before a state rises or falls
CLOCK_ALARM_S = 60.0  # half of it for `watch`
RATE_ALARM = 2.0 * math.log(TOLERANCE)  # 1.21 times too fast or too slow; half of it for `watch`
_RELEASE = 0.7
_FEWEST = 8  # moments for a median


class Level:
    """A state that follows a severity: `watch` from 0.5, `alarm` from 1."""

    __slots__ = ("_other", "state")

    def __init__(self) -> None:
        self.state = 0
        self._other = 0

    def follow(self, severity: float) -> None:
        """Take the severity of one more block."""
        release = _RELEASE if self.state else 1.0
        level = int(severity >= 0.5 * release) + int(severity >= (_RELEASE if self.state == 2 else 1.0))
        self._other = self._other + 1 if level != self.state else 0
        if self._other >= TWICE:
            self.state, self._other = level, 0


class SavedPacing(NamedTuple):
    """The state of rate and clock that a clean stop saves."""

    rate: int
    clock: int
    found: float | None
    offset: float | None


class Pacing:
    """The rate and the clock of one stream.

    Args:
        interval: seconds from one reading to the next in training; None if unknown.
        count: the number of readings that arrived first.
        arrived: their arrival, by a monotonic clock.
        is_live: readings without a time are judged by their arrival, and times are compared with our clock.

    Attributes:
        wants_times: whether this block still needs the readings' own times.
        found: the last measured interval; None before the first.
        offset: seconds by which the readings' clock is behind ours; None without a comparison.
    """

    __slots__ = (
        "_ahead", "_arrival", "_early", "_interval", "_is_live", "_late", "_moments", "clock", "found", "offset",
        "rate", "wants_times",
    )  # fmt: skip

    def __init__(self, interval: float | None, count: int, arrived: float, *, is_live: bool) -> None:
        self._interval = interval
        self._is_live = is_live
        self._moments = array("d")
        self._arrival, self._ahead = arrived, count  # `count`: readings of the first block so far
        self._late, self._early = math.inf, -math.inf
        self.wants_times = interval is not None
        self.rate, self.clock = Level(), Level()
        self.found: float | None = None
        self.offset: float | None = None

    @property
    def state(self) -> int:
        """The worse of the two states."""
        return max(self.rate.state, self.clock.state)

    def measure(self, times: list[float], wall: float | None) -> None:
        """Note the readings' own times in seconds, and their offset from our time `wall`; None: no comparison."""
        if self.wants_times:
            self._moments.extend(times[: CHUNK + 1 - len(self._moments)])
            self.wants_times = len(self._moments) <= CHUNK
        if wall is not None:
            self._late = min(self._late, wall - max(times))
            self._early = max(self._early, wall - min(times))

    def judge(self, block: int, ahead: int, arrived: float) -> None:
        """Judge a complete block.

        Args:
            block: the number of its readings.
            ahead: the number of readings that arrived with its last one and belong to the next block.
            arrived: the arrival of its last reading.
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
        """The state to continue from after a restart."""
        return SavedPacing(self.rate.state, self.clock.state, self.found, self.offset)

    def restore(self, saved: SavedPacing) -> None:
        """Continue from a saved state."""
        self.rate.state, self.clock.state, self.found, self.offset = saved
