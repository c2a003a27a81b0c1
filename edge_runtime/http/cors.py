"""Requests by pages of other sites (`origins`): the answer to a preflight, and the headers of responses.

Guarantee: only a configured origin gets any of these headers. Cookies are never used, so a page needs the token itself;
see the Fetch standard, section 3.2.
"""

from collections.abc import Mapping

from edge_runtime.http.responses import Request, Response

_METHODS = "GET, HEAD, POST"
_ASKED = "Authorization, Content-Type, Content-Encoding, Inference-Header-Content-Length"
_SHOWN = "Inference-Header-Content-Length, Retry-After, Warning"
_SECONDS = 600  # for which a browser caches the preflight


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is a browser's preflight for a page of another site."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers


def preflight(_app: object, request: Request, _parts: Mapping[str, str]) -> Response:
    """Answer a preflight with permission."""
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": _ASKED,
        "Access-Control-Max-Age": str(_SECONDS),
    }
    if request.headers.get("access-control-request-private-network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return Response(204, headers=headers)


def answer_headers(origin: str) -> dict[str, str]:
    """The headers that let a page of this origin read an answer."""
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _SHOWN}
