"""The progress of a run: one line on a terminal, rewritten in place; nothing where the output is no terminal."""

import sys
import time
from collections.abc import Callable
from typing import IO

_WIDTH = 24
_EVERY_S = 0.1


class Bar:
    """A bar with the share that is done, readings, rate and time left.

    Args:
        total: the weight of all parts.
        done: the weight that an earlier run has done.
        stream: shows it, if it is a terminal.
        clock: monotonic seconds.
    """

    def __init__(
        self, total: int, done: int = 0, stream: IO[str] = sys.stderr, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = max(total, 1)
        self._before = done
        self._stream = stream
        self._clock = clock
        self._shown = stream.isatty()
        self._began = clock()
        self._last = -_EVERY_S
        self._length = 0

    def show(self, weight: int, readings: int) -> None:
        """`weight` is done and `readings` are read since the start of this run."""
        now = self._clock()
        if not self._shown or now - self._last < _EVERY_S:
            return
        self._last = now
        line = describe(self._total, self._before, weight, readings, seconds=now - self._began)
        self._stream.write("\r" + line.ljust(self._length))
        self._stream.flush()
        self._length = len(line)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown and self._length:
            self._stream.write("\r" + " " * self._length + "\r")
            self._stream.flush()
            self._length = 0


def describe(total: int, before: int, weight: int, readings: int, *, seconds: float) -> str:
    """The line for `done` of `total`, of which an earlier run did `before`, after so many seconds."""
    share = min(1.0, (before + weight) / total)
    bar = "#" * int(share * _WIDTH)
    rate = readings / seconds if seconds > 0 else 0.0
    left = _clock_text(seconds * (total - before - weight) / weight) if weight > 0 else "-:--"
    return f"[{bar:.<{_WIDTH}}] {share:4.0%}  {readings:,} readings  {rate:,.0f}/s  {left} left"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
