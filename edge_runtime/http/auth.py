"""Who may ask: whoever brings the token; without one, whoever is on this machine and means it."""

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

from edge_runtime.config.addresses import is_loopback
from edge_runtime.errors import CommandError
from edge_runtime.http.responses import RefusedError

_PORT = re.compile(r":\d{1,5}$", re.ASCII)


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
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def admit(self, headers: Mapping[str, str]) -> None:
        """Return when the request may come in.

        Raises:
            RefusedError: 401 or 403.
        """
        if self._token is None:
            host = headers.get("host", "")
            if host and not is_loopback(_PORT.sub("", host)):
                raise RefusedError(403, f"expected a request to the loopback, found the host {host[:64]!r}")
        elif not hmac.compare_digest(_given(headers.get("authorization", "")), self._token):
            raise RefusedError(
                401,
                "expected the token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Basic realm="edge-runtime: the token is the password"'},
            )


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
