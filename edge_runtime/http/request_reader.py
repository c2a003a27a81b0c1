"""Bytes of one connection -> requests, one at a time: the part of HTTP/1.1 that this server supports. Pure.

Strict on purpose: anything that two readers could interpret differently (bare line feeds, folded or doubled lengths, a
blank before a colon, chunks together with a length) is refused, so that a proxy in front of us never sees other
requests (request smuggling).

Guarantee: a head is kept up to `MAX_HEAD_BYTES`, and nothing of a body before `accept` is called: until then a reader
with a head takes no more bytes (`wants`). Bytes of the next request stay in the buffer until `next` is called.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

MAX_HEAD_BYTES = 16_384
HEADS = 64  # parsed heads that are cached, since a client sends the same head each time
HEAD_BYTES = 2048
_MAX_LINE = 256  # of a chunk's size with its extension
_MAX_TRAILER_BYTES = 4096

_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_ONCE = {"authorization", "content-length", "content-type", "origin", "transfer-encoding"}
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\x20-\x7e\t]*)?")


class BadRequestError(Exception):
    """Bytes that are no request; the connection cannot go on."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True, frozen=True)
class Head:
    """The head of a request.

    Attributes:
        method: in capitals, as received.
        path: decoded, its bytes as Latin-1, without the query.
        headers: names in lower case; the host of an absolute URL replaces `host`.
        is_old: whether it is HTTP/1.0.
        keeps: whether the connection stays open after the answer.
        length: of the body; None for a chunked body.
        expects: whether the client waits for `100 Continue` before it sends the body.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    is_old: bool
    keeps: bool
    length: int | None
    expects: bool


class RequestReader:
    """Reads requests, one after the other.

    Attributes:
        head: of the current request, once it is complete.
        body: of the current request, as far as it has arrived.
        complete: the present request is whole.
    """

    def __init__(self) -> None:
        self.head: Head | None = None
        self.body = bytearray()
        self.complete = False
        self._accepted = False
        self._keeps = True
        self._left = 0  # of the body, or of the present chunk
        self._chunk_is_open = False
        self._in_trailer = False
        self._buffer = bytearray()

    @property
    def has_begun(self) -> bool:
        """Whether some bytes of an incomplete request have arrived."""
        return not self.complete and (self.head is not None or bool(self._buffer))

    @property
    def wants(self) -> bool:
        """Whether more bytes can be used now."""
        return not self.complete and (self.head is None or self._accepted)

    def feed(self, data: bytes) -> None:
        """Add bytes, and parse as far as possible.

        Raises:
            BadRequestError: they are no request.
        """
        self._buffer += data
        self._advance()

    def accept(self, *, keep: bool = True) -> None:
        """Read the body of the current request; without `keep`, skip it.

        Raises:
            BadRequestError: as `feed`.
        """
        assert self.head is not None
        self._accepted = True
        self._keeps = keep
        self._left = self.head.length or 0
        self._advance()

    def next(self) -> None:
        """The current request is answered: begin with the next one.

        Raises:
            BadRequestError: as `feed`.
        """
        self.head = None
        self.body = bytearray()
        self.complete = self._accepted = self._chunk_is_open = self._in_trailer = False
        self._advance()

    def _advance(self) -> None:
        if self.head is None:
            self._read_head()
        if self.head is None or not self._accepted or self.complete:
            return
        if self.head.length is not None:
            self._take(self._buffer)
            self.complete = self._left == 0
        else:
            self._read_chunks()

    def _read_head(self) -> None:
        buffer = self._buffer
        while buffer[:2] == b"\r\n":  # RFC 9112 section 2.2: a line end before a request is passed over
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES + 4)
        if end < 0:
            if len(buffer) >= MAX_HEAD_BYTES:
                raise BadRequestError(431, f"expected a head of at most {MAX_HEAD_BYTES} bytes, found more")
            first = buffer.find(b"\n")
            if first >= 0 and (first == 0 or buffer[first - 1] != 13):
                raise BadRequestError(400, "expected lines that end in CR LF")
            if buffer and not _could_begin(buffer[: first if first >= 0 else len(buffer)]):
                raise BadRequestError(400, "expected a request of HTTP/1.1")
            return
        text = bytes(buffer[: end + 2])
        del buffer[: end + 4]
        self.head = read_head(text)

    def _take(self, buffer: bytearray) -> None:
        taken = min(self._left, len(buffer))
        if self._keeps:
            self.body += buffer[:taken]
        del buffer[:taken]
        self._left -= taken

    def _read_chunks(self) -> None:
        buffer = self._buffer
        while buffer and not self.complete:
            if self._in_trailer:
                self._read_trailer()
                return
            if self._left:
                self._take(buffer)
                continue
            if self._chunk_is_open:
                if len(buffer) < 2:
                    return
                if buffer[:2] != b"\r\n":
                    raise BadRequestError(400, "expected a line end behind a chunk")
                del buffer[:2]
                self._chunk_is_open = False
                continue
            end = buffer.find(b"\r\n", 0, _MAX_LINE)
            if end < 0:
                if len(buffer) >= _MAX_LINE:
                    raise BadRequestError(400, "expected the size of a chunk, found a line that is too long")
                return
            size = _CHUNK.fullmatch(buffer[:end])
            if size is None:
                raise BadRequestError(400, "expected the size of a chunk in hexadecimal digits")
            del buffer[: end + 2]
            self._left = int(size[1], 16)
            self._chunk_is_open = self._left > 0
            self._in_trailer = self._left == 0

    def _read_trailer(self) -> None:
        """Skip the trailer after the last chunk; its headers are not used."""
        buffer = self._buffer
        if buffer[:2] == b"\r\n":
            del buffer[:2]
            self.complete = True
            return
        end = buffer.find(b"\r\n\r\n", 0, _MAX_TRAILER_BYTES)
        if end >= 0:
            _headers(
                bytes(buffer[:end]).split(b"\r\n")
            )  # another reader could take an invalid header for the next request
            del buffer[: end + 4]
            self.complete = True
        elif len(buffer) >= _MAX_TRAILER_BYTES:
            raise BadRequestError(400, f"expected a trailer of at most {_MAX_TRAILER_BYTES} bytes")


def _could_begin(buffer: bytearray) -> bool:
    """Whether these bytes, without a line end so far, may be the beginning of a request line."""
    return all(0x20 <= byte != 0x7F for byte in buffer[:64].rstrip(b"\r"))


_known: dict[bytes, Head] = {}


def read_head(text: bytes) -> Head:
    """The head of a request, from its first line to the line end of its last header.

    Raises:
        BadRequestError: it is no valid head.
    """
    known = _known.get(text)
    if known is not None:
        return known
    head = _parse_head(text)
    if len(text) <= HEAD_BYTES:
        if len(_known) >= HEADS:
            del _known[next(iter(_known))]
        _known[text] = head
    return head


def _parse_head(text: bytes) -> Head:
    first, *lines = text[:-2].split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    if line is None:
        raise BadRequestError(400, "expected a request of HTTP/1.1")
    headers = _headers(lines)
    is_old = line[3] == b"0"
    path, host = _target(line[2])
    if host is not None:
        headers["host"] = host
    elif "host" not in headers and not is_old:
        raise BadRequestError(400, "expected the header Host, which HTTP/1.1 asks for")
    options = {each.strip() for each in headers.get("connection", "").lower().split(",")}
    return Head(
        method=line[1].decode("ascii"),
        path=path,
        headers=headers,
        is_old=is_old,
        keeps="keep-alive" in options if is_old else "close" not in options,
        length=_length(headers, is_old=is_old),
        expects=not is_old and headers.get("expect", "").lower() == "100-continue",
    )


def _headers(lines: list[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise BadRequestError(400, "expected headers of the form NAME: VALUE, each on one line")
        name, value = found[1].decode("ascii").lower(), found[2].decode("latin-1")
        if name in headers:
            if name in _ONCE:
                raise BadRequestError(400, f"expected one {name}, found several")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


def _target(raw: bytes) -> tuple[str, str | None]:
    """The path of a request, and the host if the target is an absolute URL."""
    text = raw.decode("latin-1")
    host = None
    if not text.startswith("/") and text != "*":
        try:
            url = urlsplit(text)
        except ValueError:
            url = None
        if url is None or url.scheme not in {"http", "https"} or not url.netloc:
            raise BadRequestError(400, "expected a path or an absolute http URL")
        host, text = url.netloc, url.path or "/"
    path = text.partition("?")[0].partition("#")[0]
    return unquote_to_bytes(path).decode("latin-1"), host


def _length(headers: Mapping[str, str], *, is_old: bool) -> int | None:
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if length is not None or is_old:
            raise BadRequestError(400, "expected either a Content-Length or chunks of HTTP/1.1, found both")
        if coding.strip().lower() != "chunked":
            raise BadRequestError(501, f"expected Transfer-Encoding chunked, found {coding[:32]!r}")
        return None
    if length is None:
        return 0
    if not length.isascii() or not length.isdigit() or len(length) > 18:
        raise BadRequestError(400, f"expected a Content-Length in digits, found {length[:32]!r}")
    return int(length)
