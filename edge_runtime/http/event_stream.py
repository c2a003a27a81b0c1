"""The events of an open page, as `text/event-stream`: predictions and readings as they come, the rest now and then.

The rest is `facts` (what the models are, at first and when one was exchanged), `health`, and `history` (the latest
verdict of each key, the last hour, and alarms; at first and every `HISTORY_EVERY_S`).

Nothing waits in here: the server asks every `EVENTS_EVERY_S` what there is to send. A page that does not read loses
events, and costs no one else time.
"""

import queue
import time
from collections.abc import Callable
from typing import Any, Self

import msgspec

from edge_runtime.http.live_view import Board, Event

EVENTS_EVERY_S = 0.25
HISTORY_EVERY_S = 30.0
HEALTH_EVERY_S = 2.0  # where nothing else happens; with other events it comes along when it is a new one


class Watching:
    """One page that is open.

    Args:
        board: what the daemon shows.
        facts: what the models are; called now and then.
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
        """Begin to watch; None where enough pages do so already."""
        events = board.watch()
        return None if events is None else cls(board, facts, events)

    def first(self) -> bytes:
        """What a page gets at once: how soon to come again should we go away, and all but the live events."""
        return b"retry: 1000\n\n" + self._now_and_then() + self._health()

    def more(self) -> bytes:
        """What has come since; empty where nothing has."""
        events = []
        while not self._events.empty():
            events.append(_event(*self._events.get()))
        if time.monotonic() - self._told > HEALTH_EVERY_S or (events and self._board.health_json() is not self._shown):
            events.append(self._health())
        if time.monotonic() - self._recalled > HISTORY_EVERY_S:
            events.append(self._now_and_then())
        return b"".join(events)

    def leave(self) -> None:
        """Watch no more."""
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
