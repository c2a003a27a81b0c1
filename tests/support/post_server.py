"""An HTTP server that takes POSTs and answers as a test wants; on loopback, in a thread."""

import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.waiting import patient

# (status, headers); called with each request
Judge = Callable[["Posted"], tuple[int, dict[str, str]]]


class Posted:
    """One request: path, headers in lower case, and body."""

    def __init__(self, path: str, headers: dict[str, str], body: bytes) -> None:
        self.path, self.headers, self.body = path, headers, body

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """The body as an array of objects."""
        found = json.loads(self.body)
        assert isinstance(found, list)
        return found


class PostServer:
    """The server.

    Attributes:
        posted: every request, refused ones too.
        accepted: the predictions of requests that were answered with 200, in order.
        judge: what it answers; 200 at first.
        delay: seconds before each answer.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.posted: list[Posted] = []
        self.accepted: list[dict[str, Any]] = []
        self.judge: Judge = lambda _: (200, {})
        self.delay = 0.0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                found = Posted(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                server.posted.append(found)
                time.sleep(server.delay)
                status, headers = server.judge(found)
                if status == 200:
                    server.accepted += found.predictions
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                answer = b"so it is"
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://127.0.0.1:{self.port}/predictions"

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(patient(10))
