"""One file over HTTP or HTTPS, a piece at a time: fetches a bundle if the desired state names a `url`.

One connection is kept open and read on; after a break, the next piece requests the rest by `Range`, and a server
without ranges is read from the beginning, skipping the bytes already received. Guarantee: no more than one piece is in
memory, every wait is bounded, and redirections are refused, so that only the signed address is contacted. The content
is checked elsewhere, by its digest. Weak point: no proxy is used.
"""

import contextlib
import http.client
import ssl
from urllib.parse import urlsplit

from edge_runtime.errors import TransientError

TIMEOUT_S = 20.0
_WHOLE, _PART = 200, 206


class HttpFile:
    """A file at a URL.

    Args:
        url: `http://` or `https://`.
        size: its expected length.
        timeout: for the connection and for each piece, in seconds.
    """

    def __init__(self, url: str, size: int, timeout: float = TIMEOUT_S) -> None:
        self._url = url
        self._size = size
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._at = 0

    def read(self, offset: int, count: int) -> bytes:
        """The bytes from `offset` on, all of them.

        Raises:
            TransientError: the server cannot be reached, refuses, or has another file there.
        """
        try:
            if self._response is None or self._at != offset:
                self._open(offset)
            assert self._response is not None
            data = self._response.read(count)
            self._at += len(data)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise TransientError(f"{self._url}: {str(error) or type(error).__name__}") from error
        if len(data) != count:
            self.close()
            raise TransientError(f"{self._url}: expected {self._size} bytes, found the end after {self._at}")
        return data

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
        self._connection = self._response = None

    def _open(self, offset: int) -> None:
        self.close()
        parts = urlsplit(self._url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = ssl.create_default_context()
            self._connection = http.client.HTTPSConnection(host, parts.port, timeout=self._timeout, context=context)
        elif parts.scheme == "http":
            self._connection = http.client.HTTPConnection(host, parts.port, timeout=self._timeout)
        else:
            raise ValueError(f"expected http:// or https://, found {parts.scheme[:16]}://")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
        self._connection.request("GET", path, headers=headers)
        response = self._connection.getresponse()
        if response.status not in {_WHOLE, _PART}:
            raise ValueError(f"the server answers {response.status} {response.reason}")
        begin = offset if response.status == _PART else 0
        if response.status == _PART and not (response.getheader("Content-Range") or "").startswith(f"bytes {offset}-"):
            raise ValueError("the server sends another part than was asked for")
        if response.length is not None and response.length != self._size - begin:
            raise ValueError(f"expected {self._size} bytes, found {response.length + begin}")
        self._response, self._at = response, begin
        while self._at < offset:
            passed = response.read(min(1 << 16, offset - self._at))
            if not passed:
                raise ValueError("the file ends early")
            self._at += len(passed)
