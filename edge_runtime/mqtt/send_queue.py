"""The limits of a broker, and the queue of QoS 1 messages that wait for a place in flight.

Guarantee: at most `MOST_QUEUED` messages of `MOST_QUEUED_BYTES` wait; one more is refused and counted. Of retained
messages on one topic only the newest waits, since the broker keeps only the newest too; the outcome of the older one is
never called.
"""

from collections import deque

import msgspec

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.messages import OnOutcome
from edge_runtime.system.counters import Counters

MOST_QUEUED, MOST_QUEUED_BYTES = 256, 4 << 20  # of the device's own messages, while every place in flight is taken


class Grant(msgspec.Struct, frozen=True):
    """The limits in a broker's CONNACK (MQTT 5 section 3.2.2.3).

    Attributes:
        window: messages of QoS 1 that may be unacknowledged.
        bytes: of the longest packet.
        qos: the highest that it accepts; at 0 nothing is acknowledged, and sent counts as delivered.
        retains: whether it keeps retained messages.
    """

    window: int = 1
    bytes: int = hot_packets.MOST_BYTES
    qos: int = 1
    retains: bool = True


class Queued(msgspec.Struct, eq=False):
    """A message of QoS 1 that waits for a place in flight."""

    topic: str
    payload: bytes
    retain: bool
    extra: bytes
    outcome: OnOutcome | None


class SendQueue:
    """The waiting messages, in order.

    Attributes:
        waiting: the queue itself, to check without a call whether it is empty.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.waiting: deque[Queued] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, message: Queued) -> bool:
        """Queue a message; False if the queue is full."""
        older = self._older(message) if message.retain else None
        whole = self._bytes + len(message.payload) - (0 if older is None else len(older.payload))
        if whole > MOST_QUEUED_BYTES or (older is None and len(self.waiting) >= MOST_QUEUED):
            self._counters.dropped["send_queue_full"] += 1
            return False
        self._bytes = whole
        if older is None:
            self.waiting.append(message)
        else:
            older.payload, older.extra, older.outcome = message.payload, message.extra, message.outcome
        return True

    def _older(self, message: Queued) -> Queued | None:
        """The waiting retained message of the same topic."""
        return next((each for each in self.waiting if each.retain and each.topic == message.topic), None)

    def take(self) -> Queued:
        """Remove the next one, to send it now."""
        message = self.waiting.popleft()
        self._bytes -= len(message.payload)
        return message

    def clear(self) -> None:
        """Drop them all, after the connection was lost."""
        self.waiting.clear()
        self._bytes = 0
