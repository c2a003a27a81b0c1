"""`edge-runtime serve` as a process: started, asked, reloaded or stopped by signals, and ended by its own pid."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient

READING = b'{"temperature": 21.5, "humidity": 48.25}'
HEAD = b"POST /predict/activity HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(READING)
# What systemd does between fork and exec: descriptors from 3 on, and the pid that they are meant for.
_AS_SYSTEMD = """
import os, sys
for place, number in enumerate(sys.argv[1].split(",")):
    os.dup2(int(number), 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def serving(
    installed: Installed,
    *words: str | Path,
    cwd: Path,
    sockets: Sequence[socket.socket] = (),
    environment: dict[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A server that is ready; its second line onward of stderr is for the test to read.

    Args:
        installed: the program.
        words: what follows `serve`.
        cwd: where it runs.
        sockets: are handed over as systemd does it.
        environment: more of it.
    """
    command = [str(installed.edge_runtime), "serve", *map(str, words)]
    more = dict(environment or {})
    if sockets:
        command = [sys.executable, "-c", _AS_SYSTEMD, ",".join(str(each.fileno()) for each in sockets), *command]
        more["LISTEN_FDS"] = str(len(sockets))
    server = subprocess.Popen(
        command,
        cwd=cwd,
        env=clean_environment() | more,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[each.fileno() for each in sockets],
    )
    assert server.stderr is not None
    assert server.stdout is not None
    try:
        line = server.stderr.readline()
        assert "serving " in line, line + server.stderr.read()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)  # of several processes the parent ends the others
        try:
            server.wait(patient(20))
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(patient(20))
        server.stderr.close()
        server.stdout.close()


def end(server: subprocess.Popen[str]) -> str:
    """Stop it well; the rest of its stderr."""
    server.send_signal(signal.SIGTERM)
    assert server.wait(patient(30)) == 0
    assert server.stderr is not None
    message = server.stderr.read()
    assert "Traceback" not in message
    return message


def hear(client: socket.socket) -> tuple[int, str, bytes]:
    """One answer: its status, what its `Connection` says, and its body."""
    answer = http.client.HTTPResponse(client)
    answer.begin()
    return answer.status, answer.getheader("Connection", ""), answer.read()


class UnixConnection(http.client.HTTPConnection):
    """A client of a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=patient(20))
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(patient(20))
        self.sock.connect(str(self._path))
