"""The device's half of fetching captures: bytes that the workstation does not have yet, written to standard output.

`edge-runtime captures --here DEVICE.toml` reads one JSON object from standard input, `{"have": {FILE: [BYTES,
SHA-256]}}`, and writes a JSON line for each file, `{"file", "offset", "bytes"}`, followed by so many bytes, and
`{"end": true}` after the last one. Only complete entries are sent, and files are only appended to, so that a
workstation continues where it stopped. A daemon may write at the same time; a file that it removes is left out.
"""

import hashlib
from pathlib import Path
from typing import BinaryIO

import msgspec

from edge_runtime.capture.entries import PATTERN, read

MOST_ASKED_BYTES = 4_194_304  # of a workstation's list of its files


class HaveList(msgspec.Struct):
    """The workstation's copies of a device's files: their size and digest, by the name of the file."""

    have: dict[str, tuple[int, str]] = {}


class FileHead(msgspec.Struct, omit_defaults=True):
    """The line before the bytes of a file.

    Attributes:
        file: its name.
        offset: of the bytes in the file.
        bytes: the number of bytes that follow.
        end: True if nothing follows, since every file was sent.
    """

    file: str = ""
    offset: int = 0
    bytes: int = 0
    end: bool = False


def send(folder: Path, have: HaveList, out: BinaryIO) -> None:
    """Write what the workstation lacks; a missing folder counts as empty."""
    for path in sorted(folder.glob(PATTERN)):
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        whole = data[: read(data).whole]
        size, digest = have.have.get(path.name, (0, ""))
        offset = size if 0 < size <= len(whole) and hashlib.sha256(whole[:size]).hexdigest() == digest else 0
        if offset == len(whole):
            continue
        head = FileHead(file=path.name, offset=offset, bytes=len(whole) - offset)
        out.write(msgspec.json.encode(head) + b"\n" + whole[offset:])
    out.write(msgspec.json.encode(FileHead(end=True)) + b"\n")
    out.flush()
