"""`serve --processes N`: several processes answer on one address, under one parent that serves nothing itself.

A TCP port has a socket for each process (SO_REUSEPORT), and the kernel distributes connections among them; a Unix
socket or one of systemd is shared by all. The parent binds and holds the sockets, and imports neither numpy nor a
model.

Guarantee: a process that dies loses its requests in progress and nothing else; its queue waits for its successor. The
parent ends if a bundle is refused at the start, and after SIGTERM together with its last process; processes end if
their parent is gone. Weak point: connections that the kernel has assigned to a hanging process wait.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.systemd import Notifier

RESTART_S = 1.0
KILL_S = 5.0  # beyond the stop's time; then a process is killed
TICK_S = 0.05
READY, RELOADED, NOT_RELOADED = b"+", b"r", b"!"  # what a process reports
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})

_log = get_logger("serve")
Serve = Callable[[int, socket.socket, Callable[[bytes, str], None]], int]


@dataclass(slots=True)
class _Place:
    """The place of one process, also while none is running.

    Attributes:
        number: from 0.
        listener: its socket.
        pid: of the process; 0 without one.
        says: the pipe with its reports.
        again: the time to start it again, by the monotonic clock.
        reloads: whether its report of a finished reload is still missing.
    """

    number: int
    listener: socket.socket
    pid: int = 0
    says: int = -1
    again: float = 0.0
    is_ready: bool = False
    reloads: bool = False


@dataclass(slots=True)
class Supervisor:
    """The parent.

    Args:
        listeners: one for each process; they may be one and the same.
        serve: in a new process: serves on a socket until SIGTERM, reports by the callable, and returns the exit code.
        notifier: sends notifications to systemd.
        on_ready: called once, when all are ready.
        stop_s: the time for a process to end.
    """

    listeners: Sequence[socket.socket]
    serve: Serve
    notifier: Notifier
    on_ready: Callable[[], None]
    stop_s: float
    _places: list[_Place] = field(default_factory=list)
    _was_ready: bool = False

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._places = [_Place(number, listener) for number, listener in enumerate(self.listeners)]
        while True:
            self._start_due()
            number = self._next_signal()
            if number in {signal.SIGTERM, signal.SIGINT}:
                self.notifier.stopping("stopping")
                return self._stop()
            if number == signal.SIGHUP:
                self._reload()
            code = self._bury()
            self._hear()
            if code is not None and not self._was_ready:
                return self._stop() or code
            if not self._was_ready and all(place.is_ready for place in self._places):
                self._was_ready = True
                self.on_ready()

    def _start_due(self) -> None:
        """Start the missing processes; at first only one, so that an unusable bundle is refused once."""
        for place in self._places:
            if not place.pid and time.monotonic() >= place.again:
                self._start(place)
            if not self._was_ready and not place.is_ready:
                return

    def _next_signal(self) -> int:
        found = signal.sigtimedwait(_SIGNALS, TICK_S if self._is_busy() else RESTART_S)
        return 0 if found is None else found.si_signo

    def _is_busy(self) -> bool:
        return not self._was_ready or any(place.reloads or not place.pid for place in self._places)

    def _start(self, place: _Place) -> None:
        says, to_parent = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(place, to_parent)
        os.close(to_parent)
        os.set_blocking(says, False)
        place.pid, place.says = pid, says
        place.is_ready = place.reloads = False

    def _become(self, place: _Place, to_parent: int) -> None:
        """In the new process: serve, and never return to the parent's code."""
        code = 1
        try:
            os.environ.pop("NOTIFY_SOCKET", None)  # systemd hears the parent only
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            for other in self._places:
                if other.says >= 0:
                    os.close(other.says)
                if other.listener is not place.listener:
                    other.listener.close()
            code = self.serve(place.number, place.listener, lambda word, _text: _say(to_parent, word))
        finally:
            os._exit(code)

    def _hear(self) -> None:
        """Read the reports of the processes."""
        for place in self._places:
            if place.says < 0:
                continue
            with contextlib.suppress(BlockingIOError):
                reports = os.read(place.says, 64)
                place.is_ready = place.is_ready or READY in reports
                if place.reloads and (RELOADED in reports or NOT_RELOADED in reports):
                    place.reloads = False
                    if not any(each.reloads for each in self._places):
                        self.notifier.ready("reloaded" if RELOADED in reports else "not reloaded: see the log")

    def _bury(self) -> int | None:
        """Schedule the restart of ended processes in a second. Return the exit code of one of them."""
        code = None
        for place in self._places:
            if not place.pid:
                continue
            pid, status = os.waitpid(place.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._forget(place)
                if self._was_ready:
                    _log.error(
                        "a process has ended and is started again", extra=fields(process=place.number, code=code)
                    )
        return code

    def _forget(self, place: _Place) -> None:
        os.close(place.says)
        place.pid, place.says, place.reloads = 0, -1, False
        place.again = time.monotonic() + RESTART_S

    def _reload(self) -> None:
        self.notifier.reloading()
        for place in self._places:
            if place.pid:
                place.reloads = True
                os.kill(place.pid, signal.SIGHUP)

    def _stop(self) -> int:
        """End all processes. Return 0 if each of them ended with 0."""
        for place in self._places:
            place.listener.close()
            if place.pid:
                os.kill(place.pid, signal.SIGTERM)
        end = time.monotonic() + self.stop_s + KILL_S
        codes = [0]
        while any(place.pid for place in self._places):
            signal.sigtimedwait({signal.SIGCHLD}, TICK_S)
            if time.monotonic() > end:
                for place in self._places:
                    if place.pid:
                        os.kill(place.pid, signal.SIGKILL)
            for place in self._places:
                if place.pid:
                    pid, status = os.waitpid(place.pid, os.WNOHANG)
                    if pid:
                        codes.append(os.waitstatus_to_exitcode(status))
                        self._forget(place)
        return int(any(codes))


def _say(to_parent: int, word: bytes) -> None:
    with contextlib.suppress(OSError):  # a parent that is gone is noticed elsewhere
        os.write(to_parent, word)
