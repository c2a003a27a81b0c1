"""A real mosquitto on a loopback port of its own.

`set_tcp_nodelay` is on: without it mosquitto holds a message back until the client's kernel has confirmed the one
before, up to 40 ms, and hands readings over in threes, so that "paced" would not be paced.
"""

import shutil
import socket
import time
from pathlib import Path

from benchmarks.process import Process

START_SECONDS = 10.0


def free_port() -> int:
    """A TCP port of loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(
    folder: Path, core: int, port: int | None = None, *, nodelay: bool = True, extra: str = ""
) -> tuple[Process, int]:
    """Start mosquitto, with `extra` lines in its settings, and wait until it listens.

    Raises:
        RuntimeError: mosquitto is not installed, or does not come up.
    """
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise RuntimeError("benchmarks: expected the broker mosquitto, found none: apt install mosquitto")
    port = port or free_port()
    settings = folder / f"mosquitto-{port}.conf"
    settings.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay {str(nodelay).lower()}\n{extra}\n"
    )
    broker = Process([program, "-c", str(settings)], core=core, log=folder / f"mosquitto-{port}.log")
    deadline = time.monotonic() + START_SECONDS
    while True:
        broker.check()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                broker.stop()
                raise RuntimeError(f"mosquitto did not listen after {START_SECONDS:.0f} s") from None
            time.sleep(0.005)
        else:
            return broker, port
