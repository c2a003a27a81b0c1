"""Notifications to systemd: ready, stopping, reloading, watchdog, and one line of status.

The protocol of sd_notify(3): one datagram to the socket named in NOTIFY_SOCKET. Outside systemd nothing is sent and
nothing fails; a message that the service manager does not accept is lost silently, since a caller could not react to
it.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Datagrams to the service manager; without one, nothing is sent."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """Reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval = watchdog_interval(environ)

    @property
    def connected(self) -> bool:
        """Whether there is a service manager."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """The service is up; also ends a reload."""
        self._send("READY=1", *_status(status))

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(*_status(text))

    def watchdog(self) -> None:
        """Every part has made progress. To be sent at least every `watchdog_interval`."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. systemd wants the time, to tell this reload from the last one."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> None:
        """A stop begins."""
        self._send("STOPPING=1", *_status(status))

    def _send(self, *lines: str) -> None:
        if self._address is None or not lines:
            return
        # A full or missing socket: a lost notification is no reason to stop the daemon.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.setblocking(False)
            line.sendto("\n".join(lines).encode(), self._address)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two `Notifier.watchdog`, or None without a watchdog.

    It is a third of the deadline (systemd recommends at most half), so one late message does no harm.
    """
    pid = environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    try:
        deadline = int(environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return deadline / 3 if deadline > 0 else None


def _address(text: str) -> str | None:
    if text.startswith("@"):
        return "\0" + text[1:]  # an abstract socket, sd_notify(3)
    return text if text.startswith("/") else None


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []
