"""sd_notify, against a real datagram socket."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.system.systemd import Notifier, watchdog_interval
from tests.support.waiting import patient


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET, and the service manager's end of it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"\0edge-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(patient(5))
        listener.bind(address)
        yield address.replace("\0", "@"), listener


def test_ready_is_one_datagram_with_the_status(manager: tuple[str, socket.socket]) -> None:
    """READY comes with the status in one datagram, over a socket in the file system or an abstract one."""
    address, listener = manager
    Notifier({"NOTIFY_SOCKET": address}).ready("2 sources,\n1 model")
    assert listener.recv(4096) == b"READY=1\nSTATUS=2 sources, 1 model"


def test_every_message_has_the_form_of_sd_notify(manager: tuple[str, socket.socket]) -> None:
    """Status, watchdog and stopping are sent as sd_notify(3) spells them."""
    address, listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.status("link up")
    notifier.watchdog()
    notifier.stopping()
    assert [listener.recv(4096) for _ in range(3)] == [b"STATUS=link up", b"WATCHDOG=1", b"STOPPING=1"]


def test_a_reload_carries_the_monotonic_time(manager: tuple[str, socket.socket]) -> None:
    """RELOADING carries the monotonic time in microseconds, as Type=notify-reload asks for."""
    address, listener = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    Notifier({"NOTIFY_SOCKET": address}).reloading()
    reloading, stamp = listener.recv(4096).decode().split("\n")
    assert reloading == "RELOADING=1"
    assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_an_empty_status_sends_nothing(manager: tuple[str, socket.socket]) -> None:
    """A status without text is no message."""
    address, listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.status("")
    notifier.watchdog()
    assert listener.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_outside_systemd_nothing_is_sent(environ: dict[str, str]) -> None:
    """Without a socket that we can speak to, every message is silently none."""
    notifier = Notifier(environ)
    assert not notifier.connected
    notifier.ready()
    notifier.watchdog()


def test_a_vanished_manager_does_no_harm(tmp_path: Path) -> None:
    """A service manager that is gone, or does not read, never stops or delays the daemon."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "full"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "full")})
        for _ in range(2000):  # far more than a datagram queue holds
            notifier.watchdog()
        assert listener.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_three_times_a_deadline(environ: dict[str, str], expected: float | None) -> None:
    """The interval is a third of the deadline, and none when the watchdog waits for another process."""
    assert watchdog_interval(environ) == expected
    assert Notifier(environ).watchdog_interval == expected
