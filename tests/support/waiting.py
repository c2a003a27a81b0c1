"""How tests wait: for a condition, up to a deadline that grows while processes wait for a processor.

A deadline bounds a fault; it is short, since much of the product tries again after 30 or 60 seconds, and what should
happen at once must not pass for that reason. On a machine whose processors are all taken, by other test processes too,
the same work takes several times as long: Linux counts the time in which some process waited for a processor (pressure
stall information), and such time counts a quarter here. Without those counters a deadline is what it says.
"""

import time
from collections.abc import Callable
from pathlib import Path

BUSY_FACTOR = 4.0  # two minutes stay below the limit of a test, ten
PRESSURE = Path("/proc/pressure/cpu")


def stalled_s(path: Path = PRESSURE) -> float:
    """Seconds since the start of the machine in which some process waited for a processor; 0 where none are counted."""
    return _counter("total=", path) / 1e6


class Deadline:
    """Seconds from now, of which those count a quarter in which some process waited for a processor.

    Args:
        seconds: how long, on a machine with a free processor; up to `BUSY_FACTOR` times that on a busy one.
        clock: the monotonic time (s).
        stalled: as `stalled_s`.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        stalled: Callable[[], float] = stalled_s,
    ) -> None:
        self.seconds = seconds
        self._clock, self._stalled = clock, stalled
        self._began, self._stalled_before = clock(), stalled()

    @property
    def left(self) -> float:
        """The seconds that are left, if the processors are free from now on; 0 or less when it is over."""
        passed = self._clock() - self._began
        busy = min(passed, max(0.0, self._stalled() - self._stalled_before))
        return self.seconds - (passed - busy + busy / BUSY_FACTOR)

    @property
    def over(self) -> bool:
        """Whether it has passed."""
        return self.left <= 0.0


def patient(seconds: float, path: Path = PRESSURE) -> float:
    """A limit (s) for a call that blocks: `seconds`, or more on a machine that was busy in the last ten seconds."""
    return seconds * (1.0 + (BUSY_FACTOR - 1.0) * _counter("avg10=", path) / 100.0)


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], deadline: float = 10.0) -> None:
    """Return as soon as `condition()` is true; fail with `what` after `deadline` seconds, see `Deadline`.

    Raises:
        AssertionError: the condition did not come true in time.
    """
    until = Deadline(deadline)
    while not condition():
        if until.over:
            raise AssertionError(f"waited {deadline:g} s in vain for: {what() if callable(what) else what}")
        time.sleep(0.005)  # a poll, not a guess: the deadline above is what bounds the wait


def _counter(name: str, path: Path) -> float:
    """A figure of the first line of the file, which is about some process; 0 without it."""
    try:
        found = path.read_text().split()
    except OSError:  # a kernel without the counters, or one where they are switched off
        return 0.0
    return next((float(word.removeprefix(name)) for word in found if word.startswith(name)), 0.0)
