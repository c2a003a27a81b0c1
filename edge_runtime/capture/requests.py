"""Captures on request: `edge/{device}/capture/{model}` with `{"windows": N}` requests the next N windows of each key.

A request lasts for `LASTS_S`, so that keys without readings at first are captured too. It does not survive a restart;
a later request replaces it, and 0 ends it. An unreadable request is counted and logged. If the broker refuses the
topic, everything else still works.
"""

from collections.abc import Callable

import msgspec

from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

MOST_WINDOWS = 1_000_000
MOST_BYTES = 1024  # of a request
MOST_KEYS = 100_000  # of one request
LASTS_S = 86_400.0

_log = get_logger("capture")


class CaptureRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The payload of a request."""

    windows: int


_decode = msgspec.json.Decoder(CaptureRequest).decode


class WantedWindows:
    """The number of windows of each key that are still wanted.

    Args:
        windows: of each key.
        ends: the loop's time of the end.

    Attributes:
        taken: the number of windows so far, of all keys.
    """

    def __init__(self, windows: int, ends: float) -> None:
        self.windows = windows
        self.taken = 0
        self._ends = ends
        self._of_key: dict[str | None, int] = {}

    def take(self, key: str | None, now: float) -> bool:
        """Whether the current window of a key is wanted; if so it is counted."""
        taken = self._of_key.get(key, 0)
        if now >= self._ends or taken >= self.windows or (not taken and len(self._of_key) >= MOST_KEYS):
            return False
        self._of_key[key] = taken + 1
        self.taken += 1
        return True

    def is_over(self, now: float) -> bool:
        """Whether the end is reached."""
        return now >= self._ends


class CaptureRequests:
    """Takes requests from the upstream connection; every method must be called in the loop's thread.

    Args:
        device: the device's id.
        connection: to the upstream broker.
        ask: called with a model and a number; returns False if there is no such model.
        counters: count refusals, as `rejected`.
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
        """Accept no further requests."""
        self._connection.unsubscribe(self._take)

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            if not message.topic.startswith(self._prefix):
                continue
            message.claimed = True
            if not message.payload:
                continue  # clears a retained request
            trouble = self._trouble(message)
            if trouble is not None:
                self._counters.rejected["capture_request"] += 1
                topic = message.topic.decode("utf-8", "replace")
                _log.warning("a request for captures is refused", extra=fields(topic=topic, why=trouble))

    def _trouble(self, message: Message) -> str | None:
        """The reason to refuse a request; None if it was accepted."""
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
