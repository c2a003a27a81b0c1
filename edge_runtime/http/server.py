"""The server: an address, a thread, and the restart of that thread after a failure.

Guarantee: `drain` answers requests in flight, and `stop` waits for clients for at most a second. A failure in the
thread closes the connections, and the thread restarts after `RESTART_S` on the same socket; the failure is logged and
counted, and affects nothing outside of HTTP. The limits for clients are in `connections.py` and `request_reader.py`.
"""

import contextlib
import socket
import threading
from collections.abc import Callable

from edge_runtime.config.addresses import unix_path
from edge_runtime.http.app import App
from edge_runtime.http.connections import Connections
from edge_runtime.http.listening import ListenError as ListenError  # noqa: PLC0414 - raised by `start`
from edge_runtime.http.listening import bind, forget
from edge_runtime.http.yield_to_loop import LoopGate
from edge_runtime.system.background import start_thread
from edge_runtime.system.log import fields, get_logger

STOP_S = 1.0
RESTART_S = 1.0

_log = get_logger("http")


class Server:
    """Listens, once `start` has returned, until `stop`.

    Args:
        app: the application.
        listen: HOST:PORT or unix:PATH; a host in brackets is IPv6, port 0 any free one.
        gate: of the event loop of this process; None without one.
        on_failure: called in the server's thread after a failure, before the restart.
        listener: a socket that listens there already, and that other processes may hold too.
        inherits: whether `listener` is from a leaving server of this process, and no other process holds it.
    """

    def __init__(
        self,
        app: App,
        listen: str,
        gate: LoopGate | None = None,
        on_failure: Callable[[], None] = lambda: None,
        *,
        listener: socket.socket | None = None,
        inherits: bool = False,
    ) -> None:
        self._app = app
        self._listen = listen
        self._gate = gate
        self._on_failure = on_failure
        self._connections: Connections | None = None
        self._listener = listener
        self._is_lent = listener is not None and not inherits
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()  # no new requests
        self._ended = threading.Event()  # no more answers
        self.failures = 0
        self.port = 0

    @property
    def is_listening(self) -> bool:
        """Whether requests are answered."""
        return self._connections is not None and not self._stopping.is_set()

    def start(self) -> None:
        """Listen.

        Raises:
            ListenError: the address is in use, or does not belong to this machine.
        """
        listener = self._listener = self._listener or bind(self._listen)
        if listener.family != socket.AF_UNIX:
            self.port = int(listener.getsockname()[1])
        self._connections = Connections(self._app, listener, self._gate)
        self._thread = start_thread("http", self._serve)

    def drain(self, within: float, *, accepts: bool = True) -> None:
        """Report not ready, answer requests in flight, and end; returns at once, and `stop` has to follow.

        Args:
            within: seconds; requests not answered by then are refused.
            accepts: take new connections for a while; else they wait for other holders of the socket.
        """
        connections = self._connections
        self._stopping.set()
        self._app.stop()
        if connections is not None and self._thread is not None and self._thread.is_alive():
            connections.leave(within, accepts=accepts)

    def hand_over(self) -> socket.socket | None:
        """A duplicate of the socket for a successor; None if this server does not listen. `drain` has to follow."""
        return self._listener.dup() if self._listener is not None and self.is_listening else None

    @property
    def is_over(self) -> bool:
        """Whether every request is answered, and no connection is open."""
        return self._thread is None or not self._thread.is_alive()

    def join(self, patience: float) -> bool:
        """Wait for the end of `drain`; return False if it takes more than so many seconds."""
        if self._thread is not None:
            self._thread.join(patience)
        return self.is_over

    def stop(self) -> None:
        """Close the socket and every connection; without effect if there is none."""
        connections, self._connections = self._connections, None
        self._stopping.set()
        self._ended.set()
        self._app.stop()
        if connections is None or self._thread is None:
            return
        if self._thread.is_alive():
            with contextlib.suppress(OSError):  # it has just ended by itself
                connections.wake()
            self._thread.join(STOP_S)
        path = unix_path(self._listen)
        if path is not None and not self._is_lent:
            forget(path)

    def _serve(self) -> None:
        """In the thread: answer until the stop. After a failure of this package, close every connection and restart."""
        assert self._listener is not None
        with self._listener:
            connections = self._connections
            while connections is not None:
                try:
                    connections.serve(self._ended.is_set)
                except Exception:  # noqa: BLE001 - the stage's edge: what serves requests must not end what serves a stream
                    self.failures += 1
                    _log.exception("the HTTP server failed and begins anew", extra=fields(failures=self.failures))
                    self._on_failure()
                    self._app.forget_waiting()
                finally:
                    connections.close()
                if self._stopping.wait(RESTART_S):
                    return
                connections = self._connections = Connections(self._app, self._listener, self._gate)
