"""Captures on request: `edge/{device}/capture/{model}` with `{"windows": N}` asks for the next N windows of each key.

A request lasts for `LASTS_S`, so that a key that is silent at first has its windows too, and not over a restart; a
later one takes its place, and 0 ends it. What cannot be read is counted and logged. A broker that refuses the topic
costs nothing else.
"""

from collections.abc import Callable

import msgspec

from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

MOST_WINDOWS = 1_000_000
MOST_BYTES = 1024  # of a request
MOST_KEYS = 100_000  # that one request is followed for
LASTS_S = 86_400.0

_log = get_logger("capture")


class CaptureRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of a request."""

    windows: int


_decode = msgspec.json.Decoder(CaptureRequest).decode


class WantedWindows:
    """How many windows of each key are still wanted.

    Args:
        windows: of each key.
        ends: the loop's time at which it is over.

    Attributes:
        taken: how many there were, of all keys.
    """

    def __init__(self, windows: int, ends: float) -> None:
        self.windows = windows
        self.taken = 0
        self._ends = ends
        self._of_key: dict[str | None, int] = {}

    def take(self, key: str | None, now: float) -> bool:
        """Whether the present window of a key is wanted; it counts as taken."""
        taken = self._of_key.get(key, 0)
        if now >= self._ends or taken >= self.windows or (not taken and len(self._of_key) >= MOST_KEYS):
            return False
        self._of_key[key] = taken + 1
        self.taken += 1
        return True

    def is_over(self, now: float) -> bool:
        """The time is up."""
        return now >= self._ends


class CaptureRequests:
    """Takes requests from the upstream's connection; every method belongs to the loop's thread.

    Args:
        device: the device's id.
        connection: the upstream's.
        ask: called with a model and a number; False where there is no such model.
        counters: takes refusals, as `rejected`.
    """

    def __init__(
        self, device: str, connection: AnyConnection, ask: Callable[[str, int], bool], counters: Counters
    ) -> None:
        self._connection = connection
        self._ask = ask
        self._counters = counters
        self._prefix = f"edge/{device}/capture/".encode()
        connection.subscribe([f"edge/{device}/capture/+"], 1, self._take, optional=True)

    def leave(self) -> None:
        """Take none any more."""
        self._connection.unsubscribe(self._take)

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if not message.topic.startswith(self._prefix):
                continue
            message.claimed = True
            if not message.payload:
                continue  # clears a retained one
            trouble = self._trouble(message)
            if trouble is not None:
                self._counters.rejected["capture_request"] += 1
                topic = message.topic.decode("utf-8", "replace")
                _log.warning("a request for captures is refused", extra=fields(topic=topic, why=trouble))

    def _trouble(self, message: Message) -> str | None:
        """Why a request cannot be followed; None where it is."""
        if message.retained:
            return "expected a message that is not retained, which would ask again at each connection"
        expected = f'expected {{"windows": N}} with N from 0 to {MOST_WINDOWS}'
        if len(message.payload) > MOST_BYTES:
            return f"{expected}, found {len(message.payload)} bytes"
        try:
            windows = _decode(message.payload).windows
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return f"{expected}: {error}"
        if not 0 <= windows <= MOST_WINDOWS:
            return f"{expected}, found {windows}"
        model = message.topic[len(self._prefix) :].decode("utf-8", "replace")
        if not self._ask(model, windows):
            return f"expected the name of a model of this device, found {model!r}"
        return None
