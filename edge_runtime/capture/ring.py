"""The files of the captures: a ring of files that together never take more than a number of bytes.

Guarantee: the sizes of all files in the folder, as they stand on the disk, are added up before each write, and the
oldest files go first, so that the sum is never above the budget, not even between two system calls: it holds under a
flood and whenever the process is killed. What a kill leaves of an entry is cut off at the next start. A disk that is
full costs the entries of one write, and those that were there stay.

For the card: one `fdatasync` a write; the folder is synchronised once for each new file, and a full ring has `FILES`.
Weak points: file systems count in blocks and folders, so a folder takes a little more of the card than its files hold;
files that are not ours count, and are never removed; after a power cut a file that was removed may be back until the
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

FILES = 16  # of a full ring: about a sixteenth of it goes when the oldest makes room
LOCK = ".lock"


class CaptureItem(NamedTuple):
    """A window with the facts of its bundle, which are written where the file does not have them yet; or a label."""

    entry: Captured | Labelled
    facts: BundleFacts | None = None


class RingWrite(NamedTuple):
    """What became of the items of a write.

    Attributes:
        kept: those that are on the disk.
        too_large: those that the whole budget does not hold.
        lost: those that the disk refused.
        evicted_bytes: what made room for them.
        error: why some are lost; None where none is.
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
        folder: made where it is not there.
        max_bytes: of all files in it.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._files: list[_File] = []
        self._number = 0  # of the newest file
        self._handle = -1  # of the newest file; -1 where the next entry begins one
        self._facts: list[BundleFacts] = []  # those of the newest file, and of `_pending` behind them
        self._facts_on_disk = 0
        self._pending = bytearray()
        self._pending_items = 0
        self._kept = 0
        self._evicted = 0
        self._lock = -1

    @property
    def is_open(self) -> bool:
        """The folder is there and ours."""
        return self._lock >= 0

    def size_on_disk(self) -> int:
        """What all files of the folder hold, as the disk says."""
        total = 0
        with os.scandir(self.folder) as found:
            for each in found:
                if each.is_file(follow_symlinks=False):
                    total += each.stat(follow_symlinks=False).st_size
        return total

    def open(self) -> None:
        """Make the folder ours, cut off what a kill has left, and come within the budget.

        Raises:
            CommandError: another daemon writes there.
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
        """Let go of the folder."""
        self._end_file()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def write(self, items: Sequence[CaptureItem]) -> RingWrite:
        """Add entries, and have the disk keep them. What it refuses is lost, and its file ends where it did."""
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
        """Have an item written with the next flush; False where there is no room for it at all."""
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
        """Find the files of before, and go on with the newest where it is whole."""
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
        """Cut off an entry that is not whole, and go on behind the last one."""
        data = newest.path.read_bytes()
        found = read(data)
        if found.whole == 0:
            self._files.remove(newest)
            if MAGIC.startswith(data):
                newest.path.unlink()  # cut off before its first entry
            return  # else it is of another release, and stays as it is
        if found.whole < len(data):
            os.truncate(newest.path, found.whole)
            newest.size = found.whole
        self._facts = [entry for entry in found.entries if isinstance(entry, BundleFacts)]
        self._facts_on_disk = len(self._facts)
        self._handle = os.open(newest.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _room(self) -> int:
        """The budget without the files of others."""
        return self._max_bytes - (self.size_on_disk() - sum(each.size for each in self._files))

    def _packed(self, item: CaptureItem) -> bytes:
        """The bytes of an item behind what is there, with the facts of its bundle where these are missing."""
        entry, facts = item
        if facts is None or not isinstance(entry, Captured):
            return pack(entry)
        if facts in self._facts:
            return pack(msgspec.structs.replace(entry, bundle=self._facts.index(facts)))
        return pack(facts) + pack(msgspec.structs.replace(entry, bundle=len(self._facts)))

    def _flush(self) -> None:
        """Write what is pending; what the disk refuses is forgotten."""
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
        """Have the file end where it did before a write that failed; one that held nothing goes."""
        try:
            if newest.size:
                os.ftruncate(self._handle, newest.size)
                return
            newest.path.unlink()
            self._files.remove(newest)
        except OSError:  # the disk is gone: what stands behind the last whole entry is cut off at the next start
            newest.size = newest.path.stat().st_size if newest.path.exists() else 0
        self._end_file()

    def _make_room(self, wanted: int) -> None:
        """Remove the oldest files until so many bytes more are within the budget."""
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
        # The second half stands on no other card: files that are brought in from two cards never have one name.
        path = self.folder / f"part-{self._number:08d}-{os.urandom(4).hex()}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o600)  # readings may be nobody else's business
        self._files.append(_File(path, 0))

    def _end_file(self) -> None:
        """The next entry begins a new file, which has no facts yet."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1
        self._facts = []
        self._facts_on_disk = 0
