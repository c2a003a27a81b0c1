"""The events of an open page, as `text/event-stream`: predictions and readings as they come, health now and then.

Nothing waits in here: the server asks every `EVENTS_EVERY_S` what there is to send. A page that does not read loses
events, and costs no one else time.
"""

import queue
import time
from typing import Self

import msgspec

from edge_runtime.http.live_view import Board, Event

EVENTS_EVERY_S = 0.25
HEALTH_EVERY_S = 2.0  # where nothing else happens; with every event it comes along


class Watching:
    """One page that is open."""

    def __init__(self, board: Board, events: "queue.SimpleQueue[Event]") -> None:
        self._board = board
        self._events = events
        self._told = 0.0

    @classmethod
    def begin(cls, board: Board) -> Self | None:
        """Begin to watch; None where enough pages do so already."""
        events = board.watch()
        return None if events is None else cls(board, events)

    def first(self) -> bytes:
        """What a page gets at once: how soon to come again should we go away, and the health document."""
        return b"retry: 1000\n\n" + self._health()

    def more(self) -> bytes:
        """What has come since; empty where nothing has."""
        events = []
        while not self._events.empty():
            events.append(_event(*self._events.get()))
        if events or time.monotonic() - self._told > HEALTH_EVERY_S:
            events.append(self._health())
        return b"".join(events)

    def leave(self) -> None:
        """Watch no more."""
        self._board.leave(self._events)

    def _health(self) -> bytes:
        self._told = time.monotonic()
        return _event("health", msgspec.json.encode(self._board.health()))


def _event(kind: str, document: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + document.replace(b"\n", b"") + b"\n\n"
