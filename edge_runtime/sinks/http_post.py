"""POST requests to one URL, one after the other, over a persistent connection, each with a deadline. Blocks.

Guarantee: TLS is verified and never falls back to clear text; redirects are not followed; at most `BODY_BYTES` of a
response's body are read; `abort` from another thread ends a hanging request.
"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult

BODY_BYTES = 65_536
_SHOWN = 200


class PostAnswer(NamedTuple):
    """The response of a server: status, the beginning of the body, and `Retry-After` in seconds."""

    status: int
    body: str
    retry_after: float


class Poster:
    """A connection to one server.

    Args:
        url: split, with a host.
        ca_file: the trusted certificates, instead of those of the operating system.
        timeout: seconds for connecting, and for each step of an answer.
    """

    def __init__(self, url: SplitResult, ca_file: str | None, timeout: float) -> None:
        self._url = url
        self._ca_file = ca_file
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> PostAnswer:
        """Send `body`; if the server has closed the connection meanwhile, reconnect once.

        Raises:
            OSError: no connection, or it broke.
            http.client.HTTPException: the response is not HTTP.
        """
        fresh = self._connection is None
        try:
            return self._post(body, headers)
        except (http.client.RemoteDisconnected, ConnectionError):
            if fresh:
                raise
            return self._post(body, headers)

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def abort(self) -> None:
        """From any thread: end the request in progress."""
        connection = self._connection
        sock = None if connection is None else connection.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _post(self, body: bytes, headers: Mapping[str, str]) -> PostAnswer:
        if self._connection is None:
            self._connection = self._connect()
        target = self._url.path or "/"
        if self._url.query:
            target = f"{target}?{self._url.query}"
        try:
            self._connection.request("POST", target, body, dict(headers))
            answer = self._connection.getresponse()
            found = answer.read(BODY_BYTES)
            if not answer.isclosed():  # the body is longer than `BODY_BYTES`
                self.close()
        except BaseException:
            self.close()
            raise
        text = "".join(each if each.isprintable() else " " for each in found[:_SHOWN].decode(errors="replace")).strip()
        return PostAnswer(answer.status, text, _seconds(answer.headers.get("Retry-After")))

    def _connect(self) -> http.client.HTTPConnection:
        host = self._url.hostname or ""
        if self._url.scheme == "https":
            context = ssl.create_default_context(cafile=self._ca_file)
            return http.client.HTTPSConnection(host, self._url.port, timeout=self._timeout, context=context)
        return http.client.HTTPConnection(host, self._url.port, timeout=self._timeout)


def _seconds(text: str | None) -> float:
    """`Retry-After` in seconds; its other form, a date, is ignored."""
    return min(float(text), 3600.0) if text is not None and text.strip().isdigit() else 0.0
