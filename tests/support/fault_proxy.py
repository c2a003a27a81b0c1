"""A bad line between a daemon and its broker: it cuts at acknowledgements, delays, freezes and drips.

It reads along as far as telling one MQTT packet from the next, so that a cut can be placed just before or just after
a PUBACK. Every fault that it has done is counted in `done`.
"""

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import Counter

PUBACK = 0x40
FAULTS = ("cut before the acknowledgement", "cut behind the acknowledgement", "reset", "delay and cut", "drip and cut")
FREEZE = "freeze"
SMALL_PACKET_BYTES = 128


class FaultProxy:
    """Listens on loopback and passes on to `port`; each connection ends in a fault after some acknowledgements.

    Args:
        port: of the broker.
        rng: decides which fault, and when.
        freezes: how many connections fall silent instead, with no sign that they have.
    """

    def __init__(self, port: int, rng: random.Random, *, freezes: int = 0) -> None:
        self._target = port
        self._rng = rng
        self._freezes = freezes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._calm = False
        self._closed = False
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.done: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._serve, name="fault-proxy", daemon=True)
        self._thread.start()

    @property
    def faults(self) -> int:
        """How many there were."""
        return self.done.total()

    def calm_down(self) -> None:
        """From the next connection on the line is good."""
        self._calm = True

    def close(self) -> None:
        """End."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10.0)

    def _serve(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), near, socket.create_connection(("127.0.0.1", self._target)) as far:
                self._pass_on(near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        fault = "" if self._calm else self._rng.choice(FAULTS)
        if fault and self._freezes:
            self._freezes -= 1
            fault = FREEZE
        left = self._rng.randint(1, 25)
        downward = bytearray()
        while not self._closed and not (self._calm and fault):
            ready, _, _ = select.select([near, far], [], [], 0.1)
            if near in ready:
                data = near.recv(65536)
                if not data:
                    return
                if fault.startswith("drip"):
                    _drip(far, data)
                else:
                    far.sendall(data)
            if far not in ready:
                continue
            data = far.recv(65536)
            if not data:
                return
            downward += data
            while packet := _take_packet(downward):
                if fault and packet[0] == PUBACK:
                    left -= 1
                    if left == 0:
                        self._strike(near, fault, packet)
                        return
                    if fault.startswith("delay"):
                        time.sleep(0.01)  # this is the fault, not a wait
                near.sendall(packet)

    def _strike(self, near: socket.socket, fault: str, packet: bytes) -> None:
        if fault == "cut behind the acknowledgement":
            near.sendall(packet)
        if fault == FREEZE:
            while near.recv(65536) and not self._closed:
                pass  # swallowed: nothing reaches the broker, and nothing comes back
        if fault == "reset":
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.done[fault] += 1


def _take_packet(buffer: bytearray) -> bytes:
    """The first whole packet, taken out of the buffer; empty when there is none yet."""
    size = shift = 0
    for position in range(1, min(5, len(buffer))):
        size |= (buffer[position] & 0x7F) << shift
        shift += 7
        if not buffer[position] & 0x80:
            end = position + 1 + size
            if len(buffer) < end:
                return b""
            packet = bytes(buffer[:end])
            del buffer[:end]
            return packet
    return b""


def _drip(target: socket.socket, data: bytes) -> None:
    """A little at a time, torn anywhere."""
    target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(min(SMALL_PACKET_BYTES, len(data))):
        target.sendall(data[at : at + 1])
    target.sendall(data[SMALL_PACKET_BYTES:])
