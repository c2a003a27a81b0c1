"""A daemon behind a bad link: a network namespace of its own, packets lost in both directions, a cable to be pulled.

Two namespaces are joined by a pair of virtual interfaces; the daemon runs in one, and in the other listens a relay
that passes each connection on to the broker of the test. So what is lost are real TCP segments, and what repairs it is
the kernel. Needs root, iproute2 and nftables.
"""

import contextlib
import ctypes
import os
import re
import select
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.namespaces import require_namespaces, run

CLONE_NEWNET = 0x40000000
PORT = 1883


class LossyLink:
    """A link to the broker at a port of loopback.

    Args:
        port: of the broker.
        percent: of the packets that are lost, in each direction.
    """

    def __init__(self, port: int, percent: int) -> None:
        require_namespaces()
        if shutil.which("nft") is None:
            pytest.skip("nftables is not installed")
        self._target = port
        self._near, self._far = f"edlh{os.getpid() % 100_000}", f"edld{os.getpid() % 100_000}"
        self._closed = False
        try:
            self._make(percent)
        except subprocess.CalledProcessError as error:
            self.remove()
            pytest.skip(f"no lossy link here: {error.stderr.strip()}")
        self._listener = _listen_in(self._near, "10.79.0.1")
        threading.Thread(target=self._serve, name="relay", daemon=True).start()

    @property
    def url(self) -> str:
        """The broker, as the daemon behind the link reaches it."""
        return f"mqtt://10.79.0.1:{PORT}"

    @property
    def within(self) -> list[str]:
        """Words that run a command behind the link."""
        return ["ip", "netns", "exec", self._far]

    @property
    def lost(self) -> int:
        """How many packets were lost so far."""
        texts = [run("ip", "netns", "exec", each, "nft", "list", "ruleset").stdout for each in (self._near, self._far)]
        return sum(int(count) for text in texts for count in re.findall(r"packets (\d+)", text))

    def cut(self) -> None:
        """Pull the cable: both ends notice nothing but silence."""
        run("ip", "-n", self._near, "link", "set", "v0", "down")

    def mend(self) -> None:
        """Put it in again."""
        run("ip", "-n", self._near, "link", "set", "v0", "up")

    def remove(self) -> None:
        """Take everything apart."""
        self._closed = True
        listener = getattr(self, "_listener", None)
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for each in (self._near, self._far):
            run("ip", "netns", "del", each, check=False)

    def _make(self, percent: int) -> None:
        for each in (self._near, self._far):
            run("ip", "netns", "add", each)
            run("ip", "-n", each, "link", "set", "lo", "up")
        run("ip", "-n", self._near, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns", self._far)
        rules = "add table inet f; add chain inet f in { type filter hook input priority 0; }; "
        rules += f'add rule inet f in iifname "v0" numgen random mod 100 < {percent} counter drop'
        for number, each in enumerate((self._near, self._far), 1):
            run("ip", "-n", each, "addr", "add", f"10.79.0.{number}/24", "dev", "v0")
            run("ip", "-n", each, "link", "set", "v0", "up")
            run("ip", "netns", "exec", each, "nft", rules)

    def _serve(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(near,), name="relayed", daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        with contextlib.suppress(OSError), near, socket.create_connection(("127.0.0.1", self._target)) as far:
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while not self._closed:
                for ready in select.select([near, far], [], [], 0.5)[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (far if ready is near else near).sendall(data)


def _listen_in(namespace: str, address: str) -> socket.socket:
    """A listener that belongs to another network namespace: a socket stays where it was made."""
    libc = ctypes.CDLL(None, use_errno=True)
    made: list[socket.socket] = []

    def listen() -> None:
        there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        if libc.setns(there, CLONE_NEWNET) == 0:
            made.append(socket.create_server((address, PORT)))
        os.close(there)

    thread = threading.Thread(target=listen)  # it ends there, so no reply has to come back
    thread.start()
    thread.join(10.0)
    if not made:
        pytest.skip(f"no socket in {Path(namespace)} here")
    return made[0]
