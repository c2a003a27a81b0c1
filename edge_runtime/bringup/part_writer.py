"""Readings -> the parts of a recording: text lines, written and synchronised twice a second.

Guarantee: a part holds whole lines only; a kill or a power cut loses at most the readings of a second: half a second
until the next write, and what a late wake-up and the write itself take. Memory is bounded by the readings of a second.
One process writes a recording; a second one is refused. Weak points: a full disk ends the recording; the written parts
stay. A card that needs longer than half a second for a write lengthens the loss by that time.
"""

import contextlib
import csv
import fcntl
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_runtime.errors import CommandError
from edge_runtime.recordings.folder import (
    PARTS,
    UNFINISHED,
    About,
    number_of,
    parts_of,
    read_about,
    whole_lines,
    write_about,
)
from edge_runtime.system.durable import make_folder, sync_folder

PART_BYTES = 67_108_864
WRITE_S = 0.5


class PartWriter:
    """Writes one recording.

    Args:
        folder: created if missing; a recording of the same columns in it is continued.
        about: what is recorded; its counts are kept up to date.
        part_bytes: a part that has grown so large is ended.

    Raises:
        CommandError: the folder is not writable, holds other files, or is being written by another process.
    """

    def __init__(self, folder: Path, about: About, part_bytes: int = PART_BYTES) -> None:
        self.about = about
        self.written = 0  # bytes
        self._folder = folder
        self._part_bytes = part_bytes
        self._lines = io.StringIO()
        self._rows = csv.writer(self._lines, lineterminator="\n")
        self._part: int | None = None
        self._size = 0
        self._lock = -1
        try:
            self._begin()
        except OSError as error:
            self._unlock()
            raise CommandError(f"{folder}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._unlock()
            raise

    def _begin(self) -> None:
        if not self._folder.exists():
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(self._folder)
        self._lock_folder()
        if any(each.name != UNFINISHED for each in self._folder.iterdir()):
            before = read_about(self._folder)
            if before.columns != self.about.columns:
                raise CommandError(
                    f"{self._folder}: expected a recording of {', '.join(self.about.columns)}, found one of "
                    f"{', '.join(before.columns)}: choose another folder"
                )
            self.about.started, self.about.sessions = before.started, before.sessions
        parts = parts_of(self._folder)
        for empty in sorted({*self._folder.glob(PARTS)} - {*parts}):
            empty.unlink()  # the next part may have its name
        for torn in parts[-1:]:
            os.truncate(torn, len(whole_lines(torn)))
        self.about.readings = sum(whole_lines(part).count(b"\n") - 1 for part in parts)  # exact after a kill too
        self._number = number_of(parts[-1]) if parts else 0
        before_this = [number for number in self.about.sessions if number <= self._number]
        self.about.sessions = [*before_this, self._number + 1]
        write_about(self._folder, self.about)

    def add(self, cells: Sequence[object]) -> None:
        """Add a reading, in the order of the columns; the next `flush` writes it."""
        self._rows.writerow(cells)
        self.about.readings += 1

    def flush(self) -> None:
        """Write and synchronise the readings since the last call.

        Raises:
            CommandError: the disk is full, or gone.
        """
        text = self._lines.getvalue()
        if not text:
            return
        self._lines.seek(0)
        self._lines.truncate()
        with self._disk():
            if self._part is None or self._size >= self._part_bytes:
                self._next_part()
            assert self._part is not None
            data = text.encode()
            done = 0
            while done < len(data):
                done += os.write(self._part, data[done:])
            os.fdatasync(self._part)
        self._size += len(data)
        self.written += len(data)

    def describe(self) -> None:
        """Write the description as it is now.

        Raises:
            CommandError: the disk is full, or gone.
        """
        with self._disk():
            write_about(self._folder, self.about)

    def _next_part(self) -> None:
        if self._part is not None:
            os.close(self._part)
            write_about(self._folder, self.about)
        self._number += 1
        path = self._folder / f"part-{self._number:06d}.csv"
        self._part = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        head = self.about.header
        os.write(self._part, head)
        self._size = len(head)
        sync_folder(self._folder)

    def _lock_folder(self) -> None:
        """Lock the folder itself, so that it holds no file beside the recording; the lock ends with the process."""
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CommandError(
                f"{self._folder}: expected a folder of its own, found one that another process records into: "
                "end that one, or choose another folder"
            ) from error

    def _unlock(self) -> None:
        lock, self._lock = self._lock, -1
        with self._disk():  # the descriptor is closed in any case
            if lock >= 0:
                os.close(lock)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """Turn an error of the disk into the command's message."""
        try:
            yield
        except OSError as error:
            raise CommandError(f"{self._folder}: cannot be written any more: {error.strerror}") from error

    def close(self, ended: float) -> None:
        """Write the rest, and the end time in the description; then another process may continue the recording."""
        try:
            self._end(ended)
        finally:
            self._unlock()

    def _end(self, ended: float) -> None:
        self.flush()
        self.about.ended = ended
        with self._disk():
            if self._part is not None:
                part, self._part = self._part, None
                os.close(part)
        self.describe()
