"""What a broker allows, and the messages of QoS 1 that wait for a place in flight because of it.

Guarantee: at most `MOST_QUEUED` messages of `MOST_QUEUED_BYTES` wait; one more is refused and counted. Of a retained
message only the newest waits, since a newer one takes its place with the broker as well.
"""

from collections import deque

import msgspec

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.messages import OnOutcome
from edge_runtime.system.counters import Counters

MOST_QUEUED, MOST_QUEUED_BYTES = 256, 4 << 20  # of the device's own messages, while every place in flight is taken


class Grant(msgspec.Struct, frozen=True):
    """What a broker allows, as its CONNACK tells (MQTT 5 section 3.2.2.3).

    Attributes:
        window: messages of QoS 1 that may be unacknowledged.
        bytes: of the longest packet.
        qos: the highest that it takes; at 0 nothing is acknowledged, and sent counts as delivered.
        retains: it keeps retained messages.
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
    """The messages that wait, in their order.

    Attributes:
        waiting: to look whether there are any, without a call.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.waiting: deque[Queued] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, message: Queued) -> bool:
        """Let a message wait; False when too many do."""
        if message.retain:
            for older in self.waiting:
                if older.retain and older.topic == message.topic:
                    self._bytes += len(message.payload) - len(older.payload)
                    older.payload, older.outcome = message.payload, message.outcome
                    return True
        if len(self.waiting) >= MOST_QUEUED or self._bytes + len(message.payload) > MOST_QUEUED_BYTES:
            self._counters.dropped["send_queue_full"] += 1
            return False
        self.waiting.append(message)
        self._bytes += len(message.payload)
        return True

    def take(self) -> Queued:
        """The next one, which is sent now."""
        message = self.waiting.popleft()
        self._bytes -= len(message.payload)
        return message

    def clear(self) -> None:
        """Forget them: the connection is gone."""
        self.waiting.clear()
        self._bytes = 0
