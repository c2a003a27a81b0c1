"""The server: an address, a thread, and what happens when that thread fails.

Guarantee: a stop waits for clients for no longer than a second. A failure in the thread closes the connections and
begins anew after `RESTART_S`, on the same socket; it is logged and counted, and nothing outside of HTTP sees it. The
limits on what clients may do stand in `connections.py` and `request_reader.py`.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

from edge_runtime.errors import TransientError
from edge_runtime.http.app import App
from edge_runtime.http.connections import Connections
from edge_runtime.http.yield_to_loop import Courtesy
from edge_runtime.system.background import start_thread
from edge_runtime.system.log import fields, get_logger

BACKLOG = 128
STOP_S = 1.0
RESTART_S = 1.0

_log = get_logger("http")


class ListenError(TransientError):
    """The address cannot be listened on at the moment."""


class Server:
    """Listens, once `start` has returned, until `stop`.

    Args:
        app: what answers.
        listen: HOST:PORT; a host in brackets is IPv6, port 0 any free one.
        courtesy: to the event loop of this process; None where there is none.
        on_failure: called in the server's thread when it failed and begins anew.
    """

    def __init__(
        self,
        app: App,
        listen: str,
        courtesy: Courtesy | None = None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._listen = listen
        self._courtesy = courtesy
        self._on_failure = on_failure
        self._connections: Connections | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.failures = 0
        self.port = 0

    @property
    def is_listening(self) -> bool:
        """Requests are answered."""
        return self._connections is not None and not self._stopping.is_set()

    def start(self) -> None:
        """Listen.

        Raises:
            ListenError: the address is in use, or none of this machine.
        """
        self._listener = listener = self._bind()
        self.port = int(listener.getsockname()[1])
        self._connections = Connections(self._app, listener, self._courtesy)
        self._thread = start_thread("http", self._serve)

    def stop(self) -> None:
        """Close the socket and every connection; harmless when there is none."""
        connections, self._connections = self._connections, None
        self._stopping.set()
        self._app.stop()
        if connections is None or self._thread is None:
            return
        with contextlib.suppress(OSError):  # it has ended by itself
            connections.wake()
        self._thread.join(STOP_S)

    def _serve(self) -> None:
        """In the thread: answer until the stop. A failure of this package closes every connection and begins anew."""
        assert self._listener is not None
        with self._listener:
            connections = self._connections
            while connections is not None and not self._stopping.is_set():
                try:
                    connections.serve(self._stopping.is_set)
                except Exception:  # noqa: BLE001 - the stage's edge: what serves requests must not end what serves a stream
                    self.failures += 1
                    _log.exception("the HTTP server failed and begins anew", extra=fields(failures=self.failures))
                    self._on_failure()
                    self._app.forget_waiting()
                finally:
                    connections.close()
                if self._stopping.wait(RESTART_S):
                    return
                connections = self._connections = Connections(self._app, self._listener, self._courtesy)

    def _bind(self) -> socket.socket:
        host, _, port = self._listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, int(port)))
            listener.listen(BACKLOG)
            listener.setblocking(False)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ListenError(f"{self._listen}: cannot be listened on: {reason}") from error
        return listener
