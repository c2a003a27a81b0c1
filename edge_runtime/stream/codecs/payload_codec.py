"""Bytes inside a document: `[source.payload]` states their path in a JSON message and their encoding.

The bytes are one frame of `format = "raw"`. Time, key and identity are fields of that frame, or else paths in the
document around it.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge_runtime.stream.codecs.columns import Decoded, Members
from edge_runtime.stream.codecs.kind import Decoder
from edge_runtime.stream.codecs.mapped_codec import OriginPlaces, origin_members
from edge_runtime.stream.codecs.object_codec import explain_json, plain_json
from edge_runtime.stream.codecs.paths import kind_of, parse_path
from edge_runtime.stream.origin import NO_IDENTITY, RejectedError, read_key
from edge_runtime.system.counters import Counters

_BETWEEN_BYTES = re.compile(r"[\s:-]")
_URL_SAFE = str.maketrans("-_", "+/")


def frame_members(members: Members, fields: Sequence[str]) -> Members:
    """The members of the inner frame: those that are fields of it."""
    return msgspec.structs.replace(
        members,
        key=members.key if members.key in fields else None,
        identity=members.identity if members.identity is None or members.identity in fields else NO_IDENTITY,
    )


class PayloadDecoder:
    """Decodes frames inside documents.

    Args:
        members: of the source.
        fields: of the inner frame.
        inner: the decoder of the inner frame, for `frame_members`.
        path: of its bytes.
        encoding: of these bytes.
    """

    def __init__(self, members: Members, fields: Sequence[str], inner: Decoder, *, path: str, encoding: str) -> None:
        self._inner = inner
        self._path = parse_path(path)
        self._decode: Callable[[str], bytes] = _base64 if encoding == "base64" else _hex
        self._encoding = encoding
        outer = msgspec.structs.replace(
            members,
            key=None if members.key in fields else members.key,
            identity=NO_IDENTITY if members.identity in fields else members.identity,
        )
        self._keyed = outer.key is not None
        self._read_time = members.reader.read
        self._identify = origin_members(outer).identify
        self._origins = OriginPlaces(outer, frozenset(fields))

    def decode(self, frames: Sequence[bytes], counters: Counters) -> Decoded:
        """Every reading of the frames; the others are counted in `counters.rejected`."""
        inside: list[bytes] = []
        indexes: list[int] = []
        origins: list[tuple[float | None, str | None, str | None]] = []
        for index, frame in enumerate(frames):
            try:
                document = _document(frame)
                inside.append(self._bytes(document))
                origins.append(self._origin(document))
            except RejectedError as error:
                del inside[len(indexes) :]
                counters.reject(error.reason, error.why, frame=index)
                continue
            indexes.append(index)
        own = Counters()
        decoded = self._inner.decode(inside, own)
        for reason, note in own.notes.items():
            where = indexes[note.frame] if 0 <= note.frame < len(indexes) else -1
            counters.reject(reason, note.why, frame=where, count=own.rejected[reason])
        for place, row in enumerate(decoded.rows):
            time, identity, key = origins[row]
            decoded.times[place] = time if decoded.times[place] is None else decoded.times[place]
            decoded.identities[place] = identity if decoded.identities[place] is None else decoded.identities[place]
            if self._keyed:
                decoded.keys[place] = key
        decoded.rows = [indexes[row] for row in decoded.rows]
        return decoded

    def _origin(self, document: Any) -> tuple[float | None, str | None, str | None]:
        found = self._origins.read(document, document, None)
        key = read_key(found.key) if self._keyed else None
        return self._read_time(found.time), self._identify(found), key

    def _bytes(self, document: Any) -> bytes:
        found = self._path.find(document, document)
        if found is None:
            raise RejectedError("malformed", self._path.explain(document, document))
        place = f"`{self._path.text}`: expected bytes in {self._encoding}"
        if type(found) is not str:
            raise RejectedError("malformed", f"{place}, found {kind_of(found)}")
        try:
            return self._decode(found)
        except (ValueError, binascii.Error) as error:
            raise RejectedError("malformed", f"{place}, found {found[:60]!r} ({error}): look at `encoding`") from None


def _document(frame: bytes) -> Any:
    document, reason = plain_json(frame)
    if reason:
        raise RejectedError(reason, explain_json(frame, reason))
    return document


def _base64(text: str) -> bytes:
    """Decode Base64: standard or URL-safe, with or without padding."""
    bare = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)


def _hex(text: str) -> bytes:
    """Decode hexadecimal digits, with optional blanks, colons or dashes between the bytes, or 0x in front."""
    return bytes.fromhex(_BETWEEN_BYTES.sub("", text.strip().removeprefix("0x").removeprefix("0X")))
