"""A broker of MQTT 3.1.1 with one persistent session, as hostile as the protocol allows, on a socket.

It sends again with DUP what it has no acknowledgement for, loses acknowledgements with a link that it then cuts, sends
packets in pieces, and sends retained messages at every subscription. With `renumbers` what is sent again has a new
packet id. It keeps to the rules otherwise: at most so many unacknowledged messages, in order, none given up.
"""

import contextlib
import random
import struct
import threading
from collections import deque

from tests.support.fake_broker import PUBACK, SUBSCRIBE, Client, FakeBroker, Mode, packet, text

DUP, QOS_1, RETAIN, PUBLISH = 8, 2, 1, 0x30


class SessionBroker(FakeBroker):
    """Serves one client id until `close`.

    Args:
        rng: decides when it is hostile.
        renumbers: it gives what it sends again a new packet id.
        most_in_flight: how many messages it lets be unacknowledged.
        calm: it neither cuts links nor packets by itself.

    Attributes:
        cuts: how many links it has ended.
        out_of_order: acknowledgements of a message that was not the oldest one.
    """

    def __init__(
        self, rng: random.Random, *, renumbers: bool = False, most_in_flight: int = 100, calm: bool = False
    ) -> None:
        self._rng = rng
        self._most_in_flight = most_in_flight
        self.calm = calm
        self._renumbers = renumbers
        self._mutex = threading.RLock()
        self._queue: deque[tuple[bytes, bytes, bool]] = deque()
        self._in_flight: dict[int, tuple[bytes, bytes, bool]] = {}
        self._kept: dict[bytes, bytes] = {}
        self._number = 0
        self._subscribed: Client | None = None
        self._deaf: Client | None = None  # whose acknowledgements are lost
        self.cuts = self.out_of_order = 0
        super().__init__(Mode())

    def publish(self, topic: bytes, payload: bytes, *, retain: bool = False) -> None:
        """From a sensor."""
        with self._mutex:
            self._queue.append((topic, payload, False))
            if retain:
                self._kept[topic] = payload
            self._pump()

    def cut(self) -> None:
        """End the link; what it has not read of it is lost."""
        with self._mutex:
            client, self._subscribed = self._subscribed, None
            if client is not None:
                self.cuts += 1
                self._deaf = client
                client.close()

    def unacknowledged(self) -> list[bytes]:
        """The payloads that it waits for, in their order."""
        with self._mutex:
            return [payload for _, payload, _ in self._in_flight.values()]

    def _take(self, client: Client, first: int, body: bytes) -> None:
        with self._mutex:
            if first & 0xF0 == PUBACK and client is not self._deaf:
                number = struct.unpack(">H", body[:2])[0]
                if number in self._in_flight and number != next(iter(self._in_flight)):
                    self.out_of_order += 1
                self._in_flight.pop(number, None)
        super()._take(client, first, body)
        with self._mutex:
            if first & 0xF0 == SUBSCRIBE:
                self._resume(client)
            elif client is self._subscribed:
                self._pump()

    def _resume(self, client: Client) -> None:
        self._subscribed = client
        again = list(self._in_flight.items())
        if self._renumbers:
            self._in_flight.clear()
        for number, message in again:
            self._send(self._next_number() if self._renumbers else number, message, DUP)
        self._queue.extend((topic, payload, True) for topic, payload in self._kept.items())
        self._pump()

    def _pump(self) -> None:
        while self._queue and self._subscribed is not None and len(self._in_flight) < self._most_in_flight:
            self._send(self._next_number(), self._queue.popleft(), 0)

    def _next_number(self) -> int:
        while True:
            self._number = self._number % 65_535 + 1
            if self._number not in self._in_flight:
                return self._number

    def _send(self, number: int, message: tuple[bytes, bytes, bool], dup: int) -> None:
        self._in_flight[number] = message
        client = self._subscribed
        if client is None:
            return
        topic, payload, retained = message
        first = PUBLISH | QOS_1 | dup | (RETAIN if retained else 0)
        data = packet(first, text(topic) + struct.pack(">H", number) + payload)
        with contextlib.suppress(OSError):
            if not self.calm and self._rng.random() < 0.2:
                at = self._rng.randrange(1, len(data))
                client.send(data[:at])
                if self._rng.random() < 0.1:
                    self.cut()  # in the middle of a packet
                    return
                data = data[at:]
            client.send(data)
        if not self.calm and self._rng.random() < 0.02:
            self.cut()
