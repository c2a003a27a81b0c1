"""The load generator: sends readings over MQTT at QoS 1, paced or saturated, and times the predictions.

It runs in the benchmark's own process on the broker's core. Every packet is encoded before the clock starts.
Predictions are matched to readings by their order, which is exact as long as none is lost; a loss is counted and
shown, never averaged away.
"""

import random
import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import wire
from benchmarks.names import CHANNELS
from benchmarks.process import Process

STALL_SECONDS = 5.0  # without any answer for so long, a target is taken for stuck
PROBE_SECONDS = 0.01
QUIET_SECONDS = 0.3
RECEIVE_BYTES = 262144
MOST_ARRAY_ROWS = 200_000  # of all packets together
LEAST_PACKETS = 2000  # packet ids in turn, more than are ever under way


def reading(generator: random.Random) -> bytes:
    """One reading of six axes as compact JSON, about 110 bytes."""
    return ("{" + ",".join(f'"{name}":{generator.gauss(0.0, 1.0):.4f}' for name in CHANNELS) + "}").encode()


@dataclass
class Answers:
    """What came back in one measured stretch.

    Attributes:
        sent: readings that were sent.
        answered: predictions that arrived for them.
        seconds: how long it took.
        latencies_s: from just before the reading was sent until its prediction was read, one a prediction.
    """

    sent: int = 0
    answered: int = 0
    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


