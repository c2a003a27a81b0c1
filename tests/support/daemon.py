"""`edge-runtime run` as a real process: started, watched through systemd's notification socket, ended or killed."""

import contextlib
import signal
import socket
import subprocess
import threading
from pathlib import Path

from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient, wait_until


class Daemon:
    """One daemon on one device file; it may be started again after it has ended, as systemd would.

    Everything that it writes goes to one log over all starts. `finish` fails when a traceback is in it.
    """

    def __init__(self, installed: Installed, config: Path, **environment: str) -> None:
        self.config = config
        self._installed = installed
        self._environment = environment
        self._folder = config.parent
        self._log = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self._notify_path = config.with_suffix(".notify")
        self._notifications: list[str] = []
        self._listener: socket.socket | None = None
        self.within: list[str] = []  # words before the command, such as those that enter a network namespace

    @property
    def log(self) -> str:
        """Everything that it has written, over all starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def notifications(self) -> list[str]:
        """Every line that it has sent to systemd since its last start, such as `READY=1`."""
        return list(self._notifications)

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """The memory that it holds at present."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self, *, ready: bool = True, deadline: float = 30.0) -> "Daemon":
        """Start it, and by default return when it has notified systemd that it is ready.

        Raises:
            AssertionError: it ended, or was not ready in time; its log is in the text.
        """
        self._open_notify_socket()
        environment = clean_environment()
        environment.pop("OMP_NUM_THREADS", None)  # it limits itself
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.within, str(self._installed.edge_runtime), "run", str(self.config)],
                cwd=self._folder,
                env=environment | {"NOTIFY_SOCKET": str(self._notify_path)} | self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if ready:
            self.wait_for_notification("READY=1", deadline)
        return self

    def wait_for_notification(self, text: str, deadline: float = 30.0) -> None:
        """Return when it has sent this line to systemd since its start."""
        wait_until(
            lambda: text in self._notifications or self.returncode is not None,
            lambda: f"{text}; it sent {self._notifications} and wrote:\n{self.log[-3000:]}",
            deadline,
        )
        assert text in self._notifications, f"it ended with {self.returncode} before {text}:\n{self.log[-3000:]}"

    def wait_for_log(self, text: str, deadline: float = 20.0) -> None:
        """Return when its log holds this text."""
        wait_until(lambda: text in self.log, lambda: f"{text!r} in the log:\n{self.log[-3000:]}", deadline)

    def stop(self, deadline: float = 20.0) -> int:
        """Ask it to end, as systemd does, and return its exit code."""
        return self.end(signal.SIGTERM, deadline)

    def kill(self) -> None:
        """End it without warning, as a power cut would."""
        self.end(signal.SIGKILL, 10.0)

    def reload(self) -> None:
        """Ask it to read its configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def end(self, number: signal.Signals, deadline: float) -> int:
        """Send a signal and wait for the end.

        Raises:
            AssertionError: it is still there after the deadline; it is killed then.
        """
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            code = self._process.wait(patient(deadline))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(patient(10))
            raise AssertionError(f"still there {deadline:g} s after {number.name}:\n{self.log[-3000:]}") from None
        self._close_notify_socket()
        return code

    def finish(self) -> None:
        """Make sure that it is gone, and that it never showed a traceback.

        Raises:
            AssertionError: there is a traceback in the log.
        """
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(patient(10))
        self._close_notify_socket()
        assert "Traceback" not in self.log, f"a traceback in the daemon's log:\n{self.log[-4000:]}"

    def _open_notify_socket(self) -> None:
        self._close_notify_socket()
        self._notifications = []
        self._notify_path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listener.bind(str(self._notify_path))
        threading.Thread(
            target=_collect, args=(self._listener, self._notifications), name="notify", daemon=True
        ).start()

    def _close_notify_socket(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None


def _collect(listener: socket.socket, into: list[str]) -> None:
    while True:
        try:
            data = listener.recv(65536)
        except OSError:
            return
        if not data:
            return
        into.extend(data.decode().splitlines())
