"""The board: the only object that the event loop and the server's threads share.

The loop posts to it without ever blocking: its health document on request and, while a page is open, each prediction
and the last reading of each wake-up. A slow watcher loses events and never delays the loop.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from edge_runtime.delivery.payloads import Payload
from edge_runtime.http.history import History
from edge_runtime.readings import Batch, Prediction

MOST_WATCHERS = 4  # pages that are open
MOST_EVENTS = 256  # waiting for one watcher
FRESH_S = 1.0  # the least interval between two requests for a health document
PATIENCE_S = 0.5  # for the loop's health document; all requests wait as long

Event = tuple[str, bytes]
_encode = msgspec.json.Encoder().encode


class Board:
    """The daemon calls `post` and `note_readings`; the server calls the rest.

    Args:
        ask: runs a callable in the loop's thread, such as `Loop.call_soon_threadsafe`; None without a loop.
        health: makes the health document, in the loop's thread.

    Attributes:
        history: the last hour; noted by the loop, read by the server.
    """

    def __init__(
        self,
        ask: Callable[[Callable[[], object]], None] | None = None,
        health: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._ask = ask
        self._health = health
        self.history = History()
        self._watchers: tuple[queue.SimpleQueue[Event], ...] = ()
        self._lock = threading.Lock()  # of the server's threads; the loop never takes it
        self._known: dict[str, Any] = {} if ask is not None else health()
        self._known_at = float("-inf")
        self._encoded: tuple[dict[str, Any] | None, bytes] = None, b""
        self._answered = threading.Event()
        self._asked = False

    # The loop's thread.

    @property
    def is_watched(self) -> bool:
        """Whether a page is open."""
        return bool(self._watchers)

    @property
    def watchers(self) -> int:
        """The number of open pages."""
        return len(self._watchers)

    def post(self, kind: str, document: bytes) -> None:
        """Send an event to every open page."""
        for watcher in self._watchers:
            if watcher.qsize() < MOST_EVENTS:
                watcher.put((kind, document))

    def note_readings(self, batch: Batch, channels: tuple[str, ...]) -> None:
        """The last reading of a wake-up, for the lines of the page."""
        if not self._watchers or not channels or not len(batch):
            return
        values = [float(str(value)) if value == value else None for value in batch.values[-1]]  # noqa: PLR0124 - NaN
        document = {"source": batch.source, "key": batch.keys[-1], "values": dict(zip(channels, values, strict=False))}
        self.post("reading", _encode(document))

    # The server's threads.

    def health(self) -> dict[str, Any]:
        """The health document, at most a second old; an older one if the loop does not answer.

        A hanging loop is waited for once, for `PATIENCE_S`; until it has answered, later calls do not wait.
        """
        ask = self._ask
        if ask is None:
            return self._health()
        with self._lock:
            if time.monotonic() - self._known_at > FRESH_S and not self._asked:
                self._answered.clear()
                self._asked = True
                ask(self._answer)
                self._answered.wait(PATIENCE_S)
            return self._known

    def health_json(self) -> bytes:
        """The same as JSON, made once for all pages; the same object as long as the document is."""
        document = self.health()
        known, encoded = self._encoded
        if document is not known:
            encoded = _encode(document)
            self._encoded = document, encoded
        return encoded

    @property
    def age_s(self) -> float:
        """The age of the health document, which grows while the loop hangs."""
        return 0.0 if self._ask is None else time.monotonic() - self._known_at

    def watch(self) -> "queue.SimpleQueue[Event] | None":
        """Begin to watch; return None if there are too many watchers."""
        with self._lock:
            if len(self._watchers) >= MOST_WATCHERS:
                return None
            watcher: queue.SimpleQueue[Event] = queue.SimpleQueue()
            self._watchers = (*self._watchers, watcher)
            return watcher

    def leave(self, watcher: "queue.SimpleQueue[Event]") -> None:
        """Stop watching."""
        with self._lock:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)

    def _answer(self) -> None:
        """In the loop's thread."""
        self._known = self._health()
        self._known_at = time.monotonic()
        self._asked = False
        self._answered.set()


class TappedPayload:
    """A payload that also goes to the board: always to the history, and to open pages.

    Args:
        board: for the page.
        payload: for subscribers.
        model: its name in the device file.
        names: of the numbers of its predictions.
        shown: the payload for the page, if it is another one.
    """

    def __init__(
        self, board: Board, payload: Payload, *, model: str, names: tuple[str, ...], shown: Payload | None = None
    ) -> None:
        self._board = board
        self._payload = payload
        self._model = model
        self._names = names
        self._shown = shown

    def encode(self, prediction: Prediction, *, synchronised: bool = True) -> bytes:
        """The payload, as without a board."""
        payload = self._payload.encode(prediction, synchronised=synchronised)
        board = self._board
        board.history.add(self._model, self._names, prediction)
        if board.is_watched:
            shown = self._shown
            document = payload if shown is None else shown.encode(prediction, synchronised=synchronised)
            board.post("prediction", document)
        return payload


class WatchedAnswers:
    """Passes a model's predictions to the board if its payload convention has no single message."""

    def __init__(self, tapped: TappedPayload) -> None:
        self._tapped = tapped

    def encode_parts(self, prediction: Prediction, *, synchronised: bool = True) -> Iterator[tuple[str, bytes]]:
        """Pass the prediction to the board; there are no parts."""
        self._tapped.encode(prediction, synchronised=synchronised)
        return iter(())
