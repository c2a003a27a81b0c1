"""Addresses of brokers (`mqtts://HOST:PORT`, `wss://HOST/PATH`), of our own server, and of this machine. Pure."""

import re
from typing import Literal
from urllib.parse import urlsplit

import msgspec

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}  # as registered with IANA
_DEFAULT_PATH = "/mqtt"  # the path of WebSockets at nearly every broker
_ALIASES = {"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts"}  # names of other clients for the same
EXPECTED = "mqtt://HOST:PORT or mqtts://HOST:PORT"


_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]|::1", re.ASCII | re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone; an IPv6 address with or without its brackets."""
    return _LOOPBACK.fullmatch(host) is not None


UNIX = "unix:"
MOST_PATH_BYTES = 107  # of `sun_path` in unix(7), without its closing zero


def unix_path(listen: str) -> str | None:
    """The path of `unix:PATH`; None where it is no such address."""
    return listen[len(UNIX) :] if listen.startswith(UNIX) else None


def listening_fault(listen: str) -> str | None:
    """The fault of an address to listen on, HOST:PORT or unix:PATH, or None."""
    path = unix_path(listen)
    if path is not None:
        if path.startswith("/") and not path.endswith("/") and len(path.encode()) <= MOST_PATH_BYTES:
            return None
        return f'expected unix: and an absolute path of at most {MOST_PATH_BYTES} bytes, found "{listen}"'
    host, colon, port = listen.rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port[:6]) <= 65_535
    if colon and host and is_port:
        return None
    return f'expected HOST:PORT, such as "127.0.0.1:8080", found "{listen}"'


def is_local_listen(listen: str) -> bool:
    """Whether a valid address can be reached only from this machine."""
    return unix_path(listen) is not None or is_loopback(listen.rpartition(":")[0])


_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)
_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+", re.ASCII)


def host_fault(host: str) -> str | None:
    """The fault of a host name for requests, or None."""
    if _HOST.fullmatch(host):
        return None
    return f'expected the name or address of a host without a port, such as "ml.example.org", found "{host[:64]}"'


def origin_fault(origin: str) -> str | None:
    """The fault of an origin whose pages may send requests, or None."""
    if _ORIGIN.fullmatch(origin):
        return None
    why = ": each site is named" if origin == "*" else ""
    return f'expected a site without a path, such as "https://dash.example.org", found "{origin[:64]}"{why}'


def prefix_fault(prefix: str) -> str | None:
    """The fault of a path prefix, or None; an empty one is valid."""
    if not prefix or (_PREFIX.fullmatch(prefix) and not {".", ".."}.intersection(prefix.split("/"))):
        return None
    return f'expected a path such as "/edge", without a slash at its end, found "{prefix[:64]}"'


class Endpoint(msgspec.Struct, frozen=True):
    """A broker's address.

    Attributes:
        host: a name or an address; an IPv6 address stands without its brackets.
        port: 1 to 65535.
        tls: whether the connection is encrypted and the broker's certificate verified.
        path: of MQTT over WebSockets; else empty.
    """

    host: str
    port: int
    tls: bool
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = ("ws" if self.path else "mqtt") + ("s" if self.tls else "")
        return f"{scheme}://{host}:{self.port}{self.path}"

    @property
    def transport(self) -> Literal["tcp", "websockets"]:
        """The word of paho."""
        return "websockets" if self.path else "tcp"


def parse_endpoint(url: str) -> Endpoint:
    """Reads a broker's URL.

    Raises:
        ValueError: it is none; the text has expectation, finding and remedy, and never a password.
    """
    shown = f'"{without_password(url)}"'
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"expected {EXPECTED} with a port from 1 to 65535, found {shown}") from error
    scheme = _ALIASES.get(parts.scheme, parts.scheme)
    if scheme not in DEFAULT_PORTS:
        hint = f": write mqtt://{shown[1:-1]}" if "//" not in url else ": ws:// and wss:// are MQTT over WebSockets"
        raise ValueError(f"expected {EXPECTED}, found {shown}{hint}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"expected {EXPECTED}, found a login in {shown}: take it out, and use the keys username and password_file"
        )
    if not parts.hostname or port == 0 or any(each.isspace() or not each.isprintable() for each in url):
        raise ValueError(f"expected {EXPECTED} with a port from 1 to 65535, found {shown}")
    if scheme in {"ws", "wss"} and not parts.fragment:
        path = (parts.path if parts.path not in {"", "/"} else _DEFAULT_PATH) + (parts.query and f"?{parts.query}")
        return Endpoint(parts.hostname, DEFAULT_PORTS[scheme] if port is None else port, scheme == "wss", path)
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"expected {EXPECTED}, found more behind the port in {shown}: ws:// and wss:// have a path")
    return Endpoint(parts.hostname, DEFAULT_PORTS[scheme] if port is None else port, scheme == "mqtts")


def without_password(url: str) -> str:
    """The URL for messages: printable, short, and without a password."""
    head, at, tail = url.rpartition("@")
    if at:
        scheme, slashes, login = head.rpartition("//")
        user, colon, _ = login.partition(":")
        url = f"{scheme}{slashes}{user}{':***' if colon else ''}@{tail}"
    return "".join(each if each.isprintable() else "?" for each in url)[:100]
