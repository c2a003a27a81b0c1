"""Requests and responses as values; every refusal is JSON with an `error`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge_runtime.errors import EdgeError
from edge_runtime.http.event_stream import Watching

REASONS = {
    200: "OK",
    204: "No Content",
    308: "Permanent Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Request:
    """A request.

    Attributes:
        method: in capitals.
        path: its bytes as Latin-1, without the query.
        headers: names in lower case.
        body: as received, and decompressed from the handler on.
        route: the name of the route, for the metrics; `-` without one.
        handler: of the route, with `parts` of the path for it; None before the request is admitted.
        began: the arrival of its head, by `time.perf_counter_ns`.
        model: the name of the model that scores it.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    route: str = "-"
    handler: Callable[..., Any] | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    began: int = field(default_factory=time.perf_counter_ns)
    model: str | None = None


@dataclass(slots=True)
class Response:
    """An answer. With `watching`, its events follow until the client disconnects."""

    status: int = 200
    body: bytes = b""
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    watching: Watching | None = None


class HttpError(EdgeError):
    """A refused request, with its status and further facts for the client."""

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.more = more

    def answer(self) -> Response:
        """The refusal as JSON."""
        return Response(self.status, msgspec.json.encode({"error": str(self), **self.more}), headers=self.headers)


def busy(message: str) -> HttpError:
    """The refusal if there are too many requests; the client may send the request again in a second."""
    return HttpError(503, message, headers={"Retry-After": "1"})


def json_response(document: Any) -> Response:
    """A document as JSON."""
    return Response(body=msgspec.json.encode(document))
