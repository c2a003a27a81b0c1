"""The capture files: a ring of files with a bound on their total size.

Guarantee: before each write the sizes of all files in the folder are read from the disk and added up, and the oldest
files are removed first. So the sum never exceeds the budget, not even between two system calls: it holds under a flood,
and for a kill at any moment. An incomplete entry after a kill is cut off at the next start. A full disk loses the
entries of one write, and earlier entries stay.

For the card: one `fdatasync` a write; the folder is synchronised once for each new file, and a full ring has `FILES`.
Weak points: file systems allocate blocks and folders, so a folder uses a little more of the card than the sizes of its
files; foreign files in the folder count, and are never removed; after a power cut a removed file may be back until the
next start.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_runtime.capture.entries import MAGIC, PATTERN, SUFFIX, BundleFacts, Captured, Labelled, pack, read
from edge_runtime.errors import CommandError
from edge_runtime.system.durable import make_folder, sync_folder

FILES = 16  # of a full ring: removing the oldest frees about a sixteenth
LOCK = ".lock"


class CaptureItem(NamedTuple):
    """A window with the facts of its bundle, which are written if the file has none of them yet; or a label."""

    entry: Captured | Labelled
    facts: BundleFacts | None = None


class RingWrite(NamedTuple):
    """The result of a write.

    Attributes:
        kept: the number of items on the disk.
        too_large: the number of items larger than the whole budget.
        lost: the number of items that the disk refused.
        evicted_bytes: removed to make room.
        error: the reason for lost items; None without any.
    """

    kept: int
    too_large: int
    lost: int
    evicted_bytes: int
    error: OSError | None = None


class _File:
    """One file of the ring."""

    __slots__ = ("path", "size")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size


class CaptureRing:
    """The captures of one device. Every method may block.

    Args:
        folder: created if missing.
        max_bytes: of all files in it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._files: list[_File] = []
        self._number = 0  # of the newest file
        self._handle = -1  # of the newest file; -1 if the next entry begins a file
        self._facts: list[BundleFacts] = []  # of the newest file, then of `_pending`
        self._facts_on_disk = 0
        self._pending = bytearray()
        self._pending_items = 0
        self._kept = 0
        self._evicted = 0
        self._lock = -1

    @property
    def is_open(self) -> bool:
        """Whether the folder exists and this process has locked it."""
        return self._lock >= 0

    def size_on_disk(self) -> int:
        """The size of all files of the folder, read from the disk."""
        total = 0
        with os.scandir(self.folder) as found:
            for each in found:
                if each.is_file(follow_symlinks=False):
                    total += each.stat(follow_symlinks=False).st_size
        return total

    def open(self) -> None:
        """Lock the folder, cut off an incomplete entry, and remove files down to the budget.

        Raises:
            CommandError: another daemon has locked it.
        """
        if not self.folder.exists():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(self.folder)
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise CommandError(f"{self.folder}: expected a folder of its own, found that of another daemon") from error
        self._lock = lock
        try:
            self._look()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Unlock the folder."""
        self._end_file()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def write(self, items: Sequence[CaptureItem]) -> RingWrite:
        """Append entries and synchronise. Entries that the disk refuses are lost, and their file is cut back."""
        self._kept = self._evicted = too_large = 0
        error = None
        try:
            room = self._room()
            for item in items:
                too_large += not self._add(item, room)
            self._flush()
        except OSError as found:
            error = found
        lost = 0 if error is None else len(items) - self._kept - too_large
        return RingWrite(self._kept, too_large, lost, self._evicted, error)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, item: CaptureItem, room: int) -> bool:
        """Add an item to the next flush; return False if it is larger than the budget."""
        packed = self._packed(item)
        begun = len(self._pending) + (self._files[-1].size if self._handle >= 0 else 0)
        if begun and begun + len(packed) > room // FILES:
            self._flush()
            self._end_file()
            packed = self._packed(item)
            begun = 0
        if not begun and len(MAGIC) + len(packed) > room:
            return False
        if item.facts is not None and item.facts not in self._facts:
            self._facts.append(item.facts)
        self._pending += packed
        self._pending_items += 1
        return True

    def _look(self) -> None:
        """Find existing files, and continue the newest if it is usable."""
        self._files, self._facts, self._number = [], [], 0
        for path in sorted(self.folder.glob(PATTERN)):
            digits = path.name.removeprefix("part-").partition("-")[0]
            if digits.isascii() and digits.isdigit():
                self._number = max(self._number, int(digits))
                self._files.append(_File(path, path.stat().st_size))
        if self._files:
            self._take_up(self._files[-1])
        self._make_room(0)

    def _take_up(self, newest: _File) -> None:
        """Cut off an incomplete entry, and continue after the last complete one."""
        data = newest.path.read_bytes()
        found = read(data)
        if found.whole == 0:
            self._files.remove(newest)
            if MAGIC.startswith(data):
                newest.path.unlink()  # cut off before its first entry
            return  # else it belongs to another release, and is left alone
        if found.whole < len(data):
            os.truncate(newest.path, found.whole)
            newest.size = found.whole
        if found.damaged:
            return  # behind damage no further facts could be read: the next entry begins a file
        self._facts = [entry for entry in found.entries if isinstance(entry, BundleFacts)]
        self._facts_on_disk = len(self._facts)
        self._handle = os.open(newest.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _room(self) -> int:
        """The budget without foreign files."""
        return self._max_bytes - (self.size_on_disk() - sum(each.size for each in self._files))

    def _packed(self, item: CaptureItem) -> bytes:
        """The bytes to append for an item, with the facts of its bundle if the file lacks them."""
        entry, facts = item
        if facts is None or not isinstance(entry, Captured):
            return pack(entry)
        if facts in self._facts:
            return pack(msgspec.structs.replace(entry, bundle=self._facts.index(facts)))
        return pack(facts) + pack(msgspec.structs.replace(entry, bundle=len(self._facts)))

    def _flush(self) -> None:
        """Write what is pending; drop it if the disk refuses."""
        if not self._pending:
            return
        data, items = bytes(self._pending), self._pending_items
        self._pending.clear()
        self._pending_items = 0
        try:
            self._write(data)
        except OSError:
            del self._facts[self._facts_on_disk :]
            raise
        self._facts_on_disk = len(self._facts)
        self._kept += items

    def _write(self, data: bytes) -> None:
        is_new = self._handle < 0
        if is_new:
            data = MAGIC + data
        self._make_room(len(data))
        if is_new:
            self._begin_file()
        newest = self._files[-1]
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fdatasync(self._handle)
            if is_new:
                sync_folder(self.folder)
        except OSError:
            self._take_back(newest)
            raise
        newest.size += len(data)

    def _take_back(self, newest: _File) -> None:
        """Cut the file back to its end before a failed write; remove it if it was empty."""
        try:
            if newest.size:
                os.ftruncate(self._handle, newest.size)
                return
            newest.path.unlink()
            self._files.remove(newest)
        except OSError:  # the disk is gone: an incomplete entry is cut off at the next start
            newest.size = newest.path.stat().st_size if newest.path.exists() else 0
        self._end_file()

    def _make_room(self, wanted: int) -> None:
        """Remove the oldest files until `wanted` more bytes fit the budget."""
        while self.size_on_disk() + wanted > self._max_bytes:
            if not self._files or (self._handle >= 0 and len(self._files) == 1 and wanted):
                why = "the other files in the folder leave no room"
                raise OSError(errno.EDQUOT, why)
            if len(self._files) == 1:
                self._end_file()
            oldest = self._files.pop(0)
            oldest.path.unlink(missing_ok=True)
            self._evicted += oldest.size

    def _begin_file(self) -> None:
        self._number += 1
        # The second half is unique to this card: files from two cards never have the same name.
        path = self.folder / f"part-{self._number:08d}-{os.urandom(4).hex()}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o600)  # readings may be confidential
        self._files.append(_File(path, 0))

    def _end_file(self) -> None:
        """Let the next entry begin a new file, which has no facts yet."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
        self._facts = []
        self._facts_on_disk = 0
