"""The bytes of a text file, decompressed by its suffix and converted to UTF-8.

Guarantee: a truncated compression, or bytes that are invalid in the encoding, raise `OSError` and never give a shorter
file. Weak point: reading of such a file can begin only at its start.
"""

import codecs
import gzip
import io
import zlib
from typing import IO, Any

from edge_runtime.recordings.locations import Place

COMPRESSIONS = (".gz", ".zst")
CHUNK_BYTES = 1 << 20
NEEDS_ZSTD = "a .zst file needs pyarrow, which is not installed: pip install 'edge-inference-runtime[batch]'"

_SPREADSHEET = "a spreadsheet or an archive", "save the table as CSV, or unpack it"
_OTHER_KINDS = {  # first bytes of files that are no UTF-8 text: their kind, and the remedy
    b"\xff\xfe\x00\x00": ("the mark of UTF-32", "add --encoding utf-32"),
    b"\x00\x00\xfe\xff": ("the mark of UTF-32", "add --encoding utf-32"),
    b"\xff\xfe": ("the mark of UTF-16", "add --encoding utf-16"),
    b"\xfe\xff": ("the mark of UTF-16", "add --encoding utf-16"),
    b"\x1f\x8b": ("gzip data", "unpack it once more, or give it a name that ends in .gz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "unpack it once more, or give it a name that ends in .zst"),
    b"BZh": ("bzip2 data", "unpack it"),
    b"\xfd7zXZ": ("xz data", "unpack it"),
    b"PK\x03\x04": _SPREADSHEET,
    b"\xd0\xcf\x11\xe0": _SPREADSHEET,
    b"PAR1": ("a Parquet file", "add --format parquet, or give it a name that ends in .parquet"),
    b"\x93NUMPY": ("a NumPy file", "add --format numpy, or give it a name that ends in .npy"),
}
_LOOKED_AT = 64  # bytes of the head; in UTF-16 without a mark every other one is zero


def other_kind(head: bytes) -> str | None:
    """Kind and remedy of a file that is no UTF-8 text, by its first bytes; None where they do not tell."""
    for start, (what, remedy) in _OTHER_KINDS.items():
        if head.startswith(start):
            return f"{what}: {remedy}"
    head = head[: min(_LOOKED_AT, len(head) // 2 * 2)]
    for ending, zeros, letters in (("le", head[1::2], head[::2]), ("be", head[::2], head[1::2])):
        if len(head) > 2 and not any(zeros) and all(letters):
            return f"text of UTF-16 without its mark: add --encoding utf-16-{ending}"
    return None


def plain_suffix(path: Place) -> str:
    """The suffix in lower case, without that of a compression."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return name[name.rfind(".") :] if "." in name[1:] else ""


def is_plain(path: Place, encoding: str) -> bool:
    """Whether a reader gets the file's bytes unchanged, so that reading can begin anywhere."""
    return path.suffix.lower() not in COMPRESSIONS and encoding == "utf-8"


def open_bytes(path: Place, encoding: str) -> IO[bytes]:
    """Open a text file for reading.

    Raises:
        OSError: it cannot be read.
    """
    file = path.open("rb")
    suffix = path.suffix.lower()
    if suffix == ".gz":
        file = io.BufferedReader(_Guarded(gzip.GzipFile(fileobj=file), file), CHUNK_BYTES)
    elif suffix == ".zst":
        file = _zstandard(file)
    if encoding == "utf-8":
        return file
    return io.BufferedReader(_Recoded(file, encoding), CHUNK_BYTES)


def _zstandard(file: IO[bytes]) -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to load
    except ImportError as error:
        raise OSError(NEEDS_ZSTD) from error
    return io.BufferedReader(_Guarded(pa.CompressedInputStream(pa.PythonFile(file), "zstd"), file), CHUNK_BYTES)


class _Guarded(io.RawIOBase):
    """Turns a decompressor's exceptions into `OSError`, and closes the underlying file."""

    def __init__(self, stream: Any, below: IO[bytes]) -> None:
        self._stream = stream
        self._below = below

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except (EOFError, zlib.error) as error:
            raise OSError(f"its compression is damaged: {error}") from error

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._below.close()
        super().close()


class _Recoded(io.RawIOBase):
    """UTF-8 of a file in another encoding."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._file = file
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            data = self._file.read(CHUNK_BYTES)
            try:
                self._rest = self._decoder.decode(data, final=not data).encode()
            except UnicodeError as error:
                raise OSError(f"expected text in {self._encoding}, found {error}") from error
            if not data and not self._rest:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
