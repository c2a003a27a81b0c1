"""Recognise a pickle without running it."""

import io
import pickletools

from converter.load.kind import ModelFile

_PICKLE_SUFFIXES = {".pkl", ".pickle", ".joblib", ".p"}
# The first bytes of joblib's compressed dumps: zlib, gzip, bzip2, xz, lzma, and lz4 frames.
_COMPRESSED = (
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x5d\x00\x00",
    b"\x04\x22\x4d\x18",
)


def looks_pickled(file: ModelFile) -> bool:
    """Whether a file is a pickle or a joblib dump, by its first bytes, and by its suffix where these are ambiguous."""
    return file.suffix in _PICKLE_SUFFIXES or file.head.startswith(_COMPRESSED) or is_pickle(file.head)


def is_pickle(head: bytes) -> bool:
    """Whether bytes are the beginning of a pickle of any protocol; nothing of it is executed."""
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return True
    if not head[:1] or head[:1] in b"\x08{":
        return False
    count = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            count += 1
            if opcode.name == "STOP":
                return count > 1
            if opcode.name in ("GLOBAL", "INST", "REDUCE"):
                return True
    except Exception:  # noqa: BLE001 - whatever it stumbles over, these bytes are no pickle
        return False
    return False