class Load:
    """Sends readings to `topics` in turn and hears `answers_topic`, of another broker where `answers_port` says so.

    `heard_bytes` counts the predictions' packets, headers included.
    """

    def __init__(
        self, port: int, topics: Sequence[str], answers_topic: str, *, answers_port: int | None = None, seed: int = 11
    ) -> None:
        generator = random.Random(seed)
        count = -(-LEAST_PACKETS // len(topics)) * len(topics)
        self._packets = [
            wire.publish(topics[i % len(topics)], reading(generator), packet_id=i + 1) for i in range(count)
        ]
        self._topic = topics[0]
        self._probe = wire.publish(topics[0], reading(generator), packet_id=None)
        self._next = 0
        # Two connections: on a single one the broker's acknowledgements and the predictions would wait for each other.
        self._sender = _connect(port, wire.connect("bench-sensor"))
        self._hearer = _connect(
            answers_port or port, wire.connect("bench-subscriber") + wire.subscribe(answers_topic, qos=0)
        )
        self._tails = {self._sender: b"", self._hearer: b""}
        self.heard_bytes = 0

    def of_arrays(self, rows: int, seed: int = 5) -> "Load":
        """The same load, whose messages are arrays of so many readings from now on."""
        generator = random.Random(seed)
        count = max(1, min(LEAST_PACKETS, MOST_ARRAY_ROWS // rows))
        payload = b"[" + b",".join(reading(generator) for _ in range(rows)) + b"]"
        self._packets = [wire.publish(self._topic, payload, packet_id=i + 1) for i in range(count)]
        self._next = 0
        return self

    def close(self) -> None:
        """Leave the broker."""
        self._sender.close()
        self._hearer.close()

    def stop_hearing(self) -> None:
        """Give up the connection for predictions, before its broker is ended."""
        del self._tails[self._hearer]
        self._hearer.close()

    def first_answer(self, target: Process, seconds: float = 30.0) -> float:
        """Knock until the first prediction of `target` comes; return the seconds since its start.

        Raises:
            TimeoutError: none came in `seconds`.
            RuntimeError: the target has ended.
        """
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            target.check()
            self._sender.sendall(self._probe)
            if self.answers(PROBE_SECONDS):
                moment = time.perf_counter()
                self.drain()
                return moment - target.started
        raise TimeoutError(f"no prediction in {seconds:.0f} s:\n{target.output()[-2000:]}")

    def drain(self) -> int:
        """Take what is still on its way, until it has been quiet for a while; return how many predictions it was."""
        answered = 0
        while found := self.answers(QUIET_SECONDS):
            answered += found
        return answered

    def paced(self, rate_hz: float, seconds: float, tick_s: float = 0.0) -> Answers:
        """Send evenly, then wait for what is missing. With a `tick_s`, what is due is sent once a tick."""
        result, under_way = Answers(), deque[float]()
        start = time.perf_counter()
        last = start
        total = int(rate_hz * seconds)
        while result.sent < total or (under_way and time.perf_counter() - last < STALL_SECONDS):
            now = time.perf_counter()
            due = min(total, int((now - start) * rate_hz) + 1) - result.sent
            if due > 0:
                under_way.extend([now] * due)
                self._sender.sendall(self._take(due))
                result.sent += due
                last = now
            next_due = start + max(result.sent / rate_hz, now - start + tick_s) if result.sent < total else now + 0.1
            found = self.answers(max(0.0, next_due - time.perf_counter()))
            if found:
                last = time.perf_counter()
                result.answered += found
                for _ in range(min(found, len(under_way))):
                    result.latencies_s.append(last - under_way.popleft())
        result.seconds = time.perf_counter() - start
        return result

    def stream(self, rate_hz: float, seconds: float, tick_s: float) -> Answers:
        """Send evenly for `seconds` to a target that answers windows, not readings, and count what it answers."""
        result = Answers()
        start = time.perf_counter()
        total = int(rate_hz * seconds)
        while result.sent < total:
            due = min(total, int((time.perf_counter() - start) * rate_hz) + 1) - result.sent
            if due > 0:
                self._sender.sendall(self._take(due))
                result.sent += due
            next_tick = start + max(result.sent / rate_hz, time.perf_counter() - start + tick_s)
            result.answered += self.answers(max(0.0, next_tick - time.perf_counter()))
        result.seconds = time.perf_counter() - start
        return result

    def saturated(self, seconds: float, outstanding: int) -> Answers:
        """Keep `outstanding` readings unanswered for `seconds`; what is then under way is taken, and not counted.

        Raises:
            TimeoutError: the target stopped answering.
        """
        result = Answers()
        start = time.perf_counter()
        end = start + seconds
        self._sender.sendall(self._take(outstanding))
        result.sent = outstanding
        while (now := time.perf_counter()) < end:
            found = self.answers(STALL_SECONDS)
            if not found:
                raise TimeoutError(f"no answer for {STALL_SECONDS:.0f} s, {outstanding} readings outstanding")
            result.answered += found
            self._sender.sendall(self._take(found))
            result.sent += found
        result.seconds = now - start
        return result

    def _take(self, count: int) -> bytes:
        packets = self._packets
        first, self._next = self._next, (self._next + count) % len(packets)
        return b"".join(packets[(first + i) % len(packets)] for i in range(count))

    def answers(self, seconds: float) -> int:
        """How many predictions arrive within `seconds`; returns as soon as there are some."""
        deadline = time.perf_counter() + seconds
        while True:
            readable, _, _ = select.select(list(self._tails), [], [], max(0.0, deadline - time.perf_counter()))
            answered = sum(self._receive(connection) for connection in readable)
            if answered or not readable:
                return answered

    def _receive(self, connection: socket.socket) -> int:
        data = connection.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the broker closed the load generator's connection")
        data = self._tails[connection] + data
        found, used = wire.packets(data)
        self._tails[connection] = data[used:]
        if connection is self._hearer:
            self.heard_bytes += used
        return sum(1 for first, _, _ in found if first & 0xF0 == wire.PUBLISH)


def wait_online(port: int, device: str, seconds: float) -> None:
    """Wait until a device's retained status says that it is online.

    Raises:
        TimeoutError: it did not in `seconds`.
    """
    connection = _connect(port, wire.connect("bench-watch") + wire.subscribe(f"edge/{device}/status", qos=0))
    deadline, data = time.monotonic() + seconds, b""
    while not data.endswith(b"online"):
        readable, _, _ = select.select([connection], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise TimeoutError(f"{device} is not online after {seconds:.0f} s")
        data += connection.recv(RECEIVE_BYTES)
    connection.close()


def _connect(port: int, greeting: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10.0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(greeting)
    return connection
