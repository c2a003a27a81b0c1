"""JSON Lines on disk in two files, `PATH` and its predecessor `PATH.1`, which together never exceed a bound.

Guarantee: each file holds complete lines only, after a kill, a power cut or a full disk at any moment; the two never
hold more than `max_bytes`. Lines survive a kill once `write` has returned, and a power cut once `sync` has returned. If
the file is moved or removed from outside, a new one is begun. Weak point: bytes that another program appends count only
from the next opening on.
"""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.system.durable import sync_folder

_BLOCK = 65_536


class JsonLinesFile:
    """The two files; every call blocks. Use it from one thread.

    Args:
        path: the newer one.
        max_bytes: of both.

    Attributes:
        rotated: the number of removals of the older file.
        torn: the number of incomplete last lines that were cut off.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._older = path.with_name(f"{path.name}.1")
        self._max_bytes = max_bytes
        self._most = max_bytes // 2  # of the newer one, unless it is a single longer line
        self._older_size = 0
        self._handle: int | None = None
        self._size = 0
        self._is_dirty = False
        self.rotated = self.torn = 0

    @property
    def longest_line(self) -> int:
        """The bytes of the longest line that can be written, with its line end."""
        return self._max_bytes

    def write(self, lines: Sequence[bytes]) -> int:
        """Append lines, given without line end and none longer than `longest_line`. Return the number written.

        Raises:
            OSError: none of the rest was written, and the file holds complete lines.
        """
        written = 0
        try:
            while written < len(lines):
                self._open()
                block, count = bytearray(), 0
                for line in lines[written:]:
                    size = self._size + len(block)
                    if size and size + len(line) + 1 > self._most:
                        break
                    block += line + b"\n"
                    count += 1
                    if len(block) >= _BLOCK:
                        break
                if count:
                    self._make_room(len(block))
                    self._append(bytes(block))
                    written += count
                else:
                    self._rotate()
        except OSError:
            self.close()
            if not written:
                raise
        return written

    def sync(self) -> None:
        """Synchronise the written lines to the disk.

        Raises:
            OSError: they may not be on the disk.
        """
        if self._handle is None:
            return
        if self._is_dirty:
            os.fdatasync(self._handle)
            self._is_dirty = False
        if self._is_gone():
            self.close()

    def close(self) -> None:
        """Close it; the next `write` opens it again."""
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def _open(self) -> None:
        if self._handle is not None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
        handle = os.open(self._path, flags, 0o640)
        try:
            self._size = self._cut_torn_line(handle, _size_of_file(handle))
            self._keep_bound(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        sync_folder(self._path.parent)

    def _cut_torn_line(self, handle: int, size: int) -> int:
        """Cut off an incomplete last line. Return the remaining size."""
        end = size
        while end > 0:
            begin = max(0, end - _BLOCK)
            block = os.pread(handle, end - begin, begin)
            place = block.rfind(b"\n")
            if place >= 0:
                end = begin + place + 1
                break
            end = begin
        if end != size:
            self.torn += 1
            os.ftruncate(handle, end)
        return end

    def _keep_bound(self, handle: int) -> None:
        """Shorten files of an earlier start with a larger bound: the older one, and the beginning of the newer one."""
        self._older_size = self._older.stat().st_size if self._older.exists() else 0
        if self._size > self._max_bytes:
            keep = os.pread(handle, self._most, self._size - self._most)
            keep = keep[keep.find(b"\n") + 1 :]
            os.ftruncate(handle, 0)
            self._size = 0
            self.rotated += 1
            _write_whole(handle, keep)
            self._size = len(keep)
        self._make_room(0)

    def _make_room(self, size: int) -> None:
        """Remove the older file if both would exceed the bound."""
        if self._older_size and self._older_size + self._size + size > self._max_bytes:
            self._older.unlink(missing_ok=True)
            self._older_size = 0
            self.rotated += 1

    def _append(self, block: bytes) -> None:
        assert self._handle is not None
        try:
            self._is_dirty = True
            _write_whole(self._handle, block)
        except OSError:
            os.ftruncate(self._handle, self._size)  # leave no partial line
            raise
        self._size += len(block)

    def _rotate(self) -> None:
        """Replace the older file by the newer one."""
        assert self._handle is not None
        os.fdatasync(self._handle)
        self._is_dirty = False
        self.close()
        self.rotated += int(self._older_size > 0)
        self._path.replace(self._older)
        self._older_size = self._size
        sync_folder(self._path.parent)

    def _is_gone(self) -> bool:
        """Whether the file was renamed or removed."""
        assert self._handle is not None
        own = os.fstat(self._handle)
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)


def _size_of_file(handle: int) -> int:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    return found.st_size


def _write_whole(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
