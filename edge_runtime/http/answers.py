"""Requests and answers, without a server in sight; every refusal is JSON with an `error`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge_runtime.errors import EdgeError

REASONS = {
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Request:
    """What was asked. Names of headers are in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """What is answered. `body` may be an iterable, for a stream of events."""

    status: int = 200
    body: bytes | Iterable[bytes] = b""
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(EdgeError):
    """A request that is not served, with its status and what else the client is told."""

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.more = more

    def answer(self) -> Answer:
        """The refusal as JSON."""
        return Answer(self.status, msgspec.json.encode({"error": str(self), **self.more}), headers=self.headers)


def busy(message: str) -> RefusedError:
    """Too much is asked at the moment; the same request may be sent again in a second."""
    return RefusedError(503, message, headers={"Retry-After": "1"})


def json_answer(document: Any) -> Answer:
    """A document as JSON."""
    return Answer(body=msgspec.json.encode(document))
