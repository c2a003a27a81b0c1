"""The events of an open page, as `text/event-stream`: predictions and readings at once, the rest at intervals.

The rest is `facts` (of the models, at the start and after an exchange), `health`, and `history` (the latest verdict of
each key, the last hour, and alarms; at the start and every `HISTORY_EVERY_S`).

This code never blocks: the server fetches new events every `EVENTS_EVERY_S`. A page that does not read loses events,
and delays nothing else.
"""

import queue
import time
from collections.abc import Callable
from typing import Any, Self

import msgspec

from edge_runtime.http.live_view import Board, Event

EVENTS_EVERY_S = 0.25
HISTORY_EVERY_S = 30.0
HEALTH_EVERY_S = 2.0  # without other events; together with other events a new health document is sent earlier


class Watching:
    """One page that is open.

    Args:
        board: the documents and events of the daemon.
        facts: returns the facts of the models; called at intervals.
        events: of this page.
    """

    def __init__(self, board: Board, facts: Callable[[], dict[str, Any]], events: "queue.SimpleQueue[Event]") -> None:
        self._board = board
        self._facts = facts
        self._events = events
        self._known = b""
        self._shown = b""
        self._told = 0.0
        self._recalled = 0.0

    @classmethod
    def begin(cls, board: Board, facts: Callable[[], dict[str, Any]] = dict) -> Self | None:
        """Begin to watch; return None if too many pages are open."""
        events = board.watch()
        return None if events is None else cls(board, facts, events)

    def first(self) -> bytes:
        """The first bytes for a page: the delay before a reconnection, and everything except live events."""
        return b"retry: 1000\n\n" + self._now_and_then() + self._health()

    def more(self) -> bytes:
        """The new events; empty without any."""
        events = []
        while not self._events.empty():
            events.append(_event(*self._events.get()))
        if time.monotonic() - self._told > HEALTH_EVERY_S or (events and self._board.health_json() is not self._shown):
            events.append(self._health())
        if time.monotonic() - self._recalled > HISTORY_EVERY_S:
            events.append(self._now_and_then())
        return b"".join(events)

    def leave(self) -> None:
        """Stop watching."""
        self._board.leave(self._events)

    def _now_and_then(self) -> bytes:
        self._recalled = time.monotonic()
        facts = msgspec.json.encode(self._facts())
        is_news, self._known = facts != self._known, facts
        history = _event("history", msgspec.json.encode(self._board.history.document()))
        return (_event("facts", facts) if is_news else b"") + history

    def _health(self) -> bytes:
        self._told = time.monotonic()
        self._shown = self._board.health_json()
        return _event("health", self._shown)


def _event(kind: str, document: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + document.replace(b"\n", b"") + b"\n\n"
