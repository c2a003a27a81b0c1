"""Reports that windows hold as many unacknowledged readings as the broker allows, so that it may send no more.

One timer per source, and only if one of its models has `acknowledge = "window"`. Weak point: a quiet sensor cannot be
distinguished from a broker that waits, so the message names the limit only as a possible cause.
"""

from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

LIMIT_PATIENCE_S = 30.0  # without a message while the limit is reached: the limit may be the cause

_log = get_logger("source")


class LimitWatch:
    """Reports, repeatedly, that no message arrives while the limit of unacknowledged readings is reached.

    Args:
        loop: the event loop; None disables the watch.
        connection: delivers the readings.
        counters: takes the error `window_limit`.
        held_at_most: how many readings may be unacknowledged, and the setting of this limit.
        source: the name of the source.
    """

    def __init__(
        self,
        loop: Loop | None,
        connection: AnyConnection,
        counters: Counters,
        held_at_most: tuple[int, str],
        *,
        source: str,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._counters = counters
        self._most, self._setting = held_at_most
        self._source = source
        self._took_at = 0.0
        self._delivered = 0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Start watching."""
        if self._loop is not None:
            self._timer = self._loop.call_later(LIMIT_PATIENCE_S, self._check)

    def took(self) -> None:
        """Note that messages have arrived."""
        if self._loop is not None:
            self._took_at = self._loop.time()

    def stop(self) -> None:
        """Stop watching, since the source takes no more messages."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        assert self._loop is not None
        owed, quiet = self._connection.owed, self._loop.time() - self._took_at
        before, self._delivered = self._delivered, self._connection.delivered
        is_still = before == self._delivered  # no message for this source or any other on the connection
        if owed >= self._most and is_still and quiet >= LIMIT_PATIENCE_S and self._connection.ready:
            self._counters.errors["window_limit"] += 1
            _log.error(
                f"open windows hold {owed} readings, as many as {self._setting} lets be unacknowledged: where the "
                f"broker sends no more, set {self._setting} to the readings of a window times the keys",
                extra=fields(source=self._source, held=owed, limit=self._most),
            )
        self.start()
