"""Labels by people: `labels.jsonl` beside captures, a line for each decision; the last one of a window counts.

Lines are only appended, and each is synchronised to disk, so a kill loses at most the decision that is being written. A
torn last line is ignored when the file is read, and cut off before the next write. Several processes may append: each
locks the file for its line, and reads the lines of the others first.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from edge_runtime.errors import CommandError

FILE = "labels.jsonl"


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line.

    Attributes:
        id: of the prediction or the window.
        label: the true label; None where there are numbers, and where an earlier decision was undone.
        values: the true numbers by name: of a regression's targets, or 1 and 0 for each label of a multi-label model.
        skipped: a person looked at it and gave no label.
        time: when, in Unix seconds.
    """

    id: str
    label: str | None = None
    values: dict[str, float] = {}
    skipped: bool = False
    time: float = 0.0

    @property
    def is_truth(self) -> bool:
        """Whether it says what is right."""
        return self.label is not None or bool(self.values)


_decode = msgspec.json.Decoder(Decision).decode


class LabelFile:
    """The decisions of one folder.

    Args:
        folder: of the captures.

    Raises:
        CommandError: a whole line cannot be read.

    Attributes:
        path: of the file, which is created with the first decision.
        latest: the last decision of each window, undone ones included.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._size = 0
        self._lines = 0
        self.latest: dict[str, Decision] = {}
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise CommandError(f"{self.path}: cannot be read: {error.strerror}") from error
        self._take_up(data)

    def add(self, decision: Decision) -> None:
        """Append a decision, durably.

        Raises:
            CommandError: the write failed; the decision does not count.
        """
        line = msgspec.json.encode(decision) + b"\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                self._take_up(_rest_of(handle, self._size))
                os.ftruncate(handle, self._size)
                os.lseek(handle, self._size, os.SEEK_SET)
                rest = memoryview(line)
                while rest:
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise CommandError(f"{self.path}: cannot be written: {error.strerror}") from error
        self._size += len(line)
        self._lines += 1
        self._note(decision)

    def refresh(self) -> None:
        """Take up the decisions that other processes have added.

        Raises:
            CommandError: the file cannot be read.
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._take_up(_rest_of(handle, self._size))
            finally:
                os.close(handle)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CommandError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _take_up(self, data: bytes) -> None:
        """Note the whole lines behind those that are known."""
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            try:
                self._note(_decode(line))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise CommandError(f"{self.path}: line {self._lines}: expected a decision, found: {error}") from error
        self._size += len(whole)

    def _note(self, decision: Decision) -> None:
        self.latest.pop(decision.id, None)  # in the order in which they were made
        self.latest[decision.id] = decision


def _rest_of(handle: int, start: int) -> bytes:
    """The content of a file from a place on."""
    parts = []
    while part := os.pread(handle, 1 << 20, start):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


def decisions_in(folder: Path) -> dict[str, Decision]:
    """The last decision of each window, from all label files in a folder and its subfolders.

    Raises:
        CommandError: one cannot be read.
    """
    found: dict[str, Decision] = {}
    for path in sorted(folder.rglob(FILE)):
        for decision in LabelFile(path.parent).latest.values():
            before = found.get(decision.id)
            if before is None or decision.time >= before.time:
                found[decision.id] = decision
    return found


def has_decisions(folder: Path) -> bool:
    """Whether a folder holds labels by people."""
    return any(folder.rglob(FILE))
