"""The server: an address, a thread, and what happens when that thread fails.

Guarantee: `drain` answers what is in flight, and `stop` waits for clients for no longer than a second. A failure in the
thread closes the connections and begins anew after `RESTART_S`, on the same socket; it is logged and counted, and
nothing outside of HTTP sees it. The limits on what clients may do stand in `connections.py` and `request_reader.py`.
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
        app: what answers.
        listen: HOST:PORT or unix:PATH; a host in brackets is IPv6, port 0 any free one.
        gate: of the event loop of this process; None where there is none.
        on_failure: called in the server's thread when it failed and begins anew.
        listener: a socket that listens there already, and that others may hold too.
        inherits: `listener` is that of a server of this process that is leaving, and nobody else's.
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
        self._stopping = threading.Event()  # nothing new is wanted
        self._ended = threading.Event()  # nothing is answered any more
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
        listener = self._listener = self._listener or bind(self._listen)
        if listener.family != socket.AF_UNIX:
            self.port = int(listener.getsockname()[1])
        self._connections = Connections(self._app, listener, self._gate)
        self._thread = start_thread("http", self._serve)

    def drain(self, within: float, *, accepts: bool = True) -> None:
        """Be ready for nothing more, answer what is in flight, and end; returns at once, and `stop` has to follow.

        Args:
            within: seconds; what is not answered then is refused.
            accepts: take new connections for a while; without it they wait for whoever else holds the socket.
        """
        connections = self._connections
        self._stopping.set()
        self._app.stop()
        if connections is not None and self._thread is not None and self._thread.is_alive():
            connections.leave(within, accepts=accepts)

    def hand_over(self) -> socket.socket | None:
        """The socket once more, for a successor; None where this one does not listen. `drain` has to follow."""
        return self._listener.dup() if self._listener is not None and self.is_listening else None

    @property
    def is_over(self) -> bool:
        """Every request has its answer, and no connection is open."""
        return self._thread is None or not self._thread.is_alive()

    def join(self, patience: float) -> bool:
        """Wait for the end of `drain`; False where it has not come after so many seconds."""
        if self._thread is not None:
            self._thread.join(patience)
        return self.is_over

    def stop(self) -> None:
        """Close the socket and every connection; harmless when there is none."""
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
        """In the thread: answer until the stop. A failure of this package closes every connection and begins anew."""
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
