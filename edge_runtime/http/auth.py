"""Access: requests with the token, or without one from loopback; pages of other sites only if configured."""

import base64
import binascii
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_runtime.config.addresses import is_loopback
from edge_runtime.errors import CommandError
from edge_runtime.http.responses import HttpError

_PORT = re.compile(r":\d{1,5}$", re.ASCII)
_FORMS = {"text/plain", "multipart/form-data"}  # sent to another site without a preflight (Fetch standard)
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


Group = Literal["", "health", "metrics"]  # of routes that may be open to all; "" never is


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The rules of access.

    Attributes:
        token: required in a request; None admits every request whose host is this machine.
        open_groups: routes that need no token.
        hosts: further names of this machine, as passed on by a proxy in front of it.
        origins: other sites whose pages may send requests.
    """

    token: str | None = None
    open_groups: frozenset[str] = frozenset({"health"})
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()


def access_by(
    token: str | None, *, health: str, metrics: str, hosts: Iterable[str] = (), origins: Iterable[str] = ()
) -> Access:
    """The rules of access from the options of `[http]` and of `serve`."""
    groups = {"health": health, "metrics": metrics}
    return Access(
        token=token,
        open_groups=frozenset(name for name, word in groups.items() if word == "open"),
        hosts=frozenset(hosts),
        origins=frozenset(origins),
    )


class Gate:
    """Admits or refuses requests.

    Args:
        access: the rules. The token is a bearer token, or the password of a browser's login dialog. Without a token,
            requests are admitted only if their host is the loopback or one of the hosts: this refuses a page of another
            site whose name was made to resolve to this machine (DNS rebinding).

    With or without a token, a page of another site is refused, unless it is one of the origins: browsers name the site
    in `Origin` or `Sec-Fetch-Site`, and send requests without a preflight only for the content types in `_FORMS`.
    """

    def __init__(self, access: Access) -> None:
        self._token = None if access.token is None else access.token.encode()
        self._open = access.open_groups
        self._hosts = frozenset(map(_plain_host, access.hosts))
        self._origins = frozenset(map(str.lower, access.origins))

    def admit(self, method: str, headers: Mapping[str, str], group: Group = "") -> None:
        """Return if the request is admitted.

        Raises:
            HttpError: 401, 403 or 415.
        """
        if self._token is None:
            host = headers.get("host")
            if host is not None and not self._is_ours(_plain_host(_PORT.sub("", host))):
                raise HttpError(403, f"expected a request to the loopback, found the host {host[:64]!r}")
        elif group not in self._open and not hmac.compare_digest(_given(headers.get("authorization", "")), self._token):
            raise HttpError(
                401,
                "expected the token: Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": 'Basic realm="edge-runtime: the token is the password"'},
            )
        if not self.welcomes(headers.get("origin")):
            _refuse_other_sites(method, headers)

    def welcomes(self, origin: str | None) -> bool:
        """Whether pages of this other site may send requests."""
        return origin is not None and bool(self._origins) and origin.lower() in self._origins

    @property
    def has_origins(self) -> bool:
        """Whether answers may depend on the requesting site."""
        return bool(self._origins)

    def _is_ours(self, host: str) -> bool:
        return is_loopback(host) or host in self._hosts


def _plain_host(host: str) -> str:
    return host.lower().removesuffix(".").strip("[]")


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
