"""waitress with an `App` behind it: sockets, threads and the limits on what a client may do to us.

Guarantee: a header of more than 16 KiB, a body of more than 8 MiB, a request that has not arrived after 30 s, and a
connection that says nothing for 60 s are ended; so is every one beyond the hundredth. Nobody is waited for at a stop
for longer than a second.
"""

import contextlib
import logging
import socket
import threading
import time
from typing import Any

import msgspec

from edge_runtime.errors import ConfigError, TransientError
from edge_runtime.http.app import MAX_BODY_BYTES, STREAM, App
from edge_runtime.progress import working

THREADS = 2  # measured: more of them take turns at the interpreter, and answer less; each open page adds one
CONNECTIONS = 100
REQUEST_S = 30.0
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

    Raises:
        ConfigError: waitress is not installed.
    """

    def __init__(self, app: App, listen: str) -> None:
        check_installed()
        self._app = app
        self._listen = listen
        self._map: dict[int, Any] = {}
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self.port = 0

    @property
    def is_listening(self) -> bool:
        """Requests are answered."""
        return self._server is not None and not self._stopping

    def start(self) -> None:
        """Listen.

        Raises:
            ListenError: the address is in use, or none of this machine.
        """
        from waitress.server import TcpWSGIServer  # noqa: PLC0415 - an extra

        listener = self._bind()
        options = _adjustments(listener)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # its depth is answered with 503, not logged
        logging.getLogger("waitress").setLevel(logging.ERROR)
        sockinfo = (listener.family, listener.type, listener.proto, listener.getsockname())
        server = TcpWSGIServer(
            self._app, map=self._map, _sock=listener, bind_socket=False, adj=options, sockinfo=sockinfo
        )
        server.channel_class = _channel_class(_adjustments(listener, send_bytes=1))
        self.port = int(listener.getsockname()[1])
        self._server = server
        dispatcher = server.task_dispatcher
        self._app.queued = lambda: len(dispatcher.queue)
        self._app.on_streams = lambda count: dispatcher.set_thread_count(THREADS + count)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the socket and every connection; harmless when there is none."""
        server, self._server = self._server, None
        self._stopping = True
        self._app.stop()
        logging.getLogger("waitress").setLevel(logging.CRITICAL)  # whoever is cut off now is cut off on purpose
        if server is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            server.pull_trigger()
        self._thread.join(2 * STOP_S)

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

    def _serve(self) -> None:
        from waitress import wasyncore  # noqa: PLC0415 - an extra

        server = self._server
        while not self._stopping:
            with working("the HTTP server"):
                wasyncore.loop(timeout=1.0, map=self._map, use_poll=True, count=1)
        server.task_dispatcher.shutdown(timeout=STOP_S)  # first, as its threads still write to what is closed next
        with contextlib.suppress(OSError):
            server.close()
        wasyncore.close_all(self._map, ignore_all=True)


def check_installed() -> None:
    """See that the extra is there.

    Raises:
        ConfigError: it is not.
    """
    try:
        import waitress  # noqa: F401, PLC0415 - an extra
    except ImportError as error:
        raise ConfigError(NEEDS_WAITRESS) from error


def _adjustments(listener: socket.socket, **more: Any) -> Any:
    from waitress.adjustments import Adjustments  # noqa: PLC0415 - an extra

    return Adjustments(
        sockets=[listener],
        threads=THREADS,
        ident="edge-runtime",
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_S,
        cleanup_interval=5,
        max_request_header_size=16_384,
        max_request_body_size=2 * MAX_BODY_BYTES,  # up to here the refusal is ours, with its reason
        clear_untrusted_proxy_headers=True,
        expose_tracebacks=False,
        log_socket_errors=False,
        **more,
    )


def _channel_class(unbuffered: Any) -> Any:
    from waitress.channel import HTTPChannel  # noqa: PLC0415 - an extra
    from waitress.task import ErrorTask  # noqa: PLC0415

    class JsonErrorTask(ErrorTask):  # type: ignore[misc]  # waitress has no types
        """What waitress refuses by itself, in our words."""

        def execute(self) -> None:
            error = self.request.error
            body = msgspec.json.encode({"error": f"{error.reason}: {error.body}".strip(": ")})
            self.status = f"{error.code} {error.reason}"
            self.response_headers.append(("Content-Type", "application/json"))
            self.set_close_on_finish()
            self.content_length = len(body)
            self.write(body)

    class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
        """A connection that ends when a request takes too long to arrive, one byte at a time."""

        error_task_class = JsonErrorTask
        begun: float | None = None

        def service(self) -> None:
            if self.requests and getattr(self.requests[0], "path", None) == STREAM:
                self.adj = unbuffered  # an event is sent when it comes
            super().service()

        def readable(self) -> bool:
            if self.request is None:
                self.begun = None
            elif self.begun is None:
                self.begun = time.monotonic()
            elif time.monotonic() - self.begun > REQUEST_S:
                self.will_close = True
            return bool(super().readable())

    return Channel
