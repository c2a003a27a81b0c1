"""Addresses: where a broker listens (`mqtts://HOST:PORT`), and which hosts mean this machine alone. Pure."""

import re
from urllib.parse import urlsplit

import msgspec

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}  # as registered with IANA
_ALIASES = {"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts"}  # what other clients call the same
EXPECTED = "mqtt://HOST:PORT or mqtts://HOST:PORT"


_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]|::1", re.ASCII | re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone; an IPv6 address with or without its brackets."""
    return _LOOPBACK.fullmatch(host) is not None


class Endpoint(msgspec.Struct, frozen=True):
    """A broker's address.

    Attributes:
        host: a name or an address; an IPv6 address stands without its brackets.
        port: 1 to 65535.
        tls: whether the connection is encrypted and the broker's certificate verified.
    """

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def parse_endpoint(url: str) -> Endpoint:
    """Reads a broker's URL.

    Raises:
        ValueError: it is none; the text says what is expected, what was found and what to do, and never holds a
            password.
    """
    shown = f'"{without_password(url)}"'
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"expected {EXPECTED} with a port from 1 to 65535, found {shown}") from error
    scheme = _ALIASES.get(parts.scheme, parts.scheme)
    if scheme not in DEFAULT_PORTS:
        hint = ": websockets are not spoken" if parts.scheme in {"ws", "wss"} else ""
        if "//" not in url:
            hint = f": write mqtt://{shown[1:-1]}"
        raise ValueError(f"expected {EXPECTED}, found {shown}{hint}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"expected {EXPECTED}, found a login in {shown}: take it out, and use the keys username and password_file"
        )
    if not parts.hostname or port == 0 or any(each.isspace() or not each.isprintable() for each in url):
        raise ValueError(f"expected {EXPECTED} with a port from 1 to 65535, found {shown}")
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"expected {EXPECTED}, found more behind the port in {shown}: a broker has no path")
    return Endpoint(parts.hostname, DEFAULT_PORTS[scheme] if port is None else port, scheme == "mqtts")


def without_password(url: str) -> str:
    """The URL as it may be shown: printable, short, and without the password it may hold."""
    head, at, tail = url.rpartition("@")
    if at:
        scheme, slashes, login = head.rpartition("//")
        user, colon, _ = login.partition(":")
        url = f"{scheme}{slashes}{user}{':***' if colon else ''}@{tail}"
    return "".join(each if each.isprintable() else "?" for each in url)[:100]
