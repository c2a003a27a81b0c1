"""How late a reading's answer is, by the broker's and by our way of confirming: `python -m benchmarks.prompt_links`.

mosquitto as Debian ships it holds a packet back while its last one is unconfirmed; with `set_tcp_nodelay true` it does
not. A child process answers each message on `in/x` by one on `out/x`, as the daemon does without its model; the median
and the 99th percentile are from the sender's call to the answer's arrival, CPU is the child's for each answer.
"""

import argparse
import multiprocessing
import os
import socket
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.config.tables import BrokerTable
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.broker import Mosquitto
from tests.support.fake_broker import CONNECT, PUBLISH, SUBSCRIBE, packet, text

RATES_HZ = (1, 10, 30, 100, 1000)


def _settled(accepted: bool) -> None:
    assert accepted


def answer(url: str, latency: str, ready: Pipe) -> None:
    """The child: answers until it is asked for its figures."""
    loop = Loop()
    settings = msgspec.convert({"url": url, "latency": latency}, BrokerTable)
    connection = Connection(
        settings, name="bench", client_id="bench", password=lambda: None, loop=loop, counters=Counters()
    )

    def take(messages: list[Message]) -> None:
        for message in messages:
            connection.publish("out/x", message.payload, qos=1, outcome=_settled)

    connection.subscribe(["in/#"], 1, take)
    connection.start()
    while not connection.ready:
        loop.run_once(0.1)
    ready.send("ready")
    begun, passes = time.process_time(), loop.progress
    while not ready.poll():
        loop.run_once(0.2)
    ready.send((time.process_time() - begun, loop.progress - passes))
    connection.stop()


class _Client:
    """A client of its own bytes, which neither holds back nor is held back."""

    def __init__(self, port: int, name: bytes, *filters: bytes) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(packet(CONNECT, text(b"MQTT") + b"\x04\x02\x00\x00" + text(name)))
        for each in filters:
            self._socket.sendall(packet(SUBSCRIBE | 2, b"\x00\x01" + text(each) + b"\x00"))
        self.arrived: dict[int, float] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def publish(self, number: int) -> None:
        """A reading of QoS 1."""
        self._socket.sendall(
            packet(PUBLISH | 2, text(b"in/x") + (number % 60_000 + 1).to_bytes(2, "big") + b"%08d" % number)
        )

    def _read(self) -> None:
        buffer = b""
        while data := self._socket.recv(65_536):
            now = time.perf_counter()
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            buffer += data
            while len(buffer) >= 2 and len(buffer) >= 2 + buffer[1]:
                one, buffer = buffer[: 2 + buffer[1]], buffer[2 + buffer[1] :]
                if one[0] & 0xF0 == PUBLISH:
                    self.arrived.setdefault(int(one[-8:]), now)


def measure(port: int, url: str, latency: str, rate_hz: int, *, seconds: float) -> dict[str, Any]:
    """One figure."""
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=answer, args=(url, latency, theirs))
    child.start()
    ours.recv()
    listener, sender = _Client(port, b"l", b"out/#"), _Client(port, b"s")
    time.sleep(0.2)
    count = max(5, int(rate_hz * seconds))
    sent = []
    begun = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, begun + number / rate_hz - time.perf_counter()))
        sent.append(time.perf_counter())
        sender.publish(number)
    time.sleep(0.5)
    ours.send("end")
    cpu_s, wakeups = ours.recv()
    child.join(10)
    late = sorted(1000 * (listener.arrived[number] - sent[number]) for number in listener.arrived)
    return {
        "answered": len(late),
        "sent": count,
        "median_ms": round(statistics.median(late), 2),
        "p99_ms": round(late[int(0.99 * (len(late) - 1))], 2),
        "cpu_us": round(1e6 * cpu_s / count),
        "wakeups": round(wakeups / count, 2),
    }


def main() -> None:
    """A table, a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rates", type=int, nargs="*", default=RATES_HZ)
    args = parser.parse_args()
    print(f"| broker | latency | rate | median | p99 | CPU an answer | wake-ups an answer |   ({os.uname().machine})")
    with tempfile.TemporaryDirectory() as folder:
        for name, extra in (("as shipped", ""), ("set_tcp_nodelay", "set_tcp_nodelay true")):
            broker = Mosquitto(Path(folder) / name.replace(" ", "-"), extra=extra)
            broker.start()
            try:
                for rate_hz in args.rates:
                    for latency in ("economical", "prompt"):
                        found = measure(broker.port, broker.url, latency, rate_hz, seconds=args.seconds)
                        lost = (
                            ""
                            if found["answered"] == found["sent"]
                            else f" {found['sent'] - found['answered']} missing"
                        )
                        print(
                            f"| {name} | {latency} | {rate_hz}/s | {found['median_ms']} ms | {found['p99_ms']} ms "
                            f"| {found['cpu_us']} us | {found['wakeups']} |{lost}",
                            flush=True,
                        )
            finally:
                broker.stop()


if __name__ == "__main__":
    main()
