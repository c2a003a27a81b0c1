"""Who may ask: whoever brings the token; without one, this machine alone; and never a page of another site."""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from edge_runtime.config.addresses import is_loopback
from edge_runtime.errors import CommandError
from edge_runtime.http.responses import HttpError

_PORT = re.compile(r":\d{1,5}$", re.ASCII)
_FORMS = {"text/plain", "multipart/form-data"}  # what a page may send to another site without asking (Fetch standard)
_CURL = "application/x-www-form-urlencoded"  # as well; but `curl -d` calls everything so, and is no page


def read_token(path: Path) -> str:
    """The first line of a file.

    Raises:
        CommandError: it cannot be read, or is empty.
    """
    try:
        token = path.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: the token cannot be read: {error}") from error
    if not token:
        raise CommandError(f"{path}: expected a token on the first line, found none")
    return token


class Gate:
    """Lets requests in.

    Args:
        token: what every request must bring, as a bearer token, or as the password that a browser asks its user for.
            None lets in every request that was meant for the loopback: a page of another site, whose name was made to
            point here, brings that site's name along.

    With a token or without, a page of another site gets nothing: browsers name the site in `Origin` or
    `Sec-Fetch-Site`, and need no permission only for the content types in `_FORMS`.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def admit(self, method: str, headers: Mapping[str, str]) -> None:
        """Return when the request may come in.

        Raises:
            HttpError: 401, 403 or 415.
        """
        if self._token is None:
            host = headers.get("host")
            if host is not None and not is_loopback(_PORT.sub("", host)):
                raise HttpError(403, f"expected a request to the loopback, found the host {host[:64]!r}")
        elif not hmac.compare_digest(_given(headers.get("authorization", "")), self._token):
            raise HttpError(
                401,
                "expected the token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Basic realm="edge-runtime: the token is the password"'},
            )
        _refuse_other_sites(method, headers)


def _refuse_other_sites(method: str, headers: Mapping[str, str]) -> None:
    origin = headers.get("origin")
    if origin is not None and not _is_same(origin, headers.get("host", "")):
        raise HttpError(403, f"expected a request of this device's own pages, found the origin {origin[:64]!r}")
    site = headers.get("sec-fetch-site", "none")
    is_visit = method in {"GET", "HEAD"} and headers.get("sec-fetch-mode") == "navigate"
    if site not in {"none", "same-origin"} and not is_visit:
        raise HttpError(403, f"expected a request of this device's own pages, found one that is {site[:32]}")
    if method in {"GET", "HEAD"}:
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    by_page = origin is not None or "sec-fetch-site" in headers or "referer" in headers
    if kind in _FORMS or (kind == _CURL and by_page):
        raise HttpError(415, f"expected Content-Type application/json or application/octet-stream, found {kind!r}")


def _is_same(origin: str, host: str) -> bool:
    scheme, _, place = origin.lower().partition("://")
    host = host.lower()
    return scheme in {"http", "https"} and bool(place) and place in {host, host.removesuffix(":80")}


def _given(header: str) -> bytes:
    kind, _, value = header.partition(" ")
    given = value.strip().encode("latin-1", "replace")
    if kind.lower() == "bearer":
        return given
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
