"""Requests to an `App` without a socket in between, as a WSGI server would make them."""

import io
import json
from dataclasses import dataclass
from typing import Any

from edge_runtime.http.app import App


@dataclass
class Answered:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body as JSON; NaN and Infinity are no JSON."""
        return json.loads(self.body, parse_constant=_refuse)


def ask(app: App, method: str, path: str, body: bytes | dict[str, Any] | list[Any] = b"", **headers: str) -> Answered:
    """One request; a header is given as `content_encoding="gzip"`."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(data)),
        "wsgi.input": io.BytesIO(data),
        "HTTP_HOST": "localhost:8080",
    }
    environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
    seen: list[Any] = []
    answer = app(environ, lambda status, found: seen.append((status, found)))
    status, found = seen[0]
    return Answered(int(status.split()[0]), dict(found), b"".join(answer))


def _refuse(name: str) -> Any:
    raise ValueError(name)
