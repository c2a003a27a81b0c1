"""The list of predictions that can never be sent, for health and the log.

Their rows are in the table `quarantine` of the outbox's file, written by `OutboxFile.set_aside`; without a disk only
this list remains. They are never sent automatically.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from edge_runtime.system.log import fields, get_logger

MOST_SHOWN = 8
SHOWN_CHARACTERS = 200
MOST_LOGGED = 1000

_log = get_logger("outbox")


class Quarantine:
    """The predictions set aside since the start; `count` includes those of earlier starts on the disk."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self.count = 0
        self._wall = wall
        self._logged: set[str] = set()  # streams; bounded, since keys may never come back
        self._last: deque[dict[str, Any]] = deque(maxlen=MOST_SHOWN)

    def note(self, stream: str, topic: str, size: int, why: str) -> None:
        """Add one; the first of each stream is logged, for the first thousand streams."""
        self.count += 1
        shown = {"topic": topic[:SHOWN_CHARACTERS], "bytes": size, "why": why[:SHOWN_CHARACTERS]}
        if stream not in self._logged and len(self._logged) < MOST_LOGGED:
            self._logged.add(stream)
            _log.error("a prediction can never be sent and is set aside", extra=fields(stream=stream[:80], **shown))
        self._last.append({"time": round(self._wall(), 3), **shown})

    @property
    def last(self) -> list[dict[str, Any]]:
        """The latest ones: when, topic, size of the payload, and why."""
        return list(self._last)
