"""The server: an address, a thread, and the limits on what a client may do to us.

Guarantee: a header of more than 16 KiB, a body of more than 8 MiB, a request that has not arrived after 30 s, and a
connection that says nothing for 60 s are ended; so is every one beyond the hundredth. Nobody is waited for at a stop
for longer than a second.
"""

import contextlib
import logging
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, TransientError
from edge_runtime.http.app import MAX_BODY_BYTES, App
from edge_runtime.http.yield_to_loop import Courtesy
from edge_runtime.system.background import start_thread

if TYPE_CHECKING:
    from edge_runtime.http.connections import Connections

CONNECTIONS = 100
IDLE_S = 60
STOP_S = 1.0

NEEDS_WAITRESS = "HTTP needs waitress, which is not installed: pip install 'edge-inference-runtime[http]'"


class ListenError(TransientError):
    """The address cannot be listened on at the moment."""


class Server:
    """Listens, once `start` has returned, until `stop`.

    Args:
        app: what answers.
        listen: HOST:PORT; a host in brackets is IPv6, port 0 any free one.
        courtesy: to the event loop of this process; None where there is none.

    Raises:
        ConfigError: waitress is not installed.
    """

    def __init__(self, app: App, listen: str, courtesy: Courtesy | None = None) -> None:
        check_installed()
        self._app = app
        self._listen = listen
        self._courtesy = courtesy
        self._connections: Connections | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.port = 0

    @property
    def is_listening(self) -> bool:
        """Requests are answered."""
        return self._connections is not None and not self._stopping

    def start(self) -> None:
        """Listen.

        Raises:
            ListenError: the address is in use, or none of this machine.
        """
        from edge_runtime.http.connections import Connections  # noqa: PLC0415 - an extra

        listener = self._bind()
        logging.getLogger("waitress").setLevel(logging.CRITICAL)  # what clients do wrong is answered, not logged
        self._connections = Connections(self._app, listener, _adjustments(listener), self._courtesy)
        self.port = int(listener.getsockname()[1])
        self._thread = start_thread("http", partial(self._connections.serve, lambda: self._stopping))

    def stop(self) -> None:
        """Close the socket and every connection; harmless when there is none."""
        connections, self._connections = self._connections, None
        self._stopping = True
        self._app.stop()
        if connections is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            connections.wake()
        self._thread.join(STOP_S)

    def _bind(self) -> socket.socket:
        host, _, port = self._listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ListenError(f"{self._listen}: cannot be listened on: {reason}") from error
        return listener


def check_installed() -> None:
    """See that the extra is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        import waitress  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(NEEDS_WAITRESS) from error


def _adjustments(listener: socket.socket) -> Any:
    from waitress.adjustments import Adjustments  # noqa: PLC0415 - an extra

    return Adjustments(
        sockets=[listener],
        ident="edge-runtime",
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_S,
        cleanup_interval=5,
        max_request_header_size=16_384,
        max_request_body_size=2 * MAX_BODY_BYTES,  # up to here the refusal is ours, with its reason
        recv_bytes=65_536,
    )
