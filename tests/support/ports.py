"""Ports that tests own: free TCP ports, and pseudo-terminals that can be unplugged and plugged in again."""

import fcntl
import os
import random
import select
import socket
import sys
import termios
import time
import tty
from pathlib import Path

from tests.support.waiting import Deadline, patient

# Below the kernel's range for outgoing connections (32768 and up), so that no client takes the port of a broker
# that a test has stopped and is about to start again; each test process of a run has a share of them to itself.
_LOWEST, _HIGHEST = 20_000, 32_000
_draw = random.Random(os.getpid())


def share_of_ports(worker: str, workers: int) -> range:
    """The ports that a process of pytest-xdist draws from: `gw0` the first share; without one, all."""
    if not worker.startswith("gw"):
        return range(_LOWEST, _HIGHEST)
    each = (_HIGHEST - _LOWEST) // max(1, workers)
    first = _LOWEST + int(worker[2:]) % max(1, workers) * each  # a worker that replaces a crashed one has a new number
    return range(first, first + each)


_SHARE = share_of_ports(
    os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
)


def find_free_port() -> int:
    """A free TCP port of the loopback address."""
    for _ in range(200):
        port = _draw.choice(_SHARE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port in 200 draws")


def wait_for_listener(port: int, deadline: float = 10.0) -> None:
    """Return when something accepts connections on the port.

    Raises:
        AssertionError: nothing listened in time.
    """
    until = Deadline(deadline)
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if until.over:
                raise AssertionError(f"nothing listens on port {port} after {deadline:g} s") from None
            time.sleep(0.01)
        else:
            return


class VirtualPort:
    """A serial port made of a pseudo-terminal, under a path that stays the same over unplugging.

    What a test writes here, the daemon reads from `path`. A pseudo-terminal has no baud rate and holds 4 KiB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._master = -1
        self._slave = -1

    def plug(self) -> "VirtualPort":
        """Make the port appear."""
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path.unlink(missing_ok=True)
        self.path.symlink_to(os.ttyname(self._slave))
        return self

    def unplug(self) -> None:
        """Make the port vanish: whoever has it open sees a hang-up, and the path is gone."""
        if self._master < 0:
            return
        self.path.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1

    def write(self, data: bytes, deadline: float = 30.0) -> None:
        """Send bytes, as fast as the reader takes them.

        Raises:
            AssertionError: the reader took nothing for so long.
        """
        rest = memoryview(data)
        while rest:
            _, writable, _ = select.select([], [self._master], [], patient(deadline))
            assert writable, f"no process has read from {self.path} for {deadline:g} s; {len(rest)} bytes are left"
            try:
                rest = rest[os.write(self._master, rest[:1024]) :]
            except BlockingIOError:
                continue

    @property
    def unread(self) -> int:
        """How many of the written bytes are still to be read, as far as the kernel has passed them on."""
        return int.from_bytes(fcntl.ioctl(self._slave, termios.FIONREAD, bytes(4)), sys.byteorder)

    def take(self) -> bytes:
        """What the daemon has sent since the last call."""
        try:
            return os.read(self._master, 4096)
        except BlockingIOError:
            return b""

    def pending(self) -> int:
        """How many bytes wait in the terminal for a reader."""
        count = bytearray(4)
        fcntl.ioctl(self._slave, termios.FIONREAD, count)
        return int.from_bytes(count, "little")
